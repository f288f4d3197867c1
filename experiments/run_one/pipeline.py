"""One run, from its configuration to the columns of its row. Reads from top to bottom.

Training and measuring are separate, so that a fused sweep can train many runs at once and measure each as it is.
"""

from __future__ import annotations

import dataclasses

import jax

from experiments.run_one.build import Columns, Keeper, Log, Tick, build, evaluator, fit, objective, start, test_size
from experiments.run_one.columns.ablation import ablation_columns, matched_steps
from experiments.run_one.columns.bilinear import run_bilinear
from experiments.run_one.columns.groups import (
    approximation_columns,
    certificate_columns,
    cost_columns,
    describe,
    dynamics_group,
    gap_columns,
    information_columns,
    norm_columns,
    risk_columns,
)
from experiments.run_one.columns.sgd_bound import convergence_columns
from experiments.run_one.config import RunConfig
from experiments.run_one.setup import Materials
from lrc_jax import clock
from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import clone_fvu
from lrc_jax.measure.gap import mean
from lrc_jax.model import count_parameters
from lrc_jax.students import Frozen, Student

START_SAMPLES = 1024  # test sequences on which the untrained student is evaluated


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run before its training: its student, its pools and what its row says already."""

    config: RunConfig
    materials: Materials
    student: Student
    frozen: Frozen
    train_pool: Pool
    test_pool: Pool
    columns: Columns

    @property
    def pool_to_fit(self) -> Pool:
        """The training pool with the teacher's features where the objective can use them: clone losses need the
        teacher's layers and hard labels nothing of it."""
        wanted = objective(self.config)
        if self.student.reads_only_final or (wanted.needs_teacher and not wanted.clone):
            return self.train_pool
        return dataclasses.replace(self.train_pool, final_NTD=None)


def is_plain(config: RunConfig) -> bool:
    """Whether a run is one training by building.fit and then measured; the others train in ways of their own."""
    measure = config.measure
    own_step = config.bf16 or config.remat or config.accumulate > 1 or config.mesh.data * config.mesh.model != 1
    if own_step or config.teacher_cache != "none" or config.match == "time":
        return False
    return config.student.name != "bilinear" and not (measure.convergence or measure.certificate or measure.dynamics)


def run(config: RunConfig, materials: Materials, log: Log, tick: Tick, keeper: Keeper | None = None) -> Columns:
    """Train one student, measure it, and return its row.

    Args:
      log: receives one object a chunk of training (a line of metrics.jsonl).
      tick: progress callback (done, total, loss).
      keeper: checkpoints, for runs that are one plain training; None keeps none.

    Raises:
      InputError: the configuration does not fit the data or the teacher.
      DivergedError: a loss is not finite.
    """
    if config.student.name == "bilinear":
        return run_bilinear(config, materials, log)
    if config.measure.convergence:
        student, frozen = build(config, materials)
        return describe(config, materials, student) | convergence_columns(config, materials, student, frozen)
    prepared = prepare(config, materials)
    student, frozen = prepared.student, prepared.frozen
    pools = prepared.train_pool, prepared.test_pool
    if config.measure.certificate:
        return prepared.columns | certificate_columns(config, materials, student, frozen, *pools)
    if config.measure.dynamics:
        return prepared.columns | dynamics_group(config, materials, student, frozen, *pools)
    pool = prepared.pool_to_fit
    steps = config.steps
    if config.match == "time":
        steps = prepared.columns["steps"] = matched_steps(config, materials, student, frozen, pool)
    state, _ = fit(config, materials, student, frozen, pool, steps, log=log, tick=tick, keeper=keeper)
    with clock.phase("measuring"):
        return measure(prepared, state.params)


def prepare(config: RunConfig, materials: Materials) -> Prepared:
    """Everything of a run that comes before its training."""
    student, frozen = build(config, materials)
    columns = describe(config, materials, student)
    # Features of the teacher, computed once a pool: every evaluation on it then costs the students' passes alone.
    pool = materials.pool if config.measure.certificate or config.measure.dynamics else materials.with_features
    train_pool = pool("student", config.samples, config.labels, config.seed)
    test_pool = pool("test", test_size(config, materials), config.labels)
    first = jax.tree.map(lambda x: x[:START_SAMPLES], test_pool)
    losses = evaluator(materials, student, frozen)
    with clock.phase("measuring"):
        columns["start_test_loss"] = mean(losses(start(config, student, frozen), first).student).value
    return Prepared(config, materials, student, frozen, train_pool, test_pool, columns)


def measure(prepared: Prepared, params: object) -> Columns:
    """The row of a trained student."""
    config, materials, columns = prepared.config, prepared.materials, dict(prepared.columns)
    student, frozen = prepared.student, prepared.frozen
    train_pool, test_pool = prepared.train_pool, prepared.test_pool
    losses = evaluator(materials, student, frozen)
    on_train, on_test = losses(params, train_pool), losses(params, test_pool)
    columns["params"] = count_parameters(params)
    columns |= risk_columns(config, materials, on_train, on_test)
    columns |= gap_columns(config, materials, student, frozen, on_train, on_test, train_pool, test_pool)
    if config.measure.ablation:
        columns |= ablation_columns(config, materials, student, frozen, params, on_test)
    if config.measure.approximation:
        columns |= approximation_columns(config, materials, student, frozen, test_pool)
    if config.measure.clone_fvu and not student.reads_only_final:
        teacher = materials.network()
        sites = clone_fvu(student, teacher.config, params, frozen, test_pool)
        columns |= {f"fvu.{site}": value for site, value in sites.items()}
    if config.measure.norms:
        columns |= norm_columns(student, frozen, params)
    if config.measure.information:
        columns |= information_columns(config, materials, student, frozen, params)
    if config.measure.cost:
        columns |= cost_columns(config, materials, student, frozen, params)
    return columns
