"""A whole study with one command: sweep, collect, judge, draw, report.

    python -m experiments.reproduce study=demo
    python -m experiments.reproduce study=demo data=wikitext2 data.path=FOLDER

Arguments:
    study=NAME      a design in conf/reproduce/NAME.yaml
    data=...        for designs that leave the data open: synthetic, wikitext2 (from the hub, or data.path=FOLDER) or
                    text (data.path=FILE or FOLDER); left out: wikitext2 if the hub answers, else synthetic
    parts=A,B       only these parts of the design (all)
    launcher=NAME   Hydra launcher of the sweeps (basic)
    jobs=N          sweeps at once, one core each (2)
    results_dir=results  cache_dir=.cache
    and the inputs that the design names, such as stories260k=FOLDER

What is done already is not run again: after an interruption the same command goes on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from experiments.common.command import INTERRUPTED, fail, guarded, study_arguments
from experiments.common.files import write_text
from experiments.common.paths import CONF
from experiments.common.progress import duration
from experiments.show.figures import save, save_table
from experiments.show.lines import claims_of, lines_of
from experiments.show.page import load_parts, parts_of, render, validation_of
from experiments.sweep.provenance import write_note
from experiments.sweep.rows import collect
from experiments.sweep.store import Study
from experiments.watch import Watch
from lrc_jax.errors import InputError
from theory.report import Report, to_json
from theory.show.render import console

DATA = {"data": None, "data.path": None}
USUAL = {"results_dir": "results", "cache_dir": ".cache"}
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Arm:
    """One multirun: its name, the study folder that it writes to, and the arguments of experiments.run."""

    name: str
    study: Study
    arguments: list[str]


def read_design(name: str) -> dict[str, Any]:
    """The design of a study. Raises InputError where there is none of this name."""
    path = CONF / "reproduce" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONF / "reproduce").glob("*.yaml")))
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


def arms(design: dict[str, Any], arguments: dict[str, Any]) -> list[Arm]:
    """The arms that can be run, with their command lines; says which cannot, and why.

    An arm with `overrides` brings its own data and teacher; one with `synthetic` and `text` runs on the data chosen
    for the whole study. `part` names the subfolder of the study that the arm writes to: arms of one claim on several
    data sets need one each, since a table holds one experiment per claim. `{name}` stands for an input of the design;
    an override with an optional input that is not given is left out, an arm with a required one is not run.
    """
    machine = [f"{key}={arguments[key]}" for key in ("results_dir", "cache_dir")] + ["allocator=true"]
    launcher = [] if arguments["launcher"] == "basic" else [f"hydra/launcher={arguments['launcher']}"]
    inputs: dict[str, dict[str, Any]] = design.get("inputs") or {}
    data: list[str] | None = None
    wanted = set(arguments["parts"].split(",")) if arguments["parts"] else set()
    parts = {arm["part"] for arm in design["arms"] if "part" in arm}
    if wanted - parts:
        unknown = ", ".join(sorted(wanted - parts))
        raise InputError(f"parts: the design has no {unknown}; it has {', '.join(sorted(parts)) or 'none'}")
    found = []
    for arm in design["arms"]:
        if wanted and arm.get("part") not in wanted:
            continue
        if "overrides" in arm:
            chosen, missing = _filled(arm["overrides"], inputs, arguments)
            if missing:
                print(f"{arm['name']}: not run, it needs {missing}={inputs[missing]['what']}")
                continue
        else:
            data = choose_data(arguments) if data is None else data
            kind = "synthetic" if data == ["data=synthetic"] else "text"
            if kind not in arm:
                print(f"{arm['name']}: not run, its design needs {', '.join(k for k in arm if k != 'name')} data")
                continue
            chosen = [*data, *arm[kind]]  # data= first: an arm's own group choices come after it
        folder = "/".join(filter(None, (arguments["study"], arm.get("part"))))
        study = Study.of(arguments["results_dir"], folder)
        found.append(Arm(arm["name"], study, ["-m", *chosen, f"study={folder}", *machine, *launcher]))
    return found


def _filled(
    overrides: list[str], inputs: dict[str, dict[str, Any]], arguments: dict[str, Any]
) -> tuple[list[str], str | None]:
    """Overrides with the inputs put in, and the name of a required input that is not given."""
    out = []
    for override in overrides:
        names = PLACEHOLDER.findall(override)
        absent = [n for n in names if not arguments.get(n)]
        required = next((n for n in absent if not inputs.get(n, {}).get("optional")), None)
        if required:
            return [], required
        if not absent:
            out.append(PLACEHOLDER.sub(lambda match: str(arguments[match.group(1)]), override))
    return out, None


def recorded(arm: Arm, given: dict[str, Any]) -> str:
    """An arm's command as a study records it: inputs by name and the usual folders, since paths are this machine's
    own."""
    names = {str(value): name for name, value in given.items() if value}
    words = []
    for word in arm.arguments:
        key, _, value = word.partition("=")
        if key.endswith(".path") and value in names:
            value = f"{{{names[value]}}}"
        words.append(f"{key}={USUAL.get(key, value)}" if value else word)
    return "python -m experiments.run " + " ".join(words)


def sweep(logs: Path, jobs: list[Arm], at_once: int) -> list[str]:
    """Run the arms' multiruns, a few at once; returns the names of those that failed. Output goes to logs."""
    logs.mkdir(parents=True, exist_ok=True)

    started_here: list[subprocess.Popen[bytes]] = []

    def one(arm: Arm) -> tuple[str, int]:
        with (logs / f"{arm.name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.run", *arm.arguments], stdout=log, stderr=subprocess.STDOUT
            )
            started_here.append(process)
            return arm.name, process.wait()

    for arm in jobs:
        print(f"{arm.name}: python -m experiments.run {' '.join(arm.arguments)}", flush=True)
    started = time.monotonic()
    failed = []
    studies = {str(arm.study.path): arm.study for arm in jobs}
    with Watch(list(studies.values())) as watch, ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(one, job) for job in jobs}
        try:
            while running:
                time.sleep(0.5)
                finished = {f for f in running if f.done()}
                running -= finished
                for future in finished:
                    name, code = future.result()
                    spent = duration(time.monotonic() - started)
                    outcome = "done" if code == 0 else f"exit code {code}, see {logs / name}.log"
                    watch.say(f"{name}: {outcome} ({spent})")
                    if code:
                        failed.append(name)
                if running:
                    watch.update()
        except KeyboardInterrupt:  # arms that wait do not start; those that run save their state and end
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started_here:
                process.terminate()
            raise
    return failed


