"""A finished study kept in compact form is shown again byte by byte, without its runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from experiments import archive
from experiments.common.paths import ROOT
from experiments.show import power
from experiments.show.figures import same_text, same_verdicts
from experiments.sweep.store import ROW_SCHEMA, Study
from theory.judge.check import check, check_table
from theory.judge.ledger import all_claims
from theory.planted.surfaces import Design, gap_table
from theory.report import to_json
from theory.tables import load_table


def test_drawn_again_byte_by_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "REPLICATIONS", 1)
    study = tmp_path / "small"
    run = study / "runs" / "abc"
    run.mkdir(parents=True)
    design = Design(ranks=(4, 8, 16), samples=(64, 256, 1024), seeds=3)
    frame = gap_table(1, 1, design, np.random.default_rng(0)).assign(claim="generalization")
    frame.to_csv(study / "measurements.csv", index=False, float_format="%.10g")
    machine = {"device": "cpu", "platform": "p", "python": "3", "jax": "0", "jaxlib": "0", "seconds": 60.0}
    row = {
        "schema": ROW_SCHEMA,
        "run_id": "abc",
        "config": {},
        "data_digest": "d",
        "code_version": "c",
        "machine": machine,
    }
    (run / "row.json").write_text(json.dumps(row | {"columns": {"rank": 4, "steps": 20}}))
    (run / "metrics.jsonl").write_text('{"step": 10, "total": 2.0}\n{"step": 20, "total": 1.0}\n')

    def command(name):
        monkeypatch.setattr(sys, "argv", ["archive", f"study={name}", f"results_dir={tmp_path}"])
        assert archive.guarded(archive.main) == 0

    command("small")
    kept = tmp_path / "reference" / "small"
    before = {p.relative_to(kept): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    names = {str(p) for p in before}
    assert {"measurements.csv", "verdicts.json", "environment.json", "power.json", "report.html"} <= names
    assert {"figures/gap_against_samples.csv", "figures/training_curves.png"} <= names
    assert json.loads(before[next(p for p in before if p.name == "environment.json")])["minutes"] == 1.0
    for path in (kept / "figures").iterdir():
        path.unlink()
    # As another processor would round: such verdicts stay, others are replaced.
    verdicts = kept / "verdicts.json"
    exact = json.loads(verdicts.read_text())
    exact["claims"]["generalization"]["exponents"]["rank"]["estimate"] *= 1.001
    verdicts.write_text(json.dumps(exact))
    before[Path("verdicts.json")] = verdicts.read_bytes()
    command("all")
    after = {p.relative_to(kept): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert after.keys() == before.keys()
    assert [str(p) for p in before if after[p] != before[p]] == []
    for name in ("forest.png", "forest.csv", "verdicts.md"):
        assert (tmp_path / "reference" / name).is_file(), name
    exact["claims"]["generalization"]["verdict"] = "HOLDS"
    verdicts.write_text(json.dumps(exact))
    command("all")
    assert json.loads(verdicts.read_text())["claims"]["generalization"]["verdict"] == "UNTESTABLE"


def test_verdicts_become_a_table(tmp_path):
    reference_study = Study(tmp_path / "reference")
    assert (
        archive.verdicts_markdown(archive.kept_verdicts(reference_study))
        == "No study is kept in `results/reference/` yet.\n"
    )
    part = tmp_path / "reference" / "full" / "synthetic"
    part.mkdir(parents=True)
    gap = check_table(gap_table(1, 1, Design(), np.random.default_rng(0)))
    (part / "verdicts.json").write_text(to_json(gap.to_dict()))
    head, _, rank, samples = archive.verdicts_markdown(archive.kept_verdicts(reference_study)).splitlines()
    assert head.count("|") == rank.count("|") == samples.count("|")
    # The claim is LOOSE; its exponent in r is as claimed and says so.
    for line, quantity, name, verdict in ((rank, "rank", "r", "CONSISTENT"), (samples, "samples", "N", "LOOSE")):
        e = gap.claims["generalization"].exponents[quantity]
        measured = f"{e.estimate:.2f} [{e.ci95.low:.2f}, {e.ci95.high:.2f}]"
        expected = (
            f"| `full/synthetic` | generalization | {verdict} | exponent in {name} | {measured} | {e.claimed:g} |  |"
        )
        assert line == expected


def test_the_readme_shows_the_kept_verdicts():
    root = Path(archive.__file__).parents[1]
    kept = root / "results" / "reference"
    if not (kept / archive.VERDICTS).is_file():
        pytest.skip("no study is kept")
    table = (kept / archive.VERDICTS).read_text()
    assert table == archive.verdicts_markdown(archive.kept_verdicts(Study(kept))), "stale: run make figures"
    assert table in (root / "README.md").read_text(), "put results/reference/verdicts.md into README.md"


def test_nothing_kept_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["archive", "study=all", f"results_dir={tmp_path}"])
    assert archive.guarded(archive.main) == 0
    assert "no study is kept" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["study=none"])
def test_a_study_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, argument):
    monkeypatch.setattr(sys, "argv", ["archive", argument, f"results_dir={tmp_path}"])
    assert archive.guarded(archive.main) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_figure_that_looks_the_same_is_left_alone(tmp_path):
    from experiments.show.figures import save
    from theory.show.claims import Drawn

    def draw(height):
        figure = Figure()
        figure.subplots().plot([0, 1], [0, height])
        return Drawn("line", "a line", figure, pd.DataFrame({"y": [0, height]}))

    save(draw(1.0), tmp_path)
    image = imread(tmp_path / "line.png")
    imsave(tmp_path / "line.png", np.clip(image + (image < 0.5) / 255, 0, 1))  # as another processor might round
    before = (tmp_path / "line.png").read_bytes()
    save(draw(1.0), tmp_path)
    assert (tmp_path / "line.png").read_bytes() == before
    save(draw(2.0), tmp_path)
    assert (tmp_path / "line.png").read_bytes() != before


def test_verdicts_agree_up_to_rounding():
    kept = {"x": 0.5, "n": 16384, "s": ["slope -0.69 [-0.70, -0.68] at N = 25600"], "bent": True, "none": None}
    assert same_verdicts(kept, json.loads(json.dumps(kept)))
    assert same_verdicts(kept, kept | {"x": 0.5009})
    assert same_verdicts(kept, kept | {"s": ["slope -0.69 [-0.71, -0.68] at N = 25600"]})  # the last digit printed
    for changed in (
        {"x": 0.502}, {"n": 16500}, {"bent": False}, {"bent": 1}, {"none": 0.0}, {"x": None}, {"s": []}, {"more": 1},
        {"s": ["slope -0.69 [-0.72, -0.68] at N = 25600"]}, {"s": ["slope -0.69 [-0.70, -0.68] at N = 25700"]},
        {"s": ["bend -0.69 [-0.70, -0.68] at N = 25600"]},
    ):  # fmt: skip
        assert not same_verdicts(kept, kept | changed), changed
    assert not same_verdicts({"sha256": "12ab34"}, {"sha256": "12ab35"})  # no number


KEPT = sorted((ROOT / "results" / "reference").rglob("measurements.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("path", KEPT, ids=["/".join(p.parts[-3:-1]) for p in KEPT])
def test_the_last_bits_of_the_measurements_change_no_number(path):
    """What they change, another processor changes too: `make figures` would not leave the kept verdicts alone."""
    table = load_table(path).known()
    rng, frame = np.random.default_rng(0), table.frame.copy()
    for column in {c.measured for c in all_claims().values()} & set(frame):
        frame[column] *= 1.0 + 1e-14 * rng.standard_normal(len(frame))
    assert not frame.equals(table.frame)
    before, after = (
        json.loads(to_json(check(t).to_dict()["claims"])) for t in (table, dataclasses.replace(table, frame=frame))
    )
    assert same_verdicts(before, after)


def test_points_that_say_the_same_are_left_alone():
    assert same_text("a,b\n0.5,1e-05\n", "a,b\n0.5001,1.001e-05\n")
    assert not same_text("a,b\n0.5,2\n", "a,b\n0.6,2\n")
    assert not same_text("a,b\n0.5,2\n", "a,c\n0.5,2\n")
    assert not same_text("a,b\n0.5,2\n", "a,b\n0.5,2\n0.5,2\n")


def test_verdicts_do_not_show_the_last_bits():
    assert to_json({"x": 0.98887258404, "y": [float("nan")]}) == to_json({"x": 0.98887258405, "y": [None]})
    assert to_json({"x": 0.98887}) != to_json({"x": 0.98888})
