"""E1, E2, E5: matrix denoising, where risk, optimal rank and rates are known.

Y = W* + (tau / sqrt N) Z with Z a d x d standard normal matrix; the rank-r least-squares estimate is the truncated SVD
of Y. W* is diagonal without loss of generality (Z is rotation invariant).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from theory.judge.intervals import generator
from theory.planted.surfaces import Design, grid_frame, seed_effects

#: Draws behind the population risk: with the smoothing below the Monte-Carlo error of the slope of ln r* over four N in
#: .9 of a decade is below .004.
POPULATION_DRAWS = 200
#: The marginal cost is smoothed over ranks within this factor of the optimum.
SMOOTHED_RATIO = 1.4


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


def curve_risk(rank: np.ndarray, samples: np.ndarray, d: int, s: float, *, blow_up: float = 0.0) -> np.ndarray:
    """E2 in closed form up to a constant: sum_{k > r} k^-2s + (3/2) (p/N) (1 + blow_up p/N) with p = r (2 d - r).

    Args:
        rank: whole numbers from 0 to d. samples: N, broadcastable with rank. d: side of the matrix. s: decay of the
            spectrum. blow_up: how fast the cost of a parameter grows where parameters outnumber samples.
    """
    kept = np.concatenate([[0.0], np.cumsum(spectrum(d, s) ** 2)])
    load = rank * (2 * d - rank) / samples
    return kept[-1] - kept[np.asarray(rank, dtype=np.int64)] + 1.5 * load * (1.0 + blow_up * load)


def curve_table(s: float, d: int, design: Design, rng: np.random.Generator, *, blow_up: float = 0.0) -> pd.DataFrame:
    """`curve_risk` as a measurement table, times the design's noise."""
    frame = grid_frame("rank", design.ranks, "samples", design.samples, design.seeds)
    risk = curve_risk(frame["rank"].to_numpy(), frame["samples"].to_numpy(), d, s, blow_up=blow_up)
    noise = np.exp(seed_effects(frame, design, ("rank", "samples"), rng))
    return frame.assign(test_loss=risk * noise, d_in=float(d), d_out=float(d))


def curve_optimum(samples: np.ndarray, d: int, s: float, *, blow_up: float = 0.0) -> np.ndarray:
    """[K] the exact r*(N) of `curve_risk`, between whole ranks by interpolation.

    Args:
        samples: [K] N. d, s, blow_up: as in `curve_risk`.
    """
    ranks = np.arange(d + 1)
    return np.array([minimum_between_ranks(curve_risk(ranks, n, d, s, blow_up=blow_up)) for n in samples])


def population_optimum(samples: np.ndarray, d: int, s: float, *, draws: int = POPULATION_DRAWS) -> np.ndarray:
    """[K] r*(N) of E2: the rank with the smallest *expected* risk, between whole ranks by interpolation.

    Args:
        samples: [K] N (tau = 1). d: side of the matrix. s: decay of the spectrum k^-s. draws: of the noise matrix; the
            same ones at every N.

    Returns:
        r* as real numbers; 0 or d where the expected risk is smallest at an end.
    """
    return np.array([_population_optimum(float(n), d, s, draws) for n in samples])


@lru_cache(maxsize=1024)
def _population_optimum(samples: float, d: int, s: float, draws: int) -> float:
    rng = generator(8, d)
    signal = spectrum(d, s)
    risk = np.mean([truncation_risk(signal, samples**-0.5, rng)[0] for _ in range(draws)], axis=0)
    # What a component adds to the risk is minus its energy, known exactly, plus a cost that varies slowly with the
    # rank: only that cost is smoothed. The marginal risk itself falls too steeply for a polynomial.
    energy = signal**2
    cost = np.diff(risk) + energy
    position = np.arange(1, d + 1) / (np.argmin(risk) + 0.5)
    near = (position >= 1 / SMOOTHED_RATIO) & (position <= SMOOTHED_RATIO)
    if near.sum() > 4:
        cost[near] = np.polyval(np.polyfit(np.log(position[near]), cost[near], 3), np.log(position[near]))
    return minimum_between_ranks(risk[0] + np.concatenate([[0.0], np.cumsum(cost - energy)]))


def minimum_between_ranks(risk: np.ndarray) -> float:
    """Where a positive risk known at ranks 0 ... d is smallest; an end if the smallest value is there.

    A cubic spline in logarithms, in which spectra and costs are nearly straight: against the exact continuation of
    `curve_risk` it is off by less than .1 % of r* from rank 3 on (a spline in the rank itself by 2 % at rank 4).
    """
    best = int(np.argmin(risk))
    if best in (0, len(risk) - 1):
        return float(best)
    around = np.arange(max(1, best - 6), min(len(risk), best + 7))
    spline = CubicSpline(np.log(around), np.log(risk[around]))
    turns = spline.derivative().roots(extrapolate=False)
    return float(np.exp(turns[np.argmin(spline(turns))])) if len(turns) else float(best)


def mixture_risk(samples: np.ndarray, s: float, *, components: int = 100_000, tau: float = 1.0) -> np.ndarray:
    """E5: risk of the best truncation of independent components k^-s, each estimated at the parametric rate.

    sum_k min(k^-2s, tau^2/N) ~ N^-((2s-1)/(2s)): at s = 1 a mixture of fast problems falls as 1/sqrt(N), so a total
    risk of slope -1/2 does not show that any gap is slow.
    """
    energy = np.arange(1, components + 1, dtype=np.float64) ** (-2.0 * s)
    return np.array([np.sum(np.minimum(energy, tau**2 / n)) for n in np.atleast_1d(samples)])
