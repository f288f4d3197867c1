"""Claims 1 and 2: every verdict seen both ways on planted tables, and everything that must not be called CONSISTENT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged

from theory.judge.check import check_table
from theory.judge.verdicts import (
    CONSISTENT,
    HOLDS,
    INCONCLUSIVE,
    LOOSE,
    NOT_EVALUATED,
    REFUTED,
    UNTESTABLE,
    VACUOUS,
    VIOLATED,
)
from theory.planted.linear_loss import linear_loss_tables
from theory.planted.optimisation import quadratic_table
from theory.planted.surfaces import Design, broken_gap_table, gap_table, gradient_table, noise_gap_table

DESIGN = Design(noise=0.1)


@pytest.mark.parametrize(
    ("b", "c", "verdict", "rank", "samples"),
    [
        (1.0, 0.5, CONSISTENT, CONSISTENT, CONSISTENT),  # the abstract's own exponents
        (0.5, 0.5, LOOSE, LOOSE, CONSISTENT),
        (1.0, 1.0, LOOSE, CONSISTENT, LOOSE),
        (1.4, 0.5, REFUTED, REFUTED, CONSISTENT),
        (1.0, 0.25, REFUTED, CONSISTENT, REFUTED),
    ],
)
def test_planted_exponents_give_the_planted_verdict(b, c, verdict, rank, samples, rng):
    report = judged(gap_table(b, c, DESIGN, rng))
    assert report.verdict == verdict
    assert report.exponents["rank"].verdict == rank
    assert report.exponents["samples"].verdict == samples
    assert report.exponents["rank"].estimate == pytest.approx(b, abs=0.1)
    assert report.exponents["samples"].estimate == pytest.approx(-c, abs=0.05)


def test_the_sign_of_the_claimed_exponent_is_that_of_a_falling_gap(rng):
    """A gap that falls as claimed passes; one that *grows* as sqrt N must be refuted."""
    assert judged(gap_table(1.0, 0.5, DESIGN, rng)).exponents["samples"].claimed == -0.5
    assert judged(gap_table(1.0, -0.5, DESIGN, rng)).exponents["samples"].verdict == REFUTED
    assert judged(gradient_table(0.5, DESIGN, rng), "convergence").verdict == REFUTED


def test_regimes_of_the_exact_linear_problems(rng):
    """E4: slow, abstract and fast are told apart, and each is only itself."""
    for name, frame in linear_loss_tables(replace(DESIGN, ranks=(1, 2, 4, 8, 16, 32)), rng).items():
        regimes = dict(judged(frame).fields["regimes"])
        assert regimes.pop(name) == CONSISTENT, name
        assert set(regimes.values()) == {REFUTED}, name


def never_consistent(report, words):
    assert report.verdict != CONSISTENT
    text = " ".join(report.reasons)
    assert words in text, text


def test_a_plateau_that_mimics_the_claimed_rate_is_not_consistent(rng):
    """A plateau under 1/N bends the slope to about -1/2 over the whole range; its upper half is not."""
    frame = gap_table(1.0, 1.0, replace(DESIGN, noise=0.05), rng, offset=2.5)
    report = judged(frame)
    never_consistent(report, "bent")
    assert report.exponents["samples"].estimate == pytest.approx(-0.5, abs=0.1)
    assert report.exponents["samples"].details["reach"]["estimate"] > -0.3
    assert report.exponents["samples"].verdict == INCONCLUSIVE


def test_one_decade_of_samples_is_untestable(rng):
    report = judged(gap_table(1.0, 0.5, replace(DESIGN, samples=(64, 128, 256, 640)), rng))
    assert report.exponents["samples"].verdict == UNTESTABLE
    assert np.isfinite(report.exponents["samples"].estimate)
    never_consistent(report, "samples covers a factor of 10")


def test_the_range_gate_is_inclusive(rng):
    report = judged(gap_table(1.0, 0.5, replace(DESIGN, samples=(64, 256, 640, 1600, 6400)), rng))
    assert report.exponents["samples"].verdict == CONSISTENT
    report = judged(gap_table(1.0, 0.5, replace(DESIGN, samples=(64, 256, 640, 1600, 6000), noise=0.02), rng))
    assert report.exponents["samples"].verdict == HOLDS
    assert report.exponents["samples"].details["tier"] == 2
    never_consistent(report, "second tier")


def test_two_noisy_seeds_are_untestable(rng):
    never_consistent(judged(gap_table(1.0, 0.5, replace(DESIGN, seeds=2, noise=0.5), rng)), "2 seeds per cell")


@pytest.mark.parametrize("absolute", [False, True])
def test_pure_fluctuation_is_not_consistent(absolute, rng):
    """A gap of mean zero carries no signal; its absolute value falls as 1/sqrt N whatever the rank."""
    report = judged(noise_gap_table(DESIGN, rng, absolute=absolute))
    never_consistent(report, "gap exceeds 3 standard errors")
    assert report.exponents["samples"].details["tier"] == 2


@pytest.mark.parametrize(("low", "high"), [(0.25, 0.75), (0.75, 0.25)])
def test_a_broken_power_law_is_not_consistent(low, high, rng):
    report = judged(broken_gap_table(1.0, low, high, DESIGN, rng))
    never_consistent(report, "bent")
    assert report.exponents["samples"].verdict == (REFUTED if high < 0.4 else INCONCLUSIVE)


def test_exponents_that_differ_between_seeds_widen_the_interval(rng):
    report = judged(gap_table(1.0, 0.5, replace(DESIGN, slope_sd=0.3), rng))
    assert report.exponents["samples"].verdict in (INCONCLUSIVE, UNTESTABLE)
    tight = judged(gap_table(1.0, 0.5, DESIGN, rng))
    assert report.exponents["samples"].ci95.width > 5 * tight.exponents["samples"].ci95.width


def test_collinear_designs_are_untestable(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    position = np.round(4 * np.log(frame["rank"] / 4) / np.log(8))
    keep = frame["samples"] == 64 * 4**position
    never_consistent(judged(frame[keep]), "move together")


def test_rank_range_gate(rng):
    report = judged(gap_table(1.0, 0.5, replace(DESIGN, ranks=(4, 6, 8, 12, 16)), rng))
    assert report.exponents["rank"].verdict == UNTESTABLE
    assert report.exponents["samples"].verdict == CONSISTENT
    assert report.verdict == UNTESTABLE


def test_wider_margins_accept_more(rng):
    frame = gap_table(1.0, 0.62, DESIGN, rng)
    assert check_table(frame, margin=0.2).claims["generalization"].verdict == CONSISTENT
    assert check_table(frame, margin=0.05).claims["generalization"].verdict == LOOSE


@pytest.mark.parametrize(("exponent", "verdict"), [(-0.5, CONSISTENT), (-1.0, LOOSE), (-0.25, REFUTED)])
def test_planted_convergence(exponent, verdict, rng):
    report = judged(gradient_table(exponent, DESIGN, rng), "convergence")
    assert report.verdict == verdict
    assert report.bound.verdict == NOT_EVALUATED


def test_a_plateau_is_not_consistent(rng):
    never_consistent(judged(gradient_table(-1.0, DESIGN, rng, plateau=5.0), "convergence"), "bent")


def test_slopes_along_one_run_are_untestable(rng):
    """A fixed step for every horizon: the running average of a single run."""
    report = judged(quadratic_table(DESIGN, rng, step=0.05), "convergence")
    assert report.exponents["steps"].verdict == UNTESTABLE
    never_consistent(report, "the step size is the same at every horizon")


def test_the_bound_holds_on_quadratics_and_is_violated_by_a_wrong_constant(rng):
    assert judged(quadratic_table(DESIGN, rng), "convergence").bound.verdict == HOLDS
    frame = quadratic_table(DESIGN, rng)
    frame[["grad_variance", "loss_decrease"]] *= 0.02
    wrong = judged(frame, "convergence")
    assert wrong.bound.verdict == VIOLATED
    assert wrong.verdict == REFUTED
    assert wrong.bound.worst_ratio > 1


def test_the_theorem_does_not_apply_beyond_two_over_l(rng):
    frame = quadratic_table(DESIGN, rng)
    frame["step_size"] = 3.0 / frame["smoothness"]
    report = judged(frame, "convergence")
    assert report.bound.verdict == NOT_EVALUATED
    assert any("2/L or more" in r for r in report.reasons)


def test_a_bound_beyond_the_trivial_one_is_vacuous(rng):
    frame = quadratic_table(DESIGN, rng)
    frame["grad_variance"] *= 1e4
    assert judged(frame, "convergence").bound.verdict == VACUOUS


def test_short_horizons_do_not_test_the_rate_at_a_tuned_step(rng):
    """With a small variance the crossover L Delta/(2 sigma^2) lies beyond every horizon, and the tuned step is 1/L."""
    frame = quadratic_table(DESIGN, rng).assign(grad_variance=1e-6)
    tuned = np.minimum(1.0, np.sqrt(2.0 / (1e-6 * frame["steps"])))
    assert tuned.nunique() == 1
    short = judged(frame.assign(step_size=tuned), "convergence")
    assert short.exponents["steps"].verdict == UNTESTABLE
    assert any("10 T_x" in r for r in short.reasons)
    some = frame.assign(grad_variance=1e-3)
    some = judged(some.assign(step_size=np.minimum(1.0, np.sqrt(2.0 / (1e-3 * some["steps"])))), "convergence")
    assert any("T = 256, 512, 1024, 2048, 4096" in r and "10 T_x" in r for r in some.reasons), some.reasons
    # Where eta sqrt(T) is the same at every horizon both terms fall as 1/sqrt(T), and T_x has no meaning.
    paced = judged(frame, "convergence")
    assert not any("10 T_x" in r for r in paced.reasons)
    assert paced.exponents["steps"].verdict == CONSISTENT


def test_a_slow_rate_says_whether_the_rate_or_the_premise_fails(rng):
    """The bound T^-1/2 L sigma^2 with constants that grow: the rate that it predicts is slower itself."""
    frame = gradient_table(-0.25, DESIGN, rng).assign(smoothness=1.0, loss_decrease=1.0, grad_variance=1.0)
    frame["step_size"] = 0.5 / np.sqrt(frame["steps"])
    frame["grad_norm_sq"] *= 0.3
    growing = frame.assign(grad_variance=8 * frame["steps"] ** 0.25, loss_decrease=frame["steps"] ** 0.25)
    premise = judged(growing, "convergence")
    assert (premise.verdict, premise.fields["cause"]) == (REFUTED, "premise")
    assert "its premise is" in premise.reasons[0]
    assert premise.fields["bound_slope"] == pytest.approx(-0.25, abs=0.01)
    assert premise.fields["ratio_slope"]["estimate"] == pytest.approx(0.0, abs=0.05)
    rate = judged(frame, "convergence")
    assert (rate.verdict, rate.fields["cause"]) == (REFUTED, "rate")
    assert judged(gradient_table(-0.25, DESIGN, rng), "convergence").fields["cause"] == "unclear"
    assert judged(gradient_table(-0.5, DESIGN, rng), "convergence").fields["cause"] is None


def test_the_spread_between_pilot_seeds_enters_the_bound(rng):
    """Measured values at .8 of the bound, constants from pilots that differ by a factor of 1.5 around their mean."""
    frame = gradient_table(-0.5, replace(DESIGN, seeds=6), rng).assign(smoothness=1.0, loss_decrease=1.0)
    frame["step_size"] = 0.5 / np.sqrt(frame["steps"])
    frame["grad_variance"] = 8.0
    frame["grad_norm_sq"] = 0.8 * (4.0 + 4.0) / np.sqrt(frame["steps"]) * np.exp(0.02 * rng.standard_normal(len(frame)))
    pilot = frame["seed"] % 3
    same = frame.assign(pilot_seed=77 + pilot)
    assert judged(same, "convergence").bound.verdict == HOLDS
    assert not any("asked for" in r for r in judged(same, "convergence").reasons)
    spread = same.assign(grad_variance=frame["grad_variance"] * (1 + 0.5 * (pilot - 1)))
    assert judged(spread, "convergence").bound.verdict == INCONCLUSIVE
    one = judged(same.assign(pilot_seed=77), "convergence")
    assert one.bound.verdict == HOLDS
    assert any("1 pilot seed" in r for r in one.reasons)


def test_rows_without_constants_still_count_for_the_exponent(rng):
    frame = quadratic_table(DESIGN, rng)
    frame.loc[frame["seed"] > 0, "grad_variance"] = np.nan
    report = judged(frame, "convergence")
    assert (
        report.exponents["steps"].verdict
        == judged(quadratic_table(DESIGN, rng), "convergence").exponents["steps"].verdict
    )
    assert report.seeds == DESIGN.seeds
    assert any("lack a constant of the bound" in reason for reason in report.reasons)


def test_a_fixed_step_in_every_stratum_is_untestable(rng):
    """A step of each rank's own, the same at all its horizons: a plateau in disguise."""
    slow = gradient_table(-0.3, DESIGN, rng)
    one, other = (slow.assign(rank=rank, step_size=step) for rank, step in ((4, 0.05), (16, 0.2)))
    assert judged(pd.concat([one, other]).drop(columns="step_size"), "convergence").verdict == REFUTED
    assert judged(pd.concat([one, other]), "convergence").verdict == UNTESTABLE


