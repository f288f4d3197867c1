"""Which runs to add: what is proposed, what it would decide and cost, and that following it decides."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from follow_next import DEMO as GRID
from follow_next import follow, harmful, planted
from scipy import stats

import theory
from theory.claims import generalization, optimal_rank
from theory.design import next as planning
from theory.design.beliefs import Noise, RateLaws, SurfaceLaws
from theory.design.cost import Price
from theory.design.next import (
    CLAIMS,
    MIN_CHANCE,
    MORE_SEEDS,
    MORE_WHERE_CHEAP,
    STUDIES,
    Next,
    Proposal,
    _advice,
    _order,
    next_runs,
    next_step,
)
from theory.judge import gates
from theory.judge.cells import build_cells
from theory.judge.check import check_table
from theory.judge.intervals import t_quantile
from theory.judge.looks import Looks
from theory.judge.optimum import RankCost
from theory.judge.rates import words_of
from theory.judge.scrutiny import survivors
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, UNTESTABLE
from theory.planted.cases import planted_surface
from theory.planted.rates import power, with_offset
from theory.planted.surfaces import (
    Design,
    dynamics_table,
    gap_table,
    gradient_table,
    information_table,
    law_table,
    risk_table,
)
from theory.tables import InputError, table_from_frame

DEMO = Design(ranks=(2, 4, 8, 15, 26), samples=(164, 512, 1600, 5120, 16400))
THIN = replace(DEMO, samples=(164, 1600, 5120), seeds=3)
FEW = 12  # simulations


def proposed(frame: pd.DataFrame, claim: str = "generalization", **options):
    return next_runs(table_from_frame(frame), claim, simulations=FEW, **options)


@pytest.fixture(scope="module")
def thin() -> pd.DataFrame:
    return gap_table(1.0, 1.0, THIN, np.random.default_rng(1))


@pytest.fixture(scope="module")
def outcome(thin):
    return proposed(thin.assign(seconds=0.01 * thin["samples"] ** 0.5))


def test_a_decided_table_gets_no_proposals():
    found = proposed(gap_table(1.0, 1.0, DEMO, np.random.default_rng(0)))
    assert (found.decided, found.verdict, found.proposals, found.first_step) == (True, "LOOSE", (), None)


def test_the_best_runs_fill_what_the_gates_lack(thin, outcome):
    assert outcome.verdict == "UNTESTABLE" and not outcome.decided
    best = outcome.best
    assert best is not None and best.chance >= MIN_CHANCE
    both = pd.concat([thin[["rank", "samples", "seed"]], best.runs])
    assert both["samples"].max() >= 100 * both["samples"].min()
    assert both.groupby(["rank", "samples"]).size().median() >= gates.MIN_SEEDS


def test_runs_are_new_and_paired_with_known_seeds(thin, outcome):
    done = set(thin[["rank", "samples", "seed"]].itertuples(index=False, name=None))
    for p in outcome.proposals:
        rows = list(p.runs[["rank", "samples", "seed"]].itertuples(index=False, name=None))
        assert len(set(rows)) == len(rows) and not done & set(rows)
        new = p.runs[~p.runs["samples"].isin(thin["samples"].unique())]
        if len(new):
            assert {0.0, 1.0, 2.0} <= set(new["seed"])
    sets = [frozenset(p.runs.itertuples(index=False, name=None)) for p in outcome.proposals]
    assert len(set(sets)) == len(sets)


def test_new_levels_are_thought_of_at_few_others_and_with_few_seeds(thin, outcome):
    """The largest N costs most: it is run at the ends of the ranks only, or with no more seeds than are there."""
    sets = {p.why: p.runs[~p.runs["samples"].isin(thin["samples"].unique())] for p in outcome.proposals}
    ends = sets["what the gates ask for, new levels at 2 others"]
    assert set(ends["rank"]) == {2.0, 26.0} and ends.groupby(["rank", "samples"]).size().eq(gates.MIN_SEEDS).all()
    few = sets["the levels that the gates ask for, new levels at 3 others, 3 seeds"]
    assert set(few["rank"]) == {2.0, 8.0, 26.0} and few.groupby(["rank", "samples"]).size().eq(3).all()


def test_a_rate_is_not_decided_by_smaller_samples_or_horizons(thin, outcome):
    assert all(p.runs["samples"].min() >= thin["samples"].min() for p in outcome.proposals)
    assert any(p.runs["rank"].max() > thin["rank"].max() for p in outcome.proposals)
    assert any(p.runs["samples"].max() > 10_000 for p in outcome.proposals)


def test_what_no_runs_can_decide_is_said():
    """In a matrix of side 64, r* ~ N^0.75 crosses the trusted window, 4 to 16, within a factor of 6.3 in N."""
    law = next(p for p in planted() if p.name == "optimum N^0.75")
    found = proposed(law.measured(law.grid(law.thin), 0), "optimal_rank")
    assert found.best is None and not found.decided
    assert any("cross the trusted window within a factor of" in note for note in found.notes)
    assert any("stays untestable" in note for note in found.notes)


def test_proposals_are_ordered_and_counted(outcome):
    fair = [p for p in outcome.proposals if p.chance >= MIN_CHANCE]
    assert fair == list(outcome.proposals[: len(fair)])
    worth = [p.chance / p.cost for p in fair]
    assert worth == sorted(worth, reverse=True)
    assert outcome.proposals[0].simulations == FEW  # a finalist
    assert min(p.simulations for p in outcome.proposals) < FEW
    for p in outcome.proposals:
        assert sum(p.verdicts.values()) == pytest.approx(1.0)
        assert sum(entry["seeds"] for entry in p.needed) == len(p.runs)


def horizons(seeds, noise=0.4, c=0.5):
    return gradient_table(
        c, Design(steps=(128, 512, 1600, 4096, 12800), seeds=seeds, noise=noise), np.random.default_rng(0)
    )


@pytest.mark.parametrize(("budget", "seeds"), [(None, {6, 8, 12}), (5.1e4, {6, 7, 8}), (1e3, {6, 8})])
def test_seeds_are_more_where_runs_are_cheap_but_not_suspiciously_many(budget, seeds):
    """As one over the square root of the cost. Six seeds are there: so many at the largest T, a block more, or as many
    as the budget affords."""
    frame = horizons(6).assign(seconds=lambda t: t["steps"])
    study = STUDIES["convergence"](table_from_frame(frame), None, np.inf, 0.1, 0.2)
    found = {}
    for why, runs in study.sets([], Price.of(frame, study.design, None), budget):
        if "more where runs are cheap" in why:
            both = pd.concat([frame, runs])
            counts = both.groupby("steps")["seed"].nunique()
            found[int(why.split(", ")[1].split()[0])] = counts.to_list()
            assert survivors(counts.index.to_numpy(), counts.to_numpy(), "steps") == []
    assert set(found) == seeds
    assert found[6] == [11, 11, 11, 11, 6] and found[8] == [13, 13, 13, 13, 8]


def test_a_new_level_gets_as_many_seeds_as_the_dearest_one_has():
    frame = horizons(10)
    frame = frame[(frame["steps"] < 12800) | (frame["seed"] < 5)].assign(seconds=lambda t: t["steps"])
    study = STUDIES["convergence"](table_from_frame(frame), None, np.inf, 0.1, 0.2)
    above = next(r for why, r in study.sets([], Price.of(frame, study.design, None)) if why.endswith("(above)"))
    assert len(above) == 5 and above["steps"].min() > 12800


@pytest.mark.parametrize("dear", [5, 6, 8, 12, 20, 40])
def test_no_selection_is_suspected_where_seeds_follow_cost(dear):
    """And it would be with twice as many at the cheap end, where there are seven or more at the other."""
    levels = np.array([128.0, 512.0, 1600.0, 4096.0, 12800.0])
    counts = np.array([dear + MORE_WHERE_CHEAP] * 4 + [dear])
    assert survivors(levels, counts, "steps") == []
    assert (survivors(levels, np.array([2 * dear] * 4 + [dear]), "steps") != []) == (dear > 6)


def share_now():
    """Of the error that the intervals may spend, from how wide they are."""
    return float(stats.t.sf(t_quantile(0.975, 9.0), 9.0) / 0.025)


@pytest.mark.parametrize(
    ("made", "verdict", "needs", "chance", "wanted"),
    [
        (0, UNTESTABLE, 0.3, 1.0, ("runs", 0.357, False)),  # a fair chance at this look's level
        (0, UNTESTABLE, 0.9, 1.0, ("runs", 1.0, True)),  # only with all the error: one look, the last
        (0, UNTESTABLE, 2.0, 0.1, ("runs", 0.357, False)),  # none, but the pilot is not the end
        (0, UNTESTABLE, 2.0, 0.0, ("none", None, True)),
        (1, INCONCLUSIVE, 0.26, 1.0, ("runs", 0.263, False)),
        (1, INCONCLUSIVE, 0.6, 1.0, ("runs", 0.643, True)),
        (1, INCONCLUSIVE, 2.0, 0.1, ("runs", 0.643, True)),  # a small chance is better than none
        (1, INCONCLUSIVE, 2.0, 0.0, ("none", 1.0, True)),  # the first look's table again, with all that was kept
        (2, INCONCLUSIVE, 2.0, 0.0, ("none", 0.643, True)),
        (3, INCONCLUSIVE, 0.1, 1.0, ("runs", 0.172, True)),
        (3, INCONCLUSIVE, 2.0, 0.1, ("none", 0.38, True)),
        (1, UNTESTABLE, 2.0, 0.1, ("runs", 0.263, False)),  # a gate fails yet: the runs make it pass
        (1, UNTESTABLE, 2.0, 0.0, ("none", None, True)),
        (1, LOOSE, 0.0, 1.0, ("none", 0.263, False)),  # decided at this level without more
    ],
)
def test_the_error_that_is_left_goes_where_it_can_decide(monkeypatch, made, verdict, needs, chance, wanted):
    def planned(table, claim, *, budget, last, **_):
        assert budget > 0  # `next_runs` refuses another, and one that is spent is no mistake here
        fair = chance if share_now() >= needs or chance < MIN_CHANCE else 0.0
        proposal = Proposal("more", pd.DataFrame({"seed": [1.0]}), 1.0, verdicts={LOOSE: fair, verdict: 1 - fair})
        found = (proposal,) if fair or verdict != UNTESTABLE else ()
        return Next("", claim, verdict, found if verdict != LOOSE else (), "s", None, ())

    monkeypatch.setattr(planning, "next_runs", planned)
    step = next_step(None, "generalization", Looks(), made, budget=0.0)
    assert ("runs" if step.runs else "none", step.last) == (wanted[0], wanted[2])
    assert step.share == (None if wanted[1] is None else pytest.approx(wanted[1], abs=1e-3))


def test_runs_that_cannot_be_made_are_passed_over(monkeypatch):
    sets = tuple(
        Proposal(why, pd.DataFrame({"seed": [1.0]}), 1.0, verdicts={LOOSE: 1.0}) for why in ("first", "second")
    )
    monkeypatch.setattr(planning, "next_runs", lambda *_, **__: Next("", "dynamics", INCONCLUSIVE, sets, "s", None, ()))
    step = next_step(None, "dynamics", Looks(), 1, 1.0, lambda p: p.why != "first")
    assert step.runs is not None and step.runs.why == "second"


def parsed(lines: list[str]) -> list[tuple[float, ...]]:
    """The runs of some overrides, as a sweep would make them."""
    found = []
    for line in lines:
        pairs = dict(part.split("=") for part in line.split())
        found += list(product(*(map(float, pairs[c].split(",")) for c in ("rank", "samples", "seed"))))
    return found


def test_before_the_last_look_the_surest_runs_are_advised_not_the_cheapest():
    def proposal(why, cost, share, simulations):
        return Proposal(why, pd.DataFrame(), cost, verdicts={HOLDS: share}, simulations=simulations)

    sets = [proposal("cheap", 1.0, 0.5, 48), proposal("lucky", 5.0, 1.0, 4), proposal("sure", 10.0, 46 / 48, 48)]
    sets.append(proposal("hopeless", 0.1, 0.2, 48))
    for last, names in ((False, ["cheap", "lucky", "sure"]), (True, ["sure", "lucky", "cheap"])):
        assert [p.why for p in sorted(sets, key=lambda p, last=last: _order(p, last))] == [*names, "hopeless"]


def test_overrides_are_exactly_the_runs(outcome):
    for p in outcome.proposals:
        runs = parsed(p.overrides)
        assert len(runs) == len(set(runs)) == len(p.runs)
        assert set(runs) == set(p.runs[["rank", "samples", "seed"]].itertuples(index=False, name=None))
    ragged = pd.DataFrame([(4, 64, 0), (4, 64, 1), (8, 64, 0), (8, 256, 0)], columns=["rank", "samples", "seed"])
    p = Proposal("", ragged, 1.0)
    assert sorted(parsed(p.overrides)) == sorted(ragged.itertuples(index=False, name=None))
    assert len(p.overrides) <= 3
    assert p.needed[0] == {"rank": 4, "samples": 64, "seeds": 2}


def test_the_budget_limits_what_is_best_and_the_note_says_what_it_takes(thin, outcome):
    timed = thin.assign(seconds=0.01 * thin["samples"] ** 0.5)
    poor = proposed(timed, budget=outcome.best.cost / 10)
    assert poor.best is None
    assert all(p.affordable == (p.cost <= poor.budget) for p in poor.proposals)
    cheapest = min((p for p in poor.proposals if p.chance >= MIN_CHANCE), key=lambda p: p.cost)
    assert any("no affordable set of runs" in note and cheapest.why in note for note in poor.notes)
    none = [replace(p, affordable=False) for p in poor.proposals]
    assert "no set of runs costs at most 1e-06 s" in _advice(none, [], "s", 1e-6)


def test_the_cost_of_a_run_is_fitted_in_the_coordinates():
    frame = gap_table(1.0, 1.0, DEMO, np.random.default_rng(0))
    design = ["rank", "samples"]
    frame["seconds"] = 0.02 * frame["rank"] ** 0.5 * frame["samples"] ** 0.75
    runs = pd.DataFrame({"rank": [64.0, 3.0], "samples": [50000.0, 100.0], "seed": [0.0, 0.0]})
    price = Price.of(frame, design, None)
    wanted = 0.02 * (64**0.5 * 50000**0.75 + 3**0.5 * 100**0.75)
    assert (price.unit, price.each(runs).sum()) == ("s", pytest.approx(wanted))
    energy = Price.of(frame.assign(joules=7.0), design, "joules")
    assert (energy.unit, energy.each(runs).sum()) == ("joules", pytest.approx(14.0))
    plain = frame.drop(columns="seconds")
    assert Price.of(plain, design, None).each(runs).sum() == 2.0
    stepped = Price.of(plain.assign(steps=plain["samples"] / 4, batch_size=8), design, None)
    assert (stepped.unit, stepped.each(runs).sum()) == ("steps x batch size", pytest.approx(2 * 50100.0))


def test_a_cost_may_be_a_formula():
    """Of coordinates it is taken as it is, where a power law would not do; of other columns it is fitted."""
    frame = gap_table(1.0, 1.0, DEMO, np.random.default_rng(0)).assign(**{"total flops": 3.0})
    design, runs = ["rank", "samples"], pd.DataFrame({"rank": [64.0, 3.0], "samples": [50000.0, 100.0]})
    exact = Price.of(frame, design, "5 + rank*samples")
    assert (exact.unit, exact.each(runs).tolist()) == ("units", [5 + 64 * 50000.0, 5 + 3 * 100.0])
    other = Price.of(frame.assign(width=2.0 * frame["rank"]), design, "width*`total flops`")
    np.testing.assert_allclose(other.each(runs), 6 * runs["rank"])
    named = Price.of(frame, design, "total flops")
    assert named.unit == "total flops"
    np.testing.assert_allclose(named.each(runs), 3.0)
    assert Price.of(pd.DataFrame(), design, "7").each(runs).tolist() == [7.0, 7.0]
    for wrong, said in (
        ("rank-10", "rank-10: it is -7 at rank = 3; it has to be positive"), ("-1", "-1: it is -1; it has to be"),
        ("ranks", "ranks is no column; 'rank' is one, write rank"), ("2*", "not an expression"),
        ("gap-1e9", "there is no run where it is a positive number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(said)):
            Price.of(frame, design, wrong).each(runs)


def test_an_empty_design_has_the_cost_that_is_given(theory):
    design = ("next", "--claim", "convergence", "--steps", "128,512,1600,4096,12800", "--simulations", FEW)
    ends = {}
    for cost in ("steps", "1000"):
        found = json.loads(theory(*design, "--cost", cost, "--json", "-").out)
        whole = next(p for p in found["proposals"] if p["why"] == "the whole grid, 5 seeds")
        ends[cost] = whole["cost"]
    assert ends == {"steps": 5 * (128 + 512 + 1600 + 4096 + 12800), "1000": 25_000}
    error = theory(*design, "--cost", "samples*steps").error
    assert error.startswith("--cost samples*steps: samples is no coordinate of the design; give a number or a formula")


def test_a_few_runs_that_take_long_are_paid_for():
    frame = gap_table(1.0, 1.0, DEMO, np.random.default_rng(0)).assign(seconds=1.0)
    frame.loc[frame.index[::25], "seconds"] = 50.0
    runs = frame[["rank", "samples", "seed"]]
    assert Price.of(frame, ["rank", "samples"], None).each(runs).sum() == pytest.approx(frame["seconds"].sum())


def test_gates_are_asked_until_they_pass():
    """Three horizons over one decade: the levels that are asked for have to pass the gate on the top half as well."""
    frame = gradient_table(-1.0, Design(steps=(128, 512, 1600), seeds=5, noise=0.2), np.random.default_rng(0))
    asked = next(p for p in proposed(frame, "convergence").proposals if p.why == "what the gates ask for")
    levels = np.unique([*frame["steps"], *asked.runs["steps"]])
    assert [g.tier for g in gates.size_gates("steps", levels)] == [gates.FIRST] * 3


def test_without_a_chance_the_first_step_makes_the_claim_testable():
    """At the claimed rate, with this noise, one step decides nothing; runs that leave the gates shut come last."""
    law = next(p for p in planted() if p.name == "gradient T^-0.5")
    found = proposed(law.measured(law.grid(law.thin), 1), "convergence", seed=1)
    assert found.verdict == "UNTESTABLE"
    shares = [p.verdicts.get("UNTESTABLE", 0.0) for p in found.proposals if p.chance == 0]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert found.first_step is not None and found.first_step.verdicts.get("UNTESTABLE", 0.0) == 0.0
    assert all(p.simulations == 2 for p in found.proposals if p.verdicts == {"UNTESTABLE": 1.0})


def test_new_levels_of_two_coordinates_are_crossed():
    few = replace(DEMO, ranks=(2, 8), samples=(164, 1600))
    frame = gap_table(1.0, 1.0, few, np.random.default_rng(0))
    found = check_table(frame, claims=["generalization"])["generalization"]
    study = STUDIES["generalization"](table_from_frame(frame), None, np.inf, 0.1, 0.2)
    sets = study.sets(found.fields["needed"], Price.of(study.frame, study.design, None))
    (asked,) = [runs for why, runs in sets if why == "what the gates ask for"]
    both = pd.concat([frame, asked])
    ranks, samples = np.unique(both["rank"]), np.unique(both["samples"])
    assert {g.tier for g in (*gates.rank_gates(ranks), *gates.size_gates("samples", samples))} == {gates.FIRST}
    assert len(both) == len(ranks) * len(samples) * 5


def test_an_empty_design_is_thinned_within_the_gates():
    found = theory.next(claim="convergence", steps=[128, 512, 1600, 5120, 12800], noise=0.4, simulations=FEW)
    assert found.verdict == "" and found.unit == "steps"
    for p in found.proposals:
        levels = np.unique(p.runs["steps"])
        assert len(levels) >= 4 and [g.tier for g in gates.size_gates("steps", levels)] == [gates.FIRST] * 3
    (by_cost,) = [p.runs for p in found.proposals if p.why == f"the whole grid, 5 {MORE_SEEDS}"]
    assert by_cost.groupby("steps").size().to_list() == [10, 10, 10, 8, 5]
    surface = theory.next(
        claim="optimal_rank", rank=[2, 4, 8, 16, 32], samples=[100, 400, 1600], noise=0.05, simulations=FEW
    )
    assert len(surface.proposals[0].runs) > 0


@pytest.mark.parametrize(("claim", "wide"), [("dynamics", 20.0), ("information", 0.5)])
def test_claims_of_ratios_get_seeds_only(claim, wide):
    design = replace(DEMO, seeds=4)
    draw = dynamics_table if claim == "dynamics" else information_table
    found = proposed(draw(wide, design, np.random.default_rng(2)), claim)
    assert found.verdict == "UNTESTABLE"  # a seed is missing
    assert found.best is not None and found.best.verdicts == {"REFUTED": 1.0}
    assert found.best.runs["seed"].nunique() == 1 and found.best.runs["seed"].iloc[0] == 4.0
    assert found.best.overrides == (["seed=4"] if claim == "dynamics" else ["clone_weight=0,0.01,0.1,1,10 seed=4"])


# --- what is believed ------------------------------------------------------------------------------------------------


def test_noise_is_measured_in_its_parts():
    design = replace(DEMO, seeds=60, noise=0.06, intercept_sd=0.08, slope_sd=0.0)
    frame = gap_table(1.0, 0.5, design, np.random.default_rng(0))
    noise = Noise.of(frame, ["rank", "samples"], "gap", 0.2, "samples")
    assert noise.seed == pytest.approx(0.64, abs=0.12) and noise.block == pytest.approx(0.0, abs=0.05)
    point = pd.DataFrame({"rank": [8.0], "samples": [1600.0], "seed": [999.0]})
    mean = np.array([0.1 * 8 / 40])
    assert noise.sd(point, mean) / mean == pytest.approx(0.1, rel=0.15)
    drawn = [noise.draw(point, mean, np.random.default_rng(k))[0] for k in range(400)]
    assert np.mean(drawn) == pytest.approx(mean[0], rel=0.02) and np.std(drawn) / mean == pytest.approx(0.1, rel=0.2)
    # A known seed keeps its deviation in cells where it has not been run.
    known = frame.groupby("seed")["gap"].mean()
    high, low = known.idxmax(), known.idxmin()
    both = [
        noise.draw(point.assign(seed=s), mean, np.random.default_rng(k))[0] for s in (low, high) for k in range(100)
    ]
    assert np.mean(both[100:]) > np.mean(both[:100]) * 1.15


def believed(frame: pd.DataFrame) -> RateLaws:
    names = ["rank", "samples"]
    noise = Noise.of(frame, names, "gap", 0.2, "samples")
    levels = {c: np.unique(frame[c]) for c in names}
    return RateLaws(build_cells(frame, names, "gap"), "samples", "rank", [], noise, levels)


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_drawn_laws_cover_the_planted_one_beyond_the_table(share):
    design = replace(DEMO, noise=0.1, intercept_sd=0.05)
    law = with_offset(power(1.0), share, design) if share else power(1.0)
    beyond = pd.DataFrame({"rank": [8.0, 40.0], "samples": [50000.0, 16400.0]})
    truth = law(beyond["rank"].to_numpy(), beyond["samples"].to_numpy())
    inside, straight = [], []
    for k in range(8):
        rng = np.random.default_rng(k)
        laws = believed(law_table(law, design, rng))
        names = laws.shares()
        assert sum(names.values()) == pytest.approx(1.0)
        straight.append(names["straight"])
        assert not share or names["plateau"] > 0.9
        drawn = np.log([laws.draw(rng)(beyond) for _ in range(60)])
        error, spread = np.log(truth) - drawn.mean(axis=0), drawn.std(axis=0)
        assert (np.abs(error) < 0.5).all()
        inside.append(np.abs(error) < 2.5 * spread + 0.02)
    assert np.mean(inside) >= 0.8
    assert np.mean(straight) > 0.4 if not share else max(straight) < 0.01


def test_a_plateau_is_linear_around_its_grid():
    """The law between two plateaus of the grid, which only its derivative in the share gives."""
    design = replace(DEMO, noise=0.01, intercept_sd=0.0, slope_sd=0.0)
    share = 0.6 / 0.4  # the plateau is 60 % of the mean at the largest N, between .5 and .75
    law = with_offset(power(1.05), share, design)
    laws = believed(law_table(law, design, np.random.default_rng(0)))
    beyond = pd.DataFrame({"rank": [8.0], "samples": [164000.0]})
    drawn = np.array([laws.draw(np.random.default_rng(k))(beyond)[0] for k in range(40)])
    assert np.median(drawn) == pytest.approx(float(law(8.0, 164000.0)), rel=0.05)
    assert np.std(np.log(drawn)) < 0.1


def test_drawn_surfaces_have_the_planted_optima():
    surface = planted_surface(1.5, 1.0, 1.0, 8.0, 1600)
    frame = risk_table(surface, replace(GRID, noise=0.05), np.random.default_rng(0), dimension=64)
    names = ["rank", "samples"]
    noise = Noise.of(frame, names, "test_loss", 0.2, "samples")
    levels = {c: np.unique(frame[c]) for c in names}
    laws = SurfaceLaws(build_cells(frame, names, "test_loss"), noise, RankCost(64.0), levels)
    ranks, rng = np.geomspace(1, 60, 200), np.random.default_rng(0)
    for samples in (500.0, 5000.0):
        grid = pd.DataFrame({"rank": ranks, "samples": samples})
        best = [np.log(ranks[np.argmin(laws.draw(rng)(grid))]) for _ in range(60)]
        assert np.median(best) == pytest.approx(np.log(surface.best_rank(samples)), abs=0.12)
        assert np.std(best) < 0.2


# --- the words of simulated tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(1.0, 1.0), (1.0, 0.5), (1.0, 0.35), (0.6, 0.5), (1.4, 0.7)])
def test_the_quick_words_are_those_of_the_judge(b, c):
    for k in range(2):
        frame = gap_table(b, c, DEMO, np.random.default_rng(k))
        found = check_table(frame, claims=["generalization"])["generalization"].exponents
        cells = build_cells(frame, ["rank", "samples"], "gap")
        quick = words_of(cells, "gap", generalization.COORDINATES, 0.1)
        for name, exponent in found.items():
            allowed = {exponent.verdict} | ({HOLDS} if exponent.verdict == CONSISTENT else set())
            assert quick[name] in allowed


def test_a_step_of_the_search_halves_the_bracket_of_the_best_rank():
    """r* = 1.3 sqrt N in a matrix of side 64: inside the ranks, below the first and beyond the last of them."""
    runs = pd.DataFrame(product((4, 8, 16), (2.0, 30.0, 400.0), range(3)), columns=["rank", "samples", "seed"])
    optimum = 1.3 * runs["samples"] ** 0.5
    risk = 1 + np.log(runs["rank"] / optimum) ** 2 + 1e-3 * runs["seed"] * runs["rank"]
    frame = runs.assign(test_loss=risk, d_in=64, d_out=64)
    study = STUDIES["optimal_rank"](table_from_frame(frame), None, np.inf, 0.1, 0.05)
    ranks = study._halved().groupby("samples")["rank"].agg(list).to_dict()
    assert ranks == {2.0: [2, 3, 4, 6, 8], 30.0: [4, 6, 8, 11, 16], 400.0: [8, 11, 16, 23, 32]}
    new = dict(study.sets([], Price.of(frame, study.design, None)))["the bracket of the best rank halved at every N"]
    assert set(new[new["rank"] == 6]["seed"]) == {0, 1, 2, 3, 4}  # the known seeds first: runs of a seed are paired
    assert set(new[new["rank"] == 8]["seed"]) == {3, 4}


def test_the_quick_word_of_the_optimal_rank_is_that_of_the_judge():
    for k, gamma in enumerate((0.7, 1.0, 1.6)):
        design = Design(ranks=(2, 3, 4, 6, 8, 11, 15, 20, 26, 40), samples=(300, 600, 1200, 2400, 4800), noise=0.03)
        frame = risk_table(planted_surface(1.0, 1.0, gamma, 9.0, 1200), design, np.random.default_rng(k), dimension=128)
        _, cells, _ = optimal_rank.risk_cells(table_from_frame(frame))
        quick = optimal_rank.word_of(cells, optimal_rank.rank_cost(frame), 0.1)
        assert quick == check_table(frame, claims=["optimal_rank"])["optimal_rank"].verdict


# --- following the advice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient T^-0.25", "gap r/N", "optimum N^0.33"])
def test_following_the_advice_decides_rightly_for_less(name):
    law = next(p for p in planted() if p.name == name)
    followed = follow(law, 1, FEW)
    assert followed.word in ("REFUTED" if law.wrong else "CONSISTENT", "LOOSE", "HOLDS")
    assert not harmful(law, followed.word)
    assert followed.spent < followed.full_cost and followed.looks in (1, 2, 3, 4)
    seeds = max(1, round(followed.spent / followed.full_cost * law.full.seeds))
    grid = law.measured(law.grid(replace(law.full, seeds=seeds)), 1)
    assert followed.equal_word == check_table(grid, claims=[law.claim])[law.claim].verdict


def test_a_run_is_the_same_whenever_it_is_made():
    law = next(p for p in planted() if p.claim == "convergence")
    runs = law.grid(law.full)
    some = law.measured(runs.iloc[5:9], 3)["grad_norm_sq"].to_numpy()
    assert (law.measured(runs, 3)["grad_norm_sq"].to_numpy()[5:9] == some).all()


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_writes_json_and_prints_overrides(theory, thin, tmp_path):
    path, out = tmp_path / "thin.csv", tmp_path / "next.json"
    thin.assign(seconds=1.0).to_csv(path, index=False)
    done = theory("next", path, "--claim", "generalization", "--simulations", FEW, "--budget", 500, "--json", out)
    assert done.code == 0 and "lrc run -m rank=2" in done.out and "UNTESTABLE" in done.out
    written = json.loads(out.read_text())
    assert (written["claim"], written["decided"], written["unit"], written["budget"]) == (
        "generalization", False, "s", 500,
    )  # fmt: skip
    assert written["best"] == written["proposals"][0]
    assert set(written["best"]["needed"][0]) == {"rank", "samples", "seeds"}
    assert written["best"]["cost"] == pytest.approx(written["best"]["runs"])
    again = theory("next", path, "--claim", "generalization", "--simulations", FEW, "--budget", 500, "--json", "-")
    assert json.loads(again.out) == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--claim", "nonsense", "FILE"], "--claim nonsense: no runs can be proposed for it; choose from"),
        (["--claim", "efficiency", "FILE"], "--claim efficiency: no runs can be proposed"),
        (["--claim", "generalization", "FILE", "--budget", "-3"], "--budget -3: must be positive"),
        (
            ["--claim", "generalization", "FILE", "--cost", "euros"],
            "--cost euros: euros is no column; give a number or",
        ),
        (["--claim", "generalization", "FILE", "--rank", "2,4"], "with a table they are read from it"),
        (["--claim", "convergence", "FILE"], "convergence lacks"),
        (["--claim", "generalization"], "give a table, or an empty design"),
        (["--claim", "dynamics"], "give a table, or an empty design"),
    ],
)
def test_bad_input_is_one_line(theory, thin, tmp_path, arguments, said):
    path = tmp_path / "thin.csv"
    thin.to_csv(path, index=False)
    assert said in theory("next", *(str(path) if a == "FILE" else a for a in arguments)).error


def test_a_fixed_step_cannot_be_helped_by_runs():
    frame = gradient_table(-0.5, Design(steps=(128, 512, 2048, 16384), seeds=5), np.random.default_rng(0))
    with pytest.raises(InputError, match="step_size: the same at every horizon"):
        proposed(frame.assign(step_size=0.1), "convergence")


def test_every_claim_of_the_list_is_asked():
    assert CLAIMS == ("generalization", "optimal_rank", "convergence", "information", "dynamics")


def test_the_printed_table_has_no_empty_columns(theory):
    """Words that no simulated table got, and the remark on a budget where there is none, take no room."""
    said = theory("next", "--claim", "convergence", "--steps", "128,512,1600,4096,12800", "--simulations", FEW).out
    header = next(line for line in said.splitlines() if "runs to add" in line)
    assert "chance of a verdict" in header and "UNTESTABLE" not in header
    assert "over the budget" not in said and all(cell.strip() for cell in header.strip("┃").split("┃"))
