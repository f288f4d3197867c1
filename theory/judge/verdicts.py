"""The words of a verdict and how the parts of a claim combine.

Claims 1 to 3 are upper bounds. In every exponent of this package *larger is worse* (error ~ N^-c has exponent -c,
error ~ r^b has b, r* ~ N^rho has rho), so one comparison serves all. How an exponent gets its word is in
`theory.judge.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence

CONSISTENT = "CONSISTENT"
LOOSE = "LOOSE"
HOLDS = "HOLDS"
REFUTED = "REFUTED"
INCONCLUSIVE = "INCONCLUSIVE"
UNTESTABLE = "UNTESTABLE"

VIOLATED = "VIOLATED"
VACUOUS = "VACUOUS"
NOT_EVALUATED = "NOT_EVALUATED"

#: The words that decide a claim; the others ask for more runs.
DECIDED = (CONSISTENT, HOLDS, LOOSE, REFUTED)

#: What each word says, in half a sentence; all of it "in the tested window and half a decade beyond".
MEANING = {
    CONSISTENT: "measured at the claimed rate",
    LOOSE: "better than claimed by more than the margin; true as an upper bound",
    HOLDS: "not worse than claimed; the data do not resolve whether it is at the rate or better",
    REFUTED: "the measurements contradict it",
    INCONCLUSIVE: "the data allow both sides",
    UNTESTABLE: "the design cannot test it; the report names the missing runs",
}

#: The default margin delta: exponents closer than this to the claimed one count as equal.
MARGIN = 0.10

#: Digits after the point in which two comparisons are tied as the worst: the last ones differ between processors.
TIE = 9

#: After REFUTED, which always wins: the first of these that any part of a claim has is the claim's word.
PRECEDENCE = (REFUTED, UNTESTABLE, INCONCLUSIVE, LOOSE, HOLDS, CONSISTENT)


def as_equality(word: str) -> str:
    """The two-sided verdict: is the exponent *equal* to the claimed one up to the margin?

    Better than claimed is not equal to it; HOLDS leaves that open. Reported beside the verdict, never in its place.
    """
    if word in (CONSISTENT, UNTESTABLE):
        return word
    return REFUTED if word in (LOOSE, REFUTED) else INCONCLUSIVE


def combine(parts: Sequence[str], bound: str = NOT_EVALUATED) -> str:
    """A claim's verdict: REFUTED if any part is or the bound is VIOLATED, else the first of PRECEDENCE that occurs."""
    if bound == VIOLATED:
        return REFUTED
    return next((word for word in PRECEDENCE if word in parts), UNTESTABLE)
