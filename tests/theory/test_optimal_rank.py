"""Claim 3: growth of the optimal rank, censoring, monotone risks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from theory.check import check_table
from theory.laws import Surface
from theory.optimum import censored_regression, local_minimum
from theory.planted.surfaces import Design, risk_table
from theory.verdicts import CONSISTENT, LOOSE, REFUTED, UNTESTABLE

RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
DESIGN = Design(ranks=RANKS, samples=tuple(1000 * 2**k for k in range(8)), noise=0.03)


def surface(alpha: float, beta: float, gamma: float, first: float = 4.5, offset: float = 0.0) -> Surface:
    """A surface with r* = first at the smallest N of the design."""
    scale = alpha * first ** -(alpha + beta) * DESIGN.samples[0] ** gamma / beta
    return Surface(offset, 1.0, alpha, scale, beta, gamma)


def report_of(frame):
    return check_table(frame, claims=["optimal_rank"]).claims["optimal_rank"]


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
    report = report_of(risk_table(planted, DESIGN, rng, dimension=4096))
    assert report.verdict == verdict
    exponent = report.exponents["samples"]
    assert exponent.estimate == pytest.approx(planted.rank_exponent, abs=0.06)
    assert exponent.ci95.low < exponent.estimate < exponent.ci95.high


def test_monotone_risk_is_untestable(rng):
    """Soft labels: the risk falls in r at every N."""
    report = report_of(risk_table(Surface(0.1, 1.0, 1.0, 1e-9, 1.0, 1.0), DESIGN, rng))
    assert report.verdict == UNTESTABLE
    assert any("monotone in rank" in r for r in report.reasons)


def test_optima_at_the_edges_are_censored_not_used(rng):
    """With ranks up to 32 the larger optima lie beyond the grid; an argmin there would flatten the growth to zero."""
    design = replace(DESIGN, ranks=RANKS[:9])
    report = report_of(risk_table(surface(1.0, 1.0, 1.0), design, rng))
    assert any("censored optima" in r for r in report.reasons)
    statuses = [o["status"] for o in report.exponents["samples"].details["optima"]]
    assert statuses[-1] == "above"
    assert report.exponents["samples"].estimate > 0.35


def test_the_matrix_dimension_censors(rng):
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=128)
    statuses = [o["status"] for o in report_of(frame).exponents["samples"].details["optima"]]
    assert "above" in statuses  # beyond d/8 = 16
    roomy = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096)
    assert "above" not in [o["status"] for o in report_of(roomy).exponents["samples"].details["optima"]]


def test_too_few_seeds_are_untestable(rng):
    report = report_of(risk_table(surface(1.0, 1.0, 1.0), replace(DESIGN, seeds=3), rng))
    assert report.verdict == UNTESTABLE


def test_a_saturating_optimum_is_not_consistent(rng):
    """r* grows linearly, then stays at the rank of the truth: the average slope is near 1/2."""
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096)
    best = np.minimum(4.0 * frame["samples"] / 1000, 48.0)
    frame["test_loss"] = 0.1 + 0.05 * np.log(frame["rank"] / best) ** 2 + 1e-4 * rng.standard_normal(len(frame))
    assert report_of(frame).verdict != CONSISTENT


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


def test_censored_regression_recovers_a_slope_that_truncation_hides():
    x = np.linspace(-3, 3, 9)
    design = np.column_stack([np.ones(9), x])
    truth = 1.0 + 0.5 * x
    low, high = np.full(9, 0.2), np.full(9, 1.8)
    y = np.where(truth > high, high + 0.3, np.where(truth < low, low - 0.3, truth))
    assert censored_regression(design, y[None], low, high)[0, 1] == pytest.approx(0.5, abs=0.02)
    naive = np.polyfit(x, np.clip(y, low, high), 1)[0]
    assert naive < 0.4


def test_consistency_statistic_uses_gamma_over_alpha_plus_beta(rng):
    """Advisory leg: alpha from the population loss, beta = .8 and gamma = .6 from the gap."""
    planted = surface(1.0, 0.8, 0.6)
    frame = risk_table(planted, DESIGN, rng, dimension=4096)
    gap = planted.estimation * frame["rank"] ** 0.8 * frame["samples"] ** -0.6
    frame = frame.assign(approx_loss=frame["rank"] ** -1.0, gap=gap * np.exp(0.05 * rng.standard_normal(len(frame))))
    found = report_of(frame).fields["consistency"]
    assert found["beta"] == pytest.approx(0.8, abs=0.05)
    assert found["gamma"] == pytest.approx(0.6, abs=0.05)
    assert found["predicted"] == pytest.approx(0.6 / 1.8, abs=0.03)
    assert found["verdict"] == CONSISTENT
    # An offset ten times the term hides the exponent, unless the table says what the best loss possible is.
    lifted = report_of(frame.assign(approx_loss=frame["approx_loss"] + 10.0, teacher_loss=10.0)).fields["consistency"]
    assert lifted["alpha"] == pytest.approx(found["alpha"], rel=1e-3)


def test_runs_need_not_share_their_seeds(rng):
    frame = risk_table(surface(1.0, 1.0, 1.0), DESIGN, rng, dimension=4096)
    assert report_of(frame.assign(seed=range(len(frame)))).verdict == CONSISTENT
