"""`theory choose`: the rows it takes predict better than random ones of equal cost; nothing unseen is read."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scalebench
from scalebench import BEGIN, END, KEYS, PUBLISHED, into_page, main, table_of

import theory as judge
from theory.design.choose_runs import choose_runs, covariance, plan
from theory.laws.parser import parse_law
from theory.tables import InputError, Table

LAW, COST = "E + A*params**-a + B*tokens**-b", "6*params*tokens"
NOISE = 0.004


def loss(frame):
    return 1.7 + 400.0 * frame["params"] ** -0.35 + 900.0 * frame["tokens"] ** -0.3


@pytest.fixture(scope="module")
def candidates():
    """A grid whose dearest run costs a million times the cheapest, and the runs that it has to predict."""
    rng = np.random.default_rng(3)
    params, tokens = np.meshgrid(np.geomspace(1e7, 1e9, 9), np.geomspace(1e8, 1e11, 10))
    frame = pd.DataFrame({"params": params.ravel(), "tokens": tokens.ravel()})
    frame["truth"] = loss(frame) * np.exp(NOISE * rng.standard_normal(len(frame)))
    frame["loss"] = np.nan
    return frame


TARGET = pd.DataFrame({"params": [4e9, 1e10], "tokens": [4e11, 1e12]})


def followed(frame, budget, criterion="target"):
    """Rows that are bought when the advice is followed to the end."""
    frame, left, rounds = frame.copy(), budget, 0
    while True:
        known = frame.drop(columns="truth")
        choice = choose_runs(Table(known), [LAW], "loss", cost=COST, budget=left, at=Table(TARGET), criterion=criterion)
        now = choice.rows.index[choice.now]
        if not len(now):
            return frame[frame["loss"].notna()], rounds
        frame.loc[now, "loss"] = frame.loc[now, "truth"]
        left -= choice.cost[choice.now].sum()
        rounds += 1


def error(rows):
    """Root mean square log error to be expected at the target of a fit to these rows, linearised at the truth."""
    law, theta = parse_law(LAW, rows.columns), np.array([[1.7, 400.0, 0.35, 900.0, 0.3]])

    def slopes(frame):
        value, jacobian = law.evaluate(theta, {c: frame[c].to_numpy() for c in law.columns})
        return jacobian[0] / value[0][:, None]

    at_runs, at_target = slopes(rows), slopes(TARGET)
    return NOISE * float(np.sqrt(np.mean(np.sum((at_target @ np.linalg.pinv(at_runs)) ** 2, axis=1))))


def price(frame):
    return 6 * frame["params"] * frame["tokens"]


def affordable(frame, order, budget):
    return frame.loc[scalebench.affordable(order, price(frame).to_numpy(), budget)]


def test_chosen_rows_extrapolate_better_than_others_of_equal_cost(candidates):
    budget = 0.003 * price(candidates).sum()
    rows, rounds = followed(candidates, budget)
    assert price(rows).sum() <= budget * (1 + 1e-6)
    assert rounds >= 4
    rng = np.random.default_rng(0)
    others = [error(affordable(candidates, rng.permutation(len(candidates)), budget)) for _ in range(9)]
    assert error(rows) < min(others)
    assert error(rows) < 0.65 * np.median(others)
    assert error(rows) < 0.9 * error(affordable(candidates, np.argsort(price(candidates)), budget))


def test_losses_of_candidates_are_not_read(candidates):
    """The order of hidden losses changes nothing: only the filled column is read."""
    some = candidates.assign(loss=candidates["truth"].where(price(candidates) < 1e17))
    a = choose_runs(Table(some), [LAW], "loss", cost=COST, budget=1e20, at=Table(TARGET))
    hidden = some.assign(truth=some["truth"].where(some["loss"].notna(), 1e9))
    b = choose_runs(Table(hidden), [LAW], "loss", cost=COST, budget=1e20, at=Table(TARGET))
    assert a.rows.index.tolist() == b.rows.index.tolist()
    assert not set(a.rows.index) & set(some.index[some["loss"].notna()])


def test_the_predicted_deviation_is_of_the_size_of_the_error(candidates):
    """Over repeated noise the errors at the target, in units of the stated deviation, are neither tiny nor huge."""
    some = candidates[price(candidates) < 3e18]
    scores = []
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)
        frame = candidates.assign(loss=(loss(some) * np.exp(NOISE * rng.standard_normal(len(some)))))
        made = choose_runs(Table(frame), [LAW], "loss", cost=COST, budget=1e18, at=Table(TARGET)).targets
        scores.append((np.log(made["prediction"] / loss(TARGET)) / (made["sd"] / made["prediction"])).iloc[0])
    assert 0.3 < np.sqrt(np.mean(np.square(scores))) < 2.0


@pytest.mark.parametrize("size", [1.0, 1e-3, 250.0])
def test_predictions_are_in_the_target_s_unit_where_it_is_negative(candidates, size):
    law = "E + A*log(params) + B*log(tokens)"
    score = lambda at: size * (0.05 * np.log(at["params"]) + 0.08 * np.log(at["tokens"]) - 4.0)  # noqa: E731
    some = candidates[price(candidates) < 3e18]
    noise = size * NOISE * np.random.default_rng(0).standard_normal(len(some))
    frame = candidates.assign(loss=score(some) + noise)
    choice = choose_runs(Table(frame), [law], "loss", cost=COST, budget=1e18, at=Table(TARGET), signed=["E", "A", "B"])
    made, truth = choice.targets, score(TARGET)
    assert abs(made["prediction"] - truth).iloc[0] < 4 * made["sd"].iloc[0] < 0.1 * abs(truth).iloc[0]
    assert not any("no law comes nearer" in note for note in choice.notes)


def test_a_law_that_tells_nothing_of_the_runs_is_named(candidates):
    """Of positive parameters alone, the law can be no negative number."""
    frame = candidates.assign(loss=-candidates["truth"].where(price(candidates) < 3e18))
    (note,) = (n for n in judge.choose(frame, LAW, target="loss", cost=COST, budget=1e18).notes if "no law comes" in n)
    assert "--signed" in note
    known = candidates.assign(loss=candidates["truth"].where(price(candidates) < 3e18))
    for budget in (1e18, 1e20):
        notes = judge.choose(known, LAW, target="loss", cost=COST, budget=budget).notes
        assert not any("no law comes nearer" in n for n in notes)


def test_a_plan_is_the_linear_optimum():
    """Of two measurements of independent parameters, the one on which the target depends is chosen."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((4000, 2))
    points = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])  # two candidates, a target of the first parameter
    between = covariance(theta @ points.T, 0.1)
    chosen, left = plan(between, 0.1, np.array([1.0, 1.0]), 1.0)
    assert chosen == [0]
    assert left[2, 2] == pytest.approx(4 * 0.01 / 1.01, rel=0.1)
    assert plan(between, 0.1, np.array([1.0, 1.0]), 1.0, "information")[0] == [1]


