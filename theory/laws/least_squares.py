"""Batched non-linear least squares: one optimiser for starts, bootstrap draws and profiles alike.

Everything that is fitted many times (hundreds of starts, thousands of bootstrap draws, a grid of a profile) is an
array with a leading batch axis, so that a thousand five-parameter fits cost seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: residual(theta [B, p], index [B]) -> residuals [B, n], jacobian [B, n, p]; index names the batch members.
Residual = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

#: Huber's constant for 95 % efficiency under Gaussian noise, in units of the robust standard deviation.
HUBER = 1.345

#: Degrees of freedom of the Student likelihood used to compare models (heavy tails, finite variance).
STUDENT_DF = 5.0


@dataclass(frozen=True)
class Loss:
    """A loss on residuals, by its value rho(r) (with rho ~ r^2/2 at 0) and its weight psi(r)/r."""

    rho: Callable[[np.ndarray], np.ndarray]
    weight: Callable[[np.ndarray], np.ndarray]


SQUARES = Loss(lambda r: 0.5 * r * r, np.ones_like)


def huber(delta: float) -> Loss:
    """Huber's loss: quadratic up to delta, linear beyond."""

    def rho(r: np.ndarray) -> np.ndarray:
        a = np.abs(r)
        return np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))

    return Loss(rho, lambda r: np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300)))


def student(scale: float) -> Loss:
    """The negative log likelihood of a Student t with STUDENT_DF degrees of freedom, in units where rho ~ r^2/2."""
    c = STUDENT_DF * scale * scale
    return Loss(lambda r: 0.5 * (c + scale * scale) * np.log1p(r * r / c), lambda r: (c + scale * scale) / (c + r * r))


def robust_scale(residuals: np.ndarray) -> float:
    """1.4826 x median absolute residual (a standard deviation under Gaussian noise)."""
    return float(1.4826 * np.median(np.abs(residuals)))


@dataclass(frozen=True)
class Optimum:
    """The end of a batch of optimisations: parameters [B, p] and objectives [B]."""

    theta: np.ndarray
    objective: np.ndarray

    @property
    def best(self) -> int:
        return int(np.argmin(np.where(np.isfinite(self.objective), self.objective, np.inf)))


def minimise(
    residual: Residual,
    start: np.ndarray,
    *,
    loss: Loss = SQUARES,
    weights: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    iterations: int = 200,
    ftol: float = 1e-12,
    largest_step: float | np.ndarray = 2.0,
) -> Optimum:
    """Levenberg-Marquardt with iteratively reweighted losses, over a batch.

    Minimises sum_i w_i rho(r_i(theta)) from every start at once. Sum, not mean, and a tight tolerance: a loose one on
    a small objective stops early (the defect found in the original Chinchilla fit by Besiroglu et al. 2024).

    Args:
        start: [B, p] starting points.
        weights: [B, n] or [1, n] non-negative weights, for example bootstrap counts.
        fixed: [B, p] True where a parameter is held at its start (profiles).
        largest_step: limit of one step, for all parameters or each (logarithms and exponents should not jump).
    """
    # Overflow is no error: a step whose objective is infinite is not taken.
    with np.errstate(all="ignore"):
        return _minimise(
            residual, np.array(start, dtype=np.float64), loss, weights, fixed, iterations, ftol, largest_step
        )


