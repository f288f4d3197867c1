"""A decoder of the Llama family as one pure function of (config, weights, tokens).

Teacher and student are the same function of different weights. Shapes live in names:

    B sequences, T positions, N = B*T tokens, V vocabulary, D residual width, F feed-forward width,
    H query heads, K key/value heads, G = H/K, C head dimension.

Tokens are flattened to [N, D] before every matrix product and reshaped only inside attention: on CPU the weight
gradients of [B, T, D] products otherwise leave the fast GEMM path. Weight matrices are stored [in, out], the
transpose of the Hugging Face layout, so that a product reads `x_ND @ w_DF`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

RESIDUAL = "residual"  # what rematerialisation keeps (train.StepOptions)
NEG_INF = -1e30  # finite: a fully masked row must not give nan
LARGEST = 2**31 - 1  # of a size
# Sizes of DecoderConfig, and what Hugging Face calls them.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """RoPE frequency scaling as in Hugging Face `rope_scaling`; kind is "linear", "llama3" or "none" (no RoPE)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"rope_scaling factor {self.factor} is not a positive number")
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise ValueError(
                f"rope_scaling low_freq_factor {self.low_freq_factor} is not between 0 and "
                f"high_freq_factor {self.high_freq_factor}"
            )
        if self.original_max_position_embeddings < 1:
            raise ValueError("rope_scaling original_max_position_embeddings is less than 1")


NO_ROPE = RopeScaling("none", 1.0)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything about a decoder that is not a number in its weights. Hashable: a static argument of jit."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMSNorm over the head dimension of q and k, before RoPE
    no_rope_layers: tuple[int, ...] = ()  # SmolLM3: layers whose queries and keys are not rotated
    max_position_embeddings: int = 2048
    model_type: str = "llama"

    def __post_init__(self) -> None:
        for name, stock in SIZES.items():
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{stock} {getattr(self, name)} is outside 1..{LARGEST}")
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a positive number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_heads} is no multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE needs an even one")

    def of_layer(self, layer: int) -> DecoderConfig:
        """The configuration that a layer's attention reads: without RoPE where the layer has none."""
        return dataclasses.replace(self, rope_scaling=NO_ROPE) if layer in self.no_rope_layers else self

    @property
    def q_size(self) -> int:
        """Width of all query heads together, H*C (the input width of the output projection)."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together, K*C."""
        return self.num_kv_heads * self.head_dim


@flax.struct.dataclass
class LayerWeights:
    """One decoder layer; None where the architecture has no such tensor."""

    input_norm_D: Array
    q_DQ: Array
    k_DK: Array
    v_DK: Array
    o_QD: Array
    mlp_norm_D: Array
    gate_DF: Array
    up_DF: Array
    down_FD: Array
    q_bias_Q: Array | None = None
    k_bias_K: Array | None = None
    v_bias_K: Array | None = None
    q_norm_C: Array | None = None
    k_norm_C: Array | None = None


@flax.struct.dataclass
class Unembedding:
    """What makes logits of the final features: a matrix [D, V], or an embedding [V, D], which is not copied to
    transpose it."""

    matrix: Array
    tied: bool = flax.struct.field(pytree_node=False, default=False)  # the matrix is an embedding

    @property
    def matrix_DV(self) -> Array:
        return self.matrix.T if self.tied else self.matrix


@flax.struct.dataclass
class Weights:
    """A whole decoder. `head_DV` is None where the head is the embedding, transposed."""

    embed_VD: Array
    layers: tuple[LayerWeights, ...]
    final_norm_D: Array
    head_DV: Array | None = None

    def unembedding(self) -> Unembedding:
        return Unembedding(self.embed_VD, tied=True) if self.head_DV is None else Unembedding(self.head_DV)

    def unembedding_DV(self) -> Array:
        return self.unembedding().matrix_DV


@flax.struct.dataclass
class LayerActivations:
    """Activations of one layer at every clone site, tokens flattened.

    q, k, v are after projection (and bias), before q/k norm and RoPE; `context` is what the output projection
    reads; gate is before SiLU; `mlp_hidden` is silu(gate) * up.
    """

    attn_in_ND: Array
    q_NQ: Array
    k_NK: Array
    v_NK: Array
    context_NQ: Array
    attn_out_ND: Array
    mlp_in_ND: Array
    gate_NF: Array
    up_NF: Array
    mlp_hidden_NF: Array
    mlp_out_ND: Array


@flax.struct.dataclass
class Activations:
    """What a forward pass computed. XLA drops what the caller does not use."""

    logits_NV: Array
    embedded_ND: Array
    layers: tuple[LayerActivations, ...]
    hidden_ND: tuple[Array, ...]  # residual stream after each layer
    final_ND: Array  # what the unembedding reads: the stream after the final norm
    unembedding: Unembedding | None = None  # logits = final @ matrix_DV; None where only the logits are known