def verdict_table(report: Report, title: str | None = None) -> Table:
    """The verdicts for a terminal, one line per measured quantity."""
    grid = Table(
        "claim", "verdict", "quantity", "measured, 95 % interval", "claimed", title=title, title_justify="left"
    )
    for line in lines_of(claims_of(report), report.margin):
        grid.add_row(line.claim, line.verdict, line.name, line.measured, line.target)
    return grid


def tell(study: Study) -> None:
    """Verdicts, figures and the page of a study and its parts, from their tables; the verdicts on the terminal too."""
    screen = console(120)
    parts = load_parts(study)
    for part in parts:
        write_text(part.study.path / "verdicts.json", to_json(part.report.to_dict()))
        for figure in part.figures:
            save(figure, part.study.path / "figures")
        save_table(part.report, part.study.path / "figures")
        screen.print(verdict_table(part.report, part.label or None))
    write_text(study.path / "report.html", render(study, parts, validation_of(study, None)))


def main() -> int:
    name = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith("study=")), "")
    design = read_design(name) if name else {}
    inputs = dict.fromkeys(design.get("inputs") or {})
    arguments = study_arguments(__doc__, **DATA, parts=None, launcher="basic", jobs="2", cache_dir=".cache", **inputs)
    if not str(arguments["jobs"]).isdigit() or int(arguments["jobs"]) < 1:
        raise InputError(f"jobs: {arguments['jobs']!r} is not a number of at least 1")
    started = time.monotonic()
    study = Study.of(arguments["results_dir"], arguments["study"])
    description = " ".join(design["description"].split())
    print(f"study {arguments['study']}: {description}", flush=True)
    jobs = arms(design, arguments)
    if not jobs:
        raise InputError("study: no arm can be run with the data and inputs given; see above")
    given = {name: arguments[name] for name in (*inputs, "data.path")}
    folders = {arm.study.path for arm in jobs}
    for path in folders:  # before the runs: a study that is interrupted says what it is, too
        lines = {arm.name: recorded(arm, given) for arm in jobs if arm.study.path == path}
        write_note(Study(path), description=description, commands=lines)
    try:
        failed = sweep(study.path / "logs", jobs, int(arguments["jobs"]))
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on with what is missing", INTERRUPTED)
    for path in folders:
        collect(Study(path))
    tell(study)
    runs = sum(len(part.runs()) for part in parts_of(study).values())
    print(f"{runs} runs, {duration(time.monotonic() - started)}; open {study.path / 'report.html'}")
    if failed:
        print(f"failed arms: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
