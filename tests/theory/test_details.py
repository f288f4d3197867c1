"""Numbers and edges of intervals, optima, gates, slopes and sentences that no other test pins down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged
from scipy import stats

from theory.judge import gates, rates, scrutiny
from theory.judge.cells import MAX_CLUSTERS, build_cells
from theory.judge.intervals import (
    UNDEFINED,
    WEBB,
    Interval,
    bootstrap_standard_error,
    difference_interval,
    mean_interval,
    t_interval,
    t_quantile,
    wild_cluster_interval,
)
from theory.judge.model_selection import extrapolation_error
from theory.judge.optimum import (
    AT_LEAST,
    AT_MOST,
    OUTSIDE,
    UNRESOLVED,
    USED,
    Optima,
    RankCost,
    find_optima,
    fit_growth,
    local_minimum,
)
from theory.judge.slopes import PowerLaw
from theory.judge.verdicts import CONSISTENT, LOOSE
from theory.judge.window import look
from theory.laws.surface import Surface
from theory.planted.surfaces import Design, broken_gap_table, gap_table, risk_table

DESIGN = Design(noise=0.1)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_quantile_is_student_s():
    for probability, degrees in ((0.975, 4), (0.95, 2.5), (0.9, 30)):
        assert float(t_quantile(probability, degrees)) == pytest.approx(stats.t.ppf(probability, degrees))


def test_unpaired_differences_are_welch_s():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(6), 1 + 3 * rng.standard_normal(4)
    left = np.concatenate([a, np.full(4, np.nan)])
    right = np.concatenate([np.full(6, np.nan), b])
    want = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    got = difference_interval(left, right, 0.9)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


def test_differences_are_paired_where_two_seeds_are_shared():
    a, b = np.array([1.0, 2.0, 3.5, np.nan]), np.array([0.5, 1.0, np.nan, 9.0])
    want = mean_interval(np.array([0.5, 1.0]), 0.95)
    got = difference_interval(a, b, 0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert np.isnan(difference_interval(np.array([1.0, np.nan]), np.array([np.nan, 1.0]), 0.95).low)


def test_a_single_shared_seed_pairs_nothing():
    a, b = np.array([1.0, 2.0, 4.0, np.nan]), np.array([np.nan, np.nan, 3.0, 9.0])
    want = stats.ttest_ind([1.0, 2.0, 4.0], [3.0, 9.0], equal_var=False).confidence_interval(0.95)
    got = difference_interval(a, b, 0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


def test_one_value_on_a_side_has_no_spread():
    a, b = np.array([1.0, 2.0, 4.0, np.nan]), np.array([np.nan, np.nan, np.nan, 9.0])
    assert difference_interval(a, b, 0.95) is difference_interval(b, a, 0.95) is UNDEFINED


def test_without_any_spread_the_difference_is_exact():
    a, b = np.array([3.0, 3.0, np.nan, np.nan]), np.array([np.nan, np.nan, 1.0, 1.0])
    assert difference_interval(a, b, 0.95) == Interval(2.0, 2.0)


def test_an_interval_is_inside_including_its_ends():
    assert Interval(-0.6, -0.4).inside(-0.6, -0.4)
    assert not Interval(-0.6001, -0.4).inside(-0.6, -0.4)
    assert not Interval(-0.6, -0.3999).inside(-0.6, -0.4)
    assert Interval(1.0, 3.5).width == 2.5
    assert t_interval(0.0, 1.0, 2.0, 0.95).high == pytest.approx(stats.t.ppf(0.975, 1))
    assert np.isfinite(t_interval(0.0, 1.0, 2 - 1e-10, 0.95).high)  # two effective seeds, but for rounding
    assert np.isnan(t_interval(0.0, 1.0, 2 - 1e-7, 0.95).high)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_effective_seeds_of_a_balanced_design_are_its_seeds():
    cells = build_cells(gap_table(1, 0.5, DESIGN, np.random.default_rng(0)), ["rank", "samples"], "gap")
    assert cells.effective_clusters() == pytest.approx(5)
    assert cells.effective_clusters(np.zeros(cells.size)) == 5
    alone = np.zeros(cells.size)
    alone[3] = 1.0
    assert cells.effective_clusters(alone) == pytest.approx(5)


def test_kept_cells_keep_their_seeds():
    frame = gap_table(1, 0.5, DESIGN, np.random.default_rng(0))
    frame = frame[(frame["seed"] < 4) | (frame["rank"] == 4)]
    cells = build_cells(frame, ["rank", "samples"], "gap")
    kept = cells.keep((cells.levels["rank"] > 4).to_numpy())
    assert (cells.seeds, kept.seeds, kept.clusters, kept.size) == (5, 4, 4, 30)
    assert list(kept.groups(["samples"])[:5]) == [0, 1, 2, 3, 4]
    assert not kept.groups([]).any()


def test_many_seeds_are_pooled_and_still_counted():
    frame = gap_table(
        1, 0.5, Design(ranks=(4, 8), samples=(64, 256), seeds=MAX_CLUSTERS + 50), np.random.default_rng(0)
    )
    cells = build_cells(frame, ["rank", "samples"], "gap")
    assert (cells.seeds, cells.clusters) == (MAX_CLUSTERS + 50, MAX_CLUSTERS)
    assert cells.keep(np.array([True, False, True, True])).seeds == MAX_CLUSTERS + 50


# --- slopes and windows ----------------------------------------------------------------------------------------------


def test_large_tables_have_the_same_intervals_to_first_order(monkeypatch):
    cells = build_cells(gap_table(1, 0.5, DESIGN, np.random.default_rng(0)), ["rank", "samples"], "gap")
    exact = look(cells, "samples", ["rank"], leading=True)
    monkeypatch.setattr("theory.judge.window.LARGEST_REFIT", 0)
    quick = look(cells, "samples", ["rank"], leading=True)
    assert quick.whole.value == exact.whole.value
    assert quick.whole.standard_error == pytest.approx(exact.whole.standard_error, rel=0.05)
    assert quick.top.standard_error == pytest.approx(exact.top.standard_error, rel=0.05)


def test_weights_matter():
    x, group = np.log(np.array([1.0, 10.0, 100.0])), np.zeros(3, dtype=int)
    y = np.array([1.0, 0.5, 0.01])
    trusting_the_first = PowerLaw.of(x, group, np.array([0.001, 0.001, 1.0])).fit(y[None])[0]
    assert trusting_the_first == pytest.approx(np.log(0.5) / np.log(10), abs=1e-3)


# --- optima ----------------------------------------------------------------------------------------------------------


def optima(rank, *, low=4.0, high=16.0, grid=(2.0, 30.0), interior=True, samples=None):
    """Optima by hand, with three draws around each."""
    k = len(rank)
    flags = np.broadcast_to(np.asarray(interior), (k,))
    samples = 100.0 * 4.0 ** np.arange(k) if samples is None else samples
    return Optima(
        samples, np.log(rank), np.log(rank) + DRAWN[:, :k], np.full(k, np.log(grid[0])), np.full(k, np.log(grid[1])),
        np.full(k, np.log(low)), np.full(k, np.log(high)), np.log(high), flags, np.ones((3, 5)), 5, 5.0,
    )  # fmt: skip


DRAWN = np.random.default_rng(4).normal(0, 0.05, (3, 8))


def test_the_status_of_an_optimum():
    found = optima(np.array([1.9, 2.1, 4.0, 16.0, 16.1, 30.0, 30.1]))
    assert found.status == [AT_MOST, OUTSIDE, USED, USED, OUTSIDE, OUTSIDE, AT_LEAST]
    assert list(found.used) == [False, False, True, True, False, False, False]
    assert optima(np.array([5.0]), interior=False).status == [UNRESOLVED]
    words = " ".join(found.left_out())
    assert "r*(100) <= 2" in words and "r*(400) = 2.1, outside the window" in words and ">= 30" in words
    assert "not resolved" in optima(np.array([5.0]), interior=False).left_out()[0]


def test_the_corrected_exponent_is_the_regression_it_says():
    rank, sizes = np.array([4.5, 6.0, 8.5, 12.0, 15.5]), 64.0
    found = optima(rank)
    growth = fit_growth(found, RankCost(32.0, sizes))
    x = np.log(found.samples)
    shifted = x - np.log(1 - 2 * rank / sizes)
    assert growth.window.value == pytest.approx(np.polyfit(x, np.log(rank), 1)[0])
    for h, estimate in zip((0.0, 0.5), growth.corrected, strict=True):
        assert estimate.value == pytest.approx(np.polyfit(shifted, np.log(rank + h), 1)[0])
    assert growth.low.value == pytest.approx(np.polyfit(shifted[:3], np.log(rank[:3] + 0.5), 1)[0])
    assert growth.top.value == pytest.approx(np.polyfit(shifted[2:], np.log(rank[2:] + 0.5), 1)[0])
    assert growth.bend.value == pytest.approx(growth.top.value - growth.low.value)
    line = growth.corrected_line(found.samples)
    intercept = np.log(line) - growth.corrected[0].value * (x - np.log(1 - 2 * line / sizes))
    np.testing.assert_allclose(intercept, intercept[0], atol=1e-6)
    assert np.mean(np.log(line) - np.log(rank)) == pytest.approx(0.0, abs=0.02)
    assert np.mean(np.log(growth.line(found.samples)) - np.log(rank)) == pytest.approx(0.0, abs=1e-9)
    plain = fit_growth(found, RankCost(32.0, None))
    assert plain.corrected == () and np.isnan(plain.corrected_line(found.samples)).all()
    assert plain.low.value == pytest.approx(np.polyfit(x[:3], np.log(rank[:3]), 1)[0])
    assert fit_growth(optima(np.array([4.5, 30.5])), RankCost()) is None


def test_the_error_of_a_growth_is_that_of_its_draws():
    rank = np.array([4.5, 6.0, 8.5, 12.0])
    found = optima(rank)
    growth = fit_growth(found, RankCost(32.0, 64.0))
    x, drawn = np.log(found.samples), np.exp(found.draws)
    slopes = [np.polyfit(x, np.log(r), 1)[0] for r in drawn]
    shifted = [np.polyfit(x - np.log(1 - 2 * r / 64), np.log(r + 0.5), 1)[0] for r in drawn]
    np.testing.assert_allclose(growth.draws, slopes)
    for estimate, draws in ((growth.window, slopes), (growth.corrected[1], shifted)):
        assert estimate.standard_error == pytest.approx(np.std(draws) * np.sqrt(5 / 4))
        assert estimate.clusters == 5
    interval = found.interval(2)
    error = np.std(found.draws[:, 2]) * np.sqrt(5 / 4)
    ends = np.log(8.5) + np.array([-1, 1]) * stats.t.ppf(0.975, 4) * error
    assert (interval.low, interval.high) == pytest.approx(tuple(np.exp(ends)))


def test_halves_need_three_optima_and_an_exponent_two():
    two = fit_growth(optima(np.array([5.0, 10.0]), samples=np.array([100.0, 400.0])), RankCost())
    assert two.window.value == pytest.approx(0.5)
    assert np.isnan([two.low.value, two.top.value, two.bend.value]).all() and not two.bent
    three = fit_growth(optima(np.array([5.0, 10.0, 15.0]), samples=np.array([100.0, 400.0, 1600.0])), RankCost())
    assert (three.low.value, three.top.value) == pytest.approx((0.5, np.log(1.5) / np.log(4)))


def test_the_corrected_line_solves_its_equation_from_far_below_one_to_near_the_jump():
    """ln r = a + rho (ln N - ln(1 - 2 r / 64)) has roots up to 64 / (2 + 2 rho); then r is full rank."""
    growth = fit_growth(optima(np.array([4.5, 6.0, 8.5, 12.0])), RankCost(32.0, 64.0))
    rho, a = growth.corrected[0].value, growth.corrected_intercept
    rank = np.array([0.01, 0.5, 5.0, 20.0, 22.0])
    samples = np.exp((np.log(rank) - a) / rho + np.log(1 - 2 * rank / 64))
    np.testing.assert_allclose(growth.corrected_line(samples), rank, rtol=1e-5)
    assert growth.corrected_line(1e3 * samples[-1:])[0] == pytest.approx(32.0, rel=0.01)


def test_the_union_of_the_corrected_intervals():
    growth = fit_growth(optima(np.array([4.5, 6.0, 8.5, 12.0])), RankCost(32.0, 64.0))
    ends = [e.interval(0.95) for e in growth.corrected]
    both = growth.both(0.95)
    assert both.low == min(i.low for i in ends) and both.high == max(i.high for i in ends)


def test_the_minimum_is_sought_around_the_lowest_rank_and_at_the_edge():
    x = np.log(np.array([2.0, 4, 8, 16, 32]))
    falling, rising = -0.1 * x, 0.1 * x
    found = local_minimum(x, np.exp(np.stack([falling, rising])))
    np.testing.assert_allclose(found, [x[-1], x[0]], atol=1e-9)
    negative = (x - 2.0) ** 2 - 1.0  # not positive: as it is, not on the log scale
    assert local_minimum(x, negative[None])[0] == pytest.approx(2.0, abs=1e-6)
    touching = (x - x[2]) ** 2  # zero has no logarithm either
    assert local_minimum(x, touching[None])[0] == pytest.approx(x[2], abs=1e-6)


def test_five_ranks_determine_a_quartic_whatever_the_unit_of_the_risk():
    x = np.log(np.array([2.0, 4, 8, 16, 32]))
    u = x - 2.2
    risk = np.exp(0.2 * u**2 + 0.04 * u**3 + 0.03 * u**4)
    np.testing.assert_allclose(local_minimum(x, np.stack([risk, 1e-4 * risk, 1e4 * risk])), 2.2, atol=1e-8)


@pytest.mark.parametrize("mirror", [1, -1])
def test_no_minimum_is_sought_beyond_the_neighbours_of_the_lowest_rank(mirror):
    """A quartic that dips deeper in a wide gap of the grid: what happens in the gap was not seen."""
    x = mirror * np.log([2.0, 32, 64, 128, 192])[::mirror]
    height = np.array([0.6, 0.2, 0.1, 0.2, 0.8])[::mirror]
    quartic, fine = np.polynomial.Polynomial.fit(x, height, 4), np.linspace(x[0], x[-1], 1001)
    deepest = mirror * fine[np.argmin(quartic(fine))]
    assert np.log(2) < deepest < np.log(32) and quartic(mirror * deepest) < 0
    found = local_minimum(x, np.exp(height)[None])[0]
    assert np.log(32) <= mirror * found <= np.log(128)


def test_the_interior_pretest_is_paired():
    """The largest rank is worse by less than the seeds' spread, which they share."""
    surface, design = (
        Surface(0.0, 1.0, 1.0, 1000 / 4.5**2, 1.0, 1.0),
        Design(ranks=(2, 3, 4, 6, 8, 12, 16), samples=(1000, 2000), noise=0.001, intercept_sd=0.5),
    )
    frame = risk_table(surface, design, np.random.default_rng(0))
    found = find_optima(build_cells(frame, ["rank", "samples"], "test_loss"))
    assert found.interior.all()
    few = build_cells(frame[frame["rank"] <= 8], ["rank", "samples"], "test_loss")
    assert find_optima(few) is not None
    assert find_optima(build_cells(frame[frame["rank"] <= 6], ["rank", "samples"], "test_loss")) is None


