"""Progress of long work: a bar on a terminal, plain lines with an estimate of the time left elsewhere.

While XLA compiles, nothing else moves: the display says so.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

FIRST_BAR = 0.5  # seconds of compiling before a bar says so
FIRST_LINE = 5.0  # seconds of silence before the first plain line
COMPILING = "/jax/core/compile/backend_compile"
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

    shown: Progress | None = None  # the one that is on display, which hears of compilations

    def __init__(self, what: str, total: int) -> None:
        self.what = self.text = what
        self.total = total
        self.started = self.last = time.monotonic()
        self.first: tuple[int, float] | None = None  # what was done at the first update, and when: compiling is over
        self.bar: Bar | None = None
        self.compiling: threading.Timer | None = None

    def __enter__(self) -> Progress:
        self.before, Progress.shown = Progress.shown, self
        _listen()
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress.shown = self.before
        self.compiled()
        if self.bar is not None:
            self.bar.stop()

    def compiles(self) -> None:
        """A compilation begins; said after a while, since most are short."""
        self.compiled()
        self.compiling = threading.Timer(FIRST_BAR if self.bar else FIRST_LINE, self._say_compiling)
        self.compiling.daemon = True
        self.compiling.start()

    def compiled(self) -> None:
        """A compilation has ended."""
        if self.compiling is not None:
            self.compiling.cancel()
            self.compiling = None
            if self.bar is not None:
                self.bar.update(self.task, description=self.text)

    def _say_compiling(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self.what}: compiling")
        else:
            print(f"{self.what}: compiling", file=sys.stderr, flush=True)

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        self.text = text = self.what if loss is None else f"{self.what} (loss {loss:.4f})"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, description=text)
            return
        now = time.monotonic()
        before, since = self.first = self.first or (done, now)
        if now - self.started < FIRST_LINE or (now - self.last < EVERY and done < total):
            return
        self.last = now
        left = f", {duration((now - since) / (done - before) * (total - done))} left" if done > before else ""
        print(f"{text}: {done}/{total}{left}", file=sys.stderr, flush=True)


@functools.cache
def _listen() -> None:
    """Hear from JAX when a compilation begins and ends. Without JAX, or one that does not tell, nothing is shown."""
    if (jax := sys.modules.get("jax")) is None:
        return

    def begins(event: str, *_: object, **__: object) -> None:
        if event.startswith(COMPILING) and Progress.shown is not None:
            Progress.shown.compiles()

    def ends(event: str, *_: object, **__: object) -> None:
        if event.startswith(COMPILING) and Progress.shown is not None:
            Progress.shown.compiled()

    jax.monitoring.register_scalar_listener(begins)
    jax.monitoring.register_event_duration_secs_listener(ends)
