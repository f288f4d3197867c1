"""Students trained together end where they end alone, however they are batched."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.compute import fast
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource
from lrc_jax.errors import DivergedError
from lrc_jax.inference.evaluate import sequence_losses
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.padding import can_pad, pad, rank_of, rescaled, widened, width_scale, with_rank
from lrc_jax.training import train as training
from lrc_jax.training.together import Member, Stream, fused_chunk, train_together

CONFIG = DecoderConfig(12, 16, 24, 1, 2, 1, 8, max_position_embeddings=8)
SOURCE = SyntheticSource(LanguageSpec(vocabulary=12, seed=3), 8)
POOL = pool_from_sequences(SOURCE.sequences("student", 300, 1))
TEST = pool_from_sequences(SOURCE.sequences("test", 512))
ADAMW = training.OptimizerSpec()


@pytest.fixture(scope="module")
def frozen():
    return Frozen(jax.jit(init_weights, static_argnums=0)(CONFIG, key_for(0, "t")))


def member(frozen, kind="lrc", rank=4, steps=40, rate=1e-2, clone=0.2, seed=0, objective=None, optimizer=ADAMW, **how):
    options = {k: how.pop(k) for k in list(how) if k in ("init", "matrices")}
    student = make_student(kind, CONFIG, CloneFlags(rank, **how), StudentOptions(**({"init": "fan_in"} | options)))
    weights = LossWeights(*map(jnp.float32, (clone, 1.0, 1.0, 2.0)))
    hyper = training.Hyper(jnp.float32(rate), jnp.int32(steps), jnp.int32(200), weights)
    return Member(student, objective or Objective(kl_per_token=True), optimizer, frozen, hyper, key_for(seed, "init"))


def stream(members, pool=POOL, seed=0):
    return Stream(pool, key_for(seed, "order"), 200, tuple(members))


def alone(m, pool=POOL, seed=0):
    return training.train(
        m.student, m.objective, m.optimizer, CONFIG, m.frozen, pool, m.hyper,
        batch_size=8, init_key=m.init_key, order_key=key_for(seed, "order"), state=m.state,
    )  # fmt: skip


def losses(m, state, pool=TEST):
    found = sequence_losses(m.student, CONFIG, state.params, m.frozen, pool)
    return np.array([found.student.mean(), found.kl.mean()])


@pytest.mark.parametrize("vectorised", [False, True])
def test_members_of_other_ranks_rates_steps_weights_and_starts_are_the_runs_alone(frozen, vectorised):
    """One member diverges: it says so as it would alone, and the others are as they are."""
    members = [
        member(frozen, rank=4), member(frozen, rank=7, steps=25, clone=1.5, seed=1), member(frozen, rank=7, rate=1e30),
    ]  # fmt: skip
    parts = []
    (together,) = train_together(
        CONFIG, [stream(members)], batch_size=8, vectorised=vectorised, on_chunk=lambda new, _: parts.append(new)
    )
    for i, (m, outcome) in enumerate(zip(members[:2], together, strict=False)):
        _, history = alone(m)
        curve = np.concatenate([part[i].terms.total for part in parts if part[i] is not None])
        np.testing.assert_allclose(curve, history.terms.total, rtol=1e-5)
        assert int(outcome.step) == int(m.hyper.steps)
    assert isinstance(together[2], DivergedError)
    with pytest.raises(DivergedError, match=re.escape(str(together[2]))):
        alone(members[2])


@pytest.mark.parametrize("vectorised", [False, True])
def test_losses_of_some_tokens_at_a_time(frozen, vectorised, monkeypatch):
    """A large vocabulary, alone and together, against the plain step's whole logits."""
    sgd = training.OptimizerSpec("sgd", "linear")
    members = [member(frozen, rank=4, steps=5, seed=seed, optimizer=sgd) for seed in range(2)]
    with fast.computed("reference"):
        plain = [alone(m) for m in members]
    monkeypatch.setattr(fast, "MOST_LOGITS", 100)
    (together,) = train_together(CONFIG, [stream(members)], batch_size=8, vectorised=vectorised)
    for m, state, (wanted, history) in zip(members, together, plain, strict=True):
        single, own_history = alone(m)
        np.testing.assert_allclose(own_history.terms.total, history.terms.total, rtol=1e-6)
        for got in (state, single):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got.params, wanted.params)


