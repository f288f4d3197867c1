"""Claim 6 at a pretrained teacher: the table that `bench.pretrained` writes has every run that its design names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from experiments.bench.pretrained import AROUND, INNER, Planned, plan
from lrc_jax.inference.cloze import Item, write_task


def test_a_method_has_four_rates_at_the_first_seed_and_two_at_the_others():
    runs = list(plan(1e-3, [10, 30], 3))
    assert len(runs) == 2 * (len(AROUND) + 2 * len(INNER)) and len(set(runs)) == len(runs)
    assert runs[0] == Planned(10, 2.5e-4, 0)
    assert {run.rate for run in runs if run.seed} == {5e-4, 1e-3}


def test_the_table_of_a_small_teacher(teacher_folder: Path, text_file: Path, tmp_path: Path):
    task = tmp_path / "cloze"
    task.mkdir()
    write_task(task, "cloze", [Item("w1 w2 w3", ("w4 w5", "w6 w7", "w8 w9", "w1 w1"), 0, 0)])
    out = tmp_path / "table.csv"
    command = [sys.executable, "-m", "experiments.bench.pretrained", "--teacher", str(teacher_folder), "--text",
               str(text_file), "--rank", "8", "--budgets", "6", "2", "--seeds", "2", "--batch-size", "2",
               "--sequence-length", "8", "--pilot-rates", "0.001", "0.004", "--methods", "clone:pca", "scratch",
               "--cloze", str(task), "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table, pilot = pd.read_csv(out), pd.read_csv(tmp_path / "table_pilot.csv")
    assert table.groupby(["method", "seed"]).size().to_dict() == {
        ("clone:pca", 0): 8, ("clone:pca", 1): 4, ("scratch", 0): 8,
    }  # fmt: skip
    assert sorted(set(table["tokens"])) == [32, 96]  # 2 and 6 steps of two sequences of eight tokens
    assert set(pilot["seed"]) == {100} and set(pilot["tokens"]) == {32} and len(pilot) == 4
    # b of a method is the pilot's best by validation loss.
    best = pilot.loc[pilot.groupby("method")["valid_loss"].idxmin()].set_index("method")["learning_rate"]
    assert (table[table["seed"] == 0].groupby("method")["learning_rate"].max() == 2 * best).all()
    assert table["data_digest"].nunique() == table["code_version"].nunique() == 1
    assert set(table["cloze_accuracy"]) <= {0.0, 1.0} and table["teacher_loss"].nunique() == 1
    # The clone starts from the teacher, the fresh student from noise; longer training is no worse than none.
    assert (table["test_loss"] < table["loss_before"]).mean() > 0.5


def test_runs_that_do_not_fit_are_named(teacher_folder: Path, text_file: Path, tmp_path: Path):
    out = tmp_path / "table.csv"
    command = [sys.executable, "-m", "experiments.bench.pretrained", "--teacher", str(teacher_folder), "--text",
               str(text_file), "--rank", "8", "--budgets", "2", "--seeds", "1", "--batch-size", "2",
               "--sequence-length", "8", "--pilot-rates", "0.001", "--methods", "scratch", "--seconds", "0", "--out",
               str(out)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "left out for time: scratch, 2 steps, rate 0.00025, seed 0" in done.stdout
    assert not out.exists() and (tmp_path / "table_pilot.csv").exists()