def risk_cells(ranks, risk, spread=0.0, samples=1000.0):
    """Five seeds that agree but at the largest rank, where they are apart by `spread` x (-2 ... 2)."""
    shift = spread * np.arange(-2.0, 3.0)
    rows = [
        (r, samples, seed, value + (shift[seed] if r == ranks[-1] else 0.0))
        for r, value in zip(ranks, risk, strict=True)
        for seed in range(5)
    ]
    return build_cells(
        pd.DataFrame(rows, columns=["rank", "samples", "seed", "loss"]).astype(float), ["rank", "samples"], "loss"
    )


def test_an_optimum_is_interior_where_the_largest_rank_is_worse_with_95_percent():
    spread = 0.1
    half = stats.t.ppf(0.975, 4) * spread * np.std(np.arange(5), ddof=1) / np.sqrt(5)
    ranks = (2, 4, 8, 16, 32)
    for shift, interior in ((1e-6, True), (-1e-6, False)):
        found = find_optima(risk_cells(ranks, (5.0, 2.0, 1.0, 3.0, 1.0 + half + shift), spread))
        assert found.interior.tolist() == [interior]
        # However the second rank and the last but one compare with the best.
        near = find_optima(risk_cells(ranks, (5.0, 1.01, 1.0, 1.01, 1.0 + half + shift), spread))
        assert near.interior.tolist() == [interior]
    falling = find_optima(risk_cells(ranks, (5.0, 4.0, 3.0, 2.0, 1.0)))
    assert falling.interior.tolist() == [False] and falling.status == [AT_LEAST]
    edge = find_optima(risk_cells(ranks, (5.0, 4.0, 2.0, 1.0, 2.0)))  # the last but one is the lowest
    assert edge.interior.tolist() == [True]


