"""The guideline that the theory promises: which rank to use for N samples, from measured risks.

At a measured N the curve of that N decides: its best measured rank, those that cannot be told from it, and the minimum
of the quartic through the five ranks around it. Between measured N the curves are interpolated in ln N. Half a decade
beyond them the growth of r* is extrapolated, if it was seen. Prices come from the same local curves, never from a
global surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from theory.claims.optimal_rank import optima_gate, rank_cost, risk_cells
from theory.errors import OptionError
from theory.judge.cells import Cells
from theory.judge.gates import FAILED
from theory.judge.intervals import (
    UNDEFINED,
    Interval,
    bootstrap_standard_error,
    difference_interval,
    generator,
    t_interval,
)
from theory.judge.optimum import Optima, find_optima, fit_growth, local_minimum
from theory.report import interval_list
from theory.tables import InputError, Table

#: Advice reaches half a decade beyond the measured N, no further.
REACH = float(np.sqrt(10.0))
MIN_OPTIMA = 3  # seen, for a line to be extrapolated
MIN_RANKS = 2
SAME = 1e-3  # relative distance at which an N counts as measured
DRAWS = 400
MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"


class Refusal(InputError):
    """There is nothing to say; the message says what to measure."""


@dataclass(frozen=True)
class Price:
    """The expected risk at a rank, and how much it exceeds the risk at the advised rank (in the risk's units)."""

    rank: int
    risk: float
    extra: float
    extra_ci95: Interval

    def to_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "risk": self.risk, "extra": self.extra, "extra_ci95": interval_list(self.extra_ci95)}


@dataclass(frozen=True, repr=False)
class Advice:
    """The rank for N samples.

    Attributes:
        rank: the rank to use, at most the largest allowed; optimum: r*(N) with its intervals.
        risk: expected risk at `rank` with its 95 % interval; prices: at half and double that rank.
        basis: measured, interpolated or extrapolated.
        best: at a measured N the rank with the smallest mean risk; within_noise: the ranks that cannot be told from it.
        descriptive: the measured optima follow no tested law of growth, so that the advice is about this N alone.
        capped: r* exceeds the largest rank allowed. notes: caveats.
    """

    path: str
    samples: float
    rank: int
    optimum: float
    ci90: Interval
    ci95: Interval
    risk: float
    risk_ci95: Interval
    prices: Mapping[str, Price]
    basis: str
    best: int | None
    within_noise: tuple[int, ...]
    descriptive: bool
    capped: bool
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        low, high = interval_list(self.ci95)
        return f"Advice(N = {self.samples:,.0f}: rank {self.rank}; optimum {self.optimum:.3g} [{low:.3g}, {high:.3g}])"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 2,
            "input": self.path,
            "samples": self.samples,
            "rank": self.rank,
            "optimum": {
                "estimate": self.optimum,
                "ci90": interval_list(self.ci90),
                "ci95": interval_list(self.ci95),
            },
            "risk": {"estimate": self.risk, "ci95": interval_list(self.risk_ci95)},
            **{name: price.to_dict() for name, price in self.prices.items()},
            "basis": self.basis,
            "best_measured": self.best,
            "within_noise": list(self.within_noise),
            "descriptive": self.descriptive,
            "capped": self.capped,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Curve:
    """Mean risk against rank at one N: ranks [R] and risks [1 + B, R], the first row being the full data."""

    ranks: np.ndarray
    risks: np.ndarray
    effective: float
    clusters: int

    def risk(self, rank: float) -> np.ndarray:
        """[1 + B] a shape-preserving cubic in ln r."""
        return PchipInterpolator(np.log(self.ranks), self.risks, axis=1)(np.log(rank))

    def interval(self, values: np.ndarray) -> Interval:
        error = bootstrap_standard_error(values[1:], self.clusters) if len(values) > 1 else float("nan")
        return t_interval(float(values[0]), error, self.effective, 0.95)


