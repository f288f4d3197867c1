"""What a teacher loses at shares of its parameters: the table has every way, within its budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lrc_jax.teachers.load import load_teacher
from lrc_jax.training.distill import held_out_loss
from lrc_jax.training.text_pools import read_pools

WAYS = ["factorized:svd", "whitened_svd", "whitened_svd:allocated"]


def run(teacher: Path, text: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.bench.truncated", "--teacher", str(teacher), "--text", str(text),
               "--sequence-length", "8", "--out", str(out), *more]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_way_at_every_share(teacher_folder: Path, text_file: Path, tmp_path: Path):
    out, model = tmp_path / "table.csv", tmp_path / "model"
    done = run(teacher_folder, text_file, out, "--keep", "0.9", "0.5", "--export", str(model))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out)
    assert table["method"].tolist() == ["teacher", "quantised:int8", "quantised:int4", *WAYS, *WAYS]
    whole = table["inference_params"][0]
    for share, rows in ((0.9, table[3:6]), (0.5, table[6:9])):
        assert (rows["inference_params"] <= share * whole).all()
        assert (rows["inference_params"] > (share - 0.1) * whole).all()
    assert np.allclose(table["perplexity"], np.exp(table["test_loss"]))
    assert table["weight_bytes"][2] < table["weight_bytes"][1] < table["weight_bytes"][0] / 3
    # The last model is what was written: it has the loss of the table's last row.
    written = load_teacher(str(model))
    pools = read_pools(str(text_file), written, 8)
    assert held_out_loss(written.config, written.weights, pools.test) == pytest.approx(table["test_loss"].iloc[-1])


def test_shares_that_cannot_be(teacher_folder: Path, text_file: Path, tmp_path: Path):
    for share, said in (("1.5", "no share of the parameters"), ("0.01", "less than rank 1")):
        done = run(teacher_folder, text_file, tmp_path / "t.csv", "--keep", share)
        assert (done.returncode, done.stderr.strip().count("Traceback")) == (2, 0)
        assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "t.csv").exists()
