"""Follow the advice of `theory choose` on runs that are all done, and compare with random runs for the same budget.

    python tests/tools/follow_choose.py [--budget 5e20] [--seeds 9]

The runs are Marin's ladder on Nemotron data (96 runs), of which the 11 cheapest are taken as done, as in
docs/howto/law.md; the budget includes them. Reported: the deviation that `theory choose` states for the ten most
expensive runs at the end, and the error of `theory fit` there (root mean square, relative); for random runs, the median
of that error over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scalebench import affordable, fitted, followed

from theory.design.choose_runs import Choice, choose_runs
from theory.tables import Table

RUNS = Path(__file__).parents[1] / "theory" / "inputs" / "marin_nemotron_wandb.csv"
COLUMNS = {"parameter_count": "params", "throughput/total_tokens": "tokens", "eval/paloma/macro_loss": "loss"}
LAW, COST = "E + A*params**-a + B*tokens**-b", "6*params*tokens"
DONE, POINTS = 11, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=5e20, help="FLOPs, with the runs that are done")
    parser.add_argument("--seeds", type=int, default=9, help="of the random choice")
    options = parser.parse_args()
    runs = pd.read_csv(RUNS)[list(COLUMNS)].rename(columns=COLUMNS).astype(float)  # integer costs would overflow
    runs = runs.iloc[np.argsort(runs.eval(COST), kind="stable")].reset_index(drop=True)
    cost, points = runs.eval(COST).to_numpy(), runs.tail(POINTS)
    left = options.budget - cost[:DONE].sum()
    known = runs.assign(loss=runs["loss"].where(runs.index < DONE))

    def ask(budget: float) -> Choice:
        return choose_runs(Table(known), [LAW], "loss", cost=COST, budget=budget, at=Table(points.drop(columns="loss")))

    def error(chosen: list[int]) -> float:
        predicted = fitted(runs.iloc[[*range(DONE), *chosen]], points, LAW, [], "loss", 1)
        return float(np.sqrt(np.mean((predicted / points["loss"] - 1.0) ** 2)))

    chosen = followed(known, runs["loss"], cost, left, ask)
    end = ask(1e-30).targets
    stated = float(np.sqrt(np.mean((end["sd"] / end["prediction"]) ** 2)))
    rest = np.arange(DONE, len(runs))
    others = [
        error(affordable(np.random.default_rng(seed).permutation(rest), cost, left)) for seed in range(options.seeds)
    ]
    print(f"budget {options.budget:.4g}, {options.budget / cost.sum():.1%} of all {len(runs)} runs; {DONE} done before")
    print(f"theory choose: {len(chosen)} runs more, stated deviation {stated:.2%}, error {error(chosen):.2%}")
    print(f"random: median error {np.median(others):.2%}, {min(others):.2%} to {max(others):.2%} ({len(others)} seeds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