def test_a_student_that_is_built_takes_no_step(frozen):
    """As alone: neither one that could be trained (`svd`), nor one without parameters."""
    for kind in ("svd", "quantised"):
        m = member(frozen, kind=kind)
        ((outcome,),) = train_together(CONFIG, [stream([m])], batch_size=8)
        state, _ = alone(m)
        assert int(outcome.step) == int(state.step) == 0
        jax.tree.map(np.testing.assert_array_equal, outcome.params, state.params)


def test_a_restored_teacher_costs_no_second_compilation(frozen):
    restored = jax.device_put(frozen, jax.devices()[0])
    before = fused_chunk._cache_size()
    train_together(CONFIG, [stream([member(restored, seed=7, steps=47)])], batch_size=8)  # in sixteen calls
    assert fused_chunk._cache_size() == before + 1


KINDS = {
    "lrc": {},
    "shared_projections": {"use_all_attn": False, "use_in_out_mlp": True, "tie_word_emb_proj": True},
    "aligned": {"use_additional_align": True},
    "direct": {"kind": "direct"},
    "scratch": {"kind": "scratch"},
    "factorized": {"kind": "factorized"},
    "head": {"kind": "factorized", "matrices": "head", "objective": Objective(clone=False)},
    "hard_labels": {"objective": Objective(clone=False, kl=False)},
    "absolute": {"objective": Objective(distance="l1loss", kl_per_token=True)},
    "sgd": {"optimizer": training.OptimizerSpec("sgd", "constant", clip=1.0), "rate": 0.1},
}


def two_streams(frozen, kind, steps=200, slower=1.0):
    """Three ranks of which two are equal, on each of two streams."""
    how = KINDS[kind]
    rate = how.get("rate", 1e-2) / slower
    ranks_and_seeds = ((3, 0), (6, 1), (6, 2))
    rows = [
        [member(frozen, rank=r, seed=s, steps=steps, **(how | {"rate": rate})) for r, s in ranks_and_seeds]
        for _ in range(2)
    ]
    return [stream(row, seed=seed) for seed, row in enumerate(rows)]


def in_double(s):
    """The stream with its members' start values in float64 (random ones are drawn in float32)."""
    starts = [training.init_state(m.student, m.optimizer, m.init_key, m.frozen) for m in s.members]
    states = [training.cast_floats(start, jnp.float64) for start in starts]
    members = [dataclasses.replace(m, state=state) for m, state in zip(s.members, states, strict=True)]
    return dataclasses.replace(s, members=tuple(members))


def end_where_they_end_alone(streams, vectorised, rounding):
    if vectorised:
        together = train_together(CONFIG, streams, batch_size=8, vectorised=True)
    else:
        together = [train_together(CONFIG, [s], batch_size=8, vectorised=False)[0] for s in streams]
    for seed, (row, outcomes) in enumerate(zip(streams, together, strict=True)):
        for m, outcome in zip(row.members, outcomes, strict=True):
            state, _ = alone(m, seed=seed)
            np.testing.assert_allclose(losses(m, outcome), losses(m, state), rtol=rounding)


