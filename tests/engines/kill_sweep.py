"""SIGKILL at random moments of a 60-run sweep: every run is done once, and the table is the uninterrupted one.

python tests/engines/kill_sweep.py [KILLS] [LAUNCHER] [LONGEST_SECONDS_BETWEEN_KILLS]
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
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


def main(kills: int = 100, launcher: str = "basic", longest: float = 8.0) -> None:
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    runs = folder / "results/killed/runs"
    killed, early, written = 0, 0, {}
    while killed < kills:
        process = sweep(folder, "killed", launcher)
        try:
            process.wait(rng.uniform(1, longest))
            early += 1  # the sweep was over before its killer came
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        for row in runs.glob("*/row.json"):  # a row that is there is never written again
            stamp = row.stat().st_mtime_ns
            assert written.setdefault(row, stamp) == stamp, f"{row} was computed twice"
        print(f"kill {killed}: {len(written)} rows", flush=True)
    began = time.monotonic()
    assert sweep(folder, "killed", launcher).wait() == 0
    assert sweep(folder, "whole", "basic").wait() == 0
    for row, stamp in written.items():
        assert row.stat().st_mtime_ns == stamp, f"{row} was computed twice"
    for study in ("killed", "whole"):
        subprocess.run([sys.executable, "-m", "experiments.collect", f"study={study}"], cwd=folder, check=True)
    tables = [(folder / f"results/{s}/measurements.csv").read_bytes() for s in ("killed", "whole")]
    same = tables[0] == tables[1]
    left = [p for p in runs.glob("*/*") if p.name == "claim.json" or p.name.endswith(".part")]
    print(f"{killed} kills, {early} early ends; {len(list(runs.glob('*/row.json')))} rows; equal tables: {same}; ")
    print(f"left behind: {[p.name for p in left]}; {time.monotonic() - began:.0f} s after the last kill")
    assert same or launcher != "basic"


if __name__ == "__main__":
    main(*(kind(a) for kind, a in zip((int, str, float), sys.argv[1:], strict=False)))
