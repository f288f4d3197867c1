"""E6: stochastic gradient descent with exact second moments, where the bound of claim 1 can be checked to the digit.

A quadratic f(x) = (1/2) sum_i lambda_i x_i^2 with gradient noise of variance sigma_i^2 per coordinate has the exact
recursion m_{t+1} = (1 - eta lambda)^2 m_t + eta^2 sigma^2 for m_t = E x_t^2, so the mean squared gradient norm over T steps
needs no Monte-Carlo.

Source: theory page, sections A1, A4 and E6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Quadratic:
    """f(x) = (1/2) sum lambda_i x_i^2, noise variance sigma_i^2 per coordinate, start x_1."""

    curvature: np.ndarray
    noise: np.ndarray
    start: np.ndarray

    @property
    def smoothness(self) -> float:
        """L, the largest curvature."""
        return float(self.curvature.max())

    @property
    def variance(self) -> float:
        """sigma^2, summed over coordinates."""
        return float(self.noise.sum())

    @property
    def decrease(self) -> float:
        """Delta = f(x_1) - 0."""
        return 0.5 * float(np.sum(self.curvature * np.square(self.start)))

    def mean_squared_gradient(self, step_size: float, steps: int) -> float:
        """(1/T) sum_{t<=T} E||grad f(x_t)||^2, by the geometric sums of the exact recursion."""
        factor = np.square(1.0 - step_size * self.curvature)
        first = np.square(self.start)
        limit = np.where(factor < 1.0, step_size**2 * self.noise / np.maximum(1.0 - factor, 1e-300), 0.0)
        total = limit * steps + (first - limit) * np.where(
            factor < 1.0, (1.0 - factor**steps) / np.maximum(1.0 - factor, 1e-300), steps
        )
        return float(np.sum(np.square(self.curvature) * total)) / steps

    def tuned_step(self, steps: int) -> float:
        """min(1/L, sqrt(2 Delta / (L sigma^2 T)))."""
        if self.variance == 0:
            return 1.0 / self.smoothness
        return min(
            1.0 / self.smoothness, float(np.sqrt(2.0 * self.decrease / (self.smoothness * self.variance * steps)))
        )


def power_law_quadratic(dimension: int = 50, noise: float = 1.0) -> Quadratic:
    """A quadratic with curvatures 1/k and equal noise, from the point of all ones."""
    k = np.arange(1, dimension + 1, dtype=np.float64)
    return Quadratic(1.0 / k, np.full(dimension, noise / dimension), np.ones(dimension))


def worst_case(
    steps: int, smoothness: float = 1.0, decrease: float = 1.0, variance: float = 1.0
) -> tuple[float, float]:
    """The 1-d quadratic, chosen for this horizon, that comes closest to the bound: (mean squared gradient, bound).

    The ratio is at least 1/2 and tends to it (both terms of the bound are twice what curvature L attains): the positive
    control of the bound's check, because a bound too small by a factor of two becomes a violation.
    """
    step = min(1.0 / smoothness, float(np.sqrt(2.0 * decrease / (smoothness * variance * steps))))
    best = 0.0
    for curvature in np.geomspace(0.1 / (step * steps), smoothness, 400):
        start = np.array([np.sqrt(2.0 * decrease / curvature)])
        problem = Quadratic(np.array([curvature]), np.array([variance]), start)
        best = max(best, problem.mean_squared_gradient(step, steps))
    return best, 2.0 * decrease / (step * steps) + smoothness * step * variance


def projected(problem: Quadratic, singular: np.ndarray) -> Quadratic:
    """The same quadratic through x = A p with A diagonal (singular values `singular`), from the same point.

    Curvature and noise are multiplied by the squared singular values: L grows by at most s^2, sigma^2 by at most s^2.
    """
    square = np.square(singular)
    return Quadratic(problem.curvature * square, problem.noise * square, problem.start / singular)


def alignment(kappa: float, gradient: np.ndarray) -> float:
    """Cosine of K G and G for K diagonal, eigenvalues 1 to kappa (log-spaced): at least 2 sqrt(kappa)/(1+kappa)."""
    k = np.geomspace(1.0, kappa, len(gradient))
    image = k * gradient
    return float(image @ gradient / (np.linalg.norm(image) * np.linalg.norm(gradient)))


def two_factor_smoothness(steps: int, step_size: float = 0.05, target: float = 0.0) -> np.ndarray:
    """[steps] largest curvature of f(u v) = (1/2)(u v - target)^2 along the ascent of |u| at fixed product.

    The product of two factors has curvature u^2 + v^2, unbounded on every level set of f: no global L exists. The path
    multiplies u and divides v by 1 + step_size, which leaves f unchanged.
    """
    growth = (1.0 + step_size) ** np.arange(steps)
    u, v = growth, (target + 1.0) / growth
    residual = u * v - target
    hessian = np.array([[v * v, 2 * u * v - target], [2 * u * v - target, u * u]])
    assert np.allclose(residual, residual[0])
    return np.linalg.eigvalsh(hessian.transpose(2, 0, 1))[:, -1]


def horizon_table(
    problem: Quadratic, horizons: Sequence[int], seeds: int, noise: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Experiment T1: separate runs with the tuned step, exact constants, and measurement noise on the gradient norm."""
    exact = {t: problem.mean_squared_gradient(problem.tuned_step(t), t) for t in horizons}
    rows = [
        {
            "steps": float(t),
            "seed": float(s),
            "step_size": problem.tuned_step(t),
            "grad_norm_sq": exact[t] * np.exp(noise * rng.standard_normal()),
            "smoothness": problem.smoothness,
            "grad_variance": problem.variance,
            "loss_decrease": problem.decrease,
        }
        for t in horizons
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def along_run_table(
    problem: Quadratic, step_size: float, horizons: Sequence[int], seeds: int, noise: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Experiment T2: the running average of one run at a constant step, read off at several T. Not evidence for a rate."""
    rows = [
        {
            "steps": float(t),
            "seed": float(s),
            "grad_norm_sq": problem.mean_squared_gradient(step_size, t) * np.exp(noise * rng.standard_normal()),
        }
        for t in horizons
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)
