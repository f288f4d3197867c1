"""What a run costs: a formula of the columns of its table or design, or a curve fitted to the runs of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from theory.errors import OptionError
from theory.laws.parser import Law, LawError, parse_formula, written

#: Columns of a table that say what a run costs, where none is named.
COSTS = ("seconds", "training_seconds")
UNITS = {"seconds": "s", "training_seconds": "s"}
#: Of the names that a formula may use, so many are listed in an error.
LISTED = 8


def cost_formula(text: str, names: Collection[str], kind: str = "column") -> Law:
    """The cost of a run: a number, a name, or a formula of names such as "6*params*tokens"; kind: what the names are.

    Raises:
        OptionError: it is none of these.
    """
    try:
        return parse_formula(written(text) if text in names else text, names, kind)
    except LawError as wrong:
        known = ", ".join([*list(names)[:LISTED], *(["..."] if len(names) > LISTED else [])])
        raise OptionError("cost", f"{text}: {wrong.rest}; give a number or a formula of {known}") from None


def values(formula: Law, runs: pd.DataFrame) -> np.ndarray:
    """[n] costs of runs [n rows]; not a number where a column that the formula uses is not."""
    data = {c: pd.to_numeric(runs[c], errors="coerce").to_numpy(dtype=np.float64) for c in formula.columns}
    with np.errstate(all="ignore"):
        return np.broadcast_to(formula.value(np.ones(0), data), len(runs))


def prices(formula: Law, runs: pd.DataFrame, path: str = "") -> np.ndarray:
    """[n] costs of runs [n rows], all of them positive. path: of their table, for errors; "" where they have none.

    Raises:
        OptionError: a cost is no positive number.
    """
    found = values(formula, runs)
    bad = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
    if len(bad):
        at = ", ".join(f"{c} = {runs[c].iloc[bad[0]]:g}" for c in formula.columns)
        where = f" in {path}, row {runs.index[bad[0]]}" if path else f" at {at}" if at else ""
        raise OptionError("cost", f"{formula.text}: it is {found[bad[0]]:g}{where}; it has to be positive")
    return found


@dataclass(frozen=True)
class Price:
    """What runs cost that were not made.

    Attributes:
        unit: of the cost. each: [n] costs of runs, or of design points [n rows]. It raises OptionError where a formula
            is not positive at one of them.
    """

    unit: str
    each: Callable[[pd.DataFrame], np.ndarray]

    @classmethod
    def of(cls, frame: pd.DataFrame, design: Sequence[str], cost: str | None) -> Price:
        """A formula of the design's coordinates is taken as it is. Any other is computed for the runs of the table, and
        fitted log-linearly in the coordinates.

        Args:
            frame: the runs of the table, or none. design: the coordinates.
            cost: a column, or a formula of columns; None: the first of COSTS, else steps x batch size, else 1.

        Raises:
            OptionError: the formula cannot be read, or is positive in no run.
        """
        if cost is None:
            cost, unit = _usual(frame, design)
        else:
            unit = UNITS.get(cost, cost) if cost in frame or cost in design else "units"
        named = ([str(c) for c in frame], "column") if len(frame) else (design, "coordinate of the design")
        formula = cost_formula(cost, *named)
        if all(c in design and (frame.empty or is_numeric_dtype(frame[c])) for c in formula.columns):
            return cls(unit, partial(prices, formula))
        return cls(unit, _fitted(formula, frame, design))


def _usual(frame: pd.DataFrame, design: Sequence[str]) -> tuple[str, str]:
    """The cost where none is named, and its unit."""
    for name in COSTS:
        if name in frame and (frame[name] > 0).any():
            return name, UNITS[name]
    if not ("steps" in design if frame.empty else "steps" in frame and frame["steps"].nunique() > 1):
        return "1", "runs"
    return ("steps*batch_size", "steps x batch size") if "batch_size" in frame else ("steps", "steps")


def _fitted(formula: Law, frame: pd.DataFrame, design: Sequence[str]) -> Callable[[pd.DataFrame], np.ndarray]:
    """exp([1, ln coordinates] coefficients), fitted to the table's runs where the formula is a positive number."""
    value = values(formula, frame)
    positive = np.isfinite(value) & (value > 0)
    if not positive.any():
        raise OptionError("cost", f"{formula.text}: there is no run where it is a positive number")
    rows, known = frame[positive], value[positive]
    numeric = [c for c in design if rows[c].dtype.kind in "fi" and (rows[c] > 0).all()]
    varying = [c for c in numeric if rows[c].nunique() > 1]

    def columns(runs: pd.DataFrame) -> np.ndarray:
        return np.column_stack([np.ones(len(runs)), *(np.log(runs[c].astype(float)) for c in varying)])

    coefficients = np.linalg.lstsq(columns(rows), np.log(known), rcond=None)[0]
    # A mean of logarithms is that of no sum: the few runs that compile take most of the time of many sweeps.
    coefficients[0] += np.log(known.sum() / np.exp(columns(rows) @ coefficients).sum())
    return lambda runs: np.exp(columns(runs) @ coefficients)