def _minimise(
    residual: Residual,
    theta: np.ndarray,
    loss: Loss,
    weights: np.ndarray | None,
    fixed: np.ndarray | None,
    iterations: int,
    ftol: float,
    largest_step: float | np.ndarray,
) -> Optimum:
    batch, p = theta.shape
    free = np.ones((batch, p)) if fixed is None else 1.0 - fixed.astype(np.float64)
    weights = np.ones((1, 1)) if weights is None else weights
    everyone = np.arange(batch)

    def rows(index: np.ndarray) -> np.ndarray:
        return weights[index] if weights.shape[0] == batch and batch > 1 else weights

    def objective_of(r: np.ndarray, index: np.ndarray) -> np.ndarray:
        total = np.sum(rows(index) * loss.rho(r), axis=1)
        return np.where(np.isfinite(total), total, np.inf)

    r, jacobian = residual(theta, everyone)
    objective = objective_of(r, everyone)
    r, jacobian = np.array(r), np.array(jacobian)
    damping = np.full(batch, 1e-3)
    active = everyone[np.isfinite(objective)]
    diagonal = np.arange(p)
    for _ in range(iterations):
        if active.size == 0:
            break
        w = rows(active) * loss.weight(r[active])
        weighted = jacobian[active] * w[:, :, None] * free[active, None, :]
        gradient = np.einsum("bnp,bn->bp", weighted, r[active])
        hessian = np.matmul(weighted.transpose(0, 2, 1), jacobian[active] * free[active, None, :])
        scale = hessian[:, diagonal, diagonal]
        scale = np.maximum(scale, 1e-12 * scale.max(axis=1, keepdims=True) + 1e-300)
        hessian[:, diagonal, diagonal] = scale * (1.0 + damping[active, None]) + (1.0 - free[active])
        usable = np.isfinite(hessian).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1)
        step = np.zeros_like(gradient)
        if usable.any():
            # Scaling to a unit diagonal keeps the solve accurate when ln A and its exponent are nearly collinear.
            root = np.sqrt(hessian[usable][:, diagonal, diagonal])
            scaled = hessian[usable] / (root[:, :, None] * root[:, None, :])
            scaled[:, diagonal, diagonal] += 1e-14
            step[usable] = -solve(scaled, gradient[usable] / root) / root
        # Limited one by one: a flat parameter (the logarithm of a vanishing offset) must not slow down the others.
        step = np.clip(np.where(np.isfinite(step), step, 0.0), -largest_step, largest_step)
        trial = theta[active] + step
        trial_r, trial_jacobian = residual(trial, active)
        trial_objective = objective_of(trial_r, active)
        better = trial_objective <= objective[active]
        gain = objective[active] - trial_objective
        done = better & (gain <= ftol * np.maximum(objective[active], 1e-300)) & (damping[active] <= 1.0)
        stuck = ~better & (damping[active] > 1e10)
        won = active[better]
        theta[won], objective[won] = trial[better], trial_objective[better]
        r[won], jacobian[won] = trial_r[better], trial_jacobian[better]
        damping[active] = np.where(better, np.maximum(damping[active] * 0.2, 1e-12), damping[active] * 4.0)
        active = active[~(done | stuck)]
    return Optimum(theta, objective)


