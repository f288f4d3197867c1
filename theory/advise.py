"""The guideline that the theory promises: which rank to use for N samples, from fitted measurements.

r*(N) comes from the measured growth of the optimum (`theory.optimum`), the risk and the price of other ranks from the
surface E + A r^-alpha + B r^beta N^-gamma. Advice is refused, with what to measure instead, where it would be a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.cells import Cells
from theory.claims.optimal_rank import dimension, risk_cells
from theory.intervals import UNDEFINED, Interval, bootstrap_standard_error, cluster_weights, generator, t_interval
from theory.laws import SurfaceFit, fit_surface
from theory.optimum import Growth, Optima, censoring_words, find_optima, fit_growth
from theory.report import interval_list
from theory.tables import InputError, Table

#: Advice reaches half a decade beyond the measured N, no further.
REACH = float(np.sqrt(10.0))
MIN_OPTIMA = 3
SURFACE_DRAWS = 300


class Refusal(InputError):
    """The measurements do not support advice; the message says what to measure instead."""


@dataclass(frozen=True)
class Price:
    """The expected risk at a rank, and how much it exceeds the risk at the advised rank (in the risk's units)."""

    rank: int
    risk: float
    extra: float
    extra_ci95: Interval

    def to_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "risk": self.risk, "extra": self.extra, "extra_ci95": interval_list(self.extra_ci95)}


