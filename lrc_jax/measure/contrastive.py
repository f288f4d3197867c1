"""InfoNCE: a lower bound on mutual information that assumes nothing of the distribution (van den Oord et al. 2018).

    I(x; y) >= E [ f(x_i, y_i) - ln (1/K) sum_j exp f(x_j, y_i) ] <= ln K

over K independent pairs, for any critic f that was not fitted to them. It cannot see information beyond ln K, so that
values near ln K are called saturated and only say "at least".
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lrc_jax.measure.information import one_token_a_document, split_documents

SATURATED_WITHIN = 1.0  # nats below ln K
ROUND = 50  # training steps between looks at the validation pairs


class InfoNCE(NamedTuple):
    """A held-out bound (nats).

    Attributes:
      value: the bound; its expectation is at most the information, and at most `ceiling`.
      standard_error: over anchors.
      ceiling: ln K.
      saturated: value > ln K - 1: the information may be anything above.
    """

    value: float
    standard_error: float
    ceiling: float
    saturated: bool


def _whiten(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Centred and whitened by the training part."""
    mean = x[train].mean(axis=0)
    covariance = np.atleast_2d(np.cov(x[train], rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    scale = 1 / np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    return (x - mean) @ (vectors * scale)


def _init_critic(key: Array, d_x: int, d_y: int, width: int, embedding: int) -> dict[str, Any]:
    def mlp(key: Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    k_x, k_y = jax.random.split(key)
    return {
        "x": mlp(k_x, (2 * d_x, width, width, embedding)),
        "y": mlp(k_y, (2 * d_y, width, width, embedding)),
        "gain": jnp.ones(()),
        "scale": jnp.zeros(()),
    }


def _embed(layers: list[dict[str, Array]], x: Array) -> Array:
    # The squashed copy keeps heavy tails from ruling the first layer.
    x = jnp.concatenate([x / (1 + jnp.abs(x)), jnp.sign(x) * jnp.log1p(jnp.abs(x))], axis=-1)
    for i, layer in enumerate(layers):
        x = x @ layer["w"] + layer["b"][None, :]
        if i + 1 < len(layers):
            x = jax.nn.gelu(x)
    return x


def _scores(critic: dict[str, Any] | None, rho: Array, x_Kd: Array, y_Kd: Array) -> Array:
    """f(x_j, y_i) [i, j], up to terms of y_i alone, which cancel.

    The Gaussian part is the log density ratio of a pair with canonical correlations rho in canonical coordinates; the
    learned part is a product of two embeddings.
    """
    k = rho.shape[0]
    u, v = x_Kd[:, :k], y_Kd[:, :k]
    weight = rho / (1 - rho * rho)
    gaussian = v @ (weight[None, :] * u).T - 0.5 * ((u * u) @ (rho * weight))[None, :]
    if critic is None:
        return gaussian
    return critic["gain"] * gaussian + critic["scale"] * (_embed(critic["y"], y_Kd) @ _embed(critic["x"], x_Kd).T)


def _terms(critic: dict[str, Any] | None, rho: Array, x_Kd: Array, y_Kd: Array) -> Float[Array, "K"]:
    scores = _scores(critic, rho, x_Kd, y_Kd)
    count = scores.shape[0]
    return jnp.diagonal(scores) - jax.nn.logsumexp(scores, axis=1) + math.log(count)


@functools.partial(jax.jit, static_argnames=("rounds", "batch"))
def _fit(
    critic: dict[str, Any],
    rho: Array,
    train: tuple[Array, Array],
    validation: tuple[Array, Array],
    key: Array,
    rounds: int,
    batch: int,
    learning_rate: Array | float,
) -> dict[str, Any]:
    """Adam on the bound; the critic that does best on the validation pairs is kept (the first one is the Gaussian
    critic), because an over-trained critic gives a valid bound far below the information."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, rounds * ROUND))
    x, y = train

    def step(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
        critic, state = carry
        chosen = jax.random.randint(key, (batch,), 0, x.shape[0])
        grads = jax.grad(lambda c: -jnp.mean(_terms(c, rho, x[chosen], y[chosen])))(critic)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to an integer step
            updates, state = optimizer.update(grads, state, critic)
        return (optax.apply_updates(critic, updates), state), None

    def visit(carry: tuple[Any, Any, Any, Array], keys: Array) -> tuple[tuple[Any, Any, Any, Array], None]:
        critic, state, best, best_value = carry
        (critic, state), _ = jax.lax.scan(step, (critic, state), keys)
        value = jnp.mean(_terms(critic, rho, *validation))
        best = jax.tree.map(lambda new, old: jnp.where(value > best_value, new, old), critic, best)
        return (critic, state, best, jnp.maximum(value, best_value)), None

    start = (critic, optimizer.init(critic), critic, jnp.mean(_terms(critic, rho, *validation)))
    (_, _, best, _), _ = jax.lax.scan(visit, start, jax.random.split(key, (rounds, ROUND)))
    return best


_terms_jit = jax.jit(_terms)


def infonce(
    x_NX: Float[np.ndarray, "N X"],
    y_NY: Float[np.ndarray, "N Y"],
    documents_N: Int[np.ndarray, "N"],
    rng: np.random.Generator,
    *,
    steps: int = 0,
    train_share: float = 0.5,
    negatives: int = 4096,
    draws: int = 1,
    batch: int = 512,
    width: int = 128,
    embedding: int = 32,
    learning_rate: float = 2e-3,
) -> InfoNCE:
    """InfoNCE on held-out documents.

    Args:
      x_NX, y_NY: the pair (add the smoothing noise to y first).
      documents_N: document of each token; the critic is fitted on one part of the documents and scored on the rest.
        Each set of K pairs has one token per document: tokens of one document are no independent negatives.
      rng: of tokens, batches and the critic's start.
      steps: training steps of the learned part of the critic, in rounds of 50; 0 keeps the Gaussian critic, the
        optimal one for Gaussian pairs, and valid for all.
      train_share: share of the documents for fitting.
      negatives: K, at most the held-out documents.
      draws: sets of K pairs that are averaged.
      batch, width, embedding, learning_rate: of the learned critic.
    """
    x, y = np.asarray(x_NX, np.float64), np.asarray(y_NY, np.float64)
    train = split_documents(documents_N, train_share)
    x, y = _whiten(x, train), _whiten(y, train)
    u, rho, vt = np.linalg.svd(x[train].T @ y[train] / train.sum())
    x, y, rho = x @ u, y @ vt.T, np.minimum(rho, 1 - 1e-6)
    x32, y32, rho32 = (np.asarray(v, np.float32) for v in (x, y, rho))

    critic = None
    if steps:
        k_init, k_fit = jax.random.split(jax.random.key(int(rng.integers(2**31))))
        critic = jax.jit(_init_critic, static_argnums=(1, 2, 3, 4))(k_init, x.shape[1], y.shape[1], width, embedding)
        fitted = np.flatnonzero(train & split_documents(documents_N, 0.75 * train_share))
        watched = np.flatnonzero(train & ~split_documents(documents_N, 0.75 * train_share))
        watched = watched[one_token_a_document(documents_N[watched], rng, 2048)]
        pairs, checks = (x32[fitted], y32[fitted]), (x32[watched], y32[watched])
        critic = _fit(critic, rho32, pairs, checks, k_fit, max(steps // ROUND, 1), batch, learning_rate)

    held_out = np.flatnonzero(~train)
    terms = []
    for _ in range(draws):
        chosen = held_out[one_token_a_document(documents_N[held_out], rng, negatives)]
        terms.append(np.asarray(_terms_jit(critic, rho32, x32[chosen], y32[chosen]), np.float64))
    count = len(terms[0])
    # The draws share documents, so that the error is that of one draw's anchors, not of all of them.
    error = float(np.mean([t.std(ddof=1) for t in terms])) / math.sqrt(count)
    value, ceiling = float(np.mean(terms)), math.log(count)
    return InfoNCE(value, error, ceiling, value > ceiling - SATURATED_WITHIN)
