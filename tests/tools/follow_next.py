"""Follow the advice of `theory next` on planted laws until it decides, and compare with the full grid of a study.

    python tests/tools/follow_next.py [--grid demo] [--draws 20] [--simulations 24] [--claim generalization ...]
                                      [--looks 4] [--spending pocock] [--edge 2000] [--json OUT]

Cost of a run is proportional to N (generalization, optimal_rank) or T (convergence). A pilot, the thin design, is run
first and not judged; before each look the best set of runs is added that the rest of the budget allows, which is what
the full grid costs, and the look is judged at the level that it may spend (`theory.judge.looks`). Reported by law: how
often following the advice and the full grid decide, how often the full grid cut in seeds to the same cost does, how
often their word is harmful, and the median of the cost ratio over the draws, an undecided one counting with all that
it spent.

`--at-margin` follows the advice on the true laws that are hardest not to refute: worse than claimed by just the
margin. `--edge DRAWS` does not follow it: on such a law a block of seeds is added before each look, by the number of
looks, with and without spending.
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

from theory.claims import generalization
from theory.design.next import BLOCK, next_step, pilot
from theory.judge import gates
from theory.judge.cells import build_cells
from theory.judge.check import check_table
from theory.judge.intervals import spending
from theory.judge.looks import LOOKS as USUAL_LOOKS
from theory.judge.looks import RULE, RULES, Looks, look
from theory.judge.rates import words_of
from theory.judge.verdicts import DECIDED, MARGIN, REFUTED
from theory.planted.cases import planted_surface
from theory.planted.rates import Law, broken, power, with_offset
from theory.planted.surfaces import Design, gap_table
from theory.tables import table_from_frame

#: The grids of conf/reproduce: of demo.yaml, and of one matrix and convergence in full.yaml.
DEMO = Design(
    ranks=(2, 3, 4, 6, 8, 11, 15, 20, 26), samples=(164, 512, 1600, 5120, 16400), steps=(128, 512, 1600, 4096, 12800)
)
FULL = Design(
    ranks=(2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 26), samples=tuple(128 * 2**k for k in range(8)),
    steps=tuple(256 * 4**k for k in range(5)), seeds=6,
)  # fmt: skip
GRIDS = {"demo": DEMO, "full": FULL}
SEEDS, NOISE = {"convergence": 8}, {"convergence": 0.4, "optimal_rank": 0.05}
DIMENSION = 64


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


def thin(full: Design) -> Design:
    """That of `lrc decide`."""
    chosen = pilot({"rank": full.ranks, "samples": full.samples, "steps": full.steps, "seed": range(full.seeds)})
    ranks, samples, steps, seeds = (tuple(values) for values in chosen.values())
    return replace(full, ranks=ranks, samples=samples, steps=steps, seeds=len(seeds))


def planted(grid: Design = DEMO, *, at_margin: bool = False) -> list[Planted]:
    """The handful of laws; or those that are true and hardest not to refute: worse than claimed by just the margin."""

    def on_grid(name: str, claim: str, law: Callable[..., Any], wrong: bool) -> Planted:
        full = replace(grid, seeds=SEEDS.get(claim, grid.seeds), noise=NOISE.get(claim, grid.noise))
        return Planted(name, claim, law, wrong, full, thin(full))

    def gap(name: str, law: Law, wrong: bool) -> Planted:
        return on_grid(f"gap {name}", "generalization", law, wrong)

    def gradient(c: float, wrong: bool) -> Planted:
        return on_grid(f"gradient T^-{c:g}", "convergence", power(c, 0.0), wrong)

    def risk(name: str, alpha: float, gamma: float, wrong: bool) -> Planted:
        return on_grid(f"optimum {name}", "optimal_rank", planted_surface(alpha, 1.0, gamma, 7.0, 1600), wrong)

    if at_margin:
        return [gap("r^1.1/N^0.4", power(0.5 - MARGIN, 1 + MARGIN), False), gradient(0.5 - MARGIN, False)]
    return [
        gap("r/N", power(1.0), False), gap("r/sqrt N", power(0.5), False), gap("r/N^0.25", power(0.25), True),
        gap("r/N with a plateau", with_offset(power(1.0), 3.0, grid), True),
        gap("N^-0.75, then N^-0.25", broken(0.75, 0.25, grid), True),
        gradient(0.5, False), gradient(1.0, False), gradient(0.25, True),
        risk("N^0.4", 1.5, 1.0, False), risk("N^0.33", 2.0, 1.0, False), risk("N^0.75", 1.0, 1.5, True),
    ]  # fmt: skip


@dataclass
class Followed:
    """One draw: the last word, what was spent, the looks (the pilot is none), the word on the full grid, and that on it
    with as many whole seeds as cost about what was spent."""

    word: str
    spent: float
    looks: int
    full_word: str
    full_cost: float
    equal_word: str


def follow(law: Planted, draw: int, simulations: int, looks: Looks | None = None) -> Followed:
    """Start thin and follow the advice."""
    looks = looks or Looks()
    whole = law.measured(law.grid(law.full), draw)
    full_cost = float(whole["seconds"].sum())
    frame = law.measured(law.grid(law.thin), draw)
    word, made = check_table(frame, claims=[law.claim])[law.claim].verdict, 0
    last = False
    while not last:
        left = full_cost - float(frame["seconds"].sum())
        step = next_step(table_from_frame(frame), law.claim, looks, made, left, simulations=simulations, seed=draw)
        if step.share is None:
            break
        if step.runs is not None:
            frame = pd.concat([frame, law.measured(step.runs.runs, draw)], ignore_index=True)
        made, last = made + 1, step.last
        word, _ = look(table_from_frame(frame), law.claim, step.share)
        if word in DECIDED:
            break
    spent = float(frame["seconds"].sum())
    equal = whole[whole["seed"] < max(1, round(spent / full_cost * law.full.seeds))]
    full_word, equal_word = (check_table(t, claims=[law.claim])[law.claim].verdict for t in (whole, equal))
    return Followed(word, spent, made, full_word, full_cost, equal_word)


def harmful(law: Planted, word: str) -> bool:
    """Would the word mislead?"""
    return word in DECIDED and (word == REFUTED) != law.wrong


def refuted_at_the_edge(draws: int, looks: Looks) -> dict[str, float]:
    """Share of tables of a true law, worse than claimed by the margin, that some look refutes: each at the level of
    one look, and with the error spent."""
    seeds = gates.MIN_SEEDS + BLOCK * (looks.planned - 1)
    design = replace(DEMO, ranks=(2, 4, 8, 15, 26), samples=(164, 512, 1600, 5120, 16400), seeds=seeds)
    names = ["rank", "samples"]
    refuted = np.zeros((draws, 2), dtype=bool)
    for draw in range(draws):
        rank, samples = (generalization.CLAIMED[c] + MARGIN for c in names)
        frame = gap_table(rank, -samples, design, np.random.default_rng([2, draw]))
        for k in range(looks.planned):
            rows = frame[frame["seed"] < gates.MIN_SEEDS + BLOCK * k]
            cells = build_cells(rows, names, "gap")
            for way, share in enumerate((1.0, looks.share(k + 1))):
                if not refuted[draw, way]:
                    with spending(share):
                        words = words_of(cells, "gap", generalization.COORDINATES, MARGIN)
                    refuted[draw, way] = REFUTED in words.values()
    every, spent = refuted.mean(axis=0)
    return {"looks": looks.planned, "each_at_95": float(every), "spent": float(spent)}


def summary(law: Planted, draws: Sequence[Followed]) -> dict[str, Any]:
    """The shares and medians of one law."""
    return {
        "law": law.name, "claim": law.claim, "draws": len(draws),
        "cost_ratio": float(np.median([d.spent / d.full_cost for d in draws])),
        "decided": float(np.mean([d.word in DECIDED for d in draws])),
        "decided_full": float(np.mean([d.full_word in DECIDED for d in draws])),
        "decided_equal_cost": float(np.mean([d.equal_word in DECIDED for d in draws])),
        "harmful": float(np.mean([harmful(law, d.word) for d in draws])),
        "harmful_full": float(np.mean([harmful(law, d.full_word) for d in draws])),
        "looks": float(np.mean([d.looks for d in draws])),
        "words": dict(Counter(d.word for d in draws)), "words_full": dict(Counter(d.full_word for d in draws)),
    }  # fmt: skip


def main() -> int:
    """Print one line per law as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--grid", choices=GRIDS, default="demo")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--simulations", type=int, default=24)
    parser.add_argument("--claim", nargs="+", default=[])
    parser.add_argument("--looks", type=int, default=USUAL_LOOKS)
    parser.add_argument("--spending", choices=RULES, default=RULE)
    parser.add_argument("--edge", type=int, default=0)
    parser.add_argument("--at-margin", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    looks = Looks(options.looks, options.spending)
    for planned_looks in (1, options.looks) if options.edge else ():
        lines.append(refuted_at_the_edge(options.edge, Looks(planned_looks, options.spending)))
        print(lines[-1], flush=True)
    for law in planted(GRIDS[options.grid], at_margin=options.at_margin):
        if options.edge or (options.claim and law.claim not in options.claim):
            continue
        start = time.process_time()
        one = partial(follow, law, simulations=options.simulations, looks=looks)
        line = summary(law, [one(draw) for draw in range(options.draws)])
        lines.append(line)
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
        print(shown, f"{time.process_time() - start:.0f} s of processor", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
