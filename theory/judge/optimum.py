"""The rank that minimises the risk at each N, and its growth with N.

Per N a quartic in ln r goes through the five ranks around the smallest mean risk. (A parabola would be off by
-(beta - alpha) w^2 / 10 on a window of half-width w. A cubic fitted to seven ranks steepens the exponent of a finite
matrix by up to .05, and its interval covers the exact one in half of the draws, the quartic's in nineteen of twenty.)
The whole pipeline is repeated in every bootstrap draw of the seeds. Optima that were seen inside the trusted window
enter a regression; the others are one-sided limits in words and in the figure, never numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval

from theory.judge.cells import Cells
from theory.judge.intervals import (
    DRAWS,
    Interval,
    at_least,
    bootstrap_standard_error,
    difference_interval,
    generator,
    spending,
    t_interval,
)
from theory.judge.window import UNKNOWN, Estimate, is_bent, near_middle

NEIGHBOURS = 2  # ranks on each side of the smallest mean risk
SEARCH = 201  # points at which the quartic is evaluated between the neighbours
SMALLEST_RANK = 4.0  # below, discreteness dominates
LARGEST_SHARE = 4.0  # above d/4 the remaining components become worthwhile together and r* jumps
MIN_OPTIMA = 4
MIN_DECADES = 0.9  # of N at which the optimum was seen
SHIFTS = (0.0, 0.5)  # a sum over components k > r is an integral from r + 1/2
ALLOWANCE = 0.5  # share of the finite-size correction that may still be missing from it
#: By N: in the regression; seen but outside the window; known only to lie below or above an edge of the grid; no larger
#: rank is clearly worse.
USED, OUTSIDE, AT_MOST, AT_LEAST, UNRESOLVED = "used", "outside", "at_most", "at_least", "unresolved"


@dataclass(frozen=True)
class Optima:
    """Minimisers of the risk by N.

    Attributes:
        samples: [K] the values of N.
        log_rank: [K] ln r* on the full data; draws: [B, K] in each bootstrap draw (inside the grid, never beyond).
        grid_low, grid_high: [K] logarithms of the second and the last but one rank: an optimum beyond is not seen.
        low, high: [K] logarithms of the limits of the trusted window; high_of_matrix: ln(d/4), whatever the grid.
        interior: [K] whether the risk at the largest rank lies above the minimum (95 % interval over seeds).
        weights: [B, S] the bootstrap weights of the seeds. clusters: number of seeds S; effective: see
            `Cells.effective_clusters`.
    """

    samples: np.ndarray
    log_rank: np.ndarray
    draws: np.ndarray
    grid_low: np.ndarray
    grid_high: np.ndarray
    low: np.ndarray
    high: np.ndarray
    high_of_matrix: float
    interior: np.ndarray
    weights: np.ndarray
    clusters: int
    effective: float

    @property
    def status(self) -> list[str]:
        """By N, one of the words above."""
        found = []
        for k, value in enumerate(self.log_rank):
            if not at_least(value, self.grid_low[k]):
                found.append(AT_MOST)
            elif not at_least(self.grid_high[k], value):
                found.append(AT_LEAST)
            elif not self.interior[k]:
                found.append(UNRESOLVED)
            else:
                found.append(USED if at_least(value, self.low[k]) and at_least(self.high[k], value) else OUTSIDE)
        return found

    @property
    def used(self) -> np.ndarray:
        """[K] optima that were seen inside the window."""
        return np.array([word == USED for word in self.status], dtype=bool)

    def interval(self, column: int, level: float = 0.95) -> Interval:
        """Interval of r* at one N (not defined without replication)."""
        error = bootstrap_standard_error(self.draws[:, column], self.clusters)
        return t_interval(float(self.log_rank[column]), error, self.effective, level).exponential()

    def left_out(self) -> list[str]:
        """Optima that enter no regression, in words: `r*(64) <= 4`."""
        words = []
        for k, (n, word) in enumerate(zip(self.samples, self.status, strict=True)):
            if word == AT_MOST:
                words.append(f"r*({n:g}) <= {np.exp(self.grid_low[k]):.3g}")
            elif word == AT_LEAST:
                words.append(f"r*({n:g}) >= {np.exp(self.grid_high[k]):.3g}")
            elif word == OUTSIDE:
                words.append(f"r*({n:g}) = {np.exp(self.log_rank[k]):.3g}, outside the window")
            elif word == UNRESOLVED:
                words.append(f"r*({n:g}) not resolved: no larger rank is clearly worse")
        return words


def local_minimum(log_rank: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """[B] minimiser in ln r of the quartic through five ranks, for many risk curves on one grid of ranks.

    The five ranks lie around the lowest risk, and the minimum is sought between that rank's neighbours.

    Args:
        log_rank: [m] increasing, m >= 4. risk: [B, m]; interpolated on the log scale where a curve is positive
            throughout (the logarithm of a sum of two powers is nearly polynomial), else as it is.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.where((risk > 0).all(axis=1, keepdims=True), np.log(risk), risk)
    lowest, count = np.argmin(height, axis=1), min(len(log_rank), 2 * NEIGHBOURS + 1)
    minimiser = np.empty(len(risk))
    for centre in np.unique(lowest):
        rows = np.flatnonzero(lowest == centre)
        first = min(max(0, centre - NEIGHBOURS), len(log_rank) - count)
        ranks = slice(first, first + count)
        x = log_rank[ranks] - log_rank[centre]
        quartic = np.linalg.solve(np.vander(x, increasing=True), height[rows, ranks].T)  # [count, rows]
        ends = np.array([log_rank[max(centre - 1, 0)], log_rank[min(centre + 1, len(log_rank) - 1)]]) - log_rank[centre]
        grid = np.linspace(ends[0], ends[1], SEARCH)
        at = grid[np.argmin(polyval(grid, quartic), axis=1)]
        slope, spacing = polyder(quartic), grid[1] - grid[0]
        for _ in range(3):  # Newton on the derivative, downhill by a step of the grid at most
            bend = np.maximum(polyval(at, polyder(slope), tensor=False), 1e-300)
            with np.errstate(over="ignore"):
                step = np.clip(polyval(at, slope, tensor=False) / bend, -spacing, spacing)
            at = np.clip(at - step, *ends)
        minimiser[rows] = log_rank[centre] + at
    return minimiser