def test_sites_are_strata_of_the_bound(rng):
    frame = quadratic_table(DESIGN, rng)
    report = judged(
        pd.concat([frame.assign(site="q"), frame.assign(site="k", grad_norm_sq=0.99 * frame["grad_norm_sq"])]),
        "convergence",
    )
    assert report.bound.verdict == HOLDS
    assert {cell["site"] for cell in report.bound.details["cells"]} == {"q", "k"}


def test_the_horizon_that_violates_is_the_one_that_is_named():
    """At T = 100 without doubt, at T = 1000 with a larger ratio that is all noise."""
    rows = []
    for steps, values in ((100, [3.0, 3.01, 2.99, 3.0, 3.0]), (1000, [0.1, 0.1, 0.1, 0.1, 50.0])):
        constants = {"step_size": 0.1, "smoothness": 1.0, "grad_variance": 0.0, "loss_decrease": 0.05 * steps}
        rows += [{"steps": steps, "seed": s, "grad_norm_sq": v, **constants} for s, v in enumerate(values)]
    report = judged(pd.DataFrame(rows), "convergence")
    assert report.bound.verdict == VIOLATED
    assert any("violated at T = 100 (measured/bound = 3)" in reason for reason in report.reasons), report.reasons


def test_a_shape_with_one_rank_does_not_pool_the_others(rng):
    """gap = C r d / sqrt N exactly, and one more shape at its own rank."""
    parts = [gap_table(1.0, 0.5, DESIGN, rng).assign(d_in=d, d_out=d).eval(f"gap = gap * {d / 64}") for d in (64, 256)]
    large = max(DESIGN.ranks)
    single = gap_table(1.0, 0.5, replace(DESIGN, ranks=(large,)), rng).assign(d_in=512, d_out=512)
    report = judged(pd.concat([*parts, single.assign(gap=single["gap"] * 8)]))
    assert report.verdict == CONSISTENT
    assert report.exponents["rank"].estimate == pytest.approx(1.0, abs=0.1)


def test_empty_steps_are_no_reason_to_leave_a_row_out(rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng).assign(steps=np.nan)
    again = frame.iloc[[0]]
    both = pd.concat([frame.iloc[1:], again.assign(steps=100), again.assign(steps=200)])
    assert judged(both).exponents["rank"].verdict == judged(frame).exponents["rank"].verdict == CONSISTENT
