"""What the tested window shows of one coordinate: slopes of its parts, their bend, and what a plateau would do next.

    S_all           over the whole range
    S_low, S_top    over its two halves, fitted separately; they share the level nearest to the log-midpoint
    q               S_top - S_low, the bend
    t1, t2          over the two parts of the top half, split at its middle level
    S_reach         over the next half-decade: t2 if t2 <= t1, else the slope of the plateau E + B x^-c (E >= 0) whose
                    local slopes at the two middles are t1 and t2
    N-dagger        where that plateau reading would reach the claimed exponent plus the margin

Nothing is decided here; `theory.judge.rules` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special

from theory.judge import model_selection
from theory.judge.cells import Cells
from theory.judge.intervals import (
    DRAWS,
    UNDEFINED,
    Interval,
    bootstrap_standard_error,
    generator,
    spending,
    t_interval,
    wild_cluster_interval,
)
from theory.judge.model_selection import HALF_DECADE
from theory.judge.slopes import PowerLaw
from theory.laws.least_squares import smooth_deviation

MAX_BEND = 0.15
BRIEF_DRAWS = 400
LARGEST_REFIT = 4_000_000  # draws x cells up to which every draw is fitted again
EPSILON = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error over seeds; `clusters` is the effective number of seeds behind it."""

    value: float
    standard_error: float
    clusters: float

    def interval(self, level: float) -> Interval:
        """Two-sided Student interval with `clusters` - 1 degrees of freedom."""
        return t_interval(self.value, self.standard_error, self.clusters, level)

    def to_dict(self) -> dict[str, Any]:
        """The estimate with its 95 % interval for the JSON."""
        interval = self.interval(0.95)
        return {"estimate": self.value, "ci95": [interval.low, interval.high]}

    def low(self, level: float) -> float:
        return self.interval(level).low

    def high(self, level: float) -> float:
        return self.interval(level).high


UNKNOWN = Estimate(float("nan"), float("nan"), 0.0)


@spending(1.0)  # a guard, not a verdict: noticed at its own level at every look
def is_bent(bend: Estimate, level: float) -> bool:
    """The exponents of two halves differ by more than .15, and the interval of their difference excludes 0."""
    interval = bend.interval(level)
    return abs(bend.value) > MAX_BEND and (interval.low > 0 or interval.high < 0)


@dataclass(frozen=True)
class Window:
    """The evidence about one coordinate; slopes are exponents of the quantity's mean.

    Attributes:
        whole, low, top, early, late, reach, bend: S_all, S_low, S_top, t1, t2, S_reach and q of the module's heading.
        middle: the level shared by the halves. largest: the last level.
        gap, to_end: in ln x, the distance of the middles at which t1 and t2 hold, and from the second to the end.
        bend_level: level at which the bend has to be significant.
        extrapolation: mean log residual of the largest half-decade under the law fitted without it, and its distance in
            ln x; None if too few levels remain.
        rivals: the power law, and with an offset of each group or shared by all, along a leading coordinate.
        wild: second 95 % interval of S_all. local: (x, slope, 95 % low, high) between levels half a decade apart.
        fitted: [C] means under the power law.
    """

    whole: Estimate
    low: Estimate
    top: Estimate
    early: Estimate
    late: Estimate
    reach: Estimate
    bend: Estimate
    middle: float
    largest: float
    gap: float
    to_end: float
    bend_level: float
    extrapolation: tuple[float, float] | None
    rivals: tuple[model_selection.LawFit, ...]
    wild: Interval
    local: tuple[tuple[float, float, float, float], ...]
    fitted: np.ndarray

    @property
    def bent(self) -> bool:
        """|q| exceeds .15 and its interval excludes 0: no single exponent describes the window."""
        return is_bent(self.bend, self.bend_level)

    def extrapolates(self, margin: float) -> bool:
        """The held-out half-decade is predicted within margin x (distance in ln x)."""
        return self.extrapolation is not None and abs(self.extrapolation[0]) <= margin * self.extrapolation[1]

    @property
    def offset(self) -> model_selection.LawFit | None:
        """An offset of either sign that beats the power law (see `model_selection.best_rival`), or None."""
        return model_selection.best_rival(self.rivals) if self.rivals else None

    def exponents_beside_an_offset(self) -> list[float]:
        """The exponent where an offset of either sign is fitted with it, of each group or shared by all."""
        return [f.exponent for f in self.rivals if f.name in model_selection.OFFSETS]

    def reaches(self, limit: float) -> float | None:
        """N-dagger: the level at which the plateau reading's local slope reaches `limit`; None if it never does."""
        if not self.late.value > self.early.value:
            return None
        beyond = plateau_distance(self.early.value, self.late.value, self.gap, self.to_end, limit)
        return self.largest * float(np.exp(beyond)) if np.isfinite(beyond) else None


