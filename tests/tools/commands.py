"""The commands that stand in the documentation, and what it takes to check them without running them.

A fenced block is read as commands where its language is `bash` (every line) or `console` (lines after `$ `; the lines
that follow are their output). A comment before the block says how it is tested:

    <!-- test: slow -->           run by the slow tests only, sweeps at tiny sizes
    <!-- test: skip REASON -->    not run, for this reason; its arguments are still checked
    <!-- test: exit 1 -->         run, and ends with this exit code
"""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MARKER = re.compile(r"<!-- test: (slow|skip|exit) ?(.*?) -->")
#: Shell commands that are not ours; they are run where the block is, and not checked otherwise.
HARMLESS = {"cat", "cd", "cp", "head", "ls", "mkdir", "."}


@dataclass
class Command:
    """One command with the output that stands below it (None where none does)."""

    text: str
    output: list[str] | None = None

    @property
    def words(self) -> list[str]:
        """Its words, without assignments before it and with the interpreter's path cut off."""
        words = shlex.split(self.text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        return ["python", *words[1:]] if words[0].endswith("bin/python") else words


@dataclass
class Block:
    """A fenced block of commands."""

    page: Path
    line: int
    commands: list[Command]
    how: str = "fast"  # fast, slow, skip
    reason: str = ""
    exit_code: int = 0
    where: str = field(init=False)

    def __post_init__(self) -> None:
        self.where = f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = page.read_text().splitlines()
    marker, start, body, language = None, 0, [], None
    for number, line in enumerate(lines, 1):
        fence = re.match(r"\s*```(\w*)", line)
        if language is None and fence:
            language, start, body = fence[1], number, []
        elif language is not None and line.strip() == "```":
            if language in ("bash", "console"):
                yield _block(page, start, body, language, marker)
            language = marker = None
        elif language is not None:
            body.append(line.removeprefix("  ") if lines[start - 1].startswith("  ") else line)
        elif line.strip():
            marker = MARKER.search(line)


def _block(page: Path, line: int, body: list[str], language: str, marker: re.Match[str] | None) -> Block:
    commands: list[Command] = []
    joined = "\n".join(body).replace("\\\n", " ").splitlines()
    for text in joined:
        if language == "console" and not text.startswith("$ "):
            assert commands, f"{page}:{line}: output before the first command"
            commands[-1].output = [*(commands[-1].output or []), text]
        elif shlex.split(text, comments=True):
            commands.append(Command(text.removeprefix("$ ")))
    block = Block(page, line, commands)
    if marker and marker[1] == "exit":
        block.exit_code = int(marker[2])
    elif marker:
        block.how, block.reason = marker[1], marker[2]
        assert block.how != "skip" or block.reason, f"{block.where}: say why it is skipped"
    return block


def check_arguments(words: list[str]) -> None:
    """Whether a command would be accepted: its options exist and its configuration composes. Raises otherwise."""
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {t for t in targets if "=" not in t} <= set(known), f"make: {targets}"
        case ["lrc", command, *arguments]:
            from experiments.cli import COMMANDS

            module = COMMANDS[command][0].removesuffix(".__main__")
            check_arguments(["python", "-m", module, *([command] if module == "lrc_jax" else []), *arguments])
        case ["python", "-m", "theory", *arguments] | ["theory", *arguments]:
            from theory.__main__ import _parser

            _parser().parse_args(arguments)
        case ["python", "-m", "lrc_jax", *arguments]:
            from lrc_jax.__main__ import _parser as parser

            parser().parse_args(arguments)
        case ["python", "-m", module, *arguments] if module.startswith("experiments.bench"):
            name = f"{module}.__main__" if module == "experiments.bench" else module
            importlib.import_module(name).parser().parse_args(arguments)
        case ["python", "-m", "experiments.run", *arguments]:
            if "--help" not in arguments:
                compose([a for a in arguments if a not in ("-m", "--plan")])
        case ["python", "-m", "experiments.reproduce", *arguments]:
            check_study(arguments)
        case ["python", "-m", "experiments.decide", *arguments]:
            from unittest import mock

            from experiments.decide import declare

            with mock.patch("sys.argv", ["decide", *arguments]):
                declare()
        case ["python", "-m", module, *arguments] if module.startswith("experiments."):
            check_keys(module, arguments)
        case ["python", "-m", "pytest", *arguments]:
            for path in (a for a in arguments if "/" in a):
                assert (ROOT / path).exists(), path
        case ["python", "-m", "pip" | "venv", *_] | ["pip", *_]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for named in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
                assert set(named.split(",")) <= set(extras), f"no such extra: {named}"
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file(), script
        case ["unshare", *rest]:
            assert (ROOT / rest[-1]).is_file(), rest[-1]
        case ["git", "clone", *_] | ["tensorboard", "--logdir", _]:
            pass
        case [first, *_] if first in HARMLESS or (ROOT / first).is_file():
            pass
        case _:
            raise AssertionError(f"tests/tools/commands.py does not know the command {' '.join(words)!r}")


def compose(overrides: list[str]) -> list[object]:
    """The first and the last job of a multirun as checked configurations.

    An engine's launcher is left out where its plugin is not installed; its file has to be there.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from experiments.run_one import config
    from experiments.sweep.plan import jobs_of

    for override in overrides:
        if override.startswith("+engine="):
            assert (ROOT / "conf" / "engine" / f"{override.partition('=')[2]}.yaml").is_file(), override
    jobs = jobs_of([o for o in overrides if not o.lstrip("+").startswith(("hydra", "engine"))], None)
    config.register()
    found = []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in [jobs[0], jobs[-1]] if len(jobs) > 1 else jobs:
            found.append(config.typed(hydra_compose("config", overrides=list(job))))
    return found


def check_study(arguments: list[str]) -> None:
    """The design is there, takes these arguments, and every arm of it composes."""
    from unittest import mock

    from experiments import reproduce

    def no_hub() -> None:
        raise reproduce.InputError("no hub in a test")

    started: list[reproduce.Arm] = []

    class Composed(Exception):
        pass

    def sweep(logs: Path, jobs: list[reproduce.Arm], at_once: int) -> list[str]:
        started.extend(jobs)
        raise Composed

    with (
        mock.patch("sys.argv", ["reproduce", *arguments]),
        mock.patch.object(reproduce, "sweep", sweep),
        mock.patch("lrc_jax.data.text.wikitext2_splits", no_hub),
    ):
        try:
            reproduce.main()
        except Composed:
            pass
        else:
            raise AssertionError("the study started no sweep")
    for arm in started:
        compose([a for a in arm.arguments if a != "-m"])


def check_keys(module: str, arguments: list[str]) -> None:
    """A command on a study knows these keys: where there is no such study it says so, and nothing else."""
    import importlib
    from unittest import mock

    from experiments.sweep.store import Study
    from lrc_jax.errors import InputError

    program = importlib.import_module(module)
    if module == "experiments.archive" and "study=all" in arguments:
        return
    # Watching waits for a study that is not there; here it has to be there.
    there = mock.patch.object(program, "wait_for", Study.require) if module == "experiments.watch" else nullcontext()
    argv = mock.patch("sys.argv", [module, *arguments, "results_dir=nowhere"])
    with there, argv, pytest.raises(InputError) as wrong:
        program.main()
    assert "nowhere" in str(wrong.value), wrong.value


def shrink(words: list[str]) -> list[str]:
    """The words of `python -m experiments.run ...` at a size of seconds: two jobs of a sweep, a tiny teacher."""
    from experiments.run_one.config import RunConfig, SyntheticData, TinyTeacher

    arguments = words[3:]
    many = "-m" in arguments
    overrides = [a for a in arguments if a != "-m"]
    config = compose(overrides)[0]
    assert isinstance(config, RunConfig)
    steps = 64 if config.measure.convergence else 20
    tiny = {"rank": "2,4" if many else "4", "samples": "64", "seed": "0", "steps": str(steps), "batch_size": "8"}
    sizes = {"test_samples": 64, "reference_samples": 64, "information_samples": 128, "pool": 64}
    tiny |= {f"measure.{name}": str(size) for name, size in sizes.items()}
    if isinstance(config.teacher, TinyTeacher):
        tiny |= {"teacher.hidden_size": "16", "teacher.intermediate_size": "16", "teacher.steps": "40"}
        tiny |= {"teacher.check_every": "20", "teacher.pool": "512", "sequence_length": "6"}
    if isinstance(config.data, SyntheticData):
        tiny |= {"data.vocabulary": "8"}
    kept = [o for o in overrides if o.partition("=")[0] not in tiny]
    return [*words[:3], *(["-m"] if many else []), *kept, *(f"{key}={value}" for key, value in tiny.items())]
