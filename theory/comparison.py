"""Is it a power law? Rival laws, held-out extrapolation, drift and local slopes.

A rival is named only if it wins twice: AICc lower by more than 4 under a Student likelihood on the cell means, and a
smaller error on the largest half-decade when fitted without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from scipy import special

from theory.fitting import STUDENT_DF, log_linear, minimise, robust_scale, student
from theory.law_parser import Law
from theory.laws import FAMILIES, family_law, law_data

HALF_DECADE = 0.5 * np.log(10.0)
AICC_MARGIN = 4.0
#: Differences below this share of the mean never decide (on deterministic data any would be "significant").
RELATIVE_FLOOR = 1e-3


@dataclass(frozen=True)
class FamilyFit:
    """A family fitted to all cells, and judged on the held-out ones."""

    name: str
    parameters: dict[str, float]
    aicc: float
    heldout_error: float


def held_out(x: np.ndarray) -> np.ndarray:
    """[C] True for the cells in the largest half-decade of x."""
    return np.log(x) > np.log(x.max()) - HALF_DECADE + 1e-9


def compare(
    x: np.ndarray, covariates: np.ndarray, y: np.ndarray, sd: np.ndarray, names: tuple[str, ...] = tuple(FAMILIES)
) -> list[FamilyFit]:
    """Fit families y = family(x) * exp(covariates @ k) to cell means.

    Args:
        x: [C] leading coordinate (N or T); covariates: [C, k] intercepts and the logarithms of other coordinates.
        y: [C] cell means (any sign); sd: [C] their standard deviations up to a common factor.
    """
    out = held_out(x)
    enough = len(np.unique(x[~out])) >= 2
    fits = []
    for name in names:
        theta, law, signed, aicc = _fit(name, x, covariates, y, sd)
        error = float("nan")
        if enough:
            inside, *_ = _fit(name, x[~out], covariates[~out], y[~out], sd[~out])
            data = _data(x[out], covariates[out], x.min())
            predicted = law.value(_natural(inside, law, signed), data)
            error = float(np.sqrt(np.mean(np.square((y[out] - predicted) / sd[out]))))
        fits.append(
            FamilyFit(name, dict(zip(law.parameters, _natural(theta, law, signed).tolist(), strict=True)), aicc, error)
        )
    return fits


def best_rival(fits: list[FamilyFit], base: str = "power") -> FamilyFit | None:
    """The rival that beats the base law on both criteria by the largest AICc difference, if any does."""
    reference = next(f for f in fits if f.name == base)
    winners = [
        f
        for f in fits
        if f.name != base and reference.aicc - f.aicc > AICC_MARGIN and f.heldout_error < reference.heldout_error
    ]
    return min(winners, key=lambda f: f.aicc) if winners else None


def _data(x: np.ndarray, covariates: np.ndarray, smallest: float) -> dict[str, np.ndarray]:
    columns = {f"z{j + 1}": covariates[:, j] for j in range(covariates.shape[1])}
    data = law_data(x, columns)
    return {**data, "x": x / smallest}


def _natural(theta: np.ndarray, law: Law, signed: frozenset[str]) -> np.ndarray:
    free = np.array([p in signed for p in law.parameters])
    with np.errstate(over="ignore"):
        return np.where(free, theta, np.exp(np.where(free, 0.0, theta)))


def _fit(
    name: str, x: np.ndarray, covariates: np.ndarray, y: np.ndarray, sd: np.ndarray
) -> tuple[np.ndarray, Law, frozenset[str], float]:
    """Maximum Student likelihood (scale fitted by EM) of one family; returns internal parameters and AICc."""
    law, signed = family_law(name, covariates.shape[1])
    data = _data(x, covariates, x.min())
    free = np.array([p in signed for p in law.parameters])
    # x is measured from its smallest value, so the power law's intercept is the scale at that point for all.
    power = log_linear(np.column_stack([covariates, np.log(data["x"])]), y[None, :], sd)[0]
    power = np.nan_to_num(power)
    starts = _starts(name, law, power, np.abs(y)[np.abs(y) > 0].min() if np.any(y) else 1.0)
    starts = np.where(free, starts, np.log(np.where(free, 1.0, starts)))

    def residual(theta: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        natural = np.where(free, theta, np.exp(np.minimum(theta, 300.0)))
        values, slopes = law.evaluate(natural, data)
        chain = np.where(free, 1.0, natural)[:, None, :]
        return (values - y) / sd, slopes * chain / sd[:, None]

    optimum = minimise(residual, starts, iterations=60)
    theta = optimum.theta[[optimum.best]]
    floor = RELATIVE_FLOOR * float(np.median(np.abs(y) / sd))
    r = residual(theta, np.zeros(1, dtype=int))[0][0]
    scale = max(robust_scale(r), float(np.sqrt(np.mean(r * r))), floor)
    for _ in range(20):
        theta = minimise(residual, theta, loss=student(scale), iterations=30, ftol=1e-10).theta
        r = residual(theta, np.zeros(1, dtype=int))[0][0]
        weight = (STUDENT_DF + 1.0) / (STUDENT_DF + np.square(r / scale))
        updated = max(float(np.sqrt(np.mean(weight * r * r))), floor)
        settled = abs(updated - scale) <= 1e-5 * scale
        scale = updated
        if settled:
            break
    n, k = len(y), len(law.parameters) + 1
    aicc = 2 * k - 2 * _log_likelihood(r, scale) + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf)
    return theta[0], law, signed, float(aicc)


def _starts(name: str, law: Law, power: np.ndarray, smallest: float) -> np.ndarray:
    """Starting points in natural parameters: the family's own grid, scales and slopes from the power law."""
    own = dict(FAMILIES[name][1])
    fixed = {f"k{j + 1}": value for j, value in enumerate(power[:-1])}
    decay = -float(power[-1])
    if "c" in own:
        own["c"] = (decay, *(c + decay for c in own["c"]))
    own["offset"] = tuple(share * smallest for share in (0.05, 0.5, 0.9))
    free = [p for p in law.parameters if p not in fixed]
    rows = [
        [{**fixed, **dict(zip(free, values, strict=True))}[p] for p in law.parameters]
        for values in product(*(own[p] for p in free))
    ]
    return np.array(rows)


