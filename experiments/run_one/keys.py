"""Every key of a run with its default and meaning, read off the schema's own text: nothing is written down twice.

A meaning is the comment after a field of experiments/run_one/config.py, or the comment lines right above it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
from dataclasses import MISSING, dataclass
from typing import Any

from omegaconf import MISSING as NEEDED

from experiments.common.paths import CONF, study_name
from experiments.run_one import config
from lrc_jax.errors import InputError

# Where a class's keys live; several for a group whose choices have keys of their own.
SECTIONS: dict[str, tuple[type, ...]] = {
    "": (config.RunConfig,),
    "teacher": (config.TinyTeacher, config.PretrainedTeacher),
    "data": (config.SyntheticData, config.TextData),
    "student": (config.Student,),
    "optimizer": (config.Optimizer,),
    "loss": (config.Loss,),
    "measure": (config.Measure,),
    "mesh": (config.Mesh,),
}
GROUPS = ("teacher", "data", "student", "optimizer", "measure", "experiment")
# Hydra's options and ours, without a value and with one.
FLAGS = (
    "-m",
    "--multirun",
    "-r",
    "--run",
    "--resolve",
    "--version",
    "--hydra-help",
    "--plan",
    "--shell-completion",
    "-sc",
)
VALUED = (
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("-i", "--info", "--experimental-rerun"),
)
WIDTH, INDENT = 110, 38


@dataclass(frozen=True)
class Key:
    """One key: `measure.pool`, its default as one would type it, what it means."""

    name: str
    default: str
    meaning: str


def _typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else "PATH" if value == NEEDED else str(value)


def _meanings(kind: type) -> dict[str, str]:
    """Field -> its comments."""
    found, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        if comment := re.match(r" +# (.*)", line):
            above.append(comment[1])
            continue
        if named := re.match(r" {4}(\w+): [^#]*(?:# (.*))?", line):
            found[named[1]] = " ".join([*above, named[2] or ""]).strip()
        above = []
    return found


@functools.cache
def keys() -> dict[str, tuple[Key, ...]]:
    """Title of a section -> its keys, in the schema's order."""
    found = {}
    for prefix, kinds in SECTIONS.items():
        for kind in kinds:
            meanings = _meanings(kind)
            section = []
            for field in dataclasses.fields(kind):
                if field.name == "name" or (not prefix and field.name in SECTIONS):
                    continue  # the group's choice says it; a section of its own
                value = field.default if field.default_factory is MISSING else field.default_factory()
                name = f"{prefix}.{field.name}" if prefix else field.name
                section.append(Key(name, _typed(value), meanings[field.name]))
            words = (inspect.getdoc(kind) or "").splitlines()[0]
            found[f"{prefix}: {words}" if prefix else words] = tuple(section)
    return found


def groups() -> dict[str, list[str]]:
    """Configuration group -> its choices."""
    return {
        folder.name: sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def help_text() -> str:
    """Groups and their choices, then every key with its default and meaning."""
    lines, choices_of = ["Groups of keys, and what can be chosen for each:"], groups()
    for name in GROUPS:
        choices = f"  {'+' if name == 'experiment' else ''}{name}= {' | '.join(choices_of[name])}"
        lines += textwrap.wrap(choices, WIDTH, subsequent_indent="      ")
    for title, section in keys().items():
        lines += ["", title.rstrip(".") + ":"]
        for key in section:
            start = f"  {key.name}={key.default}".ljust(INDENT - 1) + " "
            lines += textwrap.wrap(start + key.meaning, WIDTH, subsequent_indent=" " * INDENT)
    return "\n".join(lines)


def check_words(words: list[str], *, many: bool) -> None:
    """Look at overrides as they were typed, before Hydra does: it cannot say what was meant.

    Args:
      many: whether this is a multirun (-m).

    Raises:
      InputError: a key that no run has, several values without -m, or a list that a space cut in two.
    """
    known = {key.name for section in keys().values() for key in section}
    tops = {*SECTIONS, *groups(), "hydra"} - {""}
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word.startswith("-") and word.partition("=")[0] not in (*FLAGS, *VALUED):
            raise InputError(f"{word}: unknown option; `lrc run --help` lists keys, --hydra-help Hydra's options")
        if word.startswith("-") or (before in VALUED and "=" not in word):
            continue
        name, equals, value = word.partition("=")
        bare = name.lstrip("+~").partition("@")[0].strip()
        if not equals and not word.startswith("~"):
            raise InputError(f"{word}: not of the form key=value; leave no space around = and between values")
        if value.rstrip().endswith(","):
            rest = after if "=" not in after else ""
            raise InputError(f"{word} {rest}: a space after the comma; write the values without: {word.rstrip()}{rest}")
        if not _known(bare, known, tops):
            near = difflib.get_close_matches(bare, [*sorted(known), *GROUPS], 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"{bare}: unknown key; {hint}`lrc run --help` lists all")
        if bare == "study":  # before Hydra makes a folder of this name
            for one in value.split(","):
                study_name(one.strip("'\""))
        if not many and _several(word):
            raise InputError(f"{word}: several values are a sweep; add -m to run one: -m {word.replace(', ', ',')}")


def _known(key: str, known: set[str], tops: set[str]) -> bool:
    """Whether a key exists in some configuration; Hydra says whether it does in this one."""
    parents = {key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1)}
    return key in known or key in tops or key.partition("/")[0] in tops or bool(parents & (known | {"hydra"}))


def _several(word: str) -> bool:
    """Whether an override names several values (rank=4,8), as Hydra reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:  # Hydra says what is wrong with it
        return False
