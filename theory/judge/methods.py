"""Tables that compare methods: their names, the choice of a learning rate, and whether each was tuned as well.

Column `method` names what was trained. `clone` or `clone:START` (several starts: `clone:random`, `clone:pca`) is the
low-rank clone, `direct` or `direct:START` the student of the same shape whose weights are all trained; every other name
is a rival. A row with `tokens` = 0 was not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from theory.tables import InputError, describe, numeric_column

CLONE, DIRECT = "clone", "direct"
MIN_RATES = 4  # learning rates that every method has to be given


def kind_of(method: str) -> str:
    """`clone:pca` is a `clone`."""
    return method.partition(":")[0]


def start_of(method: str) -> str:
    """`pca` of `clone:pca`; empty where none is named."""
    return method.partition(":")[2]


@dataclass(frozen=True)
class Tuning:
    """How a method's learning rate was chosen.

    Attributes:
        rates: the smallest number of rates that any scan of it had. ok: at least MIN_RATES in every scan, the best one
            never at an edge, and budgets without a scan run at rates that the scans chose.
        reason: why not. needed: the runs that would complete the scans, {column: value, "seeds": n}.
        scans: of every level with a scan of its own, that scan alone.
    """

    rates: int
    ok: bool
    reason: str = ""
    needed: tuple[dict[str, Any], ...] = ()
    scans: Mapping[float, Tuning] = field(default_factory=dict, compare=False, repr=False)

    def at(self, level: float) -> Tuning:
        """How the rate of one budget or size was chosen: by its own scan, or by all scans together if it has none."""
        return self.scans.get(level, self)


def best_rates(
    frame: pd.DataFrame, path: str, cell: Sequence[str]
) -> tuple[pd.DataFrame, dict[tuple[Any, ...], Tuning]]:
    """The rows at the learning rate with the lowest mean validation loss of each cell, and each method's tuning.

    Rates of a cell are compared on the seeds that all of them have, where there are any, so that a scan with one seed
    is enough. The test loss never chooses.

    Args:
        cell: the columns of a cell; the last one is the budget or size along which a method may be scanned once.

    Returns:
        The rows kept, and the tuning by the values of all columns of the cell but the last.

    Raises:
        InputError: a cell has several rates and a row without `valid_loss`.
    """
    if "learning_rate" not in frame or frame["learning_rate"].isna().all():
        groups = frame[list(cell[:-1])].drop_duplicates().itertuples(index=False, name=None)
        return frame, {key: Tuning(0, False, "column learning_rate is missing") for key in groups}
    frame = frame.assign(learning_rate=numeric_column(frame["learning_rate"], "learning_rate", path))
    kept: list[pd.DataFrame] = []
    tunings: dict[tuple[Any, ...], Tuning] = {}
    key: Any
    for key, rows in frame.groupby(list(cell[:-1]), sort=False, dropna=False):
        chosen: dict[float, tuple[float, np.ndarray]] = {}
        level: Any
        for level, part in rows.groupby(cell[-1], dropna=False):
            rates = np.unique(part["learning_rate"].dropna())
            if len(rates) > 1:
                part = _at_best_rate(part, rates, path, [*cell[:-1], cell[-1]], [*key, level])
            kept.append(part)
            if len(rates):
                chosen[float(level)] = (float(part["learning_rate"].dropna().iloc[0]), rates)
        tunings[key] = _tuning(dict(zip(cell[:-1], key, strict=True)), cell[-1], chosen)
    return pd.concat(kept).sort_index(), tunings


def _at_best_rate(
    part: pd.DataFrame, rates: np.ndarray, path: str, names: Sequence[str], values: Sequence[object]
) -> pd.DataFrame:
    if "valid_loss" not in part or part["valid_loss"].isna().any():
        raise InputError(
            f"{path}: column valid_loss: missing where {describe(names, values)} has {len(rates)} learning rates; a "
            "rate is chosen on validation text, never by the test loss: add the column"
        )
    by_seed = part.groupby(["seed", "learning_rate"])["valid_loss"].mean().unstack()
    shared = by_seed.dropna()
    means = (shared if len(shared) else by_seed).mean()
    return part[part["learning_rate"] == means.idxmin()]


def _tuning(point: dict[str, Any], along: str, chosen: dict[float, tuple[float, np.ndarray]]) -> Tuning:
    """Judge the scans of one method. chosen: {level: (best rate, rates tried)}."""
    scans = {level: (best, rates) for level, (best, rates) in chosen.items() if len(rates) > 1}
    if not scans:
        needed = [{**point, along: level, "learning_rate": rate, "seeds": 1}
                  for level, (best, rates) in chosen.items() for rate in _more(rates, MIN_RATES - 1, best)]  # fmt: skip
        return Tuning(1 if chosen else 0, False, "one learning rate was tried", tuple(needed))
    fewest = min(len(rates) for _, rates in scans.values())
    bad, needed = [], []
    for level, (best, rates) in scans.items():
        edge = best in (rates[0], rates[-1])
        short = max(MIN_RATES - len(rates), 1 if edge else 0)
        if short:
            said = f"the best rate {best:g} is at the edge" if edge else f"{len(rates)} rates were tried"
            bad.append(f"{said} at {along} = {level:g}")
            needed += [{**point, along: level, "learning_rate": r, "seeds": 1} for r in _more(rates, short, best)]
    low, high = (f(best for best, _ in scans.values()) for f in (min, max))
    for level, (best, rates) in chosen.items():
        if level not in scans and not low <= best <= high:
            bad.append(f"rate {best:g} at {along} = {level:g} was chosen by no scan")
            needed += [
                {**point, along: level, "learning_rate": r, "seeds": 1} for r in _more(rates, MIN_RATES - 1, best)
            ]
    more = f" and at {len(bad) - 1} more" if len(bad) > 1 else ""
    single = {level: _tuning(point, along, {level: scan}) for level, scan in scans.items()} if len(chosen) > 1 else {}
    return Tuning(fewest, not bad, bad[0] + more if bad else "", tuple(needed), single)


def _more(rates: np.ndarray, count: int, best: float) -> list[float]:
    """Rates that continue a scan: beyond the edge where the best one lies, else at both ends in turn."""
    values = sorted(float(r) for r in rates)
    ratio = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 else 2.0
    new: list[float] = []
    for k in range(count):
        up = best == values[-1] or (best != values[0] and k % 2 == 0)
        new.append(float(f"{values[-1] * ratio if up else values[0] / ratio:.3g}"))
        values = sorted([*values, new[-1]])
    return new


def unfair(tuning: Mapping[str, Tuning]) -> dict[str, str]:
    """The methods whose learning rate was not chosen as well as that of the others, and why.

    Args:
        tuning: of the methods that are compared.
    """
    most = max((t.rates for t in tuning.values()), default=0)
    found = {method: t.reason for method, t in tuning.items() if not t.ok}
    fewer = {m: f"{t.rates} learning rates, and another method had {most}" for m, t in tuning.items() if t.rates < most}
    return fewer | found


def weakest(tiers: Sequence[int]) -> int:
    """The tier of several comparisons together."""
    return 0 if 0 in tiers else max(tiers)


def paired_seeds(seeds_of_cells: Sequence[frozenset[float]]) -> tuple[list[float], list[float]]:
    """Seeds that every cell has, and those that some cell lacks."""
    if not seeds_of_cells:
        return [], []
    everywhere, anywhere = frozenset.intersection(*seeds_of_cells), frozenset.union(*seeds_of_cells)
    return sorted(everywhere), sorted(anywhere - everywhere)
