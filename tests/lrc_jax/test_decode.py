"""Decoding with a cache equals the forward pass, for every architecture that the model knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import some_slow

from lrc_jax.inference.decode import decode_step, greedy_continue, prefill
from lrc_jax.model import DecoderConfig, RopeScaling, forward, init_weights

LLAMA = DecoderConfig(29, 16, 24, 2, 4, 4, 4)
CONFIGS = {
    "llama": LLAMA,
    "grouped_tied": DecoderConfig(29, 16, 24, 1, 6, 2, 4, tie_word_embeddings=True),
    "qwen2": DecoderConfig(29, 16, 24, 1, 4, 2, 4, qkv_bias=True),
    "qwen3": DecoderConfig(29, 16, 24, 1, 4, 2, 6, qk_norm=True),
    "smollm3": DecoderConfig(29, 16, 24, 2, 4, 2, 6, no_rope_layers=(1,)),
    "llama3_rope": DecoderConfig(29, 16, 24, 1, 4, 2, 8, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
}


def make(config):
    weights = jax.jit(functools.partial(init_weights, config))(jax.random.key(0))
    # Gains and biases away from their neutral start, or a missing one would not be seen.
    leaves, treedef = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * np.asarray(jax.random.normal(k, (64,)))[: x.size] for x, k in zip(leaves, keys, strict=True)]
    leaves = [x + n if x.ndim == 1 else x for x, n in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


@pytest.mark.parametrize("name", some_slow(CONFIGS, fast=("grouped_tied", "qwen3")))
def test_prefill_and_steps_equal_the_forward_pass(name):
    config = CONFIGS[name]
    weights = make(config)
    tokens = jax.random.randint(jax.random.key(2), (3, 11), 0, config.vocab_size)
    whole = jax.jit(forward, static_argnums=0)(config, weights, tokens).logits_NV.reshape(3, 11, -1)
    logits, cache = jax.jit(prefill, static_argnums=(0, 3))(config, weights, tokens[:, :6], 11)
    np.testing.assert_allclose(logits, whole[:, :6], atol=2e-5)
    step = jax.jit(decode_step, static_argnums=0)
    compiled_before = step._cache_size()  # jit shares its cache between wrappers of one function
    for t in range(6, 11):
        logits, cache = step(config, weights, cache, tokens[:, t])
        np.testing.assert_allclose(logits, whole[:, t], atol=2e-5)
    assert int(cache.length) == cache.capacity == 11
    assert step._cache_size() == compiled_before + 1
    logits, _ = step(config, weights, cache, tokens[:, 0])
    assert np.isnan(logits).all(), "writing past the cache must not look like an answer"


def test_greedy_continuation_is_that_of_repeated_forward_passes():
    weights = make(LLAMA)
    tokens = jax.random.randint(jax.random.key(3), (2, 4), 0, 29)
    logits, cache = jax.jit(prefill, static_argnums=(0, 3))(LLAMA, weights, tokens, 12)
    first = jnp.argmax(logits[:, -1], axis=-1).astype(tokens.dtype)
    continued, cache = greedy_continue(LLAMA, weights, cache, first, 5)
    grown = np.concatenate([tokens, first[:, None], continued], axis=1)
    whole = jax.jit(forward, static_argnums=0)(LLAMA, weights, jnp.asarray(grown)).logits_NV.reshape(2, 10, -1)
    for t in range(4, 10):
        # Causal: what stands behind position t does not change its logits.
        np.testing.assert_array_equal(jnp.argmax(whole[:, t - 1], axis=-1), grown[:, t])
    assert int(cache.length) == 9


def test_a_cache_smaller_than_the_prompt_is_refused():
    with pytest.raises(ValueError, match="too small"):
        prefill(LLAMA, make(LLAMA), jnp.zeros((1, 4), jnp.int32), 3)
