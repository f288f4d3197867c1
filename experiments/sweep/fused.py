"""A group of a sweep's runs in one process, those that see the same minibatches trained together.

Called by the fused launcher (hydra_plugins/fused_launcher) with the composed configurations of a group; also fit for a
script. Every run has its own claim, folder, metrics, checkpoint and row, as if it had been run alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from experiments.common import command
from experiments.run_one import config
from experiments.sweep.outcome import Outcome
from lrc_jax.errors import InputError

log = logging.getLogger(__name__)


def run_group(raws: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> Iterator[tuple[int, Outcome]]:
    """Run a group; yields (index, outcome) as each run ends, each index once.

    Runs whose training is no single fit (bilinear, convergence, certificate, dynamics) are handed back to be run
    alone. Runs are claimed a bundle at a time, so that several launchers share a sweep.
    """
    typed: dict[int, config.RunConfig] = {}
    for i, raw in enumerate(raws):
        try:
            typed[i] = config.typed(raw)
        except InputError as wrong:
            yield i, Outcome(error=wrong)
    if not typed:
        return
    command.prepare_jax(next(iter(typed.values())))
    from experiments.run_one import pipeline  # imports JAX: only after its environment is set
    from experiments.sweep import interrupt, job
    from experiments.sweep.bundle import run_bundle

    interrupt.listen()
    bundles: dict[Any, dict[int, job.Job]] = {}
    for i, cfg in typed.items():
        if not pipeline.is_plain(cfg):
            yield i, Outcome(alone=True)
            continue
        try:
            run = job.identify(cfg, list(overrides[i]))
            if (row := run.done_row()) is not None:
                yield i, Outcome(row, message=f"{run.name}: already done ({run.run_id})")
                continue
        except InputError as wrong:
            yield i, Outcome(error=wrong)
            continue
        # What makes a stream of minibatches: the same pool, drawn in the same order in batches of one size.
        stream = (id(run.setup), cfg.samples, cfg.seed, cfg.labels, cfg.batch_size)
        bundles.setdefault(stream, {})[i] = run
    sizes = sorted(len(b) for b in bundles.values())
    if bundles:
        log.info("fused: %d runs in %d bundles of %d to %d", sum(sizes), len(sizes), sizes[0], sizes[-1])
    for bundle in bundles.values():
        yield from run_bundle(bundle)
