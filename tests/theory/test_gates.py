"""Gates at their thresholds, and the missing runs as data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from theory.judge.cells import build_cells
from theory.judge.gates import (
    FAILED,
    FIRST,
    SECOND,
    Gate,
    between,
    cells_that_count,
    collinearity_gate,
    levels_gate,
    range_gate,
    rank_gates,
    reasons,
    seeds_gate,
    signal_gate,
    size_gates,
    tier_of,
    top_gate,
)
from theory.planted.surfaces import Design, gap_table


def tiers(levels):
    return {g.name: g.tier for g in size_gates("samples", np.array(levels, dtype=float))}


@pytest.mark.parametrize(("factor", "tier"), [(100, FIRST), (99.9, SECOND), (31.7, SECOND), (31.5, FAILED)])
def test_two_decades_of_samples_or_one_and_a_half_for_the_second_tier(factor, tier):
    assert tiers([10, 20, 50, 10 * factor])["range"] == tier


def test_the_missing_level_is_named_as_data():
    gate = size_gates("samples", np.array([64.0, 128, 256, 640]))[0]
    assert gate.needed == ({"samples": 6400.0, "seeds": 5},)
    assert "6400" in gate.reason and "factor of 10" in gate.reason


def test_four_levels_of_samples_are_needed():
    assert tiers([64, 640, 6400])["levels"] == FAILED
    assert tiers([64, 256, 1024, 6400])["levels"] == FIRST


def test_three_levels_must_lie_in_the_top_half():
    assert top_gate("steps", np.array([128.0, 512, 2048, 12800])).tier == FAILED
    assert top_gate("steps", np.array([128.0, 512, 2048, 12800])).needed == ({"steps": 5120.0, "seeds": 5},)
    assert top_gate("steps", np.array([128.0, 512, 2048, 5120, 12800])).tier == FIRST
    assert top_gate("steps", np.array([128.0, 640, 3200, 12800])).tier == FIRST


@pytest.mark.parametrize(("levels", "tier"), [((4, 8, 12, 20, 32), FIRST), ((4, 8, 12, 20, 31), FAILED)])
def test_nine_tenths_of_a_decade_of_rank(levels, tier):
    assert tier_of(rank_gates(np.array(levels, dtype=float))) == tier


def test_five_ranks_are_needed():
    assert tier_of(rank_gates(np.array([4.0, 8, 16, 40]))) == FAILED
    gate = levels_gate("rank", np.array([4.0, 8, 16, 40]), 5)
    assert gate.needed == ({"rank": 25.0, "seeds": 5},)
    assert gate.reason == "rank takes 4 values and 5 are needed: add rank = 25"


def test_seeds_are_counted_in_the_median_cell():
    assert seeds_gate(np.array([5.0] * 31 + [4.0] * 4)).tier == FIRST
    assert seeds_gate(np.array([5.0] * 4 + [4.0] * 31)).tier == SECOND
    assert seeds_gate(np.full(9, 3.0)).tier == SECOND
    assert seeds_gate(np.full(9, 2.0)).tier == FAILED
    assert seeds_gate(np.full(9, 2.0)).needed == ({"seeds": 3},)
    half = seeds_gate(np.array([3.0, 4.0]))
    assert half.needed == ({"seeds": 2},)
    assert half.reason == "3.5 seeds per cell and 5 are needed: repeat the cells with 2 new seeds"


def test_the_signal_must_exceed_three_standard_errors_in_nine_cells_of_ten():
    points = [{"samples": float(k)} for k in range(10)]
    mean, error = np.full(10, 3.0), np.ones(10)
    assert signal_gate("gap", points, mean, error).tier == FIRST
    error[0] = 1.01
    assert signal_gate("gap", points, mean, error).tier == FIRST
    error[1] = 1.5
    gate = signal_gate("gap", points, mean, error)
    assert gate.tier == SECOND
    assert {**points[1], "seeds": 7} in gate.needed  # (1.5^2 - 1) x 5, rounded up
    assert {run["samples"] for run in gate.needed} == {0.0, 1.0}
    assert signal_gate("gap", points, -mean, np.ones(10)).tier == SECOND
    assert signal_gate("gap", points, mean, np.full(10, np.nan)).tier == FAILED


@pytest.mark.parametrize(("weak", "tier"), [(2, FIRST), (3, SECOND)])
def test_the_share_of_strong_cells_is_counted_among_twenty(weak, tier):
    error = np.where(np.arange(20) < weak, 2.0, 1.0)
    assert signal_gate("gap", [{}] * 20, np.full(20, 3.0), error).tier == tier


def test_cells_without_spread_are_strong_where_they_are_above_zero():
    for mean, tier in ((0.1, FIRST), (0.0, SECOND), (-0.5, SECOND)):
        gate = signal_gate("gap", [{}] * 3, np.full(3, mean), np.zeros(3))
        assert (gate.tier, gate.needed) == (tier, ())


def test_a_cell_of_unknown_noise_is_left_out_of_the_share():
    mean, error = np.full(5, 3.0), np.array([1.0, 1.0, 1.0, 1.0, np.nan])
    assert signal_gate("gap", [{}] * 5, mean, error).tier == FIRST
    unknown = signal_gate("gap", [{}] * 5, mean, np.full(5, np.nan))
    assert unknown.needed == ({"seeds": 4},)  # beside the one that is there


@pytest.mark.parametrize(
    ("ratio", "said", "seeds"),
    [(0.31, "take about 93.7 times the seeds in the others", (464, 464)), (0.30, "take many more seeds (some", ())],
)
def test_more_seeds_are_counted_where_the_mean_is_a_tenth_of_what_is_needed(ratio, said, seeds):
    """(3 / .31)^2 = 93.65 times the five seeds, of which five are there."""
    mean = np.where(np.arange(10) < 2, ratio, 4.0)
    gate = signal_gate("gap", [{}] * 10, mean, np.ones(10))
    assert said in gate.reason
    assert tuple(run["seeds"] for run in gate.needed) == seeds


def test_coordinates_that_move_together_cannot_be_told_apart():
    a = np.geomspace(1, 100, 9)
    assert collinearity_gate("rank", "samples", a, a**2).tier == FAILED
    assert collinearity_gate("rank", "samples", a, 1 / a).tier == FAILED
    assert collinearity_gate("rank", "samples", np.repeat(a, 9), np.tile(a, 9)).tier == FIRST
    # A coordinate that does not move moves with nothing; two values each are enough to move together.
    two, one = np.array([1.0, 10.0]), np.ones(2)
    assert collinearity_gate("rank", "samples", two, two).tier == FAILED
    assert collinearity_gate("rank", "samples", two, one).tier == collinearity_gate("a", "b", one, two).tier == FIRST


@pytest.mark.parametrize(("correlation", "tier"), [(0.94, FIRST), (0.96, FAILED)])
def test_a_correlation_of_95_percent_is_too_much(correlation, tier):
    x, y = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])  # uncorrelated, of variance 1
    mixed = correlation * x + np.sqrt(1 - correlation**2) * y
    gate = collinearity_gate("rank", "samples", np.exp(x), np.exp(mixed))
    assert gate.tier == tier
    assert ("rank and samples move together (correlation 0.96" in gate.reason) == (tier == FAILED)


def test_thresholds_are_inclusive_up_to_rounding_and_no_further():
    for short, tier in ((1e-10, FIRST), (1e-7, SECOND)):
        assert range_gate("steps", np.array([10.0, 1000 * (1 - short)]), 2.0, 1.5).tier == tier
    for short, tier in ((1e-10, SECOND), (1e-7, FAILED)):
        assert range_gate("steps", np.array([10.0, 10 * 10**1.5 * (1 - short)]), 2.0, 1.5).tier == tier


def test_failed_gates_are_said_first_and_otherwise_in_their_order():
    checks = {
        "rank": [Gate("seeds", SECOND, "few seeds")],
        "samples": [Gate("range", FAILED, "short"), Gate("levels", FAILED, "coarse")],
    }
    assert reasons(checks) == [
        "samples untestable: short",
        "samples untestable: coarse",
        "rank second tier, never CONSISTENT: few seeds",
    ]


def test_values_between_any_levels():
    assert between(np.array([0.0]), 1) == [4.0]  # as beyond 1
    assert between(np.array([3.0, 4.0, 5.0]), 1) == [10.0]  # no whole number in the widest gap: beyond the largest


def test_a_cell_counts_with_three_seeds(rng):
    frame = gap_table(1.0, 0.5, Design(samples=(64, 128, 256, 640)), rng)
    far = frame.iloc[[0]].assign(samples=6400.0)
    cells = build_cells(frame, ["rank", "samples"], "gap")
    alone, remark = cells_that_count(build_cells(pd.concat([frame, far]), ["rank", "samples"], "gap"))
    assert alone.levels["samples"].max() == 640
    assert "(rank=4, samples=6400)" in remark
    np.testing.assert_array_equal(alone.mean, cells.mean)
    assert cells_that_count(cells) == (cells, "")
    sites = build_cells(pd.concat([frame, far]).assign(site="q"), ["site", "samples"], "gap")
    assert "(site=q, samples=6400)" in cells_that_count(sites)[1]
    two = build_cells(frame[frame["seed"] < 2], ["rank", "samples"], "gap")
    assert cells_that_count(two)[0].size == two.size  # where no cell has three, the gate on seeds says so


def test_the_weakest_gate_decides():
    assert tier_of([]) == FIRST
    first, second, failed = (seeds_gate(np.full(4, n)) for n in (5.0, 3.0, 1.0))
    assert tier_of([first, second]) == SECOND
    assert tier_of([first, second, failed]) == FAILED
