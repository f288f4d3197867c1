"""Runs per minute of a 60-run sweep by our launchers, and by one PyTorch process per run
(`python -m experiments.bench --sweep --threads CORES`).

5 ranks x 4 sample sizes x 3 seeds x 200 steps of the small preset. Every way has the same cores: the basic launcher and
the PyTorch peer as threads of one process, the fused launcher and joblib as one process per core. The ways alternate in
rounds with a folder each time new. Teacher and compiled programs are cached by first runs whose time is not counted.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench.presets import PRESETS
from experiments.bench.timing import ROOT, pin
from lrc_jax.errors import InputError

RANKS, SAMPLES, SEEDS, STEPS = (8, 12, 16, 24, 32), (64, 128, 256, 512), (0, 1, 2), 200
SMALL = [
    f"teacher.hidden_size={PRESETS['small'].hidden_size}",
    f"teacher.intermediate_size={PRESETS['small'].intermediate_size}",
    f"teacher.layers={PRESETS['small'].layers}",
    f"teacher.heads={PRESETS['small'].heads}",
    f"teacher.kv_heads={PRESETS['small'].heads}",
    f"data.vocabulary={PRESETS['small'].vocabulary}",
    f"sequence_length={PRESETS['small'].length}",
    f"batch_size={PRESETS['small'].batch_size}",
    f"steps={STEPS}",
    "teacher.steps=100",
    "teacher.pool=2048",
    "data.order=1",
    "measure.test_samples=256",
]


def _joined(values: Any) -> str:
    return ",".join(map(str, values))


def ways(cores: int) -> dict[str, list[str]]:
    """Name -> overrides of each way of ours to run a sweep on so many cores."""
    if cores == 1:
        return {"basic": ["threads=1"], "fused": ["hydra/launcher=fused", "threads=1"]}
    return {
        "basic": [f"threads={cores}"],
        "joblib": ["+engine=joblib", f"hydra.launcher.n_jobs={cores}"],
        "fused": ["+engine=fused", f"hydra.launcher.inner.n_jobs={cores}"],
    }


def _sweep(cache: Path, way: str, grid: list[str], cores: int) -> float:
    """Seconds a run of one multirun in a folder of its own."""
    with tempfile.TemporaryDirectory() as results:
        arguments = [*SMALL, *grid, f"results_dir={results}", f"cache_dir={cache}", "allocator=true"]
        command = [sys.executable, "-m", "experiments.run", "-m", *arguments, *ways(cores)[way]]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            raise InputError(f"bench: the {way} sweep failed: {done.stderr.strip().splitlines()[-1]}")
        rows = len(list(Path(results).glob("*/runs/*/row.json")))
        print(f"  {way}: {rows} runs in {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds / rows


def _peer_process(python: str, threads: int) -> float:
    """Seconds of one process that trains one run with the PyTorch peer (no test loss, no files)."""
    began = time.monotonic()
    arguments = ["--preset", "small", "--steps", str(STEPS), "--threads", str(threads)]
    done = subprocess.run(
        [python, "-m", "experiments.bench.baseline", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise InputError(f"bench: the PyTorch peer failed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return time.monotonic() - began


def measure_sweep(
    *, threads: int = 1, rounds: int = 2, seeds: tuple[int, ...] = SEEDS, peer: str | None = None
) -> dict[str, Any]:
    """Runs per minute of each way, medians over rounds, and the fused launcher's ratio to the others.

    Args:
      threads: cores that every way has.
      peer: an interpreter that has PyTorch; None leaves the peer out.

    Raises:
      InputError: a sweep failed.
    """
    pin(threads)
    cache = Path(tempfile.mkdtemp(prefix="bench-sweep-"))
    grid = [f"rank={_joined(RANKS)}", f"samples={_joined(SAMPLES)}", f"seed={_joined(seeds)}"]
    first = [f"rank={_joined(RANKS)}", f"samples={SAMPLES[0]}", "seed=0"]  # all programs: one a rank, whatever the pool
    try:
        cold = {way: _sweep(cache, way, first, threads) for way in ways(threads)}
        measure = {way: functools.partial(_sweep, cache, way, grid, threads) for way in ways(threads)}
        if peer is not None:
            measure["peer"] = functools.partial(_peer_process, peer, threads)
        seconds: dict[str, list[float]] = {way: [] for way in measure}
        for _ in range(rounds):
            for way, seconds_a_run in measure.items():
                seconds[way].append(seconds_a_run())
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    per_minute = {name: 60 / statistics.median(s) for name, s in seconds.items()}
    return {
        "runs": len(RANKS) * len(SAMPLES) * len(seeds),
        "rounds": rounds,
        "threads": threads,
        "runs_per_minute": per_minute,
        "first_s_per_run": cold,
        "fused_over": {name: per_minute["fused"] / value for name, value in per_minute.items() if name != "fused"},
    }
