import sys
from types import TracebackType


def _without_the_extra(kind: type[BaseException], wrong: BaseException, trace: TracebackType | None) -> None:
    """`python -m experiments.COMMAND` where the extra that it needs is not installed: one line and exit code 2."""
    if isinstance(wrong, ModuleNotFoundError):
        from experiments.cli import RUN, what_brings

        if (words := what_brings(wrong, RUN)) is not None:
            print(words, file=sys.stderr)
            raise SystemExit(2)
    sys.__excepthook__(kind, wrong, trace)


if sys.argv[:1] == ["-m"]:  # so Python calls itself while it looks for the module
    sys.excepthook = _without_the_extra