def advise(table: Table, samples: float, max_rank: int | None = None) -> Advice:
    """The rank to use for `samples` training samples.

    Args:
        max_rank: the largest rank that can be afforded.

    Raises:
        Refusal: no two ranks were measured near that N, or N lies more than half a decade beyond the measured ones.
        InputError: unusable rows or arguments.
    """
    if not samples > 0 or not np.isfinite(samples):
        raise OptionError("samples", f"{samples:g}: must be a positive number")
    if max_rank is not None and max_rank < 1:
        raise OptionError("max_rank", f"{max_rank}: must be at least 1")
    missing = table.missing(("rank", "samples", "seed", "test_loss"))
    if missing:
        raise InputError(f"{table.path}: advice lacks {table.lacking(missing)}; add or rename these columns")
    frame, cells, remarks = risk_cells(table)
    cost, notes = rank_cost(frame), list(remarks)
    optima = find_optima(cells, cost.dimension)
    descriptive = optima_gate(optima).tier == FAILED
    sizes = np.unique(cells.levels["samples"].to_numpy(dtype=np.float64))
    _refuse_far(table.path, samples, sizes)
    near = sizes[np.argmin(np.abs(np.log(sizes / samples)))]
    if abs(near / samples - 1) <= SAME:
        samples, basis = float(near), MEASURED
    else:
        basis = INTERPOLATED if sizes[0] < samples < sizes[-1] else EXTRAPOLATED
    curve = None if basis == EXTRAPOLATED else _curve(cells, samples, sizes)
    if basis != EXTRAPOLATED and curve is None:
        raise Refusal(
            f"{table.path}: no advice for samples = {samples:g}: fewer than {MIN_RANKS} ranks were measured there; "
            "measure more ranks"
        )
    best, within = (None, ()) if basis != MEASURED else _best_measured(cells, samples)
    optimum, ci90, ci95 = (
        _at_curve(curve, best, notes)
        if curve is not None
        else _extrapolated(table.path, cells, optima, cost, samples, sizes)
    )
    if cells.clusters < 2:
        notes.append("a single seed: the noise is unknown, and no interval is given; repeat the grid with five")
    elif float(np.median(cells.replicates)) < 5:
        notes.append(f"{np.median(cells.replicates):g} seeds per cell: intervals are wide; 5 are recommended")
    if descriptive:
        notes.append("the optima seen do not determine how r* grows: this describes the measured N and no other")
    capped = max_rank is not None and optimum > max_rank
    rank = max_rank if capped and max_rank is not None else max(1, round(optimum))
    risk, risk_ci95, prices = _prices(curve, rank, max(1, round(optimum)), notes)
    return Advice(
        table.path, samples, rank, optimum, ci90, ci95, risk, risk_ci95, prices, basis, best, within, descriptive,
        capped, tuple(notes),
    )  # fmt: skip


def _refuse_far(path: str, samples: float, sizes: np.ndarray) -> None:
    low, high = sizes[0] / REACH, sizes[-1] * REACH
    if not low * (1 - 1e-9) <= samples <= high * (1 + 1e-9):
        raise Refusal(
            f"{path}: no advice for samples = {samples:g}: {sizes[0]:g} to {sizes[-1]:g} were measured, and half a "
            f"decade beyond is the limit; measure at samples = "
            f"{samples / REACH if samples > high else samples * REACH:.3g} or closer"
        )


def _curve(cells: Cells, samples: float, sizes: np.ndarray) -> _Curve | None:
    """The risk curve at one N: measured, or interpolated in ln N by a shape-preserving cubic at every rank."""
    rank, n = (cells.levels[c].to_numpy(dtype=np.float64) for c in ("rank", "samples"))
    drawn = cells.bootstrap_means(cells.draw_seeds(DRAWS, generator(7)))
    means = np.vstack([cells.mean[None], cells.filled(drawn)])
    ranks, columns = [], []
    for r in np.unique(rank):
        at = np.flatnonzero(rank == r)
        at = at[np.argsort(n[at])]
        own = n[at]
        if not own[0] <= samples <= own[-1]:
            continue
        exact = np.flatnonzero(own == samples)
        if len(exact):
            columns.append(means[:, at[exact[0]]])
        elif samples in sizes:
            continue  # at a measured N only ranks that were measured there
        else:
            columns.append(PchipInterpolator(np.log(own), means[:, at], axis=1)(np.log(samples)))
        ranks.append(r)
    if len(ranks) < MIN_RANKS:
        return None
    return _Curve(np.array(ranks), np.column_stack(columns), cells.effective_clusters(), cells.clusters)