@pytest.mark.slow
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_after_200_steps(frozen, kind, vectorised):
    """Losses within 1e-5 of the runs alone, where training is calm enough to keep float32's rounding small: at 30 times
    the rate it grows to as much as 0.04, whatever is fused. The next test is about that rate."""
    end_where_they_end_alone(two_streams(frozen, kind, slower=30), vectorised, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_after_200_steps_at_a_study_s_rate(frozen, kind, vectorised):
    """The same mathematics: in double precision the difference that float32 shows at this rate (0.04) is gone but for
    what the start and the rates, drawn in float32, leave of it."""
    with jax.enable_x64(True):
        streams = two_streams(training.cast_floats(frozen, jnp.float64), kind)
        end_where_they_end_alone([in_double(s) for s in streams], vectorised, 2e-5)


def test_in_bfloat16_losses_of_some_tokens_at_a_time_are_those_of_whole_logits(frozen, monkeypatch):
    """Both round to bfloat16: after 40 steps the losses agree to its three digits, and lie as near to float32's."""
    m = member(frozen, objective=Objective(kl_per_token=True))

    def trained(bf16):
        return training.train(
            m.student, m.objective, m.optimizer, CONFIG, m.frozen, POOL, m.hyper, batch_size=8, init_key=m.init_key,
            order_key=key_for(0, "order"), options=training.StepOptions(bf16=bf16),
        )[0]  # fmt: skip

    whole, exact = losses(m, trained(True)), losses(m, trained(False))
    jax.clear_caches()  # the limit is read while a program is traced
    monkeypatch.setattr(fast, "MOST_LOGITS", 100)
    parts = losses(m, trained(True))
    jax.clear_caches()
    np.testing.assert_allclose(parts, whole, rtol=1e-2)
    np.testing.assert_allclose(parts, exact, rtol=2e-2)
    assert (parts != whole).any()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "rotated"])
def test_a_widened_student_has_the_losses_of_the_student(frozen, kind):
    m = member(frozen, rank=3, **KINDS[kind])
    if not can_pad(m.student, m.objective):
        pytest.skip("never padded")
    params = training.init_state(m.student, m.optimizer, m.init_key, m.frozen).params
    student, wide = widened(m.student, params, m.frozen, 7)
    assert rank_of(student) == 7
    found = sequence_losses(student, CONFIG, wide, m.frozen, TEST)
    own = sequence_losses(m.student, CONFIG, params, m.frozen, TEST)
    np.testing.assert_allclose(found.student, own.student, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_student_is_the_student(frozen, kind):
    """Padding is exact: the same loss and, where there is a parameter, the same gradient; 0 where there is none."""
    batch = jax.tree.map(lambda x: jax.device_put(x[:8]), POOL)
    m = member(frozen, rank=3, **KINDS[kind])
    if not can_pad(m.student, m.objective):
        pytest.skip("is trained at its own shape everywhere")
    acts = training.teacher_side(m.student, m.objective, CONFIG, frozen, batch)
    params = jax.jit(m.student.init)(key_for(0), frozen)
    wide = with_rank(m.student, 6)
    like = jax.eval_shape(wide.init, key_for(0), frozen)

    def loss(student, scale, params):
        params = rescaled(student, params, scale)
        return training.distillation_loss(student, m.objective, params, frozen, m.hyper.loss, batch, acts)[0]

    def value_and_grad(student, scale, params):
        return jax.jit(jax.value_and_grad(functools.partial(loss, student, jnp.float32(scale))))(params)

    value, grads = value_and_grad(m.student, 1.0, params)
    padded, padded_grads = value_and_grad(wide, width_scale(m.student, 6), pad(params, like))
    assert float(padded) == pytest.approx(float(value), rel=2e-6)
    for got, want in zip(jax.tree.leaves(padded_grads), jax.tree.leaves(pad(grads, like)), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max() + 1e-9)


def test_batches_that_carry_features_are_cut_to_what_a_chunk_holds(frozen, monkeypatch):
    """Features make batches large, so that fewer steps fit in a call than progress asks for."""
    features = np.zeros((*POOL.tokens_NT.shape, 16), np.float32)
    pool = dataclasses.replace(POOL, final_NTD=features)
    monkeypatch.setattr(training, "CHUNK_BYTES", 8 * 8 * (4 + 4 + 4 * 16) * 3)  # three steps of 8 x 8 tokens
    hard = Objective(clone=False, kl=False)
    m = member(frozen, objective=hard, steps=100)  # a chunk of 5 for progress
    ((state,),) = train_together(CONFIG, [stream([m], pool)], batch_size=8)
    tolerance = 1e-5 if jax.default_backend() == "cpu" else 1e-3  # a GPU's two programs sum in different orders
    np.testing.assert_allclose(losses(m, state), losses(m, alone(m, pool)[0]), rtol=tolerance)
