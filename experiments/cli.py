"""`lrc COMMAND ...`: every command of the suite but the judge's, which is `theory`.

`lrc run rank=4` is `python -m experiments.run rank=4`. Only the chosen command's module is imported: they need seconds
and an extra of the distribution each, the list of commands needs neither.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from experiments.common.command import INTERRUPTED, fail, guarded

DISTRIBUTION = "lrc-scaling-suite"
OURS = ("experiments", "hydra_plugins", "lrc_jax", "theory")

# Command -> (module, extra that it needs, what it does), in the order in which one meets them.
RUN, CLONE = "run", "clone"
COMMANDS = {
    "distill": ("lrc_jax.__main__", CLONE, "teacher and text -> a trained student as a Hugging Face folder"),
    "generate": ("lrc_jax.__main__", CLONE, "continue a text with a teacher or a student"),
    "export": ("lrc_jax.__main__", CLONE, "a Low-Rank Clone checkpoint -> a Hugging Face folder"),
    "plan": ("lrc_jax.__main__", CLONE, "memory, FLOPs and time of a clone, before anything is run"),
    "cloze": ("lrc_jax.__main__", CLONE, "make a task from a text: which of four continuations is the true one?"),
    "evaluate": ("lrc_jax.__main__", CLONE, "teachers and students on tasks: cloze folders, or lm-eval's"),
    "run": ("experiments.run", RUN, "one run, or with -m a sweep of them"),
    "watch": ("experiments.watch", RUN, "follow a sweep"),
    "status": ("experiments.status", RUN, "how many runs of a study are done, running, failed, missing"),
    "collect": ("experiments.collect", RUN, "make one table of a study's rows, for `theory check`"),
    "figures": ("experiments.figures", RUN, "every figure of a study, from its table"),
    "report": ("experiments.report", RUN, "one self-contained page about a study"),
    "students": ("experiments.students", RUN, "a study's students side by side"),
    "controls": ("experiments.controls", RUN, "a study's controls beside its primary design"),
    "reproduce": ("experiments.reproduce", RUN, "a whole study: sweep, collect, judge, draw, report"),
    "decide": ("experiments.decide", RUN, "decide a claim with as few runs as it takes"),
    "archive": ("experiments.archive", RUN, "keep a finished study in compact form"),
    "bench": ("experiments.bench.__main__", RUN, "measure the speed of steps, runs and sweeps"),
}


def version() -> str:
    """Name and version of the installed distribution."""
    from importlib import metadata  # slow to import, and seldom asked for

    try:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:
        return f"{DISTRIBUTION}, a checkout that is not installed"


def usage() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lrc COMMAND ...   (lrc COMMAND --help says more, lrc --version which version this is)",
            "",
            *lines,
            "",
            "The judge is a program of its own: theory --help.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
      arguments: the command and what follows it; those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _answer(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (`| head`) has gone; nothing may be written at the interpreter's exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # while modules are imported; later the commands have more to say
        return fail("interrupted", INTERRUPTED)


def _answer(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        print(version())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return fail(f"lrc: {name} is no command; {hint}lrc --help lists them")
    try:
        return _run(name, rest)
    except ModuleNotFoundError as missing:
        if (words := what_brings(missing, COMMANDS[name][1])) is None:
            raise
        return fail(f"lrc {name}: {words}")


def what_brings(missing: ModuleNotFoundError, extra: str) -> str | None:
    """Which extra of the distribution has a module that is not installed; None for a module of ours, or of nobody."""
    if missing.name is None or missing.name.partition(".")[0] in OURS:
        return None
    return f"{missing.name} is not installed; pip install '{DISTRIBUTION}[{extra}]' brings it"


def _run(name: str, rest: list[str]) -> int:
    module, extra, _ = COMMANDS[name]
    if extra == CLONE:  # these are commands within one program
        return importlib.import_module(module).main([name, *rest], prog="lrc")
    sys.argv = [f"lrc {name}", *rest]  # Hydra and the others read the process's own
    return guarded(importlib.import_module(module).main)


if __name__ == "__main__":
    raise SystemExit(main())
