"""Runs per minute of a 60-run sweep: basic launcher, fused launcher, and one PyTorch process a run
(`python -m experiments.bench --sweep`).

5 ranks x 4 sample sizes x 3 seeds x 200 steps of the small preset. The launchers alternate in rounds with a folder each
time new; teacher and compiled programs are cached by a first run of every rank, whose time is not counted, so that both
launchers start warm. The fused launcher's own programs are compiled in its first round, which is reported apart.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.presets import PRESETS
from experiments.rounds import ROOT
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


def _sweep(cache: Path, launcher: str, grid: list[str], threads: int) -> float:
    """Seconds of one multirun in a folder of its own."""
    with tempfile.TemporaryDirectory() as results:
        arguments = [*SMALL, *grid, f"results_dir={results}", f"cache_dir={cache}", f"threads={threads}"]
        arguments += [f"hydra/launcher={launcher}", "allocator=true"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "experiments.run", "-m", *arguments], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise InputError(f"bench: the {launcher} sweep failed: {done.stderr.strip().splitlines()[-1]}")
        rows = len(list(Path(results).glob("*/runs/*/row.json")))
        print(f"  {launcher}: {rows} runs in {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds / rows


def _peer_process(python: str, threads: int) -> float:
    """Seconds of one process that trains one run with the PyTorch peer (no test loss, no files)."""
    began = time.monotonic()
    arguments = ["--preset", "small", "--steps", str(STEPS), "--threads", str(threads)]
    done = subprocess.run(
        [python, "-m", "experiments.peer", *arguments],
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
    """Runs per minute of each way, medians over rounds, and their ratios."""
    cache = Path(tempfile.mkdtemp(prefix="bench-sweep-"))
    grid = [f"rank={_joined(RANKS)}", f"samples={_joined(SAMPLES)}", f"seed={_joined(seeds)}"]
    try:
        _sweep(cache, "basic", [f"rank={_joined(RANKS)}", "samples=64", "seed=0"], threads)
        cold = _sweep(cache, "fused", [f"rank={_joined(RANKS)}", "samples=64", "seed=0"], threads)
        seconds: dict[str, list[float]] = {"basic": [], "fused": [], "peer": []}
        for _ in range(rounds):
            for launcher in ("basic", "fused"):
                seconds[launcher].append(_sweep(cache, launcher, grid, threads))
            if peer is not None:
                seconds["peer"].append(_peer_process(peer, threads))
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    per_minute = {name: 60 / statistics.median(s) if s else None for name, s in seconds.items()}
    basic, fused, torch = per_minute["basic"], per_minute["fused"], per_minute["peer"]
    assert basic is not None and fused is not None
    return {
        "runs": len(RANKS) * len(SAMPLES) * len(seeds),
        "rounds": rounds,
        "threads": threads,
        "runs_per_minute": per_minute,
        "fused_cold_s_per_run": cold,
        "ratio_basic": fused / basic,
        "ratio_peer": None if torch is None else fused / torch,
    }
