"""How far a study's sweeps are.

    python -m experiments.status study=NAME [verbose=true]

Every multirun writes down which jobs it plans (results/<study>/sweeps/*.json); status compares them with the runs'
folders. Exit code 0: all done; 1: something failed or is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.common.command import guarded, study_arguments
from experiments.common.progress import duration
from experiments.sweep.planned import key_of, planned
from experiments.sweep.store import RunFolder, Study, without_collection
from theory.show.plain import escape, visible
from theory.show.render import console

STATES = ("done", "running", "failed", "refused", "missing")


class Look:
    """A study's runs by the overrides that asked for them. Look again as often as you like: a row is read once.

    Args:
      seen: called with each row, as it is first seen.
    """

    def __init__(self, study: Study, seen: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        self.study, self.seen = study, seen
        self.done: dict[Path, list[str]] = {}

    def runs(self) -> dict[str, tuple[str, RunFolder]]:
        """Overrides of a run -> (state, folder). A run that is done in any code version counts as done."""
        found: dict[str, tuple[str, RunFolder]] = {}
        for folder in self.study.runs():
            keys, state = self.done.get(folder.path), "done"
            if keys is None:
                row = folder.row()
                keys = [key_of(job) for job in folder.jobs()]
                if row is None:
                    state = folder.open_state()
                else:
                    self.done[folder.path] = keys
                    self.seen(row)
            for key in keys:
                if key not in found or STATES.index(state) < STATES.index(found[key][0]):
                    found[key] = (state, folder)
        return found

    def summary(self) -> tuple[list[tuple[str, Counter[str]]], list[dict[str, Any]]]:
        """Per sweep the number of runs in each state, and the jobs that are not done. Jobs that ask for the same run
        count once."""
        with without_collection():
            states = self.runs()
        counts, open_jobs = [], []
        for name, sweep in planned(self.study).items():
            counter: Counter[str] = Counter()
            seen: set[Path] = set()
            for key, job in sweep.jobs.items():
                state, folder = states.get(key, ("refused" if key in sweep.refused else "missing", None))
                if folder is not None and folder.path in seen:
                    continue
                counter[state] += 1
                reason = sweep.refused.get(key, "")
                if folder is not None:
                    seen.add(folder.path)
                    reason = _reason(state, folder)
                if state != "done":
                    open_jobs.append({"sweep": name, "state": state, "job": " ".join(job), "reason": reason})
            if sweep.expected:
                counter["missing"] += sweep.expected
                what = f"{sweep.expected} jobs that the sweeper has not chosen yet"
                open_jobs.append({"sweep": name, "state": "missing", "job": what, "reason": ""})
            counts.append((name, counter))
        return counts, open_jobs


def _reason(state: str, folder: RunFolder) -> str:
    """Why a run is not done, where its folder says so."""
    if state == "failed":
        return folder.reason()
    if state == "missing" and (paused := folder.paused_at()) is not None:
        return "stopped; resumes from step {} of {}".format(*paused)
    return ""


def add_phases(seconds: Counter[str], row: dict[str, Any]) -> None:
    """Add a run's seconds by phase (lrc_jax.clock)."""
    for key, value in row["machine"].items():
        if key.endswith("_seconds") and isinstance(value, int | float):
            seconds[key.removesuffix("_seconds")] += value  # type: ignore[assignment]


def phase_line(seconds: Counter[str]) -> str:
    """'time in runs 12.0 s: training 71 %, measuring 12 %, ...; measuring is 14 % of it without compilation'."""
    total = sum(seconds.values())
    if total == 0:
        return "time in runs: not recorded"
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.most_common())
    warm = seconds.get("measuring", 0.0) / max(total - seconds.get("compiling", 0.0), 1e-9)
    return f"time in runs {duration(total)}: {shares}; measuring is {warm:.0%} of it without compilation"


def main() -> int:
    arguments = study_arguments(__doc__, verbose=False)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    by_claim: dict[str, Counter[str]] = {}

    def seen(row: dict[str, Any]) -> None:
        add_phases(by_claim.setdefault(str(row["columns"].get("claim") or "no claim"), Counter()), row)

    look = Look(study, seen)
    counts, open_jobs = look.summary()
    screen = console(120)
    if not counts:
        screen.print(f"{study.path}: no sweep was recorded; {len(look.done)} single runs are done", markup=False)
        return 0
    grid = Table("sweep", *STATES, title=str(study.path), title_justify="left")
    for name, counter in counts:
        grid.add_row(escape(name), *(str(counter[s]) for s in STATES))
    screen.print(grid)
    everything = sum(by_claim.values(), Counter())
    for name, part in (sorted(by_claim.items()) if len(by_claim) > 1 else []) + [("all", everything)]:
        screen.print(visible(f"{name}: {phase_line(part)}"), markup=False, highlight=False)
    for job in open_jobs if arguments["verbose"] else [j for j in open_jobs if j["state"] in ("failed", "refused")]:
        screen.print(visible(f"{job['state']}: {job['job']} {job['reason']}"), markup=False, highlight=False)
    return 1 if any(j["state"] != "running" for j in open_jobs) else 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
