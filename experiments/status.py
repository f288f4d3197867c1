"""How far a study's sweeps are.

    python -m experiments.status study=NAME [verbose=true]

Every multirun writes down which jobs it plans (results/<study>/sweeps/*.json); status compares them with the runs'
folders. Exit code 0: all done; 1: something failed or is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.table import Table

from experiments.common.command import guarded, study_arguments
from experiments.common.files import read_json, write_json
from experiments.common.progress import duration
from experiments.sweep.store import RunFolder, Study
from theory.show.render import console

STATES = ("done", "running", "failed", "missing")


def _key(overrides: list[str]) -> str:
    return json.dumps(sorted(overrides))


def record_sweep(study: Study, name: str, jobs: list[list[str]]) -> None:
    """Write down a multirun's jobs, each as its list of overrides. Called before the first of them starts."""
    write_json(study.path / "sweeps" / f"{name}.json", {"schema": 1, "jobs": [sorted(job) for job in jobs]})


def planned(study: Study) -> dict[str, list[list[str]]]:
    """Sweep name -> jobs."""
    folder = study.path / "sweeps"
    return {p.stem: read_json(p)["jobs"] for p in sorted(folder.glob("*.json"))} if folder.is_dir() else {}


def run_states(study: Study) -> dict[str, tuple[str, RunFolder]]:
    """Overrides of a run -> (state, folder). A run that is done in any code version counts as done."""
    found: dict[str, tuple[str, RunFolder]] = {}
    for folder in study.runs():
        state = folder.state()
        for key in map(_key, folder.jobs()):
            if key not in found or STATES.index(state) < STATES.index(found[key][0]):
                found[key] = (state, folder)
    return found


def summary(study: Study) -> tuple[list[tuple[str, Counter[str]]], list[dict[str, Any]]]:
    """Per sweep the number of jobs in each state, and the jobs that are not done."""
    states = run_states(study)
    counts, open_jobs = [], []
    for name, jobs in planned(study).items():
        counter: Counter[str] = Counter()
        for job in jobs:
            state, folder = states.get(_key(job), ("missing", None))
            counter[state] += 1
            if state != "done":
                reason = ""
                if state == "failed" and folder is not None:
                    reason = read_json(folder.failed_path)["reason"]
                if state == "missing" and folder is not None and folder.paused_path.is_file():
                    reason = "stopped; goes on from step {step} of {steps}".format(**read_json(folder.paused_path))
                open_jobs.append({"sweep": name, "state": state, "job": " ".join(job), "reason": reason})
        counts.append((name, counter))
    return counts, open_jobs


def phase_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all runs together by phase (lrc_jax.clock)."""
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds.update({k.removesuffix("_seconds"): v for k, v in row["machine"].items() if k.endswith("_seconds")})
    return dict(seconds.most_common())


def phase_line(seconds: dict[str, float]) -> str:
    """'time in runs 12.0 s: training 71 %, measuring 12 %, ...; measuring is 14 % of it without compilation'."""
    total = sum(seconds.values())
    if total == 0:
        return "time in runs: not recorded"
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items())
    warm = seconds.get("measuring", 0.0) / max(total - seconds.get("compiling", 0.0), 1e-9)
    return f"time in runs {duration(total)}: {shares}; measuring is {warm:.0%} of it without compilation"


def main() -> int:
    arguments = study_arguments(__doc__, verbose=False)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    counts, open_jobs = summary(study)
    screen = console(120)
    if not counts:
        done = sum(folder.state() == "done" for folder in study.runs())
        screen.print(f"{study.path}: no sweep was recorded; {done} single runs are done")
        return 0
    grid = Table("sweep", *STATES, title=str(study.path), title_justify="left")
    for name, counter in counts:
        grid.add_row(name, *(str(counter[s]) for s in STATES))
    screen.print(grid)
    rows = [row for folder in study.runs() if (row := folder.row()) is not None]
    by_claim: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_claim.setdefault(str(row["columns"].get("claim") or "no claim"), []).append(row)
    for name, part in (sorted(by_claim.items()) if len(by_claim) > 1 else []) + [("all", rows)]:
        screen.print(f"{name}: {phase_line(phase_seconds(part))}", highlight=False)
    for job in open_jobs if arguments["verbose"] else [j for j in open_jobs if j["state"] == "failed"]:
        screen.print(f"{job['state']}: {job['job']} {job['reason']}", markup=False, highlight=False)
    return 1 if any(j["state"] in ("failed", "missing") for j in open_jobs) else 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