def test_the_window_of_ranks_is_that_of_the_grid_and_the_matrix():
    risk = (3.0, 2.0, 1.0, 2.0, 3.0)
    for ranks, dimension, low, high in (
        ((2, 3, 8, 16, 32), np.inf, 4, 16),
        ((4, 6, 8, 16, 32), np.inf, 6, 16),
        ((2, 3, 8, 16, 32), 48.0, 4, 12),
    ):
        found = find_optima(risk_cells(ranks, risk), dimension)
        assert np.exp([found.grid_low, found.grid_high]).ravel() == pytest.approx([ranks[1], ranks[-2]])
        assert np.exp([found.low, found.high]).ravel() == pytest.approx([low, high])
        assert np.exp(found.high_of_matrix) == pytest.approx(dimension / 4)
        assert (found.clusters, found.effective, found.samples.tolist()) == (5, pytest.approx(5), [1000.0])


def test_the_tolerance_of_an_edge_is_rounding_and_no_more():
    for off, words in ((1e-10, [USED, USED]), (1e-7, [OUTSIDE, OUTSIDE])):
        assert optima(np.array([4 * (1 - off), 16 * (1 + off)])).status == words
    for off, words in ((1e-10, [OUTSIDE, OUTSIDE]), (1e-7, [AT_MOST, AT_LEAST])):
        assert optima(np.array([2 * (1 - off), 30 * (1 + off)])).status == words