def near_middle(levels: np.ndarray) -> float:
    """The inner level nearest to the middle of a sorted range; the lower one of two at the same distance."""
    inner = levels[1:-1]
    distance = np.abs(inner - 0.5 * (levels[0] + levels[-1]))
    return float(inner[np.flatnonzero(distance <= distance.min() + EPSILON)[0]])


def plateau_slope(early: np.ndarray | float, late: np.ndarray | float, gap: float, to_end: float) -> np.ndarray:
    """S_reach: the mean slope over the half-decade beyond the range.

    If the slope flattens (late > early, both negative) an additive plateau under the decay explains it: y = E + B x^-c
    has local slope -c (1 - phi) with phi = E / y, and logit(phi) grows by c per unit of ln x. The two local slopes
    determine c. Steepening earns no credit: the late slope is taken.

    Args:
        early, late: [B] local slopes at the middles of the two parts of the top half.
        gap: distance of these middles in ln x. to_end: from the second middle to the end of the range.
    """
    early, late = np.atleast_1d(early).astype(np.float64), np.atleast_1d(late).astype(np.float64)
    result = late.copy()
    flattens = np.isfinite(early) & np.isfinite(late) & (late < 0) & (late > early * (1 - EPSILON))
    flattens &= -early > -late * (1 + EPSILON)
    if flattens.any():
        decay, log_odds = _plateau(-early[flattens], -late[flattens], gap, to_end)
        phi = special.expit(log_odds)
        result[flattens] = np.log(phi + (1 - phi) * np.exp(-decay * HALF_DECADE)) / HALF_DECADE
    return result


def plateau_distance(early: float, late: float, gap: float, to_end: float, limit: float) -> float:
    """ln x beyond the end of the range at which the plateau reading has local slope `limit`; infinite if never.

    Negative where the reading is already slower at the end of the range.
    """
    if not (late < 0 and limit < 0 and -early > -late * (1 + EPSILON)):
        return float("inf")
    decay, log_odds = (float(v[0]) for v in _plateau(np.array([-early]), np.array([-late]), gap, to_end))
    if decay + limit <= 0:
        return float("-inf")
    return float((np.log((decay + limit) / -limit) - log_odds) / decay)


def _plateau(first: np.ndarray, second: np.ndarray, gap: float, to_end: float) -> tuple[np.ndarray, np.ndarray]:
    """The exponent c and the log odds of the plateau's share at the range's end, by bisection in ln(c / first - 1).

    Log odds, because a share within rounding of 1 has none left.
    """

    def mismatch(decay: np.ndarray) -> np.ndarray:
        return np.log((decay - second) / second) - np.log((decay - first) / first) - decay * gap

    low, high = np.full(len(first), -30.0), np.full(len(first), 10.0)
    for _ in range(80):
        centre = 0.5 * (low + high)
        above = mismatch(first * (1 + np.exp(centre))) > 0
        low, high = np.where(above, centre, low), np.where(above, high, centre)
    decay = first * (1 + np.exp(0.5 * (low + high)))
    return decay, np.log((decay - second) / second) + decay * to_end


