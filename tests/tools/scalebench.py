"""Fit published scaling laws and score them on runs at larger scale (ScaleBench, Li et al. 2026, arXiv 2604.22753).

    python tests/tools/scalebench.py FOLDER [--bootstraps 100]

FOLDER holds laws.csv and, per task, TASK_train.csv and TASK_test.csv. Every law is fitted to the training rows of each
group; R^2 is over the test rows of all groups, clipped to [-1, 1]. A law that is refused or fails counts -1. The mean
of a task is over all its laws. Tasks without a test table are skipped.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from theory import InputError
from theory.laws.user_law import fit_law

TARGETS = {
    "moe": "loss_validation",
    "data_constrained": "loss",
    "parallel": "loss",
    "farseer": "loss",
    "sparsity": "loss",
    "vocab": "unigram_normalized_loss",
}


def score(train: pd.DataFrame, test: pd.DataFrame, formula: str, signed: list[str], target: str, draws: int) -> float:
    """R^2 on the test rows, clipped to [-1, 1]."""
    predicted = np.full(len(test), np.nan)
    for group, rows in train.groupby("group"):
        fit = fit_law(rows, formula, target, signed=signed, bootstraps=draws)
        here = (test["group"] == group).to_numpy()
        data = {c: test[c].to_numpy(dtype=np.float64)[here] for c in fit.law.columns}
        predicted[here] = fit.law.value(np.array(list(fit.estimates.values())), data)
    true = test[target].to_numpy()
    r2 = 1.0 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2)
    return float(np.clip(r2, -1.0, 1.0)) if np.isfinite(r2) else -1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bootstraps", type=int, default=100)
    options = parser.parse_args()
    warnings.simplefilter("error")  # a law that warns has failed
    laws = pd.read_csv(options.folder / "laws.csv").fillna("")
    begin, failures = time.monotonic(), 0
    for task, group in laws.groupby("task", sort=False):
        files = [options.folder / f"{task}_{part}.csv" for part in ("train", "test")]
        if not all(f.is_file() for f in files):
            continue
        train, test = (pd.read_csv(f) for f in files)
        scores = []
        for _, law in group.iterrows():
            start, said = time.monotonic(), ""
            try:
                scores.append(
                    score(train, test, law["formula"], law["signed"].split(), TARGETS[str(task)], options.bootstraps)
                )
            except (InputError, ArithmeticError, ValueError, Warning, np.linalg.LinAlgError) as error:
                scores.append(-1.0)
                said, failures = f"  {type(error).__name__}: {error}", failures + 1
            print(f"{task} {law['law']}: R^2 {scores[-1]:.4f}, {time.monotonic() - start:.1f} s{said}", flush=True)
        print(f"{task}: mean R^2 {np.mean(scores):.4f} over {len(scores)} laws")
    print(f"{time.monotonic() - begin:.0f} s in all, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
