"""Do the tests notice a mistake? Plants random ones in a package, one at a time, and runs the tests on each.

    python tests/tools/mutants.py --modules gates,rates --sample 100 --seed 0

prints the share of mutants (files with one small wrong change) that turn a test red, and those that turn none. The
working tree is never changed: every mutant is a copy of the package and its tests in a temporary folder. One run of
all tests records which test runs which line. A mutant meets only the tests that run its lines, the quick ones first,
and the first red one ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mutants_plugin import EVERY
from mutations import Module, Mutant

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "--rootdir=.", "-p", "no:cacheprovider"]
PYTEST += ["-p", "mutants_plugin", "--timeout=0"]
PYTEST += ["--hypothesis-profile=ci"]  # the same examples each time, and no deadline
SURVIVED, KILLED, TIMEOUT, NOT_RUN = "survived", "killed", "time-out", "no test runs it"


class Stop(Exception):
    """The mutants cannot be run; the text says why."""


@dataclass
class Result:
    """What became of a mutant: one of the four words, the test that went red, and how long it took."""

    mutant: Mutant
    outcome: str
    test: str = ""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return self.outcome in (KILLED, TIMEOUT)


@dataclass
class Record:
    """Which tests run a line (`file:line`), and the seconds of every test."""

    lines: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    seconds: dict[str, float] = field(default_factory=dict)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that a mutant meets: those that can notice it, most likely and quickest first."""
        reach = set().union(*(self.lines.get(f"{mutant.path}:{line}", set()) for line in mutant.statement))
        near: set[str] = set()
        if not mutant.statement or EVERY in reach:  # run at import: any test may depend on it
            near = set().union(*(t for where, t in self.lines.items() if where.startswith(f"{mutant.path}:")))
            reach = set(self.seconds)
        return sorted(reach, key=lambda test: (test not in near, self.seconds[test], test))


@dataclass
class Run:
    """A pytest process on one mutant."""

    mutant: Mutant
    folder: Path
    process: subprocess.Popen[bytes]
    started: float
    limit: float

    def stop(self) -> None:
        """End it with all that its tests have started, and wipe its folder."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder)


class Workshop:
    """A copy of what the tests need, and the runs on it.

    Args:
        root: The repository.
        package: The folder of the package below it.
        tests: A folder of tests, or one file, below it.
        scratch: An empty folder.
    """

    def __init__(self, root: Path, package: str, tests: str, scratch: Path) -> None:
        self.tests = tests
        self.scratch = scratch
        self.base = scratch / "base"
        for name in {package, Path(tests).parts[0]}:
            shutil.copytree(root / name, self.base / name, ignore=shutil.ignore_patterns("__pycache__"))
        if (root / "pyproject.toml").exists():
            shutil.copy2(root / "pyproject.toml", self.base)

    def record(self, jobs: int) -> Record:
        """Run all tests once on the unchanged copy."""
        folder = self.scratch / "record"
        folder.mkdir()
        workers = ["-n", str(jobs)] if jobs > 1 else []
        done = subprocess.run(
            [*PYTEST, *workers, self.tests], cwd=self.base, env=_environment(self.base, MUTANTS_RECORD=folder),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Stop("the tests must be green before they can judge mutants\n" + done.stdout[-3000:])
        record = Record()
        for file in folder.iterdir():
            found = json.loads(file.read_text())
            record.seconds |= found["seconds"]
            for where, tests in found["lines"].items():
                record.lines[where] |= set(tests)
        return record

    def start(self, mutant: Mutant, record: Record, number: int) -> Run:
        """Begin the tests that meet a mutant."""
        folder = self.scratch / str(number)
        shutil.copytree(self.base, folder)
        changed = folder / mutant.path
        changed.write_text(mutant.source)
        for stale in (changed.parent / "__pycache__").glob(f"{changed.stem}.*"):
            stale.unlink()  # Python tells an old one by size and second only
        tests = record.tests(mutant)
        choice = folder / "choice.txt"
        choice.write_text("\n".join(tests))
        seconds = [record.seconds[test] for test in tests]  # long ones: they were measured while recording
        files = dict.fromkeys(test.split("::")[0] for test in tests)
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [*PYTEST, "-x", f"--timeout={10 + 2 * max(seconds):.0f}", *files],
                cwd=folder, env=_environment(folder, MUTANTS_CHOICE=choice), stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return Run(mutant, folder, process, time.monotonic(), 30 + 2 * sum(seconds))

    def run(self, mutants: Iterable[Mutant], record: Record, jobs: int) -> Iterator[Result]:
        """The results, as they come; `jobs` at a time."""
        waiting, running = list(enumerate(mutants)), list[Run]()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, mutant = waiting.pop(0)
                    if record.tests(mutant):
                        running.append(self.start(mutant, record, number))
                    else:
                        yield Result(mutant, NOT_RUN)
                for run in list(running):
                    if result := _result(run):
                        run.stop()
                        running.remove(run)
                        yield result
                time.sleep(0.02)
        finally:
            for run in running:
                run.stop()


def _result(run: Run) -> Result | None:
    """What became of a mutant, or None if its tests still run."""
    seconds = time.monotonic() - run.started
    code = run.process.poll()
    if code is None:
        return Result(run.mutant, TIMEOUT, "", seconds) if seconds > run.limit else None
    if code in (0, 5):  # 5: the change took the tests themselves away, and none is red
        return Result(run.mutant, SURVIVED, "", seconds)
    output = (run.folder / "output.txt").read_text(errors="replace")
    red = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    outcome = TIMEOUT if "Failed: Timeout (>" in output else KILLED  # what pytest-timeout writes
    return Result(run.mutant, outcome, red[1] if red else "", seconds)


def _environment(folder: Path, **more: Path) -> dict[str, str]:
    """The copy comes before the installed package, and one process takes one core."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return kept | threads | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"} | {n: str(v) for n, v in more.items()}


