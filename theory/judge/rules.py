"""The decision rules: from what a window shows to a word. One named condition per rule; its docstring is the
documentation: the theory page is made from it (`theory.show.page`).

Larger exponents are worse. `limit.worse` is the claimed exponent plus the margin, `limit.better` the claimed one minus
the margin. All intervals are two-sided Student intervals over seeds; "the upper 90 % limit" is the upper end of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from theory.judge.optimum import ALLOWANCE, Growth
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.judge.window import Window


@dataclass(frozen=True)
class Limits:
    """What a window is compared with.

    Attributes:
        claimed: the claimed exponent. margin: exponents closer than this count as equal.
        refute_level: 95 %, or 97.5 % where two coordinates are judged together, so that the pair errs at 5 %.
        leading: N and T, along which laws extrapolate. tier: 1, or 2 for a design that passes only the weaker gates.
    """

    claimed: float
    margin: float
    refute_level: float
    leading: bool
    tier: int

    @property
    def worse(self) -> float:
        return self.claimed + self.margin

    @property
    def better(self) -> float:
        return self.claimed - self.margin


@dataclass(frozen=True)
class Rule:
    """If the condition (of the evidence and what it is held to) holds the word is said; rules are asked in order."""

    word: str
    condition: Callable[[Any, Any], bool]

    @property
    def text(self) -> str:
        return " ".join((self.condition.__doc__ or "").split())


#: Of the guard S_reach where the bend is established. At 90 % right words on bent laws fall from .76 to .69 of draws,
#: and harmful ones are as rare at either level (`theory validate`).
FLATTENS_LEVEL = 0.80


# --- straight windows ------------------------------------------------------------------------------------------------


def worse_throughout(w: Window, limit: Limits) -> bool:
    """The interval of S_all lies above claimed + margin (95 %; 97.5 % where two coordinates are judged), and so does
    S_top."""
    return w.whole.low(limit.refute_level) > limit.worse and w.top.value > limit.worse


def better_throughout(w: Window, limit: Limits) -> bool:
    """The upper 95 % limit of S_all and the upper 90 % limit of S_top lie below claimed - margin; in the second tier
    the upper 90 % limit of S_reach too."""
    return _below(w, limit, limit.better)


def at_the_rate(w: Window, limit: Limits) -> bool:
    """The 90 % interval of S_all lies within claimed +- margin, and the lower 95 % limit of S_top not above it. Along N
    and T the largest half-decade is predicted from the rest to within margin x (distance in ln x), no offset of
    either sign is detected that moves the exponent by more than half the margin (AICc lower by more than 4 and a
    smaller error on the held-out half-decade), and beside an offset (of each group, or shared by all) the exponent
    stays within claimed +- margin. First tier only."""
    return (
        limit.tier == 1
        and w.whole.interval(0.90).inside(limit.better, limit.worse)
        and w.top.low(0.95) <= limit.worse
        and (not limit.leading or (w.extrapolates(limit.margin) and _no_offset(w, limit)))
    )


def _no_offset(w: Window, limit: Limits) -> bool:
    inside = all(limit.better <= c <= limit.worse for c in w.exponents_beside_an_offset())
    moved = 0.0 if w.offset is None else abs(w.offset.exponent - w.whole.value)
    return inside and moved <= limit.margin / 2


def not_worse_throughout(w: Window, limit: Limits) -> bool:
    """The upper 95 % limit of S_all and the upper 90 % limit of S_top lie below claimed + margin; in the second tier
    the upper 90 % limit of S_reach too."""
    return _below(w, limit, limit.worse)


def _below(w: Window, limit: Limits, bar: float) -> bool:
    guard = limit.tier == 1 or w.reach.high(0.90) < bar
    return w.whole.high(0.95) < bar and w.top.high(0.90) < bar and guard


# --- bent windows ----------------------------------------------------------------------------------------------------


def worse_at_the_end(w: Window, limit: Limits) -> bool:
    """The interval of S_top lies above claimed + margin: the half nearest to the asymptote decides."""
    return w.top.low(limit.refute_level) > limit.worse


def better_in_every_part(w: Window, limit: Limits) -> bool:
    """The upper 95 % limits of S_low and S_top lie below claimed - margin and, where the slope flattens, the upper 80 %
    limit of S_reach too (always, and the 90 % limit, in the second tier). In r, where the gap saturates, S_top alone
    decides: additive errors distort the low end of r and the high end of N, and the distorted end never decides
    alone."""
    return _every_part_below(w, limit, limit.better)


def not_worse_in_any_part(w: Window, limit: Limits) -> bool:
    """The same with claimed + margin."""
    return _every_part_below(w, limit, limit.worse)


def _every_part_below(w: Window, limit: Limits, bar: float) -> bool:
    saturates = not limit.leading and w.bend.value < 0
    low = saturates or w.low.high(0.95) < bar
    if limit.tier == 1 and w.bend.value <= 0:
        guard = True
    else:
        guard = w.reach.high(FLATTENS_LEVEL if limit.tier == 1 else 0.90) < bar
    return low and w.top.high(0.95) < bar and guard


# --- growth of the optimal rank --------------------------------------------------------------------------------------


def grows_faster(g: Growth, limit: Limits) -> bool:
    """Both exponents say so: the lower 95 % limits of the exponent in the window and of the corrected one lie above
    claimed + margin, the latter even after half of the correction is taken off once more (what it may leave of the
    finite matrix). Where d_in and d_out are not given, the lower half of the window must lie above it as well; where
    the growth is bent, its upper half."""
    if g.window.low(0.95) <= limit.worse or (g.bent and g.top.low(0.95) <= limit.worse):
        return False
    if not g.corrected:
        return g.cost.shape_known or g.low.value > limit.worse
    left = ALLOWANCE * max(0.0, g.window.value - g.corrected[-1].value)
    return g.both(0.95).low > limit.worse and g.corrected[-1].low(0.95) - left > limit.worse


def grows_more_slowly(g: Growth, limit: Limits) -> bool:
    """Both exponents say so: the upper 95 % limits of the exponent in the window and of the corrected one lie below
    claimed - margin; where the growth is bent, that of its upper half too."""
    return _grows_below(g, limit.better)


def grows_as_claimed(g: Growth, limit: Limits) -> bool:
    """The 90 % interval of the corrected exponent lies within claimed +- margin, and the exponent in the window is
    neither faster nor slower; the growth is not bent. First tier only."""
    neither = g.window.low(0.95) <= limit.worse and g.window.high(0.95) >= limit.better
    return limit.tier == 1 and not g.bent and g.both(0.90).inside(limit.better, limit.worse) and neither


def grows_not_faster(g: Growth, limit: Limits) -> bool:
    """The upper 95 % limits of both exponents lie below claimed + margin; where the growth is bent, that of its upper
    half too."""
    return _grows_below(g, limit.worse)


def _grows_below(g: Growth, bar: float) -> bool:
    top = not g.bent or g.top.high(0.95) < bar
    return g.window.high(0.95) < bar and g.both(0.95).high < bar and top


#: No multiplicity correction inside LOOSE and HOLDS: "every part" is an intersection-union test.
STRAIGHT = (
    Rule(REFUTED, worse_throughout),
    Rule(LOOSE, better_throughout),
    Rule(CONSISTENT, at_the_rate),
    Rule(HOLDS, not_worse_throughout),
)
#: A bent law is never CONSISTENT: no single exponent describes the window.
BENT = (
    Rule(REFUTED, worse_at_the_end),
    Rule(LOOSE, better_in_every_part),
    Rule(HOLDS, not_worse_in_any_part),
)

GROWTH = (
    Rule(REFUTED, grows_faster),
    Rule(LOOSE, grows_more_slowly),
    Rule(CONSISTENT, grows_as_claimed),
    Rule(HOLDS, grows_not_faster),
)


def decide_growth(growth: Growth | None, limit: Limits) -> str:
    """The word for the growth of r*."""
    if growth is None or limit.tier == 0:
        return UNTESTABLE
    return next((r.word for r in GROWTH if r.condition(growth, limit)), INCONCLUSIVE)


def decide(window: Window | None, limit: Limits) -> str:
    """The word for one coordinate: the first rule that applies, else INCONCLUSIVE; UNTESTABLE below the second tier."""
    if window is None or limit.tier == 0 or not math.isfinite(window.whole.value):
        return UNTESTABLE
    return next((r.word for r in (BENT if window.bent else STRAIGHT) if r.condition(window, limit)), INCONCLUSIVE)
