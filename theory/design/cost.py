"""What a run costs: a formula of the columns of its table or design, or a curve fitted to the runs of a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from theory.errors import OptionError
from theory.laws.parser import Law, LawError, is_plain, parse_formula

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
        return parse_formula(f"`{text}`" if text in names and not is_plain(text) else text, names, kind)
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
    """What a run costs: a formula of the coordinates, or exp([1, ln coordinates] coefficients), in a unit."""

    unit: str
    coordinates: tuple[str, ...]
    coefficients: np.ndarray
    formula: Law | None = None

    @classmethod
    def of(cls, frame: pd.DataFrame, design: Sequence[str], cost: str | None) -> Price:
        """The cost of runs that were not made.

        A formula of the design's coordinates is taken as it is. Any other is computed for the runs of the table, and
        fitted log-linearly in the coordinates.

        Args:
            frame: the runs of the table, or none. design: the coordinates.
            cost: a column, or a formula of columns; None: the first of COSTS, else steps x batch size, else 1.

        Raises:
            OptionError: the formula cannot be read, or is positive in no run.
        """
        if cost is not None:
            named = ([str(c) for c in frame], "column") if len(frame) else (design, "coordinate of the design")
            formula = cost_formula(cost, *named)
            unit = UNITS.get(cost, cost) if cost in frame or cost in design else "units"
            if all(c in design and (frame.empty or is_numeric_dtype(frame[c])) for c in formula.columns):
                return cls(unit, formula.columns, np.zeros(0), formula)
            return cls._fitted(cost, values(formula, frame), frame, design, unit)
        name = next((c for c in COSTS if c in frame and (frame[c] > 0).any()), None)
        if name is not None:
            value = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
            return cls._fitted(name, value, frame, design, UNITS[name])
        if "steps" in design and not len(frame):
            return cls("steps", ("steps",), np.array([0.0, 1.0]))
        if "steps" in frame and frame["steps"].nunique() > 1:
            batch = frame.get("batch_size", 1.0)
            unit = "steps x batch size" if "batch_size" in frame else "steps"
            return cls._fitted("steps", (frame["steps"] * batch).to_numpy(dtype=np.float64), frame, design, unit)
        return cls("runs", (), np.zeros(1))

    @classmethod
    def _fitted(cls, text: str, value: np.ndarray, frame: pd.DataFrame, design: Sequence[str], unit: str) -> Price:
        """Fit the cost [n] of the table's runs in the coordinates; runs where it is no positive number do not count."""
        positive = np.isfinite(value) & (value > 0)
        if not positive.any():
            raise OptionError("cost", f"{text}: there is no run where it is a positive number")
        rows, known = frame[positive], value[positive]
        numeric = [c for c in design if rows[c].dtype.kind in "fi" and (rows[c] > 0).all()]
        varying = tuple(c for c in numeric if rows[c].nunique() > 1)
        columns = np.column_stack([np.ones(len(rows)), *(np.log(rows[c]) for c in varying)])
        coefficients = np.linalg.lstsq(columns, np.log(known), rcond=None)[0]
        # A mean of logarithms is that of no sum: the few runs that compile take most of the time of many sweeps.
        coefficients[0] += np.log(known.sum() / np.exp(columns @ coefficients).sum())
        return cls(unit, varying, coefficients)

    def each(self, runs: pd.DataFrame) -> np.ndarray:
        """[n] of runs, or of design points [n rows].

        Raises:
            OptionError: a formula is not positive at one of them.
        """
        if self.formula is not None:
            return prices(self.formula, runs)
        columns = np.column_stack([np.ones(len(runs)), *(np.log(runs[c].astype(float)) for c in self.coordinates)])
        return np.exp(columns @ self.coefficients)