@spending(1.0)  # which optima are seen is a gate, not a verdict
def find_optima(cells: Cells, dimension: float = np.inf, draws: int = DRAWS) -> Optima | None:
    """Locate r*(N) for every N with at least five ranks.

    Args:
        cells: risk by (rank, samples). dimension: d, the smallest side of the weight matrix where known.

    Returns:
        None if no N has five ranks.
    """
    rank, samples = (cells.levels[c].to_numpy(dtype=np.float64) for c in ("rank", "samples"))
    sizes = np.array([n for n in np.unique(samples) if np.sum(samples == n) >= 5])
    if not len(sizes):
        return None
    weights = cells.draw_seeds(draws, generator(3))
    means, which = cells.distinct_means(weights)  # draws that repeat are fitted once
    means = cells.filled(means)
    by_seed = cells.cluster_means()
    log_rank, grid_low, grid_high, interior = (np.empty(len(sizes)) for _ in range(4))
    drawn = np.empty((len(weights), len(sizes)))
    for k, n in enumerate(sizes):
        at = np.flatnonzero(samples == n)
        at = at[np.argsort(rank[at])]
        grid = np.log(rank[at])
        (log_rank[k],) = local_minimum(grid, cells.mean[None, at])
        drawn[:, k] = local_minimum(grid, means[:, at])[which]
        grid_low[k], grid_high[k] = grid[1], grid[-2]
        best = at[np.argmin(cells.mean[at])]
        interior[k] = difference_interval(by_seed[:, at[-1]], by_seed[:, best], 0.95).low > 0
    low, high_of_matrix = np.maximum(np.log(SMALLEST_RANK), grid_low), float(np.log(dimension / LARGEST_SHARE))
    return Optima(
        sizes, log_rank, drawn, grid_low, grid_high, low, np.minimum(high_of_matrix, grid_high), high_of_matrix,
        interior.astype(bool), weights, cells.clusters, cells.effective_clusters(),
    )  # fmt: skip


@dataclass(frozen=True)
class RankCost:
    """What a rank costs, as far as the table says.

    Attributes:
        dimension: d, the smaller side of the weight matrix; infinite where the shape is not given or follows the rank.
        sizes: d_in + d_out where p = r (d_in + d_out - r), so that the marginal cost of a rank falls; None where the
            cost is linear in r (the width of a clone) or the shape is not known.
    """

    dimension: float = float("inf")
    sizes: float | None = None

    @property
    def shape_known(self) -> bool:
        return bool(np.isfinite(self.dimension))


