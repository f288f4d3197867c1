"""Laws of one's own: what a table does not determine, random laws, predictions, and two groups compared."""

from __future__ import annotations

import json
import warnings

import coverage_of_fits
import numpy as np
import pandas as pd
import pytest

import theory as judge
from theory.laws.parser import LawError, parse_law
from theory.laws.predict import read_fit
from theory.laws.user_law import fit_law
from theory.tables import InputError


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 10, 120), 10 ** rng.uniform(8, 11, 120)
    loss = (1.7 + 400 * params**-0.34 + 410 * tokens**-0.28) * np.exp(0.005 * rng.standard_normal(120))
    return pd.DataFrame({"params": params, "tokens": tokens, "k": 3.0, "loss": loss})


@pytest.mark.parametrize(
    ("law", "loose", "said"),
    [
        ("E*F + A*params**-a", {"E", "F"}, "E*F = 1.7 is"),
        ("E + F + A*params**-a", {"E", "F"}, "E+F = 1.7 is"),
        ("L + K*(params**alpha)**-gamma", {"alpha", "gamma"}, "alpha*gamma = 0.34 is"),
        ("E + A*params**-a*params**-b", {"a", "b"}, "a+b = 0.34 is"),
        ("E + A*k**-a + B*tokens**-b", {"E", "A", "a"}, "vary k: a constant column says nothing about"),
    ],
)
def test_what_no_row_tells_apart_is_not_determined(table, law, loose, said):
    if "tokens" not in law:
        noise = np.exp(0.005 * np.random.default_rng(1).standard_normal(len(table)))
        table = table.assign(loss=(1.7 + 400 * table["params"] ** -0.34) * noise)
    fit = fit_law(table, law, "loss", bootstraps=60)
    assert {name for name, known in fit.determined.items() if not known} == loose
    for name in loose:
        assert np.isnan(fit.intervals[name].low) and np.isnan(fit.profiles[name].high)
        assert fit.to_dict()["parameters"][name]["determined"] is False
    text, _, number = said.partition(" = ")
    if number:
        value = float(number.split()[0])
        notes = " ".join(fit.notes)
        found = float(notes.split(f"{text} = ")[1].split()[0])
        assert found == pytest.approx(value, rel=0.05)
    else:
        assert any(said in note for note in fit.notes)


def test_columns_that_never_vary_apart_are_named(table):
    tied = table.assign(tokens=20 * table["params"])
    tied["loss"] = 1.7 + 400 * tied["params"] ** -0.34
    fit = fit_law(tied, "E + A*params**-a*tokens**-b", "loss", bootstraps=60)
    assert {n for n, known in fit.determined.items() if not known} == {"A", "a", "b"}
    assert any("a+b = 0.34" in n and "vary params and tokens apart" in n for n in fit.notes)
    apart = fit.predict(pd.DataFrame({"params": [1e8, 1e8], "tokens": [2e9, 2e6]})).frame
    assert np.isfinite(apart["low"].iloc[0]) and np.isnan(apart["low"].iloc[1])


def test_a_term_that_vanishes_is_named_with_its_remedy(table):
    rising = table.assign(loss=1.0 + 0.01 * np.log(table["params"]))
    fit = fit_law(rising.assign(loss=rising["loss"].to_numpy()[::-1]), "E + A*params**-a", "loss", bootstraps=60)
    assert fit.determined["E"]
    fit = fit_law(rising, "E + A*params**-a", "loss", bootstraps=60)
    assert not fit.determined["A"]
    assert any("is at its boundary" in n and "--signed" in n for n in fit.notes)


def test_intervals_need_draws(table):
    fit = fit_law(table, "E + A*params**-a", "loss", bootstraps=1)
    assert all(np.isnan(i.low) for i in fit.intervals.values())
    assert any("1 bootstrap draws have no 2.5 % tail" in n for n in fit.notes)


def test_a_base_of_zero_is_a_value_where_its_power_is_positive():
    x = np.linspace(1.0, 4.0, 40)
    frame = pd.DataFrame({"x": x, "y": 2.0 + 0.5 * np.maximum(x - 2.0, 0.0) ** 1.5})
    fit = fit_law(frame, "E + A*max(x - 2, 0)**c", "y", bootstraps=50)
    assert fit.estimates["c"] == pytest.approx(1.5, rel=1e-4)
    with pytest.raises(InputError, match=r"row 1: the law has no finite positive value there \(and in 12 more rows\)"):
        fit_law(judge.tables.table_from_frame(frame), "E + A*(x - 2)**c", "y")


def _random_law(rng: np.random.Generator, depth: int = 0) -> str:
    kind = rng.integers(0, 9) if depth < 3 else rng.integers(0, 3)
    if kind == 0:
        return str(rng.choice(["x", "z", "k"]))
    if kind == 1:
        return str(rng.choice(["a", "b", "c", "d"]))
    if kind == 2:
        return str(rng.choice(["2", "0.5", "1e3", "0"]))
    inner = [_random_law(rng, depth + 1) for _ in range(2)]
    if kind == 3:
        return f"{rng.choice(['log', 'exp', 'sqrt'])}({inner[0]})"
    if kind == 4:
        return f"{rng.choice(['min', 'max'])}({inner[0]}, {inner[1]})"
    return f"({inner[0]} {rng.choice(['+', '-', '*', '/', '**', '^'])} {inner[1]})"