@dataclass(frozen=True)
class Advice:
    """The rank for N samples.

    Attributes:
        rank: the rank to use, at most the largest allowed; optimum: r*(N) with its intervals.
        risk: expected risk at `rank` with its 95 % interval; prices: at half and double that rank.
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
    capped: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
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
            "capped": self.capped,
            "notes": list(self.notes),
        }


def advise(table: Table, samples: float, max_rank: int | None = None) -> Advice:
    """The rank to use for `samples` training samples.

    Args:
        max_rank: the largest rank that can be afforded.

    Raises:
        Refusal: no interior optimum, censored optima, too far beyond the measured N, or a single seed.
        InputError: unusable rows or arguments.
    """
    if not samples > 0 or not np.isfinite(samples):
        raise InputError(f"--samples {samples:g}: must be a positive number")
    if max_rank is not None and max_rank < 1:
        raise InputError(f"--max-rank {max_rank}: must be at least 1")
    missing = table.missing(("rank", "samples", "seed", "test_loss"))
    if missing:
        raise InputError(f"{table.path}: advice needs the columns {', '.join(missing)}; add them")
    frame, cells, remarks = risk_cells(table)
    optima = find_optima(cells, dimension(frame))
    growth, log_optimum, drawn = _predict(table.path, cells, optima, samples)
    error = bootstrap_standard_error(drawn, cells.clusters)
    ci90, ci95 = (_exponential(t_interval(log_optimum, error, cells.clusters, level)) for level in (0.90, 0.95))
    optimum = float(np.exp(log_optimum))
    capped = max_rank is not None and optimum > max_rank
    rank = max_rank if capped and max_rank is not None else max(1, round(optimum))
    notes = list(remarks)
    if cells.seeds_per_cell < 5:
        notes.append(f"{cells.seeds_per_cell} seeds per cell: the interval is wide or unreliable; 5 are recommended")
    if growth.by_censoring:
        notes.append("a third or more of the optima are censored: r* rests on an interval-censored regression")
    risk, risk_ci95, prices = _prices(cells, samples, rank, optimum, notes)
    return Advice(table.path, samples, rank, optimum, ci90, ci95, risk, risk_ci95, prices, capped, tuple(notes))


def _predict(path: str, cells: Cells, optima: Optima | None, samples: float) -> tuple[Growth, float, np.ndarray]:
    """ln r* at N on the full data and in every draw, or a refusal."""
    if cells.clusters < 2:
        raise Refusal(f"{path}: no advice from a single seed; repeat the grid with at least five")
    if optima is None:
        raise Refusal(f"{path}: no advice: no value of samples was run at five ranks; add ranks")
    if optima.interior.sum() < MIN_OPTIMA:
        raise Refusal(
            f"{path}: no advice: the risk is monotone in rank, or not resolved, at {np.sum(~optima.interior)} of "
            f"{len(optima.samples)} values of samples; add larger ranks or smaller samples, or seeds"
        )
    seen = ~optima.censored
    growth = fit_growth(optima)
    if growth is None or seen.sum() < MIN_OPTIMA:
        raise Refusal(
            f"{path}: no advice: r* is censored at {censoring_words(optima, optima.censored)}; widen the grid of "
            "ranks, or "
            "run samples between those with a visible optimum"
        )
    low, high = optima.samples[seen].min() / REACH, optima.samples[seen].max() * REACH
    if not low * (1 - 1e-9) <= samples <= high * (1 + 1e-9):
        raise Refusal(
            f"{path}: no advice for samples = {samples:g}: optima were seen from {optima.samples[seen].min():g} to "
            f"{optima.samples[seen].max():g}, and half a decade beyond is the limit; measure at samples = "
            f"{samples / REACH if samples > high else samples * REACH:.3g} or closer"
        )
    log_optimum, drawn = growth.predict(float(np.log(samples)))
    ranks = cells.levels["rank"]
    if not ranks.min() <= np.exp(log_optimum) <= ranks.max():
        raise Refusal(
            f"{path}: no advice for samples = {samples:g}: the optimum would be {np.exp(log_optimum):.3g}, outside "
            "the ranks "
            f"measured ({ranks.min():g} to {ranks.max():g}); add ranks there"
        )
    return growth, log_optimum, drawn


def _exponential(interval: Interval) -> Interval:
    return Interval(float(np.exp(interval.low)), float(np.exp(interval.high)))


def _prices(
    cells: Cells, samples: float, rank: int, optimum: float, notes: list[str]
) -> tuple[float, Interval, dict[str, Price]]:
    """Expected risk at the rank, and what half and double (and r*, where the rank is capped) cost more or less."""
    if not (cells.mean > 0).all():
        notes.append("the mean risk is not positive in every cell: no surface was fitted, and no prices are given")
        return float("nan"), UNDEFINED, {}
    ranks, sizes = (cells.levels[c].to_numpy(dtype=np.float64) for c in ("rank", "samples"))
    fitted = fit_surface(ranks, sizes, cells.mean, _draw_means(cells))
    other = fitted.surface.best_rank(samples)
    if abs(np.log(other / optimum)) > np.log(1.25):
        notes.append(
            f"the risk surface puts the optimum at {other:.3g}, more than a quarter from {optimum:.3g}: the "
            "surface is not "
            "exact, and prices are rough"
        )
    risk = float(fitted.surface(rank, samples))
    draws = np.array([float(s(rank, samples)) for s in fitted.draws])
    interval = t_interval(risk, bootstrap_standard_error(draws, cells.clusters), cells.clusters, 0.95)
    others = {"half": max(1, rank // 2), "double": 2 * rank}
    if abs(round(optimum) - rank) >= 1:
        others["at_optimum"] = max(1, round(optimum))
    prices = {name: _price(fitted, value, rank, samples, cells.clusters) for name, value in others.items()}
    return risk, interval, prices


def _draw_means(cells: Cells) -> np.ndarray:
    """[B, C] bootstrapped cell means; a draw without some cell uses the full mean there."""
    weights = cluster_weights(cells.clusters, SURFACE_DRAWS, generator(7))
    means = cells.bootstrap_means(weights)
    return np.where(np.isfinite(means) & (means > 0), means, cells.mean)


def _price(fitted: SurfaceFit, other: int, rank: int, samples: float, clusters: int) -> Price:
    def extra(s: Any) -> float:
        return float(s(other, samples) - s(rank, samples))

    value = extra(fitted.surface)
    error = bootstrap_standard_error(np.array([extra(s) for s in fitted.draws]), clusters)
    return Price(other, float(fitted.surface(other, samples)), value, t_interval(value, error, clusters, 0.95))
