"""Plain SGD runs, measured: both sides of the non-convex SGD bound (Ghadimi & Lan 2013, Theorem 2.1).

For an L-smooth f >= f_low, unbiased minibatch gradients of variance sigma^2 and steps eta <= 1/L,

    (1/T) sum_t E |grad f(x_t)|^2  <=  2 (f(x_1) - f_low) / (eta T) + L eta sigma^2.

The statement is about the *squared* gradient norm, averaged over the iterates of a run, across runs of different
horizons T. Along a single run the local log-log slope passes through -1/2 whatever the truth. Three experiments:

    T1  separate runs, constant eta that depends on T        SgdPlan(steps=T, step_size=c / sqrt(T))
    T2  one run, constant eta: 1/t, then a plateau           SgdPlan(..., spacing="linear"), then `plateau`
    T3  one run, eta_t = eta_0 / sqrt(t)                     SgdPlan(..., decay=0.5)

With L, sigma^2 and f(x_1) - f(x_T+1) from the same run the bound is the telescoped descent lemma: an identity up to
Monte Carlo error, good for a unit test only. Evidence needs constants from a pilot run, frozen and used on others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax import clock
from lrc_jax.errors import DivergedError
from lrc_jax.measure.gradients import (
    Batch,
    Loss,
    Params,
    SampleBatch,
    as_partial,
    block_moments,
    grad_norm_sq,
    mean_loss,
    tree_axpy,
)
from lrc_jax.measure.sgd_bounds import decaying_bound as decaying_bound
from lrc_jax.measure.sgd_bounds import horizon_bound as horizon_bound
from lrc_jax.measure.sgd_bounds import horizon_step as horizon_step
from lrc_jax.measure.smoothness import segment_smoothness

DRAWS = 2  # checkpoints a stratum: the fewest that show their own variance
_SPACINGS = ("mixed", "linear")


@dataclasses.dataclass(frozen=True)
class SgdPlan:
    """One run of plain SGD and what is measured on it.

    Attributes:
      steps: T.
      step_size: eta; of step t = 1..T it is step_size * t^-decay.
      batch_size: units in a training minibatch; sigma^2 is the variance of its gradient.
      decay: 0 (T1, T2) or 0.5 (T3).
      strata: consecutive blocks of steps with two random checkpoints each.
      spacing: "mixed" puts half of the strata on a logarithmic scale (the norm falls fast at first); "linear" makes
        them equally long, so that stratum means are batch means.
      gradient_batch: units in each of the two independent gradients of <g_A, g_B>.
      constants: measure smoothness and variance too (the pilot; about as much work again).
      variance_batches: training minibatches for the variance at each checkpoint.
      smoothness_batch: units in the fixed batch on which the path's smoothness is measured.
      segments: SGD steps tried at each checkpoint for the path's smoothness.
      loss_batch, loss_blocks: f(x_1) and f(x_T+1) are means over this many batches of this size.
    """

    steps: int
    step_size: float
    batch_size: int
    decay: float = 0.0
    strata: int = 16
    spacing: str = "mixed"
    gradient_batch: int = 1024
    constants: bool = True
    variance_batches: int = 16
    smoothness_batch: int = 2048
    segments: int = 2
    loss_batch: int = 1024
    loss_blocks: int = 8

    def __post_init__(self) -> None:
        if self.steps < 2 or not self.step_size > 0:
            raise ValueError(f"SGD plan: steps {self.steps} must be >= 2 and step_size {self.step_size} > 0")
        if self.spacing not in _SPACINGS:
            raise ValueError(f"spacing {self.spacing!r} is unknown; known: {', '.join(_SPACINGS)}")
        if self.decay < 0:
            raise ValueError(f"decay {self.decay} is negative")

    def step_sizes(self) -> np.ndarray:
        """eta_t of steps 1..T."""
        return self.step_size * np.arange(1, self.steps + 1, dtype=np.float64) ** -self.decay


@dataclasses.dataclass(frozen=True)
class SgdMeasurement:
    """What a run showed; losses in nats.

    Attributes:
      steps, step_size, decay, batch_size: of the plan.
      grad_norm_sq: sum_t eta_t |grad f(x_t)|^2 / sum_t eta_t over the run (decay 0: the plain average). Unbiased.
      grad_norm_sq_se: its standard error given the run's path (between seeds there is more).
      loss_decrease: f(x_1) - f_low, with its standard error.
      loss_fall: f(x_1) - f(x_T+1): the sharper constant, on the same batches.
      final_loss: f(x_T+1).
      smoothness: largest L over the path's segments; None where constants were not asked for.
      smoothness_p90: 90 % quantile over those segments.
      grad_variance: sum_t eta_t^2 sigma_t^2 / sum_t eta_t^2 (decay 0: the time average), with its standard error.
      max_spectral_norm: largest spectral norm of a trained matrix at any checkpoint; None where none is trained.
      times, norms_sq, spectral_norms: the checkpoints [strata, 2] behind it, for figures, `plateau` and trends.
      stratum_weights: share of each stratum in the average.
    """

    steps: int
    step_size: float
    decay: float
    batch_size: int
    grad_norm_sq: float
    grad_norm_sq_se: float
    loss_decrease: float
    loss_decrease_se: float
    loss_fall: float
    final_loss: float
    smoothness: float | None
    smoothness_p90: float | None
    grad_variance: float | None
    grad_variance_se: float | None
    max_spectral_norm: float | None
    times: np.ndarray = dataclasses.field(repr=False)
    norms_sq: np.ndarray = dataclasses.field(repr=False)
    spectral_norms: np.ndarray = dataclasses.field(repr=False)
    stratum_weights: np.ndarray = dataclasses.field(repr=False)

    def row(self) -> dict[str, float | int | None]:
        """The measurement table's columns, with standard errors beside them."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.repr and field.name not in ("decay", "batch_size")
        }


