"""Claims in detail: the numbers, thresholds, branches and sentences behind each word."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from judging import judged
from scipy import special, stats
from windows import at, window

from theory.claims import convergence, dynamics, generalization, information, optimal_rank
from theory.judge import gates
from theory.judge.intervals import t_quantile
from theory.judge.optimum import Optima, RankCost, find_optima, fit_growth
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
from theory.laws.surface import Surface
from theory.planted.optimisation import quadratic_table
from theory.planted.surfaces import Design, gap_table, gradient_table, risk_table
from theory.tables import InputError, table_from_frame

NEAR = 1e-6
SHAPE = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # five seeds around their mean


def standard_error(spread):
    """Of the mean of five seeds at spread x SHAPE."""
    return spread * float(np.std(SHAPE, ddof=1)) / np.sqrt(5)


def half_width(spread, level):
    """Of the t interval of five seeds at spread x SHAPE."""
    return standard_error(spread) * float(t_quantile(0.5 + level / 2, 4))


# --- convergence ---


def bound_rows(cells, rhs=1.0):
    """{T: values by seed}; half of the right-hand side is 2 Delta / (eta T), half L eta sigma^2."""
    rows = [
        {
            "steps": float(steps), "seed": float(seed), "grad_norm_sq": value, "step_size": 0.1, "smoothness": 1.0,
            "grad_variance": 5.0 * rhs, "loss_decrease": 0.025 * steps * rhs,
        }
        for steps, values in cells.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def bound_of(frame):
    bound, reasons = convergence.check_bound(frame, ["steps"])
    return bound, " ".join(reasons)


def test_the_fixed_step_bound_in_numbers():
    """eta <= 1/L as it is, up to 2/L over 2 - L eta, infinite beyond."""
    eta = np.array([0.25, 0.5, 0.525, 0.75, 0.9, 1.0, 1.5])  # L = 2
    one = np.ones(7)
    found = convergence.right_hand_side(100 * one, eta, 2 * one, 3 * one, 5 * one)
    plain = 10 / (eta * 100) + 6 * eta
    over = np.array([1.0, 1.0, 0.95, 0.5, 0.2])
    assert found == pytest.approx([*(plain[:5] / over), np.inf, np.inf])


def test_the_crossover_in_numbers():
    found = convergence.crossover(np.array([2.0, 2.0]), np.array([3.0, 3.0]), np.array([0.5, 0.0]))
    assert found.tolist() == [6.0, np.inf]


@pytest.mark.parametrize(("ratio", "word"), [(0.095, "loose"), (0.0999, "loose"), (0.1001, "informative")])
def test_a_bound_is_loose_below_a_tenth(ratio, word):
    """The largest ratio decides; the smallest one is only said."""
    bound, said = bound_of(bound_rows({100: [ratio] * 3, 400: [0.01] * 3}))
    assert bound.verdict == HOLDS
    assert bound.worst_ratio == pytest.approx(ratio)
    assert f"is {word}: measured/bound between 0.01 and {ratio:.3g}" in said
    assert "unit test rather than evidence" in said
    assert "2/L" not in said


def test_the_cells_of_the_bound_are_means_and_the_worst_run_is_named():
    frame = bound_rows({100: [0.1, 0.2, 0.6], 400: [0.1, 0.1, 0.1]}, rhs=2.0)
    bound, _ = bound_of(frame)
    first, second = bound.details["cells"]
    assert first == pytest.approx({"steps": 100, "lhs": 0.3, "rhs": 2.0, "rhs_standard_error": 0.0, "ratio": 0.15})
    assert (second["steps"], second["lhs"]) == (400, pytest.approx(0.1))
    assert bound.details["worst_run"] == pytest.approx({"ratio": 0.3, "steps": 100, "seed": 2})
    assert bound.worst_ratio == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("pilots", "rhs", "error"),
    [
        ([10, 10, 10, 11], 1.5, 0.5),  # two pilots: means 1 and 2
        ([10, 10, 10, 10], 1.25, 0.25),  # a single one has no spread: the runs'
        ([10, 10, 10, 3], 1.25, 0.25),  # a run that is its own pilot
        ([10, 10, 11, np.nan], 1.25, 0.25),  # a run that names none
        ([10, 11, 11, 11], 7 / 6, 1 / 6),  # the second is the mean of its runs
        ([10, 10, 11, 12], 4 / 3, 1 / 3),
    ],
)
def test_the_spread_of_the_bound_is_that_between_pilot_seeds(pilots, rhs, error):
    frame = bound_rows({100: [0.5] * 4}).assign(pilot_seed=np.array(pilots, dtype=float))
    frame[["grad_variance", "loss_decrease"]] *= np.array([[1.0], [1.0], [1.0], [2.0]])
    (cell,) = bound_of(frame)[0].details["cells"]
    assert cell["rhs"] == pytest.approx(rhs)
    assert cell["rhs_standard_error"] == pytest.approx(error)


@pytest.mark.parametrize("pilots", [2, 3])
def test_the_spread_of_the_constants_is_held_to_their_own_degrees_of_freedom(pilots):
    """Equal runs, constants from two or three pilots that differ by a tenth: t(.975, pilots - 1) of their errors."""
    factor = {2: [0.95, 1.05], 3: [0.9, 1.0, 1.1]}[pilots]
    error = float(np.std(factor, ddof=1)) / np.sqrt(pilots)
    half = float(t_quantile(0.975, pilots - 1)) * error
    for value, word in (
        (1 - half - NEAR, HOLDS),
        (1 - half + NEAR, INCONCLUSIVE),
        (1 + half - NEAR, INCONCLUSIVE),
        (1 + half + NEAR, VIOLATED),
    ):
        frame = bound_rows({100: [value] * 6}).assign(pilot_seed=lambda f: 70 + f["seed"] % pilots)
        frame[["grad_variance", "loss_decrease"]] *= np.array(factor * 3)[:6, None]
        assert bound_of(frame)[0].verdict == word, value


def test_the_order_of_the_rows_does_not_matter():
    frame = bound_rows({100: [0.1, 0.2, 0.3], 400: [0.9, 0.8, 0.7], 1600: [0.4, 0.5, 0.6]})
    frame["grad_variance"] *= np.sqrt(frame["steps"])
    plain, backwards = bound_of(frame)[0], bound_of(frame.iloc[::-1])[0]
    assert plain.details["cells"] == [pytest.approx(cell) for cell in backwards.details["cells"]]
    assert [cell["steps"] for cell in plain.details["cells"]] == [100, 400, 1600]


@pytest.mark.parametrize(("pilots", "said"), [(1, "1 pilot seed where"), (2, "2 pilot seeds where"), (3, "")])
def test_fewer_than_three_pilots_are_said(pilots, said):
    frame = bound_rows({100: [0.5] * 6})
    origin = convergence._origin(frame.assign(pilot_seed=70 + frame["seed"] % pilots))
    assert "evidence, not an identity" in origin
    assert ("asked for" in origin) == (pilots < 3)
    assert said in origin


@pytest.mark.parametrize(("norm", "ratio"), [(0.0, 1.0), (1.0, np.inf)])
def test_without_any_loss_to_gain_the_ratio_is_one_or_infinite(norm, ratio):
    """Right-hand side 0 with a single run: met by a gradient of 0, missed by any other."""
    frame = bound_rows({100: [norm]}).assign(grad_variance=0.0, loss_decrease=0.0)
    assert bound_of(frame)[0].worst_ratio == ratio


def test_a_horizon_with_nothing_to_gain_hides_no_violation():
    frame = bound_rows({100: [0.0] * 3, 400: [3.0, 3.01, 2.99]})
    frame.loc[frame["steps"] == 100, ["grad_variance", "loss_decrease"]] = 0.0
    assert bound_of(frame)[0].verdict == VIOLATED


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_gradient_where_nothing_could_be_gained_is_the_clearest_violation(unit):
    """Right-hand side 0 at T = 100: any gradient is infinitely far beyond it, in whatever unit it is measured."""
    frame = bound_rows({100: [0.1] * 3, 400: [3.0, 3.01, 2.99]})
    frame.loc[frame["steps"] == 100, ["grad_variance", "loss_decrease"]] = 0.0
    frame[["grad_norm_sq", "grad_variance", "loss_decrease"]] *= unit
    bound, said = bound_of(frame)
    assert bound.verdict == VIOLATED
    assert "violated at T = 100 (measured/bound = inf)" in said


def test_no_gradient_where_nothing_could_be_gained_is_as_promised():
    frame = bound_rows({100: [0.0] * 3, 400: [0.5] * 3})
    frame.loc[frame["steps"] == 100, ["grad_variance", "loss_decrease"]] = 0.0
    assert bound_of(frame)[0].verdict == HOLDS


def test_one_seed_at_some_horizon_decides_nothing():
    bound, said = bound_of(bound_rows({100: [0.5] * 3, 400: [0.2]}))
    assert bound.verdict == INCONCLUSIVE
    assert bound.worst_ratio == pytest.approx(0.5)
    assert "at least two seeds at every horizon" in said


def test_horizons_beyond_the_theorem_leave_the_others():
    frame = bound_rows({100: [0.5] * 3, 400: [0.5] * 3})
    frame.loc[frame["steps"] == 400, "step_size"] = [0.1, 0.1, 2.0]  # one run is enough
    bound, said = bound_of(frame)
    assert bound.verdict == HOLDS
    assert [cell["steps"] for cell in bound.details["cells"]] == [100]
    assert "2/L or more at T = 400:" in said


@pytest.mark.parametrize(
    ("horizons", "factor", "verdict"),
    [(1, 3.0, VIOLATED), (1, 2.7, INCONCLUSIVE), (2, 3.0, INCONCLUSIVE), (2, 3.6, VIOLATED)],
)
def test_violation_is_held_to_the_level_over_the_horizons(horizons, factor, verdict):
    """t(.975, 4) = 2.78 standard errors suffice for one horizon, t(.9875, 4) = 3.50 are needed for one of two."""
    above = 1.0 + 0.1 * SHAPE + factor * standard_error(0.1)
    cells = {100: above.tolist(), 400: [0.5] * 5}
    bound, said = bound_of(bound_rows(dict(list(cells.items())[:horizons])))
    assert bound.verdict == verdict
    assert ("undecided at T = 100:" in said) == (verdict == INCONCLUSIVE)


@pytest.mark.parametrize(("factor", "verdict"), [(-2.7, INCONCLUSIVE), (-2.85, HOLDS)])
def test_the_bound_holds_from_two_sided_95_percent(factor, verdict):
    below = 1.0 + 0.1 * SHAPE + factor * standard_error(0.1)
    assert bound_of(bound_rows({100: below.tolist()}))[0].verdict == verdict


@pytest.mark.parametrize(
    ("horizons", "verdict"), [((1,), VACUOUS), ((1, 1.0001), HOLDS), ((1.0001,), HOLDS), ((0.5, 1), VACUOUS)]
)
def test_vacuous_means_nowhere_better_than_the_trivial_bound(horizons, verdict):
    """With L = 2, eta = 1/2, Delta = 1 and no noise the bound is 4/T, the trivial one 4."""
    frame = bound_rows({t: [0.01] * 3 for t in horizons})
    bound, said = bound_of(frame.assign(smoothness=2.0, step_size=0.5, grad_variance=0.0, loss_decrease=1.0))
    assert bound.verdict == verdict
    assert ("exceeds 2 L Delta" in said) == (verdict == VACUOUS)


def test_two_seeds_at_every_horizon_are_enough_for_the_bound():
    assert bound_of(bound_rows({100: [0.5, 0.5], 400: [0.2, 0.2]}))[0].verdict == HOLDS


def test_a_stratum_without_a_name_is_a_stratum():
    """Two pilots at site q and one where the site is not given: there the runs are the units, and so everywhere."""
    frame = bound_rows({100: [0.5] * 4})
    parts = [
        frame.assign(site="q", pilot_seed=[10.0, 10.0, 11.0, 11.0]),
        frame.assign(site=None, pilot_seed=12.0, grad_norm_sq=0.25),
    ]
    both = pd.concat(parts, ignore_index=True)
    both[["grad_variance", "loss_decrease"]] *= np.array([1.0, 1.0, 1.0, 2.0] * 2)[:, None]
    first, second = convergence.check_bound(both, ["site", "steps"])[0].details["cells"]
    assert (first["site"], first["lhs"]) == ("q", 0.5) and (second["lhs"], pd.isna(second["site"])) == (0.25, True)
    for cell in (first, second):
        assert (cell["rhs"], cell["rhs_standard_error"]) == (1.25, 0.25)
    both.loc[7, "step_size"] = 3.0  # one run beyond 2/L takes its horizon away, in its own stratum
    (left,) = convergence.check_bound(both, ["site", "steps"])[0].details["cells"]
    assert left["site"] == "q"


def test_only_a_rank_that_varies_is_a_stratum_of_the_bound():
    frame = bound_rows({100: [0.5] * 3, 400: [0.5] * 3})
    alone = judged(frame.assign(rank=4.0), "convergence").bound.details["cells"]
    assert len(alone) == 2 and "rank" not in alone[0]
    two = judged(pd.concat([frame.assign(rank=4.0), frame.assign(rank=8.0)]), "convergence").bound.details["cells"]
    assert [(cell["rank"], cell["steps"]) for cell in two] == [(4, 100), (4, 400), (8, 100), (8, 400)]


def test_one_stratum_with_a_fixed_step_is_enough():
    steps = np.array([100.0, 400.0, 1600.0])
    paced = pd.DataFrame({"rank": 4.0, "steps": steps, "step_size": 1 / np.sqrt(steps)})
    fixed = pd.DataFrame({"rank": 8.0, "steps": steps, "step_size": 0.1})
    both = pd.concat([paced, fixed])
    assert convergence.fixed_step(both, ["rank"])
    assert not convergence.fixed_step(paced, ["rank"])
    assert not convergence.fixed_step(both, [])
    assert convergence.fixed_step(fixed, [])
    assert not convergence.fixed_step(fixed.iloc[:1], [])  # one horizon is no fixed step
    assert not convergence.fixed_step(fixed.assign(step_size=[0.1, np.nan, 0.1]), [])
    assert convergence.fixed_step(fixed.assign(step_size=[0.1, 0.1 * (1 + 5e-7), 0.1]), [])
    assert not convergence.fixed_step(fixed.assign(step_size=[0.1, 0.1 * (1 + 2e-6), 0.1]), [])
    assert not convergence.fixed_step(fixed.drop(columns="step_size"), [])
    assert convergence.fixed_step(fixed.iloc[:2], [])
    unnamed = pd.concat([paced.assign(site="q"), fixed.assign(site=None)])
    assert convergence.fixed_step(unnamed, ["site"])


def tuned_rows(horizons, factor=1.0):
    """L = 2, Delta = 3, sigma^2 = 3/2: T_x = 2, and the tuned step is min(1/2, sqrt(2/T)). Horizons in units of T_x."""
    steps = 2 * np.array(horizons, dtype=float)
    step = np.minimum(0.5, np.sqrt(2.0 / steps)) * factor
    return pd.DataFrame(
        {"steps": steps, "step_size": step, "smoothness": 2.0, "grad_variance": 1.5, "loss_decrease": 3.0}
    )


def test_ten_times_the_crossover_is_the_first_horizon_that_counts():
    found = convergence._before_crossover(tuned_rows([1, 5, 9.99, 10, 20]), [])
    assert found.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("factor", "early"), [(1.24, True), (1.26, False), (1 / 1.24, True), (1 / 1.26, False)])
def test_a_step_within_a_quarter_of_the_tuned_one_is_the_tuned_one(factor, early):
    assert convergence._before_crossover(tuned_rows([1, 5, 20], factor), []).tolist() == [early, early, False]


def test_a_step_paced_with_the_horizon_has_no_crossover_in_its_own_stratum():
    """eta sqrt T is the same at 5, 8, 20 T_x (the tuned step there) and not at 1, 5, 20."""
    paced, other = tuned_rows([5, 8, 20]), tuned_rows([1, 5, 20])
    assert not convergence._before_crossover(paced, []).any()
    almost = paced.assign(step_size=paced["step_size"] * [1.0, 1.0005, 1.0])
    assert not convergence._before_crossover(almost, []).any()
    drifting = paced.assign(step_size=paced["step_size"] * [1.0, 1.002, 1.0])
    assert convergence._before_crossover(drifting, []).tolist() == [True, True, False]
    both = pd.concat([paced.assign(rank=4.0), other.assign(rank=8.0)], ignore_index=True)
    assert convergence._before_crossover(both, ["rank"]).tolist() == [False] * 3 + [True, True, False]
    unnamed = pd.concat([paced.assign(site="q"), other.assign(site=None)], ignore_index=True)
    assert convergence._before_crossover(unnamed, ["site"]).tolist() == [False] * 3 + [True, True, False]


@pytest.mark.parametrize(
    ("bound_slope", "ratio_slope", "half", "cause"),
    [
        (-0.4 + NEAR, 0.0, 0.05, "premise"),
        (-0.4, 0.0, 0.05, "unclear"),
        (-0.4 - NEAR, 0.0, 0.05, "unclear"),
        (-0.3, 0.05, 0.05 - NEAR, "premise"),
        (-0.3, 0.05, 0.05 + NEAR, "unclear"),
        (-0.5, 0.2, 0.1 - NEAR, "rate"),
        (-0.5, 0.2, 0.1 + NEAR, "unclear"),
        (-0.3, 0.2, 0.1 - NEAR, "rate"),
    ],
)
def test_the_cause_of_a_slow_rate_by_its_two_slopes(bound_slope, ratio_slope, half, cause, monkeypatch):
    """Premise: the bound falls more slowly than -.5 + .1, and measured/bound rises by less than .1 with 95 %."""
    slopes = iter([window(at(bound_slope)), window(at(ratio_slope, half))])
    monkeypatch.setattr(convergence, "look", lambda *_, **__: next(slopes))
    found, said, fields = convergence._cause(bound_rows({100: [0.5] * 3}), [], 0.1)
    assert found == cause
    assert fields["bound_slope"] == bound_slope
    assert fields["ratio_slope"]["ci95"] == pytest.approx([ratio_slope - half, ratio_slope + half])
    assert f"falls as T^{bound_slope:.2f}, and measured/bound changes as T^{ratio_slope:+.2f}" in said


def test_constants_at_one_horizon_leave_the_cause_unclear(rng):
    frame = gradient_table(-0.25, Design(noise=0.1), rng).assign(step_size=0.1, smoothness=1.0, loss_decrease=1.0)
    frame["grad_variance"] = np.where(frame["steps"] == frame["steps"].min(), 1e3, np.nan)
    frame["step_size"] = 0.1 / np.sqrt(frame["steps"])
    report = judged(frame, "convergence")
    assert (report.verdict, report.fields["cause"]) == (REFUTED, "unclear")
    assert "bound_slope" not in report.fields
    assert report.reasons[0].endswith("without the bound's constants the cause cannot be told")


def test_what_decides_is_said_first_then_the_window_then_the_bound(rng):
    """A fixed step, three seeds, and constants."""
    frame = quadratic_table(Design(seeds=3), rng, step=0.05)
    report = judged(frame, "convergence")
    assert report.exponents["steps"].rate == UNTESTABLE
    starts = ["steps untestable: the step size is the same", "steps second tier", "the bound holds"]
    places = [next(i for i, r in enumerate(report.reasons) if r.startswith(start)) for start in starts]
    assert places[0] == 0 and places == sorted(places)


def test_what_the_bound_lacks_is_named(rng):
    frame = gradient_table(-0.5, Design(noise=0.1), rng).assign(smoothness=1.0, loss_decrease=1.0)
    report = judged(frame, "convergence")
    assert report.bound.verdict == NOT_EVALUATED
    assert "the bound is not evaluated without step_size, grad_variance" in report.reasons
    assert report.fields["cause"] is None


def test_rows_that_lack_a_constant_are_counted_where_there_are_any():
    frame = bound_rows({t: [0.5] * 5 for t in (100, 400, 1600, 6400, 25600)})
    assert not any("lack a constant" in r for r in judged(frame, "convergence").reasons)
    frame.loc[3, "smoothness"] = np.nan
    remark = "1 of 25 rows lack a constant of the bound and do not enter it"
    assert remark in judged(frame, "convergence").reasons


def test_six_horizons_are_listed_at_most():
    assert convergence._listed(np.arange(1.0, 9.0)) == "1, 2, 3, 4, 5, 6"


def test_only_short_horizons_leave_no_exponent():
    """Every horizon below 10 T_x at the tuned step: no number, and what to run."""
    frame = pd.concat([tuned_rows([1, 2, 5, 9]).assign(seed=float(s), grad_norm_sq=0.1) for s in range(3)])
    report = judged(frame, "convergence")
    exponent = report.exponents["steps"]
    assert (report.verdict, exponent.verdict) == (UNTESTABLE, UNTESTABLE)
    assert exponent.claimed == -0.5 and np.isnan(exponent.estimate)
    assert any("run longer horizons or a noisier minibatch" in r for r in report.reasons)
    assert any("T = 2, 4, 10, 18 lie below 10 T_x" in r for r in report.reasons)
    assert (report.cells, report.seeds) == (4, 3)


# --- information ---


def information_rows(best, lower=(0.5, 0.6, 0.7), ceiling=10.0):
    """Ratios of five seeds: `best` at the largest of four clone weights, rising below it."""
    columns = [np.full(5, share) for share in lower] + [np.asarray(best)]
    return pd.DataFrame(
        {"clone_weight": float(w), "seed": float(s), "mutual_information": ceiling * v, "mi_ceiling": ceiling}
        for w, column in enumerate(columns)
        for s, v in enumerate(column)
    )


@pytest.mark.parametrize(
    ("limit", "side", "shift", "word"),
    [
        (0.95, 1, NEAR, CONSISTENT),
        (0.95, 1, -NEAR, INCONCLUSIVE),
        (0.90, -1, NEAR, INCONCLUSIVE),
        (0.90, -1, -NEAR, REFUTED),
    ],
)
def test_the_limits_of_the_ceiling_ratio(limit, side, shift, word):
    """Its 95 % interval starts at .95, or ends at .90."""
    centre = limit + side * half_width(0.01, 0.95) + shift
    report = judged(information_rows(centre + 0.01 * SHAPE), "information")
    field = report.fields["ceiling_ratio"]
    assert (report.verdict, field["verdict"]) == (word, word)
    assert field["estimate"] == pytest.approx(centre)
    for level, key in ((0.90, "ci90"), (0.95, "ci95")):
        half = half_width(0.01, level)
        assert field[key] == pytest.approx([centre - half, centre + half])
    assert field["claimed"] == 1.0
    assert report.exponents["clone_weight"].verdict == CONSISTENT
    assert report.exponents["clone_weight"].estimate == pytest.approx(1.0)
    assert report.exponents["clone_weight"].claimed == 1.0


def test_the_intervals_of_the_trend_are_those_of_the_mean_over_seeds():
    """One seed with two neighbours swapped among four weights: its rho is 1 - 6 x 2 / (4 x 15) = .8."""
    rows = information_rows(np.full(5, 0.97))
    rows.loc[(rows["seed"] == 0) & (rows["clone_weight"] == 0), "mutual_information"] = 6.5  # above the 6 of the next
    trend = judged(rows, "information").exponents["clone_weight"]
    error = np.std([0.8, 1, 1, 1, 1], ddof=1) / np.sqrt(5)
    assert trend.estimate == pytest.approx(0.96)
    for interval, quantile in ((trend.ci90, 0.95), (trend.ci95, 0.975)):
        half = special.stdtrit(4, quantile) * error
        assert (interval.low, interval.high) == pytest.approx((0.96 - half, 0.96 + half))


@pytest.mark.parametrize(
    ("p", "word", "trend", "direction"),
    [
        ((0.0099, 0.99), CONSISTENT, CONSISTENT, "I rises"),
        ((0.01, 0.99), INCONCLUSIVE, INCONCLUSIVE, "no clear trend"),
        ((0.99, 0.0099), REFUTED, REFUTED, "I falls"),
        ((0.99, 0.01), INCONCLUSIVE, INCONCLUSIVE, "no clear trend"),
    ],
)
def test_the_trend_is_held_to_one_percent(p, word, trend, direction, monkeypatch):
    monkeypatch.setattr(information, "trend_test", lambda *_: p)
    report = judged(information_rows(0.97 + 0.001 * SHAPE), "information")
    assert (report.verdict, report.exponents["clone_weight"].verdict) == (word, trend)
    assert report.exponents["clone_weight"].rate == trend
    assert direction in report.reasons[0]
    details = report.exponents["clone_weight"].details
    assert (details["p_rising"], details["p_falling"]) == p


def test_the_trend_is_permuted_up_to_fifty_seeds():
    """Multiples of 1/20001 up to 50 seeds, the normal limit with variance 1/(k - 1) per seed beyond."""
    for seeds in (50, 51):
        rho = np.full(seeds, 0.1)
        rising, falling = information.trend_test(rho, [np.array([1.0, 2.0, 3.0])] * seeds)
        z = 0.1 * np.sqrt(2 * seeds)
        normal = [float(special.ndtr(-z)), float(special.ndtr(z))]
        assert [rising, falling] == pytest.approx(normal, abs=0.05 if seeds == 50 else 1e-12)
        whole = rising * 20001
        assert (abs(whole - round(whole)) < 1e-6) == (seeds == 50)


def test_equal_information_has_no_trend():
    assert information._correlation(np.full(4, 2.5), np.arange(4)).item() == 0.0


def test_a_correlation_has_no_scale():
    for scale in (1e-6, 1.0, 1e6):
        found = information._correlation(scale * np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]]), np.arange(3))
        assert found == pytest.approx([1.0, 0.5])


def test_the_smallest_p_value_is_one_of_the_permutations():
    """Ten seeds in perfect order: chance does that once in 24^10."""
    rising, falling = information.trend_test(np.ones(10), [np.arange(4.0)] * 10)
    assert (rising, falling) == (1 / 20001, 1.0)


def test_the_worst_floor_is_the_largest_over_the_weights():
    frame = information_rows(np.full(5, 0.97)).assign(mi_floor=1.0)
    frame.loc[frame["clone_weight"] == 1, "mi_floor"] = 5.94  # of 6
    assert information._floor(frame, 0.95) == (False, pytest.approx(0.99))
    assert judged(frame, "information").bound.worst_ratio == pytest.approx(0.99)
    assert information.judge_site("x", frame.assign(mi_floor=0.1)).worst_bound_ratio == pytest.approx(0.97)
    assert information._floor(frame.assign(mi_floor=np.nan), 0.95) == (False, 0.0)
    assert information._floor(frame.drop(columns="mi_floor"), 0.95) == (False, 0.0)
    frame.loc[frame["clone_weight"] == 0, "mutual_information"] = 0.0  # no ratio there
    assert information._floor(frame.assign(mi_floor=0.0), 0.95) == (False, 0.0)


def test_one_weight_below_the_floor_is_a_violation():
    frame = information_rows(np.full(5, 0.97)).assign(mi_floor=1.0)
    frame.loc[frame["clone_weight"] == 1, "mi_floor"] = 6.5
    report = judged(frame, "information")
    assert (report.bound.verdict, report.verdict) == (VIOLATED, REFUTED)
    assert any("lies below its proven lower bound" in r for r in report.reasons)
    assert report.fields["ceiling_ratio"]["verdict"] == CONSISTENT


def test_seeds_at_too_few_weights_are_untestable():
    """Ten seeds, each at two of four weights: no order of three in any seed."""
    rows = information_rows(0.97 + 0.001 * SHAPE)
    rows["seed"] += 5 * (rows["clone_weight"] >= 2)
    report = judged(rows, "information")
    assert report.verdict == UNTESTABLE
    reason = report.reasons[0]
    assert reason.endswith("no seed was run at 3 clone weights: repeat each seed over all of them")
    (site,) = report.fields["sites"]
    assert (site["verdict"], site["p_rising"]) == (UNTESTABLE, 1.0)
    assert report.exponents["clone_weight"].details["p_falling"] == 1.0
    assert report.exponents["clone_weight"].verdict == report.fields["ceiling_ratio"]["verdict"] == UNTESTABLE
    assert np.isnan(site["trend"]) and np.isnan(report.exponents["clone_weight"].estimate)
    three = judged(rows[(rows["clone_weight"] < 3)], "information")
    assert "no seed was run at 3 clone weights" in three.reasons[0]
    two = judged(rows[rows["clone_weight"] < 2], "information")  # the table lacks weights: said once
    assert "clone_weight takes 2 values and 3 are needed" in two.reasons[0]
    assert "no seed was run" not in two.reasons[0]


def test_seeds_with_three_weights_count_for_the_trend():
    rows = information_rows(0.97 + 0.001 * SHAPE)
    rows = rows[
        ~((rows["seed"] == 0) & (rows["clone_weight"] < 2)) & ~((rows["seed"] == 1) & (rows["clone_weight"] == 0))
    ]
    assert information.judge_site("x", rows).spearman == pytest.approx(np.ones(4))


def test_the_best_weight_has_the_largest_mean_ratio():
    """Neither the largest information nor the largest single ratio."""
    rows = information_rows(np.full(5, 0.9))
    rows.loc[rows["clone_weight"] == 2, "mutual_information"] = 9.5
    rows.loc[(rows["clone_weight"] == 1) & (rows["seed"] == 0), "mutual_information"] = 12.0
    rows.loc[rows["clone_weight"] == 3, ["mutual_information", "mi_ceiling"]] = 18.0, 20.0
    site = information.judge_site("x", rows)
    assert (site.best_weight, site.ratio) == (2.0, pytest.approx(0.95))
    field = judged(rows, "information").fields["ceiling_ratio"]
    assert (field["clone_weight"], field["site"]) == (2.0, "all rows")
    rows.loc[rows["clone_weight"] == 1, "mutual_information"] = [5.0, 5.0, 5.0, 19.0, 19.0]  # mean 1.06, median .5
    assert information.judge_site("x", rows).best_weight == 1.0


@pytest.mark.parametrize(("sites", "violated"), [(1, True), (2, False)])
def test_the_ceiling_is_held_to_the_level_over_sites_and_weights(sites, violated):
    """A mean above 1 by an amount between the half widths at .05/4 and at .05/8."""
    between = [half_width(0.01, 1 - 0.05 / n) for n in (4, 8)]
    rows = information_rows(1.0 + np.mean(between) + 0.01 * SHAPE)
    found = information.judge_site("x", rows, sites)
    assert found.ceiling_violated == violated
    assert found.bound == (VIOLATED if violated else INCONCLUSIVE)
    below = information_rows(1.0 + between[0] - NEAR + 0.01 * SHAPE)
    assert not information.judge_site("x", below).ceiling_violated


def test_the_worst_site_comes_first():
    """By precedence, then by the smaller ratio; every site has its fields."""
    shares = {"a": 0.97, "b": 0.85, "c": 0.80, "d": 0.92}
    parts = [information_rows(v + 0.001 * SHAPE).assign(site=name) for name, v in shares.items()]
    short = information_rows(0.7 + 0.001 * SHAPE).assign(site="e")
    report = judged(pd.concat([*parts, short[short["seed"] < 2]]), "information")
    sites = report.fields["sites"]
    assert [(s["site"], s["verdict"]) for s in sites] == [
        ("site=c", REFUTED),
        ("site=b", REFUTED),
        ("site=e", UNTESTABLE),
        ("site=d", INCONCLUSIVE),
        ("site=a", CONSISTENT),
    ]
    assert [s["estimate"] for s in sites] == pytest.approx([0.80, 0.85, 0.70, 0.92, 0.97])
    assert set(sites[0]) == {
        "claimed", "estimate", "ci90", "ci95", "verdict", "site", "clone_weight", "trend", "p_rising",
    }  # fmt: skip
    assert sites[0]["trend"] == pytest.approx(1.0) and sites[0]["clone_weight"] == 3.0
    assert report.fields["ceiling_ratio"]["site"] == "site=c"
    assert report.exponents["clone_weight"].details["site"] == "site=c"
    assert report.reasons[0].startswith("site=c: REFUTED: I rises with lambda (mean Spearman +1.00")
    assert report.reasons[2].startswith("site=e: untestable: ")
    assert report.reasons[3].startswith("site=d: INCONCLUSIVE: ")
    assert report.reasons[4].startswith("site=a: CONSISTENT: ")
    assert (report.cells, report.seeds) == (20, 5)
    assert report.bound.verdict == HOLDS and report.bound.worst_ratio == pytest.approx(0.97)


def test_sites_are_told_apart_by_what_varies():
    """Rows that give no site are a site of their own; a rank that all share tells nothing apart."""
    good, bad = (information_rows(v + 0.001 * SHAPE).assign(rank=8.0) for v in (0.97, 0.80))
    report = judged(pd.concat([good.assign(site="q"), bad.assign(site=None)]), "information")
    assert [(s["site"], s["verdict"]) for s in report.fields["sites"]] == [
        ("site=nan", REFUTED),
        ("site=q", CONSISTENT),
    ]
    assert (report.cells, len(report.points)) == (8, 8)
    assert judged(good, "information").fields["ceiling_ratio"]["site"] == "all rows"
    assert judged(good.assign(site="q"), "information").fields["ceiling_ratio"]["site"] == "site=q"


def test_points_of_the_information():
    one_off = np.array([0.96, 0.96, 0.96, 0.96, 1.01])
    last = judged(information_rows(one_off), "information").points.iloc[-1]
    half = stats.t.ppf(0.975, 4) * np.std(one_off, ddof=1) / np.sqrt(5)
    assert [last["mean"], last["low"], last["high"]] == pytest.approx([0.97, 0.97 - half, 0.97 + half])
    assert [last["mutual_information"], last["mi_ceiling"]] == pytest.approx([9.7, 10.0])


# --- dynamics ---


def arm_rows(log_centre, spread=0.1, **arm):
    divergence = np.exp(log_centre + spread * SHAPE)
    return pd.DataFrame(
        {"seed": np.arange(5.0), "dynamics_divergence": 0.2 * divergence, "dynamics_baseline": 0.2, **arm}
    )


@pytest.mark.parametrize(
    ("limit", "side", "shift", "word", "said"),
    [
        (1.5, -1, -NEAR, CONSISTENT, "the upper limit is at most 1.5"),
        (1.5, -1, NEAR, INCONCLUSIVE, "neither ends by 1.5 nor starts at 2"),
        (2.0, 1, -NEAR, INCONCLUSIVE, "neither ends by 1.5 nor starts at 2"),
        (2.0, 1, NEAR, REFUTED, "the lower limit is at least 2"),
    ],
)
def test_the_limits_of_the_divergence(limit, side, shift, word, said):
    centre = np.log(limit) + side * half_width(0.1, 0.95) + shift
    report = judged(arm_rows(centre), "dynamics")
    assert report.verdict == word
    assert said in report.reasons[0] and report.reasons[0].startswith(f"all rows: {word}: D/D_0 = ")
    field = report.fields["divergence_ratio"]
    assert (field["claimed"], field["verdict"], field["arm"]) == (1.0, word, {})
    assert field["estimate"] == pytest.approx(np.exp(centre))
    for level, key in ((0.90, "ci90"), (0.95, "ci95")):
        half = half_width(0.1, level)
        assert field[key] == pytest.approx(np.exp([centre - half, centre + half]))
    assert "reason" not in field and report.bound.verdict == NOT_EVALUATED


@pytest.mark.parametrize(("shift", "word"), [(NEAR, REFUTED), (-NEAR, INCONCLUSIVE)])
def test_a_refutation_is_held_to_the_level_over_the_arms(shift, word):
    """The worst of four arms: its interval at 1 - .05/4 starts at 2."""
    centre = np.log(2.0) + half_width(0.1, 1 - 0.05 / 4) + shift
    arms = [arm_rows(centre, site="q"), *(arm_rows(0.0, site=name) for name in "abc")]
    report = judged(pd.concat(arms), "dynamics")
    assert report.verdict == word
    assert report.fields["divergence_ratio"]["arm"] == {"site": "q"}
    assert ("only an interval of 98.75% refutes" in report.reasons[0]) == (word == INCONCLUSIVE)
    assert [arm["arm"]["site"] for arm in report.fields["arms"]] == ["a", "b", "c", "q"]
    assert report.cells == 4
    assert report.points["mean"].tolist() == pytest.approx([1.0, 1.0, 1.0, np.exp(centre)])


def test_a_divergence_of_exactly_two_is_not_preserved():
    frame = arm_rows(0.0).assign(dynamics_divergence=2.0, dynamics_baseline=1.0)
    assert judged(frame, "dynamics").verdict == REFUTED


def test_arms_are_told_apart_by_what_varies():
    """By a site that some rows do not give, and not by a rank that all share."""
    frame = arm_rows(0.0).assign(rank=8.0)
    alone = judged(frame, "dynamics")
    assert [arm["arm"] for arm in alone.fields["arms"]] == [{}]
    unnamed = arm_rows(np.log(4.0)).assign(rank=8.0, site=None)
    report = judged(pd.concat([frame.assign(site="q"), unnamed]), "dynamics")
    assert report.verdict == REFUTED
    first, second = report.fields["arms"]
    assert first["arm"] == {"site": "q"} and pd.isna(second["arm"]["site"])
    points = report.points.iloc[1]
    half = half_width(0.1, 0.95)
    assert [points["mean"], points["low"], points["high"]] == pytest.approx([4, 4 * np.exp(-half), 4 * np.exp(half)])


def test_of_equally_bad_arms_the_larger_divergence_is_the_worst():
    parts = [arm_rows(np.log(value), rank=rank) for rank, value in ((4.0, 3.0), (8.0, 5.0), (16.0, 4.0), (32.0, 1.0))]
    report = judged(pd.concat(parts), "dynamics")
    assert report.fields["divergence_ratio"]["arm"] == {"rank": 8.0}
    assert report.reasons[0].startswith("rank=4: REFUTED")
    assert report.reasons[3].startswith("rank=32: CONSISTENT")


@pytest.mark.parametrize(("seeds", "word"), [(5, CONSISTENT), (4, UNTESTABLE), (3, UNTESTABLE)])
def test_fewer_than_five_seeds_say_nothing_about_the_dynamics(seeds, word):
    report = judged(arm_rows(0.0, spread=0.01).iloc[:seeds], "dynamics")
    assert report.verdict == word
    assert (f"{seeds} seeds per cell and 5 are needed" in report.reasons[0]) == (word == UNTESTABLE)


def test_zero_divergence_is_the_direct_student_itself():
    frame = arm_rows(0.0)
    frame.loc[3, "dynamics_divergence"] = 0.0
    with pytest.raises(InputError, match=r"dynamics_divergence, row \d: zero, so the clone is the direct student"):
        dynamics.judge(table_from_frame(frame), 0.1)


def test_the_divergence_ratio_is_a_geometric_mean():
    estimate, interval = dynamics.ratio_interval(np.array([1.0, 8.0]), np.array([1.0, 2.0]), 0.95)
    assert estimate == pytest.approx(2.0)
    assert interval.low * interval.high == pytest.approx(4.0)


# --- generalization ---


@pytest.mark.parametrize(
    ("name", "b", "c", "law"),
    [
        ("slow", 0.5, 0.5, "r^0.5 N^-0.5"),
        ("abstract", 1.0, 0.5, "r^1 N^-0.5"),
        ("fast", 1.0, 1.0, "r^1 N^-1"),
    ],
)
def test_the_regime_is_named(name, b, c, law, rng):
    report = judged(gap_table(b, c, Design(noise=0.05), rng), "generalization")
    assert set(report.fields["regimes"]) == {"slow", "abstract", "fast"}
    assert [n for n, word in report.fields["regimes"].items() if word == CONSISTENT] == [name]
    said = [r for r in report.reasons if "regime" in r]
    assert said == [f"both exponents equal those of the {name} regime, gap ~ {law}"]
    assert report.bound.verdict == NOT_EVALUATED


def test_which_shapes_have_their_own_constant():
    shape = ["d_in", "d_out"]

    def strata(ranks, d_in, d_out):
        frame = pd.DataFrame({"rank": ranks, "d_in": d_in, "d_out": d_out})
        return generalization._shape_strata(frame, shape)

    assert strata([4, 8, 4, 8], [64, 64, 64, 64], [32, 32, 32, 32]) == []  # one shape
    assert strata([4, 8, 4, 8], [64, 64, 128, 128], [32, 32, 32, 32]) == ["d_in"]
    assert strata([4, 8, 4, 8], [64, 64, 128, 128], [32, 32, 16, 16]) == shape
    assert strata([4, 8, 16, 32], [64, 128, 256, 512], [32, 32, 32, 32]) == []  # tied to the rank
    assert strata([4, 8, 16, 32], [64, 64, 256, 512], [32, 32, 32, 32]) == ["d_in"]  # one of them is not
    assert generalization._shape_strata(pd.DataFrame({"rank": [4, 8]}), []) == []


# --- optimal_rank ---

RANKS = np.array([2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0])  # r* counts between 4 and 16
NINE_TENTHS = 10**0.9


def test_the_window_holds_four_values_over_nine_tenths_of_a_decade():
    gate = optimal_rank.window_gate(RANKS, 1000 * NINE_TENTHS ** np.array([0, 0.3, 0.6, 1.0]), np.inf)
    assert (gate.name, gate.tier, gate.reason) == ("window", gates.FIRST, "")
    more = optimal_rank.window_gate(RANKS[::-1], 1000 * NINE_TENTHS ** np.linspace(1, 0, 6), np.inf)
    assert more.tier == gates.FIRST
    for samples in (1000 * NINE_TENTHS ** np.array([0, 0.3, 0.6, 0.999]), 1000 * NINE_TENTHS ** np.array([0, 0.5, 1])):
        few = optimal_rank.window_gate(RANKS, samples, np.inf)
        assert few.tier == gates.FAILED
        said = f"(4 to 16) N grows by a factor of 16, in which the design has {len(samples)} values"
        assert said in few.reason and "add values of samples between" in few.reason
        assert len(few.needed) == 4 and {tuple(run) for run in few.needed} == {("samples", "seeds")}
    apart = optimal_rank.window_gate(RANKS, np.array([100.0, 1000, 10000, 100000]), np.inf)
    assert apart.tier == gates.FAILED and "the design has 2 values" in apart.reason


@pytest.mark.parametrize(("high", "tier"), [(4 * 10**0.45, gates.FIRST), (4 * 10**0.449, gates.FAILED)])
def test_the_window_of_ranks_is_half_as_wide(high, tier):
    samples = 1000 * NINE_TENTHS ** np.array([0, 0.3, 0.6, 1.0])
    ranks = np.array([2.0, 4.0, 6.0, high, 32.0])
    gate = optimal_rank.window_gate(ranks, samples, np.inf)
    assert gate.tier == tier
    if tier == gates.FAILED:
        assert "r* counts between 4 and 11.2476, a factor of 2.81;" in gate.reason
        assert gate.reason.endswith("needs a factor of 2.82: add ranks beyond 12")
        assert gate.needed == ({"rank": 12.0, "seeds": gates.MIN_SEEDS},)


def test_a_small_matrix_closes_the_window():
    samples = 1000 * NINE_TENTHS ** np.array([0, 0.3, 0.6, 1.0])
    gate = optimal_rank.window_gate(RANKS, samples, 40.0)
    assert "r* counts between 4 and 10, a factor of 2.5;" in gate.reason
    assert gate.reason.endswith("add ranks beyond 12 in a matrix of side 48 or more")
    assert optimal_rank.window_gate(RANKS, samples, 48.0).tier == gates.FIRST
    small = optimal_rank.window_gate(RANKS[1:], samples, 16.0)  # window empty: 6 to 4
    assert small.tier == gates.FAILED and "a factor of 1;" in small.reason


def optima(rank, *, samples=None, grid=(2.0, 30.0), low=4.0, high=16.0, matrix=np.inf, interior=True):
    size = len(rank)
    samples = 1000 * 2.0 ** np.arange(size) if samples is None else np.asarray(samples, dtype=float)
    log = np.log(np.asarray(rank, dtype=float))
    return Optima(
        samples, log, np.tile(log, (4, 1)), np.full(size, np.log(grid[0])), np.full(size, np.log(grid[1])),
        np.full(size, np.log(low)), np.full(size, np.log(high)), float(np.log(matrix / 4)),
        np.broadcast_to(np.array(interior), (size,)), np.ones((4, 3)), 3, 3.0,
    )  # fmt: skip


def test_four_optima_over_nine_tenths_of_a_decade_pass_the_gate():
    samples = 1000 * NINE_TENTHS ** np.array([0, 0.3, 0.6, 1.0])
    assert optimal_rank.optima_gate(optima([5, 7, 9, 12], samples=samples)).tier == gates.FIRST
    three = optimal_rank.optima_gate(optima([5, 7, 12], samples=samples[[0, 1, 3]]))
    assert three.tier == gates.FAILED
    assert f"seen only at N = 1000, {samples[1]:g}, {samples[3]:g}: 3 values of N over 0.90 decades" in three.reason
    samples[3] *= 0.999
    short = optimal_rank.optima_gate(optima([5, 7, 9, 12], samples=samples))
    assert short.tier == gates.FAILED and "4 values of N over 0.90 decades, and 4 over 0.9 are needed" in short.reason
    none = optimal_rank.optima_gate(None)
    assert (none.tier, none.reason) == (gates.FAILED, "no N was run at five ranks: add ranks")


def test_a_grid_that_ends_before_the_window_needs_ranks():
    """r* beyond the last rank but one at N = 4000 and 8000, in a matrix whose window ends at 64."""
    gate = optimal_rank.optima_gate(optima([5, 10, 31, 32], matrix=256.0, high=29.2, grid=(2.0, 29.2)))
    assert "at N = 4000 and above r* lies beyond the grid: add ranks up to 59 or more there" in gate.reason
    assert gate.needed == (
        {"rank": 59.0, "samples": 4000.0, "seeds": gates.MIN_SEEDS},
        {"rank": 59.0, "samples": 8000.0, "seeds": gates.MIN_SEEDS},
    )


def test_the_ranks_to_add_are_twice_the_last_but_one():
    gate = optimal_rank.optima_gate(optima([5, 10, 31, 32], matrix=256.0, high=30.0))
    assert gate.needed[0]["rank"] == 60.0


def test_a_window_that_is_crossed_between_two_n_needs_values_there():
    """Below it at N = 2000, beyond d/4 at 64000 where more ranks would not help."""
    found = optima([1.5, 3.0, 31, 32], samples=[1000, 2000, 64000, 128000], matrix=80.0)
    gate = optimal_rank.optima_gate(found)
    assert "was seen nowhere: 0 values of N over 0.00 decades" in gate.reason
    assert gate.reason.endswith("r* crosses the window between N = 2000 and 64000: add values of N there")
    assert gate.needed == tuple(
        {"samples": float(np.round(2000 * 2.0**k)), "seeds": gates.MIN_SEEDS} for k in (1, 2, 3, 4)
    )
    narrow = optimal_rank.optima_gate(optima([1.5, 3.0, 31], samples=[1000, 2000, 8000], matrix=80.0))
    assert "between N = 2000 and 8000: add values of N there (a factor of 4; a larger matrix" in narrow.reason


def test_one_side_of_the_window_lies_a_factor_of_two_outside():
    seen = optimal_rank.optima_gate(optima([5, 7, 9], samples=[1000, 2000, 4000]))
    assert "r* crosses the window between N = 500 and 8000: add values of N there" in seen.reason
    # 871 and 4595 lie within 15 % of N that the table has.
    assert [run["samples"] for run in seen.needed] == [1516.0, 2639.0]


def test_a_risk_without_a_minimum_needs_another_problem():
    """More than half unresolved; half are not enough to say so."""
    monotone = optimal_rank.optima_gate(optima([5, 7, 9, 12], interior=[True, False, False, False]))
    assert monotone.reason.endswith("the risk hardly depends on the rank: use hard labels, smaller N or more seeds")
    assert monotone.needed == ()
    half = optimal_rank.optima_gate(optima([5, 7, 9, 12], interior=[True, True, False, False]))
    assert "hardly depends" not in half.reason


def test_optima_that_fall_with_n_need_seeds():
    falling = optimal_rank.optima_gate(optima([20, 18, 3, 2.5]))
    assert falling.reason.endswith("r* does not grow steadily with N here: add seeds")
    assert falling.needed == ()


def test_no_n_with_five_ranks_is_untestable(rng):
    frame = risk_table(Surface(0.1, 1.0, 1.0, 1.0, 1.0, 1.0), Design(ranks=(4, 8, 16, 32)), rng)
    report = judged(frame, "optimal_rank")
    assert report.verdict == UNTESTABLE
    assert "samples untestable: no N was run at five ranks: add ranks" in report.reasons
    exponent = report.exponents["samples"].to_dict()
    assert (exponent["verdict"], exponent["claimed"]) == (UNTESTABLE, 0.5) and "optima" not in exponent
    assert report.points.empty and len(report.curves) == 20


def test_the_cost_of_a_rank_needs_two_ranks_and_is_no_outlier_s():
    one = pd.DataFrame({"rank": 8.0, "d_in": 64.0, "d_out": 32.0, "params": [1.0, 2.0]})
    assert optimal_rank.rank_cost(one) == RankCost(32.0, 96.0)
    rank = np.repeat([4.0, 8.0, 16.0], 3)
    params = 96 * rank * np.tile([1.0, 1.0, 7.0], 3)
    many = pd.DataFrame({"rank": rank, "d_in": 64.0, "d_out": 32.0, "params": params})
    assert optimal_rank.rank_cost(many) == RankCost(32.0, 96.0)
    for factor, sizes in ((1.04, 96.0), (1.06, None), (1 / 1.04, 96.0), (1 / 1.06, None)):
        scaled = many.assign(params=96 * rank * factor)
        assert optimal_rank.rank_cost(scaled).sizes == sizes, factor
    assert optimal_rank.rank_cost(many.drop(columns="d_in")) == RankCost(32.0, None)


def growth_words(word, *, corrected=(), bent=False, cost=RankCost(64.0), seen=None):  # noqa: B008
    estimate = SimpleNamespace(value=0.5, low=lambda _: 0.4, high=lambda _: 0.6)
    growth = SimpleNamespace(
        corrected=corrected, bent=bent, window=estimate, both=lambda _: SimpleNamespace(low=0.3, high=0.7),
        low=SimpleNamespace(value=0.8), top=SimpleNamespace(value=0.2),
    )  # fmt: skip
    return optimal_rank._explain(seen, growth, cost, word)


@pytest.mark.parametrize("word", [CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE])
def test_the_sentences_on_the_growth(word):
    loose = "r* grows more slowly than claimed: at most sqrt N holds, proportional to sqrt N does not"
    assert growth_words(word) == ([loose] if word == LOOSE else [])
    both = growth_words(word, corrected=(1,))
    two = "two exponents of r*: 0.500 [0.400, 0.600] in the window, and 0.300 to 0.700 corrected"
    assert any(two in said for said in both) == (word in (CONSISTENT, HOLDS, INCONCLUSIVE))
    bent = "the growth of r* is bent: exponent 0.80 in the lower half of the window and 0.20 in the upper"
    assert bent in growth_words(word, bent=True)
    unknown = growth_words(word, cost=RankCost())
    assert any("d_in and d_out are not given" in said for said in unknown) == (word == REFUTED)
    left = growth_words(word, seen=optima([5, 7, 20]))
    assert left[-1] == "not in the fit: r*(4000) = 20, outside the window"
    assert optimal_rank._explain(None, None, RankCost(64.0), word) == []


GRID = Design(ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48), samples=(1000, 2000, 4000, 8000, 16000), noise=0.005)


@pytest.fixture(scope="module")
def grown():
    """A risk surface with alpha = beta = gamma = 1 (rho = 1/2), its optima and their growth."""
    rng = np.random.default_rng(11)
    planted = Surface(0.0, 1.0, 1.0, 1000 / 5.0**2, 1.0, 1.0)
    frame = risk_table(planted, GRID, rng, dimension=4096).assign(approx_loss=lambda f: 1 / f["rank"])
    cells = optimal_rank.build_cells(frame, ["rank", "samples"], "test_loss")
    found = find_optima(cells, 4096.0, 200)
    return frame, found, fit_growth(found, RankCost(4096.0))


def leg(grown, gamma=1.0, margin=0.1, keep=None, **columns):
    """The consistency leg with gap ~ r N^-gamma."""
    frame, found, growth = grown
    noise = np.exp(0.01 * np.random.default_rng(5).standard_normal(len(frame)))
    frame = frame.assign(gap=40 * frame["rank"] * frame["samples"] ** -gamma * noise, **columns)
    if keep is not None:
        frame.loc[~keep(frame), "gap"] = np.nan
    return optimal_rank._consistency(frame, found, growth, margin)


def test_the_consistency_leg_has_three_words(grown):
    agrees = leg(grown)
    assert agrees["verdict"] == CONSISTENT
    assert [agrees[c] for c in ("alpha", "beta", "gamma")] == pytest.approx([1.0, 1.0, 1.0], abs=0.03)
    assert agrees["predicted"] == pytest.approx(0.5, abs=0.02)
    assert agrees["estimate"] == pytest.approx(grown[2].window.value - agrees["predicted"])
    low, high = agrees["ci95"]
    assert low < agrees["ci90"][0] < agrees["estimate"] < agrees["ci90"][1] < high
    for gamma in (0.6, 1.4):  # predicts .3 and .7
        off = leg(grown, gamma)
        assert off["verdict"] == REFUTED
        assert off["estimate"] == pytest.approx(0.5 - gamma / 2, abs=0.03)
        low, high = off["ci95"]
        near = min(abs(low), abs(high))  # the margin that the interval only just leaves or touches
        assert leg(grown, gamma, margin=near - NEAR)["verdict"] == REFUTED
        assert leg(grown, gamma, margin=near + NEAR)["verdict"] == INCONCLUSIVE
        far = max(abs(v) for v in off["ci90"])
        assert leg(grown, gamma, margin=far + NEAR)["verdict"] == CONSISTENT
        assert leg(grown, gamma, margin=far - NEAR)["verdict"] == INCONCLUSIVE


def test_the_consistency_leg_needs_three_ranks_three_n_and_four_losses(grown):
    assert leg(grown, keep=lambda f: f["rank"].isin([6, 8, 12])) is not None
    assert leg(grown, keep=lambda f: f["rank"].isin([6, 8])) is None
    assert leg(grown, keep=lambda f: f["samples"].isin([1000, 4000, 16000])) is not None
    assert leg(grown, keep=lambda f: f["samples"].isin([1000, 16000])) is None
    rank = grown[0]["rank"]
    losses = {n: (1 / rank).where(rank.isin([6, 8, 12, 16][:n])) for n in (3, 4)}
    assert leg(grown, approx_loss=losses[4]) is not None
    assert leg(grown, approx_loss=losses[3]) is None
    assert leg(grown, approx_loss=1 / rank - 0.1) is None  # not positive
    assert leg(grown, approx_loss=np.nan) is None
    assert leg(grown, keep=lambda f: f["rank"] < 0) is None
    assert leg(grown, keep=lambda f: f["seed"] > 0) is None  # other seeds than those of the optima


def test_a_known_best_loss_is_taken_off_where_it_is_below_all(grown):
    loss = 1 / grown[0]["rank"]
    plain = leg(grown)["alpha"]
    assert leg(grown, approx_loss=loss + 5.0, teacher_loss=5.0)["alpha"] == pytest.approx(plain, rel=1e-6)
    for known in (0.05, float(loss.min())):  # not below all of the losses: ignored
        assert leg(grown, approx_loss=loss, teacher_loss=known)["alpha"] == pytest.approx(plain)
    two = np.where(grown[0]["seed"] > 0, 5.0, 4.0)  # nor is it known where rows differ
    assert leg(grown, approx_loss=loss + 5.0, teacher_loss=two)["alpha"] == pytest.approx(
        leg(grown, approx_loss=loss + 5.0)["alpha"]
    )


def test_an_unknown_best_loss_is_fitted_where_the_losses_show_one(grown):
    loss = 1 / grown[0]["rank"]
    assert leg(grown, approx_loss=loss + 0.3)["alpha"] == pytest.approx(1.0, abs=0.01)
    # Scatter is none, though an offset fitted to it would move the exponent to 1.3.
    ranks, scatter = np.array([4, 6, 8, 12, 16, 24]), np.array([1.05, 0.9, 1.05, 0.95, 0.95, 1.1])
    slope, _ = np.polyfit(np.log(ranks), np.log(scatter / ranks), 1)
    rough = loss * grown[0]["rank"].map(dict(zip(ranks, scatter, strict=True)))
    assert leg(grown, approx_loss=rough)["alpha"] == pytest.approx(-slope, abs=0.05)


def test_the_error_of_the_consistency_leg_is_that_over_seeds(grown):
    """Gaps so noisy that the optima's own error hardly counts: 2.78 standard errors of gamma / (alpha + beta)."""
    frame, found, growth = grown
    rng = np.random.default_rng(8)
    seeds = frame["seed"].to_numpy(dtype=int)
    tilt = 0.1 * rng.standard_normal(int(seeds.max()) + 1)  # seeds that differ in gamma
    gap = 40 * frame["rank"] * frame["samples"] ** -(1 + tilt[seeds])
    leg = optimal_rank._consistency(frame.assign(gap=gap), found, growth, 0.1)
    error = np.hypot(np.std((1 + tilt) / 2, ddof=1) / np.sqrt(len(tilt)), growth.window.standard_error)
    half = float(t_quantile(0.975, len(tilt) - 1)) * error
    assert (leg["ci95"][1] - leg["ci95"][0]) / 2 == pytest.approx(half, rel=0.25)


