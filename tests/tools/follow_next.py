"""Follow the advice of `theory next` on planted laws until it decides, and compare with the full grid of the demo.

    python tests/tools/follow_next.py [--draws 20] [--simulations 24] [--claim generalization ...] [--json OUT]

Cost of a run is proportional to N (generalization, optimal_rank) or T (convergence). A table starts with a thin design;
each look takes the best set of runs that the rest of the budget allows, which is what the full grid costs. Reported by
law: how often following the advice and the full grid decide, how often their word is harmful, and the median of the
cost ratio over the draws, an undecided one counting with all that it spent.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from theory.design.next import DECIDED, next_runs
from theory.judge.check import check_table
from theory.planted.cases import planted_surface
from theory.planted.rates import Law, broken, power, with_offset
from theory.planted.surfaces import Design
from theory.tables import table_from_frame

#: The grid of conf/reproduce/demo.yaml.
RANKS, SAMPLES, STEPS = (2, 3, 4, 6, 8, 11, 15, 20, 26), (164, 512, 1600, 5120, 16400), (128, 512, 1600, 4096, 12800)
DEMO = Design(ranks=RANKS, samples=SAMPLES, steps=STEPS)
GRADIENTS = replace(DEMO, seeds=8, noise=0.4)
RISKS = replace(DEMO, noise=0.05)
DIMENSION = 64
MOST_LOOKS = 8


@dataclass(frozen=True)
class Planted:
    """A law: its claim, its mean by (rank, samples) or by (anything, steps), whether the claim is false of it, and the
    full and the thin design."""

    name: str
    claim: str
    law: Callable[..., Any]
    wrong: bool
    full: Design
    thin: Design

    @property
    def columns(self) -> tuple[str, ...]:
        return ("steps",) if self.claim == "convergence" else ("rank", "samples")

    def grid(self, design: Design) -> pd.DataFrame:
        """The runs of a design."""
        levels = {"rank": design.ranks, "samples": design.samples, "steps": design.steps}
        index = pd.MultiIndex.from_product(
            [*(levels[c] for c in self.columns), range(design.seeds)], names=[*self.columns, "seed"]
        )
        return index.to_frame(index=False).astype(np.float64)

    def measured(self, runs: pd.DataFrame, draw: int) -> pd.DataFrame:
        """The rows of runs. The same run gives the same row, whenever it is made."""
        values = np.array([self._run(*row, draw=draw) for row in runs.itertuples(index=False, name=None)])
        rows = runs.assign(seconds=runs[self.columns[-1]])
        if self.claim == "optimal_rank":
            return rows.assign(test_loss=1.0 + values, d_in=DIMENSION, d_out=DIMENSION)
        rows["gap" if self.claim == "generalization" else "grad_norm_sq"] = values
        return rows

    def _run(self, *row: float, draw: int) -> float:
        *point, seed = row
        of_seed = np.random.default_rng([draw, int(seed)])
        of_run = np.random.default_rng([draw, int(seed), *(int(v) for v in point)])
        deviation = self.full.intercept_sd * of_seed.standard_normal()
        for value in point:
            deviation += self.full.slope_sd * of_seed.standard_normal() * (np.log(value) - 6.0)
        mean = self.law(1.0, point[0]) if len(point) == 1 else self.law(*point)
        return float(mean * np.exp(deviation + self.full.noise * of_run.standard_normal()))


def planted() -> list[Planted]:
    """The handful of laws."""
    thin = replace(DEMO, ranks=(2, 4, 8, 15, 26), samples=(164, 512, 1600), steps=(128, 512, 1600), seeds=3)

    def gap(name: str, law: Law, wrong: bool) -> Planted:
        return Planted(f"gap {name}", "generalization", law, wrong, DEMO, replace(thin, noise=DEMO.noise))

    def gradient(c: float, wrong: bool) -> Planted:
        return Planted(f"gradient T^-{c:g}", "convergence", power(c, 0.0), wrong, GRADIENTS, thin)

    def risk(name: str, alpha: float, gamma: float, wrong: bool) -> Planted:
        surface = planted_surface(alpha, 1.0, gamma, 7.0, 1600)
        return Planted(f"optimum {name}", "optimal_rank", surface, wrong, RISKS, thin)

    return [
        gap("r/N", power(1.0), False), gap("r/sqrt N", power(0.5), False), gap("r/N^0.25", power(0.25), True),
        gap("r/N with a plateau", with_offset(power(1.0), 3.0, DEMO), True),
        gap("N^-0.75, then N^-0.25", broken(0.75, 0.25, DEMO), True),
        gradient(0.5, False), gradient(1.0, False), gradient(0.25, True),
        risk("N^0.4", 1.5, 1.0, False), risk("N^0.33", 2.0, 1.0, False), risk("N^0.75", 1.0, 1.5, True),
    ]  # fmt: skip


@dataclass
class Followed:
    """One draw: the last word, what was spent, the looks, and the word on the full grid."""

    word: str
    spent: float
    looks: int
    full_word: str
    full_cost: float


def follow(law: Planted, draw: int, simulations: int) -> Followed:
    """Start thin and follow the advice."""
    whole = law.measured(law.grid(law.full), draw)
    full_cost = float(whole["seconds"].sum())
    frame = law.measured(law.grid(law.thin), draw)
    looks = 0
    while True:
        looks += 1
        spent = float(frame["seconds"].sum())
        left = max(full_cost - spent, 1e-9)
        found = next_runs(table_from_frame(frame), law.claim, budget=left, simulations=simulations, seed=draw)
        if found.first_step is None or looks >= MOST_LOOKS:  # decided, or nothing affordable helps
            break
        frame = pd.concat([frame, law.measured(found.first_step.runs, draw)], ignore_index=True)
    word = check_table(whole, claims=[law.claim])[law.claim].verdict
    return Followed(found.verdict, spent, looks, word, full_cost)


def harmful(law: Planted, word: str) -> bool:
    """Would the word mislead?"""
    return word in DECIDED and (word == "REFUTED") != law.wrong


def summary(law: Planted, draws: Sequence[Followed]) -> dict[str, Any]:
    """The shares and medians of one law."""
    return {
        "law": law.name, "claim": law.claim, "draws": len(draws),
        "cost_ratio": float(np.median([d.spent / d.full_cost for d in draws])),
        "decided": float(np.mean([d.word in DECIDED for d in draws])),
        "decided_full": float(np.mean([d.full_word in DECIDED for d in draws])),
        "harmful": float(np.mean([harmful(law, d.word) for d in draws])),
        "harmful_full": float(np.mean([harmful(law, d.full_word) for d in draws])),
        "looks": float(np.mean([d.looks for d in draws])),
        "words": dict(Counter(d.word for d in draws)), "words_full": dict(Counter(d.full_word for d in draws)),
    }  # fmt: skip


def main() -> int:
    """Print one line per law as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--simulations", type=int, default=24)
    parser.add_argument("--claim", nargs="+", default=[])
    parser.add_argument("--json")
    options = parser.parse_args()
    lines = []
    for law in planted():
        if options.claim and law.claim not in options.claim:
            continue
        start = time.process_time()
        one = partial(follow, law, simulations=options.simulations)
        line = summary(law, [one(draw) for draw in range(options.draws)])
        lines.append(line)
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
        print(shown, f"{time.process_time() - start:.0f} s of processor", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