@dataclass(frozen=True)
class Growth:
    """How r* grows over the N at which it was seen inside the window.

    Attributes:
        window: exponent in the window, least squares of ln r* on ln N; draws: [B] its bootstrap draws.
        corrected: exponents after the correction for the finite matrix, one per shift h; empty where it does not apply.
        low, top, bend: exponents over the two halves of the window, which share the N nearest to its log-midpoint, and
            their difference; of the corrected growth (h = 1/2) where there is one.
        cost: what a rank costs.
        intercept, corrected_intercept: ln r* at ln N = 0 on the window's line and on the corrected one with h = 0.
    """

    window: Estimate
    draws: np.ndarray
    corrected: tuple[Estimate, ...]
    low: Estimate
    top: Estimate
    bend: Estimate
    cost: RankCost
    intercept: float
    corrected_intercept: float

    @property
    def bent(self) -> bool:
        """The exponents of the halves differ by more than .15, and significantly: no single exponent describes r*."""
        return is_bent(self.bend, 0.95)

    def line(self, samples: np.ndarray) -> np.ndarray:
        """r* on the window's line at N = samples [K]."""
        return np.exp(self.intercept + self.window.value * np.log(samples))

    def corrected_line(self, samples: np.ndarray) -> np.ndarray:
        """r* on the corrected line (h = 0): the root of ln r = a + rho (ln N - ln(1 - 2 r / (d_in + d_out)))."""
        sizes = self.cost.sizes
        if sizes is None:
            return np.full(len(samples), np.nan)
        low, high = np.full(len(samples), 1e-3), np.full(len(samples), 0.499 * sizes)
        for _ in range(60):
            rank = np.sqrt(low * high)
            shifted = np.log(samples) - np.log1p(-2 * rank / sizes)
            short = np.log(rank) < self.corrected_intercept + self.corrected[0].value * shifted
            low, high = np.where(short, rank, low), np.where(short, high, rank)
        return np.sqrt(low * high)

    def both(self, level: float) -> Interval:
        """Union of the corrected exponents' intervals (that of the window where no correction applies)."""
        parts = [e.interval(level) for e in self.corrected or (self.window,)]
        return Interval(min(p.low for p in parts), max(p.high for p in parts))


def fit_growth(optima: Optima, cost: RankCost) -> Growth | None:
    """Regress ln r* on ln N over the optima that were seen, with and without the correction for the finite matrix.

    The correction regresses ln(r* + h) on ln N - ln(1 - 2 r* / (d_in + d_out)): the marginal cost of a rank is
    d_in + d_out - 2 r, so that r* accelerates as it approaches the matrix, and discreteness steepens it at the low end.

    Returns:
        None with fewer than two usable optima.
    """
    used = optima.used
    if used.sum() < 2:
        return None
    x = np.log(optima.samples[used])
    ranks = np.exp(np.vstack([optima.log_rank[None, used], optima.draws[:, used]]))

    def slopes(y: np.ndarray, x: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """[1 + B] least-squares slopes over some of the optima; the first is that of the full data."""
        x, y = np.broadcast_to(x, y.shape)[:, part], y[:, part]
        centred = x - x.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sum(centred * y, axis=1) / np.sum(centred**2, axis=1)

    def estimate(found: np.ndarray) -> Estimate:
        return Estimate(float(found[0]), bootstrap_standard_error(found[1:], optima.clusters), optima.effective)

    raw = slopes(np.log(ranks), x)
    y_mean = float(optima.log_rank[used].mean())
    corrected: tuple[Estimate, ...] = ()
    y, shifted, corrected_intercept = np.log(ranks), x, float("nan")
    if cost.sizes is not None:
        shifted = x - np.log(np.maximum(1.0 - 2.0 * ranks / cost.sizes, 0.05))
        corrected = tuple(estimate(slopes(np.log(ranks + h), shifted)) for h in SHIFTS)
        corrected_intercept = y_mean - corrected[0].value * float(shifted[0].mean())
        y = np.log(ranks + SHIFTS[-1])
    low = top = bend = UNKNOWN
    if len(x) >= 3:
        middle = int(np.argmin(np.abs(x - near_middle(x))))
        lower, upper = slopes(y, shifted, slice(middle + 1)), slopes(y, shifted, slice(middle, None))
        low, top, bend = estimate(lower), estimate(upper), estimate(upper - lower)
    intercept = y_mean - float(raw[0]) * float(x.mean())
    return Growth(estimate(raw), raw[1:], corrected, low, top, bend, cost, intercept, corrected_intercept)
