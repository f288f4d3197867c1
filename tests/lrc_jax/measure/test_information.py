"""Information estimators on pairs whose information is known in closed form.

Accepted ranges (error at most 10 % or 0.1 nat): Gaussian/CCA and Barber-Agakov up to 10 nats in 2 to 32 dimensions for
Gaussian pairs with n >= 50 d^2; InfoNCE up to ln K - 3 with the Gaussian critic on Gaussian pairs, 2 nats in 2
dimensions with the learned critic on others; KSG up to ln n - 4 in 2 dimensions.
"""

import math

import numpy as np
import pytest

from lrc_jax.measure import information as info
from lrc_jax.measure.contrastive import infonce

SIZES = {2: 2000, 8: 4000, 32: 52_000}


def accepted(estimate, truth, tolerance=0.0):
    return abs(estimate - truth) <= max(0.1 * truth, 0.1) + tolerance


def pair(d, nats, count, seed=0):
    rng = np.random.default_rng(seed)
    rho = np.full(d, math.sqrt(1 - math.exp(-2 * nats / d)))
    return *info.gaussian_pair(rho, d, d, count, rng), rng


@pytest.mark.parametrize("nats", [0.5, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("d", [2, 8, 32])
def test_gaussian_pairs(d, nats):
    x, y, rng = pair(d, nats, SIZES[d])
    documents = np.arange(len(x))
    gaussian = info.gaussian_information(x, y, documents)
    assert accepted(gaussian.value, nats)
    assert abs(gaussian.value - nats) < 3.5 * gaussian.standard_error
    held_out = info.barber_agakov(x, y, documents)
    assert accepted(held_out.bound, nats)
    assert held_out.bound < nats + 3 * held_out.standard_error
    floor = infonce(x, y, documents, rng, negatives=2000)
    assert floor.value <= floor.ceiling
    if nats <= floor.ceiling - 3:
        assert accepted(floor.value, nats) and not floor.saturated
        assert floor.value < nats + 3 * floor.standard_error
    if nats > floor.ceiling:
        assert floor.saturated, "beyond ln K InfoNCE must say that it cannot see"
    if d == 2 and nats <= math.log(2000) - 4:
        assert accepted(info.ksg(x[:2000], y[:2000]), nats)


@pytest.mark.parametrize(("d", "nats"), [(2, 0.5), (8, 5.0)])
def test_gaussian_estimate_is_unbiased_and_its_interval_covers(d, nats):
    values, inside, plug_in = [], 0, []
    for seed in range(200):
        x, y, _ = pair(d, nats, 400, seed)
        got = info.gaussian_information(x, y, np.arange(400))
        values.append(got.value)
        plug_in.append(got.plug_in)
        inside += abs(got.value - nats) <= 2.02 * got.standard_error  # t with 39 degrees of freedom
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - nats) < 3 * error
    assert inside >= 180
    if d == 8:
        assert np.mean(plug_in) - nats > 5 * error, "the test has no power against the plug-in's bias"
        assert np.mean(plug_in) - nats == pytest.approx(d * d / (2 * 400), rel=0.4)


def test_dependent_tokens_are_resampled_by_document():
    """Sixteen equal tokens a document: the sample is 200 documents, not 3,200 tokens."""
    d, nats, by_document, by_token, inside = 8, 1.0, [], [], 0
    for seed in range(120):
        x, y, _ = pair(d, nats, 200, seed)
        x, y, documents = (np.repeat(v, 16, axis=0) for v in (x, y, np.arange(200)))
        got = info.gaussian_information(x, y, documents)
        by_document.append(got.value)
        by_token.append(got.plug_in - d * d / (2 * len(x)))
        inside += abs(got.value - nats) <= 2.02 * got.standard_error
    error = np.std(by_document, ddof=1) / math.sqrt(len(by_document))
    assert abs(np.mean(by_document) - nats) < 3 * error
    assert np.mean(by_token) - nats > 3 * error
    assert inside >= 105


def test_monotone_distortion_and_rotation_leave_the_information_but_not_the_correlations():
    nats = 2.0
    x, y, rng = pair(2, nats, 12_000)
    distorted = y**3 @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
    documents = np.arange(len(x))
    assert info.gaussian_information(x, distorted, documents).value < 0.6 * nats
    learned = infonce(x, distorted, documents, rng, steps=600)
    assert accepted(learned.value, nats) and learned.value < nats + 3 * learned.standard_error
    assert infonce(x, distorted, documents, rng).value < learned.value


def bottleneck(n, d, r, tau, rng):
    variances = np.arange(1, d + 1.0) ** -1.5
    teacher = rng.normal(size=(n, d)) * np.sqrt(variances)
    return variances, teacher, info.unit_power(teacher[:, :r])


@pytest.mark.parametrize("tau", [0.03, 0.1, 0.3])
def test_closed_form_of_the_noisy_bottleneck(tau):
    d, r = 12, 5
    rng = np.random.default_rng(0)
    variances, teacher, student = bottleneck(20_000, d, r, tau, rng)
    limits = info.bottleneck_ceiling(variances, r, tau)
    got = info.gaussian_information(teacher, student, np.arange(len(teacher)), noise=tau)
    assert accepted(got.value, limits.pca_reference)
    assert abs(got.value - limits.pca_reference) < 3 * got.standard_error + 0.01
    assert limits.pca_reference < limits.ceiling
    # noise in closed form is noise in expectation
    drawn = student + tau * rng.normal(size=student.shape)
    assert info.gaussian_information(teacher, drawn, np.arange(len(teacher))).value == pytest.approx(got.value, abs=0.1)
    # the ceiling is reached by whitened coordinates, and by nothing beyond it
    white = info.gaussian_information(teacher, student / student.std(axis=0), np.arange(len(teacher)), noise=tau)
    assert white.value == pytest.approx(limits.ceiling, rel=0.01)


def test_growing_the_student_does_not_raise_the_smoothed_information():
    rng = np.random.default_rng(1)
    _, teacher, student = bottleneck(4000, 8, 3, 0.1, rng)
    documents = np.arange(4000)
    once = info.gaussian_information(teacher, info.unit_power(student), documents, noise=0.1)
    grown = info.gaussian_information(teacher, info.unit_power(50 * student + 3), documents, noise=0.1)
    assert grown.value == pytest.approx(once.value, rel=1e-6)


def test_the_error_can_fall_while_the_information_falls():
    """Error variances (.80, .02) -> (.40, .40): the MSE falls, the bound from the MSE rises, the information falls."""
    rng = np.random.default_rng(3)
    results = {}
    for name, errors in {"before": (0.80, 0.02), "after": (0.40, 0.40)}.items():
        e = np.array(errors)
        z = rng.normal(size=(40_000, 2))
        predictor = (1 - e) * z + np.sqrt(e * (1 - e)) * rng.normal(size=z.shape)  # best predictor of z, error e
        truth = float(-0.5 * np.sum(np.log(e)))
        got = info.barber_agakov(z, predictor, np.arange(len(z)))
        assert got.bound == pytest.approx(truth, abs=0.03)
        assert info.gaussian_information(z, predictor, np.arange(len(z))).value == pytest.approx(truth, abs=0.03)
        results[name] = got
    assert results["after"].fvu < results["before"].fvu - 0.005
    assert results["after"].mse_form > results["before"].mse_form
    assert results["after"].bound < results["before"].bound - 1.0


def test_held_out_bound_does_not_reward_overfitting():
    rng = np.random.default_rng(4)
    z, y = rng.normal(size=(200, 4)), rng.normal(size=(200, 60))  # independent
    got = info.barber_agakov(z, y, np.arange(200))
    assert got.bound < 3 * got.standard_error
    assert got.fvu > 1


def test_calibration_reports_the_estimators_own_error():
    rng = np.random.default_rng(5)
    honest = info.calibrate_gaussian(np.array([0.9, 0.5]), 6, 2, 2000, rng)
    assert honest.truth == pytest.approx(-0.5 * math.log(0.19 * 0.75))
    assert abs(honest.error) < 4 * honest.standard_error + 0.02


def test_clustered_error_and_one_token_a_document():
    rng = np.random.default_rng(6)
    documents = np.repeat(np.arange(50), 8)
    values = np.repeat(rng.normal(size=50), 8)
    assert info.clustered_error(values, documents) == pytest.approx(values[::8].std(ddof=1) / math.sqrt(50))
    chosen = info.one_token_a_document(documents, rng)
    assert sorted(documents[chosen]) == list(range(50))
    assert len(set(chosen % 8)) > 3


def test_inputs_that_cannot_be_measured():
    x = np.ones((10, 2))
    with pytest.raises(ValueError, match="constant"):
        info.unit_power(x)
    with pytest.raises(ValueError, match="one document"):
        info.gaussian_information(x, x, np.zeros(10, int))
    with pytest.raises(ValueError, match="at most 6"):
        info.ksg(np.ones((10, 7)), x)
    with pytest.raises(ValueError, match="hold some out"):
        info.barber_agakov(x, x, np.zeros(10, int))
