"""E4: problems with linear loss whose gap is slow, or exactly the abstract's, in closed form.

Loss l(W, Z) = -<W, Z> with Z a d_in x d_out matrix of independent standard normals: the population loss is 0 for
every W, so the excess is 0 and the gap of the empirical minimiser is minus its training loss. With the sample mean
Zbar = G / sqrt N, G standard normal,

    (a) rank <= r, ||W||_F <= 1:  gap = sqrt(sum_{k<=r} sigma_k(Zbar)^2)   -> exponents (1/2, -1/2), slow
    (b) rank <= r, ||W||_2 <= 1:  gap = sum_{k<=r} sigma_k(Zbar)            -> exponents (1, -1/2), the abstract's
    (c) rank-r denoising (E1):    excess = r (d_in + d_out - r) tau^2 / N   -> exponents (1, -1), fast

The limits hold for r much smaller than the matrix; at finite size the exponents are those of the expected singular
values, to which a verdict has to be compared (`finite_size_exponent`). Source: theory page, section E4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.linalg import eigh_tridiagonal

from theory.planted.denoising import truncation_risk
from theory.planted.surfaces import grid_frame

REGIME_OF_PROBLEM = {"a": "slow", "b": "abstract", "c": "fast"}


def top_singular_values(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The `count` largest singular values of a size x size standard normal matrix, decreasing.

    From the bidiagonal form with chi-distributed entries (Dumitriu & Edelman 2002), which has exactly their law: 2 size
    random numbers and a tridiagonal eigenproblem instead of a dense one.
    """
    diagonal = np.sqrt(rng.chisquare(np.arange(size, 0, -1)))
    lower = np.sqrt(rng.chisquare(np.arange(size - 1, 0, -1)))
    # The Golub-Kahan matrix of a bidiagonal matrix has eigenvalues +- its singular values.
    off = np.empty(2 * size - 1)
    off[0::2], off[1::2] = diagonal, lower
    values = eigh_tridiagonal(
        np.zeros(2 * size), off, eigvals_only=True, select="i", select_range=(2 * size - count, 2 * size - 1)
    )
    return values[::-1]


def gap_of(problem: str, singular: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The gap at sqrt N = 1 for problems (a) and (b) from singular values [..., k]; one value per rank."""
    sums = np.cumsum(np.square(singular), axis=-1) ** 0.5 if problem == "a" else np.cumsum(singular, axis=-1)
    return sums[..., np.asarray(rank, dtype=np.int64) - 1]


def gap_table(
    problem: str, ranks: Sequence[int], samples: Sequence[int], seeds: int, size: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Simulated measurements of problem (a), (b) or (c); one data draw per (seed, N), shared by all ranks."""
    frame = grid_frame("rank", ranks, "samples", samples, seeds)
    gap = np.empty((len(ranks), len(samples), seeds))
    for j, n in enumerate(samples):
        for s in range(seeds):
            if problem == "c":
                gap[:, j, s] = truncation_risk(size, ranks, n, rng)
            else:
                gap[:, j, s] = gap_of(problem, top_singular_values(size, max(ranks), rng), np.asarray(ranks)) / np.sqrt(
                    n
                )
    return frame.assign(gap=gap.ravel())


def finite_size_exponent(problem: str, ranks: Sequence[int], size: int, draws: int = 200) -> float:
    """The exponent in r that the exact expected gap has on this grid of ranks (least squares in logarithms)."""
    rank = np.asarray(ranks, dtype=np.float64)
    if problem == "c":
        expected = rank * (2 * size - rank)
    else:
        rng = np.random.default_rng(0)
        singular = np.array([top_singular_values(size, int(rank.max()), rng) for _ in range(draws)])
        expected = gap_of(problem, singular, rank).mean(axis=0)
    return float(np.polyfit(np.log(rank), np.log(expected), 1)[0])
