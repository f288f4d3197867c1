"""Mutual information on pairs whose information is known (theory.md, D4), and at the sites of a small clone.

Accepted range of the Gaussian estimate: d in {2, 8, 32}, 0.5 to 10 nats, n >= 50 d^2 and at least 4,096 tokens.
InfoNCE: up to ln K - 2 nats. KSG: up to 4 nats on 2 dimensions with 4,096 tokens.
"""

import math

import jax
import numpy as np
import pytest
from slow import some_slow

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.measure.contrastive import infonce
from lrc_jax.measure.information import (
    barber_agakov,
    bottleneck_ceiling,
    calibrate_gaussian,
    gaussian_information,
    gaussian_pair,
    ksg,
    one_token_a_document,
    unit_power,
)
from lrc_jax.measure.sites import information_rows
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student


def pair(d, information, count, seed):
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    return gaussian_pair(np.full(d, rho), d, d, count, np.random.default_rng(seed))


def accepted(information):
    return max(0.1 * information, 0.1)


@pytest.mark.parametrize("d", [2, 8, 32])
@pytest.mark.parametrize("information", [0.5, 2.0, 5.0, 10.0])
def test_known_information_of_gaussian_pairs(d, information):
    count = max(4096, 50 * d * d)
    x, y = pair(d, information, count, 1)
    documents = np.arange(count)
    estimate = gaussian_information(x, y, documents)
    assert abs(estimate.value - information) < min(accepted(information), 4 * estimate.standard_error)
    held_out = barber_agakov(x, y, documents)
    assert information - accepted(information) < held_out.bound < information + 3 * held_out.standard_error
    nce = infonce(x, y, documents, np.random.default_rng(2))
    assert nce.value < min(information + 4 * nce.standard_error, nce.ceiling)
    if information <= nce.ceiling - 2:
        assert nce.value > information - accepted(information) - 3 * nce.standard_error
        assert not nce.saturated
    else:
        assert nce.saturated == (nce.value > nce.ceiling - 1)
    if d == 2 and information <= 4:
        assert ksg(x, y) == pytest.approx(information, abs=accepted(information))


def test_bias_is_removed_and_the_plug_in_estimate_is_caught():
    """Independent pairs, 16 x 16 dimensions, 2,000 tokens: the plug-in value is 0.064 nats too large."""
    runs = [
        gaussian_information(*gaussian_pair(np.zeros(1), 16, 16, 2000, np.random.default_rng(s)), np.arange(2000))
        for s in range(60)
    ]
    for values, unbiased in ((np.array([r.value for r in runs]), True), (np.array([r.plug_in for r in runs]), False)):
        standard_error = values.std(ddof=1) / math.sqrt(len(values))
        assert (abs(values.mean()) < 3 * standard_error) == unbiased
    assert np.mean([r.plug_in for r in runs]) == pytest.approx(16 * 16 / 4000, rel=0.1)


def test_intervals_cover_also_where_tokens_depend_on_their_document():
    """Each token three times: the information is the same, the sample a third of its size."""
    for copies in (1, 3):
        inside, naive = 0, 0
        for seed in range(150):
            x, y = pair(4, 2.0, 600, 10_000 + seed)
            x, y, documents = (np.repeat(v, copies, axis=0) for v in (x, y, np.arange(600)))
            estimate = gaussian_information(x, y, documents)
            inside += abs(estimate.value - 2.0) < 2.02 * estimate.standard_error
            as_if = gaussian_information(
                x, y, np.arange(600 * copies)[np.random.default_rng(0).permutation(600 * copies)]
            )
            naive += abs(as_if.value - 2.0) < 2.02 * as_if.standard_error
        assert inside >= 0.9 * 150
    assert naive < 0.85 * 150  # resampling single tokens would claim too much


@pytest.mark.slow
def test_cubed_and_rotated_partner():
    """y -> y^3 and a rotation leave the information; linear estimates fall below, InfoNCE must not exceed it."""
    x, y = pair(2, 2.0, 12_288, 3)
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(2, 2)))[0]
    documents, cubed = np.arange(len(x)), y**3 @ rotation
    assert gaussian_information(x, y @ rotation, documents).value == pytest.approx(
        gaussian_information(x, y, documents).value, abs=1e-9
    )
    assert gaussian_information(x, cubed, documents).value < 1.0
    nce = infonce(x, cubed, documents, np.random.default_rng(5), steps=600, negatives=2048)
    assert 2.0 - accepted(2.0) - 3 * nce.standard_error < nce.value < 2.0 + 3 * nce.standard_error


