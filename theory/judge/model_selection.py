"""Is it a power law? Offsets of either sign beside it, and the prediction of the largest half-decade from the rest.

An offset is named only if it wins twice: AICc lower by more than 4 under a Student likelihood on the cell means, and a
smaller error on the largest half-decade when fitted without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from theory.judge.slopes import PowerLaw
from theory.laws.least_squares import STUDENT_DF, minimise, robust_scale, student

HALF_DECADE = 0.5 * float(np.log(10.0))
AICC_MARGIN = 4.0
MAX_GROUPS = 64
MAX_CELLS = 1000
#: mean = constant(group) x^-c; with a constant(group) x offset added (a plateau that scales with the law); with one
#: offset for all groups added, in units of the smallest mean.
POWER, OFFSET, SHARED = "power", "power+offset", "power+shared offset"
OFFSETS = (OFFSET, SHARED)
#: Offsets from which a fit starts, in units of the law at the end of the range (of the smallest mean if shared).
STARTS = (0.05, 0.5, 0.9, -0.3, -0.9)
#: Differences below this share of the mean never decide (on deterministic data any would be "significant").
RELATIVE_FLOOR = 1e-3


@dataclass(frozen=True)
class LawFit:
    """A law fitted to all cells, and judged on the held-out ones.

    Attributes:
        exponent: of x in the law's power, negative for a decay. offset: in the law's own units, 0 without one.
        heldout_error: root mean square in standard deviations; NaN where the other cells do not determine the law.
    """

    name: str
    exponent: float
    offset: float
    aicc: float
    heldout_error: float


@dataclass(frozen=True)
class _Cells:
    """Cells of the laws: ln x from its smallest value, group number, mean, deviation, unit of a shared offset."""

    log_x: np.ndarray
    group: np.ndarray
    y: np.ndarray
    sd: np.ndarray
    size: float

    def keep(self, which: np.ndarray) -> _Cells:
        return _Cells(self.log_x[which], self.group[which], self.y[which], self.sd[which], self.size)

    def mean(self, name: str, theta: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Means [B, C] and derivatives [B, C, p] of a law; theta [B, p] holds ln constants, exponent and offset."""
        constant = np.exp(np.clip(theta[:, :groups], -300.0, 300.0))[:, self.group]
        power = np.exp(np.clip(theta[:, [groups]] * self.log_x, -300.0, 300.0))
        offset = theta[:, [groups + 1]] if name != POWER else np.zeros((len(theta), 1))
        shape = power + offset if name == OFFSET else power
        mean = constant * shape + (offset * self.size if name == SHARED else 0.0)
        slopes = np.zeros((*mean.shape, theta.shape[1]))
        slopes[:, np.arange(len(self.group)), self.group] = constant * shape
        slopes[:, :, groups] = constant * power * self.log_x
        if name != POWER:
            slopes[:, :, groups + 1] = constant if name == OFFSET else self.size
        return mean, slopes


def held_out(x: np.ndarray) -> np.ndarray:
    """[C] True for the cells in the largest half-decade of x."""
    return np.log(x) > np.log(x.max()) - HALF_DECADE + 1e-9


def compare(x: np.ndarray, group: np.ndarray, y: np.ndarray, sd: np.ndarray) -> list[LawFit]:
    """Fit the power law, and an offset beside it, to cell means.

    Args:
        x: [C] leading coordinate (N or T). group: [C] number of each cell's group, which has its own constant.
        y: [C] cell means (any sign); sd: [C] their standard deviations up to a common factor.
    """
    use = _few_groups(x, group)
    x, y, sd = x[use], y[use], sd[use]
    group = np.unique(group[use], return_inverse=True)[1]
    size = float(np.min(np.abs(y[y != 0]), initial=np.inf))
    cells = _Cells(np.log(x / x.min()), group, y, sd, size if np.isfinite(size) else 1.0)
    out = held_out(x)
    inner, outer = cells.keep(~out), cells.keep(out & np.isin(group, group[~out]))
    groups, fits = int(group.max()) + 1, []
    for name in (POWER, *OFFSETS):
        if name == SHARED and groups == 1:
            continue  # with one group it is the other offset
        theta, aicc = _fit(name, cells, groups)
        error = float("nan")
        if len(outer.y) and _determined(name, inner):
            predicted, _ = outer.mean(name, _fit(name, inner, groups)[0][None], groups)
            error = float(np.sqrt(np.mean(np.square((outer.y - predicted[0]) / outer.sd))))
        fits.append(LawFit(name, float(theta[groups]), float(theta[-1]) if name != POWER else 0.0, aicc, error))
    return fits


