"""E1, E2 and E5: rank-constrained denoising, with known degrees of freedom and known optimal rank.

Y = W* + (tau / sqrt N) Z with Z standard normal is multivariate regression with an orthonormal design; the rank-r least
squares fit is the truncated singular value decomposition of Y. Excess risk is the squared Frobenius error.

* E1: W* of rank r with strong signal: N E||W_r - W*||^2 / tau^2 -> r (d_in + d_out - r), the fast rate (1, -1).
* E2: sigma_k(W*) = c k^-s in a d x d matrix: keeping a component pays iff sigma_k^2 > 3 d tau^2 / N, hence
  r* = (c^2 N / (3 d tau^2))^(1/(2s)): any exponent, sqrt N at s = 1.
* E5: for the same spectra the *total* risk at r* falls as N^-((2s-1)/(2s)), at s = 1 as 1/sqrt N: a mixture that mimics
  the slow rate although the gap at a fixed rank falls as 1/N.

Source: theory page, sections E1, E2, E5; threshold by Gavish & Donoho 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from theory.planted.surfaces import grid_frame

SIGNAL = 1e4  # singular values of W* in units of the noise per entry: far above the noise's largest, 2 sqrt(size)


def truncation_risk(size: int, ranks: Sequence[int], samples: float, rng: np.random.Generator) -> np.ndarray:
    """[len(ranks)] simulated ||W_r - W*||_F^2 for a strong rank-r W* in a size x size matrix, tau = 1 (E1).

    W* is SIGNAL / sqrt N times the first r diagonal units (no loss of generality: the noise is rotation invariant), and
    the top singular pairs of Y are found by block power iteration, which converges in a few steps at this gap.
    """
    noise = rng.standard_normal((size, size))
    risks = []
    for r in ranks:
        y = noise.copy()
        y[np.arange(r), np.arange(r)] += SIGNAL
        basis = np.eye(size, r)
        for _ in range(3):
            left, _ = np.linalg.qr(y @ basis)
            basis, _ = np.linalg.qr(y.T @ left)
        fit = (y @ basis) @ basis.T
        fit[np.arange(r), np.arange(r)] -= SIGNAL
        risks.append(float(np.sum(np.square(fit))) / samples)
    return np.array(risks)


def degrees_of_freedom(rank: int, rows: int, columns: int) -> int:
    """r (rows + columns - r), the dimension of the rank-r matrices."""
    return rank * (rows + columns - rank)


def optimal_rank(samples: np.ndarray | float, size: int, s: float, c: float = 1.0, tau: float = 1.0) -> np.ndarray:
    """r* = (c^2 N / (3 d tau^2))^(1/(2s)) for the spectrum c k^-s (E2)."""
    return (c * c * np.asarray(samples, dtype=np.float64) / (3.0 * size * tau * tau)) ** (1.0 / (2.0 * s))


def spectrum_risk(size: int, s: float, samples: float, ranks: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """[len(ranks)] simulated risk of truncation at each rank for the spectrum k^-s, tau = 1 (E2)."""
    spectrum = np.arange(1, size + 1, dtype=np.float64) ** -s
    y = rng.standard_normal((size, size)) / np.sqrt(samples)
    y[np.arange(size), np.arange(size)] += spectrum
    left, singular, right = np.linalg.svd(y)
    aligned = np.einsum("ik,i,ki->k", left, spectrum, right)
    gain = np.cumsum(np.square(singular) - 2.0 * singular * aligned)
    return float(np.sum(np.square(spectrum))) + gain[np.asarray(ranks) - 1]


def spectrum_table(
    size: int, s: float, ranks: Sequence[int], samples: Sequence[int], seeds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Risk by (rank, samples, seed) for the spectrum k^-s, with the matrix's size as d_in and d_out (E2)."""
    risk = np.empty((len(ranks), len(samples), seeds))
    for j, n in enumerate(samples):
        for k in range(seeds):
            risk[:, j, k] = spectrum_risk(size, s, n, ranks, rng)
    frame = grid_frame("rank", ranks, "samples", samples, seeds)
    return frame.assign(test_loss=risk.ravel(), d_in=float(size), d_out=float(size))


def total_risk_exponent(s: float) -> float:
    """-(2s - 1)/(2s), the exponent in N of the total risk at r* (E5); -1/2 at s = 1."""
    return -(2.0 * s - 1.0) / (2.0 * s)


def total_risk(size: int, s: float, samples: float) -> float:
    """Risk at the optimal rank by hard thresholding: sum_k min(sigma_k^2, 3 d / N) for sigma_k = k^-s, tau = 1 (E5)."""
    spectrum = np.arange(1, size + 1, dtype=np.float64) ** (-2.0 * s)
    return float(np.sum(np.minimum(spectrum, 3.0 * size / samples)))
