"""SGD measurements against noisy quadratics, whose second moments are known exactly."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from slow import some_slow

from lrc_jax.errors import DivergedError
from lrc_jax.measure import convergence as cv
from lrc_jax.measure.gradients import BlockMoments, tree_dot
from theory.claims.convergence import right_hand_side

LAM = np.geomspace(0.02, 1.0, 12)  # curvatures; L = 1
NOISE = np.geomspace(1.5, 0.4, 12)  # standard deviation of one unit's gradient noise
START = np.linspace(1.5, 0.5, 12)


def quadratic(lam, params, batch):
    """f(x) = sum lam x^2 / 2 with gradient noise: one unit's gradient is lam x + z."""
    return 0.5 * jnp.sum(lam * params["x"] ** 2) + jnp.dot(params["x"], jnp.mean(batch, axis=0))


def gaussian(std, key, size):
    return std[None, :] * jax.random.normal(key, (size, std.shape[0]))


def problem(lam=LAM, noise=NOISE, start=START):
    lam, noise, start = (jnp.asarray(v, jnp.float32) for v in (lam, noise, start))
    return Partial(quadratic, lam), Partial(gaussian, noise), {"x": start}


def exact_norms_sq(lam, noise, start, step_sizes, batch):
    """E |grad f(x_t)|^2 for t = 1..T by the second-moment recursion m <- (1 - eta lam)^2 m + eta^2 s^2 / B."""
    moment, out = np.asarray(start, float) ** 2, []
    for eta in step_sizes:
        out.append(np.sum(lam**2 * moment))
        moment = (1 - eta * lam) ** 2 * moment + eta**2 * noise**2 / batch
    return np.array(out)


def replicate(plan, count, seed=0, **kwargs):
    loss, sample, params = problem(**kwargs)
    return [
        cv.measure_sgd_horizon(loss, sample, params, k, plan)[0] for k in jax.random.split(jax.random.key(seed), count)
    ]


def z_score(values, truth):
    values = np.asarray(values, float)
    return (values.mean() - truth) / (values.std(ddof=1) / math.sqrt(len(values)))


def test_gradient_moments_are_unbiased_and_the_naive_norm_is_caught():
    loss, sample, params = problem()
    batch = 8
    keys = jax.random.split(jax.random.key(1), 2000)

    @jax.jit
    @jax.vmap
    def estimates(k):
        def of_blocks(blocks):
            grads = [jax.grad(loss)(params, sample(key, batch)) for key in jax.random.split(k, blocks)]
            total = jax.tree.map(lambda *leaves: sum(leaves), *grads)
            return BlockMoments(tree_dot(total, total), sum(tree_dot(g, g) for g in grads), blocks), grads[0]

        (two, grad), (four, _) = of_blocks(2), of_blocks(4)
        return two.mean_norm_sq(), four.mean_norm_sq(), four.variance(), tree_dot(grad, grad)

    norm, norm_4, variance, naive = estimates(keys)
    true_norm, true_variance = np.sum((LAM * START) ** 2), np.sum(NOISE**2) / batch
    assert abs(z_score(norm, true_norm)) < 3
    assert abs(z_score(norm_4, true_norm)) < 3
    assert abs(z_score(variance, true_variance)) < 3
    assert z_score(naive, true_norm) > 10, "the test has no power against the biased estimator"
    assert np.std(norm_4) < np.std(norm)


@pytest.mark.parametrize(
    ("decay", "spacing"), some_slow([(0.0, "mixed"), (0.0, "linear"), (0.5, "mixed")], fast=[(0.5, "mixed")])
)
def test_run_average_matches_the_exact_recursion(decay, spacing):
    plan = cv.SgdPlan(
        steps=300, step_size=0.3, batch_size=32, decay=decay, spacing=spacing, strata=8, smoothness_batch=16,
        loss_batch=64, loss_blocks=4,
    )  # fmt: skip
    runs = replicate(plan, 120)
    etas = plan.step_sizes()
    norms = exact_norms_sq(LAM, NOISE, START, etas, plan.batch_size)
    assert abs(z_score([r.grad_norm_sq for r in runs], np.average(norms, weights=etas))) < 3
    assert abs(z_score([r.grad_variance for r in runs], np.sum(NOISE**2) / plan.batch_size)) < 3
    assert abs(z_score([r.loss_decrease for r in runs], 0.5 * np.sum(LAM * START**2))) < 3
    # The stated error of f(x_1) is its spread (f(x_1) is the same number in every run).
    stated = np.mean([r.loss_decrease_se**2 for r in runs])
    assert 0.6 < stated / np.var([r.loss_decrease for r in runs], ddof=1) < 1.6
    assert all(LAM[0] < r.smoothness <= LAM[-1] * (1 + 1e-4) for r in runs)
    # Leaving out the weights of the decaying steps would be seen.
    if decay:
        assert abs(z_score([r.grad_norm_sq for r in runs], norms.mean())) > 5