def _determined(name: str, cells: _Cells) -> bool:
    """Whether cells can tell a law's parameters: with two levels an offset of each group only shifts the exponent."""
    parameters = len(np.unique(cells.group)) + (1 if name == POWER else 2)
    return len(np.unique(cells.log_x)) >= (3 if name == OFFSET else 2) and len(cells.y) >= parameters


def _few_groups(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[C] True for the cells of some groups, evenly chosen: every group costs a parameter, every cell time."""
    names = np.unique(group)
    kept = min(MAX_GROUPS, max(1, MAX_CELLS // len(np.unique(x))))
    if len(names) <= kept:
        return np.ones(len(group), dtype=bool)
    return np.isin(group, names[np.linspace(0, len(names) - 1, kept).round().astype(int)])


def best_rival(fits: Sequence[LawFit]) -> LawFit | None:
    """The offset that beats the power law on both criteria by the largest AICc difference, if any does."""
    power = next(f for f in fits if f.name == POWER)
    winners = [
        f
        for f in fits
        if f.name != POWER and power.aicc - f.aicc > AICC_MARGIN and f.heldout_error < power.heldout_error
    ]
    return min(winners, key=lambda f: f.aicc, default=None)


def _fit(name: str, cells: _Cells, groups: int) -> tuple[np.ndarray, float]:
    """Maximum Student likelihood (scale fitted by EM) of one law: parameters [p] and AICc."""
    starts = _starts(name, cells, groups)

    def residual(theta: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, slopes = cells.mean(name, theta, groups)
        return (mean - cells.y) / cells.sd, slopes / cells.sd[:, None]

    optimum = minimise(residual, starts, iterations=60)
    theta = optimum.theta[[optimum.best]]
    floor = RELATIVE_FLOOR * float(np.median(np.abs(cells.y) / cells.sd))
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
    n, k = len(r), len(np.unique(cells.group)) + theta.shape[1] - groups + 1
    aicc = 2 * k - 2 * _log_likelihood(r, scale) + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf)
    return theta[0], float(aicc)


def _starts(name: str, cells: _Cells, groups: int) -> np.ndarray:
    """[B, p] starting points: the power law of the means, and steeper or flatter ones with offsets of either sign."""
    law = PowerLaw.of(cells.log_x, cells.group, cells.sd)
    slope = float(np.nan_to_num(law.fit(cells.y[None])[0]))
    constants = np.zeros(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = np.log(law.predict(cells.y, slope, np.zeros(groups), np.arange(groups)))
    constants[np.isfinite(heights)] = heights[np.isfinite(heights)]
    if name == POWER:
        return np.array([[*constants, slope]])
    unit = 1.0 if name == SHARED else float(np.exp(np.clip(slope * cells.log_x.max(), -30.0, 30.0)))
    steeper = (slope, slope - 0.5, 0.6 * slope)
    return np.array([[*constants, c, share * unit] for c in steeper for share in STARTS])


def _log_likelihood(residuals: np.ndarray, scale: float) -> float:
    nu = STUDENT_DF
    constant = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - 0.5 * np.log(nu * np.pi) - np.log(scale)
    return float(np.sum(constant - (nu + 1) / 2 * np.log1p(np.square(residuals / scale) / nu)))


def extrapolation_error(x: np.ndarray, group: np.ndarray, y: np.ndarray, sd: np.ndarray) -> tuple[float, float] | None:
    """Mean log residual of the largest half-decade under the power law fitted without it, and its distance in ln x.

    Returns None where fewer than two levels of x remain for the fit, or no held-out cell has a fitted constant. The
    residual is infinite if a held-out cell is not positive.
    """
    out = held_out(x)
    law = PowerLaw.of(np.log(x), group, sd, ~out)
    if len(np.unique(x[~out])) < 2 or not law.determined:
        return None
    slope = float(law.fit(y[None])[0])
    if not np.isfinite(slope):
        return None
    out &= np.isin(group, law.groups)
    if not out.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # a steep law may predict nothing at all
        ratio = y[out] / law.predict(y, slope, np.log(x[out]), group[out])
    distance = float(np.mean(np.log(x[out])) - np.mean(np.log(x[law.cells])))
    if not np.all((ratio > 0) & np.isfinite(ratio)):
        return float("inf"), distance
    return float(np.mean(np.log(ratio))), distance
