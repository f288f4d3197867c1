"""The fast step: the mathematics of `model`, `losses` and `objective`, arranged for how XLA runs it.

The plain versions there are the specification and equal this to rounding (tests/lrc_jax/test_fast.py).
`with computed("reference"):` chooses the plain ones; `forward` and `evaluate_objective` here are what training and
evaluation call. What is done differently:

* **attention** has a hand-written gradient. The forward pass keeps the unnormalised exponentials and their sums, so
  that the backward pass computes no softmax; rotation tables are constants; queries go in two blocks, of which the
  first never looks at the second's keys. Sequences above LONG tokens keep nothing of size T x T: tiles of scores are
  computed with a running softmax and again in the backward pass. On a GPU `jax.nn.dot_product_attention` is used.
* **products** [N, D] x [D, F] with F < D take their weight gradient as (dy^T x)^T: the narrow side first.
* **SwiGLU and the product behind it** keep their inputs alone; its sigmoid and its output are computed again.
* **KL and cross-entropy** are computed in one pass over the logits, which keeps the exponentials for the gradient.
  Where a batch has more than MOST_LOGITS of them, logits are computed within the losses, some tokens at a time, and
  their gradient in the same pass: no array [N, V] is ever whole.
* **the clone loss through a frozen matrix** uses its product with the Gram matrix in both directions.

Shapes as in `model`, and: Z = B*K key/value heads of all sequences, G query heads for each, S keys, R = G * rows query
rows of a block (G heads x some positions).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrc_jax import losses, model, objective
from lrc_jax.losses import IGNORE, ClonePair
from lrc_jax.model import NEG_INF, Activations, DecoderConfig, Operations, Unembedding, Weights, rope_tables

LONG = 512  # sequences above this many tokens take the path whose memory is linear in the length
TILE = 256  # rows and columns of a tile of scores on that path
STEPS = ("fast", "reference")
MOST_LOGITS, MOST_LOGITS_ACCELERATOR = 2**22, 2**26  # see `most_logits`; 16 MiB and 256 MiB of float32
QUERY_BLOCKS = 2  # one computes all masked scores, four have products too small for their overhead


# ---------------------------------------------------------------------------------------------------------- attention


def _rotation(config: DecoderConfig, length: int, dtype: Any, scale: float = 1.0) -> tuple[Array, Array]:
    """Tables [1, 1, T, C] with which RoPE is x * cos + swap_halves(x) * sin: the sign of rotate_half is in `sin`."""
    cos_TC, sin_TC = rope_tables(config, length)
    sign_C = np.repeat([-1.0, 1.0], config.head_dim // 2)
    return tuple(jnp.asarray(scale * x, dtype)[None, None] for x in (cos_TC, sign_C * sin_TC))  # type: ignore


def _swap_halves(x: Array) -> Array:
    half = x.shape[-1] // 2
    return jnp.concatenate([x[..., half:], x[..., :half]], axis=-1)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    return x * cos + _swap_halves(x) * sin


def _rotate_back(dy: Array, cos: Array, sin: Array) -> Array:
    """The transpose of `_rotate`: the sine turns its sign."""
    return dy * cos - _swap_halves(dy) * sin


def _by_head(config: DecoderConfig, x_NX: Array, batch: int) -> Array:
    """[B*T, heads*C] -> [Z, G, T, C]: the query heads of one key/value head are neighbours (G is 1 for k and v)."""
    length, group = x_NX.shape[0] // batch, x_NX.shape[1] // config.kv_size
    x_BTKGC = x_NX.reshape(batch, length, config.num_kv_heads, group, config.head_dim)
    return x_BTKGC.transpose(0, 2, 3, 1, 4).reshape(-1, group, length, config.head_dim)


def _by_token(config: DecoderConfig, x_ZGTC: Array, batch: int) -> Array:
    """The inverse of `_by_head`."""
    _, group, length, head_dim = x_ZGTC.shape
    x_BKGTC = x_ZGTC.reshape(batch, config.num_kv_heads, group, length, head_dim)
    return x_BKGTC.transpose(0, 3, 1, 2, 4).reshape(batch * length, -1)


def _rows(x_ZGTC: Array, start: int, stop: int) -> Array:
    """Positions start..stop-1 of all query heads as rows [Z, R, C] of one matrix product a key/value head."""
    return x_ZGTC[:, :, start:stop].reshape(x_ZGTC.shape[0], -1, x_ZGTC.shape[-1])


# Products of the Z matrices in a stack, named after which axes are summed: a b^T, a b and a^T b.
def _abT(a_ZRC: Array, b_ZSC: Array) -> Array:
    return jax.lax.dot_general(a_ZRC, b_ZSC, (((2,), (2,)), ((0,), (0,))))


def _ab(a_ZRS: Array, b_ZSC: Array) -> Array:
    return jax.lax.dot_general(a_ZRS, b_ZSC, (((2,), (1,)), ((0,), (0,))))


def _aTb(a_ZRS: Array, b_ZRC: Array) -> Array:
    """As (b^T a)^T: the left matrix is then the narrow one, which XLA's CPU kernels multiply faster. The barrier keeps
    the compiler from undoing it."""
    bTa_ZCS = jax.lax.dot_general(b_ZRC, a_ZRS, (((1,), (1,)), ((0,), (0,))))
    return jax.lax.optimization_barrier(bTa_ZCS).transpose(0, 2, 1)


def _wide(dtype: Any) -> Any:
    """Exponentials and sums of half-precision scores are float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _causal(rows: np.ndarray, keys: int, group: int, dtype: Any) -> Array:
    """[1, R, S] added to scores: 0 where a query at one of these positions may look, else NEG_INF."""
    mask_TS = np.where(rows[:, None] >= np.arange(keys)[None, :], 0.0, NEG_INF)
    return jnp.asarray(np.tile(mask_TS, (group, 1))[None], dtype)


