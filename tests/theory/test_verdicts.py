"""The words of a verdict: equality, and how parts combine."""

from __future__ import annotations

import pytest

from theory.judge.verdicts import (
    CONSISTENT,
    HOLDS,
    INCONCLUSIVE,
    LOOSE,
    REFUTED,
    UNTESTABLE,
    VIOLATED,
    as_equality,
    combine,
)


def test_equality_is_two_sided():
    """Better than claimed is not equal to it; not worse leaves equality open."""
    words = (CONSISTENT, HOLDS, LOOSE, REFUTED, INCONCLUSIVE, UNTESTABLE)
    equal = (CONSISTENT, INCONCLUSIVE, REFUTED, REFUTED, INCONCLUSIVE, UNTESTABLE)
    assert tuple(as_equality(word) for word in words) == equal


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
        ([CONSISTENT, HOLDS], HOLDS, HOLDS),
        ([HOLDS, LOOSE], HOLDS, LOOSE),
        ([], HOLDS, UNTESTABLE),
    ],
)
def test_a_claim_is_as_good_as_its_worst_part(parts, bound, expected):
    assert combine(parts, bound) == expected
