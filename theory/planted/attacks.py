"""Tables with something wrong in them that a judge must notice: each would pass for an honest study row by row.

Every function takes the random stream and returns a measurement table.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from theory.planted.cases import RANK_DESIGN, planted_surface
from theory.planted.rates import power, with_offset
from theory.planted.surfaces import Design, law_table, risk_table

DESIGN = Design()


def copied_seeds(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-1/2 of two seeds, written down under six."""
    frame = law_table(power(0.5), replace(DESIGN, seeds=2, slope_sd=0.05), rng)
    return pd.concat([frame.assign(seed=frame["seed"] + 2 * k) for k in range(3)], ignore_index=True)


def crowded_cell(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-1/2 with five seeds everywhere (each with its own slope), and 100 further seeds in a single cell."""
    design = replace(DESIGN, slope_sd=0.05)
    crowd = law_table(power(0.5), replace(design, ranks=(12,), samples=(1024,), seeds=100), rng)
    return pd.concat([law_table(power(0.5), design, rng), crowd.assign(seed=crowd["seed"] + 100)], ignore_index=True)


def survivors(rng: np.random.Generator, *, small: bool) -> pd.DataFrame:
    """Eight seeds of which only the best five were kept at one end of N, where that bends the slope towards -1/2.

    Args:
        small: kept at N <= 256 of a law N^-.65 (which is better than claimed); else at N >= 4096 of a law N^-.35.
    """
    frame = law_table(power(0.65 if small else 0.35), replace(DESIGN, seeds=8, noise=0.4), rng)
    thinned = frame["samples"] <= 256 if small else frame["samples"] >= 4096
    place = frame.groupby(["rank", "samples"])["gap"].rank()
    return frame[~thinned | (place <= 5)].reset_index(drop=True)


def second_study(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-.35, but the runs at N >= 1024 are of another teacher on easier data at another learning rate: fitted
    through both, the slope is about -.46."""
    frame = law_table(power(0.35), DESIGN, rng)
    later = (frame["samples"] >= 1024).to_numpy()
    return frame.assign(
        gap=frame["gap"] * np.where(later, 0.6, 1.0),
        teacher=np.where(later, "large", "tiny"),
        data=np.where(later, "stories", "wikitext2"),
        learning_rate=np.where(later, 0.003, 0.01),
    )


def pooled_labels(rng: np.random.Generator) -> pd.DataFrame:
    """Hard labels (gap ~ r N^-1/2) and soft ones (gap ~ r N^-1, smaller) in one table under different seeds."""
    hard = law_table(power(0.5), DESIGN, rng).assign(labels="data")
    soft = law_table(power(1.0), DESIGN, rng).assign(labels="teacher")
    return pd.concat([hard, soft.assign(seed=soft["seed"] + DESIGN.seeds)], ignore_index=True)


def lone_run(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-1/2 over one decade of N, and a single run at ten times the largest."""
    design = replace(DESIGN, samples=(64, 128, 256, 640), noise=0.5)
    far = law_table(power(0.5), replace(design, ranks=(12,), samples=(6400,), seeds=1), rng)
    return pd.concat([law_table(power(0.5), design, rng), far], ignore_index=True)


def misplaced_point(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-1/2 with one run a hundred times too large (rank 12, N = 64, seed 2)."""
    frame = law_table(power(0.5), DESIGN, rng)
    hit = (frame["rank"] == 12) & (frame["samples"] == 64) & (frame["seed"] == 2)
    return frame.assign(gap=frame["gap"].where(~hit, 100.0 * frame["gap"]))


def negative_offset(rng: np.random.Generator, *, c: float = 0.35, share: float = 0.5) -> pd.DataFrame:
    """gap ~ r (N^-c - share of its end value): a biased control variate makes a slow law look like N^-1/2.

    Args:
        c, share: .35 and half, or .38 and .3.
    """
    return law_table(with_offset(power(c), -share, DESIGN), DESIGN, rng)


def impossible_rank(rng: np.random.Generator) -> pd.DataFrame:
    """Risks at ranks up to 512 of a matrix that is said to be 64 x 64."""
    return risk_table(planted_surface(1, 1, 1, 5), RANK_DESIGN, rng, dimension=64)


def missing_runs(rng: np.random.Generator) -> pd.DataFrame:
    """gap ~ r N^-1 where four of the 35 cells lack one of their five seeds: an ordinary study, still to be judged."""
    frame = law_table(power(1.0), DESIGN, rng)
    cells = [(4, 64), (8, 16384), (16, 1024), (32, 256)]
    lost = [(frame["rank"] == r) & (frame["samples"] == n) & (frame["seed"] == k) for k, (r, n) in enumerate(cells)]
    return frame[~np.any(lost, axis=0)].reset_index(drop=True)


def other_shape(rng: np.random.Generator) -> pd.DataFrame:
    """r* ~ N^1/2 in matrices of side 4096, except that seed 0 was trained at half the input side."""
    frame = risk_table(planted_surface(1, 1, 1, 5), RANK_DESIGN, rng, dimension=4096)
    return frame.assign(d_in=frame["d_in"].where(frame["seed"] != 0, 2048.0))
