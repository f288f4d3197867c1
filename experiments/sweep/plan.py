"""What a command line would run, before it is run: `lrc run --plan -m ...`."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from experiments.common.paths import CONF
from experiments.common.progress import duration
from experiments.run_one import config
from experiments.run_one.keys import groups
from experiments.run_one.version import code_version
from experiments.sweep.store import Study

SIZES = ("steps", "rank", "samples")  # what the time of a run depends on most


def jobs_of(overrides: list[str], grid: Mapping[Any, Any] | None) -> list[list[str]]:
    """The jobs of a multirun, each as its overrides.

    Args:
      grid: `hydra.sweeper.params` of the configuration: what the command line does not name is swept as it says.
    """
    parser = OverridesParser.create()
    named = {o.key_or_group for o in parser.parse_overrides(overrides)}
    extra = [f"{key}={value}" for key, value in (grid or {}).items() if key not in named]
    parsed = parser.parse_overrides(overrides + extra)
    return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


def plan(overrides: list[str], *, many: bool) -> str:
    """How many runs there would be, how many of them are done, and about how long the others take.

    A run counts as done where its study has a row of the same configuration, by this version of the code. Data and
    teachers are not looked at: files that changed since make other runs of the same configuration.

    Raises:
      InputError: a run's configuration is wrong.
    """
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="run"):
        jobs = [overrides]
        if many:
            whole = compose("config", overrides=jobs_of(overrides, None)[0], return_hydra_config=True)
            jobs = jobs_of(overrides, whole.hydra.sweeper.get("params"))
        runs = list(_configs(jobs))
    studies = {(c.results_dir, c.study) for c in runs}
    rows = [row for names in studies for folder in Study.of(*names).runs() if (row := folder.row()) is not None]
    done = {_text(row["config"]) for row in rows if row["code_version"] == code_version()}
    left = [c for c in runs if c.force or _text(config.identity(c)) not in done]
    words = f"{len(runs)} run{'s' * (len(runs) != 1)}, {len(runs) - len(left)} done already, {len(left)} to run"
    where = ", ".join(str(Study.of(*names).path) for names in sorted(studies))
    if not left:
        return words
    if not rows:
        return f"{words}; how long is not known: nothing is done yet in {where}"
    seconds = duration(sum(_seconds(c, rows) for c in left))
    return f"{words}; about {seconds} one after another, judging by the {len(rows)} done in {where}"


def _text(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


def _configs(jobs: list[list[str]]) -> Iterator[config.RunConfig]:
    """Checked configurations of jobs. Hydra composes once for all jobs that differ in plain values alone: it needs a
    tenth of a second each time."""
    composed: dict[tuple[str, ...], DictConfig] = {}
    known = set(groups())
    for job in jobs:
        parsed = OverridesParser.create().parse_overrides(job)
        plain = [o for o in parsed if _is_plain(o, known)]
        rest = tuple(word for word, o in zip(job, parsed, strict=True) if o not in plain)
        if rest not in composed:
            composed[rest] = compose("config", overrides=job)
        raw = copy.deepcopy(composed[rest])
        for o in plain:
            OmegaConf.update(raw, o.key_or_group, o.value())
        yield config.typed(raw)


def _is_plain(override: Override, known: set[str]) -> bool:
    """Whether it sets one value: no group's choice, no addition or deletion, no key of Hydra's own."""
    key = override.key_or_group
    return override.type is OverrideType.CHANGE and not (key in known or "/" in key or override.is_hydra_override())


def _seconds(run: config.RunConfig, rows: list[dict[str, Any]]) -> float:
    """About how long a run takes: as long as the done ones that are nearest in size, their training in proportion to
    the steps. Compiling and building are left out where they are known: the runs of a sweep share them."""

    def distance(row: dict[str, Any]) -> float:
        return sum(abs(math.log((getattr(run, key) + 1) / (row["config"][key] + 1))) for key in SIZES)

    def seconds(row: dict[str, Any]) -> float:
        times, ratio = row["machine"], run.steps / max(row["config"]["steps"], 1)
        if "training_seconds" not in times:
            return times["seconds"] * max(1.0, ratio)
        return times["training_seconds"] * ratio + times["measuring_seconds"]

    nearest = min(map(distance, rows))
    return statistics.fmean(seconds(row) for row in rows if distance(row) == nearest)
