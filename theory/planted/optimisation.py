"""E6: stochastic gradient descent whose averaged squared gradient norm is known exactly.

On a quadratic f(x) = (1/2) sum_i lambda_i x_i^2 with gradient noise of variance v_i per coordinate, second moments obey
m_{t+1} = (1 - eta lambda)^2 m_t + eta^2 v, a geometric sequence, so that the average over a run needs no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from theory.claims.convergence import right_hand_side
from theory.planted.surfaces import Design, grid_frame


def average_gradient(
    curvature: np.ndarray, start: np.ndarray, variance: np.ndarray, step: float, steps: float
) -> float:
    """(1/T) sum_{t=1}^T E||grad f(x_t)||^2.

    Args:
        curvature: [p] lambda_i > 0. start: [p] squared starting coordinates. variance: [p] gradient noise v_i.
        step: eta < 2/max(lambda). steps: T.
    """
    factor = np.square(1.0 - step * curvature)
    level = step**2 * variance / (1.0 - factor)
    # (1 - q^T)/(1 - q) without cancellation for q near 1.
    total = -np.expm1(steps * np.log(np.maximum(factor, 1e-300))) / (1.0 - factor)
    return float(np.sum(curvature**2 * (level + (start - level) * total / steps)))


def tuned_step(steps: float, smoothness: float, decrease: float, variance: float) -> float:
    """eta_T = min(1/L, sqrt(2 Delta / (L sigma^2 T)))."""
    return float(min(1.0 / smoothness, np.sqrt(2.0 * decrease / (smoothness * variance * steps))))


def worst_case_ratio(steps: float, *, smoothness: float = 1.0, decrease: float = 1.0, variance: float = 1.0) -> float:
    """Largest LHS/RHS of the bound over one-dimensional quadratics, each with f(x_1) = Delta; it tends to 1/2.

    The positive control of the bound: a right-hand side too small by a factor of more than two is violated here.
    """
    step = tuned_step(steps, smoothness, decrease, variance)
    bound = float(right_hand_side(*(np.array(v) for v in (steps, step, smoothness, variance, decrease))))

    def negative_ratio(log_curvature: float) -> float:
        curvature = np.array([np.exp(log_curvature)])
        start = 2.0 * decrease / curvature
        return -average_gradient(curvature, start, np.array([variance]), step, steps) / bound

    grid = np.linspace(np.log(1e-6 * smoothness), np.log(smoothness), 200)
    best = grid[int(np.argmin([negative_ratio(g) for g in grid]))]
    found = minimize_scalar(negative_ratio, bounds=(best - 0.1, min(best + 0.1, np.log(smoothness))), method="bounded")
    return -float(found.fun)


def quadratic_table(
    design: Design,
    rng: np.random.Generator,
    *,
    curvature: Sequence[float] = tuple(np.geomspace(1e-3, 1.0, 50)),
    kappa: float = 1.0,
    step: float | None = None,
    misstated: float = 1.0,
) -> pd.DataFrame:
    """A convergence table: runs of T steps on a quadratic, with measured constants.

    Args:
        kappa: condition number of a projection S = A P with singular values 1 to kappa: coordinate i of P has curvature
            a_i^2 lambda_i and gradient noise a_i^2 v_i, so that L and sigma^2 grow by up to kappa^2.
        step: one step size for all horizons (the running average of a single run) instead of eta_T.
        misstated: the recorded gradient variance is the true one times this (a wrong constant breaks the bound).
    """
    base = np.asarray(curvature, dtype=np.float64)
    gain = np.square(np.geomspace(1.0, kappa, len(base))) if kappa > 1 else np.ones_like(base)
    eigenvalues, variance = gain * base, gain / len(base)
    start = 2.0 / (len(base) * eigenvalues)
    smoothness, decrease, total = float(eigenvalues.max()), 1.0, float(variance.sum())
    frame = grid_frame("samples", (1,), "steps", design.steps, design.seeds).drop(columns="samples")
    steps = frame["steps"].to_numpy()
    sizes = {t: tuned_step(t, smoothness, decrease, total) if step is None else step for t in design.steps}
    norms = {t: average_gradient(eigenvalues, start, variance, sizes[t], t) for t in design.steps}
    noise = np.exp(design.noise * rng.standard_normal(len(frame)))
    return frame.assign(
        step_size=[sizes[t] for t in steps],
        grad_norm_sq=np.array([norms[t] for t in steps]) * noise,
        smoothness=smoothness,
        grad_variance=total * misstated,
        loss_decrease=decrease,
    )


def alignment(singular_values: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """[B] cosine between A A^T G and G for G given in the left singular basis of A ([B, d])."""
    preconditioned = np.square(singular_values) * gradients
    norms = np.linalg.norm(preconditioned, axis=1) * np.linalg.norm(gradients, axis=1)
    return np.sum(preconditioned * gradients, axis=1) / norms


def alignment_floor(kappa: float) -> float:
    """2 kappa / (1 + kappa^2): the smallest possible cosine for condition number kappa (Kantorovich)."""
    return 2.0 * kappa / (1.0 + kappa**2)


def product_smoothness(u: float, v: float, target: float = 1.0) -> tuple[float, float]:
    """Local smoothness of f(u v) = (1/2)(u v - target)^2 and its bound u^2 + v^2 + |u v - target|.

    For two trained factors the constant is not global: it grows with the factors' norms.
    """
    error = u * v - target
    hessian = np.array([[v * v, u * v + error], [u * v + error, u * u]])
    return float(np.abs(np.linalg.eigvalsh(hessian)).max()), u * u + v * v + abs(error)
