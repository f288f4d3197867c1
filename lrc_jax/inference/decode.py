"""Decoding with a key/value cache: a prompt in one pass, then one token at a time.

The same decoder as `model.forward`, which is the specification: logits agree at every position. Every prompt of a batch
has the same length. Shapes as in `model`, and S the capacity of the cache (prompt and continuation together).
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrc_jax.compute.fast import forward
from lrc_jax.model import (
    NEG_INF,
    DecoderConfig,
    LayerWeights,
    Weights,
    _heads_norm,
    _project,
    rms_norm,
    rope_tables,
    rotate_half,
)


@flax.struct.dataclass
class LayerCache:
    """Keys (normed and rotated) and values of one layer, zero beyond the filled part."""

    key_BKSC: Array
    value_BKSC: Array


@flax.struct.dataclass
class Cache:
    """Key/value cache of a decoder. `length` counts the filled positions."""

    layers: tuple[LayerCache, ...]
    length: Array

    @property
    def capacity(self) -> int:
        return self.layers[0].key_BKSC.shape[2]


def prefill(
    config: DecoderConfig, weights: Weights, tokens_BT: Int[Array, "B T"], capacity: int | None = None
) -> tuple[Float[Array, "B T V"], Cache]:
    """Read a prompt.

    Args:
      config, weights: the decoder.
      tokens_BT: prompts of one length T.
      capacity: positions that the cache shall hold in all; None: T plus 1.

    Returns:
      Logits at every position of the prompt (those of the last one continue it; XLA drops what is not used) and the
      filled cache.

    Raises:
      ValueError: the capacity is less than the prompt.
    """
    batch, length = tokens_BT.shape
    capacity = length + 1 if capacity is None else capacity
    if capacity < length:
        raise ValueError(f"cache of {capacity} positions is too small for a prompt of {length}")
    acts = forward(config, weights, tokens_BT)

    def by_head(x_NK: Array) -> Array:
        return x_NK.reshape(batch, length, config.num_kv_heads, config.head_dim).transpose(0, 2, 1, 3)

    def padded(x_BKTC: Array) -> Array:
        return jnp.pad(x_BKTC, ((0, 0), (0, 0), (0, capacity - length), (0, 0)))

    layers = []
    for i, (w, layer) in enumerate(zip(weights.layers, acts.layers, strict=True)):
        tables = rope_tables(config.of_layer(i), length)
        cos_TC, sin_TC = (jnp.asarray(t, acts.embedded_ND.dtype)[None, None] for t in tables)
        key_BKTC = by_head(_heads_norm(config, layer.k_NK, w.k_norm_C))
        key_BKTC = key_BKTC * cos_TC + rotate_half(key_BKTC) * sin_TC
        layers.append(LayerCache(padded(key_BKTC), padded(by_head(layer.v_NK))))
    logits_BTV = acts.logits_NV.reshape(batch, length, -1)
    return logits_BTV, Cache(tuple(layers), jnp.asarray(length, jnp.int32))


def _attend(
    config: DecoderConfig, w: LayerWeights, cache: LayerCache, position: Array, x_BD: Array
) -> tuple[Array, LayerCache]:
    """Attention of one new position over the cache, which it joins. `x_BD` is the normed input."""
    batch, (n_kv, head_dim) = x_BD.shape[0], (config.num_kv_heads, config.head_dim)
    capacity = cache.key_BKSC.shape[2]
    q_BQ = _heads_norm(config, _project(x_BD, w.q_DQ, w.q_bias_Q), w.q_norm_C)
    k_BK = _heads_norm(config, _project(x_BD, w.k_DK, w.k_bias_K), w.k_norm_C)
    v_BK = _project(x_BD, w.v_DK, w.v_bias_K)

    cos_C, sin_C = (jnp.asarray(t, x_BD.dtype)[position] for t in rope_tables(config, capacity))
    q_BKGC = q_BQ.reshape(batch, n_kv, -1, head_dim)
    k_BK1C = k_BK.reshape(batch, n_kv, 1, head_dim)
    cos, sin = cos_C[None, None, None], sin_C[None, None, None]
    q_BKGC = q_BKGC * cos + rotate_half(q_BKGC) * sin
    k_BK1C = k_BK1C * cos + rotate_half(k_BK1C) * sin

    start = (0, 0, position, 0)
    key_BKSC = jax.lax.dynamic_update_slice(cache.key_BKSC, k_BK1C, start)
    value_BKSC = jax.lax.dynamic_update_slice(cache.value_BKSC, v_BK.reshape(batch, n_kv, 1, head_dim), start)
    scores = jnp.einsum("bkgc,bksc->bkgs", q_BKGC, key_BKSC) * head_dim**-0.5
    scores = jnp.where((jnp.arange(capacity) <= position)[None, None, None], scores, NEG_INF)
    probs = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1).astype(scores.dtype)
    context_BQ = jnp.einsum("bkgs,bksc->bkgc", probs, value_BKSC).reshape(batch, config.q_size)
    return context_BQ @ w.o_QD, LayerCache(key_BKSC, value_BKSC)


def decode_step(
    config: DecoderConfig, weights: Weights, cache: Cache, token_B: Int[Array, "B"]
) -> tuple[Float[Array, "B V"], Cache]:
    """Append one token to every sequence.

    Returns:
      Logits of the token that follows, and the longer cache. Jit it with the cache donated. Beyond the cache's
      capacity the logits are nan (a traced position cannot raise).
    """
    x_BD = weights.embed_VD[token_B]
    layers = []
    for i, (w, layer) in enumerate(zip(weights.layers, cache.layers, strict=True)):
        attn_in_BD = rms_norm(x_BD, w.input_norm_D, config.rms_norm_eps)
        attn_out_BD, layer = _attend(config.of_layer(i), w, layer, cache.length, attn_in_BD)
        x_BD = x_BD + attn_out_BD
        mlp_in_BD = rms_norm(x_BD, w.mlp_norm_D, config.rms_norm_eps)
        x_BD = x_BD + (jax.nn.silu(mlp_in_BD @ w.gate_DF) * (mlp_in_BD @ w.up_DF)) @ w.down_FD
        layers.append(layer)
    logits_BV = rms_norm(x_BD, weights.final_norm_D, config.rms_norm_eps) @ weights.unembedding_DV()
    logits_BV = jnp.where(cache.length < cache.capacity, logits_BV, jnp.nan)
    return logits_BV, Cache(tuple(layers), cache.length + 1)


@functools.partial(jax.jit, static_argnames=("config", "steps"), donate_argnames=("cache",))
def greedy_continue(
    config: DecoderConfig, weights: Weights, cache: Cache, token_B: Int[Array, "B"], steps: int
) -> tuple[Int[Array, "B steps"], Cache]:
    """Append `token_B` and then the most likely token, `steps` times, in one program.

    Returns:
      The tokens chosen and the cache, which holds `token_B` and all of them but the last.
    """

    def step(carry: tuple[Cache, Array], _: None) -> tuple[tuple[Cache, Array], Array]:
        cache, token_B = carry
        logits_BV, cache = decode_step(config, weights, cache, token_B)
        token_B = jnp.argmax(logits_BV, axis=-1).astype(token_B.dtype)
        return (cache, token_B), token_B

    (cache, _), tokens_SB = jax.lax.scan(step, (cache, token_B), None, length=steps)
    return tokens_SB.T, cache
