"""Dynamics: unbiased angles, kernels within the teacher's spectrum, and the intervention that must make them equal."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrc_jax.clone import CloneFlags
from lrc_jax.losses import kl_per_token
from lrc_jax.measure import dynamics as dyn
from lrc_jax.measure.spectra import MATRIX_CLASSES, matrix_spectrum, projection_constants, teacher_spectra
from lrc_jax.model import DecoderConfig, forward, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student

TEACHER = DecoderConfig(24, 16, 20, 1, 2, 2, 8)  # q, k, v, o are square; embed, gate, up, head tall; down wide
RANK = 5
POOL = np.random.default_rng(0).integers(0, 24, (64, 6)).astype(np.int32)
SQUARE = ("q", "k", "v", "o")


@functools.lru_cache(maxsize=1)
def setting():
    frozen = Frozen(jax.jit(functools.partial(init_weights, TEACHER))(jax.random.key(0)))
    student = make_student("lrc", TEACHER, CloneFlags(rank=RANK), StudentOptions())
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    return student, frozen, jax.tree.map(lambda x: x * 8 if x.ndim == 2 else x, params)


def merged(frozen, params):
    return setting()[0].weights(params, frozen)


merged_jit = jax.jit(merged)


def kl_loss(frozen, weights, tokens_BT):
    student, _, _ = setting()
    tokens_BT = jnp.asarray(tokens_BT)
    teacher = forward(TEACHER, frozen.teacher, tokens_BT).logits_NV
    return jnp.mean(kl_per_token(teacher, forward(student.config, weights, tokens_BT).logits_NV, 1.0))


def sample(pool, key, size):
    return pool[jax.random.randint(key, (size,), 0, pool.shape[0])]


def whole(pool, key, size):
    return pool


def align(frozen, params, sampler=whole, map_frozen=None, **kwargs):
    spectra = teacher_spectra((map_frozen or frozen).teacher)
    rows = dyn.alignment(
        Partial(merged, map_frozen or frozen), Partial(kl_loss, frozen), Partial(sampler, POOL), params,
        jax.random.key(2), spectra, **kwargs,
    )  # fmt: skip
    return {r.matrix: r for r in rows}


def test_angles_are_those_of_the_preconditioned_gradient():
    _, frozen, params = setting()
    got = align(frozen, params, blocks=3)
    weights = merged_jit(frozen, params)
    grad = jax.jit(jax.grad(lambda w: kl_loss(frozen, w, POOL)))(weights)
    teacher = frozen.teacher.layers[0]
    for name, g, k in (
        ("q", grad.layers[0].q_DQ, lambda g: g @ teacher.q_DQ.T @ teacher.q_DQ),
        ("o", grad.layers[0].o_QD, lambda g: teacher.o_QD @ teacher.o_QD.T @ g),
        ("gate", grad.layers[0].gate_DF, lambda g: g @ teacher.gate_DF.T @ teacher.gate_DF),
        ("down", grad.layers[0].down_FD, lambda g: teacher.down_FD @ teacher.down_FD.T @ g),
        ("embed", grad.embed_VD, lambda g: frozen.teacher.embed_VD @ frozen.teacher.embed_VD.T @ g),
        ("head", grad.head_DV, lambda g: g @ frozen.teacher.head_DV.T @ frozen.teacher.head_DV),
    ):
        kg = k(g)
        cos = float(jnp.sum(kg * g) / (jnp.linalg.norm(kg) * jnp.linalg.norm(g)))
        assert got[name].cos == pytest.approx(cos, rel=1e-3), name
    spectra = {x.name: x for x in teacher_spectra(frozen.teacher)}
    for name, row in got.items():
        assert row.floor - 1e-5 <= row.cos <= 1 + 1e-5
        least = 1 / spectra[name].kappa ** 2 if spectra[name].spans_free else 0
        assert least - 1e-5 <= row.descent <= 1 + 1e-5
        assert (row.floor > 0) == (name in SQUARE)


@pytest.mark.slow
def test_two_batch_products_are_unbiased_and_one_batch_is_not():
    _, frozen, params = setting()
    maps = Partial(merged, frozen), Partial(kl_loss, frozen)
    exact = dyn._gram(*maps, Partial(whole, POOL), params, jax.random.key(0), 1, 2)["gate"][:, 0, 1]
    blocks = 200
    grams = np.asarray(dyn._gram(*maps, Partial(sample, POOL), params, jax.random.key(5), 2, blocks)["gate"], float)
    for kind in range(3):
        pairs = grams[kind][0::2, 1::2].diagonal()  # disjoint pairs of batches
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
        assert abs(pairs.mean() - float(exact[kind])) < 3 * error
        assert grams[kind].diagonal().mean() - float(exact[kind]) > 5 * error
    noisy = align(frozen, params, sample, batch_size=64, blocks=16)
    truth = align(frozen, params, blocks=3)
    assert all(abs(noisy[m].cos - truth[m].cos) < 4 * noisy[m].cos_se + 0.02 for m in truth)


def test_kantorovich_bound_and_its_attainment():
    for kappa in (1.0, 3.0, 10.0):
        a = np.diag([1.0, 1 / kappa])
        floor = dyn.kantorovich_floor([matrix_spectrum(a, "q", 0, True)])
        k = a @ a.T
        angles = np.linspace(0, math.pi / 2, 2001)
        g = np.stack([np.cos(angles), np.sin(angles)])
        cos = np.sum(g * (k @ g), axis=0) / np.linalg.norm(k @ g, axis=0)
        assert cos.min() == pytest.approx(floor, abs=1e-4)
    assert dyn.kantorovich_floor([matrix_spectrum(np.ones((2, 3)) + np.eye(2, 3), "gate", 0, True)]) == 0


def test_whitening_aligns_the_matrices_that_reach_every_direction_and_only_those():
    _, frozen, params = setting()
    white = Frozen(dyn.whiten_teacher(frozen.teacher))
    start = dyn.same_start(params, frozen.teacher, white.teacher)
    for a, b in zip(
        jax.tree.leaves(merged_jit(frozen, params)), jax.tree.leaves(merged_jit(white, start)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    before, after = align(frozen, params, blocks=3), align(frozen, start, map_frozen=white, blocks=3)
    for name in SQUARE:
        assert before[name].cos < 0.97
        assert after[name].cos == pytest.approx(1.0, abs=1e-4)
        assert after[name].descent == pytest.approx(1.0, abs=1e-3)
    for name in ("gate", "up", "embed", "head"):
        assert after[name].cos == pytest.approx(before[name].cos, rel=1e-4)
        assert after[name].cos < 0.97


def test_one_step_on_whitened_square_matrices_is_a_step_of_direct_training():
    _, frozen, params = setting()
    white = Frozen(dyn.whiten_teacher(frozen.teacher))
    start = dyn.same_start(params, frozen.teacher, white.teacher)
    eta = 0.05

    def step(map_frozen, p):
        grad = jax.jit(jax.grad(lambda p: kl_loss(frozen, merged(map_frozen, p), POOL)))(p)
        return merged_jit(map_frozen, jax.tree.map(lambda x, g: x - eta * g, p, grad)).layers[0]

    weights = merged_jit(frozen, params)
    grads = jax.jit(jax.grad(lambda w: kl_loss(frozen, w, POOL)))(weights)
    direct = jax.tree.map(lambda w, g: w - eta * g, weights, grads)
    clone, whitened = step(frozen, params), step(white, start)
    for field in ("q_DQ", "k_DK", "v_DK", "o_QD"):
        target, first = getattr(direct.layers[0], field), getattr(weights.layers[0], field)
        moved = float(jnp.linalg.norm(target - first))
        assert float(jnp.linalg.norm(getattr(whitened, field) - target)) < 0.02 * moved
        assert float(jnp.linalg.norm(getattr(clone, field) - target)) > 0.2 * moved


def test_whitening_everything_makes_projections_of_the_tall_matrices():
    _, frozen, params = setting()
    everything = dyn.whiten_teacher(frozen.teacher, MATRIX_CLASSES)
    assert {round(x.kappa, 3) for x in teacher_spectra(everything)} == {1.0}
    start = dyn.same_start(params, frozen.teacher, everything)
    for a, b in zip(
        jax.tree.leaves(merged_jit(frozen, params)), jax.tree.leaves(merged_jit(Frozen(everything), start)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    got = align(frozen, start, map_frozen=Frozen(everything), blocks=3)
    for row in got.values():  # cos^2 = rho for an orthogonal projection
        assert row.cos**2 == pytest.approx(row.descent, rel=1e-3)
    with pytest.raises(ValueError, match="unknown"):
        dyn.whiten_teacher(frozen.teacher, ("queries",))
    shared = {k: v for k, v in params.items() if "zoom_q" not in k}
    with pytest.raises(ValueError, match="shared"):
        dyn.same_start(shared, frozen.teacher, everything)


@pytest.mark.slow
def test_kernel_eigenvalues_stay_within_the_teachers_spectrum():
    student, frozen, params = setting()
    rng = np.random.default_rng(1)
    probes = jnp.asarray(rng.integers(0, 24, 40)), jnp.asarray(rng.integers(0, 24, 40))
    outputs = Partial(functools.partial(dyn.probe_logits, student.config), POOL[:8], *probes)
    kernels = dyn.tangent_kernels(Partial(merged, frozen), outputs, params)
    constants = projection_constants(teacher_spectra(frozen.teacher))
    assert kernels.ratios.max() <= constants["s_sq"] * 1.001
    assert 0.05 < kernels.alignment < 1
    identity = dyn.tangent_kernels(Partial(lambda w: w), outputs, merged_jit(frozen, params))
    np.testing.assert_allclose(identity.ratios, 1, rtol=1e-3)
    assert identity.alignment == pytest.approx(1.0, abs=1e-6)
    # the kernel is J J^T: a finite difference along one row
    assert np.linalg.eigvalsh(kernels.direct).min() > -1e-3 * np.linalg.norm(kernels.direct)


@pytest.mark.slow
def test_ostrowski_bounds_are_both_needed_for_a_reparametrised_decoder():
    """Every matrix times a square one with s = 3, mu = 1: all eigenvalue ratios in [1, 9], and not all equal."""
    student, frozen, params = setting()
    weights = merged_jit(frozen, params)
    rng = np.random.default_rng(3)

    def square(n):
        u = np.linalg.qr(rng.normal(size=(n, n)))[0]
        return jnp.asarray((u * np.geomspace(1, 3, n)) @ u.T, jnp.float32)

    factors = jax.tree.map(lambda w: square(w.shape[-1]), weights)
    solved = jax.tree.map(
        lambda w, a: jnp.linalg.solve(a, w.reshape(-1, w.shape[-1]).T).T.reshape(w.shape), weights, factors
    )

    def through(factors, p):
        return jax.tree.map(lambda x, a: x @ a, p, factors)

    rng2 = np.random.default_rng(1)
    probes = jnp.asarray(rng2.integers(0, 24, 24)), jnp.asarray(rng2.integers(0, 24, 24))
    outputs = Partial(functools.partial(dyn.probe_logits, student.config), POOL[:8], *probes)
    kernels = dyn.tangent_kernels(Partial(through, factors), outputs, solved)
    assert kernels.ratios.min() >= 1 - 1e-2 and kernels.ratios.max() <= 9 + 1e-2
    assert kernels.ratios.max() / kernels.ratios.min() > 1.1


def test_divergence_of_students_is_the_mean_token_kl():
    _, frozen, params = setting()
    student, _, _ = setting()
    first = student.config, merged_jit(frozen, params)
    second = student.config, merged_jit(frozen, jax.tree.map(lambda x: x * 3, params))
    assert dyn.divergence(first, first, POOL).value == pytest.approx(0, abs=1e-6)
    got = dyn.divergence(first, second, POOL, batch=16)
    logits = [jax.jit(forward, static_argnums=0)(c, w, POOL).logits_NV for c, w in (first, second)]
    kl = np.asarray(kl_per_token(*logits, 1.0)).reshape(POOL.shape).mean(axis=1)
    assert got.value == pytest.approx(kl.mean(), rel=1e-4)
    assert got.standard_error == pytest.approx(kl.std(ddof=1) / 8, rel=1e-3)
    assert dyn.divergence(second, first, POOL).value != pytest.approx(got.value, rel=1e-3)


def test_matched_step():
    losses = np.concatenate([np.linspace(3, 1, 100), np.ones(50)])
    step = dyn.matched_step(losses, 2.0, window=10)
    assert losses[step - 10 : step].mean() <= 2.0 < losses[step - 11 : step - 1].mean()
    assert dyn.matched_step(losses, 0.5) is None
    assert dyn.matched_step(losses[:5], 9.0) is None


def test_columns_of_a_row_agree_with_their_parts():
    student, frozen, params = setting()
    row = dyn.dynamics_columns(
        student, TEACHER, frozen, params, POOL, jax.random.key(0), batch_size=64, blocks=6, probes=16
    )
    exact = align(frozen, params, blocks=3)
    for name, want in exact.items():
        assert abs(row[f"dynamics.{name}.cos"] - want.cos) < 4 * row[f"dynamics.{name}.cos_se"] + 0.05
        assert row[f"dynamics.{name}.floor"] == want.floor
    assert row["kernel_ratio_max"] <= row["spectrum_s_sq"] * 1.001
    white = Frozen(dyn.whiten_teacher(frozen.teacher))
    start = dyn.same_start(params, frozen.teacher, white.teacher)
    whitened = dyn.dynamics_columns(
        student, TEACHER, white, start, POOL, jax.random.key(0),
        distilled=frozen.teacher, batch_size=64, blocks=6, probes=0,
    )  # fmt: skip
    assert all(whitened[f"dynamics.{name}.cos"] == pytest.approx(1, abs=1e-3) for name in SQUARE)
