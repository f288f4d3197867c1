"""The words of a verdict and the rules that combine them.

Claims 1 to 3 are upper bounds: an error that falls faster than claimed is LOOSE, one that falls more slowly is
REFUTED. In every exponent of this package *larger is worse* (error ~ N^-c has exponent -c, error ~ r^b has b,
r* ~ N^rho has rho), so one comparison serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings SciPy
    from theory.intervals import Interval

CONSISTENT = "CONSISTENT"
LOOSE = "LOOSE"
REFUTED = "REFUTED"
INCONCLUSIVE = "INCONCLUSIVE"
UNTESTABLE = "UNTESTABLE"

HOLDS = "HOLDS"
VIOLATED = "VIOLATED"
VACUOUS = "VACUOUS"
NOT_EVALUATED = "NOT_EVALUATED"

#: The default margin delta: exponents closer than this to the claimed one count as equal.
MARGIN = 0.10

#: From the verdict that decides most to the one that decides least (after REFUTED, which always wins).
PRECEDENCE = (REFUTED, UNTESTABLE, INCONCLUSIVE, LOOSE, CONSISTENT)


def direction(claimed: float, margin: float, ci90: Interval, ci95: Interval) -> str:
    """The verdict on an upper bound's exponent, before gates and downgrades.

    REFUTED if the 95 % interval lies above claimed + margin (worse than claimed), LOOSE if it lies below
    claimed - margin, CONSISTENT if the 90 % interval lies inside claimed +- margin (two one-sided tests at
    5 %), else INCONCLUSIVE. Undefined intervals are INCONCLUSIVE.
    """
    if ci95.low > claimed + margin:
        return REFUTED
    if ci95.high < claimed - margin:
        return LOOSE
    if ci90.inside(claimed - margin, claimed + margin):
        return CONSISTENT
    return INCONCLUSIVE


def rate(claimed: float, margin: float, ci90: Interval, ci95: Interval) -> str:
    """The two-sided verdict: is the exponent *equal* to the claimed one up to the margin?

    Reported beside the claim's verdict, never in its place.
    """
    one_sided = direction(claimed, margin, ci90, ci95)
    return REFUTED if one_sided == LOOSE else one_sided


def combine(coordinates: Sequence[str], bound: str = NOT_EVALUATED) -> str:
    """A claim's verdict: REFUTED if any part is, else the first of PRECEDENCE that any coordinate has."""
    if bound == VIOLATED:
        return REFUTED
    for word in PRECEDENCE:
        if word in coordinates:
            return word
    return UNTESTABLE
