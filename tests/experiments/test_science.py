"""What a run's columns mean: the control variate, labels, controls, dimensions, and steps at equal time.

Each of these was once changed by a reviewer without a test turning red.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run_one import setup as setups
from experiments.run_one.columns import ablation, groups
from experiments.run_one.config import RunConfig, Student, SyntheticData, TinyTeacher
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource
from lrc_jax.inference.evaluate import SequenceLosses
from lrc_jax.losses import ClonePair
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.objective import Objective, with_target
from lrc_jax.seeds import key_for

CONFIG = RunConfig(teacher=TinyTeacher(), data=SyntheticData())
DECODER = DecoderConfig(12, 16, 24, 1, 2, 1, 8, max_position_embeddings=8)
SOURCE = SyntheticSource(LanguageSpec(vocabulary=12, seed=3), 8)


@pytest.fixture(scope="module")
def loaded() -> setups.Setup:
    weights = jax.jit(init_weights, static_argnums=0)(DECODER, key_for(0, "teacher"))
    # Unembedding of a large scale: predictions far from uniform.
    weights = dataclasses.replace(weights, embed_VD=weights.embed_VD * 8)
    return setups.Setup(SOURCE, setups.Teacher(DECODER, weights, "digest"))


# ----------------------------------------------------------------------------------------------- the control variate


def losses(seed: int, size: int) -> SequenceLosses:
    rng = np.random.default_rng(seed)
    return SequenceLosses(**{f.name: rng.random(size) for f in dataclasses.fields(SequenceLosses)})


@pytest.mark.parametrize("labels", ["teacher", "data"])
def test_the_control_variate_is_measured_on_the_samples_that_it_controls(monkeypatch, labels):
    """gap = (test - reference on test) - (train - reference on train), and never the other way round."""
    train_pool, test_pool = SimpleNamespace(size=7), SimpleNamespace(size=5)
    on_train, on_test, ref_train, ref_test = (losses(i, n) for i, n in enumerate((7, 5, 7, 5)))
    known = {id(train_pool): ref_train, id(test_pool): ref_test}
    config = dataclasses.replace(
        CONFIG, labels=labels, measure=dataclasses.replace(CONFIG.measure, reference="student")
    )
    run = SimpleNamespace(
        config=config,
        student=SimpleNamespace(trained=True),
        setup=SimpleNamespace(once=lambda name, make: make()),
        losses=lambda params, pool: known[id(pool)],
    )
    monkeypatch.setattr(groups, "reference_student", lambda run: ("params", "reference"))
    columns = groups.gap_columns(run, on_train, on_test, train_pool, test_pool)
    if labels == "teacher":  # E over labels: divergences have no label noise
        test_side = on_test.kl.mean() - ref_test.kl.mean()
    else:
        test_side = on_test.student.mean() - ref_test.student.mean()
    assert columns["gap"] == pytest.approx(test_side - (on_train.student.mean() - ref_train.student.mean()), rel=1e-12)
    assert columns["gap_raw"] == pytest.approx(on_test.student.mean() - on_train.student.mean(), rel=1e-12)
    assert columns["gap_reference"] == "student"


def test_without_a_reference_student_the_teacher_is_the_control():
    on_train, on_test = losses(0, 7), losses(1, 5)
    for labels, test_side in (("teacher", on_test.kl), ("data", on_test.student - on_test.teacher)):
        run = SimpleNamespace(config=dataclasses.replace(CONFIG, labels=labels), student=SimpleNamespace(trained=True))
        columns = groups.gap_columns(run, on_train, on_test, None, None)
        wanted = test_side.mean() - (on_train.student.mean() - on_train.teacher.mean())
        assert columns["gap"] == pytest.approx(wanted, rel=1e-12) and columns["gap_reference"] == "teacher"


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_of_the_data_are_the_next_tokens(loaded):
    pool = loaded.pool("student", 50, "data")
    tokens = pool_from_sequences(SOURCE.sequences("student", 50))
    np.testing.assert_array_equal(pool.labels_NT, tokens.labels_NT)
    np.testing.assert_array_equal(pool.labels_NT[:, :-1], pool.tokens_NT[:, 1:])


def test_labels_of_the_teacher_are_drawn_from_its_predictions(loaded):
    """Frequencies over 4,000 sequences against mean probabilities, within 4.5 standard errors; another replicate draws
    others."""
    n = 4000
    pool = loaded.pool("student", n, "teacher", 1)
    teacher = loaded.network()
    logits_NV = forward(teacher.config, teacher.weights, jnp.asarray(pool.tokens_NT)).logits_NV
    p_NTV = np.asarray(jax.nn.softmax(logits_NV)).reshape(n, 8, 12)
    drawn_NTV = np.eye(12)[pool.labels_NT]
    se = np.sqrt((p_NTV * (1 - p_NTV)).sum(0)) / n
    off = np.abs(drawn_NTV.mean(0) - p_NTV.mean(0)) / se
    assert off.max() < 4.5
    assert p_NTV.max(-1).mean() > 2 / 12  # far from uniform, so that any other distribution is seen
    assert (loaded.pool("student", n, "teacher", 2).labels_NT != pool.labels_NT).mean() > 0.1


# ------------------------------------------------------------------------------------------------------------ controls


def pair(rows: int = 12, features: int = 6) -> ClonePair:
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(rows, features)), jnp.float32) for _ in range(2))
    return ClonePair(0, "q", student, teacher)


def test_the_shuffled_control_gives_every_token_another_one_s_activation():
    original = pair()
    shuffled = np.asarray(with_target(original, "shuffled").teacher)
    teacher = np.asarray(original.teacher)
    assert not (shuffled == teacher).all(axis=1).any()  # no token keeps its own
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(teacher, axis=0))  # the same distribution


def test_the_rotated_control_keeps_information_and_changes_the_target():
    original = pair()
    rotated = np.asarray(with_target(original, "rotated").teacher)
    teacher = np.asarray(original.teacher)
    np.testing.assert_allclose(rotated @ rotated.T, teacher @ teacher.T, atol=1e-5)
    assert np.linalg.norm(rotated - teacher) > 0.5 * np.linalg.norm(teacher)
    assert with_target(original, "teacher") is original


def test_a_control_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="swapped"):
        Objective(target="swapped")


# ---------------------------------------------------------------------------------------------------------- dimensions


@pytest.mark.parametrize(
    ("student", "d_out"),
    [
        (Student(name="lrc"), 16),
        (Student(name="factorized", matrices="all"), 16),
        (Student(name="factorized", matrices="head"), 12),
        (Student(name="bilinear"), 12),
    ],
)
def test_the_matrix_whose_rank_is_in_question(loaded, student, d_out):
    """One-matrix students factor the unembedding, vocabulary x width; the others' matrices are width x width."""
    config = dataclasses.replace(CONFIG, student=student)
    columns = groups.describe(config, loaded, None)
    assert (columns["d_in"], columns["d_out"]) == (16, d_out)


# ------------------------------------------------------------------------------------------------ steps at equal time


@pytest.mark.parametrize(("plain", "this", "steps"), [(2.0, 1.0, 200), (1.0, 4.0, 25), (1.0, 1e6, 1)])
def test_a_faster_student_has_time_for_more_steps(monkeypatch, plain, this, steps):
    monkeypatch.setattr(ablation, "cached_numbers", lambda *_: {"plain": plain, "this": this})
    run = SimpleNamespace(
        config=dataclasses.replace(CONFIG, steps=100),
        student=SimpleNamespace(trained=True),
        setup=SimpleNamespace(data_digest="d"),
        cache=None,
    )
    assert ablation.matched_steps(run, None) == steps
    run.student.trained = False  # an untrained student takes none of them
    assert ablation.matched_steps(run, None) == 100