def test_standard_error_given_the_path_is_right():
    """At a vanishing step the path is fixed, and all spread is the measurement's own."""
    plan = cv.SgdPlan(steps=200, step_size=1e-6, batch_size=4, strata=8, constants=False, loss_batch=4, loss_blocks=2)
    runs = replicate(plan, 150, seed=3)
    values = [r.grad_norm_sq for r in runs]
    assert abs(z_score(values, np.sum((LAM * START) ** 2))) < 3
    assert 0.75 < np.mean([r.grad_norm_sq_se**2 for r in runs]) / np.var(values, ddof=1) < 1.33


def test_bound_holds_with_constants_known_beforehand_and_a_quarter_of_them_is_violated():
    batch, constants = (
        1,
        {"smoothness": 1.0, "grad_variance": np.sum(NOISE**2), "loss_decrease": 0.5 * np.sum(LAM * START**2)},
    )
    for steps in (64, 512, 4096):
        eta = cv.horizon_step(steps, **constants)
        norms = exact_norms_sq(LAM, NOISE, START, np.full(steps, eta), batch)
        ratio = norms.mean() / cv.horizon_bound(steps, eta, **constants)
        assert 0.1 < ratio <= 0.5 + 1e-9


def test_worst_case_quadratic_approaches_half_of_the_bound():
    """One dimension with curvature L and the horizon's own step: the bound is tight to a factor that tends to 2.

    An estimator biased by +sigma^2/B, or a bound too small by a factor 2, fails here.
    """
    # Minibatches of two units: L = sigma^2 = Delta = 1.
    lam, noise, start = np.array([1.0]), np.array([math.sqrt(2.0)]), np.array([math.sqrt(2.0)])
    ratios = {}
    for steps in (100, 1000, 10_000):
        eta = cv.horizon_step(steps, 1.0, 1.0, 1.0)
        exact = exact_norms_sq(lam, noise, start, np.full(steps, eta), 2).mean()
        bound = cv.horizon_bound(steps, eta, 1.0, 1.0, 1.0)
        ratios[steps] = exact / bound
        plan = cv.SgdPlan(steps=steps, step_size=eta, batch_size=2, strata=16, constants=False)
        runs = replicate(plan, 240, seed=steps, lam=lam, noise=noise, start=start)
        measured = np.array([r.grad_norm_sq for r in runs]) / bound
        assert abs(z_score(measured, ratios[steps])) < 3
    # E |grad|^2 averages to Delta / (eta T (1 - eta L / 2)) plus half the noise term: 1/2 from above and below
    assert all(0.45 < r < 0.56 for r in ratios.values())
    assert abs(ratios[10_000] - 0.5) < 0.01


def test_same_run_constants_make_the_bound_an_identity():
    plan = cv.SgdPlan(steps=400, step_size=0.2, batch_size=2, strata=16, loss_batch=4096)
    runs = replicate(plan, 16, seed=5)
    lhs = np.mean([r.grad_norm_sq for r in runs])
    rhs = np.mean([cv.horizon_bound(400, 0.2, r.smoothness, r.grad_variance, r.loss_fall) for r in runs])
    assert lhs < rhs


