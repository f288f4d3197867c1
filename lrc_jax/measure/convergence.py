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

The squared norm costs nothing beside the training: a step's minibatch is two independent halves with gradients g_A and
g_B, the step follows (g_A + g_B) / 2, and given the iterate

    E <g_A, g_B> = |grad f(x_t)|^2,        E |g_A - g_B|^2 / 4 = sigma_t^2 (of the whole minibatch's gradient),

both without bias and at every step, where checkpoints with large batches would sample the path and double its cost.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
    BlockMoments,
    Loss,
    Params,
    SampleBatch,
    as_partial,
    mean_loss,
    tree_axpy,
    tree_dot,
)
from lrc_jax.measure.sgd_bounds import decaying_bound as decaying_bound
from lrc_jax.measure.sgd_bounds import horizon_bound as horizon_bound
from lrc_jax.measure.sgd_bounds import horizon_step as horizon_step
from lrc_jax.measure.smoothness import segment_smoothness

HALVES = 2  # of a minibatch
_SPACINGS = ("mixed", "linear")


@dataclasses.dataclass(frozen=True)
class SgdPlan:
    """One run of plain SGD and what is measured on it.

    Attributes:
      steps: T.
      step_size: eta; of step t = 1..T it is step_size * t^-decay.
      batch_size: units in a training minibatch, an even number; sigma^2 is the variance of its gradient.
      decay: 0 (T1, T2) or 0.5 (T3).
      strata: consecutive blocks of steps whose means are kept, with a checkpoint at the end of each.
      spacing: "mixed" puts half of the strata on a logarithmic scale (the norm falls fast at first); "linear" makes
        them equally long, so that their means are batch means.
      constants: measure the path's smoothness too, at the checkpoints (the pilot).
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
    constants: bool = True
    smoothness_batch: int = 512
    segments: int = 2
    loss_batch: int = 1024
    loss_blocks: int = 2

    def __post_init__(self) -> None:
        if self.steps < 2 or not self.step_size > 0:
            raise ValueError(f"SGD plan: steps {self.steps} must be >= 2 and step_size {self.step_size} > 0")
        if self.batch_size < HALVES or self.batch_size % HALVES:
            raise ValueError(
                f"batch_size {self.batch_size} is not even: the squared gradient norm comes from a minibatch's halves"
            )
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
      grad_norm_sq_se: its standard error given the run's path (between seeds there is more); drift within a stratum
        counts as noise, so that it is too large rather than too small.
      grad_variance: sum_t eta_t^2 sigma_t^2 / sum_t eta_t^2 (decay 0: the time average). Unbiased.
      loss_decrease: f(x_1) - f_low, with its standard error.
      loss_fall: f(x_1) - f(x_T+1): the sharper constant, on the same batches.
      final_loss: f(x_T+1).
      smoothness: largest L over the path's segments; None where constants were not asked for.
      smoothness_p90: 90 % quantile over those segments.
      max_spectral_norm: largest spectral norm of a trained matrix at any checkpoint; None where none is trained.
      times: steps done at the checkpoints [strata].
      norms_sq: mean squared gradient norm of each stratum [strata], for figures and `plateau`.
      spectral_norms: largest spectral norm at the checkpoints [strata].
    """

    steps: int
    step_size: float
    decay: float
    batch_size: int
    grad_norm_sq: float
    grad_norm_sq_se: float
    grad_variance: float
    loss_decrease: float
    loss_decrease_se: float
    loss_fall: float
    final_loss: float
    smoothness: float | None
    smoothness_p90: float | None
    max_spectral_norm: float | None
    times: np.ndarray = dataclasses.field(repr=False)
    norms_sq: np.ndarray = dataclasses.field(repr=False)
    spectral_norms: np.ndarray = dataclasses.field(repr=False)

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


class _Sums(NamedTuple):
    """Over the steps of a stratum."""

    norm_sq: Array  # of eta_t <g_A, g_B>
    norm_sq_sq: Array  # of its square
    variance: Array  # of eta_t^2 |g_A - g_B|^2 / 4


class _Checkpoint(NamedTuple):
    smoothness: Array
    spectral_norm: Array


