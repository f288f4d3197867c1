"""The import hook of tests/conftest.py is active: annotations of lrc_jax, shapes too, are checked at run time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lrc_jax.losses import ClonePair, cross_entropy_per_token
from lrc_jax.measure.flops import kv_cache_bytes
from lrc_jax.model import DecoderConfig, init_weights

CONFIG = DecoderConfig(24, 16, 24, 1, 2, 1, 8)


@pytest.mark.parametrize("labels", [jnp.zeros((3, 1), jnp.int32), jnp.zeros(3), np.zeros(3, np.int32)])
def test_a_wrong_shape_dtype_or_kind_of_array_is_an_error(labels: object) -> None:
    logits_NV = jnp.zeros((3, 5))
    assert cross_entropy_per_token(logits_NV, jnp.zeros(3, jnp.int32)).shape == (3,)
    with pytest.raises(TypeCheckError, match="labels_N"):
        cross_entropy_per_token(logits_NV, labels)  # type: ignore[arg-type]


def test_shapes_are_checked_while_jax_traces() -> None:
    with pytest.raises(TypeCheckError, match="labels_N"):
        jax.eval_shape(cross_entropy_per_token, jnp.zeros((3, 5)), jnp.zeros((3, 1), jnp.int32))


def test_an_int_is_a_float_and_a_string_is_not() -> None:
    assert kv_cache_bytes(CONFIG, 2) == 32
    with pytest.raises(TypeCheckError, match="bytes_each"):
        kv_cache_bytes(CONFIG, "2")  # type: ignore[arg-type]


def test_fields_are_checked_but_those_of_a_pytree_that_jax_rebuilds() -> None:
    with pytest.raises(TypeCheckError, match="student"):
        ClonePair(0, "gate", np.zeros((2, 2)), jnp.zeros((2, 2)))  # type: ignore[arg-type]
    shapes = jax.eval_shape(functools.partial(init_weights, CONFIG), jax.random.key(0))
    assert set(jax.tree.leaves(jax.tree.map(lambda x: "leaf", shapes))) == {"leaf"}
