"""The verdict on one claim of a table in memory, as most tests of the judge need it."""

from __future__ import annotations

import pandas as pd

from theory.judge.check import check_table
from theory.report import ClaimReport


def judged(frame: pd.DataFrame, claim: str = "generalization") -> ClaimReport:
    """What `theory check --claim CLAIM` says about the claim."""
    return check_table(frame, claims=[claim]).claims[claim]
