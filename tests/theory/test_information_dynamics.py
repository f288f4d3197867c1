"""Claims 4 and 5: ordering and ratio of information, divergence of trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judging import judged

from theory.claims.information import trend_test
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, REFUTED, UNTESTABLE, VIOLATED
from theory.planted.surfaces import Design, dynamics_table, information_table

DESIGN = Design()


@pytest.mark.parametrize(
    ("ratio", "rising", "verdict"),
    [
        (0.985, True, CONSISTENT),
        (0.925, True, INCONCLUSIVE),  # neither reached nor refuted
        (0.85, True, REFUTED),
        (0.985, False, REFUTED),  # falls with the clone weight
    ],
)
def test_planted_information(ratio, rising, verdict, rng):
    report = judged(information_table(ratio, DESIGN, rng, rising=rising), "information")
    assert report.verdict == verdict
    assert report.to_dict()["ceiling_ratio"]["estimate"] == pytest.approx(ratio, abs=0.02)
    assert report.bound.verdict == HOLDS
    assert np.sign(report.exponents["clone_weight"].estimate) == (1 if rising else -1)


def test_two_seeds_or_two_weights_are_untestable(rng):
    assert judged(information_table(0.985, replace(DESIGN, seeds=2), rng), "information").verdict == UNTESTABLE
    assert judged(information_table(0.985, DESIGN, rng, weights=(0, 1)), "information").verdict == UNTESTABLE


def test_the_worst_site_decides(rng):
    good, bad = information_table(0.985, DESIGN, rng), information_table(0.8, DESIGN, rng)
    frame = pd.concat([good.assign(site="q"), bad.assign(site="mlp")])
    report = judged(frame, "information")
    assert report.verdict == REFUTED
    assert "mlp" in report.fields["ceiling_ratio"]["site"]


def test_single_rows_above_the_ceiling_are_no_error_but_a_mean_is(rng):
    frame = information_table(0.985, DESIGN, rng)
    frame.loc[frame.index[-1], "mutual_information"] = 10.3
    assert judged(frame, "information").bound.verdict != VIOLATED
    above = judged(information_table(1.2, DESIGN, rng), "information")
    assert above.bound.verdict == VIOLATED
    assert above.verdict == REFUTED


def test_information_below_its_proven_floor_is_a_violation(rng):
    frame = information_table(0.985, DESIGN, rng).assign(mi_floor=11.0)
    assert judged(frame, "information").bound.verdict == VIOLATED
    assert judged(frame.assign(mi_floor=1.0), "information").bound.verdict == HOLDS


def test_trend_p_values_under_the_null_are_uniform_enough():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        ranks = [rng.permutation(5) + 1.0 for _ in range(5)]
        rho = np.array([np.corrcoef(r, np.arange(5))[0, 1] for r in ranks])
        hits += trend_test(rho, ranks)[0] < 0.1
    assert hits <= 14


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, CONSISTENT), (1.75, INCONCLUSIVE), (3.0, REFUTED)])
def test_planted_dynamics(ratio, verdict, rng):
    report = judged(dynamics_table(ratio, replace(DESIGN, noise=0.05), rng), "dynamics")
    assert report.verdict == verdict
    field = report.to_dict()["divergence_ratio"]
    assert field["estimate"] == pytest.approx(ratio, rel=0.1)
    assert field["ci95"][0] < field["estimate"] < field["ci95"][1]


def test_dynamics_needs_five_seeds(rng):
    assert judged(dynamics_table(1.0, replace(DESIGN, seeds=2), rng), "dynamics").verdict == UNTESTABLE


def test_a_true_claim_at_many_sites_is_not_refuted_by_the_luckiest():
    """I = I* exactly, 12 sites: of uncorrected intervals half of all tables have one above 1."""
    rng = np.random.default_rng(3)
    shape = np.array([0.6, 0.9, 1.0, 1.0, 1.0])
    rows = [
        (f"s{site}", weight, seed, 10 * shape[i] * (1 + 0.01 * rng.standard_normal()), 10.0)
        for site in range(12)
        for i, weight in enumerate((0, 0.01, 0.1, 1, 10))
        for seed in range(5)
    ]
    columns = ["site", "clone_weight", "seed", "mutual_information", "mi_ceiling"]
    report = judged(pd.DataFrame(rows, columns=columns), "information")
    sites = report.fields["sites"]
    assert any(site["ci95"][0] > 1 for site in sites)  # an uncorrected interval would have refuted
    assert report.bound.verdict != VIOLATED and report.verdict == CONSISTENT


def test_information_is_judged_at_the_end_of_training(rng):
    early = information_table(0.7, DESIGN, rng).assign(steps=100)
    late = information_table(0.985, DESIGN, rng).assign(steps=1000)
    assert judged(pd.concat([early, late]), "information").verdict == CONSISTENT


def test_dynamics_says_when_only_the_number_of_arms_saves_it(rng):
    logs = np.array([-0.3, -0.1, 0.0, 0.1, 0.3]) / 2
    arms = {4: 2.35, 8: 1.7, 16: 1.7, 32: 1.7}
    rows = [
        {"rank": rank, "seed": seed, "dynamics_divergence": ratio * np.exp(logs[seed]), "dynamics_baseline": 1.0}
        for rank, ratio in arms.items()
        for seed in range(5)
    ]
    alone = judged(pd.DataFrame(rows[:5]), "dynamics")
    together = judged(pd.DataFrame(rows), "dynamics")
    assert (alone.verdict, together.verdict) == (REFUTED, INCONCLUSIVE)
    assert any("with so many arms" in reason for reason in together.reasons)
