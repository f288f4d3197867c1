"""Students side by side, from tables with several rows per run and runs without a loss."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.show.students import side_by_side
from lrc_jax.errors import InputError

COMMON = {
    "rank": 4, "samples": 64, "steps": 10, "batch_size": 2, "sequence_length": 8, "params": 5, "teacher_loss": 1.0,
    "test_loss_se": 0.1, "learning_rate": 0.01,
}  # fmt: skip


def table(*rows):
    return pd.DataFrame([COMMON | row for row in rows])


def test_rows_of_a_run_are_one_seed_and_settings_are_not_replicates():
    frame = table(
        *({"run_id": f"s{seed}", "student": "lrc", "seed": seed, "site": site, "test_loss": 2.0 + seed}
          for seed in range(3) for site in ("q", "k")),
        {"run_id": "rate", "student": "lrc", "seed": 0, "learning_rate": 0.1, "test_loss": 9.0},
        {"run_id": "convergence", "student": "lrc", "seed": 0},
    )  # fmt: skip
    found = side_by_side(frame)
    assert list(found["seeds"]) == [3, 1]
    assert found["test_loss"].tolist() == [3.0, 9.0]
    assert found["se"].tolist() == pytest.approx([3**-0.5, 0.1])


def test_a_study_without_losses_is_one_line():
    with pytest.raises(InputError, match="none of its runs has a test loss"):
        side_by_side(table({"run_id": "a", "student": "lrc"}))
