"""The gap's estimators on a problem whose gap is known, and the bounds against hand-made numbers."""

import math

import jax
import numpy as np
import pytest

from lrc_jax.inference.evaluate import SequenceLosses
from lrc_jax.measure import complexity as cx
from lrc_jax.measure.gap import control_variate_gap, excess, mean, raw_gap, total
from lrc_jax.model import DecoderConfig, init_weights

P, N, N_TEST, DIFFICULTY = 6, 200, 4000, 3.0


def gaussian_mean_problem(rng):
    """Loss |x - theta|^2 / 2 plus a difficulty of its own for each sequence; the mean of N samples is fitted.

    Known: gap = P / N, excess = P / (2 N).
    """

    def sequences(n):
        return rng.normal(size=(n, P)), DIFFICULTY * rng.exponential(size=n)

    (x, hard), (x_test, hard_test) = sequences(N), sequences(N_TEST)
    fitted, reference = x.mean(axis=0), np.full(P, 0.05)

    def losses(theta, x, hard):
        loss = 0.5 * np.sum((x - theta) ** 2, axis=1) + hard
        # the teacher is theta = 0, and the excess over it, the KL, has no noise here
        anchor = 0.5 * np.sum(x**2, axis=1) + hard
        return SequenceLosses(loss, anchor, np.full(len(x), 0.5 * np.sum(theta**2)), anchor)

    return [losses(theta, *pool) for theta in (fitted, reference) for pool in ((x, hard), (x_test, hard_test))]


@pytest.mark.parametrize("labels_from_teacher", [True, False])
def test_gap_excess_and_total_are_unbiased_and_the_control_variate_pays(labels_from_teacher):
    got = {name: [] for name in ("teacher", "reference", "raw", "excess", "total")}
    stated = []
    for seed in range(400):
        train, test, ref_train, ref_test = gaussian_mean_problem(np.random.default_rng(seed))
        gap = control_variate_gap(test, train, labels_from_teacher=labels_from_teacher)
        stated.append(gap.se**2)
        got["teacher"].append(gap.value)
        got["reference"].append(
            control_variate_gap(test, train, ref_test, ref_train, labels_from_teacher=labels_from_teacher).value
        )
        got["raw"].append(raw_gap(test, train).value)
        zero = SequenceLosses(test.teacher, test.teacher, 0 * test.kl, test.entropy)
        got["excess"].append(excess(test, zero, labels_from_teacher=labels_from_teacher).value)
        got["total"].append(total(test, labels_from_teacher=labels_from_teacher).value)
    truth = {"teacher": P / N, "reference": P / N, "raw": P / N, "excess": P / 2 / N, "total": P / 2 / N}
    for name, values in got.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - truth[name]) < 3 * error, name
    assert np.std(got["raw"]) > 5 * np.std(got["teacher"])
    # |gap| of single runs would be a number of its own: three times the truth, and of order 1/sqrt(N) for any model
    assert np.mean(np.abs(got["raw"])) > 3 * P / N


def test_a_reference_needs_both_samples():
    train, test, ref_train, _ = gaussian_mean_problem(np.random.default_rng(0))
    with pytest.raises(ValueError, match="both"):
        control_variate_gap(test, train, None, ref_train, labels_from_teacher=False)
    assert math.isnan(mean(np.ones(1)).se)


def test_counting_bound_against_hand_made_numbers():
    """256 x 256, rank 32, 24 matrices, 10^6 units, V = 4096 smoothed by .1, logarithm's argument 9e4: 15.8 nats."""
    count = cx.rank_count([(256, 256)] * 24, 32)
    assert (count.factors, count.dimension, count.covering) == (24 * 32 * 512, 24 * 32 * 480, 24 * 32 * 513)
    loss_range = math.log(1 + 0.9 * 4096 / 0.1)
    radius = 9e4 * loss_range / (18 * math.sqrt(24 * 1e6))
    bound = cx.counting_bound(10**6, count.covering, loss_range, radius, 1.0, matrices=24, radius_fixed=True)
    assert bound == pytest.approx(15.8, abs=0.05)
    dearer = cx.counting_bound(10**6, count.covering, loss_range, radius, 1.0, matrices=24)
    assert dearer > bound
    ball = cx.counting_bound(10**6, 1000, loss_range, radius, 1.0, factorized=False, radius_fixed=True)
    assert ball < cx.counting_bound(10**6, 1000, loss_range, radius, 1.0, radius_fixed=True)
    assert cx.counting_bound(10**8, 10, 1.0, 1.0, 1.0) < 0.01
    with pytest.raises(ValueError, match="counting bound"):
        cx.counting_bound(0, 1, 1.0, 1.0, 1.0)


def test_counting_bound_holds_uniformly_on_a_worst_case_problem():
    """loss(W) = <W, Z> clipped to [-1, 1] over rank-1 W of unit norm: sup of the gap is the top singular value."""
    n, m, samples = 3, 4, 400
    rng = np.random.default_rng(0)
    worst = []
    for _ in range(50):
        z = np.clip(rng.normal(size=(samples, n, m)) * 0.2, -0.5, 0.5)
        worst.append(np.linalg.svd(z.mean(axis=0), compute_uv=False)[0])  # population loss is 0
    lipschitz = 0.5 * math.sqrt(n * m)
    bound = cx.counting_bound(
        samples, cx.rank_count([(n, m)], 1).covering, 2 * lipschitz, 1.0, lipschitz, radius_fixed=True
    )
    assert max(worst) < bound


def test_norms_of_weights_and_factors():
    config = DecoderConfig(20, 12, 16, 2, 2, 2, 6)
    weights = init_weights(config, jax.random.key(0))
    norms = cx.matrix_norms(weights)
    assert set(norms) == {"embed", "q", "k", "v", "o", "gate", "up", "down", "head"}
    q = [np.asarray(layer.q_DQ, np.float64) for layer in weights.layers]
    assert norms["q"].count == 2
    assert norms["q"].nuclear == pytest.approx(sum(np.linalg.norm(m, "nuc") for m in q))
    assert norms["q"].frobenius == pytest.approx(math.sqrt(sum(np.linalg.norm(m) ** 2 for m in q)))
    assert norms["q"].spectral == pytest.approx(max(np.linalg.norm(m, 2) for m in q))
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(6, 2)), rng.normal(size=(2, 5))
    phi = cx.factor_norm({"head": {"u": u, "v": v}, "layers": [{"q": {"u": u, "v": v}, "gain": np.ones(3)}]})
    assert phi == pytest.approx(np.sum(u**2) + np.sum(v**2))
    assert phi / 2 >= np.linalg.norm(u @ v, "nuc")
    values = np.linalg.svd(u @ v)
    balanced = {"u": values[0][:, :2] * np.sqrt(values[1][:2]), "v": np.sqrt(values[1][:2])[:, None] * values[2][:2]}
    assert cx.factor_norm(balanced) == pytest.approx(np.linalg.norm(u @ v, "nuc"))


def test_nuclear_norm_bound_shrinks_like_one_over_root_n_and_holds():
    rng = np.random.default_rng(2)
    d, vocab, nuclear = 4, 6, 2.0
    few, many = (cx.nuclear_norm_bound(rng.normal(size=(n, d)), vocab, nuclear, 3.0) for n in (1000, 100_000))
    assert few / many == pytest.approx(10, rel=0.1)
    assert cx.nuclear_norm_bound(rng.normal(size=(1000, d)), vocab, 2 * nuclear, 3.0) > few
