"""Claim 1's run: plain SGD on the mean objective over a finite pool, and both sides of its bound."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.run_one.cache import cached_numbers
from experiments.run_one.config import identity
from experiments.run_one.run import Columns, Run, learning_rate, loss_weights, objective
from experiments.run_one.setup import at_most, labels_from_uniform
from lrc_jax import clock
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.measure.convergence import (
    SgdMeasurement,
    SgdPlan,
    boundedness_slope,
    decaying_bound,
    horizon_bound,
    measure_sgd_horizon,
    plateau,
)
from lrc_jax.measure.gap import mean
from lrc_jax.measure.gradients import Loss, SampleBatch
from lrc_jax.measure.smoothness import hessian_top_eigenvalue
from lrc_jax.measure.spectra import projection_constants, teacher_spectra
from lrc_jax.model import count_parameters
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, Student
from lrc_jax.training.train import student_loss


def convergence_columns(run: Run) -> Columns:
    """Both sides of the SGD bound: the run's averaged squared gradient norm, and the constants.

    Smoothness and gradient variance come from a pilot run at the same step size and horizon: a run judged with its own
    constants would be an identity. Runs take turns between the pilot seeds, so that the constants' spread is seen.
    """
    config, setup, student = run.config, run.setup, run.student
    pilots = config.measure.pilot_seeds
    pilot_seed = pilots[config.seed % len(pilots)]
    plan = SgdPlan(
        steps=config.steps,
        step_size=learning_rate(config),
        batch_size=config.batch_size,
        decay=0.5 if config.optimizer.schedule == "inverse_sqrt" else 0.0,
        smoothness_batch=config.measure.smoothness_batch,
        spacing=config.measure.spacing,
    )
    made_of = identity(config) | {"seed": pilot_seed, "digest": setup.data_digest}
    del made_of["claim"]

    def pilot() -> dict[str, Any]:
        measured, end, loss, sample = _sgd(run, plan, pilot_seed)
        found = {"smoothness": measured.smoothness, "grad_variance": measured.grad_variance}
        if config.measure.hessian:
            batch_key, start_key = (key_for(pilot_seed, "hessian", i) for i in range(2))
            top = hessian_top_eigenvalue(loss, end, sample(batch_key, plan.smoothness_batch), start_key, 20)
            found["hessian_top"] = top.largest
        return found

    with clock.phase("measuring"):
        constants = cached_numbers(run.cache, "pilots", made_of, pilot)
    plan = dataclasses.replace(plan, constants=False)
    measured, *_ = _sgd(run, plan, config.seed)
    row = measured.row() | {"own_grad_variance": measured.grad_variance}
    row |= {name: constants[name] for name in ("smoothness", "grad_variance", "hessian_top") if name in constants}
    right_hand_side = decaying_bound if plan.decay else horizon_bound
    row["bound"] = right_hand_side(
        plan.steps, plan.step_size, constants["smoothness"], constants["grad_variance"], measured.loss_decrease
    )
    row |= {"decay": plan.decay, "norm_growth": boundedness_slope(measured)}
    if plan.spacing == "linear":
        level = plateau(measured)
        row |= {"plateau": level.level, "plateau_se": level.standard_error}
    if student.kind == "lrc":
        found = setup.once("spectra", lambda: projection_constants(teacher_spectra(run.frozen.teacher)))
        row |= {f"spectrum_{name}": value for name, value in found.items()}
    params = jax.eval_shape(student.init, key_for(0), run.frozen)
    return row | {"params": count_parameters(params), "pilot_seed": pilot_seed}


def _sgd(run: Run, plan: SgdPlan, seed: int) -> tuple[SgdMeasurement, Any, Loss, SampleBatch]:
    """Plain SGD on f, the mean objective over a finite pool of sequences.

    With labels from the teacher, each visit to a sequence draws them afresh: f is then exact in the labels, and
    ce_weight times the teacher's entropy is a lower bound of it. With the text's labels the lower bound is 0.
    """
    config, setup = run.config, run.setup
    pool = setup.pool("student", at_most(setup.source, "student", config.measure.pool), "data")
    fresh = config.labels == "teacher"
    loss = jax.tree_util.Partial(
        _PoolLoss(run.student, objective(config), setup.network().config, fresh), run.frozen, loss_weights(config)
    )
    draw = _whole_pool if config.measure.full_batch else _sample_pool
    sample = jax.tree_util.Partial(draw, jax.tree.map(jnp.asarray, pool))
    first, f_low = run.start(seed), 0.0
    if fresh and config.loss.ce_weight:
        entropy, se = _teacher_entropy(run, pool)
        f_low = config.loss.ce_weight * (entropy - 3 * se)
    measured, end = measure_sgd_horizon(loss, sample, first, key_for(seed, "student", "order"), plan, f_low)
    return measured, end, loss, sample


def _teacher_entropy(run: Run, pool: Pool) -> tuple[float, float]:
    """Mean entropy of the teacher on the first sequences of a pool, with its standard error; once per pool."""
    made_of = {"data": run.setup.data_digest, "teacher": run.setup.network().digest, "pool": pool.size}

    def measured() -> dict[str, float]:
        probe = dataclasses.replace(pool, tokens_NT=pool.tokens_NT[:8192], labels_NT=pool.labels_NT[:8192])
        entropy = mean(run.losses(run.start(0), probe).entropy)
        return {"entropy": entropy.value, "se": entropy.se}

    with clock.phase("measuring"):
        found = cached_numbers(run.cache, "entropies", made_of, measured)
    return found["entropy"], found["se"]


@dataclasses.dataclass(frozen=True)
class _PoolLoss:
    """loss(frozen, weights, params, (batch, u)); hashable, so that runs that share it share its compilation."""

    student: Student
    objective: Objective
    teacher: Any
    fresh_labels: bool

    def __call__(self, frozen: Frozen, weights: LossWeights, params: Any, batch: tuple[Pool, jax.Array]) -> jax.Array:
        pool, u_BT = batch
        if self.fresh_labels:
            logits_NV = forward(self.teacher, frozen.teacher, pool.tokens_NT).logits_NV
            pool = dataclasses.replace(pool, labels_NT=labels_from_uniform(logits_NV, u_BT))
        return student_loss(self.student, self.objective, self.teacher, params, frozen, weights, pool)[0]


def _sample_pool(pool: Pool, key: jax.Array, size: int) -> tuple[Pool, jax.Array]:
    """Sequences drawn uniformly with replacement, and uniform numbers to draw labels with."""
    index_key, label_key = jax.random.split(key)
    index_B = jax.random.randint(index_key, (size,), 0, pool.size)
    batch = jax.tree.map(lambda x: x[index_B], pool)
    return batch, jax.random.uniform(label_key, (size, pool.tokens_NT.shape[1]))


def _whole_pool(pool: Pool, key: jax.Array, size: int) -> tuple[Pool, jax.Array]:
    """The pool itself, whatever is asked for: the control without gradient noise."""
    del key, size
    return pool, jnp.zeros(pool.tokens_NT.shape)
