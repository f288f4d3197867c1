"""What must be noticed about a table: copies, mixtures, impossible shapes, confounding, survivors, far runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from judging import judged

from theory.judge import scrutiny
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.planted import attacks
from theory.planted.surfaces import Design, gap_table
from theory.tables import InputError

DESIGN = Design(noise=0.1)


def test_copies_are_no_replicates(rng):
    with pytest.raises(InputError, match=r"column gap, rows 1 and \d+: seeds 0 and 2 hold the same value") as caught:
        judged(attacks.copied_seeds(rng))
    assert "copies" in str(caught.value)


def test_copies_under_seeds_that_are_shuffled_between_cells_are_found_too(rng):
    frame = attacks.copied_seeds(rng)
    shuffled = frame.groupby(["rank", "samples"])["seed"].transform(lambda s: rng.permutation(s))
    with pytest.raises(InputError, match="copies"):
        judged(frame.assign(seed=shuffled))


def test_rounding_and_a_coincidence_are_no_copies(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    assert judged(frame.assign(gap=[float(f"{v:.3g}") for v in frame["gap"]])).verdict == CONSISTENT
    once = frame.copy()
    once.loc[1, "gap"] = once.loc[0, "gap"]
    assert judged(once).verdict == CONSISTENT


@pytest.mark.parametrize("attack", [attacks.second_study, attacks.pooled_labels])
def test_two_teachers_or_labels_in_one_law_are_refused_with_the_way_to_separate_them(attack, rng):
    frame = attack(rng)
    name = "teacher" if "teacher" in frame else "labels"
    with pytest.raises(InputError, match=f"column {name}: .* choose one with --where {name}="):
        judged(frame)
    assert judged(frame[frame[name] == frame[name].iloc[0]]).seeds == 5


def test_a_rank_that_no_matrix_of_the_shape_has_is_refused(rng):
    with pytest.raises(InputError, match=r"column rank, row \d+: rank 96 exceeds min\(d_in, d_out\) = 64"):
        judged(attacks.impossible_rank(rng), "optimal_rank")
    exact = gap_table(1.0, 0.5, DESIGN, rng).assign(d_in=64.0, d_out=32.0)
    assert judged(exact).verdict == CONSISTENT  # rank 32 of a 64 x 32 matrix
    with pytest.raises(InputError, match="exceeds"):
        judged(exact.assign(d_out=31.0))


def test_a_shape_that_differs_in_one_seed_is_refused(rng):
    with pytest.raises(InputError, match=r"column d_in, row 1: 2048, unlike the other seeds"):
        judged(attacks.other_shape(rng), "optimal_rank")


def test_shapes_that_follow_the_rank_or_are_a_design_are_fine(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    assert judged(frame.assign(d_in=frame["rank"], d_out=64.0)).verdict == CONSISTENT
    two = pd.concat([frame.assign(d_in=d, d_out=d) for d in (64.0, 128.0)])
    assert judged(two.assign(gap=lambda f: f["gap"] * (f["d_in"] / 64))).verdict == CONSISTENT


def confounded(frame, name, values):
    later = (frame["samples"] >= 1024).to_numpy()
    return frame.assign(**{name: np.where(later, values[1], values[0])})


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("data", ("wikitext2", "stories"), {CONSISTENT: INCONCLUSIVE, LOOSE: INCONCLUSIVE, REFUTED: INCONCLUSIVE}),
        ("learning_rate", (0.01, 0.003), {CONSISTENT: INCONCLUSIVE, LOOSE: LOOSE, REFUTED: REFUTED}),
        ("batch_size", (8.0, 32.0), {CONSISTENT: INCONCLUSIVE, LOOSE: LOOSE, REFUTED: REFUTED}),
        ("code_version", ("a", "b"), {CONSISTENT: INCONCLUSIVE, LOOSE: LOOSE, REFUTED: REFUTED}),
    ],
)
def test_a_column_that_changes_along_n_is_named(name, values, words, rng):
    for word, c in ((CONSISTENT, 0.5), (LOOSE, 1.0), (REFUTED, 0.25)):
        frame = gap_table(1.0, c, DESIGN, rng)
        assert judged(frame).exponents["samples"].verdict == word
        report = judged(confounded(frame, name, values))
        assert any(f"samples is confounded with {name}" in r for r in report.reasons), report.reasons
        assert report.exponents["samples"].verdict == words[word]
        assert report.exponents["rank"].verdict == CONSISTENT


def test_a_protocol_that_scales_with_n_is_a_remark(rng):
    """Steps per epoch: a value for each N. Everything else stays as it is."""
    frame = gap_table(1.0, 0.5, DESIGN, rng).assign(steps=lambda f: 10 * f["samples"])
    report = judged(frame)
    assert report.verdict == CONSISTENT
    assert any("confounded with steps" in r for r in report.reasons)


def test_a_column_that_varies_within_every_n_is_no_confounder(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    report = judged(frame.assign(learning_rate=np.where(frame["seed"] % 2 == 0, 0.1, 0.2)))
    assert report.verdict == CONSISTENT
    assert not any("confounded" in r for r in report.reasons)


def test_survivors_at_small_n_are_not_consistent_and_at_large_n_not_even_held():
    for k in range(6):
        rng = np.random.default_rng(k)
        small, large = judged(attacks.survivors(rng, small=True)), judged(attacks.survivors(rng, small=False))
        assert small.exponents["samples"].verdict != CONSISTENT
        assert large.exponents["samples"].verdict not in (CONSISTENT, HOLDS, LOOSE)
        for report, end in ((small, "samples = 64"), (large, "samples = 16384")):
            assert any(f"fewer runs at {end}" in r for r in report.reasons), report.reasons


def test_fewer_runs_rule_out_words_by_the_end_at_which_they_are():
    levels, replicates = np.repeat([1.0, 10, 100], 10), np.full(30, 8.0)
    assert scrutiny.survivors(levels, replicates, "samples") == []
    low, high = replicates.copy(), replicates.copy()
    low[:10], high[20:] = 5.0, 5.0
    (at_low,), (at_high,) = (scrutiny.survivors(levels, r, "samples") for r in (low, high))
    assert (at_low.applied(CONSISTENT), at_low.applied(HOLDS)) == (HOLDS, HOLDS)
    assert (at_high.applied(CONSISTENT), at_high.applied(HOLDS)) == (INCONCLUSIVE, INCONCLUSIVE)
    assert at_high.applied(LOOSE) == LOOSE and at_high.applied(REFUTED) == REFUTED
    few = replicates.copy()
    few[:2] = 7.0
    assert scrutiny.survivors(levels, few, "samples") == []


def test_an_ordinary_study_with_missing_runs_is_judged(rng):
    report = judged(attacks.missing_runs(rng))
    assert report.verdict == LOOSE
    assert report.exponents["samples"].details["tier"] == 1
    assert not any("fewer runs" in r for r in report.reasons)


def test_a_single_run_far_out_opens_no_range(rng):
    report = judged(attacks.lone_run(rng))
    assert report.exponents["samples"].verdict == UNTESTABLE
    assert any("cells with fewer than 3 seeds do not count" in r for r in report.reasons)
    assert {"samples": 6400.0, "seeds": 5} in report.fields["needed"]


def test_a_run_far_off_is_named(rng):
    report = judged(attacks.misplaced_point(rng))
    assert report.verdict != CONSISTENT
    (said,) = [r for r in report.reasons if r.startswith("far off")]
    assert "rank=12, samples=64, seed=2" in said
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    low = frame.assign(gap=frame["gap"].where(frame.index != 40, frame["gap"] / 20))
    assert any("far off: row 41" in r for r in judged(low).reasons)
    assert not any("far off" in r for r in judged(frame).reasons)


def test_a_negative_offset_is_not_consistent():
    """N^-.35 minus half its end value has the slope -.46 over the window; beside an offset the exponent is -.35."""
    verdicts = [
        judged(attacks.negative_offset(np.random.default_rng(k))).exponents["samples"].verdict for k in range(12)
    ]
    assert verdicts.count(CONSISTENT) <= 1
    assert REFUTED not in verdicts


def test_a_negative_offset_of_a_law_next_to_the_margin_is_mostly_noticed():
    """N^-.38 minus .3 of its end value: .02 outside the margin, which five seeds at 20 % noise barely resolve."""
    draws = [attacks.negative_offset(np.random.default_rng(k), c=0.38, share=0.3) for k in range(12)]
    assert sum(judged(frame).exponents["samples"].verdict == CONSISTENT for frame in draws) <= 5


@pytest.mark.slow
def test_a_hundred_seeds_in_one_cell_leave_the_coverage():
    hits = [judged(attacks.crowded_cell(np.random.default_rng(k))).exponents["samples"].ci95 for k in range(200)]
    assert np.mean([ci.low <= -0.5 <= ci.high for ci in hits]) >= 0.93


def test_words_that_are_left_after_every_doubt():
    doubts = [scrutiny.Doubt("", {CONSISTENT: HOLDS}), scrutiny.Doubt("", {HOLDS: INCONCLUSIVE})]
    assert scrutiny.apply(CONSISTENT, doubts) == INCONCLUSIVE
    assert scrutiny.apply(LOOSE, doubts) == LOOSE
    assert scrutiny.apply(UNTESTABLE, [scrutiny.Doubt("", {UNTESTABLE: HOLDS})]) == UNTESTABLE
