"""One run, from its configuration to the columns of its row. Reads from top to bottom."""

from __future__ import annotations

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
from lrc_jax.evaluate import clone_fvu
from lrc_jax.measure.gap import mean
from lrc_jax.model import count_parameters

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
    first_batch = jax.tree.map(lambda x: x[:START_SAMPLES], test_pool)
    columns["start_test_loss"] = mean(losses(start(config, student, frozen), first_batch).student).value
    if config.measure.certificate:
        return columns | certificate_columns(config, materials, student, frozen, train_pool, test_pool)
    if config.measure.dynamics:
        return columns | dynamics_group(config, materials, student, frozen, train_pool, test_pool)
    state, _ = fit(config, materials, student, frozen, train_pool, config.steps, log=log, tick=tick)

    on_train, on_test = losses(state.params, train_pool), losses(state.params, test_pool)
    columns["params"] = count_parameters(state.params)
    columns |= risk_columns(config, materials, on_train, on_test)
    columns |= gap_columns(config, materials, student, frozen, on_train, on_test, train_pool, test_pool)
    if config.measure.approximation:
        columns |= approximation_columns(config, materials, student, frozen, test_pool)
    if config.measure.clone_fvu and not head:
        teacher = materials.network()
        sites = clone_fvu(student, teacher.config, state.params, frozen, test_pool)
        columns |= {f"fvu.{site}": value for site, value in sites.items()}
    if config.measure.norms:
        columns |= norm_columns(student, frozen, state.params)
    if config.measure.information:
        columns |= information_columns(config, materials, student, frozen, state.params)
    if config.measure.cost:
        columns |= cost_columns(config, materials, student, frozen, state.params)
    return columns