def test_plateau_level_is_the_stationary_noise_floor_and_linear_in_the_step():
    levels = []
    for eta in (0.05, 0.2):
        plan = cv.SgdPlan(steps=4000, step_size=eta, batch_size=2, strata=20, spacing="linear", constants=False)
        lam, noise = np.array([1.0, 0.5]), np.array([1.0, 1.0])
        floors = [cv.plateau(r) for r in replicate(plan, 24, lam=lam, noise=noise, start=np.ones(2))]
        exact = np.sum(lam**2 * eta * noise**2 / 2 / (lam * (2 - eta * lam)))
        assert abs(z_score([f.level for f in floors], exact)) < 3
        stated = np.mean([f.standard_error**2 for f in floors])
        assert 0.5 < stated / np.var([f.level for f in floors], ddof=1) < 2.2
        levels.append(exact)
    assert abs(math.log(levels[1] / levels[0]) / math.log(4) - 1) < 0.1


def through_projection(matrix, params, batch):
    """F(P) = f(A P), f(S) = |S - 1|^2 / 2 plus gradient noise in S: L_f = 1."""
    s = matrix @ params["p"]
    return 0.5 * jnp.sum((s - 1.0) ** 2) + jnp.sum(s * jnp.mean(batch, axis=0))


def matrix_noise(zeros, key, size):
    return jax.random.normal(key, (size, *zeros.shape))


@pytest.mark.parametrize("kappa", [1.0, 10.0])
def test_projection_scales_the_constants_by_the_teachers_spectrum(kappa):
    rng = np.random.default_rng(2)
    n, r, s = 6, 3, 2.0
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    values = s * np.geomspace(1, 1 / kappa, n)
    matrix = jnp.asarray((u * values) @ v.T, jnp.float32)
    loss, sample = Partial(through_projection, matrix), Partial(matrix_noise, jnp.zeros((n, r)))
    plan = cv.SgdPlan(steps=200, step_size=0.1, batch_size=2, strata=8)
    run, _ = cv.measure_sgd_horizon(loss, sample, {"p": jnp.zeros((n, r))}, jax.random.key(0), plan)
    mu_sq, s_sq = (s / kappa) ** 2, s**2
    assert mu_sq * 0.999 <= run.smoothness <= s_sq * 1.001
    if kappa == 1:
        assert run.smoothness == pytest.approx(s_sq, rel=1e-3)
    # sigma_F^2 = E |A^T xi|^2 / B is r / B times the sum of squared singular values, inside [mu^2, s^2] sigma_f^2
    exact = r * np.sum(values**2) / plan.batch_size
    standard_error = math.sqrt(2 * r * np.sum(values**4) / plan.batch_size**2 / plan.steps)
    assert abs(run.grad_variance - exact) < 3 * standard_error
    sigma_f_sq = n * r / plan.batch_size
    assert mu_sq * sigma_f_sq <= exact <= s_sq * sigma_f_sq * (1 + 1e-12)
    bound = cv.horizon_bound(200, 0.1, s_sq * 1.0, s_sq * sigma_f_sq, run.loss_decrease)
    assert run.grad_norm_sq < bound


def growing(rate, params, batch):
    """Gradient -rate everywhere: the matrix grows linearly in t."""
    return -rate * jnp.sum(params["p"]) + 0 * jnp.sum(batch)


def test_iterates_that_grow_are_seen_and_bounded_ones_too():
    plan = cv.SgdPlan(steps=400, step_size=0.1, batch_size=2, spacing="linear", constants=False)
    start, sample = {"p": jnp.zeros((2, 2))}, Partial(matrix_noise, jnp.zeros((2, 2)))
    grown, _ = cv.measure_sgd_horizon(Partial(growing, jnp.ones(())), sample, start, jax.random.key(0), plan)
    assert cv.boundedness_slope(grown) == pytest.approx(1.0, abs=0.02)
    assert grown.max_spectral_norm == pytest.approx(2 * 0.1 * grown.times.max(), rel=1e-4)
    still, _ = cv.measure_sgd_horizon(
        Partial(through_projection, jnp.eye(2)), Partial(matrix_noise, jnp.zeros((2, 2))), start, jax.random.key(0),
        dataclasses.replace(plan, step_size=0.02, batch_size=64),
    )  # fmt: skip
    assert abs(cv.boundedness_slope(still)) < 0.05
    loss, noise, params = problem()
    vectors, _ = cv.measure_sgd_horizon(loss, noise, params, jax.random.key(0), plan)
    assert vectors.max_spectral_norm is None
    with pytest.raises(ValueError, match="no matrix"):
        cv.boundedness_slope(vectors)


