"""Profile-likelihood intervals: the second opinion beside the bootstrap for non-linear parameters."""

from __future__ import annotations

import numpy as np
from scipy import stats

from theory.laws.least_squares import Loss, Residual, minimise

POINTS = 25
REACH = 5.0  # bootstrap standard deviations to each side


def profile_intervals(
    residual: Residual, theta: np.ndarray, loss: Loss, draws: np.ndarray, rows: int, largest_step: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Limits [p], [p] at which the re-optimised loss exceeds its minimum by t_{n-p}^2 / 2 (95 %).

    The loss is put on the scale of a log likelihood by Huber's variance, mean psi^2 / mean psi'.

    Args:
        residual: of one batch member at a time, all on the same data. theta: [p] the optimum.
        draws: [B, p] bootstrap draws: the search range, and the direction in which the other parameters follow.
        rows: number of independent rows n.

    Returns:
        low and high; infinite where the loss never rises far enough, NaN without any noise.

    Source: profile likelihood with a t cut-off (theory page, "Intervals").
    """
    p = len(theta)
    r = residual(theta[None, :], np.zeros(1, dtype=np.int64))[0][0]
    minimum = float(np.sum(loss.rho(r)))
    influence = loss.weight(r) * r
    curvature = float(np.mean(loss.weight(r) >= 1.0))
    variance = float(np.sum(influence**2)) / (rows - p) / max(curvature, 1e-3)
    if variance <= 0:
        return np.full(p, np.nan), np.full(p, np.nan)
    cut = float(stats.t.ppf(0.975, rows - p) ** 2)
    centred = draws - theta
    distances = np.linspace(0.0, REACH, POINTS + 1)[1:]
    limits = np.empty((2, p))
    for k in range(p):
        along = centred.T @ centred[:, k] / max(float(centred[:, k] @ centred[:, k]), 1e-300)
        for end, side in enumerate((-1.0, 1.0)):
            shift = side * distances * float(np.std(draws[:, k]))
            start = theta + shift[:, None] * along
            start[:, k] = theta[k] + shift
            fixed = np.zeros_like(start, dtype=bool)
            fixed[:, k] = True
            found = minimise(
                residual, start, loss=loss, fixed=fixed, iterations=100, ftol=1e-9, largest_step=largest_step
            )
            deviance = np.maximum.accumulate(2.0 * (found.objective - minimum) / variance)
            limits[end, k] = theta[k] + _crossing(shift, deviance, cut)
    return limits[0], limits[1]


def _crossing(shift: np.ndarray, deviance: np.ndarray, cut: float) -> float:
    """Where an increasing deviance crosses the cut (its square root interpolated); infinite if it never does.

    NaN without a range to search (draws that do not vary, on data without noise).
    """
    if shift[-1] == 0:
        return float("nan")
    distance = np.concatenate([[0.0], shift])
    root = np.sqrt(np.maximum(np.concatenate([[0.0], deviance]), 0.0))
    above = np.flatnonzero(root >= np.sqrt(cut))
    if not len(above):
        return float(np.sign(shift[-1]) * np.inf)
    i = int(above[0])
    share = (np.sqrt(cut) - root[i - 1]) / max(root[i] - root[i - 1], 1e-300)
    return float(distance[i - 1] + share * (distance[i] - distance[i - 1]))
