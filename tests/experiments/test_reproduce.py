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
    elsewhere = ARGUMENTS | {"results_dir": "/here/results", "cache_dir": "/here/cache"}
    command = recorded(arms(read_design("full"), elsewhere)[0], GIVEN)
    assert "data=wikitext2 data.path={wikitext2} " in command
    assert "results_dir=results cache_dir=.cache" in command
    assert "/here" not in command


WORTH = {
    "wikitext2": "/here/text", "stories260k": "/here/teacher", "tinystories": "/here/stories", "study": "worth",
    "parts": None,
}  # fmt: skip


@pytest.mark.slow
def test_the_design_of_worth_passes_its_own_gates():
    """Every part: four rates per method of which the inner two run at five seeds, budgets, sizes, every rival."""
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


def test_the_second_design_spans_what_its_gates_ask_for():
    """Every spectrum: two decades of N, ranks beyond both ends of the trusted window, five seeds; claim 1 likewise."""
    parts = {}
    for arm in arms(read_design("second"), ARGUMENTS | {"study": "second", "parts": None}):
        parts.setdefault(arm.study.path.name, []).extend(run for _, run in configs_of(arm.arguments[1:], many=True))
    spectra = {name: runs for name, runs in parts.items() if name.startswith("spectrum_")}
    assert {float(name[9:]) for name in spectra} == {0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0}
    for name, runs in spectra.items():
        assert {r.data.spectrum for r in runs} == {float(name[9:])}
        samples, ranks = ({getattr(r, key) for r in runs} for key in ("samples", "rank"))
        assert max(samples) / min(samples) >= 100 and len(samples) >= 8
        assert min(ranks) < 4 and max(ranks) < runs[0].data.vocabulary / 2
        assert len(runs) == len(samples) * len(ranks) * 5
    for name in ("premise_open", "premise_bounded"):
        assert {r.student.unit_norm for r in parts[name]} == {name == "premise_bounded"}
        assert len({r.steps for r in parts[name]}) == 5 and {r.optimizer.learning_rate for r in parts[name]} == {0.68}