def _query_blocks(length: int) -> list[tuple[int, int]]:
    count = min(QUERY_BLOCKS, length)
    edges = [-(-length * i // count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def block_attention(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> Array:
    """Causal attention in blocks of queries; keeps the exponentials of the scores for the backward pass.

    For a block of rows with scores s, row maximum m and sum l = sum_j e_j:

        e = exp(s - m),   o = e v / l,   and backward, with d = do / l:
        dv = e^T d,   ds = e * (d v^T - sum_c d_c o_c),   dq = ds k,   dk = ds^T q.
    """
    return _block_forward(config, q_NQ, k_NK, v_NK, batch)[0]


def _block_forward(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> tuple[Array, Any]:
    length, dtype = q_NQ.shape[0] // batch, q_NQ.dtype
    # The scores' scale 1/sqrt(C) is in the queries' tables.
    q_ZGTC = _rotate(_by_head(config, q_NQ, batch), *_rotation(config, length, dtype, config.head_dim**-0.5))
    k_ZSC = _rotate(_by_head(config, k_NK, batch), *_rotation(config, length, dtype))[:, 0]
    v_ZSC = _by_head(config, v_NK, batch)[:, 0]
    group = q_ZGTC.shape[1]
    kept, contexts = [], []
    for start, stop in _query_blocks(length):
        s_ZRS = _abT(_rows(q_ZGTC, start, stop), k_ZSC[:, :stop]).astype(_wide(dtype))
        s_ZRS = s_ZRS + _causal(np.arange(start, stop), stop, group, s_ZRS.dtype)
        e_ZRS = jnp.exp(s_ZRS - jnp.max(s_ZRS, axis=-1, keepdims=True))
        inverse_ZR1 = 1 / jnp.sum(e_ZRS, axis=-1, keepdims=True)
        e_ZRS = e_ZRS.astype(dtype)
        o_ZRC = (_ab(e_ZRS, v_ZSC[:, :stop]) * inverse_ZR1).astype(dtype)
        kept.append((e_ZRS, inverse_ZR1, o_ZRC))
        contexts.append(o_ZRC.reshape(o_ZRC.shape[0], group, stop - start, -1))
    context_NQ = _by_token(config, jnp.concatenate(contexts, axis=2), batch)
    return context_NQ, (q_ZGTC, k_ZSC, v_ZSC, kept)


def _block_backward(config: DecoderConfig, batch: int, residuals: Any, dcontext_NQ: Array) -> tuple[Array, ...]:
    q_ZGTC, k_ZSC, v_ZSC, kept = residuals
    _, group, length, _ = q_ZGTC.shape
    dtype = q_ZGTC.dtype
    do_ZGTC = _by_head(config, dcontext_NQ, batch)
    blocks = _query_blocks(length)
    dq, dk, dv = [], [], []
    for (start, stop), (e_ZRS, inverse_ZR1, o_ZRC) in zip(blocks, kept, strict=True):
        d_ZRC = (_rows(do_ZGTC, start, stop) * inverse_ZR1).astype(dtype)
        mean_ZR1 = jnp.sum((d_ZRC * o_ZRC).astype(inverse_ZR1.dtype), axis=-1, keepdims=True)
        ds_ZRS = (e_ZRS * (_abT(d_ZRC, v_ZSC[:, :stop]) - mean_ZR1)).astype(dtype)
        dq.append(_ab(ds_ZRS, k_ZSC[:, :stop]).reshape(-1, group, stop - start, config.head_dim))
        dk.append(_aTb(ds_ZRS, _rows(q_ZGTC, start, stop)))
        dv.append(_aTb(e_ZRS, d_ZRC))

    def over_keys(parts: list[Array]) -> Array:
        """Block i knows the keys of blocks 0..i: sum what they say about each stretch of keys. [Z, 1, S, C]"""
        stretches = [
            functools.reduce(jnp.add, [part_ZSC[:, start:stop] for part_ZSC in parts[i:]])
            for i, (start, stop) in enumerate(blocks)
        ]
        return jnp.concatenate(stretches, axis=1)[:, None]

    dq_ZGTC = _rotate_back(jnp.concatenate(dq, axis=2), *_rotation(config, length, dtype, config.head_dim**-0.5))
    dk_Z1SC = _rotate_back(over_keys(dk), *_rotation(config, length, dtype))
    return tuple(_by_token(config, x, batch) for x in (dq_ZGTC, dk_Z1SC, over_keys(dv)))


block_attention.defvjp(_block_forward, _block_backward)


# Long sequences: the same, a tile of TILE positions x TILE keys at a time (Dao et al. 2022, Rabe & Staats 2021). What
# is kept is the output and each row's log-sum-exp; memory grows with T, not with T^2.


def _tiles(x_ZGTC: Array) -> Array:
    """[Z, G, T, C] -> [T/TILE, Z, R, C], filled up with zeros: keys that no real query may look at, and queries whose
    gradient is 0."""
    n_z, group, length, head_dim = x_ZGTC.shape
    x_ZGTC = jnp.pad(x_ZGTC, ((0, 0), (0, 0), (0, -length % TILE), (0, 0)))
    x_ZGITC = x_ZGTC.reshape(n_z, group, -1, TILE, head_dim)
    return x_ZGITC.transpose(2, 0, 1, 3, 4).reshape(-1, n_z, group * TILE, head_dim)


def _untiled(x_IZRC: Array, length: int) -> Array:
    """The inverse of `_tiles`."""
    tiles, n_z, rows, head_dim = x_IZRC.shape
    x_IZGTC = x_IZRC.reshape(tiles, n_z, rows // TILE, TILE, head_dim)
    return x_IZGTC.transpose(1, 2, 0, 3, 4).reshape(n_z, rows // TILE, tiles * TILE, head_dim)[:, :, :length]


def _tile_scores(q_ZRC: Array, k_ZSC: Array, diagonal: Array) -> Array:
    s_ZRS = _abT(q_ZRC, k_ZSC).astype(_wide(q_ZRC.dtype))
    mask = _causal(np.arange(TILE), TILE, q_ZRC.shape[1] // TILE, s_ZRS.dtype)
    return s_ZRS + jnp.where(diagonal, mask, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def tile_attention(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> Array:
    """Causal attention whose memory is linear in the length: a running softmax over tiles, recomputed backward."""
    return _tile_forward(config, q_NQ, k_NK, v_NK, batch)[0]


def _tile_forward(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> tuple[Array, Any]:
    length, dtype = q_NQ.shape[0] // batch, q_NQ.dtype
    scale = config.head_dim**-0.5
    q_IZRC = _tiles(_rotate(_by_head(config, q_NQ, batch), *_rotation(config, length, dtype, scale)))
    k_IZSC = _tiles(_rotate(_by_head(config, k_NK, batch), *_rotation(config, length, dtype)))
    v_IZSC = _tiles(_by_head(config, v_NK, batch))

    def one_query_tile(i: Array) -> tuple[Array, Array]:
        def one_key_tile(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top_ZR1, sum_ZR1, o_ZRC = carry  # maximum so far; sum and weighted values relative to it
            s_ZRS = _tile_scores(q_IZRC[i], k_IZSC[j], i == j)
            new_ZR1 = jnp.maximum(top_ZR1, jnp.max(s_ZRS, axis=-1, keepdims=True))
            e_ZRS, shrink_ZR1 = jnp.exp(s_ZRS - new_ZR1), jnp.exp(top_ZR1 - new_ZR1)
            sum_ZR1 = sum_ZR1 * shrink_ZR1 + jnp.sum(e_ZRS, axis=-1, keepdims=True)
            return new_ZR1, sum_ZR1, o_ZRC * shrink_ZR1 + _ab(e_ZRS.astype(dtype), v_IZSC[j])

        zero_ZRC = jnp.zeros(q_IZRC.shape[1:], _wide(dtype))
        zero_ZR1 = zero_ZRC[..., :1]
        top_ZR1, sum_ZR1, o_ZRC = jax.lax.fori_loop(0, i + 1, one_key_tile, (zero_ZR1 + NEG_INF, zero_ZR1, zero_ZRC))
        return (o_ZRC / sum_ZR1).astype(dtype), top_ZR1 + jnp.log(sum_ZR1)

    o_IZRC, logsum_IZR1 = jax.lax.map(one_query_tile, jnp.arange(q_IZRC.shape[0]))
    context_NQ = _by_token(config, _untiled(o_IZRC, length), batch)
    return context_NQ, (q_IZRC, k_IZSC, v_IZSC, o_IZRC, logsum_IZR1)


def _tile_backward(config: DecoderConfig, batch: int, residuals: Any, dcontext_NQ: Array) -> tuple[Array, ...]:
    q_IZRC, k_IZSC, v_IZSC, o_IZRC, logsum_IZR1 = residuals
    length, dtype = dcontext_NQ.shape[0] // batch, q_IZRC.dtype
    do_IZRC = _tiles(_by_head(config, dcontext_NQ, batch))
    mean_IZR1 = jnp.sum((do_IZRC * o_IZRC).astype(logsum_IZR1.dtype), axis=-1, keepdims=True)

    def one_query_tile(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        def one_key_tile(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_ZRC, dk_IZSC, dv_IZSC = carry
            p_ZRS = jnp.exp(_tile_scores(q_IZRC[i], k_IZSC[j], i == j) - logsum_IZR1[i])
            ds_ZRS = (p_ZRS * (_abT(do_IZRC[i], v_IZSC[j]) - mean_IZR1[i])).astype(dtype)
            return (
                dq_ZRC + _ab(ds_ZRS, k_IZSC[j]),
                dk_IZSC.at[j].add(_aTb(ds_ZRS, q_IZRC[i])),
                dv_IZSC.at[j].add(_aTb(p_ZRS.astype(dtype), do_IZRC[i])),
            )

        dq_ZRC, *carry = jax.lax.fori_loop(0, i + 1, one_key_tile, (jnp.zeros_like(q_IZRC[0]), *carry))
        return tuple(carry), dq_ZRC  # type: ignore[return-value]

    start = (jnp.zeros_like(k_IZSC), jnp.zeros_like(v_IZSC))
    (dk_IZSC, dv_IZSC), dq_IZRC = jax.lax.scan(one_query_tile, start, jnp.arange(q_IZRC.shape[0]))
    dq_ZGTC, dk_Z1SC, dv_Z1SC = (_untiled(x, length) for x in (dq_IZRC, dk_IZSC, dv_IZSC))
    dq_ZGTC = _rotate_back(dq_ZGTC, *_rotation(config, length, dtype, config.head_dim**-0.5))
    dk_Z1SC = _rotate_back(dk_Z1SC, *_rotation(config, length, dtype))
    return tuple(_by_token(config, x, batch) for x in (dq_ZGTC, dk_Z1SC, dv_Z1SC))


tile_attention.defvjp(_tile_forward, _tile_backward)


def library_attention(
    config: DecoderConfig,
    q_NQ: Array,
    k_NK: Array,
    v_NK: Array,
    batch: int,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Array:
    """`jax.nn.dot_product_attention` after RoPE, for accelerators; implementation "xla" or "cudnn"."""
    length, dtype = q_NQ.shape[0] // batch, q_NQ.dtype
    cos_11TC, sin_11TC = _rotation(config, length, dtype)
    cos_1T1C, sin_1T1C = cos_11TC.swapaxes(1, 2), sin_11TC.swapaxes(1, 2)
    q_BTHC, k_BTKC, v_BTKC = (x.reshape(batch, length, -1, config.head_dim) for x in (q_NQ, k_NK, v_NK))
    context_BTHC = jax.nn.dot_product_attention(
        _rotate(q_BTHC, cos_1T1C, sin_1T1C),
        _rotate(k_BTKC, cos_1T1C, sin_1T1C),
        v_BTKC,
        is_causal=True,
        implementation=implementation,
    )
    return context_BTHC.reshape(batch * length, -1)


def choose_attention(backend: str, dtype: Any, length: int) -> Callable[..., Array]:
    """Which attention a backend runs.

    On a GPU cuDNN's fused kernel takes half precision only; JAX's own form float32, up to LONG tokens: it keeps the
    scores. It computes them in float32 always, so float64 goes the way of a CPU: `block_attention`, and
    `tile_attention` for long sequences.
    """
    if backend in ("gpu", "cuda") and dtype != jnp.float64:
        if dtype in (jnp.bfloat16, jnp.float16):
            return functools.partial(library_attention, implementation="cudnn")
        return tile_attention if length > LONG else library_attention
    return tile_attention if length > LONG else block_attention


def attention(config: DecoderConfig, q_NQ: Array, k_NK: Array, v_NK: Array, batch: int) -> Array:
    """`model.causal_attention`, by whatever is fastest here."""
    return choose_attention(jax.default_backend(), q_NQ.dtype, q_NQ.shape[0] // batch)(config, q_NQ, k_NK, v_NK, batch)


# ------------------------------------------------------------------------------------------------- products and SwiGLU


@jax.custom_vjp
def _narrow_product(x_ND: Array, w_DF: Array) -> Array:
    return x_ND @ w_DF


def _narrow_forward(x_ND: Array, w_DF: Array) -> tuple[Array, tuple[Array, Array]]:
    return x_ND @ w_DF, (x_ND, w_DF)


def _narrow_backward(residuals: tuple[Array, Array], dy_NF: Array) -> tuple[Array, Array]:
    x_ND, w_DF = residuals
    dw_FD = jax.lax.optimization_barrier(jax.lax.dot_general(dy_NF, x_ND, (((0,), (0,)), ((), ()))))
    return dy_NF @ w_DF.T, dw_FD.T


_narrow_product.defvjp(_narrow_forward, _narrow_backward)


def product(x_ND: Array, w_DF: Array) -> Array:
    """x w; where the output is narrower than the input, with the weight gradient as (dy^T x)^T."""
    return _narrow_product(x_ND, w_DF) if w_DF.shape[1] < w_DF.shape[0] else x_ND @ w_DF


@jax.custom_vjp
def gated_product(gate_NF: Array, up_NF: Array, down_FD: Array) -> tuple[Array, Array]:
    """`model.gated_product`, keeping nothing but its inputs: SwiGLU is computed again on the way back."""
    return model.gated_product(gate_NF, up_NF, down_FD)


def _gated_forward(*inputs: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    return model.gated_product(*inputs), inputs


def _gated_backward(inputs: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array, ...]:
    gate_NF, up_NF, down_FD = inputs
    dhidden_NF, dout_ND = cotangents
    # Nothing is computed again before the cotangent is there, or it would be kept from the forward pass on. A zero made
    # of the cotangent sees to that: XLA drops barriers on a CPU before it decides what to compute when.
    gate_NF = gate_NF + 0 * dout_ND[0, 0]
    dproduct_NF, ddown_FD = jax.vjp(product, model.swiglu(gate_NF, up_NF), down_FD)[1](dout_ND)
    return *_swiglu_backward(gate_NF, up_NF, dhidden_NF + dproduct_NF), ddown_FD


def _swiglu_backward(gate_NF: Array, up_NF: Array, dy_NF: Array) -> tuple[Array, Array]:
    """With a = sigmoid(g): silu'(g) = a (1 + g (1 - a))."""
    sigmoid_NF = jax.nn.sigmoid(gate_NF)
    return dy_NF * up_NF * sigmoid_NF * (1 + gate_NF * (1 - sigmoid_NF)), dy_NF * gate_NF * sigmoid_NF


gated_product.defvjp(_gated_forward, _gated_backward)

OPERATIONS = Operations(attention, product, gated_product)


_step = jax.make_user_context("fast")  # a part of every compiled program's key


def computed(step: str) -> contextlib.AbstractContextManager[None]:
    """Within it everything is computed by a path of STEPS.

    Raises:
      ValueError: there is no such path.
    """
    if step not in STEPS:
        raise ValueError(f"step {step!r} is unknown; choose one of {', '.join(STEPS)}")
    return _step(step)


def is_fast() -> bool:
    """Whether the fast path computes."""
    return _step.value == "fast"


def operations() -> Operations:
    """What layers are computed with."""
    return OPERATIONS if is_fast() else model.PLAIN


def forward(
    config: DecoderConfig,
    weights: Weights,
    tokens_BT: Int[Array, "B T"],
    embedded_ND: Float[Array, "N D"] | None = None,
) -> Activations:
    """`model.forward` on the path of `computed`."""
    return model.forward(config, weights, tokens_BT, embedded_ND, operations())


# -------------------------------------------------------------------------------------------------------------- losses


@jax.custom_vjp
def _output_losses(
    student_NV: Array, teacher_NV: Array, labels_N: Array, temperature: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums over tokens of KL(teacher || student) at a temperature and of cross-entropy at temperature 1.

    With q = softmax(s), q' = softmax(s / tau), p = softmax(t / tau) and y the label:

        KL = sum_v p_v (t_v - s_v) / tau + log(sum e^(s/tau) / sum e^(t/tau)),   dKL/ds = (q' - p) / tau
        CE = log sum e^s - s_y,                                                  dCE/ds = q - onehot(y)

    all relative to the row's maximum. The log of the ratio, rather than the difference of two logs, keeps a small KL
    (a high temperature) free of their rounding.
    """
    return _output_forward(student_NV, teacher_NV, labels_N, temperature)[0]


def _output_forward(student_NV: Array, teacher_NV: Array, labels_N: Array, temperature: Array) -> tuple[Any, Any]:
    counted_N = labels_N != IGNORE
    s_NV = student_NV - jnp.max(student_NV, axis=-1, keepdims=True)
    t_NV = teacher_NV - jnp.max(teacher_NV, axis=-1, keepdims=True)
    e_NV, soft_NV, target_NV = jnp.exp(s_NV), jnp.exp(s_NV / temperature), jnp.exp(t_NV / temperature)
    sum_N, soft_sum_N, target_sum_N = (jnp.sum(x_NV, axis=-1) for x_NV in (e_NV, soft_NV, target_NV))
    cross_N = jnp.sum(target_NV * (t_NV - s_NV), axis=-1) / (target_sum_N * temperature)
    kl = jnp.sum(cross_N + jnp.log(soft_sum_N / target_sum_N))
    picked_N = jnp.take_along_axis(s_NV, jnp.maximum(labels_N, 0)[:, None], axis=-1)[:, 0]
    ce = jnp.sum(jnp.where(counted_N, jnp.log(sum_N) - picked_N, 0))
    inverse = tuple(1 / x_N[:, None] for x_N in (sum_N, soft_sum_N, target_sum_N))
    kept = (e_NV, soft_NV, target_NV, *inverse, labels_N, temperature)
    return (kl, ce), kept


def _output_backward(kept: Any, cotangents: tuple[Array, Array]) -> tuple[Array | None, ...]:
    e_NV, soft_NV, target_NV, inverse_N1, soft_inverse_N1, target_inverse_N1, labels_N, temperature = kept
    dkl, dce = cotangents
    dkl = dkl / temperature
    counted_N1 = (labels_N != IGNORE)[:, None].astype(e_NV.dtype)
    is_label_NV = jax.lax.broadcasted_iota(labels_N.dtype, e_NV.shape, 1) == labels_N[:, None]
    ds_NV = (
        e_NV * (inverse_N1 * counted_N1 * dce)
        + soft_NV * (soft_inverse_N1 * dkl)
        - target_NV * (target_inverse_N1 * dkl)
        - jnp.where(is_label_NV, dce, 0)
    )
    return ds_NV, None, None, None


_output_losses.defvjp(_output_forward, _output_backward)


def output_losses(
    student_NV: Array, teacher_NV: Array | None, labels_N: Array | None, temperature: Array | float
) -> tuple[Array, Array]:
    """`losses.output_losses`, KL and cross-entropy in one pass. No gradient reaches the teacher."""
    if teacher_NV is None or labels_N is None:  # only one of the two: nothing to share
        return losses.output_losses(student_NV, teacher_NV, labels_N, temperature)
    teacher_NV, temperature = jax.lax.stop_gradient((teacher_NV, jnp.asarray(temperature, student_NV.dtype)))
    return _output_losses(student_NV, teacher_NV, labels_N, temperature)


def _product_with(x_ND: Array, matrix: Array, axis: int) -> Array:
    """x times a matrix, summed over an axis of it: no transpose is made that a loop would be handed as a copy."""
    return jax.lax.dot_general(x_ND, matrix, (((1,), (axis,)), ((), ())))


@jax.custom_vjp
def _weighted_losses(*arguments: Any) -> tuple[Array, Array, Array]:
    """The first of what `_weighted_forward` returns, from the same arguments."""
    return _weighted_forward(*arguments)[0]


def _weighted_forward(
    final_NX: Array,
    unembedding: Unembedding,
    teacher: tuple[Array, Unembedding | None] | None,
    labels_N: Array | None,
    temperature: Array,
    share: tuple[Array, Array],
) -> tuple[Any, Any]:
    """share . (KL, CE), KL and CE, the latter two as `output_losses` sums them, and the gradient of the first.

    Only the first has a gradient. That of one number is known up to a factor before the backward pass, and is computed
    while the logits are there (Hsu et al. 2024, arXiv 2410.10989). `teacher`: what its unembedding reads and that, or
    its logits and None.
    """
    tokens, dtype, matrix = len(final_NX), final_NX.dtype, unembedding.matrix
    features, vocabulary = (1, 0) if unembedding.tied else (0, 1)  # axes
    parts = -(-tokens * matrix.shape[vocabulary] // most_logits(jax.default_backend()))

    def cut(x_N: Array, fill: int = 0) -> Array:
        """[N, ...] -> [R, parts, ...]: every parts-th token to a part, so that each is spread over all devices as the
        whole is. Tokens that fill up the last row have equal predictions, no label and features of 0."""
        x_N = jnp.pad(x_N, ((0, -tokens % parts), *((0, 0),) * (x_N.ndim - 1)), constant_values=fill)
        return x_N.reshape(-1, parts, *x_N.shape[1:])

    read = jax.tree.map(cut, (final_NX, None if teacher is None else teacher[0]))
    labels = None if labels_N is None else cut(labels_N, IGNORE)
    wide = _wide(dtype)

    def one_part(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], Array]:
        kl, ce, dmatrix = carry
        (final_RX, teacher_RV), labels_R = jax.tree.map(lambda x: x[:, i], (read, labels))
        if teacher is not None:
            if teacher[1] is not None:
                teacher_RV = _product_with(teacher_RV, teacher[1].matrix, 1 if teacher[1].tied else 0)
            teacher_RV = teacher_RV.astype(wide)
        student_RV = _product_with(final_RX, matrix, features).astype(wide)
        sums, pull = jax.vjp(lambda s_RV: output_losses(s_RV, teacher_RV, labels_R, temperature), student_RV)
        dstudent_RV = pull(share)[0].astype(dtype)
        sides = (dstudent_RV, final_RX) if unembedding.tied else (final_RX, dstudent_RV)
        dmatrix = dmatrix + jax.lax.dot_general(*sides, (((0,), (0,)), ((), ())))
        return (kl + sums[0], ce + sums[1], dmatrix), _product_with(dstudent_RV, matrix, vocabulary)

    zero = jnp.zeros((), wide)
    start = (zero, zero, jnp.zeros(matrix.shape, wide))
    (kl, ce, dmatrix), dfinal = jax.lax.scan(one_part, start, jnp.arange(parts))
    dfinal_NX = dfinal.swapaxes(0, 1).reshape(-1, final_NX.shape[1])[:tokens]
    gradients = dfinal_NX, unembedding.replace(matrix=dmatrix.astype(dtype))  # type: ignore[attr-defined]
    return (share[0] * kl + share[1] * ce, kl, ce), gradients


def _weighted_backward(gradients: tuple[Array, Unembedding], cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
    return *jax.tree.map(lambda x: cotangents[0].astype(x.dtype) * x, gradients), None, None, None, None


_weighted_losses.defvjp(_weighted_forward, _weighted_backward)


def weighted_losses(
    student: Activations,
    teacher: Activations | None,
    labels_N: Array | None,
    temperature: Array | float,
    share: tuple[Array | float, Array | float],
) -> tuple[Array, Array, Array]:
    """The sums of `output_losses` weighted by `share` and added, and both sums, from logits that are never whole.

    The weighted sum alone has a gradient, which reaches the student alone. A teacher whose unembedding is not known
    is read from its logits.
    """
    assert student.unembedding is not None
    read = None
    if teacher is not None:
        read = (teacher.logits_NV if teacher.unembedding is None else teacher.final_ND, teacher.unembedding)
    wide = _wide(student.final_ND.dtype)
    temperature, share = jax.tree.map(lambda x: jnp.asarray(x, wide), (temperature, share))
    read, temperature, share = jax.lax.stop_gradient((read, temperature, share))
    return _weighted_losses(student.final_ND, student.unembedding, read, labels_N, temperature, share)


def most_logits(backend: str) -> int:
    """How many logits are held at once: the losses of a batch that has more are computed some tokens at a time."""
    return MOST_LOGITS if backend == "cpu" else MOST_LOGITS_ACCELERATOR


def has_many_logits(acts: Activations) -> bool:
    """Whether the losses of a batch are computed some tokens at a time."""
    return acts.unembedding is not None and acts.logits_NV.size > most_logits(jax.default_backend())


@jax.custom_vjp
def _gram_form(d_NX: Array, gram_XX: Array) -> Array:
    """sum_n d_n M M^T d_n^T for the symmetric Gram matrix of a frozen M: its gradient is 2 d G, computed already."""
    return jnp.sum(d_NX * (d_NX @ gram_XX))


def _gram_forward(d_NX: Array, gram_XX: Array) -> tuple[Array, Array]:
    through_NX = d_NX @ gram_XX
    return jnp.sum(d_NX * through_NX), through_NX


def _gram_backward(through_NX: Array, dy: Array) -> tuple[Array, None]:
    return 2 * dy * through_NX, None


_gram_form.defvjp(_gram_forward, _gram_backward)


def squared_error(pair: ClonePair) -> Array:
    """`ClonePair.squared_error`, with one product in place of three where it goes through a matrix."""
    if pair.through is None or pair.through.shape[0] > pair.through.shape[1]:
        return pair.squared_error()
    through_XY = jax.lax.stop_gradient(pair.through)
    return _gram_form(pair.student - pair.teacher, through_XY @ through_XY.T)


def evaluate_objective(
    settings: objective.Objective,
    weights: objective.LossWeights,
    pairs: list[ClonePair],
    teacher_acts: Activations | None,
    student_acts: Activations,
    labels_BT: Int[Array, "B T"],
) -> objective.Terms:
    """`objective.evaluate_objective` on the path of `computed`."""
    arguments = (settings, weights, pairs, teacher_acts, student_acts, labels_BT)
    if not is_fast():
        return objective.evaluate_objective(*arguments)
    return objective.evaluate_objective(
        *arguments,
        output_losses=output_losses,
        squared_error=squared_error,
        weighted_losses=weighted_losses if has_many_logits(student_acts) else None,
    )
