"""A group of a sweep's runs in one process, trained together: on a CPU those that see the same minibatches.

Called by the fused launcher (hydra_plugins/fused_launcher); also fit for a script. Every run has its own claim, folder,
metrics, checkpoint and row, as if it had been run alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.common import command
from experiments.run_one import config
from experiments.sweep import job
from experiments.sweep.outcome import Outcome
from lrc_jax.errors import InputError

log = logging.getLogger(__name__)


def run_group(
    jobs: Sequence[Sequence[str]], config_of: Callable[[int], config.RunConfig]
) -> Iterator[tuple[int, Outcome]]:
    """Run a group; yields (index, outcome) as each run ends, each index once.

    Runs whose training is no single fit (bilinear, convergence, certificate, dynamics) are handed back to be run
    alone. Runs are claimed a bundle at a time, so that several launchers share a sweep.

    Args:
      jobs: each as its overrides.
      config_of: index of a job -> its checked configuration; raises InputError.
    """
    typed: dict[int, config.RunConfig] = {}
    for i, words in enumerate(jobs):
        try:
            cfg = config_of(i)
            if (row := job.find_done(cfg, list(words))) is None:
                typed[i] = cfg
            else:
                yield i, Outcome(row, message=f"{job.name_of(cfg)}: already done ({row['run_id']})")
        except InputError as wrong:
            yield i, Outcome(error=wrong)
    if not typed:
        return
    command.prepare_jax(next(iter(typed.values())))
    from experiments.run_one import pipeline  # imports JAX: only after its environment is set
    from experiments.sweep import interrupt
    from experiments.sweep.bundle import run_bundle
    from lrc_jax.training.together import is_vectorised

    interrupt.listen()
    bundles: dict[Any, dict[int, job.Job]] = {}
    for i, cfg in typed.items():
        if not pipeline.is_plain(cfg):
            yield i, Outcome(alone=True)
            continue
        try:
            run = job.identify(cfg, list(jobs[i]))
            if (row := run.done_row()) is not None:
                yield i, Outcome(row, message=f"{run.name}: already done ({run.run_id})")
                continue
        except InputError as wrong:
            yield i, Outcome(error=wrong)
            continue
        # What makes a stream of minibatches: the same pool, drawn in the same order in batches of one size. Sharing the
        # teacher's pass is all that a CPU gains; an accelerator is filled by training many streams at once.
        stream = () if is_vectorised() else (cfg.samples, cfg.seed)
        bundles.setdefault((id(run.setup), cfg.labels, cfg.batch_size, *stream), {})[i] = run
    sizes = sorted(len(b) for b in bundles.values())
    if bundles:
        log.info("fused: %d runs in %d bundles of %d to %d", sum(sizes), len(sizes), sizes[0], sizes[-1])
    for bundle in bundles.values():
        yield from run_bundle(bundle)
