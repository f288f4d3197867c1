"""Run one configuration, or a sweep of them.

    python -m experiments.run rank=8 samples=1024 steps=500
    python -m experiments.run -m rank=4,8,16 samples=64,256,1024 steps=500 seed=0,1,2,3,4
    python -m experiments.run -m +experiment=generalization
    python -m experiments.run --plan -m +experiment=generalization

`--plan` says how many runs there would be, how many of them are done and about how long the others take, and runs
nothing. Several values of a key, separated by commas without spaces, are a sweep and need -m. A run whose row is there
is skipped; a failed one is tried again. Exit code 0: all done; 1: a run failed; 2: bad input; 130: stopped by Ctrl-C,
after which the same command goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.common import command
from experiments.common.paths import CONF
from experiments.run_one import config, keys
from experiments.status import record_sweep
from experiments.sweep.plan import jobs_of, plan
from experiments.sweep.store import Study

log = logging.getLogger(__name__)


def execute(cfg: config.RunConfig) -> dict[str, Any]:
    """Run a checked configuration unless it is done; returns its row."""
    command.prepare_jax(cfg)
    from experiments.common.progress import Progress, duration
    from experiments.run_one import pipeline  # imports JAX: only after its environment is set
    from experiments.sweep import interrupt, job
    from lrc_jax import clock

    clock.start()
    interrupt.listen()
    run = job.identify(cfg, _overrides())
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
        with (
            run.attempt(),
            run.metrics() as write,
            Progress(run.name, cfg.steps) as progress,
            interrupt.FolderKeeper(run.folder) as keeper,
        ):
            columns = pipeline.run(cfg, run.setup, write, progress.update, keeper)
        seconds = time.monotonic() - started
        row = run.finish(columns, seconds, clock.stop())
        log.info("%s: %s (%s)", run.name, job.summary(columns), duration(seconds))
        return row


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


class RecordSweep(Callback):
    """Hydra callback: writes down a multirun's jobs before the first one starts, for experiments.status."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        overrides = list(config.hydra.overrides.task)
        jobs = jobs_of(overrides, config.hydra.sweeper.get("params"))
        name = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:8]
        experiment = next((o.split("=", 1)[1] for o in overrides if o.startswith("+experiment=")), "sweep")
        record_sweep(Study.of(config.results_dir, config.study), f"{experiment.replace('/', '-')}-{name}", jobs)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(raw: DictConfig) -> float | None:
    """Hydra's entry point: one job. Returns the test loss, for sweepers that minimise it."""
    row = execute(config.typed(raw))
    return row.get("columns", {}).get("test_loss")


def main() -> int:
    words = sys.argv[1:]
    if any(a in ("-h", "--help") for a in words):
        print(command.help_of(__doc__), keys.help_text(), sep="\n\n")
        return 0
    many = any(a in ("-m", "--multirun", "hydra.mode=MULTIRUN") for a in words)
    keys.check_words(words, many=many)
    if "--plan" in words:
        return command.hydra_main(lambda: print(plan([a for a in words if "=" in a], many=many)))
    config.register()
    return command.hydra_main(task)


if __name__ == "__main__":
    raise SystemExit(command.guarded(main))