def stratum_edges(steps: int, strata: int, spacing: str) -> np.ndarray:
    """Strictly increasing integers 0 = e_0 < ... < e_S = steps; never more strata than steps."""
    strata = min(strata, steps)
    t = np.arange(steps + 1)
    share = t / steps
    if spacing == "mixed":
        share = 0.5 * share + 0.5 * np.log1p(t) / np.log1p(steps)
    edges = np.rint(np.interp(np.linspace(0, 1, strata + 1), share, t)).astype(np.int64)
    for i in range(1, strata + 1):
        edges[i] = min(max(edges[i], edges[i - 1] + 1), steps - (strata - i))
    return edges


def _spectral_norm(params: Params) -> Array:
    """Largest spectral norm of the tree's matrices, from the Gram matrix of the shorter side."""
    norms = []
    for x in jax.tree.leaves(params):
        if x.ndim == 2:
            gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
            norms.append(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0)))
    return functools.reduce(jnp.maximum, norms) if norms else jnp.asarray(jnp.nan)


class _Checkpoint(NamedTuple):
    norm_sq: Array
    variance: Array
    smoothness: Array
    spectral_norm: Array


def _sgd_step(
    loss: Loss, sample: SampleBatch, params: Params, key: Array, t: Array, rate: tuple[Array, Array], batch_size: int
) -> Params:
    """Step t (from 0) of SGD; `rate` is (step size of the first step, decay)."""
    grad = jax.grad(loss)(params, sample(key, batch_size))
    first, decay = rate
    return tree_axpy(-first * (t + 1).astype(first.dtype) ** -decay, grad, params)


# Start, end and rate are traced: all checkpoints, horizons and step sizes share one program.
@functools.partial(jax.jit, static_argnames=("batch_size",))
def _advance(
    loss: Loss,
    sample: SampleBatch,
    params: Params,
    key: Array,
    start: Array,
    stop: Array,
    rate: tuple[Array, Array],
    batch_size: int,
) -> Params:
    """The iterate `stop`, from the iterate `start`."""

    def body(t: Array, params: Params) -> Params:
        return _sgd_step(loss, sample, params, jax.random.fold_in(key, t), t, rate, batch_size)

    return jax.lax.fori_loop(start, stop, body, params)


