"""A design becomes command lines."""

import numpy as np
import pandas as pd
import pytest

from experiments.reproduce import arms, read_design, recorded
from experiments.run_one.columns.method import method_of
from experiments.sweep.plan import configs_of
from theory.claims.compression import MIN_SIZES, RIVALS
from theory.claims.efficiency import MIN_BUDGETS, MIN_DECADES
from theory.judge.methods import MIN_RATES, kind_of

GIVEN = {"wikitext2": "/here/text", "stories260k": None, "tinystories": None}
ARGUMENTS = GIVEN | {
    "study": "full", "results_dir": "results", "cache_dir": ".cache", "launcher": "basic", "data": None,
    "data.path": None, "parts": "wikitext2,stories260k",
}  # fmt: skip


def test_only_the_parts_asked_for_run_and_those_without_their_input_are_named(capsys):
    found = arms(read_design("full"), ARGUMENTS)
    assert [arm.name for arm in found] == ["text_generalization", "text_optimal_rank", "text_convergence"]
    assert "stories260k: not run, it needs stories260k=" in capsys.readouterr().out
    assert all("data.path=/here/text" in arm.arguments for arm in found)
    everything = arms(read_design("full"), ARGUMENTS | {"parts": None})
    assert len(everything) > len(found)


def test_a_study_records_its_commands_without_the_machines_paths():
    command = recorded(arms(read_design("full"), ARGUMENTS)[0], GIVEN)
    assert "data=wikitext2 data.path={wikitext2} " in command
    assert "/here" not in command


WORTH = {
    "wikitext2": "/here/text", "stories260k": "/here/teacher", "tinystories": "/here/stories", "study": "worth",
    "parts": None,
}  # fmt: skip


@pytest.mark.slow
def test_the_design_of_worth_passes_its_own_gates():
    """Every part: four rates a method of which the inner two run at five seeds, budgets, sizes, every rival."""
    parts = {}
    for arm in arms(read_design("worth"), ARGUMENTS | WORTH):
        parts.setdefault(arm.study.path.name, []).extend(run for _, run in configs_of(arm.arguments[1:], many=True))
    assert set(parts) == {"wikitext2_64", "wikitext2_128", "stories260k"}
    for runs in parts.values():
        frame = pd.DataFrame(
            {"claim": r.claim, "method": method_of(r), "steps": r.steps, "rank": r.rank, "seed": r.seed,
             "rate": r.optimizer.learning_rate, "arm": r.arm, "kl": r.loss.kl_weight, "valid": r.measure.ablation,
             "tokens": r.steps * r.batch_size * r.sequence_length} for r in runs
        )  # fmt: skip
        assert frame["arm"].isna().all() and frame["valid"].all() and (frame["kl"] == 1).all()
        trained = frame[frame["steps"] > 0]
        for _, cell in trained.groupby(["claim", "method", "steps", "rank"]):
            rates = sorted(cell["rate"].unique())
            assert len(rates) == MIN_RATES
            for rate in rates:
                wanted = range(5) if rate in rates[1:-1] else range(1)
                assert sorted(cell.loc[cell["rate"] == rate, "seed"]) == list(wanted)
        efficiency, compression = (frame[frame["claim"] == c] for c in ("efficiency", "compression"))
        assert {"clone:pca", "direct:pca"} <= set(efficiency["method"])
        for _, budgets in efficiency.groupby("method")["tokens"]:
            assert budgets.nunique() >= MIN_BUDGETS
            assert np.log10(budgets.max() / budgets.min()) >= MIN_DECADES
        kinds = {kind_of(m) for m in compression.loc[compression["steps"] > 0, "method"]}
        assert kinds == {"clone", *RIVALS}
        assert compression.loc[compression["steps"] > 0, "tokens"].nunique() == 1
        for _, sizes in trained[trained["claim"] == "compression"].groupby("method")["rank"]:
            assert sizes.nunique() >= MIN_SIZES
        untrained = set(compression.loc[compression["steps"] == 0, "method"])
        assert untrained == {
            "factorized:svd", "whitened_svd", "whitened_svd:allocated", "quantised:int8", "quantised:int4",
        }  # fmt: skip
