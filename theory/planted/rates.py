"""Laws of a mean whose slopes are known, and the words that they allow.

A law is a mean as a function of (rank, samples); for the gradient norm the samples stand for steps. Few laws of the zoo
are one power at every scale, so that the truth about a law is not one exponent but its slopes in the tested window and
half a decade beyond it, where the words of a verdict apply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from theory.judge.model_selection import HALF_DECADE
from theory.judge.verdicts import CONSISTENT, HOLDS, LOOSE, REFUTED
from theory.judge.window import near_middle
from theory.planted.surfaces import Design

Law = Callable[[np.ndarray | float, np.ndarray | float], np.ndarray]

#: Slopes this close to a limit count as lying on it.
TOLERANCE = 1e-6


def power(c: float, b: float = 1.0) -> Law:
    """0.1 r^b N^-c."""
    return lambda r, n: 0.1 * np.asarray(r) ** b * np.asarray(n, dtype=np.float64) ** -c


def broken(c_low: float, c_high: float, design: Design) -> Law:
    """0.1 r N^-c with c_low below the middle of the grid and c_high above it."""
    middle = _middle(design.samples)
    return lambda r, n: power(c_low)(r, n) * np.maximum(n / middle, 1.0) ** (c_low - c_high)


def broken_rank(b_low: float, b_high: float, design: Design) -> Law:
    """0.1 r^b N^-1/2 with b_low below the middle rank of the grid and b_high above it."""
    middle = _middle(design.ranks)
    return lambda r, n: power(0.5, b_low)(r, n) * np.maximum(r / middle, 1.0) ** (b_high - b_low)


def logarithmic(c: float) -> Law:
    """0.1 r N^-c ln N."""
    return lambda r, n: power(c)(r, n) * np.log(n)


def two_terms(design: Design) -> Law:
    """r (m/N + sqrt(m/N)): the fast and the slow rate, equal at the middle m of the grid."""
    middle = _middle(design.samples)
    return lambda r, n: 0.1 * r * (middle / n + (middle / n) ** 0.5)


def counted(side: int, blow_up: float = 0.0) -> Law:
    """q (1 + blow_up q) with q = p/(16 N) and p = r (2 d - r), the entries of a rank-r matrix of side d: the gap of a
    regular model, and how it leaves the asymptote where parameters outnumber samples."""

    def law(r: np.ndarray | float, n: np.ndarray | float) -> np.ndarray:
        q = np.asarray(r * (2 * side - r) / (16 * n))
        return q * (1.0 + blow_up * q)

    return law


def saturating(scale: float) -> Law:
    """(1 - exp(-r/scale)) / N."""
    return lambda r, n: (1.0 - np.exp(-np.asarray(r) / scale)) / n


def with_offset(law: Law, share: float, design: Design, *, per_rank: bool = True) -> Law:
    """A law plus a constant in N.

    Args:
        share: the constant in units of the law at the middle rank and the largest N; it may be negative.
        per_rank: the constant is proportional to the rank, else it is the same at every rank.
    """
    rank = _middle(design.ranks)
    level = share * float(law(rank, float(max(design.samples))))
    return lambda r, n: law(r, n) + level * (r / rank if per_rank else 1.0)


def _middle(levels: tuple[int, ...]) -> float:
    """The middle of a grid on the log scale."""
    return float(np.sqrt(min(levels) * max(levels)))


@dataclass(frozen=True)
class Slopes:
    """Log-log slopes of a planted mean in one coordinate; larger is worse.

    Attributes:
        low, top: over the lower and the upper half of the levels, which share the level nearest the middle.
        beyond: over the half-decade after the last level.
    """

    low: float
    top: float
    beyond: float

    @classmethod
    def constant(cls, exponent: float) -> Slopes:
        """A pure power."""
        return cls(exponent, exponent, exponent)

    def slower(self, claimed: float, margin: float) -> bool:
        """Is the mean worse than claimed by more than the margin at the top of the window or beyond it?"""
        return max(self.top, self.beyond) > claimed + margin + TOLERANCE

    def allowed(self, claimed: float, margin: float) -> frozenset[str]:
        """The words that are right."""
        if self.slower(claimed, margin):
            return frozenset({REFUTED})
        words = {HOLDS}
        if max(self.top, self.beyond) < claimed - margin - TOLERANCE:
            words.add(LOOSE)
        if min(self.top, self.beyond) >= claimed - margin - TOLERANCE:
            words.add(CONSISTENT)
        return frozenset(words)

    def harmful(self, claimed: float, margin: float) -> frozenset[str]:
        """The words that would mislead: support for what is slower than claimed, refutation of what is not."""
        return frozenset({LOOSE, HOLDS, CONSISTENT} if self.slower(claimed, margin) else {REFUTED})


def slopes(law: Law, design: Design, coordinate: str) -> Slopes:
    """The exact slopes of a law over a grid, at the middle of the other coordinate.

    Args:
        coordinate: rank or samples. Beyond the largest rank the slope is taken to be that of the upper half: a matrix
            has no rank beyond its side.
    """
    in_rank = coordinate == "rank"
    other = _middle(design.samples if in_rank else design.ranks)
    levels = np.log(np.sort(np.array(design.ranks if in_rank else design.samples, dtype=np.float64)))
    first, last, middle = levels[0], levels[-1], near_middle(levels)

    def slope(start: float, end: float) -> float:
        heights = [law(np.exp(x), other) if in_rank else law(other, np.exp(x)) for x in (start, end)]
        return float(np.log(heights[1] / heights[0]) / (end - start))

    top = slope(middle, last)
    return Slopes(slope(first, middle), top, top if in_rank else slope(last, last + HALF_DECADE))
