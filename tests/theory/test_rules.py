"""The decision rules, one threshold at a time: just inside a limit the word is said, just outside it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from windows import at, bent, window

from theory.judge.model_selection import LawFit
from theory.judge.optimum import Growth, RankCost
from theory.judge.rules import BENT, GROWTH, STRAIGHT, Limits, decide, decide_growth
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.judge.window import Estimate

N = Limits(claimed=-0.5, margin=0.1, refute_level=0.975, leading=True, tier=1)
R = replace(N, claimed=1.0, leading=False)
WORSE, BETTER = -0.4, -0.6
ALMOST = 1e-6


def test_limits_are_the_claimed_exponent_and_the_margin():
    assert (N.worse, N.better) == (-0.4, -0.6)


# --- straight --------------------------------------------------------------------------------------------------------


def test_refuted_needs_the_97_5_percent_interval_above_and_the_top_half_too():
    half = 0.05
    assert decide(window(at(WORSE + half + ALMOST, half, 0.975)), N) == REFUTED
    assert decide(window(at(WORSE + half - ALMOST, half, 0.975)), N) != REFUTED
    # A single coordinate is refuted by its 95 % interval.
    assert decide(window(at(WORSE + half + ALMOST, half, 0.95)), N) != REFUTED
    assert decide(window(at(WORSE + half + ALMOST, half, 0.95)), replace(N, refute_level=0.95)) == REFUTED
    assert decide(window(at(-0.3, 0.05, 0.975), top=at(WORSE - ALMOST)), N) != REFUTED


def test_loose_needs_the_95_percent_limit_of_the_whole_and_the_90_percent_limit_of_the_top_below():
    half = 0.05
    assert decide(window(at(BETTER - half - ALMOST, half)), N) == LOOSE
    assert decide(window(at(BETTER - half + ALMOST, half)), N) == HOLDS
    top = at(BETTER - half - ALMOST, half, 0.90)
    assert decide(window(at(-0.8), top=top), N) == LOOSE
    assert decide(window(at(-0.8), top=at(BETTER - half + ALMOST, half, 0.90)), N) == HOLDS


def test_consistent_needs_the_90_percent_interval_inside():
    half = 0.05
    for value in (WORSE - half - ALMOST, BETTER + half + ALMOST):
        assert decide(window(at(value, half, 0.90)), N) == CONSISTENT
    for value in (WORSE - half + ALMOST, BETTER + half - ALMOST):
        assert decide(window(at(value, half, 0.90)), N) != CONSISTENT


def test_consistent_needs_the_top_half_not_above_with_95_percent():
    half = 0.05
    assert decide(window(at(-0.5), top=at(WORSE + half, half)), N) == CONSISTENT
    assert decide(window(at(-0.5), top=at(WORSE + half + ALMOST, half)), N) == INCONCLUSIVE


def test_consistent_needs_the_extrapolation_and_no_offset_along_a_leading_coordinate():
    limit = N.margin * 2.0
    assert decide(window(at(-0.5), extrapolation=(limit, 2.0)), N) == CONSISTENT
    for off in (limit + ALMOST, -limit - ALMOST):
        assert decide(window(at(-0.5), extrapolation=(off, 2.0)), N) == HOLDS
    assert decide(window(at(-0.5), extrapolation=None), N) == HOLDS
    assert decide(window(at(-0.5), rivals=laws()), N) == CONSISTENT
    moved = -0.5 - N.margin / 2
    for exponent, word in ((moved - ALMOST, HOLDS), (moved + ALMOST, CONSISTENT), (-1.0 - moved + ALMOST, HOLDS)):
        assert decide(window(at(-0.5), rivals=laws(gain=9.0, exponent=exponent)), N) == word
    for gain, error, word in ((4 + ALMOST, 0.5, HOLDS), (4 - ALMOST, 0.5, CONSISTENT), (9.0, 1.0 + ALMOST, CONSISTENT)):
        assert decide(window(at(-0.5), rivals=laws(gain, error, moved - 0.01)), N) == word
    # r is no leading coordinate.
    assert decide(window(at(1.0), extrapolation=None, rivals=laws(gain=9.0)), R) == CONSISTENT


def laws(gain: float = 0.0, error: float = 0.5, exponent: float = -0.5, name: str = "power+offset"):
    """A power law and an offset beside it, with an AICc lower by `gain`."""
    return LawFit("power", -0.5, 0.0, 0.0, 1.0), LawFit(name, exponent, 0.1, -gain, error)


@pytest.mark.parametrize("name", ["power+offset", "power+shared offset"])
def test_consistent_needs_the_exponent_beside_an_offset_within_the_margin_too(name):
    for limit, inside in ((WORSE, -ALMOST), (BETTER, ALMOST)):
        assert decide(window(at(-0.5), rivals=laws(exponent=limit + inside, name=name)), N) == CONSISTENT
        assert decide(window(at(-0.5), rivals=laws(exponent=limit - inside, name=name)), N) == HOLDS


def test_holds_needs_the_95_percent_limit_of_the_whole_and_the_90_percent_limit_of_the_top_below():
    half = 0.05
    assert decide(window(at(WORSE - half - ALMOST, half), extrapolation=None), N) == HOLDS
    assert decide(window(at(WORSE - half + ALMOST, half), extrapolation=None), N) == INCONCLUSIVE
    top = at(WORSE - half - ALMOST, half, 0.90)
    assert decide(window(at(-0.5), top=top, extrapolation=None), N) == HOLDS
    top = at(WORSE - half + ALMOST, half, 0.90)
    assert decide(window(at(-0.5), top=top, extrapolation=None), N) == INCONCLUSIVE


def test_the_second_tier_has_the_guard_always_on_and_no_consistent():
    second = replace(N, tier=2)
    half = 0.05
    assert decide(window(at(-0.5)), second) == HOLDS
    for bar, value, inside, outside in ((BETTER, -0.8, LOOSE, HOLDS), (WORSE, -0.55, HOLDS, INCONCLUSIVE)):
        assert decide(window(at(value), reach=at(bar - half - ALMOST, half, 0.90)), second) == inside
        assert decide(window(at(value), reach=at(bar - half + ALMOST, half, 0.90)), second) == outside
        assert decide(window(at(value), reach=at(0.0), extrapolation=None), N) == inside  # the first tier has none
    assert decide(window(at(-0.2)), second) == REFUTED


def test_below_the_second_tier_nothing_is_said():
    assert decide(window(at(-0.2)), replace(N, tier=0)) == UNTESTABLE
    assert decide(None, N) == UNTESTABLE
    assert decide(window(at(float("nan"))), N) == UNTESTABLE


# --- bent ------------------------------------------------------------------------------------------------------------


def test_a_bend_is_more_than_fifteen_hundredths_and_significant():
    straight = window(at(-0.5), bend=at(0.15, 0.01))
    assert not straight.bent
    assert replace(straight, bend=at(0.15 + ALMOST, 0.01)).bent
    assert replace(straight, bend=at(-0.15 - ALMOST, 0.01)).bent
    assert replace(straight, bend=at(0.2, 0.2 - ALMOST)).bent
    assert not replace(straight, bend=at(0.2, 0.2 + ALMOST)).bent
    # In r 99 % decide.
    in_rank = replace(straight, bend_level=0.99)
    assert replace(in_rank, bend=at(0.2, 0.2 - ALMOST, 0.99)).bent
    assert not replace(in_rank, bend=at(0.2, 0.2 + ALMOST, 0.99)).bent


def test_bent_refuted_by_the_top_half():
    half = 0.05
    assert decide(bent(at(-0.9), at(WORSE + half + ALMOST, half, 0.975)), N) == REFUTED
    assert decide(bent(at(-0.9), at(WORSE + half - ALMOST, half, 0.975)), N) == INCONCLUSIVE


@pytest.mark.parametrize(("bar", "inside", "outside"), [(BETTER, LOOSE, HOLDS), (WORSE, HOLDS, INCONCLUSIVE)])
def test_bent_words_need_every_part(bar, inside, outside):
    half = 0.05
    safe = at(bar - 0.02 - half, half)
    flattening, steepening = bar - 0.4, bar - 0.4
    # The top half.
    assert decide(bent(at(flattening), at(bar - half - ALMOST, half), at(bar - 0.01)), N) == inside
    assert decide(bent(at(flattening), at(bar - half + ALMOST, half), at(bar - 0.01)), N) == outside
    # The low half, where the slope steepens.
    assert decide(bent(at(bar - half - ALMOST, half), at(steepening)), N) == inside
    assert decide(bent(at(bar - half + ALMOST, half), at(steepening)), N) == outside
    # What a plateau would do next, only where the slope flattens: the 80 % limit, 90 % in the second tier.
    for level, limits in ((0.80, N), (0.90, replace(N, tier=2))):
        assert decide(bent(at(flattening), safe, at(bar - half - ALMOST, half, level)), limits) == inside
        assert decide(bent(at(flattening), safe, at(bar - half + ALMOST, half, level)), limits) == outside
    assert decide(bent(at(bar - 0.1), at(steepening), at(0.0)), N) == inside
    assert decide(bent(at(bar - 0.1), at(steepening), at(0.0)), replace(N, tier=2)) != inside


def test_a_bent_law_is_never_consistent():
    assert decide(bent(at(-0.55), at(-0.35)), N) != CONSISTENT
    assert not [rule for rule in BENT if rule.word == CONSISTENT]


def test_a_saturating_gap_is_decided_by_the_upper_ranks_alone():
    concave = bent(at(1.5), at(0.5))
    assert decide(concave, R) == LOOSE
    assert decide(concave, replace(R, leading=True)) == INCONCLUSIVE  # along N no half decides alone
    assert decide(bent(at(0.5), at(1.5)), R) == REFUTED  # convex
    assert decide(bent(at(0.5), at(0.8), at(0.8)), R) == LOOSE
    assert decide(bent(at(0.5), at(0.8), at(0.95)), R) == HOLDS


# --- growth of r* ----------------------------------------------------------------------------------------------------

G = replace(N, claimed=0.5, refute_level=0.95)


def growth(
    window: Estimate, *corrected: Estimate, low: float = 0.0, bend: float = 0.0, top: float | None = None
) -> Growth:
    cost = RankCost(64.0, 128.0) if corrected else RankCost()
    end = at(window.value if top is None else top)
    return Growth(window, np.zeros(0), corrected, at(low), end, at(bend, abs(bend) / 2), cost, 0.0, 0.0)


def test_growth_is_refuted_by_both_exponents():
    half = 0.02
    both = at(0.6 + half + ALMOST, half)
    assert decide_growth(growth(both, both, both), G) == REFUTED
    assert decide_growth(growth(at(0.6 + half - ALMOST, half), both, both), G) != REFUTED
    assert decide_growth(growth(both, at(0.6 + half - ALMOST, half), both), G) != REFUTED
    assert decide_growth(growth(both, both, at(0.6 + half - ALMOST, half)), G) != REFUTED


def test_half_of_the_correction_is_taken_off_once_more():
    raw, half = 0.9, 0.01
    edge = (0.6 + half + 0.5 * raw) / 1.5  # corrected - half - (raw - corrected) / 2 = .6
    for shift, word in ((ALMOST, REFUTED), (-ALMOST, INCONCLUSIVE)):
        corrected = at(edge + shift, half)
        assert decide_growth(growth(at(raw, half), corrected, corrected), G) == word


def test_without_the_shape_the_lower_half_must_say_so_too():
    assert decide_growth(growth(at(0.8), low=0.6 + ALMOST), G) == REFUTED
    assert decide_growth(growth(at(0.8), low=0.6 - ALMOST), G) == INCONCLUSIVE
    width = replace(growth(at(0.8), low=0.0), cost=RankCost(64.0, None))  # the width of a clone: the shape is known
    assert decide_growth(width, G) == REFUTED


def test_growth_loose_and_holds_need_both_exponents():
    half = 0.02
    second = replace(G, tier=2)  # where CONSISTENT does not come first
    for bar, inside, outside in ((0.4, LOOSE, HOLDS), (0.6, HOLDS, INCONCLUSIVE)):
        inner, outer = at(bar - half - ALMOST, half), at(bar - half + ALMOST, half)
        assert decide_growth(growth(inner, inner, inner), second) == inside
        assert decide_growth(growth(outer, inner, inner), second) == outside
        assert decide_growth(growth(inner, inner, outer), second) == outside


def test_growth_consistent_needs_the_corrected_90_percent_interval_inside_and_the_raw_one_undecided():
    half = 0.03
    inner = at(0.6 - half - ALMOST, half, 0.90)
    assert decide_growth(growth(at(0.61, 0.02), inner, inner), G) == CONSISTENT
    assert decide_growth(growth(at(0.62 + ALMOST, 0.02), inner, inner), G) == INCONCLUSIVE  # raw alone refutes
    outer = at(0.6 - half + ALMOST, half, 0.90)
    assert decide_growth(growth(at(0.61, 0.02), inner, outer), G) == INCONCLUSIVE
    assert decide_growth(growth(at(0.61, 0.02), inner, inner), replace(G, tier=2)) != CONSISTENT
    low = at(0.4 + half + ALMOST, half, 0.90)
    assert decide_growth(growth(at(0.38 - ALMOST, 0.02), low, low), G) != CONSISTENT  # raw alone is slower


def test_a_bent_growth_is_decided_by_its_upper_half():
    half = 0.01
    assert decide_growth(growth(at(0.5), bend=0.4), G) != CONSISTENT
    assert decide_growth(growth(at(0.3, half), bend=0.4, top=0.39), G) == LOOSE
    assert decide_growth(growth(at(0.3, half), bend=0.4, top=0.59), G) == HOLDS
    assert decide_growth(growth(at(0.3, half), bend=0.4, top=0.61), G) == INCONCLUSIVE
    assert decide_growth(growth(at(0.8, half), low=0.9, bend=-0.4, top=0.5), G) == INCONCLUSIVE
    assert decide_growth(growth(at(0.8, half), low=0.9, bend=-0.2, top=0.7), G) == REFUTED
    unclear = replace(growth(at(0.8, half), low=0.9, bend=-0.2), top=at(0.7, 0.2))  # .5 to .9, on both sides of .6
    assert decide_growth(unclear, G) == INCONCLUSIVE


def test_a_growth_is_bent_with_95_percent():
    assert replace(growth(at(0.5)), bend=at(0.3, 0.3 - ALMOST)).bent
    assert not replace(growth(at(0.5)), bend=at(0.3, 0.3 + ALMOST)).bent


def test_growth_without_optima_is_untestable():
    assert decide_growth(None, G) == UNTESTABLE
    assert decide_growth(growth(at(0.5)), replace(G, tier=0)) == UNTESTABLE


def test_every_rule_is_documented():
    for rule in (*STRAIGHT, *BENT, *GROWTH):
        assert rule.text.endswith(".")
        assert len(rule.text) > 20
