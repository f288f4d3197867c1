"""Where the seconds of a run go: building, training, measuring, and compiling apart from all three.

    clock.start()
    with clock.phase("training"):
        ...
    clock.stop()   # {"building": 0.4, "training": 2.1, "measuring": 0.3, "compiling": 1.2}

What is under no phase is building. Within `measuring` everything is measuring: a reference student that is trained so
that a gap can be measured is a cost of measuring. Whoever leaves a phase has waited for its arrays.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator

import jax

PHASES = ("building", "training", "measuring", "compiling")
_COMPILING = "/jax/core/compile/"  # tracing, lowering and the backend's compilation, or fetching it from the cache


class _Clock:
    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.current = "building"
        self.since = time.monotonic()
        self.compiled: list[tuple[float, float]] = []  # disjoint intervals of the current phase

    def switch(self, to: str) -> None:
        now = time.monotonic()
        compiling = sum(end - start for start, end in self.compiled)
        self.seconds[self.current] += now - self.since - compiling
        self.seconds["compiling"] += compiling
        self.current, self.since, self.compiled = to, now, []

    def note_compilation(self, seconds: float) -> None:
        """Called at the end of each event. Events nest (a traced function traces another): the outer one counts."""
        end = time.monotonic()
        start = max(end - seconds, self.since)
        while self.compiled and self.compiled[-1][0] >= start:
            self.compiled.pop()
        self.compiled.append((max(start, self.compiled[-1][1]) if self.compiled else start, end))


_clock: _Clock | None = None


@functools.cache
def _listen() -> None:
    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if _clock is not None and event.startswith(_COMPILING):
            _clock.note_compilation(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)


def start() -> None:
    """Begin a run; forgets the one before."""
    global _clock
    _listen()
    _clock = _Clock()


def stop() -> dict[str, float]:
    """End the run: seconds by phase."""
    global _clock
    if _clock is None:
        raise RuntimeError("the clock was not started")
    _clock.switch("building")
    seconds, _clock = _clock.seconds, None
    return seconds


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Count what happens inside as `name`; does nothing where no clock runs."""
    clock = _clock
    if clock is None or clock.current == "measuring":
        yield
        return
    before = clock.current
    clock.switch(name)
    try:
        yield
    finally:
        if clock is _clock:
            clock.switch(before)
