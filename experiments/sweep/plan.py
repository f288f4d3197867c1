"""What a command line would run, before it is run: `lrc run --plan -m ...`."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir

from experiments.common.paths import CONF
from experiments.common.progress import duration
from experiments.run_one import config
from experiments.run_one.version import code_version
from experiments.sweep.compose import Composer, parsed
from experiments.sweep.store import Study
from lrc_jax.errors import InputError

SIZES = ("steps", "rank", "samples")  # what the time of a run depends on most


def jobs_of(overrides: Sequence[str], grid: Mapping[Any, Any] | None) -> list[list[str]]:
    """The jobs of a grid, each as its overrides: every combination of values, the last key varies fastest.

    Args:
      grid: `hydra.sweeper.params` of the configuration: what the command line does not name is swept as it says.

    Raises:
      InputError: an override is no list of values.
    """
    choices: dict[str, list[str]] = {}
    for word in [*(f"{key}={value}" for key, value in (grid or {}).items()), *overrides]:
        override = parsed(word)
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(f"{word}: an interval has no list of values; give values, or take hydra/sweeper=optuna")
    return [list(job) for job in itertools.product(*choices.values())]


def configs_of(overrides: Sequence[str], *, many: bool) -> list[tuple[list[str], config.RunConfig]]:
    """The jobs of a command line, each as its overrides and its checked configuration.

    Raises:
      InputError: a run's configuration is wrong.
    """
    with _hydra():
        jobs = [list(overrides)]
        if many:
            whole = compose("config", overrides=jobs_of(overrides, None)[0], return_hydra_config=True)
            jobs = jobs_of(overrides, whole.hydra.sweeper.get("params"))
        composer = Composer(lambda job: compose("config", overrides=job))
        return [(job, composer.typed(job)) for job in jobs]


def _hydra() -> initialize_config_dir:
    config.register()
    return initialize_config_dir(str(CONF), version_base="1.3", job_name="run")


def check_launcher(name: str) -> None:
    """Let Hydra say which launchers there are, where it has none of this name."""
    with _hydra():
        compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)


def identity_of(run: config.RunConfig) -> str:
    """The same text for the same experiment; that of a finished run is `text_of(row["config"])`."""
    return text_of(config.identity(run))


def text_of(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


def plan(overrides: list[str], *, many: bool) -> str:
    """How many runs there would be, how many of them are done, and about how long the others take.

    A run counts as done where its study has a row of the same configuration, by this version of the code. Data and
    teachers are not looked at: files that changed since make other runs of the same configuration.

    Raises:
      InputError: a run's configuration is wrong.
    """
    runs = [run for _, run in configs_of(overrides, many=many)]
    studies = {(c.results_dir, c.study) for c in runs}
    rows = [row for names in studies for folder in Study.of(*names).runs() if (row := folder.row()) is not None]
    done = {text_of(row["config"]) for row in rows if row["code_version"] == code_version()}
    left = [c for c in runs if c.force or identity_of(c) not in done]
    words = f"{len(runs)} run{'s' * (len(runs) != 1)}, {len(runs) - len(left)} done already, {len(left)} to run"
    where = ", ".join(str(Study.of(*names).path) for names in sorted(studies))
    if not left:
        return words
    if not rows:
        return f"{words}; how long is not known: nothing is done yet in {where}"
    seconds = duration(sum(_seconds(c, rows) for c in left))
    return f"{words}; about {seconds} one after another, judging by the {len(rows)} done in {where}"


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
