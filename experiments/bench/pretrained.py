"""Claim 6 at a pretrained teacher: the clone, direct training and a fresh student over budgets, in one table.

    python -m experiments.bench.pretrained --teacher FILE.gguf --text FOLDER --rank 192 --out table.csv \\
        --platform cuda --bf16 --cloze FOLDER --seconds 300
    python -m theory check table.csv --claim efficiency

The methods run beside each other, each in a process of its own. First every method is trained at the smallest budget
with a seed of its own (PILOT_SEED) at each of the pilot's learning rates; b has the lowest validation loss. The study
then has the rates b/4, b/2, b and 2b, since longer runs do not want higher ones: all four at seed 0, and b/2 and b at
the other seeds. The fresh student, which decides nothing, has seed 0 alone. The table is written as rows come; runs
that do not fit into --seconds are left out and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common.command import guarded, prepare_jax
from experiments.common.files import write_csv
from experiments.run_one.config import RunConfig
from experiments.run_one.version import code_version
from lrc_jax.errors import InputError

METHODS: dict[str, dict[str, Any]] = {
    "clone:pca": {"student": "lrc"},
    "direct:pca": {"student": "direct"},
    "scratch": {"student": "scratch", "clone_weight": 0.0},
}
SEEDED = ("clone:pca", "direct:pca")  # what claim 6 compares
PILOT_SEED = 100
PILOT_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
AROUND = (0.25, 0.5, 1.0, 2.0)  # of the pilot's best
INNER = (0.5, 1.0)  # of these, the ones that further seeds have


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run: steps, learning rate, seed."""

    steps: int
    rate: float
    seed: int


def plan(best: float, budgets: list[int], seeds: int) -> Iterator[Planned]:
    """The runs of a method, the pilot's best rate given: seed by seed, from the smallest budget to the largest."""
    for seed in range(seeds):
        for steps in budgets:
            for factor in INNER if seed else AROUND:
                yield Planned(steps, factor * best, seed)


class Method:
    """One method's runs, in this process."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        from lrc_jax.teachers.load import load_teacher
        from lrc_jax.training.distill import DistillSettings
        from lrc_jax.training.text_pools import read_pools

        self.name, self.args = name, args
        self.teacher = load_teacher(str(args.teacher))
        self.pools = read_pools(str(args.text), self.teacher, args.sequence_length, evaluated=args.held_out)
        self.settings = DistillSettings(
            str(args.teacher), str(args.text), args.rank, 0, batch_size=args.batch_size,
            sequence_length=args.sequence_length, bf16=args.bf16, **METHODS[name],
        )  # fmt: skip
        self.items: list[Any] = []
        if args.cloze is not None:
            from lrc_jax.inference.cloze import read_items

            self.items = read_items(args.cloze)[: args.items]
        self.teacher_cloze = self.cloze(self.teacher.config, self.teacher.weights)
        self.last: Any = None
        self.step_s = 0.0  # seconds a step took last

    def prepared(self, seed: int) -> Any:
        """The student of a seed before its training; kept, since a seed's runs follow one another."""
        from lrc_jax.training.distill import prepare

        if self.last is None or self.last.settings.seed != seed:
            settings = dataclasses.replace(self.settings, seed=seed)
            self.last = prepare(settings, teacher=self.teacher, pools=self.pools)
        return self.last

    def cloze(self, config: Any, weights: Any) -> dict[str, float]:
        """What a model answers of the task; nothing where there is no task."""
        from experiments.run_one.columns.groups import cloze_answers

        if not self.items:
            return {}
        return cloze_answers(config, weights, self.teacher.require_tokenizer(), self.items)

    def run(self, planned: Planned) -> dict[str, Any]:
        """Train and measure one student."""
        from experiments.run_one.columns.method import costs
        from lrc_jax.training.distill import fit

        prepared = self.prepared(planned.seed)
        settings = dataclasses.replace(
            prepared.settings, steps=planned.steps, learning_rate=planned.rate, seed=planned.seed
        )
        began = time.monotonic()
        trained = fit(dataclasses.replace(prepared, settings=settings))
        seconds = time.monotonic() - began  # with its measurement, on a shared device: for planning alone
        self.step_s = seconds / planned.steps
        args, student = self.args, prepared.student
        row = {
            "method": self.name, "rank": args.rank, "data": Path(args.text).name,
            "sequence_length": args.sequence_length, "batch_size": args.batch_size, "seed": planned.seed,
            "learning_rate": planned.rate, "steps": planned.steps,
            **costs(student, prepared.objective, args.batch_size, args.sequence_length, planned.steps),
            "test_loss": trained.report["loss_after"], "valid_loss": trained.report["validation_loss"],
            "loss_before": prepared.loss_before, "teacher_loss": prepared.teacher_loss,
            "run_seconds": round(seconds, 2), "claim": "efficiency",
            "data_digest": self.pools.digest, "code_version": code_version(),
        }  # fmt: skip
        row |= self.cloze(student.config, trained.weights)
        if self.teacher_cloze:
            row["teacher.cloze_accuracy"] = self.teacher_cloze["cloze_accuracy"]
        return row

    def all(self) -> Iterator[dict[str, Any]]:
        """The pilot's rows, which have `pilot` = 1, then those of the study."""
        budgets = self.args.budgets
        losses: dict[float, float] = {}
        for rate in self.args.pilot_rates:
            row = self.run(Planned(budgets[0], rate, PILOT_SEED))
            losses[rate] = row["valid_loss"]
            yield row | {"pilot": 1}
        best = min(losses, key=lambda rate: losses[rate])
        seeds = self.args.seeds if self.name in SEEDED else 1
        for planned in plan(best, budgets, seeds):
            if time.time() + planned.steps * self.step_s > self.args.end:
                yield {"left_out": f"{self.name}, {planned.steps} steps, rate {planned.rate:g}, seed {planned.seed}"}
            else:
                yield self.run(planned) | {"pilot": 0}


