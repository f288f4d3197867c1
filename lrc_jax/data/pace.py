"""A sign of life from work on bytes: share done, rate and time left, on standard error."""

from __future__ import annotations

import sys
import time

FIRST, EVERY = 2.0, 5.0  # seconds of silence before the first line, and between lines


class Pace:
    """Counts what is done of a known amount, and tells now and then; short work says nothing."""

    def __init__(self, what: str, total: float, unit: str = "MB", scale: float = 1e6) -> None:
        self.what, self.total, self.unit, self.scale = what, max(total, 1), unit, scale
        self.done = 0.0
        self.began = time.monotonic()
        self.told = self.began - EVERY + FIRST

    def add(self, amount: float) -> None:
        """So much more is done."""
        self.done += amount
        now = time.monotonic()
        if now - self.told < EVERY or not self.done:
            return
        self.told = now
        rate = self.done / (now - self.began)
        left = max(0.0, self.total - self.done) / rate
        print(
            f"{self.what}: {min(1.0, self.done / self.total):.0%}, {rate / self.scale:.1f} {self.unit}/s, "
            f"{left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )
