"""Two groups of runs compared: differences of measured columns, paired by seed, per cell of the design and over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from theory.errors import InputError
from theory.judge.intervals import Interval, difference_interval
from theory.tables import NUMERIC, POSITIVE, Table, numeric_column

#: Columns that make a cell of the design where they are in the table and not named otherwise.
CELLS = ("rank", "samples", "steps", "clone_weight", "site")
#: Measured columns that are compared where none is named.
MEASURED = tuple(sorted(NUMERIC - POSITIVE - {"seed", "clone_weight", "teacher_loss", "step_size", "tokens"}))
UNPAIRED = "none"


@dataclass(frozen=True)
class Difference:
    """Of one quantity, second group less first.

    Attributes:
        cell: value by column; empty over all cells. first, second: means of the groups. seeds: pairs, or rows of the
            smaller group where nothing is paired. ci95: undefined with fewer than two.
    """

    quantity: str
    cell: dict[str, Any]
    first: float
    second: float
    difference: float
    ci95: Interval
    seeds: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two groups of runs, compared.

    Attributes:
        by: the column that makes the groups.
        groups: its two values; differences are second less first.
        paired: "seed" or "none".
        differences: per quantity over all cells first, then per cell.
        remarks: on what is left out.
    """

    path: str
    by: str
    groups: tuple[str, str]
    paired: str
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]

    def __repr__(self) -> str:
        overall = (d for d in self.differences if not d.cell)
        said = ", ".join(f"{d.quantity} {d.difference:.3g} [{d.ci95.low:.3g}, {d.ci95.high:.3g}]" for d in overall)
        return f"Comparison({self.groups[1]} less {self.groups[0]}: {said})"

    def __str__(self) -> str:
        """What `theory compare` prints."""
        from theory.show import render

        out = render.console()
        with out.capture() as captured:
            render.print_comparison(self, out)
        return captured.get().rstrip("\n")

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity and cell: quantity, the cell's columns, first, second, difference, low, high, seeds."""
        return pd.DataFrame(
            [
                {"quantity": d.quantity, **d.cell, "first": d.first, "second": d.second, "difference": d.difference}
                | {"low": d.ci95.low, "high": d.ci95.high, "seeds": d.seeds, "overall": not d.cell}
                for d in self.differences
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        def entry(d: Difference) -> dict[str, Any]:
            numbers = {"first": d.first, "second": d.second, "difference": d.difference}
            return numbers | {"ci95": [d.ci95.low, d.ci95.high], "seeds": d.seeds}

        quantities = {}
        for name in dict.fromkeys(d.quantity for d in self.differences):
            own = [d for d in self.differences if d.quantity == name]
            quantities[name] = entry(own[0]) | {"cells": [{"cell": d.cell} | entry(d) for d in own[1:]]}
        return {
            "input": {"path": self.path},
            "by": self.by,
            "groups": list(self.groups),
            "paired_by": self.paired if self.paired != UNPAIRED else None,
            "remarks": list(self.remarks),
            "quantities": quantities,
        }


def compare(
    table: Table, by: str, *, quantities: Sequence[str] = (), cells: Sequence[str] | None = None, seed: str = "seed"
) -> Comparison:
    """Compare the two groups that a column makes.

    A cell's difference is the mean over seeds of (second - first); that over all cells takes each seed's mean over the
    cells in which both groups have it. Several rows of one group, cell and seed are averaged. Without a column of
    seeds the rows of a cell are independent runs (Welch), and the difference over all cells is their mean.

    Args:
        by: column with two values. quantities: measured columns; () for all known ones in the table.
        cells: columns of the design; None for those known. seed: column whose values pair the runs.

    Raises:
        InputError: a column is missing, `by` has not two values, or there is nothing to compare.
    """
    frame, path = table.frame, table.path
    names = [str(c) for c in frame.columns]
    for option, given in (("by", [by]), ("quantity", list(quantities)), ("cell", list(cells or ()))):
        for name in given:
            table.require(name, option)
    found = sorted(frame[by].dropna().unique().tolist(), key=lambda v: (isinstance(v, str), v))
    if len(found) != 2:
        raise InputError(
            f"{path}: column {by} has {len(found)} values ({', '.join(map(str, found[:6]))}); two are compared: choose "
            "them with --where"
        )
    design = [c for c in (CELLS if cells is None else cells) if c in names and c != by]
    measured = list(quantities) or [
        c for c in MEASURED if c in names and c not in (by, seed) and frame[c].notna().any()
    ]
    if not measured:
        raise InputError(f"{path}: no known measured column; name those to compare with --quantity")
    paired = seed in names and seed != by
    remarks = [] if paired else [f"no column {seed}: rows count as independent runs and are not paired"]
    differences: list[Difference] = []
    for quantity in measured:
        values = numeric_column(frame[quantity], quantity, path)
        use = frame.assign(**{quantity: values})[values.notna() & frame[by].notna()]
        differences += _of_quantity(use, quantity, by, found, design, seed if paired else None, remarks)
    if not any(np.isfinite(d.difference) for d in differences):
        raise InputError(f"{path}: no cell has both {by} = {found[0]} and {by} = {found[1]}; check --cell and --where")
    return Comparison(
        path, by, (str(found[0]), str(found[1])), seed if paired else UNPAIRED, tuple(differences), tuple(remarks)
    )


def _of_quantity(
    frame: pd.DataFrame,
    quantity: str,
    by: str,
    groups: list[Any],
    design: list[str],
    seed: str | None,
    remarks: list[str],
) -> list[Difference]:
    """Over all cells, then per cell."""
    per_cell: list[Difference] = []
    columns = []  # per cell: differences by seed
    sides: list[tuple[pd.Series, pd.Series]] = []
    alone = 0
    for key, part in frame.groupby(design, sort=True, dropna=False) if design else [((), frame)]:
        a, b = (part[part[by] == g] for g in groups)
        if a.empty or b.empty:
            alone += 1
            continue
        if seed is not None:
            left, right = (side.groupby(seed)[quantity].mean() for side in (a, b))
            both = left.index.union(right.index)
            left, right = left.reindex(both), right.reindex(both)
        else:
            left, right = (side[quantity].reset_index(drop=True) for side in (a, b))
            both = left.index.union(right.index)
            left, right = left.reindex(both), right.reindex(both)
        cell = dict(zip(design, key if isinstance(key, tuple) else (key,), strict=True))
        per_cell.append(_difference(quantity, cell, left, right, seed is not None))
        columns.append(right - left)
        sides.append((left, right))
    if alone:
        remarks.append(f"{quantity}: {alone} cells have one group only and are left out")
    if not per_cell:
        return [Difference(quantity, {}, *(float("nan"),) * 3, Interval(float("nan"), float("nan")), 0)]
    if len(per_cell) == 1:
        return [Difference(quantity, {}, *_numbers(per_cell[0])), *(per_cell if design else [])]
    if seed is None:
        return [_over_cells(quantity, per_cell), *per_cell]
    # A seed counts by its mean over the cells in which both groups have it.
    shared = pd.concat(columns, axis=1)
    left = pd.concat([a.where(b.notna()) for a, b in sides], axis=1).mean(axis=1)
    right = pd.concat([b.where(a.notna()) for a, b in sides], axis=1).mean(axis=1)
    if shared.isna().any(axis=None) and shared.notna().any(axis=None):
        remarks.append(
            f"{quantity}: not every seed has both groups in every cell; seeds are means over those that have"
        )
    if right.notna().sum() == 0:
        return [_over_cells(quantity, per_cell), *per_cell]
    return [_difference(quantity, {}, left, right, True), *per_cell]


def _numbers(d: Difference) -> tuple[float, float, float, Interval, int]:
    return d.first, d.second, d.difference, d.ci95, d.seeds


def _difference(quantity: str, cell: dict[str, Any], left: pd.Series, right: pd.Series, paired: bool) -> Difference:
    a, b = left.to_numpy(dtype=np.float64), right.to_numpy(dtype=np.float64)
    pairs = int(np.isfinite(a - b).sum()) if paired else 0
    if pairs >= 2:
        keep = np.isfinite(a - b)
        a, b = a[keep], b[keep]
        interval = difference_interval(b, a, 0.95)
    else:  # rows side by side are no pairs
        alone = np.full(len(a), np.nan)
        interval = difference_interval(np.concatenate([b, alone]), np.concatenate([alone, a]), 0.95)
        pairs = min(int(np.isfinite(a).sum()), int(np.isfinite(b).sum()))
    first, second = float(np.nanmean(a)), float(np.nanmean(b))
    return Difference(quantity, cell, first, second, second - first, interval, pairs)


def _over_cells(quantity: str, per_cell: list[Difference]) -> Difference:
    """The mean of independent differences; its variance is the sum of theirs, normal quantile's worth read back."""
    first, second = (float(np.mean([getattr(d, side) for d in per_cell])) for side in ("first", "second"))
    half = float(np.sqrt(np.sum([np.square(d.ci95.width / 2) for d in per_cell]))) / len(per_cell)
    difference = second - first
    return Difference(
        quantity, {}, first, second, difference, Interval(difference - half, difference + half),
        int(min(d.seeds for d in per_cell)),
    )  # fmt: skip