def rms_norm(x_ND: Array, gain_D: Array, eps: float) -> Array:
    """RMSNorm over the last axis, computed in float32 (Zhang & Sennrich 2019)."""
    x32 = x_ND.astype(jnp.float32) if x_ND.dtype in (jnp.bfloat16, jnp.float16) else x_ND
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return normed.astype(x_ND.dtype) * jnp.reshape(gain_D, (1,) * (x_ND.ndim - 1) + gain_D.shape)


def rope_inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """Inverse frequencies [C/2] in float64, after scaling (Su et al. 2021; Llama 3 report for "llama3")."""
    inv_freq = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor
    if scaling.kind == "llama3":
        # Long wavelengths are stretched by `factor`, short ones kept, with a linear ramp between the two.
        wavelength = 2 * math.pi / inv_freq
        ratio = scaling.original_max_position_embeddings / wavelength
        ramp = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        ramp = np.clip(ramp, 0.0, 1.0)
        return (1 - ramp) * inv_freq / scaling.factor + ramp * inv_freq
    if scaling == NO_ROPE:
        return np.zeros_like(inv_freq)
    raise ValueError(f"rope_scaling kind {scaling.kind!r} is not supported; known: linear, llama3")


@functools.lru_cache(maxsize=32)
def rope_tables(config: DecoderConfig, length: int, offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [T, C] for positions offset..offset+length-1, in the half-split layout of Hugging Face."""
    angles = np.arange(offset, offset + length)[:, None] * rope_inverse_frequencies(config)[None, :]
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def rotate_half(x: Array) -> Array:
    half = x.shape[-1] // 2
    return jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)


def causal_attention(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> Array:
    """Causal grouped-query attention with RoPE, the readable specification.

    Query head h reads key/value head h // G. Scores are scaled by 1/sqrt(C); softmax in float32.
    """
    length = q_NQ.shape[0] // batch
    n_kv, head_dim = config.num_kv_heads, config.head_dim
    group = config.num_heads // n_kv
    cos_TC, sin_TC = (jnp.asarray(t, q_NQ.dtype)[None, None, None] for t in rope_tables(config, length))

    q_BKGTC = q_NQ.reshape(batch, length, n_kv, group, head_dim).transpose(0, 2, 3, 1, 4)
    k_BK1TC = k_NK.reshape(batch, length, n_kv, 1, head_dim).transpose(0, 2, 3, 1, 4)
    v_BKTC = v_NK.reshape(batch, length, n_kv, head_dim).transpose(0, 2, 1, 3)
    q_BKGTC = q_BKGTC * cos_TC + rotate_half(q_BKGTC) * sin_TC
    k_BKTC = (k_BK1TC * cos_TC + rotate_half(k_BK1TC) * sin_TC)[:, :, 0]

    scores = jnp.einsum("bkgtc,bksc->bkgts", q_BKGTC, k_BKTC) * head_dim**-0.5
    causal = np.tril(np.ones((length, length), bool))[None, None, None]
    scores = jnp.where(causal, scores, NEG_INF)
    probs = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1).astype(scores.dtype)
    context = jnp.einsum("bkgts,bksc->btkgc", probs, v_BKTC)
    return context.reshape(batch * length, config.q_size)


def _heads_norm(config: DecoderConfig, x_NQ: Array, gain_C: Array | None) -> Array:
    """Qwen3's RMSNorm over each head; the identity elsewhere."""
    if gain_C is None:
        return x_NQ
    x_NHC = x_NQ.reshape(x_NQ.shape[0], -1, config.head_dim)
    return rms_norm(x_NHC, gain_C, config.rms_norm_eps).reshape(x_NQ.shape)


def _project(x_ND: Array, w_DF: Array, bias_F: Array | None) -> Array:
    y_NF = x_ND @ w_DF
    return y_NF if bias_F is None else y_NF + bias_F[None, :]


def swiglu(gate_NF: Array, up_NF: Array) -> Array:
    """silu(gate) * up (Shazeer 2020)."""
    return jax.nn.silu(gate_NF) * up_NF


def gated_product(gate_NF: Array, up_NF: Array, down_FD: Array) -> tuple[Array, Array]:
    """swiglu(gate, up) [N, F], and its product with `down` [N, D]."""
    hidden_NF = swiglu(gate_NF, up_NF)
    return hidden_NF, hidden_NF @ down_FD


class Operations(NamedTuple):
    """What a layer is computed with, where there is a plain and a fast way."""

    attention: Callable[[DecoderConfig, Array, Array, Array, int], Array]
    product: Callable[[Array, Array], Array]  # [N, Q] @ [Q, D], from attention to the residual stream
    gated_product: Callable[[Array, Array, Array], tuple[Array, Array]]


PLAIN = Operations(causal_attention, jnp.matmul, gated_product)


def decoder_layer(
    config: DecoderConfig, w: LayerWeights, x_ND: Array, batch: int, operations: Operations = PLAIN
) -> tuple[Array, LayerActivations]:
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""
    attn_in_ND = rms_norm(x_ND, w.input_norm_D, config.rms_norm_eps)
    q_NQ = _project(attn_in_ND, w.q_DQ, w.q_bias_Q)
    k_NK = _project(attn_in_ND, w.k_DK, w.k_bias_K)
    v_NK = _project(attn_in_ND, w.v_DK, w.v_bias_K)
    context_NQ = operations.attention(
        config, _heads_norm(config, q_NQ, w.q_norm_C), _heads_norm(config, k_NK, w.k_norm_C), v_NK, batch
    )
    attn_out_ND = operations.product(context_NQ, w.o_QD)
    x_ND = x_ND + attn_out_ND

    mlp_in_ND = rms_norm(x_ND, w.mlp_norm_D, config.rms_norm_eps)
    gate_NF = mlp_in_ND @ w.gate_DF
    up_NF = mlp_in_ND @ w.up_DF
    mlp_hidden_NF, mlp_out_ND = operations.gated_product(gate_NF, up_NF, w.down_FD)
    acts = LayerActivations(
        attn_in_ND, q_NQ, k_NK, v_NK, context_NQ, attn_out_ND, mlp_in_ND, gate_NF, up_NF, mlp_hidden_NF, mlp_out_ND
    )
    return x_ND + mlp_out_ND, acts


def forward(
    config: DecoderConfig,
    weights: Weights,
    tokens_BT: Int[Array, "B T"],
    embedded_ND: Float[Array, "N D"] | None = None,
    operations: Operations = PLAIN,
) -> Activations:
    """Run the decoder over whole sequences. The specification; `fast.forward` is what is used.

    Args:
      config: the architecture.
      weights: its numbers; the compute dtype is that of the weights.
      tokens_BT: token ids, all sequences of one length.
      embedded_ND: the embedded tokens, where the caller has a cheaper way to them than a look-up in
        `weights.embed_VD` (Low-Rank Clone gathers the teacher's rows first and projects those).
      operations: what the layers are computed with.

    Returns:
      Logits [N, V] and the activations at every clone site, tokens flattened row by row.
    """
    batch, _ = tokens_BT.shape
    x_ND = weights.embed_VD[tokens_BT.reshape(-1)] if embedded_ND is None else embedded_ND
    embedded = x_ND
    layer_acts, hidden = [], []
    for i, w in enumerate(weights.layers):
        x_ND, acts = decoder_layer(config.of_layer(i), w, x_ND, batch, operations)
        x_ND = checkpoint_name(x_ND, RESIDUAL)
        layer_acts.append(acts)
        hidden.append(x_ND)
    final_ND = rms_norm(x_ND, weights.final_norm_D, config.rms_norm_eps)
    logits_NV = final_ND @ weights.unembedding_DV()
    return Activations(logits_NV, embedded, tuple(layer_acts), tuple(hidden), final_ND, weights.unembedding())


def init_weights(config: DecoderConfig, key: Array, dtype: Any = jnp.float32) -> Weights:
    """Random start for training from scratch: N(0, 1/fan_in), residual outputs scaled by 1/sqrt(2 L).

    The embedding has standard deviation 0.1 (0.02 leaves RMSNorm's gradient to grow it for hundreds of steps).
    Call under jit: eager initialisation compiles one small program a tensor.
    """
    D, F, L = config.hidden_size, config.intermediate_size, config.num_layers
    Q, K, C, V = config.q_size, config.kv_size, config.head_dim, config.vocab_size
    keys = iter(jax.random.split(key, 7 * L + 2))

    def normal(fan_in: int, fan_out: int, scale: float = 1.0) -> Array:
        return jax.random.normal(next(keys), (fan_in, fan_out), dtype) * dtype(scale * fan_in**-0.5)

    residual = (2 * L) ** -0.5
    ones, zeros = functools.partial(jnp.ones, dtype=dtype), functools.partial(jnp.zeros, dtype=dtype)
    layers = tuple(
        LayerWeights(
            input_norm_D=ones(D),
            q_DQ=normal(D, Q),
            k_DK=normal(D, K),
            v_DK=normal(D, K),
            o_QD=normal(Q, D, residual),
            mlp_norm_D=ones(D),
            gate_DF=normal(D, F),
            up_DF=normal(D, F),
            down_FD=normal(F, D, residual),
            q_bias_Q=zeros(Q) if config.qkv_bias else None,
            k_bias_K=zeros(K) if config.qkv_bias else None,
            v_bias_K=zeros(K) if config.qkv_bias else None,
            q_norm_C=ones(C) if config.qk_norm else None,
            k_norm_C=ones(C) if config.qk_norm else None,
        )
        for _ in range(L)
    )
    embed_VD = jax.random.normal(next(keys), (V, D), dtype) * dtype(0.1)
    head_DV = None if config.tie_word_embeddings else normal(D, V)
    return Weights(embed_VD, layers, ones(D), head_DV)


def count_parameters(tree: Any) -> int:
    """Numbers in a pytree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
