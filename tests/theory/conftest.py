"""Shared helpers: planted tables by seed, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from theory.__main__ import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The single line on standard error of a command that failed."""
        assert self.code == 2
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def theory(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`theory("check", path, ...)` runs `python -m theory check path ...`."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse's way out
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