@pytest.mark.parametrize("tau", [0.03, 0.1, 0.3])
def test_bottleneck_curve_of_a_power_law_gaussian(tau):
    """H_s = R^T H_t + noise of a Gaussian with spectrum k^-1: the PCA value is met by PCA, the ceiling by whitening
    it, and no other projection tells more."""
    rng = np.random.default_rng(6)
    variances, rank, count = 1 / np.arange(1, 17.0), 4, 20_000
    x = rng.standard_normal((count, 16)) * np.sqrt(variances)
    limits = bottleneck_ceiling(variances, rank, tau)
    documents = np.arange(count)

    def measured(projection):
        return gaussian_information(x, unit_power(x @ projection), documents, tau).value

    assert measured(np.eye(16)[:, :rank]) == pytest.approx(limits.pca_reference, rel=0.01)
    whitened = measured(np.eye(16)[:, :rank] / np.sqrt(variances[:rank]))
    assert whitened == pytest.approx(limits.ceiling, rel=0.01)
    assert limits.pca_reference < limits.ceiling
    for _ in range(5):
        mixed = np.linalg.qr(rng.normal(size=(16, rank)))[0]
        assert measured(mixed) < limits.ceiling + 0.01


def test_error_falls_and_information_falls_too():
    """Error variances (.80, .02) -> (.40, .40): MSE .82 -> .80, information 2.07 -> .92 nats. The bound from the MSE
    rises; the determinant form and the estimate must not."""
    count = 20_000
    seen = []
    for errors in (np.array([0.8, 0.02]), np.array([0.4, 0.4])):
        z, y = gaussian_pair(np.sqrt(1 - errors), 2, 2, count, np.random.default_rng(7))
        truth = float(-0.5 * np.sum(np.log(errors)))
        held_out = barber_agakov(z, y, np.arange(count))
        estimate = gaussian_information(z, y, np.arange(count))
        assert held_out.bound == pytest.approx(truth, abs=0.1)
        assert estimate.value == pytest.approx(truth, abs=0.1)
        seen.append((held_out.fvu, held_out.mse_form, held_out.bound))
    (fvu_before, mse_before, before), (fvu_after, mse_after, after) = seen
    assert fvu_after < fvu_before and mse_after > mse_before  # cloning got better by its own measure
    assert after < before - 1.0


def test_shrinking_both_sides_changes_nothing():
    x, y = pair(4, 3.0, 4096, 8)
    documents = np.arange(4096)
    plain = gaussian_information(x, unit_power(y), documents, 0.1)
    shrunk = gaussian_information(1e-4 * x, unit_power(1e-4 * y), documents, 0.1)
    assert shrunk.value == pytest.approx(plain.value, abs=1e-6)


def test_calibration_shows_the_error_of_a_sample_that_is_too_small():
    rho = np.full(4, 0.9)
    good = calibrate_gaussian(rho, 8, 4, 8192, np.random.default_rng(9))
    assert abs(good.error) < 0.02
    assert good.truth == pytest.approx(-2 * math.log(1 - 0.81))


def test_tokens_are_drawn_one_a_document():
    documents = np.repeat(np.arange(50), 7)
    chosen = one_token_a_document(documents, np.random.default_rng(0))
    assert sorted(documents[chosen]) == list(range(50))


def test_errors_name_the_fault():
    x, y = pair(8, 1.0, 64, 0)
    with pytest.raises(ValueError, match="at most 6"):
        ksg(x, y)
    with pytest.raises(ValueError, match="constant"):
        unit_power(np.ones((4, 2)))
    with pytest.raises(ValueError, match="one document"):
        gaussian_information(x, y, np.zeros(64, int))


@pytest.mark.parametrize("layers", some_slow([1, 2], fast=[2]))
def test_rows_of_a_clone(layers):
    """Rows obey floor <= I <= ceiling up to their errors; a student equal to the teacher at full rank reaches a
    larger share of its ceiling than one of rank 4."""
    config = DecoderConfig(24, 16, 32, layers, 2, 2, 8)
    frozen = Frozen(jax.jit(init_weights, static_argnums=0)(config, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 24, size=(512, 9))
    pool = pool_from_sequences(tokens)
    student = make_student("lrc", config, CloneFlags(rank=4), StudentOptions(init="fan_in"))
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    call = lambda: information_rows(student, config, params, frozen, pool, np.arange(512), jax.random.key(2))  # noqa: E731
    rows = call()
    assert len(rows) == 4 * layers
    assert {row["site"].split(".")[-1] for row in rows} == {"q", "gate", "mlp_out", "attn_out"}
    for row in rows:
        assert row["mutual_information"] < row["mi_ceiling"]
        assert row["mi_floor"] < min(row["mutual_information"] + 0.5, row["mi_floor_limit"])
        assert abs(row["calibration_error"]) < 0.1
        assert 0 < row["fvu"] < 1.1
    assert rows == call()
    with pytest.raises(ValueError, match="unknown"):
        information_rows(student, config, params, frozen, pool, np.arange(512), jax.random.key(2), sites=("nope",))
    with pytest.raises(ValueError, match="document numbers"):
        information_rows(student, config, params, frozen, pool, np.arange(3), jax.random.key(2))
