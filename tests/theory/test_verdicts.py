"""The words of a verdict: directions, equality, and how parts combine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.intervals import UNDEFINED, Interval
from theory.verdicts import (
    CONSISTENT,
    HOLDS,
    INCONCLUSIVE,
    LOOSE,
    REFUTED,
    UNTESTABLE,
    VIOLATED,
    combine,
    direction,
    rate,
)


@pytest.mark.parametrize(
    ("ci90", "ci95", "one_sided", "two_sided"),
    [
        ((-0.55, -0.45), (-0.56, -0.44), CONSISTENT, CONSISTENT),
        ((-0.59, -0.41), (-0.62, -0.38), CONSISTENT, CONSISTENT),  # the 90 % interval decides equality
        ((-0.38, -0.32), (-0.39, -0.31), REFUTED, REFUTED),  # slower than claimed
        ((-1.05, -0.95), (-1.06, -0.94), LOOSE, REFUTED),  # faster: the bound holds, the equality does not
        ((-0.65, -0.35), (-0.70, -0.30), INCONCLUSIVE, INCONCLUSIVE),
        ((-0.41, -0.35), (-0.42, -0.34), INCONCLUSIVE, INCONCLUSIVE),  # touches the margin
    ],
)
def test_directions_of_an_upper_bound(ci90, ci95, one_sided, two_sided):
    arguments = (-0.5, 0.1, Interval(*ci90), Interval(*ci95))
    assert direction(*arguments) == one_sided
    assert rate(*arguments) == two_sided


def test_undefined_intervals_decide_nothing():
    assert direction(-0.5, 0.1, UNDEFINED, UNDEFINED) == INCONCLUSIVE


@given(st.floats(-3, 3), st.floats(0.001, 2.0), st.floats(0.0, 0.5), st.floats(0.01, 0.3))
def test_no_interval_is_both_refuted_and_consistent(centre, half90, extra, margin):
    ci90 = Interval(centre - half90, centre + half90)
    ci95 = Interval(ci90.low - extra, ci90.high + extra)
    word = direction(-0.5, margin, ci90, ci95)
    if word == CONSISTENT:
        assert abs(centre + 0.5) <= margin + 1e-9
    if word == REFUTED:
        assert centre > -0.5 + margin
    if word == LOOSE:
        assert centre < -0.5 - margin


@pytest.mark.parametrize(
    ("parts", "bound", "expected"),
    [
        ([CONSISTENT, CONSISTENT], HOLDS, CONSISTENT),
        ([CONSISTENT, LOOSE], HOLDS, LOOSE),
        ([LOOSE, INCONCLUSIVE], HOLDS, INCONCLUSIVE),
        ([INCONCLUSIVE, UNTESTABLE], HOLDS, UNTESTABLE),
        ([UNTESTABLE, REFUTED], HOLDS, REFUTED),
        ([CONSISTENT], VIOLATED, REFUTED),
        ([INCONCLUSIVE], HOLDS, INCONCLUSIVE),  # a bound that holds lifts nothing
        ([], HOLDS, UNTESTABLE),
    ],
)
def test_a_claim_is_as_good_as_its_worst_part(parts, bound, expected):
    assert combine(parts, bound) == expected
