"""The outcome of one run of a group, for the fused launcher. Needs no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its row ({} where another process works on it) or its error, and a line for its log.
    `alone` asks the caller to run it singly."""

    row: dict[str, Any] | None = None
    error: Exception | None = None
    message: str = ""
    alone: bool = False

    def value(self) -> float | None:
        """As the single run's task function returns it."""
        return None if self.row is None else self.row.get("columns", {}).get("test_loss")
