"""Lanczos and path smoothness on a real student of about 2,000 parameters; spectra on matrices made to order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from lrc_jax.clone import CloneFlags
from lrc_jax.measure import spectra
from lrc_jax.measure.convergence import SgdPlan, measure_sgd_horizon
from lrc_jax.measure.smoothness import hessian_top_eigenvalue, segment_smoothness
from lrc_jax.model import DecoderConfig, forward, init_weights
from lrc_jax.objective import LossWeights, Objective, evaluate_objective
from lrc_jax.students import Frozen, StudentOptions, make_student

TEACHER = DecoderConfig(24, 32, 48, 1, 2, 2, 16)


@functools.lru_cache(maxsize=1)
def setting():
    frozen = Frozen(jax.jit(functools.partial(init_weights, TEACHER))(jax.random.key(0)))
    student = make_student("lrc", TEACHER, CloneFlags(rank=7), StudentOptions(unit_embedding=True))
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    return student, frozen, params


def lrc_loss(frozen, params, tokens_BT):
    student, _, _ = setting()
    teacher_acts = forward(TEACHER, frozen.teacher, tokens_BT)
    acts = student.forward(params, frozen, tokens_BT, teacher_acts)
    pairs = student.clone_pairs(params, frozen, teacher_acts, acts)
    objective = Objective(ce=False, kl_per_token=True)
    return evaluate_objective(objective, LossWeights(temperature=1.0), pairs, teacher_acts, acts, tokens_BT).total


def uniform_tokens(key, size):
    return jax.random.randint(key, (size, 8), 0, TEACHER.vocab_size)


def mlp_loss(data, params, batch):
    """A 2,000-parameter classifier: an indefinite Hessian without symmetries to help."""
    x_ND, y_N = data
    logits_NV = jnp.tanh(x_ND @ params["w1"] + params["b1"][None, :]) @ params["w2"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_NV), y_N[:, None], axis=-1))


@pytest.mark.slow
def test_lanczos_within_one_percent_of_the_dense_eigenvalue():
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    params = {"w1": jax.random.normal(k1, (40, 40)), "b1": jnp.zeros(40), "w2": jax.random.normal(k2, (40, 9))}
    data = jax.random.normal(k3, (64, 40)), jax.random.randint(k4, (64,), 0, 9)
    flat, unravel = ravel_pytree(params)
    assert 1900 <= flat.size <= 2100

    @jax.jit
    def hessian(flat, data):
        grad = jax.grad(lambda v: mlp_loss(data, unravel(v), None))
        return jax.lax.map(lambda v: jax.jvp(grad, (flat,), (v,))[1], jnp.eye(flat.size), batch_size=128)

    values = np.linalg.eigvalsh(np.asarray(hessian(flat, data)))
    top = hessian_top_eigenvalue(Partial(mlp_loss, data), params, None, jax.random.key(3), iterations=30)
    assert top.largest == pytest.approx(values[-1], rel=0.01)
    assert top.largest <= values[-1] * (1 + 1e-4)  # Ritz values lie inside the spectrum
    assert np.min(np.abs(values - top.largest)) <= top.residual + 1e-4 * abs(values[-1])


@pytest.mark.parametrize("iterations", [4, 30])
def test_lanczos_when_the_krylov_space_closes_early(iterations):
    lam = jnp.asarray(np.r_[np.full(30, 1.0), 3.0, 7.0], jnp.float32)
    loss = Partial(lambda lam, x, batch: 0.5 * jnp.sum(lam * x * x), lam)
    top = hessian_top_eigenvalue(loss, jnp.ones(32), None, jax.random.key(0), iterations)
    assert top.largest == pytest.approx(7.0, rel=1e-4)
    assert top.smallest == pytest.approx(1.0, rel=1e-4)
    assert hessian_top_eigenvalue(loss, jnp.ones(32), None, jax.random.key(0), 2).residual > 0.1


def test_segment_smoothness_is_the_difference_quotient():
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    params = {"w1": jax.random.normal(k1, (4, 5)), "b1": jnp.zeros(5), "w2": jax.random.normal(k2, (5, 3))}
    loss = Partial(mlp_loss, (jax.random.normal(k3, (32, 4)), jax.random.randint(k4, (32,), 0, 3)))
    value, grad = jax.jit(lambda loss, p: jax.value_and_grad(loss)(p, None))(loss, params)
    step = jax.tree.map(lambda g: -0.5 * g, grad)
    end = jax.tree.map(jnp.add, params, step)
    dot = sum(float(jnp.sum(g * s)) for g, s in zip(jax.tree.leaves(grad), jax.tree.leaves(step), strict=True))
    size = sum(float(jnp.sum(s * s)) for s in jax.tree.leaves(step))
    quotient = 2 * (float(loss(end, None)) - float(value) - dot) / size
    measured = jax.jit(segment_smoothness)(loss, params, end, None)
    assert float(measured) == pytest.approx(quotient, rel=0.01)


def test_segment_smoothness_is_exact_for_quartics():
    def loss(x, batch):
        return jnp.sum(x**4 - 2 * x**3 + x)

    x, y = jnp.array([0.3, -1.0]), jnp.array([1.1, 0.2])
    d = y - x
    exact = 2 * (loss(y, None) - loss(x, None) - jnp.dot(jax.grad(loss)(x, None), d)) / jnp.dot(d, d)
    assert float(segment_smoothness(loss, x, y, None)) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.slow
def test_a_clone_run_gives_every_constant_from_a_unit_embedding():
    _, frozen, params = setting()
    embed = frozen.teacher.embed_VD @ params["model.zoom.weight"].T
    assert float(jnp.sqrt(jnp.mean(embed**2))) == pytest.approx(1.0, rel=1e-5)
    plan = SgdPlan(64, 0.05, 4, strata=4, smoothness_batch=64, loss_batch=64)
    run, end = measure_sgd_horizon(Partial(lrc_loss, frozen), Partial(uniform_tokens), params, jax.random.key(5), plan)
    row = run.row()
    assert set(row) >= {"steps", "step_size", "grad_norm_sq", "smoothness", "grad_variance", "loss_decrease"}
    assert all(np.isfinite(v) for v in row.values())
    assert run.loss_fall > 0 and run.smoothness > 0 and run.grad_variance > 0 and run.max_spectral_norm > 0
    assert set(end) == set(params)


def test_spectra_of_matrices_with_known_singular_values():
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.normal(size=(12, 6)))[0], np.linalg.qr(rng.normal(size=(6, 6)))[0]
    values = np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.0])
    wide_out = spectra.matrix_spectrum(((u * values) @ v.T).T.astype(np.float32), "gate", 0, True)
    assert (wide_out.s, wide_out.mu, wide_out.kappa) == pytest.approx((4.0, 0.5, 8.0), rel=1e-5)
    assert (wide_out.rank, wide_out.projected, wide_out.free) == (5, 6, 12)
    assert not wide_out.spans_free
    square = spectra.matrix_spectrum(np.diag(values[:5] + 1), "q", 0, True)
    assert square.spans_free


def test_spectra_cover_every_projected_matrix_with_the_right_sides():
    _, frozen, _ = setting()
    rows = spectra.teacher_spectra(frozen.teacher)
    assert [x.name for x in rows] == ["embed", "q", "k", "v", "o", "gate", "up", "down", "head"]
    assert all(x.projected == TEACHER.hidden_size for x in rows)
    free = {x.name: x.free for x in rows}
    assert free == {"embed": 24, "q": 32, "k": 32, "v": 32, "o": 32, "gate": 48, "up": 48, "down": 48, "head": 24}
    constants = spectra.projection_constants(rows)
    assert constants["kappa_sq"] == pytest.approx(constants["s_sq"] / constants["mu_sq"])
    assert constants["s_sq"] >= 1 >= constants["mu_sq"]
