"""A whole study with one command: sweep, collect, judge, draw, report.

    python -m experiments.reproduce study=demo
    python -m experiments.reproduce study=demo data=wikitext2 data.path=FOLDER

Arguments:
    study=NAME      a design in conf/reproduce/NAME.yaml
    data=...        synthetic, wikitext2 (from the hub, or data.path=FOLDER) or text (data.path=FILE or FOLDER);
                    left out: wikitext2 if the hub answers, else synthetic
    launcher=NAME   Hydra launcher of the sweeps (basic)
    jobs=N          sweeps at once, one core each (2)
    results_dir=results  cache_dir=.cache

What is done already is not run again: after an interruption the same command goes on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from experiments.collect import collect
from experiments.command import guarded, study_arguments
from experiments.figures import draw, interval_text, judge, save
from experiments.files import write_json, write_text
from experiments.progress import duration
from experiments.report import render
from experiments.status import summary
from experiments.store import Study
from lrc_jax.errors import InputError
from theory.report import Report, to_json

CONF = Path(__file__).resolve().parent.parent / "conf" / "reproduce"
WATCH_EVERY = 15.0  # seconds between lines about the sweeps


def read_design(name: str) -> dict[str, Any]:
    """The design of a study. Raises InputError where there is none of this name."""
    path = CONF / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CONF.glob("*.yaml")))
        raise InputError(f"study: no design {name!r} in conf/reproduce; choose one of {known}")
    return yaml.safe_load(path.read_text())


def choose_data(arguments: dict[str, Any]) -> list[str]:
    """The overrides that say which data; falls back to the synthetic language where the hub does not answer."""
    if arguments["data"] is not None:
        path = [f"data.path={arguments['data.path']}"] if arguments["data.path"] else []
        return [f"data={arguments['data']}", *path]
    if arguments["data.path"]:
        raise InputError("data: missing; data.path needs data=wikitext2 or data=text")
    from lrc_jax.data.text import wikitext2_splits

    try:
        wikitext2_splits()
    except InputError as wrong:
        print(f"{wrong}. Going on with the synthetic language.", flush=True)
        return ["data=synthetic"]
    return ["data=wikitext2"]


def commands(design: dict[str, Any], data: list[str], arguments: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(arm, command line) of every arm that has a design for this data."""
    kind = "synthetic" if data == ["data=synthetic"] else "text"
    machine = [f"{key}={arguments[key]}" for key in ("study", "results_dir", "cache_dir")]
    machine.append("allocator=true")
    launcher = [] if arguments["launcher"] == "basic" else [f"hydra/launcher={arguments['launcher']}"]
    out = []
    for arm in design["arms"]:
        if kind not in arm:
            print(f"{arm['name']}: not run, its design needs {', '.join(k for k in arm if k != 'name')} data")
            continue
        # data= first: an arm's own group choices come after it.
        out.append((arm["name"], ["-m", *data, *arm[kind], *machine, *launcher]))
    return out


def sweep(study: Study, jobs: list[tuple[str, list[str]]], at_once: int) -> list[str]:
    """Run the arms' multiruns, a few at once; returns the names of those that failed. Output goes to logs."""
    logs = study.path / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def one(job: tuple[str, list[str]]) -> tuple[str, int]:
        name, arguments = job
        print(f"{name}: python -m experiments.run {' '.join(arguments)}", flush=True)
        with (logs / f"{name}.log").open("a") as log:
            done = subprocess.run(
                [sys.executable, "-m", "experiments.run", *arguments], stdout=log, stderr=subprocess.STDOUT, check=False
            )
        return name, done.returncode

    started = last = time.monotonic()
    failed = []
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(one, job) for job in jobs}
        while running:
            time.sleep(0.5)
            finished = {f for f in running if f.done()}
            running -= finished
            for future in finished:
                name, code = future.result()
                spent = duration(time.monotonic() - started)
                print(
                    f"{name}: {'done' if code == 0 else f'exit code {code}, see {logs / name}.log'} ({spent})",
                    flush=True,
                )
                if code:
                    failed.append(name)
            if running and time.monotonic() - last > WATCH_EVERY:
                last = time.monotonic()
                _say_progress(study, last - started)
    return failed


def _say_progress(study: Study, spent: float) -> None:
    counts, _ = summary(study)
    done = sum(counter["done"] for _, counter in counts)
    total = sum(sum(counter.values()) for _, counter in counts)
    if 0 < done < total:
        print(f"  {done}/{total} runs of the sweeps started so far, {duration(spent)} spent", flush=True)


def verdict_table(report: Report) -> Table:
    """The verdicts for a terminal."""
    grid = Table("claim", "verdict", "coordinate", "measured exponent [95 %]", "claimed")
    for name, claim in report.claims.items():
        for i, (coordinate, e) in enumerate(claim.exponents.items()):
            head = (name, claim.verdict) if i == 0 else ("", "")
            grid.add_row(*head, coordinate, interval_text(e), f"{e.claimed:g}")
        if not claim.exponents:
            grid.add_row(name, claim.verdict, "-", "-", "-")
    return grid


def main() -> int:
    arguments = study_arguments(
        __doc__, data=None, **{"data.path": None}, launcher="basic", jobs="2", cache_dir=".cache"
    )
    if not str(arguments["jobs"]).isdigit() or int(arguments["jobs"]) < 1:
        raise InputError(f"jobs: {arguments['jobs']!r} is not a number of at least 1")
    started = time.monotonic()
    design = read_design(arguments["study"])
    study = Study.of(arguments["results_dir"], arguments["study"])
    print(f"study {arguments['study']}: {design['description'].strip()}", flush=True)
    jobs = commands(design, choose_data(arguments), arguments)
    failed = sweep(study, jobs, int(arguments["jobs"]))
    note = {"description": design["description"].strip()}
    note |= {f"arm {name}": "python -m experiments.run " + " ".join(job) for name, job in jobs}
    write_json(study.path / "study.json", note)

    frame = collect(study)
    report = judge(study)
    write_text(study.path / "verdicts.json", to_json(report.to_dict()))
    figures = draw(study, report)
    for figure in figures:
        save(figure, study.path / "figures")
    write_text(study.path / "report.html", render(study, report, figures))
    Console(width=None if sys.stdout.isatty() else 120).print(verdict_table(report))
    print(f"{len(frame)} runs, {duration(time.monotonic() - started)}; open {study.path / 'report.html'}")
    if failed:
        print(f"failed arms: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
