"""What a multirun planned, for status and watch: results/<study>/sweeps/*.json, kept by experiments.sweep.record.

{"schema": 1,
 "jobs": [[override, ...], ...],                        each job once, written before the first of them starts
 "refused": [{"job": [...], "reason": "..."}, ...],     jobs that cannot be run: their configuration is wrong
 "expected": 3}                                         jobs that a sweeper such as Optuna has still to think of
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.files import write_json
from experiments.sweep.store import Study, is_jobs, read_object


def key_of(job: Sequence[str]) -> str:
    """The same for jobs that give the same overrides in another order."""
    return json.dumps(sorted(job))


@dataclass
class Sweep:
    """A multirun's record: its jobs and the reasons of those that were refused, by key."""

    jobs: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    expected: int = 0

    @classmethod
    def read(cls, path: Path) -> Sweep | None:
        """None where there is none, or a damaged one."""
        note = read_object(path, _is_sweep)
        if note is None:
            return None
        refused = {key_of(one["job"]): one["reason"] for one in note.get("refused", [])}
        return cls({key_of(job): job for job in note["jobs"]}, refused, note.get("expected", 0))

    def write(self, path: Path) -> None:
        refused = [{"job": json.loads(key), "reason": reason} for key, reason in self.refused.items()]
        note = {"schema": 1, "jobs": list(self.jobs.values()), "refused": refused, "expected": self.expected}
        write_json(path, note)


def _is_sweep(note: dict[str, Any]) -> bool:
    refused = note.get("refused", [])
    return (
        is_jobs(note.get("jobs"))
        and type(note.get("expected", 0)) is int
        and isinstance(refused, list)
        and all(isinstance(one, dict) and isinstance(one.get("reason"), str) for one in refused)
        and is_jobs([one.get("job") for one in refused])
    )


def planned(study: Study) -> dict[str, Sweep]:
    """Name -> what the sweep of this name planned."""
    folder = study.path / "sweeps"
    if not folder.is_dir():
        return {}
    found = {path.stem: Sweep.read(path) for path in sorted(folder.glob("*.json"))}
    return {name: sweep for name, sweep in found.items() if sweep is not None}