def work(name: str, args: argparse.Namespace) -> int:
    """One method: a line of JSON for each run, on standard output."""
    prepare_jax(RunConfig(platform=args.platform, threads=args.threads))
    for row in Method(name, args).all():
        print(json.dumps(row), flush=True)
    return 0


def written(out: Path, rows: list[dict[str, Any]]) -> None:
    """The table and, beside it, the pilot's."""
    for pilot, path in ((0, out), (1, out.with_name(f"{out.stem}_pilot{out.suffix}"))):
        if chosen := [row for row in rows if row["pilot"] == pilot]:
            table = pd.DataFrame(chosen).drop(columns="pilot")
            write_csv(path, table.sort_values(["method", "seed", "tokens", "learning_rate"]))


def lead(args: argparse.Namespace) -> int:
    """Start a process for each method and gather their rows."""
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pretrained-") as folder:
        files = {name: Path(folder) / f"{number}.jsonl" for number, name in enumerate(args.methods)}
        started = []
        for name, path in files.items():
            command = [sys.executable, "-m", "experiments.bench.pretrained", *sys.argv[1:], "--method", name]
            with path.open("w") as file:
                started.append(subprocess.Popen([*command, "--end", str(args.end)], cwd=Path.cwd(), stdout=file))
        try:
            while True:
                over = all(process.poll() is not None for process in started)
                lines = [line for path in files.values() for line in path.read_text().splitlines(keepends=True)]
                found = [json.loads(line) for line in lines if line.endswith("\n")]
                left_out = [row["left_out"] for row in found if "left_out" in row]
                if len(found) - len(left_out) > len(rows):
                    rows = [row for row in found if "left_out" not in row]
                    written(args.out, rows)
                    print(f"{time.monotonic() - began:4.0f} s: {len(rows)} runs", file=sys.stderr, flush=True)
                if over:
                    break
                time.sleep(1)
        finally:
            for process in started:
                process.kill()
    for what in left_out:
        print(f"left out for time: {what}")
    print(f"{args.out}: {sum(not row['pilot'] for row in rows)} runs, {sum(row['pilot'] for row in rows)} of the pilot")
    failed = [name for name, process in zip(files, started, strict=True) if process.returncode]
    if failed:
        raise InputError(f"bench: {', '.join(failed)} failed; the message is above")
    return 0


def parser_of(module: str, description: str | None, held_out: int) -> argparse.ArgumentParser:
    """The options of a command that measures a pretrained teacher on a text and writes a table.

    Args:
      held_out: default of --held-out.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="folder, .gguf file or name on the hub")
    parser.add_argument("--text", type=Path, required=True, help="as for lrc distill")
    parser.add_argument("--out", type=Path, required=True, help="the table, CSV")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=held_out, help="most sequences of test and of validation text")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on a CPU")
    return parser


def parser() -> argparse.ArgumentParser:
    parser = parser_of("experiments.bench.pretrained", __doc__, held_out=256)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[60, 190, 600], metavar="STEPS")
    parser.add_argument("--seeds", type=int, default=3, help="of the clone and of direct training")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--cloze", type=Path, metavar="FOLDER", help="a task of `lrc cloze` to measure every student on"
    )
    parser.add_argument("--items", type=int, default=300, help="of the task")
    parser.add_argument("--pilot-rates", type=float, nargs="+", default=PILOT_RATES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run that would end later")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = parser().parse_args()
    args.budgets = sorted(args.budgets)
    if args.method is not None:
        return work(args.method, args)
    args.end = time.time() + args.seconds
    return lead(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
