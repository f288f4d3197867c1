"""The teacher rounded to nearest: how far its numbers move, and that nothing else does."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import divergence_from
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.factorized import matrix_shapes
from lrc_jax.students.quantised import rounded

CONFIG = DecoderConfig(40, 16, 48, 2, 2, 1, 8)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_number_is_at_most_half_a_step_away_and_has_few_levels(bits):
    w = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32) * [1e-3, 1.0, 50.0, 1.0, 1.0]
    w[:, 3], w[40:, 4] = 0.0, 0.0  # a channel, and a group, of nothing
    got = np.asarray(rounded(jax.numpy.asarray(w, jax.numpy.float32), bits))
    most, size = 2 ** (bits - 1) - 1, 70 if bits == 8 else 32
    for start in range(0, 70, size):
        part, near = w[start : start + size], got[start : start + size]
        step = np.abs(part).max(axis=0) / most
        # float16 scales: half a step, and what rounding the scale moves the outermost level.
        assert (np.abs(near - part) <= step * (0.5 + most * 2**-11) + 1e-7).all()
        for channel in range(5):
            assert len(np.unique(near[:, channel])) <= 2 * most + 1
    assert (got[:, 3] == 0).all() and (got[64:, 4] == 0).all()


def test_one_rounding_serves_embedding_and_head():
    tied = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    weights = jax.jit(init_weights, static_argnums=0)(tied, jax.random.key(0))
    student = make_student("quantised", tied, CloneFlags(1), StudentOptions())
    made = jax.jit(student.weights)({}, Frozen(weights))
    assert made.head_DV is None
    np.testing.assert_allclose(made.embed_VD, rounded(weights.embed_VD.T, 8).T, rtol=1e-6)


def test_eight_bits_lose_less_than_four_and_norms_are_as_they_were():
    weights = jax.jit(init_weights, static_argnums=0)(CONFIG, jax.random.key(1))
    weights = dataclasses.replace(weights, embed_VD=weights.embed_VD * 20, head_DV=weights.head_DV * 5)
    pool = pool_from_sequences(np.random.default_rng(0).integers(0, 40, (16, 13)))
    lost = {}
    for bits in (8, 4):
        student = make_student("quantised", CONFIG, CloneFlags(1), StudentOptions(bits=bits))
        made = jax.jit(student.weights)(student.init(jax.random.key(0), Frozen(weights)), Frozen(weights))
        lost[bits] = divergence_from(CONFIG, weights, pool)(made)
        for old, new in zip(weights.layers, made.layers, strict=True):
            np.testing.assert_array_equal(old.input_norm_D, new.input_norm_D)
        np.testing.assert_array_equal(weights.final_norm_D, made.final_norm_D)
        assert sum(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (weights, made)), strict=True)
        ) == len(matrix_shapes(CONFIG))
    assert 0 < 30 * lost[8] < lost[4]


def test_bits_that_are_not_there_are_one_line():
    with pytest.raises(InputError, match=r"student\.bits: 5 is unknown; choose 8 or 4"):
        make_student("quantised", CONFIG, CloneFlags(1), StudentOptions(bits=5))
