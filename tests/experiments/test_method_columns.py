"""Rows that say which method a run is of and what it costs: what claims 6 and 7 read, from runs to verdicts."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from experiments.run_one import pipeline
from experiments.run_one import setup as setups
from experiments.run_one.columns.method import cost_by_formula, method_of
from experiments.run_one.config import (
    NEWER,
    Loss,
    Measure,
    RunConfig,
    Student,
    SyntheticData,
    TextData,
    TinyTeacher,
    checked,
    identity,
)
from experiments.run_one.run import Run
from experiments.sweep.job import defined
from experiments.sweep.rows import table
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource
from lrc_jax.errors import InputError
from lrc_jax.measure.flops import parameter_count
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.seeds import key_for
from theory.judge.check import check_table
from theory.judge.methods import CLONE, DIRECT, kind_of, start_of
from theory.judge.verdicts import UNTESTABLE

SMALL = RunConfig(
    rank=4, samples=32, steps=6, batch_size=8, sequence_length=6,
    teacher=TinyTeacher(hidden_size=16, intermediate_size=16, steps=20, pool=128, check_every=10),
    data=SyntheticData(vocabulary=8), measure=Measure(test_samples=32, ablation=True, clone_fvu=False),
)  # fmt: skip


def config_of(**changes):
    return dataclasses.replace(SMALL, **changes)


def run(folder, **changes):
    """The row of a run, as a study's folder keeps it."""
    config = checked(config_of(cache_dir=str(folder), **changes))
    setup = setups.load(config)
    columns = pipeline.run(config, setup, lambda line: None, lambda done, steps, loss: None)
    return {
        "run_id": str(changes), "data_digest": setup.data_digest, "code_version": "v", "columns": defined(columns),
        "machine": {"training_seconds": 0.25},
    }  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("student", "loss", "name"),
    [
        (Student("lrc", init="random"), Loss(), "clone:random"),
        (Student("lrc", init="pca"), Loss(), "clone:pca"),
        (Student("direct", init="pca"), Loss(), "direct:pca"),
        (Student("scratch"), Loss(), "scratch"),
        (Student("scratch"), Loss(kl_weight=0.0), "scratch:labels"),
        (Student("svd"), Loss(), "svd"),
        (Student("factorized", init="pca"), Loss(), "factorized:svd"),
        (Student("factorized", init="random"), Loss(), "factorized:random"),
        (Student("factorized", init="whitened"), Loss(), "whitened_svd"),
        (Student("factorized", init="whitened", allocation="uniform"), Loss(), "whitened_svd"),
        (Student("factorized", init="whitened", allocation="by_loss"), Loss(), "whitened_svd:allocated"),
        (Student("quantised"), Loss(), "quantised:int8"),
        (Student("quantised", bits=4), Loss(), "quantised:int4"),
        (Student("factorized", matrices="head"), Loss(), None),
        (Student("bilinear"), Loss(), None),
    ],
)
def test_every_student_has_the_name_of_its_method(student, loss, name):
    assert method_of(config_of(student=student, loss=loss)) == name
    if name is not None and student.name in ("lrc", "direct"):  # what the judge pairs
        assert kind_of(name) == {"lrc": CLONE, "direct": DIRECT}[student.name]
        assert start_of(name) == student.init


def test_keys_that_are_newer_than_a_study_change_no_id_at_their_defaults():
    assert not set(NEWER["student"]) & set(identity(config_of())["student"])
    changed = identity(config_of(student=Student("factorized", init="whitened", allocation="uniform")))["student"]
    assert changed["allocation"] == "uniform"
    assert all(getattr(Student(), key) == default for key, default in NEWER["student"].items())


@pytest.fixture(scope="module")
def untrained_teacher() -> setups.Setup:
    decoder = DecoderConfig(8, 16, 16, 1, 2, 2, 8, max_position_embeddings=6)
    weights = jax.jit(init_weights, static_argnums=0)(decoder, key_for(0, "teacher"))
    source = SyntheticSource(LanguageSpec(vocabulary=8), 6)
    return setups.Setup(source, setups.Teacher(decoder, weights, "digest"))