def _log_likelihood(residuals: np.ndarray, scale: float) -> float:
    nu = STUDENT_DF
    constant = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - 0.5 * np.log(nu * np.pi) - np.log(scale)
    return float(np.sum(constant - (nu + 1) / 2 * np.log1p(np.square(residuals / scale) / nu)))


def extrapolation_error(x: np.ndarray, design: np.ndarray, y: np.ndarray, sd: np.ndarray) -> tuple[float, float] | None:
    """Mean log residual of the largest half-decade under the law fitted without it, and its distance in ln x.

    Returns None where fewer than two levels of x remain for the fit. The residual is infinite if a held-out cell is
    not positive.
    """
    out = held_out(x)
    if len(np.unique(x[~out])) < 2 or np.linalg.matrix_rank(design[~out]) < design.shape[1]:
        return None
    beta = log_linear(design[~out], y[None, ~out], sd[~out])[0]
    ratio = y[out] / np.exp(design[out] @ beta)
    distance = float(np.mean(np.log(x[out])) - np.mean(np.log(x[~out])))
    if not np.all(ratio > 0):
        return float("inf"), distance
    return float(np.mean(np.log(ratio))), distance


def hinge(x: np.ndarray) -> np.ndarray | None:
    """[C] regressor max(0, ln x - midpoint): its coefficient is the slope of the upper half minus the lower half's.

    The two halves of the range share the level nearest to the middle. None with fewer than three levels.
    """
    levels = np.unique(x)
    if len(levels) < 3:
        return None
    middle = 0.5 * (np.log(levels[0]) + np.log(levels[-1]))
    inner = np.log(levels[1:-1])
    return np.maximum(0.0, np.log(x) - inner[np.argmin(np.abs(inner - middle))])


def local_slopes(x: np.ndarray, ratio: np.ndarray, weight: np.ndarray, slope: float) -> list[list[float]]:
    """Slopes between levels at least half a decade apart, as [[x, slope], ...] at the geometric middles.

    Args:
        ratio: [C] cell mean over the fitted law; weight: [C]. Levels whose mean ratio is not positive give NaN.
    """
    levels = np.unique(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A fit that underflows leaves a level without weight: NaN, not an error.
        level_ratio = np.array([np.sum((ratio * weight)[x == v]) / np.sum(weight[x == v]) for v in levels])
        height = np.where(level_ratio > 0, np.log(level_ratio), np.nan) + slope * np.log(levels)
    chosen = [0]
    for i in range(1, len(levels)):
        if np.log(levels[i] / levels[chosen[-1]]) >= HALF_DECADE - 1e-9:
            chosen.append(i)
    return [
        [
            float(np.sqrt(levels[a] * levels[b])),
            float((height[b] - height[a]) / np.log(levels[b] / levels[a])),
        ]
        for a, b in pairwise(chosen)
    ]
