"""A log-bilinear bigram model, fitted to counts: the smallest language model with a rank to choose.

logits(y | x) = (U V^T)[x, y] + b[y], U and V of rank r, on the bigram counts of the training sequences (full batch).
One fit costs a twentieth of a second and the language's conditionals are known, so that r*(N) can be traced over
decades of N. Spectra k^-s of the true logits set the approximation exponent; s = 1 is where theory puts r* ~ sqrt(N).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lrc_jax.data.synthetic import MarkovTables
from lrc_jax.errors import DivergedError

START = 0.3  # scale of the random start


@dataclasses.dataclass(frozen=True)
class BilinearFit:
    """Losses of a fitted model, nats per token.

    Attributes:
      train: cross-entropy on the counts.
      train_truth: the true conditionals' cross-entropy on the same counts (the control variate).
      excess: KL from the language to the model, exact.
      losses: training loss at 20 moments of the fit.
    """

    train: float
    train_truth: float
    excess: float
    losses: np.ndarray

    @property
    def gap(self) -> float:
        """Population minus training loss, with the truth as control variate."""
        return self.excess - (self.train - self.train_truth)


def bigram_counts(sequences_NT1: np.ndarray, vocab: int) -> np.ndarray:
    """Counts [V, V] of (token, next token)."""
    before, after = sequences_NT1[:, :-1].reshape(-1), sequences_NT1[:, 1:].reshape(-1)
    return np.bincount(before * vocab + after, minlength=vocab * vocab).reshape(vocab, vocab)


def n_parameters(rank: int, vocab: int) -> int:
    """Dimension of the model: r(2V - r) of U V^T up to its gauge, and V biases."""
    return rank * (2 * vocab - rank) + vocab


@functools.partial(jax.jit, static_argnames=("rank",))
def _fit(
    rank: int, counts_VV: Array, joint_VV: Array, log_conditional_VV: Array, key: Array, steps: Array, rate: Array
) -> tuple[Array, Array, Array, Array]:
    vocab = counts_VV.shape[0]
    share_VV = counts_VV / jnp.sum(counts_VV)
    key_u, key_v = jax.random.split(key)
    scale = START * rank**-0.25
    params = {
        "u": scale * jax.random.normal(key_u, (vocab, rank)),
        "v": scale * jax.random.normal(key_v, (rank, vocab)),
        "b": jnp.zeros(vocab),
    }
    adam = optax.scale_by_adam()

    def log_model(params: dict[str, Array]) -> Array:
        return jax.nn.log_softmax(params["u"] @ params["v"] + params["b"][None, :], axis=-1)

    def loss(params: dict[str, Array]) -> Array:
        return -jnp.sum(share_VV * log_model(params))

    def body(i: Array, carry: tuple[dict[str, Array], optax.OptState, Array]) -> tuple:
        params, opt_state, log_20 = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = adam.update(grads, opt_state)
        factor = rate * 0.5 * (1 + jnp.cos(jnp.pi * i / steps))
        params = jax.tree.map(lambda p, u: p - factor * u, params, updates)
        return params, opt_state, log_20.at[i * 20 // steps].set(value)

    params, _, log_20 = jax.lax.fori_loop(0, steps, body, (params, adam.init(params), jnp.zeros(20)))
    log_q = log_model(params)
    train, truth = -jnp.sum(share_VV * log_q), -jnp.sum(share_VV * log_conditional_VV)
    return train, truth, jnp.sum(joint_VV * (log_conditional_VV - log_q)), log_20


def fit_bilinear(
    tables: MarkovTables, counts_VV: np.ndarray | None, rank: int, key: Array, *, steps: int, learning_rate: float
) -> BilinearFit:
    """Fit by Adam with a cosine schedule; counts None fits the population itself (unlimited samples).

    Raises:
      DivergedError: the loss is not finite.
    """
    conditional_VV = tables.conditional[0]
    joint_VV = tables.stationary[0][:, None] * conditional_VV
    counts = joint_VV if counts_VV is None else counts_VV
    out = _fit(
        rank,
        jnp.asarray(counts, jnp.float32),
        jnp.asarray(joint_VV, jnp.float32),
        jnp.asarray(np.log(conditional_VV), jnp.float32),
        key,
        jnp.asarray(steps, jnp.int32),
        jnp.asarray(learning_rate, jnp.float32),
    )
    train, truth, excess, losses = out
    fit = BilinearFit(float(train), float(truth), float(excess), np.asarray(losses))
    if not np.isfinite(fit.train):
        raise DivergedError(f"the bilinear fit's loss is {fit.train}; lower optimizer.learning_rate")
    return fit
