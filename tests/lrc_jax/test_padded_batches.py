"""Pools whose size is no multiple of the evaluation batch: sequences that fill the last one up do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.inference import evaluate
from lrc_jax.losses import fraction_unexplained
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.statistics import second_moments

CONFIG = DecoderConfig(12, 16, 24, 2, 2, 1, 8, max_position_embeddings=8)
TOKENS = np.random.default_rng(0).integers(0, 12, (11, 8)).astype(np.int32)
POOL = Pool(TOKENS, np.roll(TOKENS, -1, axis=1))


@pytest.fixture(scope="module")
def frozen():
    return Frozen(jax.jit(init_weights, static_argnums=0)(CONFIG, key_for(0, "t")))


@pytest.mark.parametrize("batch", [4, 16])  # the last of three batches is filled up; the only one is
def test_second_moments_are_of_the_sequences_that_are_there(frozen, monkeypatch, batch):
    monkeypatch.setattr(evaluate, "EVAL_TOKENS", batch * 8)
    residual_DD, final_DD = second_moments(CONFIG, frozen.teacher, POOL)
    acts = forward(CONFIG, frozen.teacher, jnp.asarray(TOKENS))
    np.testing.assert_allclose(final_DD, acts.final_ND.T @ acts.final_ND / TOKENS.size, rtol=1e-4, atol=1e-5)
    points = 1 + len(acts.hidden_ND)
    np.testing.assert_allclose(np.trace(residual_DD), points * CONFIG.hidden_size, rtol=1e-4)  # unit power each


def test_unexplained_variance_is_of_the_sequences_that_are_there(frozen):
    student = make_student("lrc", CONFIG, CloneFlags(4), StudentOptions())
    params = student.init(key_for(0, "s"), frozen)
    found = evaluate.clone_fvu(student, CONFIG, params, frozen, POOL)
    teacher = forward(CONFIG, frozen.teacher, jnp.asarray(TOKENS))
    pairs = student.clone_pairs(params, frozen, teacher, student.forward(params, frozen, jnp.asarray(TOKENS), teacher))
    for pair in pairs:
        assert found[f"layers.{pair.layer}.{pair.name}"] == pytest.approx(float(fraction_unexplained(pair)), rel=1e-4)
