"""`hydra/launcher=fused`: jobs that differ only in `batchable` keys go as one group to one entry function.

The entry (experiments.sweep.fused.run_group) is a generator of (index, outcome). An outcome that asks to be run alone,
and every job of a group whose entry fails, is run singly, as the local launcher does. An `inner` launcher carries each
group, as one job, to Slurm, Ray or another process.

Nothing heavy is imported here: Hydra imports every plugin at each start.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)
Job = tuple[int, list[str]]  # (job.num, overrides)


@dataclass
class FusedLauncherConf:
    """hydra.launcher of hydra/launcher=fused.

    Attributes:
      entry: "package.module.function": (jobs, index -> configuration) -> iterator of (index, outcome).
      batchable: config keys in which the jobs of a group may differ.
      together: keys by which a group is sorted before it is cut: jobs that are equal in them share most.
      max_group_size: most jobs in a group; None does not cut. With `inner`, this sets the grain of the work. Cuts
        fall between jobs that differ in `together` where they can.
      inner: a launcher that carries groups.
    """

    _target_: str = "hydra_plugins.fused_launcher.launcher.FusedLauncher"
    entry: str = "experiments.sweep.fused.run_group"
    batchable: list[str] = field(
        default_factory=lambda: [
            "rank",
            "samples",
            "steps",
            "seed",
            "clone_weight",
            "temperature",
            "student",
            "optimizer",
            "loss",
        ]
    )
    together: list[str] = field(default_factory=lambda: ["seed", "samples"])
    max_group_size: int | None = None
    inner: Any = None


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherConf, provider="fused_launcher")


def group_key(overrides: Sequence[str], batchable: Sequence[str], together: Sequence[str]) -> tuple[str, str]:
    """(a job's overrides less those of the batchable keys, its overrides of the `together` keys).

    Jobs of one multirun differ in their overrides alone, so that nothing has to be composed to group them.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))

    def concerns(key: str, keys: Sequence[str]) -> bool:
        return any(key == k or key.startswith(f"{k}.") for k in keys)

    rest = [o.input_line for o in parsed if not concerns(o.key_or_group, batchable)]
    order = [o.input_line for o in parsed if concerns(o.key_or_group, together)]
    return json.dumps(rest), json.dumps(order)


def check_keys(config: DictConfig, keys: Sequence[str]) -> None:
    """Raise ValueError for a key that the configuration does not have."""
    for key in keys:
        node: Any = config
        for part in key.split("."):
            if not OmegaConf.is_dict(node) or part not in node:
                raise ValueError(f"hydra.launcher.batchable: {key} is no key of the configuration")
            node = node[part]


def cut(ordered: Sequence[tuple[str, Job]], size: int) -> list[list[Job]]:
    """Groups of at most `size` jobs. Jobs of one order, which share most, are kept in one group where they fit."""
    bundles = [[job for _, job in same] for _, same in itertools.groupby(ordered, key=lambda pair: pair[0])]
    pieces = [bundle[i : i + size] for bundle in bundles for i in range(0, len(bundle), size)]
    groups: list[list[Job]] = []
    for piece in pieces:
        if groups and len(groups[-1]) + len(piece) <= size:
            groups[-1] += piece
        else:
            groups.append(piece)
    return groups


class GroupRunner:
    """Runs groups in this process. Can be pickled, so that an inner launcher can carry it elsewhere."""

    def __init__(
        self,
        context: HydraContext,
        config: DictConfig,
        entry: str,
        groups: list[list[Job]],
        first: int,
    ) -> None:
        self.context, self.config = context, config
        self.entry, self.groups, self.first = entry, groups, first

    def __call__(self, config: DictConfig) -> list[JobReturn]:
        """Task function of a carrier job: its number says which group."""
        return self.run(self.groups[HydraConfig.get().job.num - self.first])

    def run(self, group: list[Job]) -> list[JobReturn]:
        from experiments.sweep.compose import composer_of
        from experiments.sweep.local import returned, run_job

        # Made here: what is interpolated from the machine has to be this process's.
        composer = composer_of(self.context, self.config)
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        results: dict[int, JobReturn] = {}
        try:
            entry = get_method(self.entry)
            for i, outcome in entry([words for _, words in group], lambda i: composer.typed(group[i][1], group[i][0])):
                if outcome.alone:
                    continue
                if outcome.message or outcome.error is not None:
                    log.info(outcome.message or f"\t#{group[i][0]} : {outcome.error}")
                results[i] = returned(group[i][1], outcome.value(), outcome.error)
        except Exception as wrong:
            log.warning("fused: a group failed (%s: %s); its jobs are run singly", type(wrong).__name__, wrong)
        single = [i for i in range(len(group)) if i not in results]
        if single:
            log.info("fused: %d of %d jobs are run singly", len(single), len(group))
        for i in single:
            results[i] = run_job(composer, *group[i])
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return [results[i] for i in range(len(group))]


class FusedLauncher(Launcher):
    """See the module."""

    def __init__(
        self,
        entry: str,
        batchable: Sequence[str] = (),
        together: Sequence[str] = (),
        max_group_size: int | None = None,
        inner: Launcher | None = None,
    ) -> None:
        self.entry, self.batchable, self.together = entry, list(batchable), list(together)
        self.max_group_size, self.inner = max_group_size, inner
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        del task_function  # ours is the only one
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        context, config = self.hydra_context, self.config
        assert context is not None and config is not None
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)

        jobs: list[Job] = [(initial_job_idx + i, list(o)) for i, o in enumerate(job_overrides)]
        check_keys(context.config_loader.load_sweep_config(config, jobs[0][1]), self.batchable)
        by_key: dict[str, list[tuple[str, Job]]] = {}
        for job in jobs:
            key, order = group_key(job[1], self.batchable, self.together)
            by_key.setdefault(key, []).append((order, job))
        size = self.max_group_size or len(jobs)
        groups = [group for same in by_key.values() for group in cut(sorted(same), size)]
        log.info("Launching %d jobs in %d fused groups", len(jobs), len(groups))
        for k, group in enumerate(groups):
            for number, overrides in group:
                log.info("\tgroup %d #%d : %s", k, number, " ".join(filter_overrides(overrides)))

        runner = GroupRunner(context, config, self.entry, groups, initial_job_idx)
        if self.inner is None:
            returned = [runner.run(group) for group in groups]
        else:
            self.inner.setup(hydra_context=context, task_function=runner, config=config)
            carriers = self.inner.launch([group[0][1] for group in groups], initial_job_idx)  # a carrier job per group
            returned = [carrier.return_value for carrier in carriers]
        by_number = {
            number: result
            for group, results in zip(groups, returned, strict=True)
            for (number, _), result in zip(group, results, strict=True)
        }
        return [by_number[number] for number, _ in jobs]
