"""SIGKILL at random moments of a 60-run sweep: every run is done once, and the table is the uninterrupted one.

python tests/engines/kill_sweep.py [KILLS] [LAUNCHER] [LONGEST_SECONDS_BETWEEN_KILLS]

A sweep that ends before its killer comes is compared, and another one is started until all kills are spent.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = """teacher.hidden_size=16 teacher.intermediate_size=16 teacher.steps=40 teacher.check_every=20 teacher.pool=512
data.vocabulary=8 sequence_length=6 batch_size=8 steps=200 measure.test_samples=64 measure.reference_samples=64
rank=2,3,4,6,8 samples=32,64,96,128 seed=0,1,2"""
SMALL = TEXT.split()


def sweep(folder: Path, study: str, launcher: str) -> subprocess.Popen[bytes]:
    arguments = [*SMALL, f"study={study}", f"hydra/launcher={launcher}"]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", "-m", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed_until_done(folder: Path, study: str, launcher: str, rng: random.Random, kills: int, longest: float) -> int:
    """Kill a sweep at most `kills` times, then let it end; returns how often it was killed."""
    runs, killed, written = folder / f"results/{study}/runs", 0, {}
    while True:
        process = sweep(folder, study, launcher)
        try:
            code = process.wait(rng.uniform(1, longest) if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            code = None
        for row in runs.glob("*/row.json"):  # a row that is there is never written again
            stamp = row.stat().st_mtime_ns
            assert written.setdefault(row, stamp) == stamp, f"{row} was computed twice"
        print(f"{study}: {killed} kills, {len(written)} rows", flush=True)
        if code is not None:
            assert code == 0, f"exit code {code}"
            return killed


def table(folder: Path, study: str) -> bytes:
    subprocess.run([sys.executable, "-m", "experiments.collect", f"study={study}"], cwd=folder, check=True)
    return (folder / f"results/{study}/measurements.csv").read_bytes()


def main(kills: int = 100, launcher: str = "basic", longest: float = 8.0) -> None:
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    assert sweep(folder, "whole", "basic").wait() == 0
    whole, spent, sweeps = table(folder, "whole"), 0, 0
    while spent < kills:
        study = f"killed_{sweeps}"
        spent += killed_until_done(folder, study, launcher, rng, kills - spent, longest)
        sweeps += 1
        runs = folder / f"results/{study}/runs"
        left = [p for p in runs.glob("*/*") if p.name == "claim.json" or p.name.endswith(".part")]
        # Fused rows depend, in their last digits, on which runs were trained together.
        assert table(folder, study) == whole or launcher == "fused", f"{study}: its table is not the uninterrupted one"
        assert len(list(runs.glob("*/row.json"))) == 60
        assert not left, f"left behind: {left}"
    print(f"{spent} kills over {sweeps} sweeps of 60 runs; every run once, every table equal, nothing left behind")


if __name__ == "__main__":
    main(*(kind(a) for kind, a in zip((int, str, float), sys.argv[1:], strict=False)))
