"""What an accelerator does with the training step, in at most ten minutes (`python -m experiments.bench --gpu`).

For each preset: our step and the plain one, in float32, TF32 and bfloat16, against PyTorch compiled and eager; then 256
students in one program against one after another. Workers take turns as on a CPU. First losses must agree with those
of a CPU in float32 (`to CPU`: the largest relative difference). PyTorch's workers start at once and compile while ours
do, two at a time. Each preset's numbers are written as
they come: what is done survives a time-out, and the same command with the same --json resumes there.

`--tiny` goes the same way on the CPU with toy shapes: it says that the command works, and nothing about speed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.presets import PRECISIONS, PRESETS
from experiments.bench.timing import ROOT, Worker, take_turns, workers
from experiments.common.files import write_json
from lrc_jax.errors import InputError

TURN_SECONDS = 0.3
COMPILING = 2  # of our workers at a time: more would disturb the trials by which XLA chooses its kernels
# Largest relative difference of a precision's first losses from those of a CPU in float32.
AGREE = {"float32": 1e-4, "tensorfloat32": 1e-2, "bfloat16": 3e-2}
# (way, precision) by preset; "smollm2" compiles for a minute or more.
PLAN = {
    "big": [("ours", "float32"), ("plain", "float32"), ("ours", "bfloat16"), ("ours", "tensorfloat32"),
            ("peer", "float32"), ("peer", "bfloat16"), ("peer", "tensorfloat32"), ("peer_eager", "float32")],
    "smollm2": [("ours", "bfloat16"), ("ours", "float32"), ("peer", "bfloat16"), ("peer", "float32")],
    "small": [("ours", "float32"), ("plain", "float32"), ("ours", "bfloat16"),
              ("peer", "float32"), ("peer", "bfloat16"), ("peer_eager", "float32")],
}  # fmt: skip
TINY = {"test": [("ours", "float32"), ("ours", "bfloat16"), ("plain", "float32"), ("peer_eager", "float32")]}
MANY = {"base": (8, 32, 200), "small": (4, 64, 200)}  # preset: ranks, seeds, steps
TINY_MANY = {"test": (4, 2, 20)}


def card(platform: str) -> str:
    """The accelerator's name."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"bench --gpu: JAX finds no device of kind {platform} here; --tiny runs on the CPU")
    return done.stdout.splitlines()[-1]


def difference(wanted: dict[str, float], worker: Worker) -> float:
    """Largest relative difference of a worker's first losses from those of a CPU."""
    return max(abs(worker.losses[term] - value) / abs(value) for term, value in wanted.items())


