"""Run one configuration, or a sweep of them.

    python -m experiments.run rank=8 samples=1024 steps=500
    python -m experiments.run -m rank=4,8,16 samples=64,256,1024 steps=500 seed=0,1,2,3,4
    python -m experiments.run -m +experiment=generalization

A run whose row is there is skipped; a failed one is tried again. Exit code 0: all done; 1: a run failed; 2: bad input.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.common import command
from experiments.common.paths import CONF
from experiments.run_one import config
from experiments.status import record_sweep
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
        parsed = OverridesParser.create().parse_overrides(overrides)
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
        grid = config.hydra.sweeper.get("params") or {}
        if grid:  # a study's own grid: what the command line does not name is swept as the file says
            named = {o.key_or_group for o in parsed}
            extra = [f"{key}={value}" for key, value in grid.items() if key not in named]
            parsed = OverridesParser.create().parse_overrides(overrides + extra)
            jobs = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
        name = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:8]
        experiment = next((o.split("=", 1)[1] for o in overrides if o.startswith("+experiment=")), "sweep")
        record_sweep(Study.of(config.results_dir, config.study), f"{experiment.replace('/', '-')}-{name}", jobs)


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def task(raw: DictConfig) -> float | None:
    """Hydra's entry point: one job. Returns the test loss, for sweepers that minimise it."""
    row = execute(config.typed(raw))
    return row.get("columns", {}).get("test_loss")


def main() -> int:
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print((__doc__ or "").strip())
        print("\nKeys (defaults; study=FOLDER under results/): see conf/config.yaml and experiments/run_one/config.py.")
        groups = {p.name: sorted(q.stem for q in p.glob("*.yaml")) for p in sorted(CONF.iterdir()) if p.is_dir()}
        for name in ("teacher", "data", "student", "optimizer", "measure", "experiment"):
            print(f"  {'+' if name == 'experiment' else ''}{name}={'|'.join(groups[name])}")
        return 0
    config.register()
    return command.hydra_main(task)


if __name__ == "__main__":
    raise SystemExit(main())
