"""A sweep as it goes: a live table on a terminal, plain lines with an estimate of the time left elsewhere.

    python -m experiments.watch study=NAME

It reads the runs' folders only, so it shows any sweep of any launcher, started anywhere; `experiments.reproduce` draws
it too. A sweep that is not there yet is waited for. Ends when no job is running or missing, or at Ctrl-C, which stops
the watching and not the sweep. Exit code 0: all done; 1: something failed or is missing; 130: Ctrl-C.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.common.command import INTERRUPTED, fail, guarded, study_arguments
from experiments.common.progress import duration
from experiments.status import STATES, Look
from experiments.sweep.planned import planned
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.show import render
from theory.show.plain import escape, visible

LOOK = 1.0  # seconds between looks at whether all is done
EVERY_LIVE = 2.0  # seconds between looks on a terminal
EVERY_LINE = 15.0  # seconds between plain lines


@dataclass(frozen=True)
class Line:
    """One sweep: how many of its jobs are in each state, and the time that is left."""

    sweep: str
    counts: Counter[str]
    eta: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Best:
    """The finished run with the smallest risk: test loss in excess of the teacher's where that is known."""

    risk: float
    excess: bool
    where: str

    def __str__(self) -> str:
        kind = "above the teacher" if self.excess else "nats/token"
        return f"best risk {self.risk:.4f} {kind} ({self.where})"


class Watch:
    """Use as a context manager; `update()` as often as you like, `say(text)` for events.

    Args:
      studies: the folders to look at.
      console: where to draw; standard output by default, live only if that is a terminal.
    """

    def __init__(self, studies: list[Study], console: Console | None = None) -> None:
        self.looks = {study: Look(study, self._note) for study in studies}
        self.console = console or render.console(120)
        self.live: Live | None = None
        self.last = time.monotonic()
        self.first: dict[str, tuple[int, float]] = {}  # runs done, and when, as a sweep was first seen at work
        self.best: Best | None = None
        self.lines: list[Line] = []

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        self.look()  # what is done already says nothing about the speed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.update(self.table(self.look()), refresh=True)
            self.live.stop()

    @property
    def is_done(self) -> bool:
        """Whether no job was running or missing at the last look."""
        return not any(line.counts["running"] or line.counts["missing"] for line in self.lines)

    def look(self) -> list[Line]:
        """The sweeps as they are now."""
        now = time.monotonic()
        lines = []
        for study, look in self.looks.items():
            counts, _ = look.summary()
            for name, counter in counts:
                label = name if len(self.looks) == 1 else f"{study.path.name}/{name}"
                done = counter["done"]
                if counter["running"]:
                    self.first.setdefault(label, (done, now))
                before, since = self.first.get(label, (done, now))
                fresh, spent = done - before, now - since
                left = counter["running"] + counter["missing"]
                lines.append(Line(label, counter, spent / fresh * left if fresh and left else math.nan))
        self.lines = lines
        return lines

    def _note(self, row: dict[str, Any]) -> None:
        """Keep the best of the rows."""
        columns = row["columns"]
        loss, teacher = columns.get("test_loss"), columns.get("teacher_loss")
        if not isinstance(loss, int | float):
            return
        known = isinstance(teacher, int | float)
        risk = loss - teacher if known else loss
        if self.best is None or risk < self.best.risk:
            names = ("student", "rank", "samples", "steps", "seed")
            where = " ".join(f"{n}={columns[n]}" for n in names if n in columns)
            self.best = Best(risk, known, where)

    def table(self, lines: list[Line]) -> Table:
        """The live table."""
        grid = Table("sweep", *STATES, "of", "left", caption=escape(str(self.best or "")), caption_justify="left")
        for line in lines:
            left = duration(line.eta) if math.isfinite(line.eta) else ""
            grid.add_row(escape(line.sweep), *(str(line.counts[s]) for s in STATES), str(line.total), left)
        return grid

    def plain(self, lines: list[Line]) -> str:
        """The same in one line."""
        total = Counter[str]()
        for line in lines:
            total.update(line.counts)
        etas = [line.eta for line in lines if math.isfinite(line.eta)]
        words = [f"{total['done']}/{total.total()} runs done"]
        words += [f"{total[s]} {s}" for s in ("running", "failed", "refused") if total[s]]
        words += [f"{duration(max(etas))} left"] if etas else []
        words += [str(self.best)] if self.best else []
        return "  " + ", ".join(words)

    def update(self) -> None:
        """Look and draw, if it is time to."""
        now = time.monotonic()
        if now - self.last < (EVERY_LIVE if self.live else EVERY_LINE):
            return
        self.last = now
        self.look()
        self.draw()

    def draw(self) -> None:
        """Draw what the last look saw."""
        if self.live is not None:
            self.live.update(self.table(self.lines), refresh=True)
        elif self.lines:
            print(visible(self.plain(self.lines)), flush=True)

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)


def wait_for(study: Study) -> None:
    """Wait until a sweep of this study is recorded.

    Raises:
      InputError: the study has single runs only, which are no sweep.
    """
    told = False
    while not planned(study):
        if study.runs():
            raise InputError(
                f"study: {study.path} has runs but no sweep to watch; start one with `python -m experiments.run -m`"
            )
        if not told:
            print(f"waiting for a sweep in {study.path}", flush=True)
            told = True
        time.sleep(LOOK)


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"])
    try:
        wait_for(study)
        with Watch([study]) as watch:
            watch.draw()
            if not watch.is_done:
                while not watch.is_done:
                    time.sleep(LOOK)
                    watch.look()
                    watch.update()
                watch.draw()
    except KeyboardInterrupt:
        return fail("stopped watching; what runs goes on", INTERRUPTED)
    return 0 if all(line.counts["done"] == line.total for line in watch.lines) else 1


if __name__ == "__main__":
    raise SystemExit(guarded(main))