def test_the_optima_of_a_table_in_numbers():
    """ln risk = (ln r - c)^2: a minimum within, one below and one beyond the grid, one that no seed agrees on."""
    ranks = np.array([2.0, 4.0, 8.0, 16.0, 32.0])
    centres = {100: 7.0, 200: 2.2, 400: 31.0, 800: 9.0}
    frame = pd.DataFrame(
        {"rank": r, "samples": n, "seed": float(s), "test_loss": np.exp(np.log(r / c) ** 2)}
        for n, c in centres.items()
        for r in ranks
        for s in range(4)
    )
    last = (frame["samples"] == 800) & (frame["rank"] == 32)
    frame.loc[last, "test_loss"] = np.exp(np.log(32 / 9.0) ** 2) * np.array([0.1, 0.5, 2.0, 4.0])
    few = frame[frame["rank"] < 32].assign(samples=50.0)  # four ranks are not enough
    cells = optimal_rank.build_cells(pd.concat([few, frame]), ["rank", "samples"], "test_loss")
    found = find_optima(cells, 40.0, 50)
    assert found.samples.tolist() == [100, 200, 400, 800]
    assert np.exp(found.log_rank[:3]) == pytest.approx([7.0, 2.2, 31.0], rel=1e-3)
    assert found.status == ["used", "at_most", "at_least", "unresolved"]
    assert np.exp([found.grid_low[0], found.grid_high[0], found.low[0], found.high[0]]) == pytest.approx([4, 16, 4, 10])
    assert np.exp(found.high_of_matrix) == pytest.approx(10.0)
    assert found.draws[:, 0] == pytest.approx(np.full(50, np.log(7.0)), rel=1e-3) and found.clusters == 4
    unresolved = "r*(800) not resolved: no larger rank is clearly worse"
    assert found.left_out() == ["r*(200) <= 4", "r*(400) >= 16", unresolved]
    assert find_optima(optimal_rank.build_cells(few, ["rank", "samples"], "test_loss"), 40.0, 50) is None


