"""Is it a power law? Rival laws, held-out extrapolation, drift and local slopes.

A rival is named only if it wins twice: AICc lower by more than 4 under a Student likelihood on the cell means, and a
smaller error on the largest half-decade when fitted without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import special

from theory.fitting import STUDENT_DF, log_linear, minimise, robust_scale, student
from theory.law_parser import Law
from theory.laws import FAMILIES, family_law
from theory.slopes import PowerLaw

HALF_DECADE = 0.5 * np.log(10.0)
AICC_MARGIN = 4.0
MAX_GROUPS = 64
SHARED = "power+shared offset"
OFFSETS = ("power+offset", SHARED)
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
    x: np.ndarray, group: np.ndarray, y: np.ndarray, sd: np.ndarray, names: tuple[str, ...] = tuple(FAMILIES)
) -> list[FamilyFit]:
    """Fit families y = constant(group) * family(x) to cell means.

    Args:
        x: [C] leading coordinate (N or T). group: [C] number of each cell's group, which has its own constant.
        y: [C] cell means (any sign); sd: [C] their standard deviations up to a common factor.
    """
    use = _few_groups(group)
    x, group, y, sd = x[use], np.unique(group[use], return_inverse=True)[1], y[use], sd[use]
    covariates = (group[:, None] == np.arange(group.max() + 1)).astype(np.float64)
    out = held_out(x)
    # Groups without a cell below the largest half-decade have no constant there.
    known = covariates[~out].any(axis=0)
    out &= known[group]
    inner = ~held_out(x)
    enough = len(np.unique(x[inner])) >= 2 and out.any()
    size = float(np.min(np.abs(y[y != 0]), initial=np.inf))
    size = size if np.isfinite(size) else 1.0
    fits = []
    for name in names:
        if name == SHARED and covariates.shape[1] == 1:
            continue  # with one group it is the other offset
        theta, law, signed, aicc = _fit(name, x, covariates, y, sd, size)
        error = float("nan")
        if enough:
            inside, own, own_signed, _ = _fit(name, x[inner], covariates[inner][:, known], y[inner], sd[inner], size)
            data = _data(x[out], covariates[out][:, known], x.min(), size)
            predicted = own.value(_natural(inside, own, own_signed), data)
            error = float(np.sqrt(np.mean(np.square((y[out] - predicted) / sd[out]))))
        fits.append(
            FamilyFit(name, dict(zip(law.parameters, _natural(theta, law, signed).tolist(), strict=True)), aicc, error)
        )
    return fits


def _few_groups(group: np.ndarray) -> np.ndarray:
    """[C] True for the cells of at most MAX_GROUPS groups, evenly chosen: every group costs a parameter."""
    names = np.unique(group)
    if len(names) <= MAX_GROUPS:
        return np.ones(len(group), dtype=bool)
    return np.isin(group, names[np.linspace(0, len(names) - 1, MAX_GROUPS).round().astype(int)])


def best_rival(fits: list[FamilyFit], base: str = "power") -> FamilyFit | None:
    """The rival that beats the base law on both criteria by the largest AICc difference, if any does."""
    reference = next(f for f in fits if f.name == base)
    winners = [
        f
        for f in fits
        if f.name != base and reference.aicc - f.aicc > AICC_MARGIN and f.heldout_error < reference.heldout_error
    ]
    return min(winners, key=lambda f: f.aicc) if winners else None


def _data(x: np.ndarray, covariates: np.ndarray, smallest: float, size: float) -> dict[str, np.ndarray]:
    """Columns for a family: x in units of its smallest value, `span` = e so that log(x*span) >= 1, and the unit `size`
    of an offset that all groups share."""
    columns = {f"z{j + 1}": covariates[:, j] for j in range(covariates.shape[1])}
    return {**columns, "x": x / smallest, "span": np.full(len(x), np.e), "size": np.full(len(x), size)}


def _natural(theta: np.ndarray, law: Law, signed: frozenset[str]) -> np.ndarray:
    free = np.array([p in signed for p in law.parameters])
    with np.errstate(over="ignore"):
        return np.where(free, theta, np.exp(np.where(free, 0.0, theta)))


def _fit(
    name: str, x: np.ndarray, covariates: np.ndarray, y: np.ndarray, sd: np.ndarray, size: float
) -> tuple[np.ndarray, Law, frozenset[str], float]:
    """Maximum Student likelihood (scale fitted by EM) of one family; returns internal parameters and AICc."""
    law, signed = family_law(name, covariates.shape[1])
    data = _data(x, covariates, x.min(), size)
    free = np.array([p in signed for p in law.parameters])
    # x is measured from its smallest value, so the power law's intercept is the scale at that point for all.
    power = log_linear(np.column_stack([covariates, np.log(data["x"])]), y[None, :], sd)[0]
    power = np.nan_to_num(power)
    starts = _starts(name, law, power, float(np.log(data["x"].max())))
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


def _starts(name: str, law: Law, power: np.ndarray, span: float) -> np.ndarray:
    """Starting points in natural parameters: the family's own grid, scales and slopes from the power law, offsets in
    units of the power law at the end of the range (`span` in ln x from its start)."""
    own = dict(FAMILIES[name][1])
    fixed = {f"k{j + 1}": value for j, value in enumerate(power[:-1])}
    decay = -float(power[-1])
    end = float(np.exp(-np.clip(decay * span, -30.0, 30.0)))
    if "c" in own:
        own["c"] = (decay, *(c + decay for c in own["c"]))
    if "offset" in own:
        own["c"] = (*own["c"], 0.6 * decay)  # what a negative offset steepens
        unit = 1.0 if name == SHARED else end
        own["offset"] = tuple(share * unit for share in (0.05, 0.5, 0.9, -0.3, -0.9))
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


def extrapolation_error(x: np.ndarray, group: np.ndarray, y: np.ndarray, sd: np.ndarray) -> tuple[float, float] | None:
    """Mean log residual of the largest half-decade under the power law fitted without it, and its distance in ln x.

    Returns None where fewer than two levels of x remain for the fit. The residual is infinite if a held-out cell is
    not positive.
    """
    out = held_out(x)
    law = PowerLaw.of(np.log(x), group, sd, ~out)
    if len(np.unique(x[~out])) < 2 or not law.determined:
        return None
    slope = float(law.fit(y[None])[0])
    if not np.isfinite(slope):
        return None
    out &= np.isin(group, law.groups)
    with np.errstate(divide="ignore", invalid="ignore"):  # a steep law may predict nothing at all
        ratio = y[out] / law.predict(y, slope, np.log(x[out]), group[out])
    distance = float(np.mean(np.log(x[out])) - np.mean(np.log(x[law.cells])))
    if not np.all((ratio > 0) & np.isfinite(ratio)):
        return float("inf"), distance
    return float(np.mean(np.log(ratio))), distance
