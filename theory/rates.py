"""Exponents of a quantity in its coordinates, judged: the shared core of the claims about rates.

    mean(y) = exp(intercepts) * prod_k x_k ^ theta_k        on the linear scale, seeds as clusters

The steps and thresholds are those of the decision rules (theory page, sections F and J): gates, cluster-bootstrap
intervals, one-sided verdict, downgrades for an offset, a bend, or a failed extrapolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from theory import comparison, gates
from theory.cells import Cells
from theory.fitting import log_linear, smooth_deviation
from theory.intervals import (
    DRAWS,
    UNDEFINED,
    Interval,
    bootstrap_standard_error,
    cluster_weights,
    generator,
    t_interval,
    wild_cluster_interval,
)
from theory.report import Exponent, undefined_exponent
from theory.verdicts import CONSISTENT, INCONCLUSIVE, LOOSE, UNTESTABLE, direction, rate

MAX_DRIFT = 0.15


@dataclass(frozen=True)
class Coordinate:
    """A coordinate of a claim: its column, claimed exponent and the range that a verdict needs."""

    name: str
    claimed: float
    min_decades: float
    min_levels: int = 2


@dataclass(frozen=True)
class RateResult:
    """Exponents by coordinate, the reasons, and figure points."""

    exponents: dict[str, Exponent]
    reasons: tuple[str, ...]
    rivals: list[dict[str, Any]]
    points: pd.DataFrame


@dataclass(frozen=True)
class _Fit:
    """A log-linear fit with its bootstrap draws; `columns` maps a coordinate to its column of the design."""

    design: np.ndarray
    columns: dict[str, int]
    sd: np.ndarray
    beta: np.ndarray
    draws: np.ndarray
    weights: np.ndarray


def judge_rates(
    cells: Cells,
    quantity: str,
    coordinates: Sequence[Coordinate],
    leading: str,
    margin: float,
    *,
    strata: Sequence[str] = (),
    all_rivals: bool = True,
) -> RateResult:
    """Estimate and judge the exponents of a quantity.

    Args:
        coordinates: what to estimate; `leading` names the one (N or T) along which laws extrapolate.
        strata: design columns whose combinations get their own intercept.
        all_rivals: fit every rival law for the report (only the offset is needed for the verdict).
    """
    table = {c.name: cells.levels[c.name].to_numpy(dtype=np.float64) for c in coordinates}
    reasons: list[str] = []
    failed: dict[str, list[str]] = {c.name: _gates(c, cells, quantity, table) for c in coordinates}
    for text in dict.fromkeys(t for c in coordinates for t in failed[c.name]):
        owners = [c.name for c in coordinates if text in failed[c.name]]
        reasons.append(f"{' and '.join(owners)} untestable: {text}")

    varying = [c.name for c in coordinates if len(np.unique(table[c.name])) > 1]
    intercepts = _intercepts(cells.levels, strata)
    design = intercepts
    columns: dict[str, int] = {}
    for name in varying:
        candidate = np.column_stack([design, np.log(table[name])])
        if np.linalg.matrix_rank(candidate) == candidate.shape[1] and candidate.shape[1] <= cells.size:
            design, columns = candidate, {**columns, name: candidate.shape[1] - 1}
    if not columns:
        return RateResult(
            {c.name: undefined_exponent(c.claimed) for c in coordinates}, tuple(reasons), [], pd.DataFrame()
        )
    fit = _fit(cells, design, columns)

    tested = [c for c in coordinates if not failed[c.name]]
    # Two coordinates judged together: each refutation uses a 97.5 % interval, so that the pair errs at 5 %.
    refute_level = 1 - 0.05 / max(len(tested), 1)
    lead = table[leading]
    covariates = np.delete(fit.design, columns[leading], axis=1) if leading in columns else fit.design
    downgrade = UNTESTABLE if gates.decades(lead) < gates.MIN_DECADES_OFFSET - gates.TOLERANCE else INCONCLUSIVE

    offset, rivals = None, []
    if leading in columns and len(np.unique(lead)) >= 3 and np.isfinite(fit.beta).all():
        names = tuple(comparison.FAMILIES) if all_rivals else ("power", "power+offset")
        fits = comparison.compare(lead, covariates, cells.mean, fit.sd, names)
        offset = comparison.best_rival([f for f in fits if f.name in ("power", "power+offset")])
        rival = comparison.best_rival(fits)
        rivals = [
            {"law": f.name, "aicc": f.aicc, "heldout_error": f.heldout_error, "preferred": f is rival} for f in fits
        ]
        if offset is not None:
            reasons.append(
                f"an offset in {quantity} is detected (AICc lower by {fits[0].aicc - offset.aicc:.1f}, held-out error "
                f"{fits[0].heldout_error:.2f} -> {offset.heldout_error:.2f}): a plateau bends the slope; remove it "
                "by design "
                "(excess over a known optimum, control variate) or extend to three decades"
            )
        elif rival is not None:
            reasons.append(
                f"the law '{rival.name}' describes {quantity} better than a power of {leading} on both criteria"
            )

    exponents = {}
    for coordinate in coordinates:
        name = coordinate.name
        if name not in columns:
            exponents[name] = undefined_exponent(coordinate.claimed)
            continue
        exponent, remarks = _judge_coordinate(
            coordinate, cells, fit, table[name], margin, refute_level,
            bool(failed[name]), offset is not None, downgrade, name == leading,
        )  # fmt: skip
        exponents[name] = exponent
        reasons += remarks
    return RateResult(exponents, tuple(reasons), rivals, _points(cells, fit, coordinates))


def _gates(coordinate: Coordinate, cells: Cells, quantity: str, table: dict[str, np.ndarray]) -> list[str]:
    values = table[coordinate.name]
    checks = [
        gates.range_gate(coordinate.name, values, coordinate.min_decades),
        gates.levels_gate(coordinate.name, values, coordinate.min_levels),
        gates.seeds_gate(min(cells.seeds_per_cell, cells.seeds)),
        gates.signal_gate(quantity, cells.mean, cells.standard_error),
    ]
    names = list(table)
    if len(names) == 2:
        checks.append(gates.collinearity_gate(names[0], names[1], table[names[0]], table[names[1]]))
    return [g.reason for g in checks if not g.passed]


def _intercepts(levels: pd.DataFrame, strata: Sequence[str]) -> np.ndarray:
    """[C, groups] one indicator per combination of the strata (a single column of ones without strata)."""
    if not strata:
        return np.ones((len(levels), 1))
    group = levels.groupby(list(strata), dropna=False, sort=True).ngroup().to_numpy()
    return (group[:, None] == np.arange(group.max() + 1)).astype(np.float64)


def _fit(cells: Cells, design: np.ndarray, columns: dict[str, int]) -> _Fit:
    sd = smooth_deviation(design, cells.mean, cells.sd)
    # Cells with more seeds weigh more.
    sd = sd / np.sqrt(cells.replicates / np.mean(cells.replicates))
    beta = log_linear(design, cells.mean[None, :], sd)[0]
    if cells.clusters < 2:
        empty = np.empty((0, cells.clusters))
        return _Fit(design, columns, sd, beta, np.empty((0, design.shape[1])), empty)
    weights = cluster_weights(cells.clusters, DRAWS, generator(1))
    return _Fit(design, columns, sd, beta, bootstrap_fits(design, cells, weights, sd, beta), weights)


def bootstrap_fits(
    design: np.ndarray, cells: Cells, weights: np.ndarray, sd: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """[B, p] coefficients in every bootstrap draw; draws that repeat (five seeds allow 126) are fitted once."""
    distinct, which = np.unique(weights, axis=0, return_inverse=True)
    return log_linear(design, cells.bootstrap_means(distinct), sd, start=start)[which.ravel()]


def cluster_scores(cells: Cells, fit: _Fit) -> np.ndarray:
    """[S, p] influence of each seed on the coefficients (the sandwich's inner factors, linearised at the fit)."""
    mu = np.exp(fit.design @ fit.beta)
    weight = mu / np.square(fit.sd)
    bread = np.linalg.pinv((fit.design * (weight * mu)[:, None]).T @ fit.design)
    deviations = (cells.sums - cells.counts * mu) / cells.replicates
    return (deviations * weight) @ fit.design @ bread


def _judge_coordinate(
    coordinate: Coordinate,
    cells: Cells,
    fit: _Fit,
    x: np.ndarray,
    margin: float,
    refute_level: float,
    gated: bool,
    offset: bool,
    downgrade: str,
    leading: bool,
) -> tuple[Exponent, list[str]]:
    name, column = coordinate.name, fit.columns[coordinate.name]
    estimate, clusters = float(fit.beta[column]), cells.clusters
    error = bootstrap_standard_error(fit.draws[:, column], clusters) if len(fit.draws) else float("nan")
    if not np.isfinite(estimate):
        return undefined_exponent(coordinate.claimed), [f"{name}: no power law fits cell means that are not positive"]
    ci90, ci95 = (t_interval(estimate, error, clusters, level) for level in (0.90, 0.95))
    wide = t_interval(estimate, error, clusters, refute_level)
    wild = wild_cluster_interval(estimate, cluster_scores(cells, fit)[:, column], 0.95, generator(2))
    drift, drift_ci = _drift(cells, fit, x)
    mu = np.exp(fit.design @ fit.beta)
    slopes = comparison.local_slopes(x, cells.mean / mu, np.square(mu / fit.sd), estimate)
    details: dict[str, Any] = {
        "decades": gates.decades(x),
        "standard_error": error,
        "ci95_wild": [wild.low, wild.high],
        "drift": drift,
        "drift_ci95": [drift_ci.low, drift_ci.high],
        "local_slopes": slopes,
    }
    verdict = direction(coordinate.claimed, margin, ci90, Interval(wide.low, ci95.high))
    two_sided = rate(coordinate.claimed, margin, ci90, ci95)
    remarks = []
    if np.isfinite(wild.width) and np.isfinite(ci95.width) and abs(wild.width - ci95.width) > 0.25 * ci95.width:
        remarks.append(
            f"{name}: the two 95 % intervals differ by more than a quarter (bootstrap {ci95.low:.3f} to "
            f"{ci95.high:.3f}, "
            f"wild bootstrap-t {wild.low:.3f} to {wild.high:.3f})"
        )
    if leading:
        tail = comparison.extrapolation_error(x, fit.design, cells.mean, fit.sd)
        passed = tail is not None and abs(tail[0]) <= margin * tail[1]
        details["extrapolation_error"] = None if tail is None else tail[0]
        details["extrapolation_limit"] = None if tail is None else margin * tail[1]
    else:
        passed = True
    if gated:
        verdict = two_sided = UNTESTABLE
    bent = abs(drift) > MAX_DRIFT and (drift_ci.low > 0 or drift_ci.high < 0)
    if bent:
        remarks.append(
            f"{name}: the slope drifts by {drift:+.2f} between the halves of the range (95 % interval "
            f"{drift_ci.low:+.2f} to "
            f"{drift_ci.high:+.2f}): not a power law in this window"
        )
    if bent or offset:
        verdict = downgrade if verdict in (CONSISTENT, LOOSE) else verdict
        two_sided = downgrade if two_sided == CONSISTENT else two_sided
    details["power_law"] = not (bent or offset) and passed
    if not passed and two_sided == CONSISTENT:
        two_sided = INCONCLUSIVE
    if not passed and verdict == CONSISTENT:
        verdict = INCONCLUSIVE
        remarks.append(
            f"{name}: the law fitted without the largest half-decade misses it"
            if tail is not None
            else f"{name}: too few levels below the largest half-decade to test the extrapolation"
        )
    return Exponent(coordinate.claimed, estimate, ci90, ci95, verdict, two_sided, details), remarks


def _drift(cells: Cells, fit: _Fit, x: np.ndarray) -> tuple[float, Interval]:
    """Slope of the upper half of the range minus that of the lower half, with its 95 % interval."""
    bend = comparison.hinge(x)
    if bend is None:
        return float("nan"), UNDEFINED
    design = np.column_stack([fit.design, bend])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return float("nan"), UNDEFINED
    bent = log_linear(design, cells.mean[None, :], fit.sd)[0]
    drift = float(bent[-1])
    if not len(fit.draws):
        return drift, UNDEFINED
    draws = bootstrap_fits(design, cells, fit.weights, fit.sd, bent)[:, -1]
    return drift, t_interval(drift, bootstrap_standard_error(draws, cells.clusters), cells.clusters, 0.95)


def _points(cells: Cells, fit: _Fit, coordinates: Sequence[Coordinate]) -> pd.DataFrame:
    """Cell means with t intervals, the fitted law, and the claimed law with its constant fitted to the data."""
    points = cells.levels.copy()
    half = np.array(
        [t_interval(0.0, se, int(n), 0.95).high for se, n in zip(cells.standard_error, cells.replicates, strict=True)]
    )
    points["mean"], points["low"], points["high"] = cells.mean, cells.mean - half, cells.mean + half
    points["fitted"] = np.exp(fit.design @ fit.beta)
    shape = np.zeros(cells.size)
    for c in coordinates:
        shape += c.claimed * np.log(cells.levels[c.name].to_numpy(dtype=np.float64))
    shape = np.exp(shape - shape.mean())
    # One constant per stratum: the intercept columns come first in the design and are indicators.
    strata = fit.design[:, : fit.design.shape[1] - len(fit.columns)]
    weight = strata / np.square(fit.sd)[:, None]
    constants = (weight.T @ (cells.mean * shape)) / (weight.T @ np.square(shape))
    points["claimed"] = (strata @ constants) * shape
    return points
