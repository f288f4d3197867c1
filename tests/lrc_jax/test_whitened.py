"""Activation-aware truncated SVD: never worse than the plain one where it counts, exact at full rank, within budget."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrc_jax.__main__ import main
from lrc_jax.clone import CloneFlags, LowRankClone
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import divergence_from
from lrc_jax.measure.flops import inference_cost, parameter_count
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.factorized import factored_size, matrix, matrix_shapes
from lrc_jax.students.statistics import INPUTS, input_moments
from lrc_jax.students.whitened import Spectrum, allocate, measured_losses, root, spectra, whitened_error, whitened_start
from lrc_jax.teachers.load import load_teacher

UNTIED = DecoderConfig(40, 16, 24, 2, 2, 1, 8)
TIED = dataclasses.replace(UNTIED, tie_word_embeddings=True)


def plain_svd(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


# --- one matrix ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    inputs=st.integers(1, 12),
    power=st.floats(0.0, 3.0),
    seed=st.integers(0, 10**6),
)
def test_the_error_is_never_above_that_of_the_plain_svd(shape, inputs, power, seed):
    """At every rank; inputs of any spectrum, also fewer of them than dimensions, so that C is singular."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape)
    x = rng.normal(size=(inputs, shape[0])) * np.arange(1.0, shape[0] + 1) ** -power
    c = root(x.T @ x / inputs)
    spectrum = Spectrum.of(w, c)
    lost = spectrum.lost() * whitened_error(w, np.zeros_like(w), c)
    for rank in range(1, min(shape) + 1):
        u, v = spectrum.factors(rank)
        error = whitened_error(w, u @ v, c)
        assert error == pytest.approx(np.sum((x @ w - x @ (u @ v)) ** 2) / inputs, rel=1e-6, abs=1e-9)
        assert error <= whitened_error(w, plain_svd(w, rank), c) * (1 + 1e-9) + 1e-12
        assert error == pytest.approx(lost[rank], rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(u @ v, w, atol=1e-7)  # at full rank the matrix itself, whatever C leaves out


def test_white_inputs_give_the_plain_svd_with_even_factors():
    w = np.random.default_rng(0).normal(size=(7, 5))
    u, v = Spectrum.of(w, np.eye(7)).factors(3)
    np.testing.assert_allclose(u @ v, plain_svd(w, 3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=1))


def test_what_inputs_do_not_show_is_not_paid_for():
    """The strong direction of W is one that inputs hardly excite: plain SVD keeps it, the activation-aware one not."""
    w, c = np.diag([10.0, 1.0]), root(np.diag([1e-4, 1.0]))
    u, v = Spectrum.of(w, c).factors(1)
    np.testing.assert_allclose(u @ v, np.diag([0.0, 1.0]), atol=1e-12)
    assert whitened_error(w, u @ v, c) == pytest.approx(0.01)
    assert whitened_error(w, plain_svd(w, 1), c) == pytest.approx(1.0)


# --- a teacher's matrices --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[UNTIED, TIED], ids=["untied", "tied"])
def teacher(request):
    config = request.param
    weights = jax.jit(init_weights, static_argnums=0)(config, jax.random.key(1))
    weights = dataclasses.replace(weights, embed_VD=weights.embed_VD * 20)
    pool = pool_from_sequences(np.random.default_rng(0).zipf(1.5, (24, 13)) % config.vocab_size)
    return config, weights, pool, input_moments(config, weights, pool)


def start_of(student, teacher, allocation="none"):
    config, weights, pool, moments = teacher
    found = spectra(config, weights, moments)
    losses = measured_losses(config, weights, found, pool) if allocation == "by_loss" else None
    return whitened_start(student, weights, found, losses, pool)


def test_moments_are_of_what_every_matrix_reads(teacher):
    config, weights, pool, moments = teacher
    acts = forward(config, weights, jnp.asarray(pool.tokens_NT))
    for i, layer in enumerate(acts.layers):
        # Each input times its matrix is the output that the pass computed.
        for field, output in {"q_DQ": "q_NQ", "o_QD": "attn_out_ND", "up_DF": "up_NF", "down_FD": "mlp_out_ND"}.items():
            w, c = (
                np.asarray(matrix(weights, f"layers.{i}.{field}"), np.float64),
                moments[f"layers.{i}.{INPUTS[field]}"],
            )
            y = np.asarray(getattr(layer, output), np.float64)
            np.testing.assert_allclose(w.T @ c @ w, y.T @ y / len(y), rtol=1e-3, atol=1e-5)
    counts = np.bincount(pool.tokens_NT.reshape(-1), minlength=config.vocab_size)
    np.testing.assert_allclose(moments["tokens"], counts / pool.tokens_NT.size, atol=1e-7)
    final = np.asarray(acts.final_ND, np.float64)
    np.testing.assert_allclose(moments["final"], final.T @ final / len(final), rtol=1e-4, atol=1e-5)


def test_every_matrix_of_a_student_loses_no_more_than_by_plain_svd(teacher):
    config, weights, _, moments = teacher
    for rank in (1, 3, 7, 16):
        student = make_student("factorized", config, CloneFlags(rank), StudentOptions(init="whitened"))
        student, factors = start_of(student, teacher)
        for name, one in spectra(config, weights, moments).items():
            w = np.asarray(matrix(weights, name), np.float64)
            u, v = (np.asarray(factors[name][k], np.float64) for k in "uv")
            assert u.shape == (w.shape[0], min(rank, *w.shape))
            layer, _, field = name.rpartition(".")
            site = f"{layer}.{INPUTS[field]}" if layer else "final" if name == "head" or one.transposed else "tokens"
            c, turned = root(moments[site]), (lambda x, t=one.transposed: x.T if t else x)
            error, plain = (whitened_error(turned(w), turned(x), c) for x in (u @ v, plain_svd(w, rank)))
            assert error <= plain * (1 + 1e-5) + 1e-9 * whitened_error(turned(w), 0 * turned(w), c), (name, rank)


@pytest.mark.parametrize("allocation", ["none", "uniform", "by_loss"])
def test_at_the_teachers_size_the_student_is_the_teacher(teacher, allocation):
    config, weights, pool, _ = teacher
    options = StudentOptions(init="whitened", allocation=allocation)
    student = make_student("factorized", config, CloneFlags(config.hidden_size), options)
    student, factors = start_of(student, teacher, allocation)
    frozen = Frozen(weights, factors=factors)
    made = student.weights(student.init(jax.random.key(0), frozen), frozen)
    assert divergence_from(config, weights, pool)(made) < 1e-5
    assert inference_cost(student, 12).numbers <= parameter_count(config)


@pytest.mark.parametrize("rank", [4, 8, 13])
def test_ranks_keep_to_the_size_of_a_clone(teacher, rank):
    config, weights, pool, _ = teacher
    clone = parameter_count(LowRankClone(config, CloneFlags(rank)).config)
    slack = max(m + n for m, n in matrix_shapes(config).values())
    cost = {}
    for allocation in ("uniform", "by_loss"):
        student = make_student(
            "factorized", config, CloneFlags(rank), StudentOptions(init="whitened", allocation=allocation)
        )
        student, factors = start_of(student, teacher, allocation)
        assert clone - slack < inference_cost(student, 12).numbers <= clone
        frozen = Frozen(weights, factors=factors)
        made = student.weights(student.init(jax.random.key(0), frozen), frozen)
        cost[allocation] = divergence_from(config, weights, pool)(made)
    assert cost["by_loss"] <= cost["uniform"] * (1 + 1e-6)


def test_measured_losses_are_those_of_truncating_one_matrix(teacher):
    config, weights, pool, moments = teacher
    found = spectra(config, weights, moments)
    losses = measured_losses(config, weights, {"layers.0.up_DF": found["layers.0.up_DF"]}, pool)["layers.0.up_DF"]
    assert len(losses) == 17 and losses[-1] == 0.0 and (np.diff(losses) <= 0).all()
    u, v = found["layers.0.up_DF"].factors(4)
    layers = (dataclasses.replace(weights.layers[0], up_DF=(u @ v).astype(np.float32)), *weights.layers[1:])
    measured = divergence_from(config, weights, pool)(dataclasses.replace(weights, layers=layers))
    assert losses[4] == pytest.approx(measured, rel=1e-5)


# --- ranks -----------------------------------------------------------------------------------------------------------


def best_by_trying(losses, shapes, budget):
    def cost(ranks):
        return sum(factored_size(m, n, r) for (m, n), r in zip(shapes, ranks, strict=True))

    tried = itertools.product(*(range(1, len(x)) for x in losses))
    return min(sum(x[r] for x, r in zip(losses, t, strict=True)) for t in tried if cost(t) <= budget)


def test_allocation_is_the_best_there_is_on_small_problems():
    """Against all ways: as good at budgets where a corner of the hull is met, and near elsewhere."""
    rng = np.random.default_rng(2)
    worst = 0.0
    for _ in range(40):
        shapes = [tuple(rng.integers(3, 8, 2).tolist()) for _ in range(3)]
        losses = []
        for shape in shapes:
            power = np.sort(rng.exponential(size=min(shape)))[::-1] ** 2 * rng.exponential()
            losses.append(np.concatenate([np.cumsum(power[::-1])[::-1], [0.0]]))
        whole = sum(m * n for m, n in shapes)
        least = sum(factored_size(m, n, 1) for m, n in shapes)
        budget = int(rng.integers(least, whole + 1))
        ranks = allocate(losses, shapes, budget)
        assert sum(factored_size(m, n, r) for (m, n), r in zip(shapes, ranks, strict=True)) <= budget
        found = sum(x[r] for x, r in zip(losses, ranks, strict=True))
        worst = max(worst, found - best_by_trying(losses, shapes, budget) - max(x[1] for x in losses))
        assert allocate(losses, shapes, whole) == tuple(min(shape) for shape in shapes)
    assert worst <= 0.0  # never further from the best than the largest single step


def test_allocation_gives_ranks_where_they_save_most():
    steep, flat = np.array([4.0, 3.0, 0.2, 0.1, 0.0]), np.array([1.0, 0.4, 0.3, 0.25, 0.0])
    assert allocate([steep, flat], [(20, 4), (20, 4)], 3 * 24) == (2, 1)
    assert allocate([flat, steep], [(20, 4), (20, 4)], 3 * 24) == (1, 2)


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lrc", {"init": "whitened"}, "student.init: whitened needs student=factorized"),
        ("factorized", {"init": "whitened", "matrices": "head"}, "student.init: whitened needs student=factorized"),
        ("direct", {"allocation": "uniform"}, "student.allocation: uniform needs student=factorized"),
        (
            "factorized",
            {"init": "pca", "allocation": "by_loss"},
            "student.allocation: by_loss needs student.init=whitened",
        ),
        ("factorized", {"allocation": "many"}, "student.allocation: 'many' is unknown"),
    ],
)
def test_choices_that_do_not_fit_are_one_line(kind, options, message):
    with pytest.raises(InputError, match=message):
        make_student(kind, UNTIED, CloneFlags(4), StudentOptions(**options))


@pytest.mark.slow
def test_distill_trains_it_and_writes_merged_weights(teacher_folder: Path, text_file: Path, tmp_path: Path):
    """No stock architecture holds factors: the folder is a decoder of the teacher's shape."""
    words = ["distill", "--teacher", str(teacher_folder), "--text", str(text_file), "--rank", "12", "--steps", "12"]
    words += ["--student", "factorized", "--init", "whitened", "--allocation", "by_loss", "--learning-rate", "1e-3"]
    assert main([*words, "--batch-size", "2", "--sequence-length", "8", "--out", str(tmp_path / "out")]) == 0
    made, whole = load_teacher(tmp_path / "out"), load_teacher(teacher_folder)
    assert made.config == whole.config
    note = json.loads((tmp_path / "out" / "lrc.json").read_text())
    assert note["settings"]["allocation"] == "by_loss" and note["loss_after"] < note["loss_before"]
