"""Claims 6 and 7: budgets, rates, rivals at equal cost; every threshold just inside and just outside."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged

from theory.claims import compression, efficiency
from theory.claims.compression import Duel, rivals_gate, size_gate
from theory.claims.efficiency import Evidence, Factor, Standard, budget_gates, common_gate, crossing, log_factor
from theory.judge import gates
from theory.judge.check import check_table
from theory.judge.intervals import t_quantile
from theory.judge.methods import Tuning, best_rates, kind_of, start_of, unfair
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, REFUTED, UNTESTABLE
from theory.planted.cases import (
    COMPRESSION,
    COMPRESSION_MARGINS,
    EFFICIENCY,
    EFFICIENCY_MARGINS,
    all_cases,
)
from theory.planted.validate import HARMFUL, RIGHT, judge_draw, run_case, stream_of
from theory.planted.worth import Curve, WorthDesign, budget_table, front_table, true_factor
from theory.show.figures import draw
from theory.show.methods import front_of, method_colours
from theory.tables import InputError

NEAR = 1e-6
DESIGN = WorthDesign()
FAMILIES = (EFFICIENCY, EFFICIENCY_MARGINS, COMPRESSION, COMPRESSION_MARGINS)
CASES = {case.name: case for case in all_cases() if case.family in FAMILIES}
SHAPE = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # five seeds around their mean
ERROR = float(np.std(SHAPE, ddof=1)) / np.sqrt(5)  # standard error of the mean of SHAPE


def half(error, level=0.95):
    """Half of the interval of five seeds."""
    return float(t_quantile(0.5 + level / 2, 4)) * error


def seeds_around(mean, half_width, level=0.95):
    """Five values whose interval at the level ends at mean +- half_width."""
    return mean + SHAPE * half_width / half(ERROR, level)


# --- F ---------------------------------------------------------------------------------------------------------------


def test_a_curve_is_read_where_it_first_comes_down_to_the_target():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    line = np.array([4.0, 3.0, 2.0, 1.0])
    assert crossing(x, line, 2.5) == pytest.approx(1.5)
    assert crossing(x, line, 3.0) == 1.0
    assert crossing(x, line, 1.0) == 3.0
    # Up again at the end: the first crossing counts.
    assert crossing(x, np.array([4.0, 2.0, 3.0, 1.0]), 2.5) < 1.0
    # Beyond both ends along the tangent.
    assert crossing(x, line, 4.5) == pytest.approx(-0.5)
    assert crossing(x, line, 0.5) == pytest.approx(3.5)
    assert np.isnan(crossing(x, np.array([4.0, 3.0, 2.0, 2.0]), 1.0))


def test_f_is_the_ratio_of_budgets_at_equal_loss():
    x = np.log(np.array([1.0, 10.0, 100.0]))
    direct = np.tile(4.0 - x / 2, (5, 1))
    clone = direct - np.log(3.0) / 2
    logs, errors, budgets = log_factor(x, clone, x, direct, np.array([3.0, 2.5]))
    assert np.exp(logs) == pytest.approx([3.0, 3.0])
    assert errors == pytest.approx([0.0, 0.0], abs=1e-9)
    assert np.exp(budgets[0]) == pytest.approx([np.exp(2.0) / 3, np.exp(2.0)])
    # Noise of the clone alone, the same at all budgets: a loss off by e moves ln T by e over the slope, 1/2.
    spread = 0.01 * SHAPE[:, None]
    _, errors, _ = log_factor(x, clone + spread, x, direct, np.array([3.0]))
    assert errors == pytest.approx([0.01 * ERROR / 0.5], rel=1e-6)
    # What a seed adds to both methods cancels.
    _, errors, _ = log_factor(x, clone + spread, x, direct + spread, np.array([3.0]))
    assert errors == pytest.approx([0.0], abs=1e-9)


def test_targets_lie_where_both_curves_pass():
    found = efficiency.common_targets(np.array([3.0, 2.0, 1.5]), np.array([4.0, 3.0, 1.8]))
    assert found is not None
    assert (found[0], found[-1], len(found)) == (3.0, 1.8, efficiency.TARGETS)
    assert efficiency.common_targets(np.array([3.0, 2.5]), np.array([2.5, 2.0])) is None


# --- the words of claim 6 --------------------------------------------------------------------------------------------

STANDARD = Standard(
    factor_level=0.975, difference_level=0.95, tier=1, clone_tuned=True, direct_tuned=True, worse_counts=True
)


def factor(lows=1.0, highs=None, level=0.95):
    """F whose intervals at the level begin at `lows` (or end at `highs`), one number for all targets or seven."""
    ends = np.broadcast_to(np.log(lows if highs is None else highs), (efficiency.TARGETS,))
    width, error = half(0.1, level), np.full(efficiency.TARGETS, 0.1)
    logs = ends + width if highs is None else ends - width
    budgets = np.ones((efficiency.TARGETS, 2))
    return Factor("tokens", np.linspace(3, 2, efficiency.TARGETS), logs, error, 5, budgets)


def said(found, difference=None, **changes):
    values = seeds_around(0.0, 0.01) if difference is None else difference
    return efficiency.decide(Evidence(found, values, 1e7), replace(STANDARD, **changes))


def test_consistent_needs_the_lower_limit_at_two_at_every_target():
    assert said(factor(2.0 + NEAR)) == CONSISTENT
    assert said(factor(2.0 - NEAR)) == HOLDS
    one_low = np.full(efficiency.TARGETS, 3.0)
    one_low[2] = 2.0 - NEAR
    assert said(factor(one_low)) == HOLDS
    assert said(factor(3.0), tier=2) == HOLDS
    assert said(factor(3.0), tier=0) == UNTESTABLE


def test_holds_needs_the_lower_limit_above_one_at_every_target():
    assert said(factor(1.0 + NEAR)) == HOLDS
    assert said(factor(1.0 - NEAR)) == INCONCLUSIVE
    one_low = np.full(efficiency.TARGETS, 3.0)
    one_low[0] = 1.0 - NEAR
    assert said(factor(one_low)) == INCONCLUSIVE


def test_similar_is_an_upper_limit_of_five_hundredths():
    assert said(factor(3.0), seeds_around(0.03, 0.02 - NEAR)) == CONSISTENT
    assert said(factor(3.0), seeds_around(0.03, 0.02 + NEAR)) == INCONCLUSIVE
    assert said(factor(1.5), seeds_around(0.03, 0.02 + NEAR)) == INCONCLUSIVE
    assert said(factor(3.0), seeds_around(-0.3, 0.02)) == CONSISTENT  # better is similar too


def test_refuted_where_the_clone_is_worse_by_more_than_the_margin():
    assert said(factor(3.0), seeds_around(0.07, 0.02 - NEAR)) == REFUTED
    assert said(factor(3.0), seeds_around(0.07, 0.02 + NEAR)) == INCONCLUSIVE
    strict = seeds_around(0.07, 0.02 - NEAR, level=0.99)
    assert said(factor(3.0), strict, difference_level=0.99) == REFUTED
    assert said(factor(3.0), seeds_around(0.07, 0.02 - NEAR), difference_level=0.99) == INCONCLUSIVE
    # Also where the two share no loss; without that it is untestable.
    assert said(None, seeds_around(0.07, 0.02 - NEAR)) == REFUTED
    assert said(None) == UNTESTABLE


def test_being_worse_at_the_largest_budget_needs_nothing_of_the_others():
    worse = seeds_around(0.2, 0.01)
    assert said(None, worse, tier=0, clone_tuned=False, direct_tuned=False) == REFUTED
    assert said(None, worse, tier=0, worse_counts=False) == UNTESTABLE


@pytest.mark.parametrize(("target", "word"), [(-1, REFUTED), (-2, REFUTED), (-3, INCONCLUSIVE), (0, INCONCLUSIVE)])
def test_refuted_where_more_is_needed_at_one_of_the_two_lowest_targets(target, word):
    highs = np.full(efficiency.TARGETS, 5.0)
    highs[target] = 1.0 - NEAR
    assert said(factor(highs=highs, level=0.975)) == word
    highs[target] = 1.0 + NEAR
    assert said(factor(highs=highs, level=0.975)) == INCONCLUSIVE


def test_a_method_that_was_not_tuned_cannot_lose_by_it():
    slow, worse = factor(highs=0.5, level=0.975), seeds_around(0.2, 0.01)
    assert said(slow) == said(factor(3.0), worse) == REFUTED
    untuned = {"clone_tuned": False, "worse_counts": False}
    assert said(slow, **untuned) == said(factor(3.0), worse, **untuned) == INCONCLUSIVE
    assert said(slow, direct_tuned=False) == REFUTED
    assert said(factor(3.0), clone_tuned=False) == CONSISTENT
    assert said(factor(3.0), direct_tuned=False) == said(factor(1.5), direct_tuned=False) == INCONCLUSIVE
    assert said(factor(3.0), clone_tuned=False, direct_tuned=False) == UNTESTABLE


# --- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "seeds", "tier"),
    [
        (10 ** np.linspace(5, 6.5, 5), 5, 1),
        (10 ** np.linspace(5, 6.499, 5), 5, 2),
        (10 ** np.linspace(5, 6.5, 4), 5, 2),
        (10 ** np.linspace(5, 6.0, 3), 5, 2),
        (10 ** np.linspace(5, 5.999, 3), 5, 0),
        (10 ** np.linspace(5, 6.5, 2), 5, 0),
        (10 ** np.linspace(5, 6.5, 5), 4, 2),
        (10 ** np.linspace(5, 6.5, 5), 3, 2),
        (10 ** np.linspace(5, 6.5, 5), 2, 0),
    ],
)
def test_budgets_and_seeds(budgets, seeds, tier):
    found = budget_gates(budgets, seeds)
    assert gates.tier_of(found) == tier
    assert bool([run for g in found for run in g.needed]) == (tier != 1)


def test_the_targets_span_a_factor_of_two():
    x = np.log([1e5, 2e5, 4e5])
    assert common_gate({}, "clone", "direct", x, 0.3 + NEAR).tier == gates.FIRST
    failed = common_gate({"rank": 8.0}, "clone", "direct", x, 0.3 - NEAR)
    assert failed.tier == gates.FAILED
    assert failed.needed == (
        {"rank": 8.0, "method": "clone", "tokens": 5e4, "seeds": 5},
        {"rank": 8.0, "method": "direct", "tokens": 8e5, "seeds": 5},
    )
    assert "no loss is reached by both" in common_gate({}, "clone", "direct", x, float("nan")).reason


def test_three_sizes_and_every_kind_of_rival():
    assert size_gate(np.array([1.0, 2.0, 4.0])).tier == gates.FIRST
    few = size_gate(np.array([1e6, 4e6]))
    assert (few.tier, few.needed) == (gates.SECOND, ({"method": "clone", "weight_bytes": 2e6, "seeds": 5},))
    duels = [duel(rival=f"{kind}:x") for kind in compression.RIVALS]
    assert rivals_gate({"clone": [1.0]}, duels, "weight_bytes").tier == gates.FIRST
    lacking = rivals_gate({"clone": [1.0]}, duels[1:], "weight_bytes")
    assert (lacking.tier, lacking.needed) == (
        gates.SECOND,
        ({"method": "whitened_svd", "weight_bytes": 1.0, "seeds": 5},),
    )
    for change in ({"trained": False}, {"how": "cheaper"}):
        assert rivals_gate({"clone": [1.0]}, [replace(duels[0], **change), *duels[1:]], "c").tier == gates.SECOND
    assert rivals_gate({"clone": [1.0, 2.0]}, duels, "weight_bytes").tier == gates.SECOND
    assert rivals_gate({"clone": [1.0]}, [], "weight_bytes").tier == gates.FAILED


# --- learning rates --------------------------------------------------------------------------------------------------


def scan(rates, best, *, tokens=1.0, method="clone", seeds=(0,), test=0.0):
    """Rows of one scan, whose validation loss is lowest at `best`; the test loss falls with the rate."""
    return pd.DataFrame(
        [
            {"method": method, "tokens": tokens, "seed": float(s), "learning_rate": r,
             "valid_loss": abs(np.log(r / best)) + 0.1 * s, "test_loss": test - r}
            for s in seeds for r in rates
        ]
    )  # fmt: skip


def tuned(*parts):
    frame, tuning = best_rates(pd.concat(parts, ignore_index=True), "t.csv", ["method", "tokens"])
    return frame, tuning


def test_names_of_methods():
    assert [kind_of(m) for m in ("clone", "clone:pca", "cloned")] == ["clone", "clone", "cloned"]
    assert [start_of(m) for m in ("clone", "clone:pca")] == ["", "pca"]


def test_the_rate_is_chosen_by_validation_and_never_by_the_test_loss():
    frame, tuning = tuned(scan([1, 2, 4, 8], best=2))
    assert frame["learning_rate"].tolist() == [2]
    assert tuning[("clone",)] == Tuning(4, True)
    # Rates are compared on the seeds that have them all: seed 1, worse throughout, ran at one rate only.
    frame, tuning = tuned(scan([1, 2, 4, 8], best=2), scan([2], best=2, seeds=(1, 2)))
    assert frame["seed"].tolist() == [0, 1, 2]
    assert tuning[("clone",)].ok
    with pytest.raises(InputError, match="valid_loss: missing where method=clone, tokens=1 has 4 learning rates"):
        best_rates(scan([1, 2, 4, 8], 2).drop(columns="valid_loss"), "t.csv", ["method", "tokens"])


@pytest.mark.parametrize(
    ("rates", "best", "ok", "more"),
    [
        ([1, 2, 4, 8], 4, True, []),
        ([1, 2, 4, 8], 8, False, [16]),
        ([1, 2, 4, 8], 1, False, [0.5]),
        ([1, 2, 4], 2, False, [8]),
        ([1, 2], 2, False, [4, 0.5]),
    ],
)
def test_a_scan_has_four_rates_and_its_best_one_inside(rates, best, ok, more):
    _, tuning = tuned(scan(rates, best))
    found = tuning[("clone",)]
    assert found.ok == ok
    assert [run["learning_rate"] for run in found.needed] == more
    assert all(run["method"] == "clone" and run["tokens"] == 1.0 for run in found.needed)


def test_one_scan_serves_the_budgets_that_run_at_its_rate():
    assert tuned(scan([1, 2, 4, 8], 2), scan([2], 2, tokens=9.0))[1][("clone",)].ok
    other = tuned(scan([1, 2, 4, 8], 2), scan([4], 4, tokens=9.0))[1][("clone",)]
    assert not other.ok
    assert "chosen by no scan" in other.reason
    between = tuned(scan([1, 2, 4, 8], 2), scan([4], 4, tokens=9.0), scan([1, 2, 4, 8], 4, tokens=99.0))
    assert between[1][("clone",)].ok
    assert tuned(scan([2], 2))[1][("clone",)].rates == 1


def test_the_method_with_fewer_rates_was_not_tuned_as_well():
    five, four = Tuning(5, True), Tuning(4, True)
    assert unfair({"clone": five, "direct": five}) == {}
    assert list(unfair({"clone": five, "direct": four})) == ["direct"]
    assert unfair({"clone": Tuning(5, False, "edge"), "direct": five}) == {"clone": "edge"}


# --- tables of claim 6 -----------------------------------------------------------------------------------------------


def budgets(clone=None, design=DESIGN, seed=0, **options):
    return budget_table(clone or Curve(speed=4.0), design, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.family in (EFFICIENCY, COMPRESSION)])
def test_planted_tables_come_out_as_planted(name):
    tally = run_case(CASES[name], 2, stream_of(name))
    assert tally.grade(RIGHT) == 1.0, tally.verdicts
    assert tally.grade(HARMFUL) == 0.0


def test_every_word_of_both_claims_is_planted():
    for family, words in (
        (EFFICIENCY, {CONSISTENT, HOLDS, REFUTED, INCONCLUSIVE, UNTESTABLE}),
        (COMPRESSION, {CONSISTENT, REFUTED, INCONCLUSIVE, UNTESTABLE}),
    ):
        assert {word for c in CASES.values() if c.family == family for word in c.expected} == words


def test_intervals_of_f_cover_the_planted_factor():
    case = CASES["budgets: F = 4"]
    outcomes = [judge_draw(case, 5, k) for k in range(12)]
    assert set(outcomes[0].covered) == {f"F at target {k + 1}" for k in range(efficiency.TARGETS)}
    assert np.mean([hit for o in outcomes for hit in o.covered.values()]) > 0.85
    assert np.mean([e for o in outcomes for e in o.errors.values()]) == pytest.approx(0.0, abs=0.03)
    assert true_factor(Curve(speed=4.0), np.array([3.0, 2.5])) == pytest.approx([4.0, 4.0])


def test_the_json_names_every_target_the_performance_and_the_budget():
    report = judged(budgets(), "efficiency").to_dict()
    found = report["budget_factor"]
    assert (found["claimed"], found["verdict"], found["tier"], report["needed"]) == (2.0, CONSISTENT, 1, [])
    assert [len(c["targets"]) for c in report["comparisons"]] == [7, 7]
    assert {c["budget"] for c in report["comparisons"]} == {"tokens", "training_flops"}
    lows = [t["ci95"][0] for t in found["targets"]]
    assert found["ci95"][0] == min(lows)
    assert found["performance"]["tokens"] == max(DESIGN.tokens)
    assert found["performance"]["estimate"] < 0
    assert found["targets"][0]["direct_budget"] / found["targets"][0]["clone_budget"] == pytest.approx(
        found["targets"][0]["estimate"]
    )


def test_the_level_that_refutes_is_shared_by_targets_budgets_and_comparisons(monkeypatch):
    seen = []
    decide = efficiency.decide
    monkeypatch.setattr(efficiency, "decide", lambda e, s: seen.append(s) or decide(e, s))
    judged(budgets(), "efficiency")
    assert {(s.factor_level, s.difference_level) for s in seen} == {(1 - 0.05 / 4, 0.95)}
    seen.clear()
    frame = budgets().drop(columns="training_flops")
    judged(pd.concat([frame.assign(rank=8.0), frame.assign(rank=16.0, test_loss=frame["test_loss"] + 0.01)]),
           "efficiency")  # fmt: skip
    assert {(s.factor_level, s.difference_level) for s in seen} == {(1 - 0.05 / 4, 1 - 0.05 / 2)}


def test_the_worst_budget_decides_and_wall_clock_is_only_reported():
    frame = budgets()
    slow = frame["tokens"] * np.where(frame["method"] == "clone", 9.0, 1.0)
    report = judged(frame.assign(training_seconds=slow), "efficiency")
    assert report.verdict == CONSISTENT
    words = {c["budget"]: c["verdict"] for c in report.fields["comparisons"]}
    assert words == {"tokens": CONSISTENT, "training_flops": CONSISTENT, "training_seconds": REFUTED}
    assert any("reported only" in r for r in report.reasons)
    report = judged(frame.assign(training_flops=slow), "efficiency")
    assert report.verdict == REFUTED
    assert report.fields["budget_factor"]["budget"] == "training_flops"


def test_of_budgets_that_are_equally_bad_the_first_is_named_whatever_the_last_bits():
    for seed in range(8):
        frame, bits = budgets(), np.random.default_rng(seed)
        frame["test_loss"] *= 1 + 1e-14 * bits.standard_normal(len(frame))
        assert judged(frame, "efficiency").fields["budget_factor"]["budget"] == "tokens"


def test_two_budgets_are_no_curve_to_read_f_from():
    frame = budgets(Curve(speed=0.25))
    report = judged(frame[frame["tokens"].isin([min(DESIGN.tokens), 1e6])], "efficiency")
    (only,) = report.fields["comparisons"]
    assert only["targets"] == [] and np.isnan(only["estimate"])
    assert "times the clone's" not in only["reason"]
    assert report.verdict == REFUTED  # by its loss at the larger budget


def test_unique_sequences_count_where_they_are_no_copy_of_the_tokens():
    frame = budgets()
    names = lambda f: {c["budget"] for c in judged(f, "efficiency").fields["comparisons"]}  # noqa: E731
    assert "samples" not in names(frame.assign(samples=frame["tokens"] / 128))
    assert "samples" in names(frame.assign(samples=frame["tokens"] ** 0.8))
    assert "samples" not in names(frame.assign(samples=1000.0))  # does not grow: no curve


def test_every_clone_is_paired_with_the_direct_training_of_its_start():
    frame = budgets()
    other = budgets(Curve(speed=0.5), seed=1)
    other["method"] = other["method"].map({"clone": "clone:pca", "direct": "direct:pca", "scratch": "scratch:pca"})
    report = judged(pd.concat([frame, other], ignore_index=True), "efficiency")
    pairs = {(c["clone"], c["direct"]): c["verdict"] for c in report.fields["comparisons"]}
    assert pairs == {("clone", "direct"): CONSISTENT, ("clone:pca", "direct:pca"): REFUTED}
    assert report.verdict == REFUTED
    shared = pd.concat([frame, other[other["method"] == "clone:pca"]], ignore_index=True)
    pairs = {(c["clone"], c["direct"]) for c in judged(shared, "efficiency").fields["comparisons"]}
    assert pairs == {("clone", "direct"), ("clone:pca", "direct")}


def test_sizes_of_one_table_are_compared_each_by_itself():
    small, large = budgets().assign(weight_bytes=1e6), budgets(Curve(speed=0.5), seed=1).assign(weight_bytes=4e6)
    other = large[large["method"] == "scratch"].assign(weight_bytes=9e6)
    report = judged(pd.concat([small, large, other], ignore_index=True), "efficiency")
    words = {c["arm"]["weight_bytes"]: c["verdict"] for c in report.fields["comparisons"]}
    assert words == {1e6: CONSISTENT, 4e6: REFUTED}
    # Rivals of other sizes are no reason to split the table.
    report = judged(pd.concat([small, other], ignore_index=True), "efficiency")
    assert [c["arm"] for c in report.fields["comparisons"]] == [{}, {}]
    assert report.verdict == CONSISTENT
    assert draw(report).axes


def test_without_direct_training_or_a_clone():
    frame = budgets()
    report = judged(frame[frame["method"] != "direct"], "efficiency")
    assert report.verdict == UNTESTABLE
    assert report.fields["needed"] == [{"method": "direct", "seeds": 5}]
    with pytest.raises(InputError, match="column method: none of direct, scratch is a clone"):
        judged(frame[frame["method"] != "clone"], "efficiency")


def test_a_missing_run_leaves_its_seed_out_and_is_asked_for():
    frame = budgets()

    def without_one(table):
        return table[(table["seed"] != 3) | (table["tokens"] != 1e5) | (table["method"] != "direct")]

    report = judged(without_one(frame), "efficiency")
    assert report.verdict == HOLDS  # four seeds: the second tier
    assert {"method": "direct", "tokens": 1e5, "seed": 3.0, "seeds": 1} in report.fields["needed"]
    six = budgets(design=replace(DESIGN, seeds=6))
    assert judged(without_one(six), "efficiency").verdict == CONSISTENT


def test_untrained_rows_points_of_one_run_and_edges_are_said():
    frame = budgets()
    start = frame[frame["tokens"] == 1e5].assign(tokens=0.0, run_id="start")
    report = judged(pd.concat([frame, start], ignore_index=True), "efficiency")
    assert report.verdict == CONSISTENT
    assert any("rows with tokens = 0" in r for r in report.reasons)
    along = judged(budgets(one_run=True), "efficiency")
    assert along.verdict == UNTESTABLE
    assert "a curve along one run is no evidence" in along.reasons[0]
    edge = judged(budgets(best={"direct": 0.008}), "efficiency")
    assert edge.verdict == INCONCLUSIVE
    assert "at the edge" in edge.reasons[0]
    assert {"method": "direct", "tokens": 1e5, "learning_rate": 0.016, "seeds": 1} in edge.fields["needed"]


def shifted(frame, method, tokens, rate, nats):
    """The losses of one method and budget, moved so that this rate is the best; by so many nats there."""
    here = (frame["method"] == method) & (frame["tokens"] == tokens)
    moved = 0.03 * np.log2(frame["learning_rate"] / rate) ** 2 - 0.03 * np.log2(frame["learning_rate"] / 0.002) ** 2
    out = frame.copy()
    for column in ("test_loss", "valid_loss"):
        out[column] = frame[column] + np.where(here, moved + nats, 0.0)
    return out


def test_a_smaller_budget_that_cannot_be_judged_does_not_hide_a_worse_loss_at_the_largest():
    small, large = min(DESIGN.tokens), max(DESIGN.tokens)
    behind = shifted(budgets(Curve()), "clone", large, 0.002, 0.2)
    at_edge = shifted(behind, "clone", small, 0.0005, 0.0)  # below every rate: the lowest is best, which has one seed
    report = judged(at_edge, "efficiency")
    assert report.verdict == REFUTED
    assert "the clone is worse at the largest budget" in report.reasons[0]
    assert "at the edge at tokens = 100000" in report.reasons[0]
    similar = judged(shifted(budgets(Curve()), "clone", small, 0.0005, 0.0), "efficiency")
    assert similar.verdict == INCONCLUSIVE
    # Without a scan of the clone's rates at the largest budget nothing is refuted.
    assert judged(shifted(behind, "clone", large, 0.0005, 0.0), "efficiency").verdict != REFUTED
    # Two seeds there are too few.
    few = at_edge[(at_edge["tokens"] == large) & (at_edge["seed"] < 2)]
    assert judged(few, "efficiency").verdict == UNTESTABLE


def test_a_budget_with_two_pairs_of_seeds_does_not_count():
    frame, large = budgets(), max(DESIGN.tokens)
    few = frame[(frame["tokens"] != large) | (frame["seed"] < 2)]
    report = judged(few, "efficiency")
    assert report.verdict == CONSISTENT  # five budgets over 1.6 decades are left
    assert "fewer than 3 pairs of seeds do not count: tokens = 1e+07" in report.reasons[0]
    assert report.fields["budget_factor"]["performance"]["tokens"] < large
    assert {"tokens": large, "seeds": 3} in report.fields["needed"]


def test_a_size_that_cannot_be_judged_does_not_hide_a_better_rival_at_another():
    frame = front_table((0.1, 0.1, -0.1, 0.1), DESIGN, np.random.default_rng(0))
    first = frame["weight_bytes"] == frame["weight_bytes"].min()
    moved = frame.copy()
    for column in ("test_loss", "valid_loss"):  # the lowest rate, which has one seed, is best at the smallest size
        moved[column] = frame[column] - np.where(first & (frame["learning_rate"] == 0.001), 0.2, 0.0)
    report = judged(moved, "compression")
    assert report.verdict == REFUTED
    assert "at the edge at weight_bytes" in report.reasons[0]
    ahead = front_table(0.1, DESIGN, np.random.default_rng(0))
    ahead["valid_loss"] -= np.where(first & (ahead["learning_rate"] == 0.001), 0.2, 0.0)
    assert judged(ahead, "compression").verdict == UNTESTABLE


def test_mixtures_and_copies_are_refused():
    frame = budgets()
    with pytest.raises(InputError, match="column teacher"):
        judged(frame.assign(teacher=np.where(frame["seed"] < 2, "a", "b")), "efficiency")
    judged(frame.assign(student=frame["method"]), "efficiency")
    copied = frame.copy()
    first = frame[frame["seed"] == 1].set_index(["method", "tokens"])["test_loss"]
    keys = pd.MultiIndex.from_frame(copied[["method", "tokens"]])
    again = copied["seed"] == 2
    copied.loc[again, "test_loss"] = first.reindex(keys[again]).to_numpy()
    with pytest.raises(InputError, match="copies are no replicates"):
        judged(copied, "efficiency")


# --- claim 7 ---------------------------------------------------------------------------------------------------------


def duel(values=None, **changes):
    values = seeds_around(-0.1, 0.01) if values is None else values
    cells = (("clone", 1.0), ("factorized", 1.0))
    return replace(Duel("clone", "factorized", 1.0, values, "equal", cells, True, True, True), **changes)


def front_said(*duels, tier=1, level=0.99):
    return compression.decide(compression.Evidence(duels), compression.Standard(level, tier))


def test_no_rival_is_better_up_to_two_hundredths():
    good = duel()
    assert front_said(good, duel(seeds_around(0.0, 0.02 - NEAR))) == CONSISTENT
    assert front_said(good, duel(seeds_around(0.0, 0.02 + NEAR))) == INCONCLUSIVE
    assert front_said(good, tier=2) == INCONCLUSIVE
    assert front_said(good, tier=0) == front_said() == UNTESTABLE
    assert front_said(good, duel(seeds_around(0.0, 0.5), how="cheaper")) == CONSISTENT
    assert front_said(duel(how="interpolated")) == CONSISTENT


def test_a_rival_is_better_by_more_than_two_hundredths():
    good = duel()
    for how in ("equal", "interpolated", "cheaper"):
        assert front_said(good, duel(seeds_around(0.03, 0.01 - NEAR, 0.99), how=how)) == REFUTED
        assert front_said(good, duel(seeds_around(0.03, 0.01 + NEAR, 0.99), how=how)) != REFUTED
    assert front_said(good, duel(seeds_around(0.03, 0.01 - NEAR, 0.95))) == INCONCLUSIVE
    assert front_said(good, duel(seeds_around(0.2, 0.01)), tier=2) == REFUTED


def test_an_untuned_side_of_a_duel_cannot_lose_by_it():
    lost = duel(seeds_around(0.2, 0.01), clone_tuned=False)
    assert front_said(duel(), lost) == INCONCLUSIVE
    assert front_said(duel(rival_tuned=False)) == INCONCLUSIVE
    assert front_said(duel(clone_tuned=False)) == CONSISTENT
    assert front_said(duel(clone_tuned=False, rival_tuned=False)) == UNTESTABLE


def front(lead=0.1, seed=0, design=DESIGN, **options):
    return front_table(lead, design, np.random.default_rng(seed), **options)


def moved(frame, method, share):
    """Sizes of a method times a factor."""
    factor_ = np.where(frame["method"] == method, share, 1.0)
    return frame.assign(weight_bytes=frame["weight_bytes"] * factor_)


def met(frame, rival, cost="weight_bytes"):
    report = judged(frame, "compression")
    (found,) = [c for c in report.fields["comparisons"] if c["cost"] == cost]
    return [(d["at"], d["cost"], d["estimate"]) for d in found["duels"] if d["rival"] == rival]


def test_rivals_are_met_at_equal_cost_between_their_sizes_or_below():
    quiet = replace(DESIGN, noise=1e-4)
    sizes = [4.0 * s for s in quiet.sizes]
    frame = front(design=quiet)
    assert [(at, how) for at, how, _ in met(frame, "factorized")] == [(s, "equal") for s in sizes]
    assert {how for _, how, _ in met(moved(frame, "factorized", 1.02), "factorized")} == {"equal"}
    larger = met(moved(frame, "factorized", 1.021), "factorized")
    assert [(at, how) for at, how, _ in larger] == [(s, "interpolated") for s in sizes[1:]]
    smaller = met(moved(frame, "factorized", 1 / 1.021), "factorized")
    assert [(at, how) for at, how, _ in smaller] == [*((s, "interpolated") for s in sizes[:3]), (sizes[3], "cheaper")]
    # Three quarters of the way, in ln cost, from one size of the rival to the next.
    between = met(moved(frame, "factorized", 2**0.25), "factorized")
    law = 2.0 + 0.5 * (np.array(quiet.sizes) / 1e6) ** -0.3
    rival = 0.25 * law[:-1] + 0.75 * law[1:] + 0.2
    assert [estimate for *_, estimate in between] == pytest.approx(list(law[1:] - rival), abs=1e-3)
    assert met(moved(frame, "factorized", 100.0), "factorized") == []


def test_the_level_that_refutes_counts_a_comparison_of_several_costs_once(monkeypatch):
    seen = []
    decide = compression.decide
    monkeypatch.setattr(compression, "decide", lambda e, s: seen.append(s.refute_level) or decide(e, s))
    frame = front()
    judged(frame, "compression")
    assert set(seen) == {1 - 0.05 / 20}  # four sizes, five rivals, three costs of the same cells
    seen.clear()
    judged(frame.assign(flops_per_token=frame["flops_per_token"] * np.where(frame["method"] == "clone", 1.5, 1.0)),
           "compression")  # fmt: skip
    # In FLOPs other cells meet, but for the largest size, which the same cell of a rival is below.
    assert set(seen) == {1 - 0.05 / 35}


def test_the_worst_cost_decides_and_names_rival_and_size():
    report = judged(front(latency=3.0), "compression")
    assert report.verdict == REFUTED
    words = {c["cost"]: c["verdict"] for c in report.fields["comparisons"]}
    assert words == {"decode_ms_per_token": REFUTED, "weight_bytes": CONSISTENT, "flops_per_token": CONSISTENT}
    assert report.fields["rival_difference"]["cost"] == "decode_ms_per_token"
    found = judged(front((0.1, 0.1, -0.1, 0.1)), "compression").fields["rival_difference"]
    assert (found["rival"], found["claimed"]) == ("whitened_svd:tuned", 0.0)
    assert found["ci95"][0] < 0.1 < found["ci95"][1]


def test_rivals_have_the_tokens_of_the_clone_or_none():
    frame = front()
    longer = frame[frame["method"] == "factorized"].assign(tokens=1e8, test_loss=1.0)
    report = judged(pd.concat([frame, longer], ignore_index=True), "compression")
    assert report.verdict == CONSISTENT
    assert any("rows trained on 1e+07 tokens" in r for r in report.reasons)
    other = frame.assign(tokens=frame["tokens"].where(frame["method"] != "scratch", 1e8))
    report = judged(other, "compression")
    assert report.verdict == INCONCLUSIVE
    assert any("trained on other budgets: scratch" in r for r in report.reasons)
    assert {run["method"] for run in report.fields["needed"]} == {"scratch"}
    # One method untrained and trained: two rivals.
    merged = frame.assign(method=frame["method"].replace("whitened_svd:tuned", "whitened_svd"))
    names = {d["rival"] for d in judged(merged, "compression").fields["comparisons"][0]["duels"]}
    assert {"whitened_svd", "whitened_svd:untrained"} < names


def test_a_rival_without_seeds_meets_every_seed_of_the_clone():
    report = judged(front(-0.3, rivals=(), untrained=("quantised",)), "compression")
    (duel_,) = {d["seeds"] for d in report.fields["comparisons"][0]["duels"]}
    assert duel_ == 5
    assert report.verdict == REFUTED
    alone = judged(front(0.3, rivals=(), untrained=("quantised",)), "compression")
    assert alone.verdict == INCONCLUSIVE
    assert "no trained whitened_svd or factorized or scratch" in alone.reasons[0]


def test_no_clone_no_rates():
    frame = front()
    with pytest.raises(InputError, match="is a clone"):
        judged(frame[frame["method"] != "clone"], "compression")
    blind = frame[frame["learning_rate"].isna() | (frame["learning_rate"] == 0.002)].drop(columns="learning_rate")
    report = judged(blind, "compression")
    assert report.verdict == INCONCLUSIVE
    assert "column learning_rate is missing" in " ".join(report.reasons)


# --- around the judge ------------------------------------------------------------------------------------------------


def test_tables_of_other_claims_do_not_hear_of_these():
    frame = pd.DataFrame({"rank": [1.0, 2.0], "samples": 4.0, "seed": 0.0, "gap": 1.0, "test_loss": 1.0, "tokens": 5.0})
    said_ = " ".join(check_table(frame, claims=["generalization"]).remarks)
    assert "efficiency" not in said_
    named = check_table(budgets().drop(columns="test_loss").assign(rank=1.0, samples=1.0, gap=1.0)).remarks
    assert any(r.startswith("efficiency is not judged: it lacks test_loss") for r in named)
    assert any(r.startswith("compression is not judged: it lacks") for r in named)


def test_the_front_is_what_nothing_beats():
    points = pd.DataFrame({"method": list("abcd"), "c": [1.0, 2.0, 3.0, 3.0], "mean": [3.0, 3.5, 2.0, 2.5]})
    assert front_of(points, "c")["method"].tolist() == ["a", "c"]
    colours = method_colours(["scratch", "clone", "clone:pca", "direct"])
    assert len(set(colours.values())) == 4


def test_the_figures_show_f_and_the_front():
    figure = draw(judged(budgets(), "efficiency"))
    assert any(text.get_text().startswith("F = ") for text in figure.axes[0].texts)
    assert figure.axes[1].get_ylabel().startswith("F = ")
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"clone", "direct", "scratch"} <= set(labels)
    figure = draw(judged(front(), "compression"))
    assert [a.get_title().partition(":")[0] for a in figure.axes] == [
        "weights",
        "FLOPs per token",
        "decoding time per token",
    ]
    assert "front" in figure.axes[0].get_legend_handles_labels()[1]
    # Nothing common to both: there is no F to draw, and the curves are still shown.
    apart = judged(budgets(Curve(speed=1e4)), "efficiency")
    assert apart.verdict == UNTESTABLE
    assert not draw(apart).axes[0].texts


def test_both_are_written_as_figures_and_json(theory, tmp_path):
    path, out = tmp_path / "t.csv", tmp_path / "o.json"
    pd.concat([budgets().assign(claim="efficiency"), front().assign(claim="compression")]).to_csv(path, index=False)
    outcome = theory("check", path, "--json", out, "--figures", tmp_path / "f")
    assert outcome.code == 0
    assert "F, budget of direct training / of the clone: estimate" in outcome.out
    assert "loss of the clone - of the rival: estimate" in outcome.out
    report = json.loads(out.read_text())["claims"]
    assert report["efficiency"]["budget_factor"]["verdict"] == CONSISTENT
    assert report["compression"]["rival_difference"]["verdict"] == CONSISTENT
    assert {p.name for p in (tmp_path / "f").iterdir()} >= {
        "efficiency.csv", "efficiency_curves.csv", "efficiency.pdf", "compression.csv", "compression.png",
    }  # fmt: skip


def test_a_plan_of_budgets_and_sizes(theory, tmp_path):
    out = tmp_path / "p.json"
    tokens = "1000000,3000000,10000000,30000000,100000000"
    outcome = theory("plan", "--tokens", tokens, "--replications", 2, "--cost", "2+1e-6*tokens", "--json", out)
    assert outcome.code == 0
    plan = json.loads(out.read_text())
    assert plan["gates"] == {"efficiency": []}
    assert plan["runs"] == {"efficiency": 5 * 2 * (5 + 3)}  # budgets x methods x (seeds, and a scan with one)
    assert plan["seconds"]["efficiency"] == pytest.approx(16 * (5 * 2 + 144))
    power = {p["planted"]: p for p in plan["power"]}
    assert power["F = 4"]["verdicts"] == {"CONSISTENT": 1.0}
    assert power["F = 0.67"]["right"] == ["REFUTED"]
    theory("plan", "--bytes", "1000000,2000000", "--replications", 2, "--json", out)
    plan = json.loads(out.read_text())
    assert plan["gates"] == {"compression": []}
    assert "the clone has 2 sizes" in plan["second_tier"]["compression"][0]
    assert {p["verdicts"].get("CONSISTENT", 0.0) for p in plan["power"]} == {0.0}
    failed = theory("plan", "--tokens", tokens, "--seeds", 2, "--rates", 3).out
    assert "the gates fail" in failed
    assert "3 learning rates per method and 4 are needed" in failed
    assert "--loss-noise" in theory("plan", "--tokens", tokens, "--loss-noise", 3).error
    assert "--tokens" in theory("plan", "--tokens", "5,5").error