def test_a_dear_run_that_says_more_comes_before_cheap_ones():
    between = np.array([[0.011, 0.0, 0.1], [0.0, 1.0, 0.99], [0.1, 0.99, 1.9]])
    assert plan(between, 0.05, np.array([0.001, 1.0]), 1.0)[0] == [1]
    assert plan(between, 0.05, np.array([0.001, 1.0]), 0.9)[0] == [0]  # the dear one cannot be paid


def test_every_direction_of_the_target_counts_not_only_the_least_certain():
    """A second run in a direction that matters ten times as much would lower the variance at the target more."""
    points = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 0.0], [0.0, 1.0]])  # three candidates, two targets
    between = points @ np.diag([1.0, 0.04]) @ points.T
    chosen, left = plan(between, 0.1, np.ones(3), 2.0)
    assert chosen == [0, 2]
    assert np.diag(left)[3:] == pytest.approx([100 * 0.01 / 1.01, 0.04 * 0.01 / 0.05])


def test_what_does_not_matter_at_the_target_is_not_bought():
    """The law's largest uncertainty is bought only for the law itself."""
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    between = points @ np.diag([0.04, 9.0]) @ points.T
    assert plan(between, 0.1, np.ones(2), 1.0)[0] == [0]
    assert plan(between, 0.1, np.ones(2), 1.0, "information")[0] == [1]


