"""Students trained together end where they end alone, however they are batched."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax import train as training
from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource
from lrc_jax.errors import DivergedError
from lrc_jax.evaluate import sequence_losses
from lrc_jax.fused import Member, Stream, train_together
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.padding import can_pad, pad, rescaled, width_scale, with_rank

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
        batch_size=8, init_key=m.init_key, order_key=key_for(seed, "order"),
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


@pytest.mark.slow
@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_after_200_steps(frozen, kind, vectorised):
    """Three ranks of which two are equal, 200 steps, two streams: losses within 1e-5 of the runs alone."""
    how = KINDS[kind]
    rows = [[member(frozen, rank=r, seed=s, steps=200, **how) for r, s in ((3, 0), (6, 1), (6, 2))] for _ in range(2)]
    streams = [stream(row, seed=seed) for seed, row in enumerate(rows)]
    if vectorised:
        together = train_together(CONFIG, streams, batch_size=8, vectorised=True)
    else:
        together = [train_together(CONFIG, [s], batch_size=8, vectorised=False)[0] for s in streams]
    for seed, (row, outcomes) in enumerate(zip(rows, together, strict=True)):
        for m, outcome in zip(row, outcomes, strict=True):
            state, _ = alone(m, seed=seed)
            np.testing.assert_allclose(losses(m, outcome), losses(m, state), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_student_is_the_student(frozen, kind):
    """Padding is exact: the same loss and, where there is a parameter, the same gradient; 0 where there is none."""
    batch = jax.tree.map(lambda x: x[:8], POOL)
    m = member(frozen, rank=3, **KINDS[kind])
    if not can_pad(m.objective):
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
