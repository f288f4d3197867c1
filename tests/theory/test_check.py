"""`python -m theory check` and `claims`: the JSON of the contract, exit codes, reproducibility."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from theory.judge.check import check_table
from theory.judge.ledger import all_claims
from theory.planted.optimisation import quadratic_table
from theory.planted.surfaces import Design, dynamics_table, gap_table, information_table
from theory.report import to_json, write_text
from theory.show.figures import write_figures

DESIGN = Design(noise=0.1)
VERDICTS = {"CONSISTENT", "LOOSE", "HOLDS", "REFUTED", "INCONCLUSIVE", "UNTESTABLE"}
BOUNDS = {"HOLDS", "VIOLATED", "INCONCLUSIVE", "VACUOUS", "NOT_EVALUATED"}


@pytest.fixture
def mixed(rng):
    """One table with rows for four claims, each marked."""
    parts = {
        "generalization": gap_table(1.0, 0.5, DESIGN, rng),
        "convergence": quadratic_table(DESIGN, rng),
        "information": information_table(0.985, DESIGN, rng),
        "dynamics": dynamics_table(1.0, DESIGN, rng),
    }
    return pd.concat([f.assign(claim=name) for name, f in parts.items()])


def test_json_has_the_fields_of_the_contract(theory, tmp_path, mixed):
    path, out = tmp_path / "t.csv", tmp_path / "out.json"
    mixed.to_csv(path, index=False)
    outcome = theory("check", path, "--json", out)
    assert outcome.code == 0
    report = json.loads(out.read_text())
    assert report["schema"] == 2
    assert report["margin"] == 0.1
    assert report["input"]["path"] == str(path)
    assert len(report["input"]["sha256"]) == 64
    assert report["input"]["rows"] == len(mixed)
    assert list(report["claims"]) == ["convergence", "generalization", "information", "dynamics"]
    quantities = {"convergence": {"steps"}, "generalization": {"rank", "samples"}, "information": {"clone_weight"}}
    for name, claim in report["claims"].items():
        assert claim["verdict"] in VERDICTS
        assert claim["reasons"]
        assert claim["bound"]["verdict"] in BOUNDS
        assert "worst_ratio" in claim["bound"]
        assert isinstance(claim["cells"], int)
        assert isinstance(claim["seeds"], int)
        assert set(claim["exponents"]) == quantities.get(name, set())
        for exponent in claim["exponents"].values():
            assert {"claimed", "estimate", "ci90", "ci95", "verdict"} <= set(exponent)
            if name != "information":
                assert {"bent", "tier", "low", "top", "reach"} <= set(exponent)
                assert set(exponent["reach"]) == {"estimate", "ci95"}
            assert exponent["ci95"][0] <= exponent["ci90"][0] <= exponent["ci90"][1] <= exponent["ci95"][1]
    assert report["claims"]["convergence"]["cause"] is None
    assert report["claims"]["convergence"]["needed"] == report["claims"]["generalization"]["needed"] == []
    assert report["claims"]["generalization"]["exponents"]["rank"]["claimed"] == 1
    assert report["claims"]["generalization"]["exponents"]["samples"]["claimed"] == -0.5
    assert report["claims"]["convergence"]["exponents"]["steps"]["claimed"] == -0.5
    assert report["claims"]["information"]["ceiling_ratio"]["ci95"][0] > 0.9
    assert report["claims"]["dynamics"]["divergence_ratio"]["verdict"] in VERDICTS
    assert "NaN" not in out.read_text()


def test_the_terminal_shows_verdicts_reasons_and_the_free_constant(theory, tmp_path, mixed):
    path = tmp_path / "t.csv"
    mixed.to_csv(path, index=False)
    text = theory("check", path).out
    for word in ("generalization: CONSISTENT", "claimed -0.5", "95 % interval", "bound:", "free constant", "I/I*"):
        assert word in text, word


def test_the_same_file_twice_gives_the_same_bytes(theory, tmp_path, mixed):
    path = tmp_path / "t.csv"
    mixed.to_csv(path, index=False)
    first = theory("check", path, "--json", tmp_path / "a.json", "--figures", tmp_path / "f")
    second = theory("check", path, "--json", tmp_path / "b.json", "--figures", tmp_path / "g")
    assert first.out == second.out
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    names = sorted(p.name for p in (tmp_path / "f").iterdir())
    assert {"generalization.pdf", "generalization.png", "generalization.csv", "dynamics.csv"} <= set(names)
    for name in names:
        assert (tmp_path / "f" / name).read_bytes() == (tmp_path / "g" / name).read_bytes(), name


def test_exit_code_one_only_for_a_refutation(theory, tmp_path, rng):
    path = tmp_path / "t.csv"
    gap_table(1.0, 0.25, DESIGN, rng).to_csv(path, index=False)
    assert theory("check", path).code == 1
    gap_table(1.0, 0.5, Design(seeds=2, noise=0.5), rng).to_csv(path, index=False)
    assert theory("check", path).code == 0  # UNTESTABLE
    frame = pd.concat(
        [
            gap_table(1.0, 0.25, DESIGN, rng).assign(claim="generalization"),
            dynamics_table(1.0, DESIGN, rng).assign(claim="dynamics"),
        ]
    )
    frame.to_csv(path, index=False)
    assert theory("check", path, "--claim", "dynamics").code == 0  # only the claims selected count


def test_wrong_arguments_end_in_one_line(theory, tmp_path, mixed):
    path = tmp_path / "t.csv"
    mixed.to_csv(path, index=False)
    assert "no such claim" in theory("check", path, "--claim", "astrology").error
    assert "--margin" in theory("check", path, "--margin", "0.9").error
    assert "out.json" in theory("check", path, "--json", tmp_path / "missing" / "out.json").error


def test_figures_of_every_claim_can_be_drawn(tmp_path, mixed):
    written = write_figures(check_table(mixed), tmp_path)
    assert {p.stem for p in written} >= {"generalization", "convergence", "information", "dynamics"}
    assert not list(tmp_path.glob(".*"))


def test_the_ledger_defines_its_symbols_and_letters():
    ledger = all_claims()
    assert list(ledger) == [
        "convergence", "generalization", "optimal_rank", "information", "dynamics", "efficiency", "compression",
    ]  # fmt: skip
    assert [claim.order for claim in ledger.values()] == [1, 2, 3, 4, 5, 6, 7]
    for claim in ledger.values():
        assert claim.statement
        assert claim.assumptions
        assert claim.rule
        assert claim.problems
        assert claim.sources
        assert claim.measured in claim.columns
        assert "/work" not in repr(claim)
        assert not {"n", "m"} & set(claim.symbols), "matrix shapes and samples never share a letter"
    assert ledger["generalization"].exponents == {"rank": 1.0, "samples": -0.5}
    assert ledger["convergence"].exponents == {"steps": -0.5}
    assert ledger["optimal_rank"].exponents == {"samples": 0.5}


def test_claims_prints_the_ledger(theory):
    text = theory("claims").out
    for name, claim in all_claims().items():
        assert name in text
        assert claim.title in text


def test_another_claim_is_one_file(tmp_path, monkeypatch, mixed):
    (tmp_path / "eighth.py").write_text(
        "from dataclasses import replace\n"
        "from theory.claims.dynamics import CLAIM as base\n"
        "CLAIM = replace(base, name='eighth', order=8, judge=lambda t, m: replace(base.judge(t, m), name='eighth'))\n"
    )
    import theory.claims

    monkeypatch.setattr(theory.claims, "__path__", [*theory.claims.__path__, str(tmp_path)])
    assert list(all_claims())[-1] == "eighth"
    assert "eighth" in check_table(mixed.assign(claim=None).query("dynamics_divergence == dynamics_divergence")).claims
    sys.modules.pop("theory.claims.eighth")


def test_the_judge_needs_no_jax():
    code = "import sys, theory.__main__, theory.show.figures; sys.exit(any(m.split('.')[0] in "
    code += "('jax', 'lrc_jax', 'experiments', 'flax', 'hydra') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_of_other_arms_are_set_aside(theory, tmp_path, rng):
    primary, control = gap_table(1.0, 0.5, DESIGN, rng), gap_table(1.0, 0.1, DESIGN, rng)
    both = pd.concat([primary.assign(arm=None), control.assign(arm="control")])
    path, out = tmp_path / "both.csv", tmp_path / "out.json"
    both.to_csv(path, index=False)
    assert theory("check", path, "--json", out).code == 0
    found = json.loads(out.read_text())
    assert found["claims"] == json.loads(to_json(check_table(primary).to_dict()))["claims"]
    assert "--where arm=control" in found["remarks"][0]
    assert theory("check", path, "--where", "arm=control").code == 1  # the control alone is refuted
    pd.concat([primary.assign(arm="a"), control.assign(arm="b")]).to_csv(path, index=False)
    outcome = theory("check", path)
    assert outcome.code == 2
    assert "column arm" in outcome.err


def test_an_error_planted_on_request_is_noticed_and_named(theory, tmp_path, rng):
    path, out = tmp_path / "t.csv", tmp_path / "out.json"
    quadratic_table(DESIGN, rng).to_csv(path, index=False)
    assert theory("check", path, "--json", out).code == 0
    assert json.loads(out.read_text())["claims"]["convergence"]["bound"]["verdict"] == "HOLDS"
    quarter = [f"--scale={name}=.25" for name in ("smoothness", "grad_variance", "loss_decrease")]
    assert theory("check", path, *quarter, "--json", out).code == 1
    found = json.loads(out.read_text())
    assert found["claims"]["convergence"]["bound"]["verdict"] == "VIOLATED"
    assert any("smoothness=.25" in remark for remark in found["remarks"])
    assert theory("check", path, "--scale", "nothing=2").code == 2


def test_whole_numbers_are_written_in_full_and_others_to_six_digits():
    assert json.loads(to_json([1048577.0, 2**40, 0.123456789, float("nan")])) == [1048577, 2**40, 0.123457, None]


def test_a_report_goes_through_a_link_and_into_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "a"
    write_text("/dev/null", "a")
    assert not os.path.isfile("/dev/null")


def test_claims_whose_columns_are_partly_there_are_named_with_the_nearest_column(theory, tmp_path, rng):
    """A column that is probably the rank must not drop a claim without a word."""
    path = tmp_path / "t.csv"
    frame = pd.concat([gap_table(1.0, 0.5, DESIGN, rng), dynamics_table(1.0, DESIGN, rng)])
    frame.rename(columns={"rank": "rnk"}).to_csv(path, index=False)
    outcome = theory("check", path)
    assert outcome.code == 0
    hint = "it lacks rank (did you mean column 'rnk'? say --columns rank=rnk)"
    assert f"generalization is not judged: {hint}\n" in outcome.out
    assert f"optimal_rank is not judged: {hint}, test_loss\n" in outcome.out
    assert "information" not in outcome.out  # nothing of it is there
    assert f"generalization lacks {hint[9:]}" in theory("check", path, "--claim", "generalization").error
    assert "\ngeneralization: " in theory("check", path, "--columns", "rank=rnk").out
    named = theory("check", path, "--claim", "dynamics", "information").out
    assert "information is not judged: it lacks clone_weight, mutual_information, mi_ceiling" in named


def test_a_usual_other_name_is_read_with_a_remark(theory, tmp_path, rng):
    frame = gap_table(1.0, 0.5, DESIGN, rng)
    right = check_table(frame)["generalization"].to_dict()
    path = tmp_path / "t.csv"
    for names in ({"rank": "r"}, {"rank": "Rank", "samples": "n_train", "gap": "config.Gap"}):
        frame.rename(columns=names).to_csv(path, index=False)
        found = json.loads(theory("check", path, "--json", "-").out)
        assert found["claims"]["generalization"] == json.loads(to_json(right))
        for known, own in names.items():
            assert f"{own!r} as {known}" in found["remarks"][0]


def test_undefined_numbers_are_null(theory, tmp_path, rng):
    path, out = tmp_path / "t.csv", tmp_path / "out.json"
    gap_table(1.0, 0.5, Design(ranks=(4,), samples=(64, 256)), rng).to_csv(path, index=False)
    assert theory("check", path, "--json", out).code == 0
    exponents = json.loads(out.read_text())["claims"]["generalization"]["exponents"]
    assert exponents["rank"]["estimate"] is None
    assert exponents["rank"]["ci95"] == [None, None]