@pytest.mark.parametrize(("cost", "first"), [(0.1, 0), (0.4, 1)])
def test_information_counts_per_square_root_of_the_cost(cost, first):
    """The second tells 2.0 times as much: it is worth 4.0 times the cost."""
    small, large = (0.01 * (np.exp(nats) - 1.0) for nats in (1.0, 2.0))
    chosen, _ = plan(np.diag([small, large, 0.0]), 0.1, np.array([cost, 1.0]), 1.0 + cost, "information")
    assert chosen == [first, 1 - first]


def test_the_first_round_takes_the_cheapest(candidates):
    choice = choose_runs(Table(candidates), [LAW], "loss", cost=COST, budget=1e20)
    assert choice.now.all() and len(choice.rows) == 5
    assert sorted(choice.cost) == sorted(price(candidates))[:5]
    assert choice.targets["prediction"].isna().all()


def test_one_run_and_a_law_of_five_parameters(candidates):
    frame = candidates.assign(loss=candidates["truth"].where(candidates.index == 0))
    choice = choose_runs(Table(frame), [LAW], "loss", cost=COST, budget=1e19, at=Table(TARGET))
    assert choice.now.sum() >= 1
    assert (choice.targets["sd_planned"] < 0.7 * choice.targets["sd"]).all()


def test_rival_laws_are_weighed(candidates):
    """A law that cannot describe the runs has no say."""
    frame = candidates.assign(loss=candidates["truth"].where(price(candidates) < 1e19))
    good = choose_runs(Table(frame), [LAW], "loss", cost=COST, budget=1e19, at=Table(TARGET)).targets
    both = choose_runs(Table(frame), [LAW, "C*params**-c"], "loss", cost=COST, budget=1e19, at=Table(TARGET)).targets
    assert both["prediction"].to_numpy() == pytest.approx(good["prediction"].to_numpy(), rel=1e-3)


def test_command_line_and_json(theory, tmp_path, candidates):
    path, at, out = (tmp_path / name for name in ("t.csv", "at.csv", "out.json"))
    candidates.assign(loss=candidates["truth"].where(price(candidates) < 1e17)).to_csv(path, index=False)
    TARGET.to_csv(at, index=False)
    arguments = ("choose", path, "--law", LAW, "--target", "loss", "--cost", COST, "--budget", 1e19, "--at", at)
    done = theory(*arguments, "--json", out)
    assert done.code == 0
    assert "Train these now" in done.out
    made = json.loads(out.read_text())
    assert sum(run["cost"] for run in made["runs"]) <= 1e19 * (1 + 1e-6)
    assert {"row", "cost", "now", "columns"} <= set(made["runs"][0])
    assert set(made["targets"][0]) == {"params", "tokens", "prediction", "sd", "sd_planned"}
    theory(*arguments, "--json", tmp_path / "again.json")
    assert out.read_bytes() == (tmp_path / "again.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cost": "6*params*widths"}, "widths is no column"),
        ({"cost": "params - 1e9"}, "it has to be positive"),
        ({"budget": -1.0}, "budget -1"),
        ({"target": "truth"}, "leave it empty in candidate runs"),
        ({"signed": ["q"]}, "q: not a parameter"),
    ],
)
def test_refusals(candidates, change, said):
    arguments = {"target": "loss", "cost": COST, "budget": 1e19} | change
    with pytest.raises(InputError, match=said):
        judge.choose(candidates, LAW, **arguments)


def test_a_budget_below_the_cheapest_run_is_said(candidates):
    choice = judge.choose(candidates, LAW, target="loss", cost=COST, budget=1.0)
    assert not len(choice.rows)
    assert "the cheapest costs" in choice.notes[-1]


