"""One run, from its configuration to the columns of its row. Reads from top to bottom.

Training and measuring are separate, so that a fused sweep can train many runs at once and measure each as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from experiments.run_one.columns.ablation import ablation_columns, matched_steps
from experiments.run_one.columns.bilinear import run_bilinear
from experiments.run_one.columns.groups import (
    approximation_columns,
    certificate_columns,
    cloze_columns,
    cost_columns,
    describe,
    dynamics_group,
    gap_columns,
    information_columns,
    norm_columns,
    risk_columns,
)
from experiments.run_one.columns.method import cost_by_formula
from experiments.run_one.columns.sgd_bound import convergence_columns
from experiments.run_one.config import RunConfig
from experiments.run_one.run import Columns, Keeper, Log, Run, Tick, objective, test_size
from experiments.run_one.setup import Setup
from lrc_jax import clock
from lrc_jax.compute.fast import computed
from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import clone_fvu
from lrc_jax.measure.gap import mean
from lrc_jax.model import count_parameters

START_SAMPLES = 1024  # test sequences on which the untrained student is evaluated


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run before its training: its pools, and what its row says already."""

    run: Run
    train_pool: Pool
    test_pool: Pool
    columns: Columns

    @property
    def pool_to_fit(self) -> Pool:
        """The training pool with the teacher's features where the objective can use them: clone losses need the
        teacher's layers and hard labels nothing of it."""
        wanted = objective(self.run.config)
        if self.run.student.reads_only_final or (wanted.needs_teacher and not wanted.clone):
            return self.train_pool
        return dataclasses.replace(self.train_pool, final_NTD=None)


def is_plain(config: RunConfig) -> bool:
    """Whether a run is one training by Run.fit and then measured; the others train in ways of their own."""
    measure = config.measure
    own_step = config.bf16 or config.remat or config.accumulate > 1 or config.mesh.data * config.mesh.model != 1
    if own_step or config.step != "fast" or config.teacher_cache != "none" or config.match == "time":
        return False
    return config.student.name != "bilinear" and not (measure.convergence or measure.certificate or measure.dynamics)


def run(config: RunConfig, setup: Setup, log: Log, tick: Tick, keeper: Keeper | None = None) -> Columns:
    """Train one student, measure it, and return its row.

    Args:
      log: receives one object per chunk of training (a line of metrics.jsonl).
      tick: progress callback (done, total, loss).
      keeper: checkpoints, for runs that are one plain training; None keeps none.

    Raises:
      InputError: the configuration does not fit the data or the teacher.
      DivergedError: a loss is not finite.
    """
    with computed(config.step):
        return _run(config, setup, log, tick, keeper)


def _run(config: RunConfig, setup: Setup, log: Log, tick: Tick, keeper: Keeper | None) -> Columns:
    if config.student.name == "bilinear":
        return run_bilinear(config, setup, log)
    one = Run.of(config, setup)
    if config.measure.convergence:
        return describe(config, setup, one.student) | convergence_columns(one)
    prepared = prepare(one)
    if config.measure.certificate:
        return prepared.columns | certificate_columns(one, prepared.train_pool, prepared.test_pool)
    if config.measure.dynamics:
        return prepared.columns | dynamics_group(one, prepared.train_pool, prepared.test_pool)
    pool, steps = prepared.pool_to_fit, config.steps
    if config.match == "time":
        steps = prepared.columns["steps"] = matched_steps(one, pool)
    state, _ = one.fit(pool, steps, log=log, tick=tick, keeper=keeper)
    with clock.phase("measuring"):
        return measure(prepared, state.params)


def prepare(run: Run) -> Prepared:
    """Everything of a run that comes before its training."""
    config, setup = run.config, run.setup
    columns = describe(config, setup, run.student)
    # Features of the teacher, computed once per pool: every evaluation on it then costs the students' passes alone.
    pool = setup.pool if config.measure.certificate or config.measure.dynamics else setup.with_features
    train_pool = pool("student", config.samples, config.labels, config.seed)
    test_pool = pool("test", test_size(config, setup), config.labels)
    first = jax.tree.map(lambda x: x[:START_SAMPLES], test_pool)
    with clock.phase("measuring"):
        columns["start_test_loss"] = mean(run.losses(run.start(), first).student).value
    return Prepared(run, train_pool, test_pool, columns)


def measure(prepared: Prepared, params: Any) -> Columns:
    """The row of a trained student."""
    run, columns = prepared.run, dict(prepared.columns)
    wanted = run.config.measure
    train_pool, test_pool = prepared.train_pool, prepared.test_pool
    on_train, on_test = run.losses(params, train_pool), run.losses(params, test_pool)
    columns["params"] = count_parameters(params)
    columns |= risk_columns(run.config, run.setup, on_train, on_test)
    columns |= gap_columns(run, on_train, on_test, train_pool, test_pool)
    if wanted.ablation:
        columns |= ablation_columns(run, params, on_test)
    if wanted.approximation:
        columns |= approximation_columns(run, test_pool)
    if wanted.clone_fvu and not run.student.reads_only_final:
        sites = clone_fvu(run.student, run.setup.network().config, params, run.frozen, test_pool)
        columns |= {f"fvu.{site}": value for site, value in sites.items()}
    if wanted.norms:
        columns |= norm_columns(run, params)
    if wanted.information:
        columns |= information_columns(run, params)
    if wanted.cloze:
        columns |= cloze_columns(run, params)
    if wanted.cost:
        columns |= cost_columns(run, params)
    return columns | cost_by_formula(run, columns["steps"])
