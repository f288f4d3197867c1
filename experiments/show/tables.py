"""A study's table of measurements."""

from __future__ import annotations

import pandas as pd

from experiments.sweep.store import Study
from lrc_jax.errors import InputError

FILE = "measurements.csv"


def measurements(study: Study) -> pd.DataFrame:
    """The table that `experiments.collect` wrote. Raises InputError where there is none."""
    path = study.path / FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `python -m experiments.collect study={study.path.name}` first")
    return pd.read_csv(path, low_memory=False).copy()  # a copy is in one block, whatever the number of columns
