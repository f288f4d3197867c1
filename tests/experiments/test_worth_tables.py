"""The guideline names who is best at equal size and tokens; the cloze figure shows every student that answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.show.worth import (
    answered,
    chosen,
    cloze_against_loss,
    guideline,
    guideline_markdown,
    rank_correlation,
    read_kept,
    scaling_rows,
    tables_of_study,
)
from theory.show.theme import theme


def rows(method: str, size: float, tokens: int, losses: dict[float, float], rank: int = 8) -> list[dict[str, object]]:
    """Two seeds of a method; learning rate -> test loss. The validation loss is lowest at the second rate."""
    return [
        {"method": method, "weight_bytes": size, "tokens": tokens, "rank": rank, "seed": seed, "learning_rate": rate,
         "valid_loss": abs(k - 1.0), "test_loss": loss + 0.01 * seed, "training_flops": 1e9 * tokens}
        for seed in (0, 1)
        for k, (rate, loss) in enumerate(losses.items())
    ]  # fmt: skip


@pytest.fixture
def table() -> pd.DataFrame:
    rates = (0.001, 0.002, 0.004, 0.008)
    return pd.DataFrame(
        [
            *rows("clone:pca", 1000.0, 512, dict(zip(rates, (2.0, 3.0, 3.0, 3.0), strict=True))),
            *rows("direct:pca", 1005.0, 512, dict(zip(rates, (9.0, 2.5, 9.0, 9.0), strict=True))),
            *rows("scratch", 1000.0, 512, dict(zip(rates, (9.0, 2.51, 9.0, 9.0), strict=True))),
            *rows("scratch", 1000.0, 4096, {0.002: 1.0}),  # another budget
            *rows("factorized:svd", 1100.0, 512, {0.002: 0.1}),  # another size
            *rows("clone:pca", 9000.0, 512, {0.002: 1.5}, rank=64),  # nothing to compare it with
            {"method": "factorized:svd", "weight_bytes": 1000.0, "tokens": 0, "test_loss": 0.1},  # not trained
        ]
    )


def test_the_best_is_chosen_at_equal_size_and_tokens_by_the_validated_rate(table):
    assert chosen(table)["learning_rate"].unique().tolist() == [0.002]
    (best,) = guideline("a teacher", table)
    assert (best.method, best.ties, best.rank, best.tokens) == ("direct:pca", ("scratch",), 8, 512)
    assert best.loss == pytest.approx(2.505)
    assert best.clone_loss == pytest.approx(3.005)  # not the 2.0 of another rate
    text = guideline_markdown({"a teacher": table})
    assert text.splitlines()[2:] == [
        "| a teacher | 8, 1 kB | 512 | `direct:pca` | 2.505 | `scratch` | 3.005 | 5.1e+11 |"
    ]


def test_rows_for_a_fit_are_those_of_the_clone_at_its_best_rates(table):
    named = table.assign(inference_params=table["weight_bytes"] / 4, teacher_loss=1.0)
    rows = scaling_rows({"teacher of width 64, WikiText-2": named, "stories260k, TinyStories": named})
    assert rows["setting"].unique().tolist() == ["wikitext2_64"]
    assert rows["inference_params"].tolist() == [250, 250, 2250, 2250]
    assert rows["test_loss"].tolist() == pytest.approx([3.0, 3.01, 1.5, 1.51])
    assert scaling_rows({}).empty


def test_the_verdicts_of_the_study_in_tables(tmp_path: Path, table):
    (tmp_path / "worth" / "wikitext2_64").mkdir(parents=True)
    table.to_csv(tmp_path / "worth" / "wikitext2_64" / "measurements.csv")
    target = {"loss": 2.0, "estimate": 0.5, "ci95": [0.4, 0.6], "clone_budget": 2000.0, "direct_budget": 1000.0}
    over = {"budget": "tokens", "targets": [target | {"loss": 3.0, "estimate": 0.8}, target],
            "performance": {"estimate": 0.1, "ci95": [0.05, 0.15], "tokens": 4096.0}}  # fmt: skip
    flops = over | {"budget": "training_flops"}
    duel = {"clone": "clone:pca", "rival": "scratch", "at": 1000.0, "cost": "equal", "estimate": -0.1,
            "ci95": [-0.2, 0.0], "seeds": 5}  # fmt: skip
    front = {"cost": "weight_bytes", "verdict": "CONSISTENT", "duels": [duel, duel | {"rival": "svd:untrained"}]}
    claims = {"efficiency": {"verdict": "REFUTED", "comparisons": [flops, over]},
              "compression": {"verdict": "CONSISTENT", "comparisons": [front]}}  # fmt: skip
    found = tables_of_study(tmp_path, {Path("worth/wikitext2_64"): claims})
    lines = {name: text.splitlines()[2:] for name, text in found.items()}
    where = "teacher of width 64, WikiText-2"
    assert lines["worth_efficiency"] == [
        f"| {where} | REFUTED | 4,096 | +0.100 [+0.050, +0.150] | 0.80 [0.40, 0.60] at 3.00 | "
        "0.50 [0.40, 0.60] at 2.00 |"
    ]
    assert lines["worth_factors"][1] == f"| {where} | 2.000 | 0.50 [0.40, 0.60] | 2,000 | 1,000 |"
    assert lines["worth_compression"] == [
        f"| {where} | CONSISTENT | 1 kB | `scratch` | equal | -0.100 [-0.200, +0.000] |"
    ]
    assert tables_of_study(tmp_path / "nowhere", {}) == {}
    (tmp_path / "bench").mkdir()
    way = {"method": "whitened_svd", "share": 0.8, "weight_bytes": 4.3e8, "test_loss": 3.0, "perplexity": 20.0855}
    pd.DataFrame([way]).to_csv(tmp_path / "bench" / "smollm2_truncated.csv")
    found = tables_of_study(tmp_path, {Path("worth/wikitext2_64"): claims})
    assert found["truncated"].splitlines()[2:] == ["| `whitened_svd` | 0.80 | 430 MB | 3.000 | 20.09 |"]


def test_what_is_not_kept_is_left_out(tmp_path: Path, table):
    assert read_kept(tmp_path) == {} and answered({}) == {} and cloze_against_loss({}) is None
    (tmp_path / "worth" / "stories260k").mkdir(parents=True)
    table.to_csv(tmp_path / "worth" / "stories260k" / "measurements.csv")
    assert list(read_kept(tmp_path)) == ["stories260k, TinyStories"]
    assert answered(read_kept(tmp_path)) == {}  # no student answered a task


def test_capability_beside_loss(tmp_path: Path):
    loss = np.linspace(3.0, 5.0, 12)
    students = pd.DataFrame(
        {"method": ["clone:pca", "scratch"] * 6, "test_loss": loss, "cloze_accuracy": 0.9 - loss / 10,
         "teacher_loss": 2.5, "teacher.cloze_accuracy": 0.7, "cloze_items": 300}
    )  # fmt: skip
    (tmp_path / "worth" / "smollm2").mkdir(parents=True)
    students.to_csv(tmp_path / "worth" / "smollm2" / "measurements.csv")
    with theme():
        drawn = cloze_against_loss(answered(read_kept(tmp_path)))
    assert drawn is not None and len(drawn.points) == 12
    assert "12 students, rank correlation -1.00" in drawn.caption
    (legend,) = drawn.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["clone:pca", "scratch"]


def test_a_rank_correlation_that_is_not_there_is_not_found():
    rng = np.random.default_rng(1)
    whole, low, high = rank_correlation(rng.normal(size=60), rng.normal(size=60))
    assert low < 0 < high and low < whole < high
