"""E4: problems whose gap follows the slow, the abstract's and the fast exponents exactly.

Linear loss l(W, Z) = -<W, Z> with Z an m x m standard normal matrix: the population loss is 0 for every W, so the gap
is minus the training loss, a function of the singular values sigma_k of G, where G / sqrt(N) is the sample mean:

    slow      rank <= r, ||W||_F <= 1:  gap = sqrt(sum_{k<=r} sigma_k^2) / sqrt(N)      -> (b, c) = (1/2, 1/2)
    abstract  rank <= r, ||W||_2 <= 1:  gap = sum_{k<=r} sigma_k / sqrt(N)              -> (1, 1/2)
    fast      least squares (E1 with W* = 0): gap = 2 sum_{k<=r} sigma_k^2 / N          -> (1, 1)

The slopes in r approach these limits slowly; `finite_size_slope` gives the value at the grid actually used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.linalg import eigvalsh_tridiagonal

from theory.planted.surfaces import Design, grid_frame

REGIMES = ("slow", "abstract", "fast")
SIDE = 512


def top_singular_values(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count] largest singular values of a side x side standard normal matrix, without forming it.

    Householder reflections turn a Gaussian matrix into a bidiagonal one with independent chi entries (Dumitriu &
    Edelman 2002, Matrix models for beta ensembles), so that a draw costs O(side count) rather than O(side^3).
    """
    diagonal = np.sqrt(rng.chisquare(np.arange(side, 0, -1)))
    below = np.sqrt(rng.chisquare(np.arange(side - 1, 0, -1)))
    squares = np.square(diagonal)
    squares[1:] += np.square(below)
    largest = eigvalsh_tridiagonal(squares, diagonal[:-1] * below, select="i", select_range=(side - count, side - 1))
    return np.sqrt(largest[::-1])


def gap_from_singular_values(regime: str, sigma: np.ndarray, rank: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The exact gap. sigma: [count] decreasing; rank, samples: broadcastable."""
    index = np.asarray(rank, dtype=np.int64) - 1
    if regime == "slow":
        return np.sqrt(np.cumsum(sigma**2))[index] / np.sqrt(samples)
    if regime == "abstract":
        return np.cumsum(sigma)[index] / np.sqrt(samples)
    return 2.0 * np.cumsum(sigma**2)[index] / samples


def linear_loss_tables(design: Design, rng: np.random.Generator, *, side: int = SIDE) -> dict[str, pd.DataFrame]:
    """One measurement table per regime; each (seed, N) is its own sample, shared by the ranks."""
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    gaps = {regime: np.empty(len(frame)) for regime in REGIMES}
    for _, rows in frame.groupby(["samples", "seed"]).indices.items():
        sigma = top_singular_values(side, max(design.ranks), rng)
        part = frame.iloc[rows]
        for regime in REGIMES:
            gaps[regime][rows] = gap_from_singular_values(
                regime, sigma, part["rank"].to_numpy(), part["samples"].to_numpy()
            )
    return {regime: frame.assign(gap=gap, d_in=float(side), d_out=float(side)) for regime, gap in gaps.items()}


@lru_cache(maxsize=32)
def finite_size_slope(regime: str, ranks: tuple[int, ...], side: int = SIDE, draws: int = 40) -> float:
    """The log-log slope in r of the expected gap on this grid (Monte-Carlo error below .001)."""
    rng = np.random.default_rng(0)
    r = np.array(ranks, dtype=np.float64)
    values = [
        gap_from_singular_values(regime, top_singular_values(side, max(ranks), rng), r, np.ones_like(r))
        for _ in range(draws)
    ]
    return float(np.polyfit(np.log(r), np.log(np.mean(values, axis=0)), 1)[0])
