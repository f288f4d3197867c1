"""`theory fit`: recovery, agreement of starts, coverage, clusters, refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from theory.laws.user_law import fit_law
from theory.tables import InputError

TRUTH = {"E": 1.7, "A": 40.0, "a": 0.5, "B": 60.0, "b": 0.45}
LAW = "E + A*x**-a + B*y**-b"


def chinchilla(rng, rows=250, noise=0.01):
    x, y = (10 ** rng.uniform(2.0, 4.5, rows) for _ in range(2))
    loss = TRUTH["E"] + TRUTH["A"] * x ** -TRUTH["a"] + TRUTH["B"] * y ** -TRUTH["b"]
    return pd.DataFrame({"x": x, "y": y, "loss": loss * np.exp(noise * rng.standard_normal(rows))})


def test_a_five_parameter_law_is_recovered(rng):
    fit = fit_law(chinchilla(rng), LAW, "loss", bootstraps=200)
    assert fit.starts_agreeing >= 5
    assert fit.estimates["E"] == pytest.approx(1.7, abs=0.08)
    assert fit.estimates["a"] == pytest.approx(0.5, abs=0.03)
    assert fit.estimates["b"] == pytest.approx(0.45, abs=0.03)
    for name, interval in fit.intervals.items():
        assert interval.low < fit.estimates[name] < interval.high
    assert fit.holdout_log_rmse < 0.02


def test_exact_data_are_fitted_exactly(rng):
    fit = fit_law(chinchilla(rng, noise=0.0), LAW, "loss", bootstraps=20)
    for name, value in TRUTH.items():
        assert fit.estimates[name] == pytest.approx(value, rel=1e-4)


def test_outliers_do_not_move_the_fit(rng):
    frame = chinchilla(rng)
    frame.loc[frame.index[:10], "loss"] *= 3.0
    assert fit_law(frame, LAW, "loss", bootstraps=20).estimates["a"] == pytest.approx(0.5, abs=0.06)


def test_clusters_widen_the_interval(rng):
    """Rows of a seed share an error of 10 %: counting rows as independent would understate it."""
    x = np.tile(np.geomspace(1, 100, 20), 8)
    seed = np.repeat(np.arange(8), 20)
    shift = 0.1 * rng.standard_normal(8)
    frame = pd.DataFrame(
        {"x": x, "seed": seed, "y": 2.0 * x**-0.5 * np.exp(shift[seed] + 0.01 * rng.standard_normal(160))}
    )
    rows = fit_law(frame, "A*x**-a", "y", bootstraps=300).intervals["A"]
    seeds = fit_law(frame, "A*x**-a", "y", cluster="seed", bootstraps=300).intervals["A"]
    assert seeds.width > 2.5 * rows.width


def test_signed_parameters_may_be_negative(rng):
    x = np.linspace(1, 10, 60)
    frame = pd.DataFrame({"x": x, "y": 5.0 - 0.4 * x + 0.01 * rng.standard_normal(60)})
    fit = fit_law(frame, "c + s*x", "y", signed=["s"], bootstraps=50)
    assert fit.estimates["s"] == pytest.approx(-0.4, abs=0.01)


def test_command_line_and_json(theory, tmp_path, rng):
    path = tmp_path / "t.csv"
    chinchilla(rng).to_csv(path, index=False)
    arguments = ("fit", path, "--law", LAW, "--target", "loss", "--bootstraps", 50, "--json", tmp_path / "a.json")
    assert theory(*arguments).code == 0
    fitted = json.loads((tmp_path / "a.json").read_text())
    assert {"law", "target", "rows", "parameters", "objective", "starts_agreeing", "holdout_log_rmse"} <= set(fitted)
    assert fitted["rows"] == 250
    assert set(fitted["parameters"]) == set(TRUTH)
    assert len(fitted["parameters"]["E"]["ci95"]) == 2
    theory(*arguments[:-1], tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("law", "target", "extra", "said"),
    [
        ("A*z**-a", "loss", (), "no column"),
        (LAW, "los", (), "--target los"),
        (LAW, "loss", ("--cluster", "seed"), "--cluster seed"),
        (LAW, "loss", ("--signed", "q"), "--signed q"),
        ("__import__('os').system('true')*x", "loss", (), "not allowed"),
        ("A*log(0 - x)", "loss", (), "no finite"),
    ],
)
def test_bad_requests_end_in_one_line(theory, tmp_path, rng, law, target, extra, said):
    path = tmp_path / "t.csv"
    chinchilla(rng, rows=30).to_csv(path, index=False)
    assert said in theory("fit", path, "--law", law, "--target", target, *extra).error


def test_too_few_rows(rng):
    with pytest.raises(InputError, match="cannot determine 5 parameters"):
        fit_law(chinchilla(rng, rows=5), LAW, "loss")


@pytest.mark.slow
def test_intervals_cover_over_200_replications():
    hits = dict.fromkeys(TRUTH, 0)
    for k in range(200):
        fit = fit_law(chinchilla(np.random.default_rng(k)), LAW, "loss", bootstraps=200)
        assert fit.starts_agreeing >= 5
        for name, value in TRUTH.items():
            hits[name] += fit.intervals[name].low <= value <= fit.intervals[name].high
    for name, count in hits.items():
        assert 0.90 <= count / 200 <= 0.99, (name, count)


def test_the_row_and_column_of_a_value_that_no_law_takes_are_the_tables(theory, tmp_path, rng):
    frame = chinchilla(rng).assign(part="a")
    frame.loc[frame.index[::2], "part"] = "b"
    frame.loc[frame.index[30], "y"] = 0.0
    frame.to_csv(tmp_path / "t.csv", index=False)
    for extra in ([], ["--where", "part=b"]):
        assert "column y, row 31:" in theory("fit", tmp_path / "t.csv", "--law", LAW, "--target", "loss", *extra).error