def modules(base: Path, package: str, names: list[str]) -> list[Module]:
    """The files of the modules `names` (`gates`, `claims/dynamics`; a folder stands for all in it); all if empty. A
    module is found in whichever folder it lies."""
    found: list[Path] = []
    for name in names or [""]:
        path = base / package / name.replace(".", "/")
        if path.is_dir():
            files = sorted(path.rglob("*.py"))
        else:
            files = sorted((base / package).rglob(f"{name.replace('.', '/')}.py"))
        if not files:
            raise Stop(f"no module {name} in {package}")
        found += [file for file in files if file not in found]
    return [Module(str(file.relative_to(base)), file.read_text()) for file in found]


def sample(chosen: list[Module], count: int, seed: int, only: str) -> list[Mutant]:
    """`count` random mutants of the modules (0: all), or those of one line, in the order of the files."""
    edits = [(module, *edit) for module in chosen for edit in module.edits() if only in ("", module.where(edit[0]))]
    order = list(range(len(edits)))
    random.Random(seed).shuffle(order)
    found: dict[int, Mutant] = {}
    for place in order:
        module, edit, lines = edits[place]
        if mutant := module.mutant(edit, lines):
            found[place] = mutant
        if len(found) == count and not only:
            break
    if not found:
        raise Stop("there is nothing to change")
    return [found[place] for place in sorted(found)]


def show(mutant: Mutant, note: str = "") -> str:
    """A mutant as three lines or more: where it is, what was there, what is there now."""
    before = "\n".join(f"  - {line}" for line in mutant.old.splitlines())
    after = "\n".join(f"  + {line}" for line in mutant.new.splitlines())
    return f"{mutant.path}:{mutant.line}  {mutant.change}{note}\n{before}\n{after}"


def progress(results: list[Result], count: int, started: float) -> None:
    """One line on standard error; where it is no terminal, ten of them in all."""
    done, terminal = len(results), sys.stderr.isatty()
    if terminal or done == count or done % max(1, count // 10) == 0:
        minutes, seconds = divmod(round((time.monotonic() - started) / done * (count - done)), 60)
        line = f"{done}/{count} mutants, {sum(r.killed for r in results)} killed, {minutes} min {seconds} s left"
        print(f"\r\033[K{line}" if terminal else line, end="" if terminal and done < count else "\n", file=sys.stderr)


def report(results: list[Result]) -> str:
    """The share killed, and every survivor."""
    killed, late = sum(r.killed for r in results), sum(r.outcome == TIMEOUT for r in results)
    text = f"killed {killed} of {len(results)} ({killed / max(1, len(results)):.0%})"
    text += f", {late} of them by time-out" * (late > 0)
    left = [r for r in results if not r.killed]
    notes = [f"  ({r.outcome})" * (r.outcome == NOT_RUN) for r in left]
    return "\n\n".join([text, *(show(r.mutant, note) for r, note in zip(left, notes, strict=True))])


def as_json(results: list[Result]) -> str:
    """All results; without the files' text."""
    rows = []
    for result in results:
        mutant = {name: value for name, value in asdict(result.mutant).items() if name not in ("source", "statement")}
        rows.append(mutant | {"outcome": result.outcome, "test": result.test, "seconds": round(result.seconds, 2)})
    return json.dumps({"killed": sum(r.killed for r in results), "of": len(results), "mutants": rows}, indent=1) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plant random mistakes and see which ones turn no test red.")
    parser.add_argument("--modules", default="", help="modules or folders of the package, with commas (all)")
    parser.add_argument("--sample", type=int, default=100, help="how many mutants; 0: all (100)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--only", default="", metavar="FILE:LINE", help="all mutants of one line")
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all results to this file")
    parser.add_argument("--tests", default="tests/theory", help="folder or file of the tests (tests/theory)")
    parser.add_argument("--package", default="theory", help="folder of the package (theory)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository that has both")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants; 0 whatever their number, 2 if they cannot be run."""
    args = parser().parse_args(arguments)
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
            workshop = Workshop(args.root, args.package, args.tests, Path(scratch).resolve())
            chosen = modules(workshop.base, args.package, [name for name in args.modules.split(",") if name])
            mutants = sample(chosen, args.sample, args.seed, args.only)
            if args.list:
                print(*map(show, mutants), sep="\n")
                return 0
            print(f"{len(mutants)} mutants; all tests once to see what they run ...", file=sys.stderr)
            record = workshop.record(args.jobs)
            if not any(where.startswith(f"{args.package}/") for where in record.lines):
                raise Stop(f"the tests run no line of the copy of {args.package}/")
            started = time.monotonic()
            with suppress(KeyboardInterrupt):  # what is known so far is reported
                for result in workshop.run(mutants, record, args.jobs):
                    results.append(result)
                    progress(results, len(mutants), started)
    except Stop as why:
        print(f"mutants: {why}", file=sys.stderr)
        return 2
    results.sort(key=lambda result: (result.mutant.path, result.mutant.line, result.mutant.change))
    print(report(results))
    if args.json:
        args.json.write_text(as_json(results))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the runs and wipe the folder then too
    sys.exit(main())
