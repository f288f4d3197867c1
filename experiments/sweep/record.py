"""What a multirun planned, recorded as its own sweeper hands it out, whichever that is: the jobs that it gives to its
launcher pass a launcher of ours on the way (hydra_plugins/suite).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.sweep.compose import parsed
from experiments.sweep.planned import Sweep, key_of
from experiments.sweep.store import Study
from lrc_jax.errors import InputError

SUITE = "hydra_plugins.suite.plugins"
HYDRAS = "hydra._internal.core_plugins"
# Hydra's own, which compose every job twice, and ours in their place.
OURS = {
    f"{HYDRAS}.basic_sweeper.BasicSweeper": f"{SUITE}.GridSweeper",
    f"{HYDRAS}.basic_launcher.BasicLauncher": f"{SUITE}.LocalLauncher",
}


class Recorder:
    """Writes down one multirun as it goes.

    Args:
      whole: the multirun's own configuration.
    """

    def __init__(self, whole: DictConfig) -> None:
        hydra = whole.hydra
        overrides = list(hydra.overrides.task)
        experiment = next((o.split("=", 1)[1] for o in overrides if o.startswith("+experiment=")), "sweep")
        self.prefix = experiment.replace("/", "-")
        self.results_dir, self.study = str(whole.results_dir), str(whole.study)
        self.expected = int(hydra.sweeper.get("n_trials") or 0)
        # Of a sweeper that thinks of its jobs as it goes, what it was asked is all there is to tell it by.
        self.asked = [overrides, OmegaConf.to_yaml(hydra.sweeper)] if self.expected else None
        self.sweeps: dict[Path, Sweep] = {}
        _open.append(self)

    def plan(self, jobs: Sequence[Sequence[str]]) -> None:
        """Jobs that are going to be run; those that are known already change nothing."""
        self.expected = max(0, self.expected - len(jobs))
        for path, ours in self._by_file(jobs).items():
            sweep = self.sweeps[path]
            before = len(sweep.jobs), sweep.expected
            sweep.jobs |= {key_of(job): sorted(job) for job in ours}
            sweep.expected = self.expected
            if before != (len(sweep.jobs), sweep.expected) or not path.exists():
                sweep.write(path)

    def ended(self, returns: Sequence[JobReturn]) -> None:
        """Jobs that are over: some may have been refused."""
        reasons = {key_of(one.overrides or ()): _refusal(one) for one in returns}
        for path, sweep in self.sweeps.items():
            mine = {key: reason for key, reason in reasons.items() if key in sweep.jobs}
            kept = {key: reason for key, reason in sweep.refused.items() if key not in mine}
            now = kept | {key: reason for key, reason in mine.items() if reason is not None}
            if now != sweep.refused:
                sweep.refused = now
                sweep.write(path)

    def close(self) -> None:
        """The sweeper has ended, whatever it expected."""
        for path, sweep in self.sweeps.items():
            if sweep.expected:
                sweep.expected = 0
                sweep.write(path)

    def _by_file(self, jobs: Sequence[Sequence[str]]) -> dict[Path, list[Sequence[str]]]:
        """Jobs by the record that they belong to: a sweep may go over studies."""
        by_study: dict[Study, list[Sequence[str]]] = {}
        for job in jobs:
            named = {o.key_or_group: str(o.value()) for o in map(parsed, job) if o.key_or_group in PLACES}
            place = Study.of(named.get("results_dir", self.results_dir), named.get("study", self.study))
            by_study.setdefault(place, []).append(job)
        found = {}
        for study, ours in by_study.items():
            path = next((p for p in self.sweeps if p.parent.parent == study.path), None)
            if path is None:
                text = json.dumps(self.asked or [list(job) for job in ours])
                name = hashlib.sha256(text.encode()).hexdigest()[:8]
                path = study.path / "sweeps" / f"{self.prefix}-{name}.json"
                self.sweeps[path] = Sweep.read(path) or Sweep()
            found[path] = ours
        return found


PLACES = ("results_dir", "study")
_open: list[Recorder] = []


def close_all() -> None:
    """This process's sweeps are over."""
    while _open:
        _open.pop().close()


def _refusal(ended: JobReturn) -> str | None:
    """Why a job was refused: bad input is, by whatever it was found."""
    try:
        _ = ended.return_value
    except InputError as wrong:
        return str(wrong)
    except Exception:
        return None
    return None


class RecordSweep(Callback):
    """Hydra callback: lets a multirun's jobs pass our recording launcher on their way to whichever launcher was
    chosen, and puts our sweeper and launcher in the place of Hydra's basic ones."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        with open_dict(hydra):
            hydra.sweeper["_target_"] = OURS.get(hydra.sweeper["_target_"], hydra.sweeper["_target_"])
            # What only Hydra's own jobs have: other callbacks, working folders, variables, .hydra.
            job, others = hydra.job, [c for c in hydra.callbacks.values() if c["_target_"] != TARGET]
            if not (others or job.chdir or job.env_set or hydra.output_subdir):
                hydra.launcher["_target_"] = OURS.get(hydra.launcher["_target_"], hydra.launcher["_target_"])
            hydra.launcher = {"_target_": f"{SUITE}.RecordingLauncher", "inner": hydra.launcher}


TARGET = f"{RecordSweep.__module__}.{RecordSweep.__name__}"
