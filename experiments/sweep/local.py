"""Runs in this process, one after another. Needs no JAX before something has to be computed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from experiments.common import command
from experiments.run_one import config
from experiments.sweep import job
from experiments.sweep.compose import Composer, composer_of
from experiments.sweep.store import LeaseLost
from lrc_jax.errors import DivergedError, InputError

log = logging.getLogger(__name__)


def execute(cfg: config.RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a checked configuration unless it is done; returns its row.

    Args:
      overrides: that asked for it.
    """
    if (row := job.find_done(cfg, list(overrides))) is not None:
        log.info("%s: already done (%s)", job.name_of(cfg), row["run_id"])
        return row
    command.prepare_jax(cfg)
    from experiments.common.progress import Progress, duration
    from experiments.run_one import pipeline  # imports JAX: only after its environment is set
    from experiments.sweep import interrupt
    from lrc_jax import clock

    clock.start()
    interrupt.listen()
    run = job.identify(cfg, list(overrides))
    if (row := run.done_row()) is not None:
        log.info("%s: already done (%s)", run.name, run.run_id)
        return row
    with run.folder.claim() as ours:
        if not ours:
            log.info("%s: another process works on it (%s)", run.name, run.run_id)
            return {}
        if (row := run.done_row()) is not None:  # finished between the look and the claim
            return row
        started = time.monotonic()
        try:
            with (
                run.attempt(),
                run.metrics() as write,
                Progress(run.name, cfg.steps) as progress,
                interrupt.FolderKeeper(run.folder) as keeper,
            ):
                columns = pipeline.run(cfg, run.setup, write, progress.update, keeper)
            seconds = time.monotonic() - started
            row = run.finish(columns, seconds, clock.stop())
        except LeaseLost as lost:
            log.info("%s: %s", run.name, lost)
            return run.folder.row() or {}
        log.info("%s: %s (%s)", run.name, job.summary(columns), duration(seconds))
        return row


def outcome(row: dict[str, Any]) -> float | None:
    """What a job returns to its sweeper: the test loss, for those that minimise it."""
    return row.get("columns", {}).get("test_loss")


def returned(overrides: Sequence[str], value: float | None = None, error: Exception | None = None) -> JobReturn:
    """A job's end as Hydra's sweepers take it, without the job's configuration: thousands of them are kept."""
    status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    ended = JobReturn(overrides=list(overrides), task_name="run", status=status)
    ended.return_value = value if error is None else error
    return ended


def run_jobs(
    context: HydraContext, whole: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> Sequence[JobReturn]:
    """Run the jobs of a multirun. One that fails leaves the others alone.

    Args:
      whole: the multirun's own configuration.
      first: number of the first job.
    """
    setup_globals()
    configure_log(whole.hydra.job_logging, whole.hydra.verbose)
    composer = composer_of(context, whole)
    done = []
    for number, words in enumerate(jobs, first):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(words)))
        done.append(run_job(composer, number, words))
    configure_log(whole.hydra.hydra_logging, whole.hydra.verbose)
    return done


def run_job(composer: Composer, number: int, words: Sequence[str]) -> JobReturn:
    """Run one job of a multirun; what goes wrong is said at once and returned."""
    try:
        return returned(words, outcome(execute(composer.typed(words, number), words)))
    except Exception as wrong:
        known = isinstance(wrong, InputError | DivergedError)
        log.info("\t#%d : %s%s", number, "" if known else f"{type(wrong).__name__}: ", command.one_line(str(wrong)))
        return returned(words, error=wrong)