def _best_measured(cells: Cells, samples: float) -> tuple[int, tuple[int, ...]]:
    """The rank with the smallest mean risk at a measured N, and those within noise of it (paired by seed, 95 %)."""
    at = np.flatnonzero(cells.levels["samples"].to_numpy() == samples)
    ranks, by_seed = cells.levels["rank"].to_numpy()[at], cells.cluster_means()[:, at]
    best = int(np.argmin(cells.mean[at]))
    within = []
    for k, rank in enumerate(ranks):
        interval = difference_interval(by_seed[:, k], by_seed[:, best], 0.95)
        if k == best or interval.low <= 0:
            within.append(int(rank))
    return int(ranks[best]), tuple(within)


def _at_curve(curve: _Curve, best: int | None, notes: list[str]) -> tuple[float, Interval, Interval]:
    """r* of one curve; its best rank where the minimum lies at an end of the grid."""
    logs = np.log(curve.ranks)
    lowest = int(np.argmin(curve.risks[0]))
    if lowest in (0, len(logs) - 1) or len(logs) < 4:
        if lowest in (0, len(logs) - 1):
            end = "smallest" if lowest == 0 else "largest"
            notes.append(
                f"the smallest risk lies at the {end} rank measured ({curve.ranks[lowest]:g}): the optimum is there or "
                "beyond; add ranks to see it"
            )
        return float(curve.ranks[lowest]), UNDEFINED, UNDEFINED
    found = local_minimum(logs, curve.risks)
    error = bootstrap_standard_error(found[1:], curve.clusters) if len(found) > 1 else float("nan")
    ci90, ci95 = (t_interval(float(found[0]), error, curve.effective, level).exponential() for level in (0.90, 0.95))
    return float(np.exp(found[0])), ci90, ci95


def _extrapolated(
    path: str, cells: Cells, optima: Optima | None, cost: Any, samples: float, sizes: np.ndarray
) -> tuple[float, Interval, Interval]:
    """r* beyond the measured N, on the line through the optima that were seen."""
    growth = None if optima is None else fit_growth(optima, cost)
    used = np.empty(0) if optima is None else optima.samples[optima.used]
    if growth is None or optima is None or len(used) < MIN_OPTIMA or not np.isfinite(growth.window.standard_error):
        raise Refusal(
            f"{path}: no advice for samples = {samples:g}: it lies beyond the measured {sizes[0]:g} to {sizes[-1]:g}, "
            f"and the best rank was seen at {len(used)} values of N where {MIN_OPTIMA} are needed to extrapolate; "
            "measure at that N"
        )
    value = float(np.log(growth.line(np.array([samples]))[0]))
    ranks = cells.levels["rank"]
    if not ranks.min() <= np.exp(value) <= ranks.max():
        raise Refusal(
            f"{path}: no advice for samples = {samples:g}: the optimum would be {np.exp(value):.3g}, outside the ranks "
            f"measured ({ranks.min():g} to {ranks.max():g}); add ranks there"
        )
    x = np.log(optima.samples[optima.used])
    drawn = optima.draws[:, optima.used].mean(axis=1) + growth.draws * (np.log(samples) - x.mean())
    error = bootstrap_standard_error(drawn, optima.clusters)
    ci90, ci95 = (t_interval(value, error, optima.effective, level).exponential() for level in (0.90, 0.95))
    return float(np.exp(value)), ci90, ci95


def _prices(
    curve: _Curve | None, rank: int, optimum: int, notes: list[str]
) -> tuple[float, Interval, dict[str, Price]]:
    """Risk at the rank, and what half and double (and r*, where the rank is capped) cost more or less."""
    if curve is None:
        notes.append("beyond the measured N no risk curve was seen: no prices are given")
        return float("nan"), UNDEFINED, {}
    low, high = curve.ranks[0], curve.ranks[-1]
    if not low <= rank <= high:
        notes.append(f"rank {rank} lies outside the ranks measured there ({low:g} to {high:g}): no prices are given")
        return float("nan"), UNDEFINED, {}
    here = curve.risk(rank)
    others = {"half": max(1, rank // 2), "double": 2 * rank}
    if optimum != rank:
        others["at_optimum"] = optimum
    prices = {}
    for name, other in others.items():
        if other == rank or not low <= other <= high:
            continue
        there = curve.risk(other)
        extra = there - here
        prices[name] = Price(other, float(there[0]), float(extra[0]), curve.interval(extra))
    return float(here[0]), curve.interval(here), prices
