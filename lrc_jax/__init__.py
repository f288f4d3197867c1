"""Low-Rank Clone distillation in JAX: a small student whose weights are projections of a teacher's.

    import lrc_jax as lrc

    teacher = lrc.load_teacher("SmolLM2-135M/")
    clone = lrc.LowRankClone.of(teacher, rank=192)
    run = lrc.train(clone, "wikitext-2/", steps=300)
    run.losses, run.history.to_frame()
    print(run.student.generate("Once"))
    run.export("student/")

These names are read when they are first used: `import lrc_jax` itself takes milliseconds and imports no JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrc_jax.errors import DivergedError as DivergedError
    from lrc_jax.errors import InputError as InputError
    from lrc_jax.teachers.load import Teacher as Teacher
    from lrc_jax.teachers.load import load_teacher as load_teacher
    from lrc_jax.training.api import LowRankClone as LowRankClone
    from lrc_jax.training.api import Run as Run
    from lrc_jax.training.api import evaluate as evaluate
    from lrc_jax.training.api import export as export
    from lrc_jax.training.api import generate as generate
    from lrc_jax.training.api import student_of as student_of
    from lrc_jax.training.api import train as train
    from lrc_jax.training.distill import Machine as Machine
    from lrc_jax.training.text_pools import Pools as Pools

    __version__: str

DISTRIBUTION = "lrc-scaling-suite"

# Name -> the module that has it. None may be called as a module of this package is: importing that would replace it.
_HOMES = {
    "DivergedError": "lrc_jax.errors",
    "InputError": "lrc_jax.errors",
    "LowRankClone": "lrc_jax.training.api",
    "Machine": "lrc_jax.training.distill",
    "Pools": "lrc_jax.training.text_pools",
    "Run": "lrc_jax.training.api",
    "Teacher": "lrc_jax.teachers.load",
    "evaluate": "lrc_jax.training.api",
    "export": "lrc_jax.training.api",
    "generate": "lrc_jax.training.api",
    "load_teacher": "lrc_jax.teachers.load",
    "student_of": "lrc_jax.training.api",
    "train": "lrc_jax.training.api",
}

__all__ = [
    "DivergedError",
    "InputError",
    "LowRankClone",
    "Machine",
    "Pools",
    "Run",
    "Teacher",
    "evaluate",
    "export",
    "generate",
    "load_teacher",
    "student_of",
    "train",
]


def _version() -> str:
    from importlib import metadata  # slow to import, and seldom asked for

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"  # a checkout that is not installed


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        import importlib

        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
