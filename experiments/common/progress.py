"""Progress of long work: a bar on a terminal, plain lines with an estimate of the time left elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

FIRST_LINE = 5.0  # seconds of silence before the first plain line
EVERY = 10.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """72 -> '1m12s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Use as a context manager; `update(done, total, loss)` fits lrc_jax's progress callbacks."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.started = self.last = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        text = self.what if loss is None else f"{self.what} (loss {loss:.4f})"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, description=text)
            return
        now = time.monotonic()
        if now - self.started < FIRST_LINE or (now - self.last < EVERY and done < total):
            return
        self.last = now
        left = (now - self.started) / max(done, 1) * (total - done)
        print(f"{text}: {done}/{total}, {duration(left)} left", file=sys.stderr, flush=True)