def test_random_laws_are_fitted_or_refused_without_a_warning():
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"x": rng.uniform(1, 9, 14), "z": rng.uniform(-1, 1, 14), "k": 2.0})
    frame["y"] = 1.0 + frame["x"] ** -0.5
    frame.loc[3, "z"] = 0.0
    fitted = refused = 0
    while fitted + refused < 80:
        text = _random_law(rng)
        try:
            law = parse_law(text, {"x", "z", "k"})
        except LawError:
            continue
        signed = [p for p in law.parameters if rng.random() < 0.5]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                fit = fit_law(frame, text, "y", signed=signed, bootstraps=3)
                assert np.isfinite(list(fit.estimates.values())).all() and np.isfinite(fit.fitted).all(), text
                fitted += 1
            except InputError:
                refused += 1
    assert fitted > 30


@pytest.mark.parametrize("name", coverage_of_fits.LAWS)
def test_intervals_and_predictions_cover(name):
    """A small version; the command says .93 to .98 over hundreds."""
    for held in coverage_of_fits.coverage(coverage_of_fits.LAWS[name], 12, 60).values():
        assert held >= 0.75


def test_predictions_are_the_same_from_a_saved_fit(table, tmp_path, theory):
    table.to_csv(tmp_path / "t.csv", index=False)
    new = pd.DataFrame({"params": [1e8, 1e12], "tokens": [1e9, 1e13]})
    new.to_csv(tmp_path / "new.csv", index=False)
    law = "E + A*params**-a + B*tokens**-b"
    fit = judge.fit(tmp_path / "t.csv", law, target="loss", bootstraps=100)
    fit.save(tmp_path / "fit.json")
    here, there = judge.predict(fit, new).frame, judge.predict(tmp_path / "fit.json", new).frame
    pd.testing.assert_frame_equal(here, there)
    assert list(here["outside"]) == [False, True]
    assert here["decades"].iloc[1] == pytest.approx(2.0, abs=0.1)
    assert list(here["low"] < here["mean_low"]) == [True, True]
    inner, outer = (here["mean_high"] / here["mean_low"]).to_numpy()
    assert outer > inner + 4 * fit.holdout_log_rmse
    done = theory("predict", tmp_path / "fit.json", tmp_path / "new.csv", "--json", tmp_path / "p.json")
    assert done.code == 0
    said = json.loads((tmp_path / "p.json").read_text())
    assert said["points"][0]["loss"] == here["loss"].iloc[0]
    assert "1 of 2 points lie outside the fitted range" in said["remarks"][0]


def test_a_level_that_the_draws_do_not_reach_and_files_that_are_no_fits(table, tmp_path):
    fit = fit_law(table, "E + A*params**-a", "loss", bootstraps=100)
    with pytest.raises(InputError, match="has 100 bootstrap draws and needs 200"):
        fit.predict(table, 0.99)
    with pytest.raises(InputError, match="no column 'params'"):
        fit.predict(table[["tokens"]])
    for text, said in (("[", "not JSON"), ("{}", "not a fit of theory fit"), ('{"prediction": 3}', "not a fit")):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(InputError, match=said):
            read_fit(tmp_path / "f.json")


def test_groups_are_compared_by_pairs_of_seeds(theory, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": f"run-{s}", "rank": r, "test_loss": 3 + base + 0.1 * (arm == "b") + 0.01 * rng.normal()}
        for s in range(6)
        for r in (4, 8)
        for base in [rng.normal()]
        for arm in ("a", "b")
    ]
    frame = pd.DataFrame(rows)
    made = judge.compare(frame, by="arm")
    overall, *cells = made.differences
    assert [d.cell["rank"] for d in cells] == [4, 8]
    assert overall.difference == pytest.approx(0.1, abs=0.02)
    assert overall.ci95.width < 0.1 and overall.seeds == 6
    wide = frame.pivot_table(index="seed", columns=["arm"], values="test_loss")
    difference = (wide["b"] - wide["a"]).to_numpy()
    half = 2.5705818366147395 * difference.std(ddof=1) / np.sqrt(6)  # Student's quantile for 5 degrees
    assert overall.ci95.high == pytest.approx(difference.mean() + half)
    assert judge.compare(frame.drop(columns="seed"), by="arm").differences[0].ci95.width > 0.5
    frame.to_csv(tmp_path / "c.csv", index=False)
    assert theory("compare", tmp_path / "c.csv", "--by", "arm").code == 0
    assert "rank has 2 values" not in theory("compare", tmp_path / "c.csv", "--by", "rank").out
    assert "column seed has 6 values" in theory("compare", tmp_path / "c.csv", "--by", "seed").error