def test_a_row_says_what_a_run_cost(untrained_teacher):
    def cost(student, steps=6, **changes):
        config = config_of(student=dataclasses.replace(student, init="random"), **changes)
        return cost_by_formula(Run.of(config, untrained_teacher), steps)

    clone = cost(Student("lrc"))
    student = dataclasses.replace(untrained_teacher.network().config, hidden_size=4)
    assert clone["tokens"] == 6 * 8 * 6
    assert clone["inference_params"] == parameter_count(student)
    assert clone["weight_bytes"] == 4 * parameter_count(student)
    assert cost(Student("lrc"), steps=12)["training_flops"] == 2 * clone["training_flops"] > 0
    untrained = cost(Student("svd"))
    assert untrained["tokens"] == untrained["training_flops"] == 0
    assert untrained["weight_bytes"] == clone["weight_bytes"]
    # Scratch on labels alone reads no teacher and trains the same shape.
    alone = cost(Student("scratch"), clone_weight=0.0, loss=Loss(kl_weight=0.0))
    assert alone["training_flops"] < clone["training_flops"]


@pytest.mark.slow
def test_a_sweep_of_methods_is_judged_without_work_by_hand(cache):
    budgets = [("efficiency", 4), ("efficiency", 8), ("efficiency", 16), ("compression", 8)]
    rows = [
        run(cache, claim=claim, student=Student(name), steps=steps, seed=seed)
        for (claim, steps), name, seed in itertools.product(budgets, ("lrc", "direct"), (0, 1))
    ]
    frame = table(rows)
    assert (frame["training_seconds"] == 0.25).all()
    report = check_table(frame)
    assert set(report.claims) == {"efficiency", "compression"}
    efficiency = report.claims["efficiency"]
    assert efficiency.verdict == UNTESTABLE  # three budgets, two seeds
    assert {c["budget"] for c in efficiency.fields["comparisons"]} >= {"tokens", "training_flops"}
    assert {(c["clone"], c["direct"]) for c in efficiency.fields["comparisons"]} == {("clone:pca", "direct:pca")}
    assert {c["cost"] for c in report.claims["compression"].fields["comparisons"]} == {
        "weight_bytes", "flops_per_token",
    }  # fmt: skip


@pytest.mark.slow
def test_a_rival_of_a_clones_size_is_built_and_fine_tuned(cache):
    """At equal bytes with a clone of the same `rank`, from the same text; steps = 0 leaves it as it is built."""
    rows = {
        (name, steps): run(cache, student=student, steps=steps, samples=64)["columns"]
        for name, student in {
            "clone": Student("lrc"),
            "plain": Student("factorized", init="pca", allocation="uniform"),
            "whitened": Student("factorized", init="whitened", allocation="uniform"),
            "allocated": Student("factorized", init="whitened", allocation="by_loss"),
        }.items()
        for steps in (0, 30)
    }
    clone = rows["clone", 0]["weight_bytes"]
    for (name, steps), row in rows.items():
        assert 0.9 * clone < row["weight_bytes"] <= clone, name
        assert (row["tokens"] == 0) == (steps == 0)
        if name != "clone" and steps:
            assert row["start_test_loss"] == pytest.approx(rows[name, 0]["test_loss"], rel=1e-3)
            assert row["test_loss"] < rows[name, 0]["test_loss"]
    assert rows["allocated", 0]["excess"] <= rows["whitened", 0]["excess"] * 1.05


@pytest.mark.slow
def test_students_are_asked_for_continuations_of_held_out_text(cache, tmp_path):
    rng = np.random.default_rng(0)
    # Every document is about a word of its own, so that a model that reads its context can tell.
    texts = [". ".join(" ".join([f"topic{k}"] * 4) for _ in range(12)) + "." for k in rng.integers(0, 40, 400)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    row = run(
        cache,
        student=Student("direct"),
        data=TextData(path=str(tmp_path / "text.txt"), tokenizer_size=300),
        teacher=TinyTeacher(hidden_size=32, intermediate_size=64, steps=600, pool=512),
        sequence_length=32,
        measure=dataclasses.replace(SMALL.measure, cloze=15),
    )["columns"]
    assert row["cloze_items"] == 15
    assert row["cloze_low"] <= row["cloze_accuracy"] <= row["cloze_high"]
    assert row["teacher.cloze_accuracy"] > 0.5


def test_continuations_need_a_text():
    with pytest.raises(InputError, match=r"measure\.cloze: asks for continuations of a text"):
        checked(config_of(measure=Measure(cloze=5)))


@pytest.mark.slow
def test_a_sweep_that_compares_no_methods_names_none(cache):
    """Else every table of a rank and a sample size would be asked which method needs less."""
    plain = dataclasses.replace(SMALL.measure, ablation=False)
    frame = table([run(cache, seed=s, measure=plain) for s in (0, 1)])
    assert "method" not in frame and "training_seconds" not in frame
    assert frame["tokens"].notna().all() and frame["weight_bytes"].notna().all()
    assert not {"efficiency", "compression"} & set(check_table(frame).claims)
