"""Advice on planted surfaces and its refusals; designs before they are run; the validation of the judge itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from theory.advise import Refusal, advise
from theory.laws import Surface
from theory.planted.cases import all_cases
from theory.planted.surfaces import Design, risk_table
from theory.tables import table_from_frame
from theory.validate import Requirement, run_case, validate

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
        (16_000, Surface(0.1, 1.0, 1.0, 1e-9, 1.0, 1.0), DESIGN, "monotone"),
        (16_000, SURFACE, replace(DESIGN, seeds=1), "single seed"),
        (16_000, SURFACE, replace(DESIGN, ranks=(2, 4, 6, 8)), "five ranks"),
        (16_000, SURFACE, replace(DESIGN, ranks=(24, 32, 48, 64, 96)), "censored"),
    ],
)
def test_refusals_say_what_to_measure(samples, surface, design, said):
    with pytest.raises(Refusal, match="no advice") as caught:
        advise(planted(0, surface, design), samples)
    assert said in str(caught.value)


def test_half_a_decade_beyond_is_the_limit():
    assert advise(planted(), 64_000 * 10**0.5 * 0.99).rank > 0


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


def test_plan_names_gates_and_power(theory, tmp_path):
    arguments = ("--samples", "64,256,1024,4096,16384", "--seeds", 5, "--noise", 0.1, "--replications", 4)
    assert theory("plan", "--rank", "4,6,8,12,16,24,32", *arguments, "--json", tmp_path / "a.json").code == 0
    plan = json.loads((tmp_path / "a.json").read_text())
    assert plan["gates"]["generalization"] == []
    power = {p["planted"]: p["verdicts"] for p in plan["power"] if p["claim"] == "generalization"}
    assert power["gap r^1 N^-0.5"] == {"CONSISTENT": 1.0}
    assert power["gap r^1 N^-0.25"] == {"REFUTED": 1.0}
    theory("plan", "--rank", "4,6,8", *arguments, "--json", tmp_path / "b.json")
    failed = " ".join(json.loads((tmp_path / "b.json").read_text())["gates"]["generalization"])
    assert "rank spans" in failed
    assert "values" in failed


def test_plan_refuses_nonsense(theory):
    assert theory("plan", "--rank", "4,-6", "--samples", "10,100").error
    assert theory("plan", "--rank", "4,x", "--samples", "10,100").error


def test_every_group_of_planted_truths_is_there():
    names = {c.name for c in all_cases()}
    for b, c in ((1, 1), (0.5, 0.5), (1, 0.5), (0.75, 0.75), (1.4, 0.5), (1, 0.25)):
        assert f"gap r^{b:g} N^-{c:g}" in names
    assert len([c for c in all_cases() if c.group == "null"]) >= 10


@pytest.mark.parametrize("name", ["gap r^1 N^-0.5", "gap r^1 N^-0.25", "null: offset that mimics N^-.5"])
def test_single_cases_come_out_as_planted(name):
    stream, case = next((k, c) for k, c in enumerate(all_cases()) if c.name == name)
    assert run_case(case, 4, stream).right == 1.0


def test_requirements_can_fail():
    assert Requirement("x", 0.94, 0.93, 0.98).met
    assert not Requirement("x", 0.92, 0.93, 0.98).met
    assert not Requirement("x", 0.99, 0.93, 0.98).met


@pytest.mark.slow
def test_validation_meets_every_requirement():
    for requirement in validate(100).requirements:
        assert requirement.met, requirement