def test_without_a_correction_its_interval_is_empty(grown):
    """The matrix of `grown` has sides 4096 that the table does not give as both."""
    report = judged(grown[0].drop(columns="d_in", errors="ignore").assign(gap=np.nan), "optimal_rank")
    corrected = report.exponents["samples"].details["corrected"]
    assert corrected == {"estimate": None, "ci95": [None, None]}


def test_the_points_of_the_growth(grown):
    _, found, growth = grown
    points = optimal_rank._points(found, growth)
    assert points["mean"].tolist() == pytest.approx(np.exp(found.log_rank).tolist())
    slope = np.polyfit(np.log(points["samples"]), np.log(points["claimed"]), 1)[0]
    assert slope == pytest.approx(0.5)
    middle = points[points["samples"] == 4000].iloc[0]
    assert middle["claimed"] == pytest.approx(middle["fitted"])
    assert "claimed" not in optimal_rank._points(found, None)


def test_the_fields_of_a_measured_growth(grown):
    frame = grown[0].assign(gap=np.nan)
    report = judged(frame, "optimal_rank")
    details = report.exponents["samples"].details
    assert report.bound.verdict == NOT_EVALUATED  # the constant is free
    assert report.verdict == CONSISTENT and details["tier"] == 1 and not details["bent"]
    assert details["window"] == [1000.0, 2000.0, 4000.0, 8000.0, 16000.0]
    assert details["decades"] == pytest.approx(np.log10(16))
    assert details["left_out"] == [] and "consistency" not in report.fields
    assert report.points["samples"].tolist() == details["window"]
    assert details["optima"][0]["rank"] == pytest.approx(5.0, rel=0.05)
    assert report.seeds == GRID.seeds and report.cells == 50