# --- gates -----------------------------------------------------------------------------------------------------------


def test_values_between_are_the_middles_of_the_widest_gaps():
    assert gates.between(np.array([1.0, 100.0]), 1) == [10.0]
    assert gates.between(np.array([1.0, 50.0, 1000.0]), 2) == [7.0, 224.0]
    assert gates.between(np.array([3.0]), 1) == [12.0]
    assert gates.between(np.array([0.0, 3.0]), 1) == [12.0]
    assert gates.between(np.array([3.0, 4.0]), 1) == [8.0]  # no whole number between


def test_few_cells_are_named_and_more_are_counted(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    lone = frame[frame["seed"] == 0].head(6).assign(samples=[1e5, 2e5, 3e5, 4e5, 5e5, 6e5])
    _, said = gates.cells_that_count(build_cells(pd.concat([frame, lone.head(2)]), ["rank", "samples"], "gap"))
    assert "2 of 37" in said and "more" not in said
    _, said = gates.cells_that_count(build_cells(pd.concat([frame, lone]), ["rank", "samples"], "gap"))
    assert "6 of 41" in said and "and 2 more" in said


def test_decades_and_words_of_the_range_gate():
    gate = gates.range_gate("steps", np.array([10.0, 500.0]), 2.0, 1.5)
    assert gate.tier == gates.SECOND
    assert "covers a factor of 50 (10 to 500); 100 is needed: add runs with steps = 1000" in gate.reason
    assert gates.decades(np.array([10.0, 1000.0])) == pytest.approx(2.0)


def test_failed_gates_come_first_and_name_the_coordinates(rng):
    design = replace(DESIGN, samples=(64, 128, 256, 640), seeds=3)
    reasons = judged(gap_table(1.0, 0.5, design, rng)).reasons
    assert reasons[0].startswith("samples untestable: samples covers a factor of 10")
    assert any(r.startswith("rank second tier, never CONSISTENT: 3 seeds per cell") for r in reasons)
    both = judged(gap_table(1.0, 0.5, replace(DESIGN, seeds=2), rng)).reasons
    assert any(r.startswith("rank and samples untestable: 2 seeds per cell") for r in both)


# --- sentences -------------------------------------------------------------------------------------------------------


def test_a_bent_law_says_where_and_what_decided(rng):
    report = judged(broken_gap_table(1.0, 1.4, 1.0, DESIGN, rng))
    assert report.exponents["samples"].verdict == LOOSE
    text = " ".join(report.reasons)
    assert "samples: bent: the slope is -1.4" in text and "up to 1024" in text
    assert "samples: better than claimed in every part that decides (-0.5 claimed)" in text
    slow = judged(broken_gap_table(1.0, 0.75, 0.2, DESIGN, rng))
    assert "samples: worse than claimed in every part that decides" in " ".join(slow.reasons)
    straight = judged(gap_table(1.0, 1.0, DESIGN, rng))
    assert "every part" not in " ".join(straight.reasons)


def test_the_claimed_law_of_the_points_passes_through_the_data(rng):
    points = judged(gap_table(1.0, 0.5, DESIGN, rng)).points
    assert np.log(points["claimed"] / points["mean"]).abs().max() < 0.3
    assert np.log(points["fitted_samples"] / points["mean"]).abs().max() < 0.3
    assert np.log(points["fitted_rank"] / points["mean"]).abs().max() < 0.3
    cell = points.iloc[0]
    assert cell["low"] < cell["mean"] < cell["high"]


def test_the_wider_of_two_intervals_is_mentioned(monkeypatch, rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    monkeypatch.setattr(rates, "WIDER", 0.0)
    assert any("a second method gives a wider 95 % interval" in r for r in judged(frame).reasons)
    monkeypatch.setattr(rates, "WIDER", 1e9)
    assert not any("a second method" in r for r in judged(frame).reasons)


# --- scrutiny --------------------------------------------------------------------------------------------------------


def test_a_stray_value_is_no_confounder(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    rate = np.full(len(frame), 0.1)
    rate[::40] = 0.2
    assert scrutiny.confounded(frame.assign(learning_rate=rate), "samples") == []
    mixed = np.where(frame["samples"] >= 1024, 0.2, 0.1)
    assert len(scrutiny.confounded(frame.assign(learning_rate=mixed), "samples")) == 1
    assert scrutiny.confounded(frame.assign(learning_rate=mixed), "samples", ignore=("learning_rate",)) == []
    mixed[: len(mixed) // 5] = 0.15  # a fifth of the rows off: the levels no longer say it
    assert scrutiny.confounded(frame.assign(learning_rate=np.roll(mixed, 17)), "samples") == []


def test_a_small_share_of_missing_runs_is_nothing_however_many():
    levels, replicates = np.repeat([1.0, 10.0], 100), np.full(200, 1000.0)
    replicates[100:] = 950.0  # 5 % of 100,000 runs
    assert scrutiny.survivors(levels, replicates, "samples") == []
    replicates[100:] = 850.0
    (doubt,) = scrutiny.survivors(levels, replicates, "samples")
    assert "fewer runs at samples = 10 (85000 of 100000) than at 1" in doubt.remark
    assert scrutiny.survivors(np.ones(5), np.full(5, 3.0), "samples") == []


def test_the_farthest_run_is_named_first_and_three_at_most():
    cell, seed = np.divmod(np.arange(30), 5)
    samples = 64.0 * 2.0**cell
    frame = pd.DataFrame({"samples": samples, "seed": seed, "gap": (1 + 0.01 * (seed - 2)) / samples})
    for row, factor in ((2, 10.0), (8, 1e9), (13, 1e2), (16, 1e4)):
        frame.loc[row, "gap"] *= factor
    (said,) = scrutiny.far_runs(frame, ["samples"], "gap")
    places = [said.index(f"row {row} ") for row in (8, 16, 13)]
    assert places == sorted(places)
    assert "row 2 " not in said and "and 1 more" in said


def test_equal_copies_in_few_rows_are_no_refusal(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    for row in (0, 5, 10):
        frame.loc[row + 1, "gap"] = frame.loc[row, "gap"]
    assert judged(frame).verdict == CONSISTENT  # 6 of 175 rows
    for row in range(0, 60, 5):
        frame.loc[row + 1, "gap"] = frame.loc[row, "gap"]
    with pytest.raises(ValueError, match="hold the same value, as do 24 of 175 rows"):
        judged(frame)


# --- found by a second sample of mutants -----------------------------------------------------------------------------

BOTH = (rates.Coordinate("samples", -0.5, leading=True), rates.Coordinate("rank", 1.0, leading=False))


def test_two_coordinates_that_can_be_judged_share_the_five_percent(rng):
    frame = gap_table(1, 0.5, DESIGN, rng)
    both = rates.judge_rates(frame, "gap", BOTH, 0.1)
    assert {name: limit.refute_level for name, limit in both.limits.items()} == {"samples": 0.975, "rank": 0.975}
    alone = rates.judge_rates(frame[frame["rank"] <= frame["rank"].min() * 1.5], "gap", BOTH, 0.1)  # r is untestable
    assert alone.limits["samples"].refute_level == pytest.approx(0.95)


def test_points_have_student_s_95_percent_intervals(rng):
    frame = gap_table(1, 0.5, DESIGN, rng)
    points = rates.judge_rates(frame, "gap", BOTH, 0.1).points
    cells = build_cells(frame, ["samples", "rank"], "gap")
    half = stats.t.ppf(0.975, cells.replicates - 1) * cells.standard_error
    np.testing.assert_allclose(points["high"] - points["mean"], half, rtol=1e-6)
    np.testing.assert_allclose(points["mean"] - points["low"], half, rtol=1e-6)


def test_a_pure_power_law_gives_no_remark_on_its_extrapolation():
    frame = gap_table(1, 0.5, Design(noise=0.02), np.random.default_rng(0))
    assert "largest half-decade" not in " ".join(rates.judge_rates(frame, "gap", BOTH, 0.1).reasons)


def test_local_slopes_lie_inside_their_intervals(rng):
    cells = build_cells(gap_table(1, 0.5, DESIGN, rng), ["rank", "samples"], "gap")
    for _, value, low, high in look(cells, "samples", ["rank"], leading=True).local:
        assert low < value < high


def test_webb_s_weights_have_mean_zero_and_variance_one():
    assert WEBB.mean() == pytest.approx(0) and (WEBB**2).mean() == pytest.approx(1)


def test_two_seeds_have_a_standard_error_and_one_has_none():
    draws = np.random.default_rng(0).standard_normal(400)
    assert bootstrap_standard_error(draws, 2) == pytest.approx(np.sqrt(2) * np.std(draws))
    assert np.isnan(bootstrap_standard_error(draws, 1))
    tenth, more = np.arange(400) < 40, np.arange(400) < 41  # of the draws may be undefined
    left = np.std(draws[~tenth])
    assert bootstrap_standard_error(np.where(tenth, np.nan, draws), 2) == pytest.approx(np.sqrt(2) * left)
    assert np.isnan(bootstrap_standard_error(np.where(more, np.nan, draws), 2))
    assert wild_cluster_interval(0.0, np.array([0.1]), 0.95, np.random.default_rng(0)) is UNDEFINED
    # Of two seeds a sixth of the draws weigh them oppositely: they differ by nothing, and 95 % lie nowhere.
    assert wild_cluster_interval(0.0, np.array([0.1, -0.1]), 0.95, np.random.default_rng(0)) is UNDEFINED


def test_without_a_cell_there_are_no_seeds():
    assert gates.seeds_gate(np.array([])).reason.startswith("0 seeds per cell")


def test_two_shapes_with_three_seeds_each_are_a_design():
    frame = pd.DataFrame({"rank": 4.0, "samples": 64.0, "seed": range(6), "d_in": [64.0] * 3 + [128.0] * 3})
    scrutiny.refuse_impossible_shapes(frame, "table.csv")


def test_a_half_decade_without_a_fitted_constant_tests_nothing():
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    assert extrapolation_error(x, np.array([0, 0, 0, 1]), 1 / x, np.full(4, 0.01)) is None
    error, _ = extrapolation_error(x, np.zeros(4, dtype=int), 1 / x, 0.01 / x)
    assert error == pytest.approx(0, abs=1e-6)
