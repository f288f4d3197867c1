"""The table of an ablation, and what is shown of it."""

import pandas as pd
import pytest

from experiments.common.files import write_csv
from experiments.show import ablation_table
from experiments.sweep.store import Study


def runs() -> pd.DataFrame:
    """Two arms, two rates, two seeds. `lrc` validates best at the rate whose test loss is worse."""
    rows = []
    for arm, rate, valid, test in (
        ("lrc", 0.01, 2.0, 2.2),
        ("lrc", 0.03, 2.1, 2.0),
        ("svd", 0.01, 3.0, 3.0),
        ("svd", 0.03, 3.5, 3.5),
    ):
        for seed in (0, 1):
            rows.append(
                {
                    "arm": arm, "match": "tokens", "learning_rate": rate, "seed": seed, "valid_loss": valid,
                    "test_loss": test + 0.1 * seed, "test_low": test - 0.1, "test_high": test + 0.2, "steps": 10,
                    "batch_size": 4, "sequence_length": 8, "excess": 0.5, "documents": 7, "params": 1234,
                    "inference_params": 2000, "flops_per_token": 4000.0, "teacher.flops_per_token": 9000.0,
                    "teacher_loss": 1.5,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_rate_is_chosen_by_validation_and_never_by_the_test_loss():
    table = ablation_table.arm_table(runs()).set_index("arm")
    assert table.loc["lrc", "learning_rate"] == 0.01
    assert table.loc["lrc", "test_loss"] == pytest.approx(2.25)
    assert table.index[0] == "lrc"  # best first


def test_a_kept_table_is_shown_from_its_csv_alone(tmp_path):
    reference = Study(tmp_path)
    path = tmp_path / ablation_table.KEPT / "small.csv"
    write_csv(path, ablation_table.arm_table(runs()))
    before = path.read_bytes()
    ablation_table.draw_kept(reference)
    assert path.read_bytes() == before
    assert (path.parent / "small.png").is_file()
    (table,) = ablation_table.kept_tables(reference).values()
    lines = ablation_table.arms_markdown(table).splitlines()
    assert lines[4] == "| lrc | 9.5 | 8.2 - 11.0 | 9.0 - 10.0 | 0.01 | 10 | 1,234 | 4 |"
    assert lines[-1].startswith("The teacher's perplexity is 4.5 at 9 kFLOP")
