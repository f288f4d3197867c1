"""A grid's sweeper and launcher that compose a job's configuration once where Hydra's own do so twice a job, and the
launcher that writes down what any sweeper hands out. experiments.sweep.record puts them into a multirun.

Nothing of the suite is imported here: Hydra imports every plugin at each start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Every combination of values, in Hydra's order. All jobs are checked before the first one starts, and a job that
    fails leaves those after it alone.

    Args:
      params: what is swept unless the command line names it.
      max_batch_size: most jobs that are given to the launcher at once.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, max_batch_size: int | None = None) -> None:
        self.params, self.max_batch_size = dict(params or {}), max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from experiments.sweep.compose import composer_of
        from experiments.sweep.plan import jobs_of

        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        jobs = jobs_of(arguments, self.params)
        composer = composer_of(self.hydra_context, self.config)
        for job in jobs:
            composer.check(job)
        if isinstance(self.launcher, RecordingLauncher):
            self.launcher.recorder.plan(jobs)
        size = self.max_batch_size or len(jobs)
        try:
            batches = [self.launcher.launch(jobs[i : i + size], i) for i in range(0, len(jobs), size)]
        finally:
            _remove_empty(Path(self.config.hydra.sweep.dir))
        for batch in batches:
            for one in batch:
                _ = one.return_value  # raises what went wrong in the job
        return batches


def _remove_empty(folder: Path) -> None:
    """A launcher's folder that nothing was written to, and the folder of such folders."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


class LocalLauncher(Launcher):
    """Jobs in this process, one after another. There is no folder of Hydra's per job: a run's folder says it all."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        del task_function  # ours is the only one
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from experiments.sweep.local import run_jobs

        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # other sweepers write there
        return run_jobs(self.hydra_context, self.config, job_overrides, initial_job_idx)


class RecordingLauncher(Launcher):
    """Writes down the jobs that pass it, and those that come back refused.

    Args:
      inner: the launcher that was chosen.
    """

    def __init__(self, inner: Launcher) -> None:
        self.inner = inner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from experiments.sweep.record import Recorder

        self.recorder = Recorder(config)
        self.inner.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self.recorder.plan(job_overrides)
        returned = self.inner.launch(job_overrides, initial_job_idx)
        self.recorder.ended(returned)
        return returned