def test_full_batch_control_has_no_variance_and_an_exact_norm():
    pool = jnp.asarray(np.random.default_rng(0).normal(size=(50, 12)), jnp.float32)

    def whole(pool, key, size):
        del key, size
        return pool

    loss, _, params = problem()
    plan = cv.SgdPlan(steps=50, step_size=0.2, batch_size=50, strata=50)
    run, end = cv.measure_sgd_horizon(loss, Partial(whole, pool), params, jax.random.key(0), plan)
    # <A, A> of equal blocks: the variance is rounding
    assert abs(run.grad_variance) < 1e-5
    centre = np.asarray(pool, float).mean(axis=0)
    grads = [LAM * x + centre for x in _descend(START, centre, 0.2, 50)]
    assert run.grad_norm_sq == pytest.approx(np.mean([g @ g for g in grads]), rel=1e-4)
    assert np.allclose(end["x"], _descend(START, centre, 0.2, 51)[-1], atol=1e-5)


def _descend(x, centre, eta, count):
    out = []
    for _ in range(count):
        out.append(x)
        x = x - eta * (LAM * x + centre)
    return out


def test_all_horizons_share_one_program():
    loss, sample, params = problem()
    before = cv._advance._cache_size(), cv._visit._cache_size()
    for steps in (64, 256, 1024):
        plan = cv.SgdPlan(steps=steps, step_size=0.5 / math.sqrt(steps), batch_size=6, strata=6, constants=False)
        cv.measure_sgd_horizon(loss, sample, params, jax.random.key(0), plan)
    assert (cv._advance._cache_size(), cv._visit._cache_size()) == (before[0] + 1, before[1] + 1)


def test_same_key_same_numbers_other_key_other_numbers():
    plan = cv.SgdPlan(steps=64, step_size=0.1, batch_size=4, strata=6, constants=False)
    loss, sample, params = problem()
    a, b, c = (cv.measure_sgd_horizon(loss, sample, params, jax.random.key(k), plan)[0] for k in (0, 0, 1))
    assert a.row() == b.row()
    assert a.grad_norm_sq != c.grad_norm_sq


def test_divergence_is_an_error_and_bad_plans_too():
    loss, sample, params = problem()
    with pytest.raises(DivergedError, match="lower step_size"):
        cv.measure_sgd_horizon(loss, sample, params, jax.random.key(0), cv.SgdPlan(400, 5.0, 2, constants=False))
    with pytest.raises(ValueError, match="spacing"):
        cv.SgdPlan(10, 0.1, 2, spacing="random")
    with pytest.raises(ValueError, match="not even"):
        cv.SgdPlan(10, 0.1, 3)
    with pytest.raises(ValueError, match="steps"):
        cv.SgdPlan(1, 0.1, 2)


@pytest.mark.parametrize("spacing", ["mixed", "linear"])
@pytest.mark.parametrize(("steps", "strata"), [(2, 16), (16, 16), (17, 16), (100, 16), (65536, 32), (10**6, 5)])
def test_strata_partition_the_run(steps, strata, spacing):
    edges = cv.stratum_edges(steps, strata, spacing)
    assert edges[0] == 0 and edges[-1] == steps and np.all(np.diff(edges) >= 1)
    assert len(edges) == min(strata, steps) + 1


def test_bounds_outside_the_theorem():
    assert math.isinf(cv.horizon_bound(100, 2.0, 1.0, 1.0, 1.0))
    inside, beyond = cv.horizon_bound(100, 1.0, 1.0, 1.0, 1.0), cv.horizon_bound(100, 1.0001, 1.0, 1.0, 1.0)
    assert beyond == pytest.approx(inside, rel=1e-3)  # the two forms meet at eta = 1/L


@pytest.mark.parametrize("step_size", [0.01, 0.5, 0.500001, 0.99, 1.0, 3.0])
def test_the_judge_has_the_same_bound(step_size):
    """At steps below 1/L = 0.5, between 1/L and 2/L, and where no theorem holds."""
    constants = (300, step_size, 2.0, 0.7, 1.3)
    judged = right_hand_side(*(np.array([float(c)]) for c in constants))
    assert cv.horizon_bound(*constants) == pytest.approx(float(judged[0]), rel=1e-12)