def _halves(loss: Loss, sample: SampleBatch, params: Params, key: Array, batch_size: int) -> Params:
    """Gradients [2, ...] of two independent halves of a minibatch."""
    return jax.vmap(lambda k: jax.grad(loss)(params, sample(k, batch_size // HALVES)))(jax.random.split(key, HALVES))


def _step_size(rate: tuple[Array, Array], t: Array) -> Array:
    """eta of step t (from 0); `rate` is (step size of the first step, decay)."""
    first, decay = rate
    return first * (t + 1).astype(first.dtype) ** -decay


# Start, end and rate are traced: all strata, horizons and step sizes share one program.
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
) -> tuple[Params, _Sums]:
    """The iterate `stop`, from the iterate `start`, and what was seen on the way."""

    def body(t: Array, carry: tuple[Params, _Sums]) -> tuple[Params, _Sums]:
        params, sums = carry
        halves = _halves(loss, sample, params, jax.random.fold_in(key, t), batch_size)
        total = jax.tree.map(lambda g: g[0] + g[1], halves)
        moments = BlockMoments(tree_dot(total, total), tree_dot(halves, halves), HALVES)
        eta = _step_size(rate, t)
        seen = eta * moments.mean_norm_sq()
        # The variance of a half is HALVES times that of the whole minibatch.
        spread = sums.variance + eta**2 * moments.variance() / HALVES
        return tree_axpy(-eta / HALVES, total, params), _Sums(sums.norm_sq + seen, sums.norm_sq_sq + seen**2, spread)

    zero = jnp.zeros_like(rate[0])
    return jax.lax.fori_loop(start, stop, body, (params, _Sums(zero, zero, zero)))


@functools.partial(jax.jit, static_argnames=("batch_size", "segments"))
def _visit(
    loss: Loss,
    sample: SampleBatch,
    params: Params,
    key: Array,
    time: Array,
    rate: tuple[Array, Array],
    fixed_batch: Batch | None,
    batch_size: int,
    segments: int,
) -> _Checkpoint:
    """What is measured at a checkpoint; without a fixed batch the spectral norm alone."""
    smoothness = jnp.full((segments,), jnp.nan, rate[0].dtype)
    if fixed_batch is not None:
        here = jax.grad(loss)(params, fixed_batch)

        def tried(k: Array) -> Array:
            halves = _halves(loss, sample, params, k, batch_size)
            end = jax.tree.map(lambda x, g: x - _step_size(rate, time) * g.mean(axis=0), params, halves)
            return segment_smoothness(loss, params, end, fixed_batch, here)

        smoothness = jax.lax.map(tried, jax.random.split(key, segments))
    return _Checkpoint(smoothness, _spectral_norm(params))


def _run(
    loss: Loss,
    sample: SampleBatch,
    params: Params,
    key: Array,
    edges: np.ndarray,
    rate: tuple[Array, Array],
    fixed_batch: Batch,
    plan: SgdPlan,
) -> tuple[Params, _Sums, _Checkpoint]:
    """SGD from checkpoint to checkpoint; returns x_T+1 and what was seen, stacked."""
    train_key, measure_key = jax.random.split(key)
    step = lambda t: jnp.asarray(t, jnp.int32)  # noqa: E731
    sums, seen = [], []
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        with clock.phase("training"):
            params, here = jax.block_until_ready(
                _advance(loss, sample, params, train_key, step(start), step(stop), rate, plan.batch_size)
            )
        sums.append(here)
        with clock.phase("measuring"):
            k = jax.random.fold_in(measure_key, index)
            visit = _visit(loss, sample, params, k, step(stop), rate, fixed_batch, plan.batch_size, plan.segments)
            seen.append(jax.block_until_ready(visit))
    stack = lambda *xs: np.stack(xs).astype(np.float64)  # noqa: E731
    return params, jax.tree.map(stack, *sums), jax.tree.map(stack, *seen)


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
      loss: loss(params, batch) -> scalar whose expectation over batches is f, with unbiased gradients. Use
        `jax.tree_util.Partial` for its arrays.
      sample_batch: sample_batch(key, size) -> batch of independent units: fresh ones (f is the population loss) or
        drawn from a pool with replacement (f is the pool's loss). One that ignores the key is the full-batch control.
      params: x_1, a pytree of arrays of one float dtype.
      key: seeds minibatches, checkpoints and measurements.
      plan: the run.
      f_low: a lower bound of f: 0 for KL plus clone losses; the teacher's entropy for cross-entropy on teacher
        probabilities.

    Returns:
      The measurement and x_T+1.

    Raises:
      DivergedError: a measured number is not finite.
    """
    k_run, k_fixed, k_loss = jax.random.split(key, 3)
    edges = stratum_edges(plan.steps, plan.strata, plan.spacing)
    lengths = np.diff(edges)

    loss, sample_batch = as_partial(loss), as_partial(sample_batch)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    rate = (jnp.asarray(plan.step_size, dtype), jnp.asarray(plan.decay, dtype))
    fixed = _draw(sample_batch, k_fixed, plan.smoothness_batch) if plan.constants else None
    end, sums, seen = _run(loss, sample_batch, params, k_run, edges, rate, fixed, plan)
    with clock.phase("measuring"):
        f_first, f_last, f_se = map(
            float, _losses(loss, sample_batch, (params, end), k_loss, plan.loss_batch, plan.loss_blocks)
        )
    if not (np.isfinite(sums.norm_sq).all() and math.isfinite(f_last)):
        raise DivergedError(f"SGD diverged at step size {plan.step_size:g} within {plan.steps} steps; lower step_size")

    eta = plan.step_sizes()
    scatter = np.maximum(sums.norm_sq_sq - sums.norm_sq**2 / lengths, 0).sum()
    smoothness = seen.smoothness if plan.constants else None
    spectral = None if np.isnan(seen.spectral_norm).all() else float(seen.spectral_norm.max())
    measurement = SgdMeasurement(
        steps=plan.steps,
        step_size=plan.step_size,
        decay=plan.decay,
        batch_size=plan.batch_size,
        grad_norm_sq=float(sums.norm_sq.sum() / eta.sum()),
        grad_norm_sq_se=float(np.sqrt(scatter) / eta.sum()),
        grad_variance=float(sums.variance.sum() / (eta**2).sum()),
        loss_decrease=f_first - f_low,
        loss_decrease_se=f_se,
        loss_fall=f_first - f_last,
        final_loss=f_last,
        smoothness=None if smoothness is None else float(smoothness.max()),
        smoothness_p90=None if smoothness is None else float(np.quantile(smoothness, 0.9)),
        max_spectral_norm=spectral,
        times=edges[1:],
        norms_sq=np.asarray(sums.norm_sq / np.add.reduceat(eta, edges[:-1])),
        spectral_norms=np.asarray(seen.spectral_norm),
    )
    return measurement, end


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
    means = run.norms_sq[np.append(0, run.times[:-1]) >= after * run.steps]
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