@functools.partial(jax.jit, static_argnames=("plan",))
def _visit(
    loss: Loss,
    sample: SampleBatch,
    params: Params,
    key: Array,
    time: Array,
    rate: tuple[Array, Array],
    fixed_batch: Batch,
    plan: SgdPlan,
) -> _Checkpoint:
    """What is measured at a checkpoint; `plan` comes with the fields of its horizon blanked."""
    k_norm, k_variance, k_steps = jax.random.split(key, 3)
    norm_sq = grad_norm_sq(loss, sample, params, k_norm, plan.gradient_batch)
    nan = jnp.full((), jnp.nan, norm_sq.dtype)
    variance, smoothness = nan, jnp.full((plan.segments,), jnp.nan, norm_sq.dtype)
    if plan.constants:
        variance = block_moments(loss, sample, params, k_variance, plan.batch_size, plan.variance_batches).variance()
        smoothness = jax.lax.map(
            lambda k: segment_smoothness(
                loss, params, _sgd_step(loss, sample, params, k, time, rate, plan.batch_size), fixed_batch
            ),
            jax.random.split(k_steps, plan.segments),
        )
    return _Checkpoint(norm_sq, variance, smoothness, _spectral_norm(params))


def _run(
    loss: Loss,
    sample: SampleBatch,
    params: Params,
    key: Array,
    times: np.ndarray,
    rate: tuple[Array, Array],
    fixed_batch: Batch,
    plan: SgdPlan,
) -> tuple[Params, _Checkpoint]:
    """SGD from checkpoint to checkpoint; returns x_T+1 and what was seen, stacked."""
    train_key, measure_key = jax.random.split(key)
    blank = dataclasses.replace(plan, steps=2, step_size=1.0, decay=0.0, strata=0, spacing="mixed")
    step = lambda t: jnp.asarray(t, jnp.int32)  # noqa: E731
    seen, now = [], 0
    for index, time in enumerate([*times, plan.steps]):
        with clock.phase("training"):
            params = jax.block_until_ready(
                _advance(loss, sample, params, train_key, step(now), step(time), rate, plan.batch_size)
            )
        now = time
        if index < len(times):
            with clock.phase("measuring"):
                here = jax.random.fold_in(measure_key, index)
                seen.append(
                    jax.block_until_ready(_visit(loss, sample, params, here, step(time), rate, fixed_batch, blank))
                )
    return params, jax.tree.map(lambda *xs: np.stack(xs), *seen)


@functools.partial(jax.jit, static_argnames=("batch_size", "blocks"))
def _losses(
    loss: Loss, sample: SampleBatch, both: tuple[Params, Params], key: Array, batch_size: int, blocks: int
) -> tuple[Array, Array, Array]:
    """f at two points on the same batches: means, and the standard error of the first."""
    first = mean_loss(loss, sample, both[0], key, batch_size, blocks)
    last = mean_loss(loss, sample, both[1], key, batch_size, blocks)
    return first.mean, last.mean, first.standard_error


@functools.partial(jax.jit, static_argnames=("size",))
def _draw(sample: SampleBatch, key: Array, size: int) -> Batch:
    return sample(key, size)


