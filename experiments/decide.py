"""Decide a claim for as few runs as it takes: sweep, collect, judge, choose the next runs, go on.

    python -m experiments.decide study=NAME claim=generalization budget=10m +experiment=small/generalization

Arguments:
    claim=NAME       generalization, optimal_rank, convergence; dynamics and information, of which only seeds are added
    budget=TIME      the most that all runs together may take: 90s, 10m, 2h, 1h30m. The same command with a larger
                     budget goes on, until a look has spent the rest of the error
    looks=4          the most verdicts that are taken, declared before the first
    spending=pocock  how the error is spent over the looks: pocock (about evenly) or obrien_fleming (late)
    margin=0.1       exponents closer than this to the claimed one count as equal
    launcher=NAME    Hydra launcher of the sweeps (basic)
    results_dir=results  cache_dir=.cache
    and whatever else `lrc run -m` takes: +experiment=..., data=..., and the grid to start from (rank=, samples=, ...)

First a pilot is run, a thin part of the grid, and not judged. Then blocks of runs are added, those that most raise the
chance of a verdict per second (docs/howto/next.md), and after each block the claim is judged, at a level that all
looks together keep (docs/howto/decide.md). What was declared, bought and seen is kept in results/NAME/study.json: after
an interruption of any kind the same command goes on. Exit code 0: decided; 1: decided and REFUTED, or runs failed;
2: bad input; 3: not decided; 130: Ctrl-C.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.common.command import INTERRUPTED, fail, guarded, study_arguments
from experiments.common.progress import duration
from experiments.run_one import keys
from experiments.status import Look
from experiments.sweep.decision import OUTCOMES, Block, Decision, said, spent
from experiments.sweep.plan import check_launcher
from experiments.sweep.provenance import note_of, write_note
from experiments.sweep.rows import collect
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.errors import InputError as JudgeError
from theory.judge.looks import LOOKS, RULE, Looks
from theory.judge.verdicts import DECIDED, MARGIN, REFUTED
from theory.show.plain import escape, visible
from theory.show.render import console

UNDECIDED, FAILED = 3, 1
Number = TypeVar("Number", int, float)
TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
OVERRUN = 1.1  # of the budget, after which a block is stopped: its cost was a guess
LOOK = 0.5  # seconds between looks at whether a sweep has ended
EVERY_LIVE, EVERY_LINE = 2.0, 15.0  # seconds between looks at the runs, on a terminal and elsewhere
LAST_WORDS = 60.0  # seconds that a sweep which is stopped has to save its state


def seconds_of(text: str) -> float:
    """'1h30m' -> 5400.

    Raises:
      InputError: no time, or none that is left.
    """
    found = TIME.fullmatch(text.strip())
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if total <= 0:
        raise InputError(f"budget: {text!r} is no time; give hours, minutes or seconds, as 2h, 1h30m or 90s")
    return total


def declare() -> tuple[Decision, list[str]]:
    """What the command line asks for, and what a sweep is started with besides: machine's keys and launcher.

    Raises:
      InputError: it cannot be carried out.
    """
    others: list[str] = []
    own = {"claim": None, "budget": None, "looks": str(LOOKS), "spending": RULE, "margin": f"{MARGIN:g}"}
    given = study_arguments(__doc__, others=others, launcher="basic", **own)
    for key in ("claim", "budget"):
        if not given[key]:
            raise InputError(f"{key}: missing; give {key}={'generalization' if key == 'claim' else '30m'}")
    keys.check_words(others, many=True)
    if dashed := [word for word in others if word.startswith("-")]:
        raise InputError(f"{dashed[0]}: decide starts the sweeps itself; give keys and values only")
    looks, margin = _number("looks", given["looks"], int), _number("margin", given["margin"], float)
    launch = [f"{key}={given[key]}" for key in ("study", "results_dir", "cache_dir")] + ["allocator=true"]
    if given["launcher"] != "basic":
        check_launcher(given["launcher"])
        launch.append(f"hydra/launcher={given['launcher']}")
    study = Study.of(given["results_dir"], given["study"])
    budget = seconds_of(given["budget"])
    return Decision.declared(study, given["claim"], Looks(looks, given["spending"]), margin, others, budget), launch


def _number(key: str, text: str, kind: Callable[[str], Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{key}: {text!r} is no {'whole ' if kind is int else ''}number") from None


class View:
    """What is known, what is being bought and why, and what is left: live on a terminal, plain lines elsewhere."""

    def __init__(self, decision: Decision, screen: Console | None = None) -> None:
        self.decision, self.console = decision, screen or console(120)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.doing = ""
        self.drawn = time.monotonic()

    def __enter__(self) -> View:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def table(self, used: float) -> Table:
        """The live table."""
        decision = self.decision
        grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, text in self.facts(used):
            grid.add_row(name, escape(text))
        grid.title, grid.title_justify = escape(f"{decision.study.path.name}: {decision.claim}"), "left"
        return grid

    def facts(self, used: float) -> list[tuple[str, str]]:
        decision, block = self.decision, self.decision.blocks[-1]
        seen = next((b.look for b in reversed(decision.blocks) if b.look is not None), None)
        known = "nothing yet" if seen is None else known_words(seen)
        left = decision.budget_s - used
        return [
            ("known", known),
            ("looks", f"{decision.made} of {decision.looks.planned} made"),
            ("buying", bought_words(block)),
            ("now", self.doing),
            ("budget", f"{duration(used)} of {duration(decision.budget_s)} spent, {duration(max(left, 0.0))} left"),
        ]

    def update(self, doing: str, used: float, *, now: bool = False) -> None:
        """Show what is going on, if it is time to."""
        self.doing = doing
        if not now and time.monotonic() - self.drawn < (EVERY_LIVE if self.live else EVERY_LINE):
            return
        self.drawn = time.monotonic()
        if self.live is not None:
            self.live.update(self.table(used), refresh=True)
        else:
            self.say(f"  {doing}, {duration(used)} of {duration(self.decision.budget_s)} spent")


def known_words(look: dict[str, Any]) -> str:
    """What a look has seen."""
    found = "; ".join(f"{m['quantity']} {m['measured']} {m['verdict']}".strip() for m in look["measured"])
    return found or "no exponent yet"


def bought_words(block: Block) -> str:
    """A block in words: its runs, why, its cost and its chance."""
    if not block.runs:
        return block.why
    expected = (
        "" if block.cost_s is None else f", about {duration(block.cost_s)}, chance of a verdict {block.chance:.2f}"
    )
    last = ", for the last look" if block.ending else ""
    return f"{block.runs} runs: {block.why}{expected}{last}"


class BudgetSpent(Exception):
    """The runs have taken longer than was thought."""


class RunsFailed(Exception):
    """Some runs of a block cannot be finished."""


def buy(decision: Decision, launch: list[str], view: View) -> None:
    """Run what is missing of the last block, one multirun per line.

    Raises:
      RunsFailed, BudgetSpent.
    """
    path = decision.study.path / "logs" / "decide.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in decision.blocks[-1].lines:
        missing, before, code = decision.missing(line), None, 0
        while missing and missing != before:  # a run that failed is tried again, as long as some succeed
            words = [sys.executable, "-m", "experiments.run", "-m", *decision.overrides, *line.split(), *launch]
            with path.open("a") as log:
                sweep = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
            try:
                follow(sweep, decision, view)
            except BaseException:
                stop(sweep)
                raise
            missing, before, code = decision.missing(line), missing, sweep.returncode
        if missing:
            last = path.read_text(errors="replace").splitlines()[-1:]  # where a sweep that is refused says why
            why = reason_of(decision.study) or f"exit code {code}: {''.join(last)}"
            raise RunsFailed(f"{missing} of these runs cannot be finished: {line}: {why} (see {path})")


def follow(sweep: subprocess.Popen[bytes], decision: Decision, view: View) -> None:
    """Wait for a sweep, and for runs of it that another process works on: a sweep whose `decide` was killed goes on."""
    seen = 0.0
    while (ours := sweep.poll() is None) or any(f.state() == "running" for f in decision.study.runs()):
        time.sleep(LOOK)
        if time.monotonic() - seen < EVERY_LIVE:
            continue
        seen = time.monotonic()
        rows = decision.rows()
        used = spent(rows)
        if used > OVERRUN * decision.budget_s:
            raise BudgetSpent
        done = len(rows) - sum(b.look["runs"] if b.look else 0 for b in decision.blocks[-2:-1])
        whose = "" if ours else " by a sweep that was started before"
        view.update(f"{done} of {decision.blocks[-1].runs} runs done{whose}", used)


def stop(sweep: subprocess.Popen[bytes]) -> None:
    """End a sweep in good order: its runs save their state."""
    sweep.terminate()
    try:
        sweep.wait(LAST_WORDS)
    except subprocess.TimeoutExpired:
        sweep.kill()


def reason_of(study: Study) -> str:
    """Why a run of the study is not done, where its folder or its sweep says so."""
    _, jobs = Look(study).summary()
    return next((job["reason"] for job in jobs if job["state"] in ("failed", "refused") and job["reason"]), "")


def go_on(decision: Decision, launch: list[str], view: View) -> None:
    """Buy, look and choose until there is an outcome. Raises RunsFailed."""
    while decision.outcome is None:
        block = decision.blocks[-1]
        if block.look is not None:
            used = block.look["spent_s"]
            view.update("choosing the next runs", used, now=True)
            decision.plan(lambda text, used=used: view.update(f"choosing the next runs: {text}", used))
            continue
        view.say(f"buying {bought_words(block)}" if block.runs else bought_words(block))
        try:
            buy(decision, launch, view)
        except BudgetSpent:
            word = next((b.look["verdict"] for b in reversed(decision.blocks) if b.look is not None), "")
            decision.end("budget", word, "the last runs took longer than expected; those that are not done are missing")
            break
        collect(decision.study)
        look = decision.look()
        level = f"{100 * look['level']:.1f} % intervals"
        name = f"look {look['number']} of at most {decision.looks.planned}, {level}: {look['verdict']}"
        view.say(f"{name if look['number'] else 'pilot'}: {known_words(look)}")


def report(decision: Decision, study: str) -> int:
    """Say how it ended; returns the exit code. `study` is `study=NAME`."""
    assert decision.outcome is not None
    outcome, looks = decision.outcome, decision.made
    rows = decision.rows()
    cost = f"{looks} look{'s' * (looks != 1)}, {len(rows)} runs, {duration(spent(rows))} of runs"
    whole = decision.whole_grid_s()
    if whole is not None:
        cost += f"; the whole grid: {decision.grid['runs']} runs, about {duration(whole)}"
    decided = outcome["verdict"] in DECIDED
    how = outcome["verdict"] if decided else OUTCOMES[outcome["reason"]]
    print(visible(f"{decision.claim}: {how} ({cost})"))
    if not decided and outcome["verdict"]:
        print(visible(f"the last word: {outcome['verdict']}"))
    if outcome["words"]:
        print(visible(outcome["words"]))
    if not decided and decision.closed:
        print("the last look had all that was left of it: more runs would be another test, under another study=")
    print(visible(f"lrc report {study} makes its page, with the history of looks"))
    return (1 if outcome["verdict"] == REFUTED else 0) if decided else UNDECIDED


def main() -> int:
    try:
        return decided(*declare())
    except JudgeError as wrong:
        raise InputError(str(wrong)) from None


def decided(asked: Decision, launch: list[str]) -> int:
    """Go on with what is asked for until there is an outcome; returns the exit code."""
    folder = asked.study.path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".decide.lock", timeout=0):
            before = Decision.read(asked.study, asked.claim)
            decision = asked if before is None else before.resumed(asked)
            decision.write()
            note(decision, launch[0])
            signal.signal(signal.SIGTERM, terminated)
            with View(decision) as view:
                go_on(decision, launch, view)
            return report(decision, launch[0])
    except Timeout:
        raise InputError(f"study: another lrc decide works on {folder}; wait for it, or give another study=") from None
    except RunsFailed as wrong:
        return fail(f"{wrong}; the same command tries again", FAILED)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on with what is missing", INTERRUPTED)


def note(decision: Decision, study: str) -> None:
    """Keep the command beside the study's others, without the paths of this machine."""
    words = [f"claim={decision.claim}", f"budget={duration(decision.budget_s)}"]
    words += [f"looks={decision.looks.planned}", f"spending={decision.looks.rule}", f"margin={decision.margin:g}"]
    command = " ".join(["lrc decide", study, *words, *said(decision.overrides)])
    others = note_of(decision.study).get("commands")
    others = others if isinstance(others, dict) else {}
    write_note(decision.study, commands=others | {f"decide {decision.claim}": command})


def terminated(number: int, frame: Any) -> None:
    """SIGTERM: the sweep that is running is stopped on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
