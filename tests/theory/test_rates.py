"""What is said of a rate, and the numbers in its report, from windows made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged
from scipy import stats
from windows import SEEDS, at, bent, window

from theory.judge import rates
from theory.judge.intervals import UNDEFINED, Interval
from theory.judge.model_selection import LawFit
from theory.judge.rules import Limits
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.planted.surfaces import Design, gap_table

N = Limits(claimed=-0.5, margin=0.1, refute_level=0.95, leading=True, tier=1)
R = replace(N, claimed=1.0, leading=False)
SECOND = replace(N, tier=2)
#: Middles a decade apart in a range that ends at 1e4: y = 1 + 1e4 / x has the local slope -1 / (1 + x / 1e4) there.
PLATEAU = {
    "early": at(-1 / (1 + 10**-1.25)),
    "late": at(-1 / (1 + 10**-0.25)),
    "gap": np.log(10),
    "to_end": np.log(10) / 4,
}


def said(found, limit=N, word=None):
    """The sentences on a window, and the word."""
    exponent = rates.exponent_of(found, limit)
    assert word in (None, exponent.verdict), exponent.verdict
    return rates.explain("samples", found, limit, exponent)


def test_a_plain_window_needs_no_sentence():
    assert said(window(at(-0.5)), word=CONSISTENT) == []
    assert said(window(at(1.0), extrapolation=None), R, CONSISTENT) == []  # r is not extrapolated


def test_without_a_window_or_a_slope_there_is_no_word():
    nothing = rates.exponent_of(None, N)
    assert (nothing.verdict, nothing.claimed) == (UNTESTABLE, -0.5)
    assert rates.explain("samples", None, N, nothing) == []
    assert said(window(at(float("nan"))), word=UNTESTABLE) == [
        "samples: no power law fits cell means that are not positive"
    ]


@pytest.mark.parametrize(
    ("low", "top", "word", "side"),
    [
        (-0.7, -1.1, LOOSE, "better"),
        (-0.7, -0.3, REFUTED, "worse"),
        (-0.45, -0.85, HOLDS, None),
        (-0.2, -0.6, INCONCLUSIVE, None),
    ],
)
def test_a_bend_is_told_with_what_decided(low, top, word, side):
    found = said(bent(at(low), at(top, 0.02)), word=word)
    assert found[0] == (
        f"samples: bent: the slope is {low:.2f} up to 1000 and {top:.2f} [{top - 0.02:.2f}, {top + 0.02:.2f}] beyond; "
        "no single exponent describes this range"
    )
    decided = [f"samples: {side} than claimed in every part that decides (-0.5 claimed)"] if side else []
    assert found[1:] == decided


def test_where_a_plateau_would_reach_the_limit_is_said_where_the_guard_is_on():
    """1 / (1 + x / 1e4) = .4 at x = 1.5e4."""
    sentence = (
        "samples: if the flattening were a plateau, the slope would reach -0.4 at samples = 1.5e+04 (over the next "
        "half-decade -0.45, upper 90 % limit -0.43)"
    )
    reach = at(-0.45, 0.02, 0.90)
    flattens = window(at(-0.7), reach=reach, **PLATEAU)
    assert said(flattens, SECOND, HOLDS) == [sentence]
    assert said(flattens, N, LOOSE) == []  # first tier, straight: no guard
    assert sentence in said(bent(at(-0.9), at(-0.65), reach, **PLATEAU), N, HOLDS)
    assert sentence not in said(bent(at(-0.9), at(-0.3), reach, **PLATEAU), N, REFUTED)
    assert sentence not in said(bent(at(-0.9), at(-0.65), reach, **PLATEAU), replace(N, tier=0), UNTESTABLE)
    assert said(window(at(-0.7), reach=reach), SECOND, HOLDS) == []  # nothing flattens
    assert rates.exponent_of(flattens, N).details["n_dagger"] == pytest.approx(1.5e4, rel=1e-6)
    assert rates.exponent_of(window(at(-0.7)), N).details["n_dagger"] is None


def laws(exponent):
    """A power law, and an offset that beats it."""
    return LawFit("power", -0.5, 0.0, 3.0, 1.0), LawFit("power+offset", exponent, 0.1, -6.0, 0.5)


def test_an_offset_is_told_where_the_window_is_straight():
    sentence = "samples: an offset describes the means better than a power law; beside it the exponent is -0.72"
    assert said(window(at(-0.5), rivals=laws(-0.72)), word=HOLDS) == [sentence]
    assert sentence not in said(bent(at(-0.9), at(-0.65), rivals=laws(-0.72)))


def test_a_missed_extrapolation_is_told_unless_something_stronger_is():
    sentence = "samples: the power law fitted without the largest half-decade misses it"
    missed = {"extrapolation": (0.3, 2.0)}  # more than .1 x 2
    assert said(window(at(-0.5), **missed), word=HOLDS) == [sentence]
    assert said(window(at(-0.5), extrapolation=(0.19, 2.0))) == []
    assert said(window(at(-0.8), **missed), word=LOOSE) == [sentence]
    assert said(window(at(-0.2), **missed), word=REFUTED) == []
    assert sentence not in said(bent(at(-0.9), at(-0.65), **missed))
    assert said(window(at(1.0), **missed), R, CONSISTENT) == []
    few = "samples: too few values below the largest half-decade to test the extrapolation"
    assert said(window(at(-0.5), extrapolation=None), word=HOLDS) == [few]


@pytest.mark.parametrize("factor", [1.24, 1.26])
def test_a_second_interval_wider_by_a_quarter_is_told(factor):
    found = said(window(at(-0.5, 0.05), wild=Interval(-0.5 - 0.05 * factor, -0.5 + 0.05 * factor)), word=CONSISTENT)
    sentence = "samples: a second method gives a wider 95 % interval, -0.563 to -0.437; trust that one"
    assert found == ([sentence] if factor > 1.25 else [])


def test_the_numbers_of_an_exponent():
    evidence = window(
        at(-0.5, 0.04), low=at(-0.45, 0.06), top=at(-0.55, 0.08), reach=at(-0.52, 0.1), bend=at(-0.1, 0.03),
        extrapolation=(0.11, 2.5), wild=Interval(-0.57, -0.41), local=((100.0, -0.5, -0.6, -0.4),),
    )  # fmt: skip
    exponent = rates.exponent_of(evidence, N)
    details = exponent.details
    ratio = stats.t.ppf(0.95, SEEDS - 1) / stats.t.ppf(0.975, SEEDS - 1)  # of the 90 % interval to the 95 % one
    assert (exponent.claimed, exponent.estimate) == (-0.5, -0.5)
    assert (exponent.ci95.low, exponent.ci95.high) == pytest.approx((-0.54, -0.46))
    assert (exponent.ci90.low, exponent.ci90.high) == pytest.approx((-0.5 - 0.04 * ratio, -0.5 + 0.04 * ratio))
    for name, value, half in (("low", -0.45, 0.06), ("top", -0.55, 0.08), ("reach", -0.52, 0.1)):
        assert details[name] == {"estimate": value, "ci95": pytest.approx([value - half, value + half])}
    assert details["drift"] == -0.1 and details["drift_ci95"] == pytest.approx([-0.13, -0.07])
    assert details["ci95_wild"] == [-0.57, -0.41]
    assert (details["extrapolation_error"], details["extrapolation_limit"]) == (0.11, pytest.approx(0.25))
    assert details["local_slopes"] == [[100.0, -0.5, -0.6, -0.4]]
    assert (details["bent"], details["tier"], details["middle"], details["effective_seeds"]) == (False, 1, 1e3, SEEDS)
    assert details["standard_error"] == pytest.approx(0.04 / stats.t.ppf(0.975, SEEDS - 1))
    bare = rates.exponent_of(replace(evidence, extrapolation=None), N).details
    assert bare["extrapolation_error"] is None and bare["extrapolation_limit"] is None


def test_the_two_sided_word_of_another_exponent():
    assert rates.equals(window(at(-0.98)), N, -1.0) == CONSISTENT
    assert rates.equals(window(at(-0.98)), N, -0.5) == REFUTED  # better is not equal


def test_rival_laws_are_those_of_the_first_coordinate_that_has_some():
    found = rates._rivals({"rank": None, "samples": window(at(-0.5), rivals=laws(-0.72))})
    assert found == [
        {"law": "power", "exponent": -0.5, "aicc": 3.0, "heldout_error": 1.0},
        {"law": "power+offset", "exponent": -0.72, "aicc": -6.0, "heldout_error": 0.5},
    ]
    assert rates._rivals({"rank": window(at(1.0))}) == []


def test_a_run_that_both_coordinates_lack_is_asked_for_once(rng):
    needed = judged(gap_table(1.0, 0.5, Design(seeds=2), rng)).fields["needed"]
    assert needed == [{"seeds": 3}]


def test_no_reason_is_empty(rng):
    assert all(judged(gap_table(1.0, 0.5, Design(noise=0.1), rng)).reasons)


def test_coordinates_that_move_together_are_named(rng):
    frame = gap_table(1.0, 0.5, Design(noise=0.1), rng)
    position = np.round(4 * np.log(frame["rank"] / 4) / np.log(8))
    report = judged(frame[frame["samples"] == 64 * 4**position])
    assert any("rank and samples move together" in reason for reason in report.reasons)


def test_the_claimed_law_is_fitted_to_relative_deviations_of_every_run(rng):
    """Its constant k minimises the sum over runs of (1 - k shape / cell mean)^2."""
    frame = gap_table(1.0, 0.8, Design(noise=0.1, ranks=(4,)), rng)
    frame = frame[(frame["samples"] > 64) | (frame["seed"] < 3)]
    points = rates.judge_rates(
        frame, "gap", [rates.Coordinate("samples", -0.5, leading=True)], 0.1, strata=["rank"]
    ).points
    cell = frame.groupby("samples")["gap"].transform("mean")
    ratio = (frame["samples"] ** -0.5 / cell).to_numpy()
    k = np.linalg.lstsq(ratio[:, None], np.ones(len(ratio)), rcond=None)[0][0]
    np.testing.assert_allclose(points["claimed"], k * points["samples"] ** -0.5)


def test_a_cell_whose_mean_is_zero_has_no_relative_deviation(rng):
    frame = gap_table(1.0, 0.8, Design(noise=0.1, ranks=(4,)), rng)
    frame.loc[frame["samples"] == 16384, "gap"] = [-2.0, -1.0, 0.0, 1.0, 2.0]
    coordinate = [rates.Coordinate("samples", -0.5, leading=True)]
    with np.errstate(all="ignore"):  # as `check` does
        claimed = rates.judge_rates(frame, "gap", coordinate, 0.1).points.set_index("samples")["claimed"]
    fewer = frame[frame["samples"] < 16384]
    without = rates.judge_rates(fewer, "gap", coordinate, 0.1).points.set_index("samples")["claimed"]
    assert claimed[64] == pytest.approx(without[64])


def test_every_stratum_has_its_own_constants(rng):
    frame = gap_table(1.0, 0.5, Design(noise=0.01, ranks=(4,)), rng)
    both = pd.concat([frame.assign(site="a"), frame.assign(site="b", gap=7 * frame["gap"])])
    points = rates.judge_rates(
        both, "gap", [rates.Coordinate("samples", -0.5, leading=True)], 0.1, strata=["site"]
    ).points
    for column in ("claimed", "fitted_samples"):
        by_site = points.pivot(index="samples", columns="site", values=column)
        np.testing.assert_allclose(by_site["b"] / by_site["a"], 7.0)
    assert np.log(points["claimed"] / points["mean"]).abs().max() < 0.05


def test_an_undefined_interval_of_the_second_method_is_no_wider_one():
    assert said(window(at(-0.5, 0.05), wild=UNDEFINED)) == []
