"""Tables drawn from planted laws, with seeds as random effects, and null injections.

Every measured cell carries log-normal noise of the given size; every seed its own intercept and slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from theory.laws.surface import Surface


@dataclass(frozen=True)
class Design:
    """A grid of runs and its noise.

    Attributes:
        ranks, samples, steps: the values of each coordinate. seeds: replicates of every cell.
        noise: standard deviation of the logarithm of one run. intercept_sd, slope_sd: spread between seeds of the
            logarithm of the constant and of each exponent.
    """

    ranks: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32)
    samples: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    steps: tuple[int, ...] = tuple(2**k for k in range(8, 17))
    seeds: int = 5
    noise: float = 0.2
    intercept_sd: float = 0.1
    slope_sd: float = 0.005


def grid_frame(first: str, a: Sequence[int], second: str, b: Sequence[int], seeds: int) -> pd.DataFrame:
    """All combinations of two coordinates and seeds, one row each."""
    index = pd.MultiIndex.from_product([a, b, range(seeds)], names=[first, second, "seed"])
    return index.to_frame(index=False).astype(np.float64)


def seed_effects(frame: pd.DataFrame, design: Design, columns: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Log deviation of every row: seed intercept, seed slopes in the centred coordinates, and cell noise."""
    seed = frame["seed"].to_numpy(dtype=np.int64)
    total = design.intercept_sd * rng.standard_normal(design.seeds)[seed]
    for column in columns:
        x = np.log(frame[column].to_numpy())
        total = total + design.slope_sd * rng.standard_normal(design.seeds)[seed] * (x - x.mean())
    return total + design.noise * rng.standard_normal(len(frame))


def law_table(
    law: Callable[[np.ndarray, np.ndarray], np.ndarray], design: Design, rng: np.random.Generator
) -> pd.DataFrame:
    """A gap whose mean is a law of (rank, samples), times the design's noise."""
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    mean = law(frame["rank"].to_numpy(), frame["samples"].to_numpy())
    return frame.assign(gap=mean * np.exp(seed_effects(frame, design, ("rank", "samples"), rng)))


def gap_table(
    b: float, c: float, design: Design, rng: np.random.Generator, *, constant: float = 0.1, offset: float = 0.0
) -> pd.DataFrame:
    """gap = (constant r^b N^-c) noise + offset.

    Args:
        offset: in units of the law's value at the middle rank and the largest N.
    """
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    law = constant * frame["rank"] ** b * frame["samples"] ** -c
    middle = float(np.exp(np.mean(np.log(design.ranks))))
    level = constant * middle**b * max(design.samples) ** -c
    noise = np.exp(seed_effects(frame, design, ("rank", "samples"), rng))
    return frame.assign(gap=law * noise + offset * level)


def broken_gap_table(b: float, c_low: float, c_high: float, design: Design, rng: np.random.Generator) -> pd.DataFrame:
    """A gap whose exponent in N changes from c_low to c_high at the middle of the grid."""
    frame = gap_table(b, c_low, design, rng)
    middle = np.exp(np.mean(np.log(design.samples)))
    bend = np.maximum(frame["samples"] / middle, 1.0) ** (c_low - c_high)
    return frame.assign(gap=frame["gap"] * bend)


def noise_gap_table(design: Design, rng: np.random.Generator, *, absolute: bool) -> pd.DataFrame:
    """A gap that is only the fluctuation of the training loss: sd 1/sqrt N, no dependence on the rank.

    Signed it has mean zero; its absolute value follows 1/sqrt N exactly and says nothing about any model.
    """
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    gap = rng.standard_normal(len(frame)) / np.sqrt(frame["samples"])
    return frame.assign(gap=gap.abs() if absolute else gap)


def risk_table(surface: Surface, design: Design, rng: np.random.Generator, *, dimension: float = 256) -> pd.DataFrame:
    """Risk E + A r^-alpha + B r^beta N^-gamma, the excess over E being noisy."""
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    excess = surface(frame["rank"].to_numpy(), frame["samples"].to_numpy()) - surface.offset
    noise = np.exp(seed_effects(frame, design, ("rank", "samples"), rng))
    return frame.assign(test_loss=surface.offset + excess * noise, d_in=dimension, d_out=dimension)


def gradient_table(exponent: float, design: Design, rng: np.random.Generator, *, plateau: float = 0.0) -> pd.DataFrame:
    """Mean squared gradient norm T^exponent over horizons, plus a plateau in units of its value at the largest T."""
    frame = grid_frame("samples", (1,), "steps", design.steps, design.seeds).drop(columns="samples")
    noise = np.exp(seed_effects(frame, design, ("steps",), rng))
    level = max(design.steps) ** exponent
    return frame.assign(grad_norm_sq=(frame["steps"] ** exponent + plateau * level) * noise)


def information_table(
    ratio: float,
    design: Design,
    rng: np.random.Generator,
    *,
    rising: bool = True,
    weights: Sequence[float] = (0, 0.01, 0.1, 1, 10),
) -> pd.DataFrame:
    """Information that rises (or falls) with lambda up to `ratio` times its ceiling, with 1 % noise per run."""
    frame = grid_frame("samples", (1,), "clone_weight", range(len(weights)), design.seeds).drop(columns="samples")
    position = frame["clone_weight"].to_numpy(dtype=np.int64)
    share = ratio * np.linspace(0.6, 1.0, len(weights))[position if rising else len(weights) - 1 - position]
    return frame.assign(
        clone_weight=np.asarray(weights, dtype=np.float64)[position],
        mutual_information=10.0 * share * (1.0 + 0.01 * rng.standard_normal(len(frame))),
        mi_ceiling=10.0,
    )


def dynamics_table(ratio: float, design: Design, rng: np.random.Generator) -> pd.DataFrame:
    """D = ratio x D_0 with the design's noise on both."""
    noise = np.exp(design.noise * rng.standard_normal((2, design.seeds)))
    return pd.DataFrame(
        {
            "seed": np.arange(design.seeds, dtype=np.float64),
            "dynamics_divergence": 0.1 * ratio * noise[0],
            "dynamics_baseline": 0.1 * noise[1],
        }
    )
