"""The validation of the judge: grading, coverage, requirements, and that processes change nothing."""

from __future__ import annotations

import json

import pytest

from theory.judge.intervals import UNDEFINED, Interval
from theory.judge.verdicts import CONSISTENT, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.planted import validate as validation
from theory.planted.cases import FINITE, NULLS, PURE, RATIOS, SURFACES, all_cases
from theory.planted.validate import (
    HARMFUL,
    OFF,
    RIGHT,
    UNDECIDED,
    Requirement,
    families,
    requirements,
    run_case,
    run_cases,
    stream_of,
)
from theory.report import Bound, ClaimReport, Exponent

CASES = {case.name: case for case in all_cases()}


def outspoken(claim, words, *, estimate=0.5, ci=(0.49, 0.51), details=None, fields=None):
    """A judge that always says the same: `words` by coordinate, and the first of them about the claim."""
    claimed = {"rank": 1.0, "samples": 0.5 if claim == "optimal_rank" else -0.5, "steps": -0.5}
    interval = Interval(*ci)
    exponents = {n: Exponent(claimed[n], estimate, interval, interval, w, w, details or {}) for n, w in words.items()}
    report = ClaimReport(claim, next(iter(words.values())), (), exponents, Bound(), 35, 5, fields or {})
    return lambda table, margin: report


@pytest.mark.parametrize(
    ("name", "word", "grade"),
    [
        ("gap N^-1 +1 offset", REFUTED, RIGHT),  # the plateau is the truth even though the window's slope is -.77
        ("gap N^-1 +1 offset", LOOSE, HARMFUL),
        ("gap N^-1 +1 offset", UNTESTABLE, UNDECIDED),
        ("gap N^-0.25 then N^-0.75", LOOSE, RIGHT),
        ("gap N^-0.25 then N^-0.75", REFUTED, HARMFUL),
        ("gap N^-1 + N^-0.5", LOOSE, OFF),  # at the claimed rate beyond the window: too much said, no harm
        ("gap N^-0.5 +0.1 offset", INCONCLUSIVE, UNDECIDED),
    ],
)
def test_words_are_graded_by_the_slopes(monkeypatch, name, word, grade):
    monkeypatch.setitem(validation.JUDGES, "generalization", outspoken("generalization", {"samples": word}))
    assert run_case(CASES[name], 2, 0).grades == {grade: 1.0}


def test_every_coordinate_of_a_pure_power_counts(monkeypatch):
    words = {"samples": REFUTED, "rank": CONSISTENT}
    judge = outspoken("generalization", words, estimate=-0.4, ci=(-0.52, -0.3))
    monkeypatch.setitem(validation.JUDGES, "generalization", judge)
    tally = run_case(CASES["gap r^1 N^-0.5"], 3, 0)
    assert tally.grades == {HARMFUL: 0.5, RIGHT: 0.5}
    assert tally.covered == {"samples": (3, 3), "rank": (0, 3)}
    assert tally.bias["samples"] == pytest.approx(0.1)
    assert tally.as_expected == 0.0


def test_claims_without_slopes_are_graded_by_their_verdict(monkeypatch):
    for name, word, grade in (
        ("D/D_0 = 3", REFUTED, RIGHT),
        ("D/D_0 = 3", CONSISTENT, HARMFUL),
        ("D/D_0 = 1", REFUTED, HARMFUL),
        ("null: D/D_0 = 1.75", CONSISTENT, HARMFUL),
        ("null: D/D_0 = 1.75", INCONCLUSIVE, RIGHT),
    ):
        report = ClaimReport("dynamics", word, (), {}, Bound(), 1, 5)
        monkeypatch.setitem(validation.JUDGES, "dynamics", lambda table, margin, report=report: report)
        assert run_case(CASES[name], 1, 0).grades == {grade: 1.0}, (name, word)


def test_the_interval_of_an_optimum_has_to_cover_the_population_in_its_window(monkeypatch):
    """Not the asymptotic exponent 1/(2s): in a curve of side 96 r* grows as N^.564 over these four N."""
    case = CASES["r* of a curve, s = 1, d = 96, noise 0.05"]
    window = {"window": [8192, 16384, 32768, 65536]}
    for ci, hits in (((0.55, 0.58), 2), ((0.48, 0.52), 0)):
        judge = outspoken("optimal_rank", {"samples": CONSISTENT}, estimate=0.56, ci=ci, details=window)
        monkeypatch.setitem(validation.JUDGES, "optimal_rank", judge)
        tally = run_case(case, 2, 0)
        assert tally.covered == {"samples": (hits, 2)}
        assert tally.bias["samples"] == pytest.approx(-0.004, abs=0.002)
    # An exponent that was not tested, or has no interval, is not held to cover anything.
    for word, ci in ((UNTESTABLE, (0.55, 0.58)), (INCONCLUSIVE, (UNDEFINED.low, UNDEFINED.high))):
        judge = outspoken("optimal_rank", {"samples": word}, ci=ci, details=window)
        monkeypatch.setitem(validation.JUDGES, "optimal_rank", judge)
        assert run_case(case, 2, 0).covered == {}


