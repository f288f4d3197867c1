"""How often does the advice of `theory next` decide, by the chance that it states? Planted gaps.

    python tests/tools/chance_of_next.py [--draws 240] [--jobs 2]

Each draw has a thin design (five ranks, the lower half of N) with 2, 3 or 5 seeds and a noise of 0.1, 0.2 or 0.5. The
best set of runs that `theory next` proposes is made and the table judged. Half of the laws are of the families that the
advice believes in, with bends in the middle of the whole grid; the others are of none, or have a bend or a plateau that
the thin design does not reach. A table that is decided at once, or has no fair set, is left out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from follow_next import DEMO, Planted, thin

from theory.design.beliefs import Law, Noise, RateLaws
from theory.design.next import STUDIES, next_runs
from theory.judge.check import check_table
from theory.judge.verdicts import DECIDED, MARGIN
from theory.planted.rates import broken, broken_rank, logarithmic, power, saturating, two_terms, with_offset
from theory.tables import table_from_frame

CLAIM = "generalization"
SEEDS, NOISES = (2, 3, 5), (0.1, 0.2, 0.5)
SIMULATIONS = 24
BINS = (0.0, 0.6, 0.8, 0.95, 1.0)
FAMILIES, OTHERS = "of the families", "others"
OTHER_LAWS = (
    two_terms(DEMO), saturating(8.0), logarithmic(1.0), broken_rank(0.5, 1.5, DEMO), broken(0.75, 0.25, DEMO),
    with_offset(power(1.0), 3.0, DEMO),
)  # fmt: skip


def believed(draw: int) -> Law:
    """A law of the families, with the bends and plateaus of the whole grid."""
    levels = {"rank": np.array(DEMO.ranks, dtype=np.float64), "samples": np.array(DEMO.samples, dtype=np.float64)}
    noise = Noise((), None, 0.2, 0.2, 0.0, None, {}, True)
    return RateLaws(None, "samples", "rank", [], noise, levels).draw(np.random.default_rng([7, draw]))


def means(law: Callable[[float, float], float], points: pd.DataFrame) -> np.ndarray:
    """[n] of a law at design points [n rows]."""
    return np.array([law(*point) for point in points[["rank", "samples"]].itertuples(index=False, name=None)])


def advised(draw: int) -> tuple[str, float, float, bool] | None:
    """The kind of law, the chance that is stated for the best runs, the one if the law were known, and whether they
    decided; None: no runs are advised."""
    rng = np.random.default_rng([99, draw])
    kind = (FAMILIES, OTHERS)[draw % 2]
    if kind == FAMILIES:
        drawn = believed(draw)
        law = lambda rank, samples: float(drawn(pd.DataFrame({"rank": [rank], "samples": [samples]}))[0])  # noqa: E731
    else:
        law = OTHER_LAWS[draw // 2 % len(OTHER_LAWS)]
    seeds, noise = int(rng.choice(SEEDS)), float(rng.choice(NOISES))
    planted = Planted(kind, CLAIM, law, False, replace(DEMO, noise=noise), replace(thin(DEMO), seeds=seeds))
    frame = planted.measured(planted.grid(planted.thin), draw)
    found = next_runs(table_from_frame(frame), CLAIM, simulations=SIMULATIONS)
    if found.best is None:
        return None
    study = STUDIES[CLAIM](table_from_frame(frame).known(), None, np.inf, MARGIN, noise)
    simulate = study.simulator(found.best.runs)
    words = [simulate(partial(means, law), np.random.default_rng([5, i])) for i in range(SIMULATIONS)]
    bought = planted.measured(found.best.runs[["rank", "samples", "seed"]].astype(float), draw)
    report = check_table(pd.concat([frame, bought], ignore_index=True), claims=[CLAIM])
    return kind, found.best.chance, float(np.mean([w in DECIDED for w in words])), report[CLAIM].verdict in DECIDED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=240)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    outcomes = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for count, outcome in enumerate(pool.map(advised, range(options.draws)), 1):
            outcomes += [] if outcome is None else [outcome]
            print(f"\r{count} of {options.draws} draws", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    frame = pd.DataFrame(outcomes, columns=["laws", "stated", "law_known", "decided"])
    frame["chance"] = pd.cut(frame["stated"], BINS, labels=[f"{a:g} to {b:g}" for a, b in itertools.pairwise(BINS)])
    every = frame.assign(chance="all")
    table = pd.concat([frame.astype({"chance": str}), every]).groupby(["laws", "chance"])
    means_of = {name: (name, "mean") for name in ("stated", "law_known", "decided")}
    print(table.agg(advice=("stated", "size"), **means_of).round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
