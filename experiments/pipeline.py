"""One run, from its configuration to the columns of its row. Reads from top to bottom."""

from __future__ import annotations

from typing import Any

import jax

from experiments.bilinear import run_bilinear
from experiments.building import Columns, Log, Tick, build, evaluator, fit, start, test_size
from experiments.config import RunConfig
from experiments.materials import Materials
from experiments.measurements import (
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
from experiments.sgd_bound import convergence_columns
from lrc_jax import clock
from lrc_jax.data.pools import Pool
from lrc_jax.evaluate import clone_fvu
from lrc_jax.measure.gap import mean
from lrc_jax.model import count_parameters
from lrc_jax.students import Frozen, Student

START_SAMPLES = 1024  # test sequences on which the untrained student is evaluated


def run(config: RunConfig, materials: Materials, log: Log, tick: Tick) -> Columns:
    """Train one student, measure it, and return its row.

    Args:
      log: receives one object a chunk of training (a line of metrics.jsonl).
      tick: progress callback (done, total, loss).

    Raises:
      InputError: the configuration does not fit the data or the teacher.
      DivergedError: a loss is not finite.
    """
    if config.student.name == "bilinear":
        return run_bilinear(config, materials, log)
    student, frozen = build(config, materials)
    columns = describe(config, materials, student)
    if config.measure.convergence:
        return columns | convergence_columns(config, materials, student, frozen)

    head = student.reads_only_final
    train_pool = materials.pool("student", config.samples, config.labels, config.seed, features=head)
    test_pool = materials.pool("test", test_size(config, materials), config.labels, features=head)
    losses = evaluator(materials, student, frozen)
    with clock.phase("measuring"):
        first_batch = jax.tree.map(lambda x: x[:START_SAMPLES], test_pool)
        columns["start_test_loss"] = mean(losses(start(config, student, frozen), first_batch).student).value
    if config.measure.certificate:
        return columns | certificate_columns(config, materials, student, frozen, train_pool, test_pool)
    if config.measure.dynamics:
        return columns | dynamics_group(config, materials, student, frozen, train_pool, test_pool)
    state, _ = fit(config, materials, student, frozen, train_pool, config.steps, log=log, tick=tick)
    with clock.phase("measuring"):
        return columns | _measured(config, materials, student, frozen, state.params, train_pool, test_pool)


def _measured(
    config: RunConfig,
    materials: Materials,
    student: Student,
    frozen: Frozen,
    params: Any,
    train_pool: Pool,
    test_pool: Pool,
) -> Columns:
    """Everything that is measured on a trained student."""
    losses = evaluator(materials, student, frozen)
    on_train, on_test = losses(params, train_pool), losses(params, test_pool)
    columns: Columns = {"params": count_parameters(params)}
    columns |= risk_columns(config, materials, on_train, on_test)
    columns |= gap_columns(config, materials, student, frozen, on_train, on_test, train_pool, test_pool)
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
