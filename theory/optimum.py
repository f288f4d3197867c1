"""The rank that minimises the risk at each N, and its growth with N.

Per N a cubic in ln r is fitted to the seven ranks around the smallest mean risk (a parabola would be off by
-(beta - alpha) w^2 / 10 on a window of half-width w, and a fixed window would bias the exponent). Optima too close to
the edge of the grid, or of the range in which the asymptotics hold, are censored: known only to lie beyond a limit.
The whole pipeline is repeated in every bootstrap draw of the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from theory.cells import Cells
from theory.intervals import (
    DRAWS,
    Interval,
    bootstrap_standard_error,
    cluster_weights,
    difference_interval,
    generator,
    t_interval,
)

HALF_WINDOW = 3  # three ranks on each side of the smallest mean risk
SMALLEST_RANK = 4.0  # below, discreteness dominates
LARGEST_SHARE = 8.0  # above d/8 all remaining components become worthwhile together and r* jumps
CENSORED_SHARE = 1.0 / 3.0
#: Scale below which the residual spread of ln r* is not resolved (a hundredth of a rank at r* = 1).
SPREAD_FLOOR = 0.01


@dataclass(frozen=True)
class Optima:
    """Minimisers of the risk by N.

    Attributes:
        samples: [K] the values of N.
        log_rank: [K] ln r* on the full data; draws: [B, K] in each bootstrap draw (inside the grid, never beyond).
        low, high: [K] logarithms of the limits outside which an optimum is censored.
        interior: [K] whether the risk at the largest rank lies above the minimum (95 % interval over seeds).
        weights: [B, S] the bootstrap weights of the seeds.
        clusters: number of seeds S.
    """

    samples: np.ndarray
    log_rank: np.ndarray
    draws: np.ndarray
    low: np.ndarray
    high: np.ndarray
    interior: np.ndarray
    weights: np.ndarray
    clusters: int

    def status(self, log_rank: np.ndarray) -> np.ndarray:
        """-1, 0, +1 for optima below, inside, above the limits (same shape as the argument)."""
        return np.where(log_rank < self.low - 1e-9, -1, np.where(log_rank > self.high + 1e-9, 1, 0))

    @property
    def censored(self) -> np.ndarray:
        """[K] on the full data."""
        return self.status(self.log_rank) != 0

    def interval(self, column: int, level: float = 0.95) -> Interval:
        """Interval of r* at one N (not defined without replication)."""
        error = bootstrap_standard_error(self.draws[:, column], self.clusters)
        log_interval = t_interval(float(self.log_rank[column]), error, self.clusters, level)
        return Interval(float(np.exp(log_interval.low)), float(np.exp(log_interval.high)))


def local_minimum(log_rank: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """[B] minimiser in ln r of a local cubic, for many risk curves on one grid of ranks.

    Args:
        log_rank: [m] increasing, m >= 4. risk: [B, m]; fitted on the log scale where a curve is positive throughout
            (the logarithm of a sum of two powers is nearly polynomial), else as it is.
    """
    positive = (risk > 0).all(axis=1, keepdims=True)
    height = np.where(positive, np.log(np.where(risk > 0, risk, 1.0)), risk)
    lowest = np.argmin(height, axis=1)
    minimiser = np.empty(len(risk))
    for centre in np.unique(lowest):
        rows = np.flatnonzero(lowest == centre)
        first, last = max(0, centre - HALF_WINDOW), min(len(log_rank), centre + HALF_WINDOW + 1)
        middle = log_rank[centre]
        x = log_rank[first:last] - middle
        degree = min(3, len(x) - 2)
        powers = np.vander(x, degree + 1, increasing=True)
        coefficients = np.zeros((len(rows), 4))
        coefficients[:, : degree + 1] = height[rows, first:last] @ np.linalg.pinv(powers).T
        minimiser[rows] = middle + _cubic_minimum(coefficients, float(x[0]), float(x[-1]))
    return minimiser


def _cubic_minimum(c: np.ndarray, left: float, right: float) -> np.ndarray:
    """[B] where c0 + c1 x + c2 x^2 + c3 x^3 is smallest on [left, right]."""
    discriminant = np.square(c[:, 2]) - 3.0 * c[:, 1] * c[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(discriminant, 0.0))
        # The root with positive curvature, in the form without cancellation.
        inner = np.where(c[:, 2] >= 0, -c[:, 1] / (c[:, 2] + root), (root - c[:, 2]) / (3.0 * c[:, 3]))
    usable = (discriminant > 0) & (inner > left) & (inner < right)
    candidates = np.column_stack([np.where(usable, inner, left), np.full(len(c), left), np.full(len(c), right)])
    values = sum(c[:, [k]] * candidates**k for k in range(4))
    return candidates[np.arange(len(c)), np.argmin(values, axis=1)]


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
    enough = cells.clusters >= 2
    weights = cluster_weights(cells.clusters, draws, generator(3)) if enough else np.empty((0, cells.clusters))
    bootstrap = cells.bootstrap_means(weights)
    by_seed = cells.cluster_means()
    log_rank, low, high, interior = (np.empty(len(sizes)) for _ in range(4))
    drawn = np.empty((len(weights), len(sizes)))
    for k, n in enumerate(sizes):
        at = np.flatnonzero(samples == n)
        at = at[np.argsort(rank[at])]
        grid = np.log(rank[at])
        log_rank[k] = local_minimum(grid, cells.mean[None, at])[0]
        # A draw without some cell (unbalanced seeds) uses the full mean there.
        means = np.where(np.isfinite(bootstrap[:, at]), bootstrap[:, at], cells.mean[at])
        drawn[:, k] = local_minimum(grid, means) if enough else drawn[:, k]
        low[k] = max(np.log(SMALLEST_RANK), grid[1])
        high[k] = min(np.log(dimension / LARGEST_SHARE), grid[-2])
        best = at[np.argmin(cells.mean[at])]
        interior[k] = best != at[-1] and difference_interval(by_seed[:, at[-1]], by_seed[:, best], 0.95).low > 0
    return Optima(sizes, log_rank, drawn, low, high, interior.astype(bool), weights, cells.clusters)


@dataclass(frozen=True)
class Growth:
    """ln r* = intercept + rho ln N.

    Attributes:
        used: [K] which N enter. by_censoring: interval-censored regression was needed.
        beta: [p]; draws: [B, p] (intercept, rho, and a bend if asked for). centre: ln N is measured from here.
    """

    used: np.ndarray
    by_censoring: bool
    beta: np.ndarray
    draws: np.ndarray
    centre: float

    @property
    def rho(self) -> float:
        return float(self.beta[1])

    def predict(self, log_samples: float) -> tuple[float, np.ndarray]:
        """ln r* at ln N: on the full data and in every draw."""
        x = np.array([1.0, log_samples - self.centre])
        return float(x @ self.beta[:2]), self.draws[:, :2] @ x


def fit_growth(optima: Optima, extra: np.ndarray | None = None, keep: np.ndarray | None = None) -> Growth | None:
    """Regress ln r* on ln N.

    With at least a third of the N censored all enter an interval-censored regression; otherwise the uncensored ones
    are regressed. Returns None if fewer than two (three with censoring) uncensored optima remain.

    Args:
        extra: [K] a further regressor (the hinge of a drift test). keep: [K] restrict to some N.
    """
    keep = np.ones(len(optima.samples), dtype=bool) if keep is None else keep
    censored = optima.censored
    by_censoring = bool(np.mean(censored) >= CENSORED_SHARE - 1e-9)
    used = keep if by_censoring else keep & ~censored
    x = np.log(optima.samples)
    centre = float(x.mean())
    columns = [np.ones_like(x), x - centre] + ([] if extra is None else [extra])
    design = np.column_stack(columns)[used]
    needed = max(design.shape[1], 3 if by_censoring else 2)
    if np.sum(used & ~censored) < needed or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    low, high = optima.low[used], optima.high[used]
    stacked = np.vstack([optima.log_rank[None, used], optima.draws[:, used]])
    fitted = censored_regression(design, stacked, low, high) if by_censoring else stacked @ np.linalg.pinv(design).T
    return Growth(used, by_censoring, fitted[0], fitted[1:], centre)


def censored_regression(
    design: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, iterations: int = 400
) -> np.ndarray:
    """[B, p] maximum likelihood of y = design @ beta + normal noise; beyond its limits a y is known only to lie there.

    Expectation-maximisation (Tobit): censored values are replaced by their conditional means given the limit.

    Args:
        design: [K, p]; y: [B, K]; low, high: [K].
    """
    solve = np.linalg.pinv(design).T
    above, below = y > high + 1e-9, y < low - 1e-9
    inside = ~(above | below)
    limit = np.where(above, high, low)
    filled = np.where(inside, y, limit)
    sign = np.where(above, 1.0, -1.0)
    beta = filled @ solve
    spread = np.full((len(y), 1), 0.3)
    degrees = max(design.shape[0] - design.shape[1], 1)
    for _ in range(iterations):
        mean = beta @ design.T
        # Inverse Mills ratio: how far a normal value known to lie beyond the limit exceeds its mean.
        z = sign * (limit - mean) / spread
        mills = np.exp(stats.norm.logpdf(z) - stats.norm.logsf(z))
        filled = np.where(inside, y, mean + sign * spread * mills)
        variance = np.where(inside, 0.0, 1.0 + z * mills - np.square(mills))
        updated = filled @ solve
        residual = np.square(filled - updated @ design.T) + np.square(spread) * np.maximum(variance, 0.0)
        spread = np.maximum(np.sqrt(residual.sum(axis=1, keepdims=True) / (degrees + design.shape[1])), SPREAD_FLOOR)
        moved = float(np.abs(updated - beta).max())
        beta = updated
        if moved < 1e-7:
            break
    return beta


def censoring_words(optima: Optima, which: Sequence[bool] | np.ndarray) -> str:
    """`N = 64 (r* <= 4), N = 4096 (r* >= 24)`: the censored optima among `which`."""
    status = optima.status(optima.log_rank)
    words = [
        f"N = {optima.samples[k]:g} (r* {'<=' if status[k] < 0 else '>='} "
        f"{np.exp(optima.low[k] if status[k] < 0 else optima.high[k]):.3g})"
        for k in range(len(status))
        if which[k] and status[k] != 0
    ]
    return ", ".join(words)