def test_a_regime_has_to_be_named_alone(monkeypatch):
    for regimes, share in (({"slow": CONSISTENT}, 1.0), ({"slow": CONSISTENT, "fast": CONSISTENT}, 0.0)):
        judge = outspoken("generalization", {"samples": LOOSE, "rank": LOOSE}, fields={"regimes": regimes})
        monkeypatch.setitem(validation.JUDGES, "generalization", judge)
        assert run_case(CASES["E4 slow, side 512"], 1, 0).regime_right == share


@pytest.mark.parametrize("name", ["gap r^1 N^-1", "gap r^1 N^-0.25", "gradient T^-1", "null: two noisy seeds"])
def test_single_cases_come_out_as_planted(name):
    tally = run_case(CASES[name], 3, stream_of(name))
    assert tally.grade(RIGHT) == 1.0
    assert tally.as_expected == 1.0


def test_the_number_of_processes_changes_nothing():
    cases = [CASES[name] for name in ("D/D_0 = 1", "I/I* = .85, rising", "r* of a curve, s = 1, d = 96, noise 0.05")]
    said: list[str] = []
    tallies = run_cases(cases, 3, said.append, workers=2)
    assert tallies == run_cases(cases, 3, workers=1)
    assert tallies == [run_case(case, 3, stream_of(case.name)) for case in cases]
    assert [t.case for t in tallies] == cases
    assert len(said) == 3
    assert said[-1].startswith("9 of 9 draws, about 0 min left")


def fake_tally(case, share):
    """A tally in which a share of everything is as it should be."""
    allowed = sorted(case.expected or (INCONCLUSIVE,))
    verdicts = {allowed[0]: share, "something else": 1 - share}
    grades = {RIGHT: share, HARMFUL: 1 - share}
    covered = {"rank": (95, 100), "samples": (95, 100), "steps": (95, 100)}
    regime = share if case.regime else None
    return validation.Tally(case, 100, verdicts, {}, grades, covered, {}, regime)


def test_requirements_hold_for_a_good_judge_and_fail_for_a_bad_one():
    good = requirements([fake_tally(case, 0.96) for case in all_cases()])
    assert all(r.met for r in good), [r for r in good if not r.met]
    bad = requirements([fake_tally(case, 0.7) for case in all_cases()])
    assert {r.name for r in bad if r.met} == {r.name for r in good if "coverage" in r.name}
    names = " ".join(r.name for r in good)
    assert all(family in names for family in (PURE, FINITE, SURFACES, NULLS, RATIOS))
    assert "plateau inside the margin" not in names


def test_requirements_are_inclusive():
    assert Requirement("x", 0.93, 0.93, 0.98).met
    assert not Requirement("x", 0.92, 0.93, 0.98).met
    assert not Requirement("x", 0.99, 0.93, 0.98).met
    assert not Requirement("x", float("nan"), 0.93, 0.98).met


def test_families_count_every_case_alike_and_name_the_worst():
    few = [case for case in all_cases() if case.family == NULLS][:2]
    (family,) = families([fake_tally(few[0], 1.0), fake_tally(few[1], 0.5)])
    assert (family.cases, family.right, family.harmful) == (2, 0.75, 0.25)
    assert family.worst.case is few[1]
    assert family.to_dict()["worst"] == {"case": few[1].name, "harmful": 0.5}


def test_the_json_has_what_the_report_reads(monkeypatch, theory, tmp_path):
    tallies = [fake_tally(case, 0.96) for case in all_cases()]
    monkeypatch.setattr(validation, "run_cases", lambda *_, **__: tallies)
    theory("validate", "--quick", "--json", tmp_path / "v.json")
    found = json.loads((tmp_path / "v.json").read_text())
    assert set(found) == {"schema", "replications", "families", "cases", "requirements"}
    assert {"case", "claim", "replications", "verdicts"} <= set(found["cases"][0])
    assert {"name", "value", "limits", "met"} <= set(found["requirements"][0])
    assert len(found["families"]) == len({case.family for case in all_cases()})


def test_without_a_number_there_is_one_process_per_core_that_may_be_used(monkeypatch):
    """Not one per core of the machine: a job of a cluster is lent fewer."""
    monkeypatch.setattr(validation.os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(validation, "ProcessPoolExecutor", None)  # must not be called
    cases = sorted(CASES.values(), key=lambda case: case.name)[:2]
    assert len(run_cases(cases, 1)) == 2