def measure_sgd_horizon(
    loss: Loss, sample_batch: SampleBatch, params: Params, key: Array, plan: SgdPlan, f_low: float = 0.0
) -> tuple[SgdMeasurement, Params]:
    """Run plain SGD and measure both sides of the bound on it.

    Args:
      loss: loss(params, batch) -> scalar whose expectation over batches is f, with unbiased gradients. Plain JAX
        operations only where `plan.constants` (Hessian-vector products). Use `jax.tree_util.Partial` for its arrays.
      sample_batch: sample_batch(key, size) -> batch of independent units: fresh ones (f is the population loss) or
        drawn from a pool with replacement (f is the pool's loss). One that ignores the key is the full-batch control.
      params: x_1, a pytree of arrays of one float dtype.
      key: seeds minibatches, checkpoints and measurements.
      plan: the run.
      f_low: a lower bound of f: 0 for KL plus clone losses; the teacher's entropy for cross-entropy on teacher
        probabilities.

    Returns:
      The measurement and x_T+1. One checkpoint in each stratum is drawn uniformly, twice, so that the average over
      iterates is unbiased and its standard error needs no model.

    Raises:
      DivergedError: a measured number is not finite.
    """
    k_times, k_run, k_fixed, k_loss = jax.random.split(key, 4)
    edges = stratum_edges(plan.steps, plan.strata, plan.spacing)
    lengths = np.diff(edges)
    draws = np.asarray(jax.random.uniform(k_times, (len(lengths), DRAWS)), np.float64)
    times = np.sort(edges[:-1, None] + np.floor(draws * lengths[:, None]).astype(np.int64), axis=1)

    loss, sample_batch = as_partial(loss), as_partial(sample_batch)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    rate = (jnp.asarray(plan.step_size, dtype), jnp.asarray(plan.decay, dtype))
    fixed = _draw(sample_batch, k_fixed, plan.smoothness_batch) if plan.constants else None
    end, seen = _run(loss, sample_batch, params, k_run, times.reshape(-1), rate, fixed, plan)
    with clock.phase("measuring"):
        f_first, f_last, f_se = map(
            float, _losses(loss, sample_batch, (params, end), k_loss, plan.loss_batch, plan.loss_blocks)
        )
    norms_sq = np.asarray(seen.norm_sq, np.float64).reshape(times.shape)
    if not (np.isfinite(norms_sq).all() and math.isfinite(f_last)):
        raise DivergedError(f"SGD diverged at step size {plan.step_size:g} within {plan.steps} steps; lower step_size")

    eta = plan.step_sizes()
    norm_mean, norm_se, weights = _stratified_mean(norms_sq, times, edges, eta)
    variance = variance_se = smoothness = smoothness_p90 = None
    if plan.constants:
        variance, variance_se, _ = _stratified_mean(
            np.asarray(seen.variance, np.float64).reshape(times.shape), times, edges, eta**2
        )
        segments = np.asarray(seen.smoothness, np.float64)
        smoothness, smoothness_p90 = float(segments.max()), float(np.quantile(segments, 0.9))
    spectral = np.asarray(seen.spectral_norm, np.float64).reshape(times.shape)
    measurement = SgdMeasurement(
        steps=plan.steps,
        step_size=plan.step_size,
        decay=plan.decay,
        batch_size=plan.batch_size,
        grad_norm_sq=norm_mean,
        grad_norm_sq_se=norm_se,
        loss_decrease=f_first - f_low,
        loss_decrease_se=f_se,
        loss_fall=f_first - f_last,
        final_loss=f_last,
        smoothness=smoothness,
        smoothness_p90=smoothness_p90,
        grad_variance=variance,
        grad_variance_se=variance_se,
        max_spectral_norm=None if np.isnan(spectral).all() else float(spectral.max()),
        times=times,
        norms_sq=norms_sq,
        spectral_norms=spectral,
        stratum_weights=weights,
    )
    return measurement, end


def _stratified_mean(
    values: np.ndarray, times: np.ndarray, edges: np.ndarray, weights: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """sum_t w_t v_t / sum_t w_t from two uniform draws a stratum; its standard error; the strata's shares.

    Each draw is scaled by w_t * (length of its stratum), which makes it unbiased for the stratum's weighted sum.
    """
    scaled = values * weights[times] * np.diff(edges)[:, None] / weights.sum()
    standard_error = math.sqrt(np.sum((scaled[:, 0] - scaled[:, 1]) ** 2) / 4)
    shares = np.add.reduceat(weights, edges[:-1]) / weights.sum()
    return float(scaled.mean(axis=1).sum()), standard_error, shares


class Plateau(NamedTuple):
    """Level of the squared gradient norm after the transient, with its standard error."""

    level: float
    standard_error: float


def plateau(run: SgdMeasurement, after: float = 0.5) -> Plateau:
    """The noise floor of a T2 run: mean squared gradient norm over the strata beyond `after` of the horizon.

    The standard error is that of batch means over strata, which are consecutive blocks of equal length (spacing
    "linear") and so absorb the autocorrelation of the path where they are longer than it. Theory: level <= L eta
    sigma^2, linear in eta.
    """
    late = run.times[:, 0] >= after * run.steps
    means = run.norms_sq[late].mean(axis=1)
    if len(means) < 4:
        raise ValueError(f"plateau: {len(means)} strata beyond {after:g} of the run are too few; plan more strata")
    return Plateau(float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))))


def boundedness_slope(run: SgdMeasurement) -> float:
    """Slope of ln max |P_t|_2 on ln t over the last half of a run. The bound assumes bounded iterates wherever two
    trained factors multiply: a slope whose interval over seeds exceeds .05 says that they grow like a power of t."""
    if run.max_spectral_norm is None:
        raise ValueError("no matrix is trained in this run")
    late = run.times >= run.steps / 2
    return float(np.polyfit(np.log(run.times[late]), np.log(run.spectral_norms[late]), 1)[0])
