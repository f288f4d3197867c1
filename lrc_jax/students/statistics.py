"""Second moments of the teacher's activations: starts from its principal components, and whitening."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import batches
from lrc_jax.model import DecoderConfig, Weights


def _counted(config: DecoderConfig, pool: Pool) -> Iterator[tuple[Array, np.ndarray]]:
    """A pool's tokens in batches of one size, and which of their sequences count: the last batch is filled up."""
    parts, n = batches(pool, config.vocab_size)
    size = parts[0].size
    for i, part in enumerate(parts):
        yield part.tokens_NT, np.arange(i * size, (i + 1) * size) < n


@functools.partial(jax.jit, static_argnames=("config",))
def _moments(config: DecoderConfig, teacher: Weights, tokens_BT: Array, counted_B: Array) -> tuple[Array, Array]:
    """Sums over the tokens of the sequences that count."""
    acts = forward(config, teacher, tokens_BT)
    counted_N1 = jnp.repeat(counted_B.astype(acts.final_ND.dtype), tokens_BT.shape[1])[:, None]
    residual_DD = jnp.zeros((config.hidden_size, config.hidden_size))
    for x_ND in (acts.embedded_ND, *acts.hidden_ND):
        # Each point of the stream counts alike, whatever its scale: norms grow with depth.
        kept_ND = x_ND * counted_N1
        power = jnp.sum(kept_ND * kept_ND) / (jnp.sum(counted_N1) * config.hidden_size)
        residual_DD = residual_DD + kept_ND.T @ kept_ND / power
    return residual_DD, acts.final_ND.T @ (acts.final_ND * counted_N1)


def second_moments(config: DecoderConfig, teacher: Weights, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Mean outer products [D, D], float64, of (a) the residual stream, each point of it scaled to unit power, and
    (b) the features that the unembedding reads."""
    residual = final = np.zeros((config.hidden_size, config.hidden_size))
    for tokens_BT, counted_B in _counted(config, pool):
        a, b = _moments(config, teacher, tokens_BT, counted_B)
        residual, final = residual + np.asarray(a, np.float64), final + np.asarray(b, np.float64)
    tokens = pool.size * pool.tokens_NT.shape[1]
    return residual / tokens, final / tokens


#: What each class of matrices reads.
INPUTS = {"q_DQ": "attn_in", "k_DK": "attn_in", "v_DK": "attn_in", "o_QD": "context", "gate_DF": "mlp_in",
          "up_DF": "mlp_in", "down_FD": "mlp_hidden"}  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("sums",))
def _add_inputs(
    config: DecoderConfig, teacher: Weights, tokens_BT: Array, counted_B: Array, sums: dict[str, Array]
) -> dict[str, Array]:
    acts = forward(config, teacher, tokens_BT)
    counted_N1 = jnp.repeat(counted_B.astype(acts.final_ND.dtype), tokens_BT.shape[1])[:, None]
    found = {"tokens": jnp.zeros(config.vocab_size).at[tokens_BT.reshape(-1)].add(counted_N1[:, 0])}
    found["final"] = acts.final_ND.T @ (acts.final_ND * counted_N1)
    for i, layer in enumerate(acts.layers):
        read = {"attn_in": layer.attn_in_ND, "context": layer.context_NQ, "mlp_in": layer.mlp_in_ND,
                "mlp_hidden": layer.mlp_hidden_NF}  # fmt: skip
        found |= {f"layers.{i}.{site}": x.T @ (x * counted_N1) for site, x in read.items()}
    return {name: sums[name] + value for name, value in found.items()}


def input_moments(config: DecoderConfig, teacher: Weights, pool: Pool) -> dict[str, np.ndarray]:
    """Mean outer products of what every matrix reads, float64: `layers.I.SITE` and `final` [X, X], and `tokens`, the
    tokens' frequencies [V], for the embedding (whose input is an indicator)."""
    widths = {"attn_in": config.hidden_size, "context": config.q_size, "mlp_in": config.hidden_size,
              "mlp_hidden": config.intermediate_size}  # fmt: skip
    sums = {f"layers.{i}.{site}": jnp.zeros((w, w)) for i in range(config.num_layers) for site, w in widths.items()}
    sums |= {"final": jnp.zeros((config.hidden_size,) * 2), "tokens": jnp.zeros(config.vocab_size)}
    for tokens_BT, counted_B in _counted(config, pool):
        sums = _add_inputs(config, teacher, tokens_BT, counted_B, sums)
    tokens = pool.size * pool.tokens_NT.shape[1]
    return {name: np.asarray(value, np.float64) / tokens for name, value in sums.items()}


def residual_basis(kind: str, moment_DD: np.ndarray, rank: int) -> np.ndarray | None:
    """Orthonormal basis [D, rank] of the residual stream for a start: "pca" its principal components, "channels"
    its most active coordinates, "random" and "fan_in" None (a random start)."""
    if kind in ("random", "fan_in"):
        return None
    if kind == "pca":
        return np.linalg.eigh(moment_DD)[1][:, ::-1][:, :rank].astype(np.float32)
    if kind == "channels":
        chosen = np.sort(np.argsort(np.diag(moment_DD))[::-1][:rank])
        return np.eye(len(moment_DD), dtype=np.float32)[:, chosen]
    raise InputError(f"student.init: {kind!r} is unknown; choose random, fan_in, pca or channels")


def inverse_square_root(moment_DD: np.ndarray, floor: float = 1e-7) -> np.ndarray:
    """Symmetric inverse square root [D, D]; directions of less than `floor` of the largest power are held at it."""
    values, vectors = np.linalg.eigh(moment_DD)
    values = np.maximum(values, floor * values[-1])
    return ((vectors / np.sqrt(values)[None, :]) @ vectors.T).astype(np.float32)