def solve(matrices: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[B, p] solutions for a batch; of least norm where a matrix is singular (a law that says one thing twice)."""
    try:
        return np.linalg.solve(matrices, right[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        usable = np.isfinite(matrices).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
        solution = np.zeros_like(right)
        inverse = np.linalg.pinv(matrices[usable], hermitian=True)
        solution[usable] = np.matmul(inverse, right[usable][:, :, None])[:, :, 0]
        return solution


def polish(residual: Residual, theta: np.ndarray, delta: float) -> tuple[np.ndarray, float]:
    """Follow one optimum to the end by SciPy's trust region, where a damped Newton step has become too short.

    Args:
        theta: [p] where to start.
        delta: Huber's constant; infinite for least squares.

    Returns:
        [p] parameters and their objective, never worse than at the start.
    """
    from scipy import optimize  # here, since it takes half a second to load and only `fit` needs it

    everyone = np.zeros(1, dtype=int)
    loss = huber(delta) if np.isfinite(delta) else SQUARES

    def objective_of(at: np.ndarray) -> float:
        total = float(np.sum(loss.rho(residual(at[None, :], everyone)[0][0])))
        return total if np.isfinite(total) else np.inf

    before = objective_of(theta)
    try:
        with np.errstate(all="ignore"):
            found = optimize.least_squares(
                lambda at: residual(at[None, :], everyone)[0][0],
                theta,
                jac=lambda at: residual(at[None, :], everyone)[1][0],
                x_scale="jac",
                loss="huber" if np.isfinite(delta) else "linear",
                f_scale=delta if np.isfinite(delta) else 1.0,
                ftol=1e-12,
                xtol=1e-12,
                gtol=1e-12,
                max_nfev=300,
            ).x
            after = objective_of(found)
    except (ValueError, np.linalg.LinAlgError):  # a law without a finite slope at some row on the way
        return theta, before
    return (found, after) if after < before else (theta, before)


def log_linear(
    design: np.ndarray, y: np.ndarray, sd: np.ndarray, *, start: np.ndarray | None = None, iterations: int = 60
) -> np.ndarray:
    """Fit mean(y) = exp(design @ beta) on the *linear* scale, for many response vectors.

    Weighted non-linear least squares sum_i (y_i - mu_i)^2 / sd_i^2: a cell whose mean is zero or negative is a
    measurement like any other (dropping it, or taking logarithms of absolute values, would select for large gaps).

    Args:
        design: [C, p] regressors (logarithms of the coordinates, intercepts).
        y: [B, C] responses, NaN where a cell is missing; sd: [C] standard deviations up to a common factor.
        start: [p] a fit close to the answer (bootstrap draws start from the fit to all data).

    Returns:
        [B, p]; a row of NaN where the responses are not positive enough for any exponential to fit.
    """
    valid = np.isfinite(y)
    y = np.where(valid, y, 0.0)
    # In units of the largest deviation, whose square may lie beyond floating point; 1e-9 of it is as good as zero.
    weight = valid / np.square(np.maximum(sd / np.max(sd), 1e-9))
    if start is not None and np.isfinite(start).all():
        beta = np.tile(start, (len(y), 1))
    else:
        # Regression of logarithms; cells that are not clearly positive are replaced by a fraction of their sd.
        floor = 0.1 * sd
        relative = valid * np.square(np.maximum(y, floor) / sd)
        beta = _weighted_lstsq(design, np.log(np.maximum(y, floor)), relative)
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    p = design.shape[1]
    identity = np.arange(p)

    def objective_of(mu: np.ndarray) -> np.ndarray:
        total = np.sum(weight * np.square(y - mu), axis=1)
        return np.where(np.isfinite(total), total, np.inf)

    def mean_of(b: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(b @ design.T, -690.0, 690.0))

    mu = mean_of(beta)
    objective = objective_of(mu)
    damping = np.full(len(y), 1e-4)
    for _ in range(iterations):
        gradient = (weight * mu * (y - mu)) @ design
        hessian = ((weight * mu * mu) @ outer).reshape(-1, p, p)
        diagonal = np.maximum(hessian[:, identity, identity], 1e-300)
        hessian[:, identity, identity] = diagonal * (1.0 + damping[:, None])
        root = np.sqrt(hessian[:, identity, identity])
        scaled = hessian / (root[:, :, None] * root[:, None, :])
        scaled[:, identity, identity] += 1e-13
        step = np.linalg.solve(scaled, (gradient / root)[:, :, None])[:, :, 0] / root
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        trial = beta + step
        trial_mu = mean_of(trial)
        trial_objective = objective_of(trial_mu)
        better = trial_objective <= objective
        beta = np.where(better[:, None], trial, beta)
        mu = np.where(better[:, None], trial_mu, mu)
        objective = np.where(better, trial_objective, objective)
        damping = np.where(better, np.maximum(damping * 0.2, 1e-12), np.minimum(damping * 5.0, 1e12))
        if np.all(np.abs(step).max(axis=1) < 1e-8):
            break
    # Slopes beyond any physical exponent mean that the fit ran away (responses of mean zero).
    lost = np.abs(beta).max(axis=1) > 300.0
    beta[lost | ~np.isfinite(beta).all(axis=1)] = np.nan
    return beta


def _weighted_lstsq(design: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[B, p] weighted least squares, batched through the normal equations (designs here are small and centred)."""
    p = design.shape[1]
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    normal = (weight @ outer).reshape(-1, p, p)
    scale = np.maximum(normal[:, np.arange(p), np.arange(p)], 1e-300)
    normal[:, np.arange(p), np.arange(p)] = scale * (1.0 + 1e-10) + 1e-300
    right = (weight * y) @ design
    return np.linalg.solve(normal, right[:, :, None])[:, :, 0]


def smooth_deviation(design: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """[C] standard deviations shrunk to a power law of the coordinates.

    The raw standard deviation of three to ten seeds is itself 25 to 50 % noise; weights made of it would chase
    that noise. Cells without a usable one (a single seed, or identical values) borrow from the rest; with none at
    all the noise is taken to be proportional to the mean.
    """
    usable = np.isfinite(sd) & (sd > 0)
    if usable.sum() > design.shape[1]:
        coefficients = np.linalg.lstsq(design[usable], np.log(sd[usable]), rcond=None)[0]
        return np.exp(design @ coefficients)
    size = np.abs(mean)
    positive = size > 0
    if positive.sum() <= design.shape[1]:
        return np.ones_like(mean)
    coefficients = np.linalg.lstsq(design[positive], np.log(size[positive]), rcond=None)[0]
    return np.exp(design @ coefficients)
