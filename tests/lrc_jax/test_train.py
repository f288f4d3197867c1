"""Training: one trace, resumable, reproducible, stops on nan; data: nested, disjoint, with known entropy."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource, hmm_tables, markov_tables
from lrc_jax.errors import DivergedError
from lrc_jax.inference.evaluate import model_losses, sequence_losses
from lrc_jax.measure.gap import control_variate_gap, raw_gap
from lrc_jax.model import init_weights
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import derive_seed, key_for
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.bilinear import bigram_counts, fit_bilinear
from lrc_jax.teachers.tiny import TinyTeacherSpec, train_teacher
from lrc_jax.training import train as training

SPEC = LanguageSpec(vocabulary=12, seed=3)
TEACHER = TinyTeacherSpec(hidden_size=16, intermediate_size=24, heads=2, kv_heads=1, steps=60, check_every=20)
CONFIG = TEACHER.config(12, 8)


@pytest.fixture(scope="module")
def setting():
    source = SyntheticSource(SPEC, 8)
    weights = jax.jit(init_weights, static_argnums=0)(CONFIG, key_for(0, "t"))
    pool = pool_from_sequences(source.sequences("student", 300, 1))
    student = make_student("lrc", CONFIG, CloneFlags(4), StudentOptions(init="fan_in"))
    return source, Frozen(weights), pool, student


def hyper(steps=40, samples=300, rate=1e-2, clone=0.2):
    return training.Hyper(
        jnp.float32(rate), jnp.int32(steps), jnp.int32(samples), LossWeights(*map(jnp.float32, (clone, 1.0, 1.0, 2.0)))
    )


def fit(setting, state=None, on_chunk=None, seed=0, **kwargs):
    _, frozen, pool, student = setting
    return training.train(
        student,
        Objective(kl_per_token=True),
        training.OptimizerSpec(),
        CONFIG,
        frozen,
        pool,
        hyper(**kwargs),
        batch_size=8,
        init_key=key_for(seed, "init"),
        order_key=key_for(seed, "order"),
        state=state,
        on_chunk=on_chunk,
    )


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_runs_that_differ_in_numbers_share_one_trace(setting):
    fit(setting)
    before = training.train_chunk._cache_size()
    fit(setting, steps=55, samples=100, rate=3e-3, clone=0.7, seed=4)
    _, frozen, pool, student = setting
    smaller = jax.tree.map(lambda x: x[:50], pool)
    fit((None, frozen, smaller, student), samples=50)
    assert training.train_chunk._cache_size() == before


def test_a_restored_teacher_costs_no_second_compilation(setting):
    """What is restored is committed to a device, and so is the state that comes back from a step beside it."""
    teacher, frozen, pool, student = setting
    restored = jax.device_put(frozen, jax.devices()[0])
    before = training.train_chunk._cache_size()
    fit((teacher, restored, pool, student), steps=60)  # in twenty calls
    assert training.train_chunk._cache_size() == before + 1


def test_a_run_repeats_bit_by_bit_and_learns(setting):
    (a, history), (b, _) = fit(setting), fit(setting)
    assert same(a, b)
    assert history.terms.total.shape == (40,)
    assert history.terms.total[-10:].mean() < history.terms.total[:10].mean()
    assert not same(a, fit(setting, seed=1)[0])


def test_stopped_and_resumed_is_uninterrupted(setting):
    """Stop after a chunk in the middle, copy the state to the host as a checkpoint does, go on: the same bits."""
    kept = {}

    def keep(state, history):
        if int(state.step) == 20:
            kept["state"] = jax.tree.map(np.array, state)

    whole, history = fit(setting, on_chunk=keep)
    rest, rest_history = fit(setting, state=jax.tree.map(jnp.asarray, kept["state"]))
    assert same(whole, rest)
    np.testing.assert_array_equal(history.terms.total[20:], rest_history.terms.total)
    again, none = fit(setting, state=whole)  # killed after the last checkpoint
    assert same(whole, again) and len(none.grad_norm) == 0


def test_nan_is_reported_with_its_step(setting):
    with pytest.raises(DivergedError, match=r"at step \d+ of 40; lower the learning rate"):
        fit(setting, rate=1e30)


def test_untrained_student_stays_as_it_starts(setting):
    _, frozen, pool, _ = setting
    student = make_student("svd", CONFIG, CloneFlags(4), StudentOptions(init="random"))
    state, history = fit((None, frozen, pool, student))
    assert same(state.params, training.init_state(student, training.OptimizerSpec(), key_for(0, "init"), frozen).params)
    assert len(history.grad_norm) == 0


def test_batches_come_from_the_first_samples_only(setting):
    pool = pool_from_sequences(np.repeat(np.arange(50)[:, None], 9, axis=1))
    batches = training.gather_chunk(pool, key_for(0, "o"), first=0, count=200, batch_size=16, samples=20)
    used = np.unique(batches.tokens_NT[:200])
    assert used.max() == 19
    assert len(used) == 20
    # The same uniform numbers whatever N: a run's batches at N and 2N correspond.
    double = training.gather_chunk(pool, key_for(0, "o"), first=0, count=200, batch_size=16, samples=40)
    np.testing.assert_array_equal(batches.tokens_NT[:200], double.tokens_NT[:200] // 2)


@pytest.mark.parametrize("samples", [1, 7, 1000, 2**23 + 1, 10**8 + 7, 2**31 - 1])
def test_batches_reach_every_sequence_of_a_large_pool(samples):
    """Float32 has 24 bits: of ten million sequences it never reaches some and reaches others twice."""
    bits = np.asarray(jax.random.bits(jax.random.key(3), (4000,), jnp.uint32))
    index = np.asarray(training.batch_index(jax.random.key(3), 4000, jnp.asarray(samples, jnp.int32)))
    np.testing.assert_array_equal(index, bits.astype(np.uint64) * np.uint64(samples) >> np.uint64(32))


@pytest.mark.parametrize("schedule", training.SCHEDULES)
def test_schedules(schedule):
    spec = training.OptimizerSpec(schedule=schedule, warmup=0.1)
    factors = np.array([float(spec.factor(jnp.int32(t), jnp.int32(100))) for t in range(100)])
    assert factors[0] == pytest.approx(0.1, rel=0.02)
    assert factors.max() <= 1.0
    end = {"cosine": 2.5e-4, "linear": 0.01, "constant": 1.0, "inverse_sqrt": 0.1}[schedule]
    assert factors[-1] == pytest.approx(end, rel=0.02)


def test_teacher_learns_and_keeps_its_best(setting):
    source = setting[0]
    pool = pool_from_sequences(source.sequences("teacher", 2000))
    held_out = pool_from_sequences(source.sequences("probe", 256))
    weights, curve = train_teacher(TEACHER, CONFIG, pool, held_out, key_for(0, "i"), key_for(0, "o"))
    assert curve.step == [20, 40, 60]
    assert min(curve.held_out_loss) < np.log(12)
    assert float(model_losses(CONFIG, weights, held_out).mean()) == pytest.approx(min(curve.held_out_loss), rel=1e-6)


# ------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("order", [1, 2])
def test_language_is_stationary_with_exact_entropy(order):
    """Empirical frequencies at every position, and the mean of -log p, agree with the tables."""
    spec = LanguageSpec(vocabulary=6, order=order, seed=5)
    tables, source = markov_tables(spec), SyntheticSource(spec, 6)
    tokens = source.sequences("x", 60_000)
    for position in (0, 3, 6):
        share = np.bincount(tokens[:, position], minlength=6) / len(tokens)
        np.testing.assert_allclose(share, tables.unigram, atol=5 * np.sqrt(0.25 / len(tokens)))
    before = tokens[:, 1:-1] if order == 1 else tokens[:, :-2]
    log_p = np.log(tables.conditional[0 if order == 1 else before, tokens[:, 1:-1], tokens[:, 2:]])
    se = log_p.mean(axis=1).std() / np.sqrt(len(tokens))
    assert -log_p.mean() == pytest.approx(tables.entropy_rate, abs=4 * se)
    bayes, bayes_se = source.bayes_loss()
    assert bayes_se == 0.0
    assert bayes >= tables.entropy_rate - 1e-12


def test_hidden_markov_best_loss_beats_bigrams_and_has_an_error():
    spec = LanguageSpec(kind="hmm", vocabulary=8, states=5, seed=1)
    source = SyntheticSource(spec, 12)
    loss, se = source.bayes_loss()
    tokens = source.sequences("bayes", 4096)  # the same sequences: the difference has little noise
    counts = bigram_counts(tokens, 8) + 1e-9
    conditional = counts / counts.sum(axis=1, keepdims=True)
    bigram = -np.log(conditional[tokens[:, :-1], tokens[:, 1:]]).mean()  # fitted to them: as good as a bigram can be
    assert 0.0 < se < 0.02
    assert loss < bigram
    start, transition, _ = hmm_tables(spec)
    np.testing.assert_allclose(start @ transition, start, atol=1e-10)


def test_streams_are_nested_disjoint_and_reproducible():
    source, again = SyntheticSource(SPEC, 8), SyntheticSource(SPEC, 8)
    long = source.sequences("student", 5000, 2)
    np.testing.assert_array_equal(long[:100], again.sequences("student", 100, 2))
    np.testing.assert_array_equal(long, again.sequences("student", 5000, 2))  # extends what it has
    assert not np.array_equal(long[:100], source.sequences("student", 100, 3))
    assert not np.array_equal(long[:100], source.sequences("test", 100, 2))


def test_seed_path():
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert len({derive_seed(s, *p) for s in (0, 1) for p in (("a",), ("b",), ("a", 1), ("a1",))}) == 8


# --------------------------------------------------------------------------------------------------- gap and models


def test_control_variate_gap_is_unbiased_and_quieter(setting):
    """A student fixed before the sample has no gap: over replicates both estimators centre on 0, the control variate
    with a fraction of the spread."""
    source, frozen, _, student = setting
    params = student.init(key_for(1, "fixed"), frozen)
    like_it = jax.tree.map(lambda x: 1.05 * x + 0.02, params)  # another fixed model that finds the same tokens hard

    def losses(params, pool):
        return sequence_losses(student, CONFIG, params, frozen, pool)

    test_pool = pool_from_sequences(source.sequences("test", 4096))
    test, reference_test = losses(params, test_pool), losses(like_it, test_pool)
    noisy, quiet = [], []
    for replicate in range(40):
        pool = pool_from_sequences(source.sequences("student", 100, replicate))
        train, reference = losses(params, pool), losses(like_it, pool)
        itself = control_variate_gap(test, train, test, train, labels_from_teacher=False)
        assert itself.value == pytest.approx(0.0, abs=1e-12)
        noisy.append(raw_gap(test, train).value)
        quiet.append(control_variate_gap(test, train, reference_test, reference, labels_from_teacher=False).value)
    for values in (noisy, quiet):
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(40) + 4 * test.student.std() / np.sqrt(4096)
    assert np.std(quiet) < 0.5 * np.std(noisy)


def test_evaluation_covers_every_sequence_once(setting):
    _, frozen, pool, student = setting
    params = student.init(key_for(1, "fixed"), frozen)
    whole = sequence_losses(student, CONFIG, params, frozen, pool)
    assert len(whole.student) == 300
    one = sequence_losses(student, CONFIG, params, frozen, jax.tree.map(lambda x: x[123:124], pool))
    assert whole.kl[123] == pytest.approx(one.kl[0], rel=1e-4)
    assert whole.entropy.min() > 0.0
    assert whole.kl.min() >= -1e-6


def test_bilinear_fit_recovers_a_bilinear_language():
    """The population's best model of full rank is the language; at lower rank the excess falls with the rank; the gap
    at large N is p/N (theory: 1 nat per parameter and sample, in the regular regime)."""
    spec = LanguageSpec(vocabulary=10, order=1, spectrum=1.0, sharpness=0.7, seed=2)
    tables = markov_tables(spec)
    excess = [
        fit_bilinear(tables, None, r, jax.random.key(r), steps=2000, learning_rate=0.05).excess for r in (1, 3, 6, 10)
    ]
    assert all(a > b for a, b in itertools.pairwise(excess))
    assert excess[-1] < 1e-5
    source, gaps = SyntheticSource(spec, 16), []
    for replicate in range(6):
        counts = bigram_counts(source.sequences("student", 4000, replicate), 10)
        gaps.append(fit_bilinear(tables, counts, 10, jax.random.key(0), steps=2000, learning_rate=0.05).gap)
    per_token = 90 / (4000 * 16)  # V (V - 1) free numbers
    assert np.mean(gaps) == pytest.approx(per_token, rel=0.25)


def test_frozen_is_a_pytree_of_what_is_there(setting):
    assert len(jax.tree.leaves(dataclasses.replace(setting[1], teacher=jnp.zeros(3)))) == 1