@dataclass(frozen=True)
class _Measured:
    """Cells with the weights and draws that every slope of the window shares."""

    cells: Cells
    log_x: np.ndarray
    group: np.ndarray
    sd: np.ndarray
    weights: np.ndarray
    refit: bool

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Cells.distinct_means`."""
        return self.cells.distinct_means(self.weights)

    def fits(self, law: PowerLaw, value: float, influence: np.ndarray) -> np.ndarray:
        """[B] the slope in every draw: fitted again, or to first order where the table is too large for that."""
        if self.refit:
            draws, which = self.distinct
            return law.fit(draws, value)[which]
        cells = self.cells
        deviations = (cells.sums - cells.counts * cells.mean) / cells.replicates
        return value + self.weights @ (deviations @ influence)

    def slope(self, use: np.ndarray) -> tuple[Estimate, np.ndarray, PowerLaw]:
        """The slope over some cells, its bootstrap draws, and the problem that was solved."""
        law = PowerLaw.of(self.log_x, self.group, self.sd, use)
        value = float(law.fit(self.cells.mean[None])[0])
        if not np.isfinite(value) or not len(self.weights):
            return Estimate(value, float("nan"), 0.0), np.full(len(self.weights), np.nan), law
        influence = law.influence(self.cells.mean, value)
        draws = self.fits(law, value, influence)
        return self.estimate(value, draws, influence), draws, law

    def estimate(self, value: float, draws: np.ndarray, influence: np.ndarray) -> Estimate:
        error = bootstrap_standard_error(draws, self.cells.clusters)
        return Estimate(value, error, self.cells.effective_clusters(influence * self.sd))


def look(
    cells: Cells,
    name: str,
    others: Sequence[str],
    *,
    leading: bool,
    brief: bool = False,
) -> Window | None:
    """Measure the window of one coordinate.

    Args:
        cells: cell means by design point and seed. name: the coordinate, a column of `cells.levels`.
        others: the other design columns; each combination of their levels gets its own constant.
        leading: laws extrapolate along this coordinate (N and T): held-out prediction and offsets are tested, and 95 %
            decides about a bend. Otherwise (r) the window is too short for that, and 99 % decides.
        brief: for simulations, where hundreds are looked at: draws to first order, no rival laws, no held-out
            prediction (so that no rule says CONSISTENT), no second interval, no local slopes.

    Returns:
        None if no combination of the others has two levels of the coordinate.
    """
    x = cells.levels[name].to_numpy(dtype=np.float64)
    log_x = np.log(x)
    group = cells.groups(others)
    sd = _deviation(cells, log_x, others)
    weights = cells.draw_seeds(BRIEF_DRAWS if brief else DRAWS, generator(1))
    refit = not brief and weights.shape[0] * cells.size <= LARGEST_REFIT
    measured = _Measured(cells, log_x, group, sd, weights, refit)

    whole, _, law = measured.slope(np.ones(cells.size, dtype=bool))
    if not law.determined:
        return None
    fitted = np.full(cells.size, np.nan)
    if np.isfinite(whole.value):
        fitted = law.predict(cells.mean, whole.value, log_x, group)
    levels = np.unique(log_x)
    low = top = early = late = reach = bend = UNKNOWN
    middle, gap, to_end = float("nan"), 0.0, 0.0
    if len(levels) >= 3:
        middle = near_middle(levels)
        low, low_draws, _ = measured.slope(log_x <= middle + EPSILON)
        top, top_draws, _ = measured.slope(log_x >= middle - EPSILON)
        bend = _combined(top.value - low.value, top_draws - low_draws, (top, low), cells)
        upper = levels[levels >= middle - EPSILON]
        if len(upper) >= 3:
            split = near_middle(upper)
            early, early_draws, _ = measured.slope((log_x >= middle - EPSILON) & (log_x <= split + EPSILON))
            late, late_draws, _ = measured.slope(log_x >= split - EPSILON)
            ends = (middle, split, float(levels[-1]))
        else:
            early, early_draws, late, late_draws = low, low_draws, top, top_draws
            ends = (float(levels[0]), middle, float(levels[-1]))
        first, second = 0.5 * (ends[0] + ends[1]), 0.5 * (ends[1] + ends[2])
        gap, to_end = second - first, float(levels[-1]) - second
        reach = _combined(
            float(plateau_slope(early.value, late.value, gap, to_end)[0]),
            plateau_slope(early_draws, late_draws, gap, to_end),
            (early, late),
            cells,
        )
    window = Window(
        whole, low, top, early, late, reach, bend, float(np.exp(middle)), float(np.exp(levels[-1])), gap, to_end,
        0.95 if leading else 0.99, None, (), UNDEFINED if brief else _wild(measured, law, whole),
        () if brief else _local(measured, levels), fitted,
    )  # fmt: skip
    return with_rivals(window, cells, name, others) if leading and not brief else window


def with_rivals(window: Window, cells: Cells, name: str, others: Sequence[str]) -> Window:
    """The window with its rival laws and the held-out prediction, where there are levels enough. Args as in `look`."""
    x = cells.levels[name].to_numpy(dtype=np.float64)
    if len(np.unique(x)) < 3 or not np.isfinite(window.whole.value):
        return window
    group, sd = cells.groups(others), _deviation(cells, np.log(x), others)
    return replace(
        window,
        extrapolation=model_selection.extrapolation_error(x, group, cells.mean, sd),
        rivals=tuple(model_selection.compare(x, group, cells.mean, sd)),
    )


def _deviation(cells: Cells, log_x: np.ndarray, others: Sequence[str]) -> np.ndarray:
    """[C] standard deviations of the cell means up to a common factor, smoothed over the design."""
    columns = [np.ones(cells.size), log_x, *(np.log(v) for v in _positive_columns(cells, others))]
    sd = smooth_deviation(np.column_stack(columns), cells.mean, cells.sd)
    return sd / np.sqrt(cells.replicates / np.mean(cells.replicates))


def _positive_columns(cells: Cells, others: Sequence[str]) -> list[np.ndarray]:
    """Numeric design columns that vary and have a logarithm: regressors of the noise level."""
    found = []
    for name in others:
        column = cells.levels[name]
        if column.dtype.kind == "f" and column.notna().all() and (column > 0).all() and column.nunique() > 1:
            found.append(column.to_numpy(dtype=np.float64))
    return found


def _combined(value: float, draws: np.ndarray, parts: Sequence[Estimate], cells: Cells) -> Estimate:
    """An estimate made of slopes that are bootstrapped together; it has the seeds of the part that has fewest."""
    return Estimate(value, bootstrap_standard_error(draws, cells.clusters), min(p.clusters for p in parts))


def _wild(measured: _Measured, law: PowerLaw, whole: Estimate) -> Interval:
    """Wild cluster bootstrap-t interval of S_all: the second opinion beside the first."""
    cells = measured.cells
    if not np.isfinite(whole.value):
        return Interval(float("nan"), float("nan"))
    influence = law.influence(cells.mean, whole.value)
    mean = law.predict(cells.mean, whole.value, measured.log_x, measured.group)
    deviations = (cells.sums - cells.counts * np.nan_to_num(mean)) / cells.replicates
    return wild_cluster_interval(whole.value, deviations @ influence, 0.95, generator(2))


def _local(measured: _Measured, levels: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    """Slopes between neighbouring levels at least half a decade apart."""
    chosen = [0]
    for i in range(1, len(levels)):
        if levels[i] - levels[chosen[-1]] >= HALF_DECADE - EPSILON:
            chosen.append(i)
    found = []
    for a, b in pairwise(chosen):
        at = np.isclose(measured.log_x, levels[a], atol=EPSILON) | np.isclose(measured.log_x, levels[b], atol=EPSILON)
        slope, _, _ = measured.slope(at)
        interval = slope.interval(0.95)
        found.append((float(np.exp(0.5 * (levels[a] + levels[b]))), slope.value, interval.low, interval.high))
    return tuple(found)