def torch_version(python: str) -> str:
    """Of an interpreter that has PyTorch."""
    command = [python, "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Bench:
    """The measurements of one call; `result` is what is known so far."""

    def __init__(self, platform: str, peer: str | None, minutes: float, rounds: int, out: Path | None) -> None:
        self.platform, self.peer, self.rounds, self.out = platform, peer, rounds, out
        self.end = time.monotonic() + 60 * minutes
        self.result: dict[str, Any] = {
            "card": card(platform),
            "jax": importlib.metadata.version("jax"),
            "torch": peer and torch_version(peer),
            "rounds": rounds,
            "limit": {},
            "step": {},
            "many": {},
            "left_out": [],
            "failed": [],
        }
        if out is not None and out.exists():
            self.go_on(json.loads(out.read_text()))

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Keep what an earlier call measured on the same card with the same libraries."""
        for what in ("card", "jax", "torch"):
            if earlier.get(what) != self.result[what]:
                raise InputError(f"{self.out}: measured with {what} {earlier.get(what)}, here {self.result[what]}")
        self.result |= {part: earlier[part] for part in ("limit", "step", "many")}

    def say(self, text: str) -> None:
        print(f"[{self.end - time.monotonic():4.0f} s left] {text}", file=sys.stderr, flush=True)

    def keep(self) -> None:
        if self.out is not None:
            write_json(self.out, self.result)

    def late(self, what: str) -> bool:
        """Whether the time is over; then it is noted what is left out."""
        over = time.monotonic() > self.end
        if over:
            self.result["left_out"].append(what)
            self.say(f"no time for {what}")
        return over

    def limits(self, start: Callable[..., Worker], cache: str) -> None:
        """FLOP/s of large products in each precision."""
        for precision in PRECISIONS if self.platform == "cuda" else ("float32",):
            if precision in self.result["limit"] or self.late(f"large products in {precision}"):
                continue
            products = start(
                "experiments.bench.step", "--variant", "matmul", "--platform", self.platform,
                "--precision", precision, "--preset", "test", "--cache", cache,
            )  # fmt: skip
            products.seconds(2)
            seconds = sorted(products.seconds(5) for _ in range(3))[1]
            self.result["limit"][precision] = products.facts["products_flops"] / seconds
            products.close()
            self.say(f"{precision}: {self.result['limit'][precision] / 1e12:.3g} TFLOP/s")
        self.keep()

    def ready(self, worker: Worker, what: str) -> bool:
        """Wait for a worker's first step; one that fails is noted, and the others go on."""
        try:
            worker.wait(self.end - time.monotonic())
        except InputError as wrong:
            if not self.late(what):
                self.result["failed"].append(f"{what}: {wrong}")
                self.say(f"{what} failed")
            return False
        return True

    def step(self, start: Callable[..., Worker], name: str, plan: list[tuple[str, str]], cache: str) -> None:
        """Seconds a step of each way for one preset."""
        module = "experiments.bench.step"
        shared = ("--preset", name, "--cache", cache)
        on = ("--preset", name, "--serve", "--device", self.platform)
        count = start(module, *shared, "--variant", "count", "--threads", "8", wait=False)
        peers = {
            (way, precision): start(
                "experiments.bench.baseline", *on, "--precision", precision, *(["--compile"] if way == "peer" else []),
                python=self.peer, wait=False,
            )
            for way, precision in plan
            if way.startswith("peer") and self.peer is not None
        }  # fmt: skip
        ways: dict[tuple[str, str], Worker] = {}
        begun: list[tuple[tuple[str, str], Worker]] = []

        def first() -> None:
            """Wait for the worker that was begun first."""
            key, worker = begun.pop(0)
            if self.ready(worker, f"{name} {' '.join(key)}"):
                ways[key] = worker
                self.say(f"{name} {' '.join(key)} compiled in {worker.facts['compile_s']:.0f} s")

        for way, precision in plan:
            if way.startswith("peer") or self.late(f"{name} {way} {precision}"):
                continue
            if len(begun) == COMPILING:
                first()
            options = ("--variant", way, "--platform", self.platform, "--precision", precision)
            begun.append(((way, precision), start(module, *shared, *options, wait=False)))
        while begun:
            first()
        ways |= {key: worker for key, worker in peers.items() if self.ready(worker, f"{name} {' '.join(key)}")}
        count.wait()
        self.say(f"{name}: taking turns")
        flops = count.facts["step_flops"]
        count.close()
        median = take_turns({" ".join(key): worker for key, worker in ways.items()}, self.rounds, TURN_SECONDS)
        rows = []
        for (way, precision), worker in ways.items():
            seconds, ours = median[f"{way} {precision}"], median.get(f"ours {precision}")
            limit = self.result["limit"].get(precision)
            off = difference(count.losses, worker)
            if not off <= AGREE[precision]:
                self.result["failed"].append(f"{name} {way} {precision}: first losses differ from a CPU's by {off:.1e}")
            rows.append(
                {
                    "way": way, "precision": precision, "step_s": seconds, "to_ours": ours and seconds / ours,
                    "tokens_per_s": PRESETS[name].tokens / seconds, "flop_per_s": flops / seconds,
                    "share_of_limit": limit and flops / seconds / limit, "peak_mb": worker.peak_mb,
                    "compile_s": worker.facts.get("compile_s"), "differs_from_cpu": off,
                }
            )  # fmt: skip
            worker.close()
        self.result["step"][name] = {"tokens": PRESETS[name].tokens, "step_gflop": flops / 1e9, "rows": rows}
        self.keep()

    def many(self, name: str, ranks: int, seeds: int, steps: int, cache: str) -> None:
        """Students in one program against one after another."""
        if self.late(f"{ranks * seeds} students of {name}"):
            return
        out = Path(cache) / f"{name}.json"
        numbers = ("--ranks", str(ranks), "--seeds", str(seeds), "--steps", str(steps))
        command = [sys.executable, "-m", "experiments.bench.many", "--preset", name, "--platform", self.platform]
        command += [*numbers, "--cache", cache, "--json", str(out)]
        self.say(f"{ranks * seeds} students of {name}")
        left = max(1.0, self.end - time.monotonic())
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            self.late(f"{ranks * seeds} students of {name}")
            return
        if done.returncode:
            self.result["failed"].append(f"{ranks * seeds} students of {name}: exit code {done.returncode}")
            return
        self.result["many"][name] = json.loads(out.read_text())
        self.keep()


def measure_gpu(
    *,
    tiny: bool,
    peer: str | None,
    minutes: float = 8.0,
    rounds: int = 5,
    parts: Sequence[str] = (),
    out: Path | None = None,
) -> dict[str, Any]:
    """All of it (see the module).

    Args:
      tiny: toy shapes on the CPU.
      peer: an interpreter that has PyTorch, or None.
      minutes: after these no further part is begun.
      parts: presets, and "many" for the students in one program; none takes all.
      out: a JSON file, rewritten after every part; what it holds already is kept and not measured again.
    """
    platform = "cpu" if tiny else "cuda"
    # Many processes share the card: none may take it whole.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    bench = Bench(platform, peer, minutes, rounds, out)
    bench.say(f"{bench.result['card']}, jax {bench.result['jax']}, PyTorch {bench.result['torch']}")
    with tempfile.TemporaryDirectory(prefix="bench-") as cache:
        with workers() as start:
            bench.limits(start, cache)
        for name, plan in (TINY if tiny else PLAN).items():
            if name in bench.result["step"] or (parts and name not in parts) or bench.late(f"the step of {name}"):
                continue
            with workers() as start:
                bench.step(start, name, plan, cache)
        for name, numbers in (TINY_MANY if tiny else MANY).items():
            if name not in bench.result["many"] and (not parts or "many" in parts):
                bench.many(name, *numbers, cache)
    return bench.result


def show_gpu(r: dict[str, Any]) -> None:
    """One table of the step and one of many students."""
    limits = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in r["limit"].items())
    print(f"{r['card']}, jax {r['jax']}, PyTorch {r['torch'] or 'none'}; large products, TFLOP/s: {limits}")
    print(f"{'':10}{'way':12}{'precision':15}{'ms':>9}{'to ours':>9}{'tokens/s':>12}{'of limit':>10}{'MB':>8}"
          f"{'to CPU':>10}")  # fmt: skip
    for name, preset in r["step"].items():
        for row in preset["rows"]:
            ratio = "" if row["to_ours"] is None else f"{row['to_ours']:.2f}"
            share = "" if row["share_of_limit"] is None else f"{row['share_of_limit']:.3f}"
            numbers = f"{row['tokens_per_s']:12,.0f}{share:>10}{row['peak_mb']:8,.0f}{row['differs_from_cpu']:10.1e}"
            print(f"{name:10}{row['way']:12}{row['precision']:15}{1e3 * row['step_s']:9.3f}{ratio:>9}{numbers}")
    from experiments.bench.many import show

    for many in r["many"].values():
        show(many)
    for wrong in r["failed"]:
        print(f"failed: {wrong}")
    if r["left_out"]:
        print("left out for time: " + ", ".join(r["left_out"]))
