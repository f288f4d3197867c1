"""The mutation run: it kills what a test notices, shows what none does, and leaves the source as it is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import mutants
import pytest
from mutations import Module, Mutant

RULE = '''"""A rule."""

LIMIT = 3


def enough(count):
    if count >= LIMIT:
        return True
    return False


def unused(value):
    return value + 1
'''
TESTS = """
import pytest
from toy.rule import enough


@pytest.mark.parametrize(("count", "wanted"), [(9, True), (0, False)], ids=["nine of them", "none"])
def test_enough(count, wanted):
    assert enough(count) is wanted
"""


@pytest.fixture
def run(tmp_path, capsys):
    """`run(...)` on a toy package: exit code, what it prints, and the JSON."""
    for name, text in {"toy/__init__.py": "", "toy/rule.py": RULE, "tests/test_toy.py": TESTS}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def command(*arguments):
        out = tmp_path / "out.json"
        where = ["--root", str(tmp_path), "--package", "toy", "--tests", "tests", "--json", str(out)]
        code = mutants.main([*where, *arguments])
        assert (tmp_path / "toy/rule.py").read_text() == RULE
        return code, capsys.readouterr(), json.loads(out.read_text()) if out.exists() else {}

    return command


def changes(source):
    """What may be put in place of what, in a piece of source."""
    module = Module("m.py", source)
    found = [module.mutant(*edit) for edit in module.edits()]
    return {(m.line, m.change) for m in found if m}


def test_a_noticed_mistake_is_killed_and_an_unnoticed_one_is_shown(run):
    code, printed, found = run("--only", "toy/rule.py:7")
    assert code == 0
    outcomes = {m["change"]: (m["outcome"], m["test"]) for m in found["mutants"]}
    assert outcomes[">= -> >"] == ("survived", "")
    assert outcomes[">= -> <="][0] == outcomes["count >= LIMIT -> True"][0] == "killed"
    assert outcomes["count >= LIMIT -> False"] == ("killed", "tests/test_toy.py::test_enough[nine of them]")
    assert printed.out == (
        "killed 3 of 4 (75%)\n\n"
        "toy/rule.py:7  >= -> >\n"
        "  -     if count >= LIMIT:\n"
        "  +     if count > LIMIT:\n"
    )  # fmt: skip
    assert "4/4 mutants, 3 killed, 0 min 0 s left" in printed.err


def test_the_copy_is_what_the_tests_import(run, tmp_path):
    """A module that cannot be imported turns them red; one that is as it was does not."""
    (tmp_path / "scratch").mkdir()
    workshop = mutants.Workshop(tmp_path, "toy", "tests", tmp_path / "scratch")
    record = mutants.Record(seconds={"tests/test_toy.py::test_enough[none]": 1.0})
    both = [Mutant("toy/rule.py", 1, "", "", "", range(0), source) for source in (RULE, "raise ValueError\n" + RULE)]
    results = {result.mutant.source: result.outcome for result in workshop.run(both, record, jobs=2)}
    assert [results[mutant.source] for mutant in both] == ["survived", "killed"]


def test_lines_that_no_test_runs_need_no_run(run):
    _, printed, found = run("--only", "toy/rule.py:13", "--jobs", "1")
    assert {m["outcome"] for m in found["mutants"]} == {"no test runs it"}
    assert "+ -> -  (no test runs it)" in printed.out


def test_red_tests_and_unknown_modules_are_an_error(run, tmp_path):
    assert run("--modules", "nothing")[0] == 2
    (tmp_path / "tests" / "test_red.py").write_text("def test_red():\n    assert False\n")
    code, printed, _ = run("--jobs", "1")
    assert code == 2
    assert "test_red" in printed.err


def test_the_seed_decides_the_sample(run):
    first, again, other = (run("--list", "--sample", "5", "--seed", seed)[1].out for seed in ("1", "1", "2"))
    assert first == again != other
    assert first.count("toy/rule.py:") == 5


def test_a_mistake_that_never_ends_is_killed_in_time(tmp_path):
    """With whatever its tests have started."""
    pid = tmp_path / "pid"
    sleep = [sys.executable, "-c", f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"]
    shell = [sys.executable, "-c", f"import subprocess; subprocess.run({sleep!r})"]
    process = subprocess.Popen(shell, start_new_session=True)
    (tmp_path / "copy").mkdir()
    mutant = Mutant("m.py", 1, "", "", "", range(0), "")
    run = mutants.Run(mutant, tmp_path / "copy", process, time.monotonic(), limit=0.5)
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    while not (result := mutants._result(run)):
        time.sleep(0.02)
    run.stop()
    assert result.killed
    assert result.outcome == "time-out"
    while Path(f"/proc/{pid.read_text()}").exists():  # the system takes a moment
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = 0.95\n", {"0.95 -> 1.9", "0.95 -> 0.9"}),
        ("x = a is not b and c\n", {"is not -> is", "and -> or"}),
        ("x = a < b <= c\n", {"< -> <=", "< -> >", "<= -> <", "<= -> >="}),
        ("x -= a * (b  # + here\n + c)\n", {"-= -> +=", "* -> /", "+ -> -"}),
        ("x = not a\n", {"not -> nothing"}),
        ("x = sorted(a, key=f, reverse=True)\n", {"f -> None", "True -> False"}),
        ("x = REFUTED if any(a) else w.LOOSE\n",
         {"any(a) -> True", "any(a) -> False", "any -> all", "REFUTED -> 'LOOSE'", "LOOSE -> CONSISTENT"}),
        ("guard(a)\n", {"guard(a) -> pass"}),
        ("if a:\n    raise ValueError(f'{1 + 2}')\n",
         {"a -> True", "a -> False", "raise ValueError(f'{1 + 2}') -> pass"}),
        ("x = [i for i in a if i.low]\n", {"i.low -> True", "low -> high"}),
        ("def f():\n    '''Two.'''\n    return max(é, b)\n", {"max(é, b) -> None", "max -> min"}),
    ],
)  # fmt: skip
def test_changes(source, wanted):
    assert {change for _, change in changes(source)} == wanted


@pytest.mark.parametrize(
    "source",
    [
        "'''REFUTED, 5.'''\n",
        "__all__ = ['REFUTED']\n",
        "x: Literal[5] = y\n",
        "if TYPE_CHECKING:\n    X = 5\n",
        "x = f'{a + 1:.3f} and {\"LOOSE\"}'\n",
        "@dataclass(frozen=True)\nclass A:\n    x: int\n",
        "x = zip(a, b, strict=True)\n",
        "if __name__ == '__main__':\n    main()\n",
    ],
)
def test_left_alone(source):
    assert changes(source) == set()


def test_a_change_that_compiles_to_the_same_is_no_mutant():
    assert "True -> True" not in {change for _, change in changes("while True:\n    f()\n")}
    assert {change for _, change in changes("x = y if True else z\n")} >= {"True -> False"}
    assert not [c for c in changes("if True:\n    f()\n") if c[1] == "True -> True"]
