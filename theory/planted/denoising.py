"""E1, E2, E5: matrix denoising, where risk, optimal rank and rates are known.

Y = W* + (tau / sqrt N) Z with Z a d x d standard normal matrix; the rank-r least-squares estimate is the truncated SVD
of Y. W* is diagonal without loss of generality (Z is rotation invariant).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from theory.planted.surfaces import Design, grid_frame


def truncation_risk(signal: np.ndarray, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Risk ||W_r - W*||_F^2 and gap of the truncated SVD at every rank.

    Args:
        signal: [d] singular values of W*. noise: standard deviation of one entry of Y - W* (tau / sqrt N).

    Returns:
        risk [d+1] and gap [d+1] at ranks 0 ... d. The gap is the difference of the squared errors on fresh and on the
        training noise, 2 <W_r, Y - W*>.
    """
    d = len(signal)
    z = noise * rng.standard_normal((d, d))
    u, s, vt = np.linalg.svd(np.diag(signal) + z)
    overlap = np.concatenate([[0.0], np.cumsum(s * np.einsum("ik,i,ki->k", u, signal, vt))])
    energy = np.concatenate([[0.0], np.cumsum(s * s)])
    return energy - 2.0 * overlap + np.sum(signal**2), 2.0 * (energy - overlap)


def spectrum(d: int, s: float) -> np.ndarray:
    """[d] singular values k^-s."""
    return np.arange(1, d + 1, dtype=np.float64) ** -s


def threshold_rank(samples: float, d: int, s: float, tau: float = 1.0) -> float:
    """E2: r* = (N / (3 d tau^2))^(1/(2s)) for the spectrum k^-s.

    A component is worth keeping if sigma_k^2 > 3 d tau^2 / N: the rule 4/sqrt(3) of Gavish & Donoho 2014 (arXiv
    1305.5870) in units of the signal. The risk at r* falls as N^-((2s-1)/(2s)).
    """
    return float((samples / (3.0 * d * tau**2)) ** (1.0 / (2.0 * s)))


def denoising_table(s: float, d: int, design: Design, rng: np.random.Generator, *, tau: float = 1.0) -> pd.DataFrame:
    """E2 as a measurement table (risk and gap by rank, samples, seed); every (seed, N) is its own draw."""
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    risk, gap = np.empty(len(frame)), np.empty(len(frame))
    rank = frame["rank"].to_numpy(dtype=np.int64)
    for rows in frame.groupby(["samples", "seed"]).indices.values():
        samples = float(frame["samples"].iloc[rows[0]])
        risks, gaps = truncation_risk(spectrum(d, s), tau / np.sqrt(samples), rng)
        risk[rows], gap[rows] = risks[rank[rows]], gaps[rank[rows]]
    return frame.assign(test_loss=risk, gap=gap, d_in=float(d), d_out=float(d))


def mixture_risk(samples: np.ndarray, s: float, *, components: int = 100_000, tau: float = 1.0) -> np.ndarray:
    """E5: risk of the best truncation of independent components k^-s, each estimated at the parametric rate.

    sum_k min(k^-2s, tau^2/N) ~ N^-((2s-1)/(2s)): at s = 1 a mixture of fast problems falls as 1/sqrt(N), so a total
    risk of slope -1/2 does not show that any gap is slow.
    """
    energy = np.arange(1, components + 1, dtype=np.float64) ** (-2.0 * s)
    return np.array([np.sum(np.minimum(energy, tau**2 / n)) for n in np.atleast_1d(samples)])
