"""Every command in the README and the documentation is run, or at least checked, as it stands there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PAGES, ROOT, Block, Command, blocks, check_arguments, compose, shrink

from theory.__main__ import main as theory

ALL = [block for page in PAGES for block in blocks(page)]


def pages(*hows: str):
    """Parameters: the pages with blocks that are run so."""
    chosen = sorted({block.page for block in ALL if block.how in hows})
    return pytest.mark.parametrize("page", chosen, ids=[str(p.relative_to(ROOT)) for p in chosen])


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_arguments_are_known(page):
    for block in blocks(page):
        for command in block.commands:
            try:
                check_arguments(command.words)
            except BaseException as wrong:
                pytest.fail(f"{block.where}: {command.text}: {type(wrong).__name__}: {wrong}")


def run_judge(arguments: list[str]) -> tuple[int, str]:
    """`python -m theory ...` in this process: exit code and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = theory(arguments)
    return code, printed.getvalue()


def run_other(words: list[str]) -> tuple[int, str]:
    """Any other command, in the shell, with this interpreter and this working tree."""
    if words[:3] == ["python", "-m", "experiments.run"]:
        words = shrink(words)
    text = shlex.join([sys.executable, *words[1:]] if words[0] == "python" else words)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        text, shell=True, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    return done.returncode, done.stdout


def compare(block: Block, command: Command, printed: str) -> None:
    """The output in the documentation is the output; a line `...` stands for any lines."""
    wanted = "\n".join(line.rstrip() for line in command.output or [])
    got = "\n".join(line.rstrip() for line in printed.splitlines())
    pattern = re.escape(wanted.strip()).replace(r"\.\.\.", r"(?s:.*?)")
    assert re.fullmatch(pattern, got.strip()), f"{block.where}: {command.text} prints\n{got}\nand not\n{wanted}"


def run(page: Path, hows: tuple[str, ...]) -> None:
    """The page's blocks from top to bottom in the present folder, which stands for the repository's."""
    for name in ("docs", "tests"):
        Path(name).symlink_to(ROOT / name)
    if hows == ("fast",):  # they only read; a slow page keeps a study of its own
        Path("results").mkdir()
        Path("results/reference").symlink_to(ROOT / "results" / "reference")
    for block in blocks(page):
        if block.how not in hows:
            continue
        for command in block.commands:
            judge = command.words[:3] == ["python", "-m", "theory"]
            code, printed = run_judge(command.words[3:]) if judge else run_other(command.words)
            assert code == block.exit_code, f"{block.where}: {command.text} ended with {code}:\n{printed}"
            if command.output is not None and block.how == "fast":
                compare(block, command, printed)


@pages("fast")
def test_commands_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, ("fast",))


def test_tiny_sizes_are_configurations_too():
    runs = [c.words for b in ALL if b.how == "slow" for c in b.commands if c.words[2:3] == ["experiments.run"]]
    assert runs
    for words in runs:
        jobs = compose([word for word in shrink(words)[3:] if word != "-m"])
        assert all(job.samples == 64 and job.rank in (2, 4) for job in jobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pages("slow")
def test_slow_commands_run_at_a_tiny_size(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, ("fast", "slow"))


def test_a_renamed_option_is_noticed():
    for text in (
        "python -m theory check FILE --colour red",
        "python -m experiments.run -m +experiment=nothing",
        "python -m experiments.run speed=1",
        "python -m experiments.collect study=mine colour=red",
        "python -m experiments.reproduce study=nothing",
        "make nothing",
        "pip install '.[nothing]'",
        "rm -rf results",
    ):
        with pytest.raises((AssertionError, SystemExit, Exception)):
            check_arguments(Command(text).words)


def test_an_output_that_differs_is_noticed():
    block = Block(ROOT / "README.md", 1, [])
    compare(block, Command("x", ["a", "...", "b"]), "a\nsomething\nb\n")
    with pytest.raises(AssertionError, match="prints"):
        compare(block, Command("x", ["a", "...", "b"]), "a\nsomething\nc\n")
