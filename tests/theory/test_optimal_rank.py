"""Claim 3: growth of the optimal rank, what counts as seen, the correction for a finite matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged

from theory.claims.optimal_rank import rank_cost
from theory.judge.optimum import RankCost, local_minimum
from theory.judge.verdicts import CONSISTENT, HOLDS, LOOSE, REFUTED, UNTESTABLE
from theory.laws.surface import Surface
from theory.planted.denoising import denoising_table
from theory.planted.surfaces import Design, risk_table
from theory.tables import InputError

RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DESIGN = Design(ranks=RANKS, samples=tuple(1000 * 2**k for k in range(8)), noise=0.03)


def surface(alpha: float, beta: float, gamma: float, first: float = 4.5, offset: float = 0.0) -> Surface:
    """A surface with r* = first at the smallest N of the design."""
    scale = alpha * first ** -(alpha + beta) * DESIGN.samples[0] ** gamma / beta
    return Surface(offset, 1.0, alpha, scale, beta, gamma)


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "verdict"),
    [
        (1.0, 1.0, 1.0, CONSISTENT),  # rho = 1/2
        (2.0, 1.0, 1.0, LOOSE),  # 1/3
        (0.4, 0.9, 0.95, REFUTED),  # .73
        (1.0, 1.0, 0.5, LOOSE),  # the abstract's own gap with a power-law approximation error: 1/4
    ],
)
def test_planted_growth(alpha, beta, gamma, verdict, rng):
    planted = surface(alpha, beta, gamma)
    report = judged(risk_table(planted, DESIGN, rng, dimension=4096), "optimal_rank")
    assert report.verdict == verdict
    exponent = report.exponents["samples"]
    assert exponent.estimate == pytest.approx(planted.rank_exponent, abs=0.06)
    assert exponent.ci95.low < exponent.estimate < exponent.ci95.high


def test_monotone_risk_is_untestable(rng):
    """Soft labels: the risk falls in r at every N."""
    report = judged(risk_table(Surface(0.1, 1.0, 1.0, 1e-9, 1.0, 1.0), DESIGN, rng), "optimal_rank")
    assert report.verdict == UNTESTABLE
    assert any("a best rank inside the window was seen nowhere" in r for r in report.reasons)


def statuses(report):
    return [o["status"] for o in report.exponents["samples"].details["optima"]]


def test_optima_at_the_edges_are_limits_not_numbers(rng):
    """With ranks up to 32 the larger optima lie beyond the grid; an argmin there would flatten the growth to zero."""
    design = replace(DESIGN, ranks=RANKS[:9])
    report = judged(risk_table(surface(1.0, 1.0, 1.0), design, rng, dimension=4096), "optimal_rank")
    assert statuses(report)[:4] == ["used"] * 4
    assert statuses(report)[-1] == "at_least"
    assert any("r*(128000) >= 24" in r for r in report.reasons), report.reasons
    assert report.exponents["samples"].estimate == pytest.approx(0.5, abs=0.06)
    low = judged(risk_table(surface(1.0, 1.0, 1.0, first=1.5), DESIGN, rng, dimension=4096), "optimal_rank")
    assert statuses(low)[0] == "at_most"
    assert any("r*(1000) <= 3" in r for r in low.reasons), low.reasons


def test_the_window_ends_at_a_quarter_of_the_matrix_and_begins_at_four(rng):
    """r* runs from 4.5 to 51; where it was seen outside the window it is said, and not used."""
    for dimension, last in ((160, 36.0), (144, 25.0)):  # d/4 = 40 and 36
        frame = risk_table(surface(1.0, 1.0, 1.0), replace(DESIGN, ranks=RANKS[:13]), rng, dimension=dimension)
        report = judged(frame, "optimal_rank")
        assert statuses(report)[-1] == "outside"
        used = [o["rank"] for o in report.exponents["samples"].details["optima"] if o["status"] == "used"]
        assert max(used) == pytest.approx(last, rel=0.1)
    below = judged(risk_table(surface(1.0, 1.0, 1.0, first=3.5), DESIGN, rng, dimension=4096), "optimal_rank")
    assert statuses(below)[:2] == ["outside", "used"]


@pytest.mark.parametrize(("values", "verdict"), [(4, CONSISTENT), (3, UNTESTABLE)])
def test_four_optima_are_needed(values, verdict, rng):
    design = replace(DESIGN, samples=tuple(int(1000 * 10 ** (k / (values - 1))) for k in range(values)))
    report = judged(risk_table(surface(1.0, 1.0, 1.0), design, rng, dimension=4096), "optimal_rank")
    assert report.verdict == verdict
    assert bool(report.fields["needed"]) == (verdict == UNTESTABLE)


@pytest.mark.parametrize(("last", "verdict"), [(8000, CONSISTENT), (7900, UNTESTABLE)])
def test_nine_tenths_of_a_decade_of_seen_n_are_needed(last, verdict, rng):
    design = replace(DESIGN, samples=(1000, 2000, 3000, 5000, last))
    assert judged(risk_table(surface(1.0, 1.0, 1.0), design, rng, dimension=4096), "optimal_rank").verdict == verdict


def test_three_seeds_are_the_second_tier_and_two_are_untestable(rng):
    report = judged(
        risk_table(surface(1.0, 1.0, 1.0), replace(DESIGN, seeds=3, noise=0.01), rng, dimension=4096), "optimal_rank"
    )
    assert (report.verdict, report.exponents["samples"].details["tier"]) == (HOLDS, 2)
    two = judged(risk_table(surface(1.0, 1.0, 1.0), replace(DESIGN, seeds=2), rng, dimension=4096), "optimal_rank")
    assert two.verdict == UNTESTABLE


def test_a_saturating_optimum_is_bent_and_not_consistent(rng):
    """r* grows linearly, then stays at the rank of the truth: the average slope is near 1/2."""
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096)
    best = np.minimum(4.0 * frame["samples"] / 1000, 48.0)
    frame["test_loss"] = 0.1 + 0.05 * np.log(frame["rank"] / best) ** 2 + 1e-4 * rng.standard_normal(len(frame))
    report = judged(frame, "optimal_rank")
    assert report.verdict != CONSISTENT
    assert report.exponents["samples"].details["bent"]


def test_the_correction_recovers_the_exponent_of_a_finite_matrix(rng):
    """Truncating a noisy 96 x 96 matrix with spectrum k^-1: r* ~ N^1/2, and faster as it nears the matrix."""
    design = Design(
        ranks=(2, 3, 4, 6, 8, 10, 13, 16, 22, 30, 48), samples=tuple(8192 * 2**k for k in range(8)), seeds=5
    )
    frame = denoising_table(1.0, 96, design, rng)
    exponent = judged(frame, "optimal_rank").exponents["samples"]
    corrected = exponent.details["corrected"]
    assert exponent.estimate > 0.56
    assert corrected["ci95"][0] < 0.52
    assert corrected["estimate"] < exponent.estimate - 0.03
    assert exponent.verdict == CONSISTENT


def test_the_correction_is_for_the_rank_of_a_matrix_and_not_for_the_width_of_a_clone(rng):
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=256)
    frame = frame[frame["rank"] <= 192]
    size = 512

    def sizes(params):
        return rank_cost(frame.assign(params=params)).sizes

    assert sizes(frame["rank"] * size) == size  # the entries of both factors
    assert sizes(frame["rank"] * (size - frame["rank"])) == size  # degrees of freedom
    assert sizes(frame["rank"] * (size - frame["rank"]) + 256) == size  # and a bias
    assert sizes(frame["rank"] * 3000) is None  # many projections: the width of a clone
    assert rank_cost(frame).sizes == size  # not said: one matrix
    assert rank_cost(frame.drop(columns=["d_in", "d_out"])) == RankCost()
    assert rank_cost(frame.assign(d_in=frame["rank"])) == RankCost(256.0, None)  # follows the rank
    report = judged(frame.assign(params=3000 * frame["rank"]), "optimal_rank")
    assert report.exponents["samples"].details["corrected"]["estimate"] is None
    assert report.verdict == CONSISTENT


def test_without_the_shape_a_jump_to_full_rank_refutes_nothing():
    """Spectrum k^-1 in a 96 x 96 matrix: r* ~ N^1/2 until it jumps; only the upper half of the window is too fast."""
    design = Design(ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96), samples=tuple(2000 * 2**k for k in range(8)))
    for k in range(3):
        frame = denoising_table(1.0, 96, design, np.random.default_rng(k)).drop(columns=["d_in", "d_out", "gap"])
        assert judged(frame, "optimal_rank").verdict != REFUTED


def test_local_minimum_is_exact_for_a_cubic():
    x = np.log(np.array([4.0, 6, 8, 12, 16, 24, 32]))
    risk = np.exp(0.2 * (x - 2.2) ** 2 + 0.05 * (x - 2.2) ** 3)
    assert local_minimum(x, risk[None])[0] == pytest.approx(2.2, abs=1e-6)


def test_a_cubic_is_less_biased_than_a_parabola():
    """A parabola on half-width w is off by -(beta - alpha) w^2 / 10."""
    planted = Surface(0.0, 1.0, 2.0, 1e-3, 1.0, 0.0)
    best = planted.best_rank(1.0)
    x = np.log(best) + np.linspace(-1.0, 1.0, 7)
    risk = planted(np.exp(x), 1.0)
    parabola = np.polyfit(x, risk, 2)
    off = abs(-parabola[1] / (2 * parabola[0]) - np.log(best))
    assert off == pytest.approx(0.1, abs=0.05)
    assert abs(local_minimum(x, risk[None])[0] - np.log(best)) < off / 3


def test_consistency_statistic_uses_gamma_over_alpha_plus_beta(rng):
    """Advisory leg: alpha from the population loss, beta = .8 and gamma = .6 from the gap."""
    planted = surface(1.0, 0.8, 0.6)
    frame = risk_table(planted, DESIGN, rng, dimension=4096)
    gap = planted.estimation * frame["rank"] ** 0.8 * frame["samples"] ** -0.6
    frame = frame.assign(approx_loss=frame["rank"] ** -1.0, gap=gap * np.exp(0.05 * rng.standard_normal(len(frame))))
    found = judged(frame, "optimal_rank").fields["consistency"]
    assert found["beta"] == pytest.approx(0.8, abs=0.05)
    assert found["gamma"] == pytest.approx(0.6, abs=0.05)
    assert found["predicted"] == pytest.approx(0.6 / 1.8, abs=0.03)
    assert found["verdict"] == CONSISTENT
    # An offset ten times the term hides the exponent, unless the table says what the best loss possible is.
    lifted = judged(frame.assign(approx_loss=frame["approx_loss"] + 10.0, teacher_loss=10.0), "optimal_rank").fields[
        "consistency"
    ]
    assert lifted["alpha"] == pytest.approx(found["alpha"], rel=1e-3)


@pytest.mark.parametrize(
    ("arms", "column"),
    [
        ([("q", 0.5), ("k", 0.5)], "site"),
        ([("q", 0.5), ("q", 1.0)], "clone_weight"),
        ([("q", 0.5), ("k", 0.5), ("q", 1.0), ("k", 1.0)], "site"),
    ],
)
def test_risk_curves_of_several_arms_are_not_mixed(arms, column, rng):
    """The column that is named tells the arms apart."""
    frames = [risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096) for _ in arms]
    parts = [f.assign(site=site, clone_weight=weight) for f, (site, weight) in zip(frames, arms, strict=True)]
    with pytest.raises(
        InputError, match=rf"column {column}: several values per run.* choose one with --where {column}="
    ):
        judged(pd.concat(parts), "optimal_rank")


def test_runs_need_not_share_their_seeds(rng):
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096)
    assert judged(frame.assign(seed=range(len(frame))), "optimal_rank").verdict == CONSISTENT


def test_two_teachers_are_not_one_law(rng):
    frames = [risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096).assign(teacher=name) for name in "ab"]
    with pytest.raises(InputError, match=r"rows of optimal_rank have several values.* --where teacher="):
        judged(pd.concat(frames, ignore_index=True), "optimal_rank")


def test_every_point_of_a_risk_curve_lies_inside_its_interval(rng):
    curves = judged(risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096), "optimal_rank").curves
    assert ((curves["low"] < curves["mean"]) & (curves["mean"] < curves["high"])).all()
