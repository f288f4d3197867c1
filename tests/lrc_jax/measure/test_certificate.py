"""The certificate: exact codes, bounds against closed forms, coverage, and a compressed student end to end."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import Pool
from lrc_jax.measure import bounds as cert
from lrc_jax.measure import coding
from lrc_jax.measure.certificate import (
    Compression,
    Fit,
    _losses,
    assemble,
    certificate_table,
    compress,
    directions,
    trained_size,
)
from lrc_jax.model import DecoderConfig, forward, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 600), levels=st.sampled_from([3, 5, 7, 17]), seed=st.integers(0, 10**6), sharp=st.floats(0.05, 5)
)
@example(n=395, levels=3, seed=395, sharp=0.25)  # a shortened payload that the coder refuses as invalid
def test_messages_decode_exactly_and_cost_their_entropy(n, levels, seed, sharp):
    rng = np.random.default_rng(seed)
    symbols = rng.choice(levels, n, p=rng.dirichlet(np.full(levels, sharp))) - (levels - 1) // 2
    sent = coding.QuantisedVector(symbols, float(np.float16(rng.uniform(0.001, 3))), levels)
    lengths = [(7, 3), (n, levels), (9, 5)]
    bits = coding.encode(sent, 1, len(lengths))
    stream = np.concatenate([coding.self_delimiting(bits), rng.integers(0, 2, 50).astype(np.uint8)])
    read, rest = coding.read_self_delimiting(stream)
    assert len(stream) - len(rest) == coding.elias_gamma_bits(len(bits))
    index, received = coding.decode(read, lengths)
    assert index == 1 and received.step == sent.step
    np.testing.assert_array_equal(received.symbols, sent.symbols)
    assert received.values().dtype == np.float32
    header = 2 + coding.STEP_BITS + (levels - 1) * n.bit_length()
    # quantised probabilities cost a little more than the entropy where a level is very rare
    assert len(bits) - header <= coding.entropy_bits(symbols) * 1.001 + 3


def test_lengths_are_a_prior():
    """Sum over all messages of 2^-K: 2^C messages of each length C."""
    total = sum(2.0 ** (c - coding.elias_gamma_bits(c)) for c in range(1, 2**16))
    assert total == pytest.approx(1, abs=1e-4) and total <= 1
    codes = [
        tuple(coding.self_delimiting(np.array(m, np.uint8)))
        for c in (1, 2, 3)
        for m in itertools.product((0, 1), repeat=c)
    ]
    assert not any(a != b and b[: len(a)] == a for a in codes for b in codes), "no codeword starts another"


def test_smoothing_bounds_the_loss_and_costs_little():
    smoothing = cert.Smoothing(0.1, 32)
    logits = jnp.asarray([[50.0] + [-50.0] * 31])
    right, wrong = (float(cert.smoothed_loss(logits, jnp.array([y]), jnp.array([0.1]))[0, 0]) for y in (0, 1))
    assert right == pytest.approx(smoothing.low, abs=1e-5) and wrong == pytest.approx(smoothing.high, abs=1e-4)
    assert smoothing.width == pytest.approx(math.log2(1 + 0.9 * 32 / 0.1))
    flat = float(cert.smoothed_loss(jnp.zeros((1, 32)), jnp.array([3]), jnp.array([0.3]))[0, 0])
    assert flat == pytest.approx(5.0, abs=1e-5)


def test_bounds_against_hand_made_numbers():
    smoothing = cert.Smoothing(0.1, 256)  # the theory's size table: V = 256, C = 2e4, N = 1e6 tokens: + .93 bit
    bound = cert.context_bound(3.0, smoothing, 20_000, 10**6, 0.05)
    assert bound - 3.0 == pytest.approx(0.93, abs=0.01)
    assert cert.sequence_bound(3.0, smoothing, 20_000, 10**6, 0.05) == bound
    assert cert.sequence_bound_kl(3.0, smoothing, 20_000, 10**6, 0.05) <= bound
    part = cert.subsample_bound(3.0, smoothing, 20_000, 10**6, 10**5, 0.05)
    assert part > bound
    nearly_all = cert.subsample_bound(3.0, smoothing, 20_000, 10**6, 10**12, 0.05)
    assert nearly_all == pytest.approx(bound, abs=1e-3)
    assert cert.held_out_bound(3.0, smoothing, 10**6, 0.05) < bound
    assert cert.shared_delta(0.06, 3) == pytest.approx(0.02)


def test_kl_inverse():
    assert cert.kl_inverse(0.0, 0.1) == pytest.approx(1 - math.exp(-0.1))
    assert cert.kl_inverse(0.3, 0.0) == pytest.approx(0.3)
    assert cert.kl_inverse(1.0, 0.5) == 1
    for q, c in itertools.product((0.1, 0.4, 0.8), (1e-4, 0.01, 0.3)):
        p = cert.kl_inverse(q, c)
        kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) if p < 1 else math.inf
        assert kl == pytest.approx(c, rel=1e-6) and p <= q + math.sqrt(c / 2) + 1e-12


def test_coverage_over_200_redraws_and_a_control_that_fails():
    got = cert.coverage(np.random.default_rng(1))
    assert got.redraws == 200
    assert got.violations <= 18
    assert got.violations_without_bits > 18, "the test has no power: leaving out the bits goes unnoticed"
    assert got.mean_optimism > 0.5


TEACHER = DecoderConfig(8, 12, 16, 1, 2, 2, 6)


@functools.lru_cache(maxsize=1)
def setting():
    weights = jax.jit(functools.partial(init_weights, TEACHER))(jax.random.key(0))
    # a teacher with something to say
    weights = weights.replace(head_DV=weights.head_DV * 4, embed_VD=weights.embed_VD * 10)
    frozen = Frozen(weights)
    student = make_student("lrc", TEACHER, CloneFlags(rank=6), StudentOptions(init="fan_in", unit_embedding=True))
    start = jax.jit(student.init)(jax.random.key(1), frozen)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 8, (4096, 4)).astype(np.int32)
    logits = jax.jit(forward, static_argnums=0)(TEACHER, weights, tokens).logits_NV
    labels = np.asarray(jax.jit(jax.random.categorical)(jax.random.key(2), logits)).reshape(tokens.shape)
    pool = Pool(tokens, labels.astype(np.int32))
    return (
        student,
        frozen,
        start,
        Pool(pool.tokens_NT[:2048], pool.labels_NT[:2048]),
        Pool(tokens[2048:], pool.labels_NT[2048:]),
    )


def test_subspace_moves_every_matrix_and_no_gain():
    _, _, start, _, _ = setting()
    q = jax.jit(directions, static_argnums=1)(start, 5, jax.random.key(0))
    put = jax.jit(assemble)
    moved = put(start, q, jnp.ones(5))
    assert q.shape == (trained_size(start), 5)
    for name, x in start.items():
        assert np.array_equal(moved[name], x) == (x.ndim == 1)
    same = put(start, q, jnp.zeros(5))
    assert all(np.array_equal(same[n], start[n]) for n in start)
    whole = put(start, None, jnp.concatenate([x.ravel() for x in start.values() if x.ndim == 2]))
    assert all(np.array_equal(whole[n], start[n]) for n in start)


def test_table_of_a_trained_student():
    student, frozen, start, pool, test = setting()
    prior = [Compression(8), Compression(40), Compression(None, 5), Compression(0)]
    fit = Fit(float_steps=300, quantised_steps=300)
    rows = certificate_table(
        student, TEACHER, frozen, start, pool, test, jax.random.key(3),
        prior=prior, samples=(512, 2048), fit=fit, labels_from_teacher=True,
    )  # fmt: skip
    assert [(r["samples"], r["intrinsic_dimension"]) for r in rows] == [
        (n, d) for n in (512, 2048) for d in (8, 40, trained_size(start), 0)
    ]
    for r in rows:
        assert r["delta"] == 0.025
        assert r["test_loss"] <= r["certificate"] <= r["certificate_hoeffding"]
        assert r["context_loss"] <= r["context_bound"] < r["certificate_hoeffding"]
        assert r["teacher_loss"] < r["test_loss"] + 5 * r["test_se"]
        assert r["held_out_bound"] < r["certificate"]
        assert r["message_bits"] >= r["payload_entropy_bits"]
        assert r["prefix_bits"] == coding.elias_gamma_bits(r["message_bits"])
    assert rows[4]["certificate"] < rows[0]["certificate"], "more sequences, a tighter guarantee"
    assert rows[5]["train_loss"] < rows[7]["train_loss"], "training through the rounding works"
    assert rows[7]["message_bits"] == 5, "the start costs its place in the prior: 4 configurations x 8 smoothings"
    assert rows[1]["message_bits"] < rows[2]["message_bits"]


def test_rounding_is_trained_through():
    """With the quantised phase the loss is below that of rounding after training."""
    student, frozen, start, pool, _ = setting()

    def loss(steps):
        fit = Fit(float_steps=300, quantised_steps=steps)
        got = compress(student, TEACHER, frozen, start, pool, pool.size, jax.random.key(3), [Compression(40)], 0, fit)
        return _losses(student, TEACHER, frozen, got.params, pool)[0][0].mean()

    assert loss(300) < loss(0) - 0.02


def test_bad_requests():
    student, frozen, start, pool, test = setting()
    with pytest.raises(ValueError, match="levels"):
        Compression(8, 4)
    with pytest.raises(ValueError, match="float16"):
        coding.QuantisedVector(np.zeros(3, int), 0.1, 3)
    with pytest.raises(ValueError, match="the pool has"):
        certificate_table(
            student, TEACHER, frozen, start, pool, test, jax.random.key(0), prior=[Compression(8)], samples=(10**6,)
        )