def scores():
    """Of two laws of one task; the random choice has two seeds, and one law has no D-optimal score."""
    reached = zip(PUBLISHED["farseer"], (0.5, 1.0, -1.0), strict=True)
    rows = [("farseer", law, "choose", share, 0, r2) for share, r2 in reached for law in ("a", "b")]
    rows += [("farseer", law, "random", 0.1, seed, 0.2 * seed) for law in ("a", "b") for seed in (0, 1)]
    rows.append(("farseer", "a", "d_optimal", 0.05, 0, 0.456))
    return pd.DataFrame(rows, columns=[*KEYS, "r2"])


def test_the_table_of_scores_says_where_laws_are_missing(tmp_path):
    lines = table_of(scores()).splitlines()
    assert lines[2] == "| farseer 1 % | .50 ± .00 |  |  |  |  | .60 |"
    assert lines[3] == "| farseer 5 % | 1.00 ± .00 |  | .46 ± .00 (1 of 2 laws) |  |  | .88 |"
    assert lines[4] == "| farseer 10 % | -1.00 ± .00 |  |  |  | .10 ± .10 | .93 |"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    into_page("\n".join(lines), page)
    assert page.read_text() == f"before\n{BEGIN}\n" + "\n".join(lines) + f"\n{END}\nafter\n"


POWER = pd.Series({"task": "farseer", "law": "p", "formula": "A*N**-a", "parameters": "A a", "signed": ""})


def write_runs(folder, n, noise=1.0):
    """Runs of the law `POWER` at sizes n, of which the last three are the test."""
    rows = pd.DataFrame({"group": "all_data", "N": n, "D": 20 * n, "loss": 50 * n**-0.2 * noise})
    rows[:-3].to_csv(folder / "farseer_train.csv", index=False)
    rows[-3:].to_csv(folder / "farseer_test.csv", index=False)


def test_a_stopped_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Scores that are in the file are not computed again, the others are added to it."""
    folder, out = tmp_path / "bench", tmp_path / "scores.csv"
    folder.mkdir()
    POWER.to_frame().T.assign(signed="a").to_csv(folder / "laws.csv", index=False)
    write_runs(folder, np.geomspace(1e6, 1e9, 12))
    words = "--choose --strategy cheapest --jobs 1 --seeds 1 --csv"
    asked = ["scalebench", str(folder), *words.split(), str(out)]
    monkeypatch.setattr("sys.argv", asked)
    main()
    first = pd.read_csv(out)
    assert first["share"].tolist() == pytest.approx(list(PUBLISHED["farseer"])) and first["r2"].iloc[-1] > 0.999
    first.assign(r2=0.25)[:2].to_csv(out, index=False)
    capsys.readouterr()
    main()
    again = pd.read_csv(out)
    assert again["r2"].tolist()[:2] == [0.25, 0.25] and len(again) == 3
    assert "1/1" in capsys.readouterr().out


def test_every_seed_but_the_first_takes_the_runs_in_another_order(tmp_path):
    """Two runs of each size differ only in their noise; which is bought depends on the order."""
    n = np.concatenate([np.repeat(np.geomspace(1e6, 1e9, 6), 2), [2e9, 4e9, 8e9]])
    noise = np.tile([0.01, -0.01], 6) * np.geomspace(1, 2, 12)
    write_runs(tmp_path, n, np.exp(np.concatenate([noise, np.zeros(3)])))
    # Half a pair is bought last: its other half in another order.
    scores = [scalebench.one(tmp_path, POWER, "cheapest", 3e-5, seed, False)[0]["cheapest"] for seed in (0, 0, 1, 2, 3)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


def test_the_prediction_of_the_choice_is_scored_beside_the_fit(tmp_path):
    write_runs(tmp_path, np.geomspace(1e6, 1e9, 12))
    found, bought, _ = scalebench.one(tmp_path, POWER, "choose", 0.5, 0, False)
    assert set(found) == {"choose", "prediction"} and bought > 2
    assert found["choose"] > 0.999 and 0.9 < found["prediction"] != found["choose"]
    assert set(scalebench.one(tmp_path, POWER, "cheapest", 0.5, 0, False)[0]) == {"cheapest"}


def test_only_what_can_be_paid_is_bought():
    assert scalebench.affordable([2, 0, 1], np.array([1.0, 3.0, 2.0]), 3.0) == [2, 0]
