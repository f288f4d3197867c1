"""A study's table of measurements, and the rows of it that speak about a claim."""

from __future__ import annotations

import pandas as pd

from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.judge.ledger import all_claims
from theory.tables import primary_frame

FILE = "measurements.csv"


def measurements(study: Study) -> pd.DataFrame:
    """The table that `experiments.collect` wrote. Raises InputError where there is none."""
    path = study.path / FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `python -m experiments.collect study={study.path.name}` first")
    return pd.read_csv(path, low_memory=False).copy()  # a copy is in one block, whatever the number of columns


def rows_of(name: str, frame: pd.DataFrame, *, arms: bool = False) -> pd.DataFrame:
    """The rows that speak about a claim: of its primary design, with `arms` of its controls too."""
    measured = all_claims()[name].measured
    if "claim" in frame:
        mine = frame["claim"] == name
        frame = frame[mine | (frame["claim"].isna() & (frame["arm"].isna() if "arm" in frame else True))]
    frame = frame if arms else primary_frame(frame)
    return frame[frame[measured].notna()] if measured in frame else frame.iloc[:0]
