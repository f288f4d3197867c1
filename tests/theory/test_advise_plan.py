"""Advice from planted risks and its refusals; designs before they are run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from theory.design.advise import Refusal, advise
from theory.design.plan import design_gates
from theory.judge.check import check_table
from theory.judge.intervals import mean_interval
from theory.laws.surface import Surface
from theory.planted import validate
from theory.planted.surfaces import Design, gap_table, risk_table
from theory.tables import table_from_frame

DESIGN = Design(
    ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128), samples=tuple(1000 * 2**k for k in range(7)), noise=0.03
)
SURFACE = Surface(0.2, 1.0, 1.0, 1000 / 4.5**2, 1.0, 1.0)


def planted(seed: int = 0, surface: Surface = SURFACE, design: Design = DESIGN):
    return table_from_frame(risk_table(surface, design, np.random.default_rng(seed), dimension=4096))


def test_advice_finds_the_planted_optimum():
    advice = advise(planted(), 16_000)
    truth = SURFACE.best_rank(16_000)
    assert advice.ci95.low <= truth <= advice.ci95.high
    assert advice.rank == pytest.approx(truth, rel=0.1)
    assert advice.risk == pytest.approx(float(SURFACE(advice.rank, 16_000)), rel=0.1)
    for name in ("half", "double"):
        price = advice.prices[name]
        true_extra = float(SURFACE(price.rank, 16_000) - SURFACE(advice.rank, 16_000))
        assert price.extra == pytest.approx(true_extra, rel=0.4)
        assert price.extra > 0


def test_a_cap_is_respected_and_priced():
    advice = advise(planted(), 16_000, max_rank=10)
    assert advice.rank == 10
    assert advice.capped


@pytest.mark.parametrize(
    ("samples", "surface", "design", "said"),
    [
        (1_000_000, SURFACE, DESIGN, "half a decade"),
        (50, SURFACE, DESIGN, "half a decade"),
        (100_000, Surface(0.1, 1.0, 1.0, 1e-9, 1.0, 1.0), DESIGN, "beyond the measured"),
        (16_000, SURFACE, replace(DESIGN, ranks=(8,)), "fewer than 2 ranks"),
    ],
)
def test_refusals_say_what_to_measure(samples, surface, design, said):
    with pytest.raises(Refusal, match="no advice") as caught:
        advise(planted(0, surface, design), samples)
    assert said in str(caught.value)
    assert "measure" in str(caught.value)


def test_at_a_measured_n_there_is_always_advice():
    """A monotone risk, four ranks, one seed: the best measured rank is still known."""
    monotone = advise(planted(0, Surface(0.1, 1.0, 1.0, 1e-9, 1.0, 1.0)), 16_000)
    assert (monotone.rank, monotone.best, monotone.basis) == (128, 128, "measured")
    assert monotone.descriptive
    assert any("largest rank measured" in note for note in monotone.notes)
    assert monotone.prices["half"].extra > 0 and "double" not in monotone.prices
    few = advise(planted(0, SURFACE, replace(DESIGN, ranks=(2, 8, 16, 64))), 16_000)
    assert few.best == 16 and few.descriptive
    one = advise(planted(0, SURFACE, replace(DESIGN, seeds=1)), 16_000)
    assert np.isnan(one.ci95.low) and np.isnan(one.prices["half"].extra_ci95.low)
    assert any("single seed" in note for note in one.notes)


def test_prices_at_a_measured_n_are_the_measured_paired_differences():
    table = planted()
    rows = table.frame[table.frame["samples"] == 16_000].pivot_table(index="seed", columns="rank", values="test_loss")
    capped = advise(table, 16_000, max_rank=16)
    for name, other in (("half", 8), ("double", 32)):
        difference = (rows[other] - rows[16]).to_numpy()
        price = capped.prices[name]
        assert price.rank == other
        assert price.extra == pytest.approx(difference.mean(), abs=1e-12)
        classical = mean_interval(difference, 0.95)
        assert price.extra_ci95.width == pytest.approx(classical.width, rel=0.15)


def test_ranks_within_noise_are_those_whose_paired_difference_is_not_clearly_positive():
    advice = advise(planted(), 16_000)
    rows = planted().frame.query("samples == 16000").pivot_table(index="seed", columns="rank", values="test_loss")
    want = tuple(
        int(r)
        for r in rows
        if r == advice.best or mean_interval((rows[r] - rows[advice.best]).to_numpy(), 0.95).low <= 0
    )
    assert advice.within_noise == want
    assert advice.best == rows.mean().idxmin()
    assert len(want) < len(rows.columns)


def test_between_measured_n_the_curves_are_interpolated():
    advice = advise(planted(), 11_000)
    assert advice.basis == "interpolated" and advice.best is None
    truth = SURFACE.best_rank(11_000)
    assert advice.ci95.low <= truth <= advice.ci95.high
    assert advice.prices["half"].extra > 0 and advice.prices["double"].extra > 0


def test_half_a_decade_beyond_is_the_limit():
    advice = advise(planted(), 64_000 * 10**0.5 * 0.99)
    assert advice.basis == "extrapolated" and not advice.prices
    assert advice.ci95.low <= SURFACE.best_rank(64_000 * 10**0.5) <= advice.ci95.high


def test_advice_on_the_command_line(theory, tmp_path):
    path = tmp_path / "t.csv"
    planted().frame.to_csv(path, index=False)
    assert theory("advise", path, "--samples", 16_000, "--json", tmp_path / "a.json").code == 0
    advice = json.loads((tmp_path / "a.json").read_text())
    assert advice["optimum"]["ci95"][0] < advice["optimum"]["estimate"] < advice["optimum"]["ci95"][1]
    assert "no advice" in theory("advise", path, "--samples", 1e9).error
    assert "--samples" in theory("advise", path, "--samples", -1).error


@pytest.mark.slow
def test_advice_covers_the_optimum_over_200_replications():
    truth = SURFACE.best_rank(16_000)
    hits = 0
    for k in range(200):
        advice = advise(planted(k), 16_000)
        hits += advice.ci95.low <= truth <= advice.ci95.high
    assert hits / 200 >= 0.90, hits


def test_plan_names_gates_power_and_cost(theory, tmp_path):
    samples = "64,128,256,512,1024,2048,4096,8192,16384"
    arguments = ("--samples", samples, "--seeds", 5, "--noise", 0.1, "--replications", 4)
    cost = ("--cost", "2+0.001*samples")
    outcome = theory("plan", "--rank", "4,6,8,12,16,24,32", *arguments, *cost, "--json", tmp_path / "a.json")
    assert outcome.code == 0
    plan = json.loads((tmp_path / "a.json").read_text())
    assert plan["gates"] == {"generalization": [], "optimal_rank": []}
    power = {p["planted"]: p for p in plan["power"] if p["claim"] == "generalization"}
    assert power["exponent in N -0.5"]["verdicts"] == {"CONSISTENT": 1.0}
    assert power["exponent in N -0.25"]["verdicts"] == {"REFUTED": 1.0}
    assert set(power["exponent in N -1, then -0.75"]["verdicts"]) <= {"LOOSE", "HOLDS"}
    assert power["exponent in N -0.75, then -0.25"]["right"] == ["REFUTED"]
    assert power["exponent in r 1.25"]["right"] == ["REFUTED"]
    assert plan["runs"]["generalization"] == 315
    per_rank = sum(int(n) for n in samples.split(","))
    assert plan["seconds"]["generalization"] == pytest.approx(315 * 2 + 35 * 0.001 * per_rank)
    assert "315 runs, about" in outcome.out
    small = ("plan", "--rank", "4,8", "--samples", "10,100", "--replications", 2, "--cost")
    assert theory(*small, "a*samples").error.startswith("--cost a*samples: a is no coordinate of the design")
    assert "it is -50 at samples = 10; it has to be positive" in theory(*small, "samples-60").error


def test_a_plan_whose_gates_fail_simulates_nothing(theory, tmp_path, monkeypatch):
    arguments = ("--samples", "64,256,1024,4096,16384", "--json", tmp_path / "b.json")
    monkeypatch.setattr(validate, "judge_draw", None)
    assert "the gates fail" in theory("plan", "--rank", "4,6,8", *arguments).out
    plan = json.loads((tmp_path / "b.json").read_text())
    failed = " ".join(plan["gates"]["generalization"])
    assert "rank covers a factor of 2" in failed and "values" in failed
    assert plan["power"] == []
    assert {"rank": 32.0, "seeds": 5} in plan["needed"]["generalization"]


@pytest.mark.parametrize("claim", ["generalization", "optimal_rank"])
def test_the_gates_of_a_plan_are_those_of_the_judge(claim):
    """A table of the design is UNTESTABLE if and only if the plan says so."""
    good = Design(
        ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), samples=tuple(1000 * 2**k for k in range(8)), noise=0.02
    )
    bad = {
        "generalization": [replace(good, ranks=(4, 6, 8, 12, 16)), replace(good, samples=(1000, 2000, 4000, 9000))],
        "optimal_rank": [replace(good, ranks=(2, 4, 6, 8, 10)), replace(good, samples=(1000, 2000, 4000))],
    }[claim]
    surface = Surface(0.0, 1.0, 1.0, 1000 / 4.5**2, 1.0, 1.0)
    for design in (good, replace(good, seeds=2), *bad):
        gated = any(g.tier == 0 for g in design_gates(claim, design, 4096.0))
        rng = np.random.default_rng(0)
        table = gap_table(1, 0.5, design, rng) if claim == "generalization" else risk_table(surface, design, rng)
        assert (check_table(table, claims=[claim]).claims[claim].verdict == "UNTESTABLE") == gated, design


def test_plan_refuses_nonsense(theory):
    assert theory("plan", "--rank", "4,-6", "--samples", "10,100").error
    assert theory("plan", "--rank", "4,x", "--samples", "10,100").error
