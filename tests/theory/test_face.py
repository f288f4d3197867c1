"""The judge as a library: the same answers as the command line, for frames, files and folders."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import theory
from theory.__main__ import main
from theory.planted.cases import planted_case


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return planted_case("generalization", wrong=False).draw(np.random.default_rng(1))


@pytest.fixture(scope="module")
def report(frame):
    return theory.check(frame)


def test_a_frame_a_file_and_a_folder_are_judged_alike(frame, report, tmp_path):
    path = tmp_path / "measurements.csv"
    frame.to_csv(path, index=False)
    for given in (path, str(path), tmp_path):
        judged = theory.check(given)
        assert {name: c.to_dict() for name, c in judged.claims.items()} == {
            name: c.to_dict() for name, c in report.claims.items()
        }


def test_the_wrong_law_comes_out_the_other_way(report):
    wrong = theory.check(planted_case("generalization", wrong=True).draw(np.random.default_rng(1)))
    assert report["generalization"].verdict != "REFUTED" == wrong["generalization"].verdict
    assert (report.exit_code, wrong.exit_code) == (0, 1)


def test_a_report_is_a_table(report):
    table = report.to_frame()
    rows = table[table["claim"] == "generalization"].set_index("quantity")
    exponent = report["generalization"].exponents["samples"]
    assert rows.loc["samples", "estimate"] == exponent.estimate
    assert (rows.loc["samples", "low"], rows.loc["samples", "high"]) == (exponent.ci95.low, exponent.ci95.high)
    assert set(table["claim"]) == set(report.claims)


def test_a_report_shows_itself(report, frame):
    assert (
        repr(report)
        == f"Report(<memory>: {len(frame)} rows; "
        + ", ".join(f"{name} {c.verdict}" for name, c in report.claims.items())
        + ")"
    )
    assert f"\ngeneralization: {report['generalization'].verdict}, " in str(report)
    shown = theory.check(frame, claims=["generalization"])._repr_html_()
    assert shown.startswith("<table>") and "generalization" in shown and "&lt;memory&gt;" in shown
    assert "<memory>" not in shown  # escaped: a path can be anything
    figure = report.plot("generalization")
    assert report["generalization"].verdict in figure.get_suptitle()
    with pytest.raises(ValueError, match=r"claim 'speed' has no figure; choose one of .*generalization"):
        report.plot("speed")
    with pytest.raises(KeyError, match=r"dynamics: not judged on <memory>; judged: .*generalization"):
        report["dynamics"]


def test_errors_speak_python_here_and_options_on_the_command_line(frame, tmp_path, capsys):
    path = tmp_path / "m.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(theory.InputError, match=r"^margin 0\.7: must lie"):
        theory.check(path, margin=0.7)
    assert main(["check", str(path), "--margin", "0.7"]) == 2
    assert capsys.readouterr().err == "--margin 0.7: must lie between 0 and 0.5\n"
    with pytest.raises(theory.InputError, match=r"^max_rank 0: must be at least 1"):
        theory.advise(planted_case("optimal_rank", wrong=False).draw(np.random.default_rng(1)), samples=500, max_rank=0)


def test_the_other_functions_answer():
    risks = planted_case("optimal_rank", wrong=False).draw(np.random.default_rng(1))
    samples = float(np.sort(risks["samples"].unique())[2])
    advice = theory.advise(risks, samples=samples)
    assert advice.rank >= 1 and f"N = {samples:,.0f}" in repr(advice)
    x = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    table = pd.DataFrame({"tokens": np.tile(x, 3), "seed": np.repeat([0, 1, 2], 8)})
    table["loss"] = 2 * table["tokens"] ** -0.34
    fit = theory.fit(table, "B*tokens**-b", target="loss", cluster="seed", bootstraps=20)
    assert fit.estimates["b"] == pytest.approx(0.34, abs=1e-6) and "b = 0.34" in repr(fit)
    outcome = theory.plan(steps=[256, 1024], seeds=3, noise=0.2)
    assert outcome.gates["convergence"] and "convergence" in repr(outcome)  # two horizons cannot decide
    with pytest.raises(theory.InputError, match="give rank and samples, steps, tokens, or weight_bytes"):
        theory.plan(seeds=3, noise=0.2)


def test_importing_loads_nothing_and_names_are_listed():
    code = (
        "import sys, theory; heavy = {'numpy', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; assert {'check', 'fit', 'advise', 'plan'} <= set(dir(theory)); theory.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'chek'; it has check"):
        theory.chek  # noqa: B018
