"""Languages with known conditionals: sequences are independent by construction, the best possible loss is known.

`markov`: next-token logits are W1[last] + W2[last but one] + bias (order 1: W1 alone), where W1 and W2 have singular
values k^-spectrum: a slow spectrum makes many ranks worthwhile, a fast one few. Its stationary distribution and
entropy rate are exact. `hmm`: a hidden Markov model with Dirichlet rows, whose best loss comes from fresh samples
with a standard error.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax.errors import InputError
from lrc_jax.seeds import derive_seed, rng_for

CHUNK = 4096  # sequences are drawn in chunks with a key each, so that a longer stream starts with the shorter one
MAX_TABLE = 2**24  # entries of the conditional table, V^(order+1)
KEPT_BYTES = 2**28  # of streams that a sweep reads again
KEPT_STREAMS = 64  # a sweep over thousands of seeds keeps no more of them
BAYES_SAMPLES = 4096  # sequences for the hidden Markov model's best loss


@dataclasses.dataclass(frozen=True)
class LanguageSpec:
    """A synthetic language.

    Attributes:
      kind: "markov" or "hmm".
      vocabulary: number of tokens V.
      order: markov only, 1 or 2.
      spectrum: markov only, s of the logit matrices' singular values k^-s.
      sharpness: markov: root-mean-square logit of W1 (W2 has 2/3 of it); hmm: larger is closer to deterministic.
      unigram: markov: spread of the bias, unigram * ln(rank of the token).
      states: hmm only.
      seed: makes the language (not the samples).
    """

    kind: str = "markov"
    vocabulary: int = 32
    order: int = 2
    spectrum: float = 1.0
    sharpness: float = 1.5
    unigram: float = 0.7
    states: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("markov", "hmm"):
            raise InputError(f"data.kind: {self.kind!r} is unknown; choose markov or hmm")
        if self.vocabulary < 2:
            raise InputError(f"data.vocabulary: {self.vocabulary} is too small; use at least 2")
        if self.kind == "markov" and self.order not in (1, 2):
            raise InputError(f"data.order: {self.order} is not supported; choose 1 or 2")
        if self.kind == "markov" and self.vocabulary ** (self.order + 1) > MAX_TABLE:
            raise InputError(
                f"data.vocabulary: {self.vocabulary} at order {self.order} needs a table of "
                f"{self.vocabulary ** (self.order + 1)} entries; keep vocabulary^(order+1) below {MAX_TABLE}"
            )


def _logit_matrix(rng: np.random.Generator, vocab: int, spectrum: float, rms: float) -> np.ndarray:
    """[V, V] with singular values proportional to k^-spectrum, random singular vectors and rms entry `rms`."""
    left = np.linalg.qr(rng.normal(size=(vocab, vocab)))[0]
    right = np.linalg.qr(rng.normal(size=(vocab, vocab)))[0]
    values = np.arange(1, vocab + 1.0) ** -spectrum
    values *= vocab / np.linalg.norm(values)
    return (left * values[None, :]) @ right.T * rms


@dataclasses.dataclass(frozen=True)
class MarkovTables:
    """A markov language in numbers: conditionals P[b, a, y] of y after ...b a (order 1: b is a dummy axis of
    length 1), the stationary distribution of (b, a), and logits."""

    conditional: np.ndarray
    stationary: np.ndarray

    @property
    def entropy_rate(self) -> float:
        """Exact, nats per token."""
        return float(-np.sum(self.stationary[..., None] * self.conditional * np.log(self.conditional)))

    @property
    def first_entropy(self) -> float:
        """Entropy of a token given only the one before it, nats: the best loss at a window's first position."""
        joint = np.einsum("ba,bay->ay", self.stationary, self.conditional)
        conditional = joint / joint.sum(axis=1, keepdims=True)
        return float(-np.sum(joint * np.log(conditional)))

    @property
    def unigram(self) -> np.ndarray:
        return self.stationary.sum(axis=0)


@functools.lru_cache(maxsize=8)
def markov_tables(spec: LanguageSpec) -> MarkovTables:
    """Build a markov language. The chain is strictly positive, so that the power iteration converges."""
    rng = rng_for(spec.seed, "language", "markov")
    vocab = spec.vocabulary
    w1 = _logit_matrix(rng, vocab, spec.spectrum, spec.sharpness)
    w2 = _logit_matrix(rng, vocab, spec.spectrum, spec.sharpness * 2 / 3)
    bias = -spec.unigram * np.log(np.arange(1, vocab + 1.0))
    bias = rng.permutation(bias - bias.mean())
    logits = w1[None, :, :] + bias[None, None, :]
    if spec.order == 2:
        logits = logits + w2[:, None, :]
    logits -= logits.max(axis=-1, keepdims=True)
    conditional = np.exp(logits)
    conditional /= conditional.sum(axis=-1, keepdims=True)
    stationary = np.full(conditional.shape[:2], 1.0 / np.prod(conditional.shape[:2]))
    for _ in range(10_000):
        after = np.einsum("ba,bay->ay", stationary, conditional)
        if spec.order == 1:
            after = after.sum(axis=0, keepdims=True)
        if np.abs(after - stationary).max() < 1e-15:
            break
        stationary = after
    return MarkovTables(conditional, stationary / stationary.sum())


@functools.lru_cache(maxsize=8)
def hmm_tables(spec: LanguageSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start [S], transition [S, S] and emission [S, V] probabilities; the start is stationary."""
    rng = rng_for(spec.seed, "language", "hmm")
    floor = 1e-6
    transition = rng.dirichlet(np.full(spec.states, 0.225 / spec.sharpness), spec.states) + floor
    emission = rng.dirichlet(np.full(spec.vocabulary, 0.075 / spec.sharpness), spec.states) + floor
    transition /= transition.sum(axis=1, keepdims=True)
    emission /= emission.sum(axis=1, keepdims=True)
    start = np.full(spec.states, 1.0 / spec.states)
    for _ in range(10_000):
        start = start @ transition
    return start, transition, emission


def _draw(cdf_NV: Array, u_N: Array) -> Array:
    """Inverse-CDF sampling: how many cumulative probabilities lie below u."""
    picked = jnp.sum((cdf_NV[:, :-1] < u_N[:, None]).astype(jnp.int32), axis=1)
    return picked


@functools.partial(jax.jit, static_argnames=("n", "length"))
def _sample_markov(key: Array, cdf_BAY: Array, start_cdf: Array, n: int, length: int) -> Array:
    """[n, length] tokens; the first two come from the stationary distribution of pairs."""
    n_before, vocab, _ = cdf_BAY.shape
    start_key, key = jax.random.split(key)
    pair = _draw(jnp.broadcast_to(start_cdf[None, :], (n, start_cdf.shape[0])), jax.random.uniform(start_key, (n,)))
    before, last = pair // vocab, pair % vocab

    def step(carry: tuple[Array, Array], u_N: Array) -> tuple[tuple[Array, Array], Array]:
        before, last = carry
        token = _draw(cdf_BAY[before, last], u_N)
        return (last if n_before > 1 else before, token), token

    drawn = length - (2 if n_before > 1 else 1)
    _, tokens = jax.lax.scan(step, (before, last), jax.random.uniform(key, (drawn, n)))
    head = [before, last] if n_before > 1 else [last]
    return jnp.concatenate([jnp.stack(head), tokens], axis=0).T.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("n", "length"))
def _sample_hmm(key: Array, start_cdf: Array, transition_cdf: Array, emission_cdf: Array, n: int, length: int) -> Array:
    start_key, key = jax.random.split(key)
    states = start_cdf.shape[0]
    state = _draw(jnp.broadcast_to(start_cdf[None, :], (n, states)), jax.random.uniform(start_key, (n,)))

    def step(state: Array, u_2N: Array) -> tuple[Array, Array]:
        token = _draw(emission_cdf[state], u_2N[0])
        return _draw(transition_cdf[state], u_2N[1]), token

    _, tokens = jax.lax.scan(step, state, jax.random.uniform(key, (length, 2, n)))
    return tokens.T.astype(jnp.int32)


class SyntheticSource:
    """An endless source of independent sequences of a synthetic language."""

    def __init__(self, spec: LanguageSpec, sequence_length: int) -> None:
        if sequence_length < 2:
            raise InputError(f"sequence_length: {sequence_length} is too short; use at least 2")
        self.spec = spec
        self.vocab_size = spec.vocabulary
        self.sequence_length = sequence_length
        self._drawn: dict[tuple[str, int], np.ndarray] = {}  # streams as far as they were asked for

    @property
    def digest(self) -> str:
        content = json.dumps([dataclasses.asdict(self.spec), self.sequence_length], sort_keys=True)
        return "synthetic-" + hashlib.sha256(content.encode()).hexdigest()[:16]

    def available(self, purpose: str) -> int | None:
        del purpose
        return None

    def sequences(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        have = self._drawn.pop((purpose, replicate), np.zeros((0, self.sequence_length + 1), np.int32))
        if len(have) < n:
            more = range(len(have) // CHUNK, -(-n // CHUNK))
            have = np.concatenate([have, *(self._chunk(purpose, replicate, i) for i in more)])
        self._drawn[purpose, replicate] = have  # last in, so that the oldest stream is the first to be forgotten
        while len(self._drawn) > KEPT_STREAMS or (
            len(self._drawn) > 1 and sum(x.nbytes for x in self._drawn.values()) > KEPT_BYTES
        ):
            del self._drawn[next(iter(self._drawn))]
        return have[:n]

    def documents(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        del purpose, replicate
        return np.arange(n)

    def _chunk(self, purpose: str, replicate: int, index: int) -> np.ndarray:
        key = jax.random.key(derive_seed(self.spec.seed, "sequences", purpose, replicate, index))
        length = self.sequence_length + 1
        if self.spec.kind == "markov":
            tables = markov_tables(self.spec)
            cdf = jnp.asarray(np.cumsum(tables.conditional, axis=-1), jnp.float32)
            start = jnp.asarray(np.cumsum(tables.stationary.reshape(-1)), jnp.float32)
            return np.asarray(_sample_markov(key, cdf, start, CHUNK, length))
        start_S, transition_SS, emission_SV = hmm_tables(self.spec)
        tables_f32 = (jnp.asarray(np.cumsum(x, axis=-1), jnp.float32) for x in (start_S, transition_SS, emission_SV))
        return np.asarray(_sample_hmm(key, *tables_f32, CHUNK, length))

    def bayes_loss(self) -> tuple[float, float]:
        """Loss of the true conditionals on windows of T inputs (the first label sees one token of context)."""
        if self.spec.kind == "markov":
            tables = markov_tables(self.spec)
            inner = self.sequence_length - 1
            return (tables.first_entropy + inner * tables.entropy_rate) / self.sequence_length, 0.0
        return _hmm_bayes_loss(self)


def _hmm_bayes_loss(source: SyntheticSource) -> tuple[float, float]:
    """Monte-Carlo mean of -log P(next | all before) by the forward filter, and its standard error."""
    start, transition, emission = hmm_tables(source.spec)
    tokens_NT = source.sequences("bayes", BAYES_SAMPLES)
    belief_NS = np.repeat(start[None, :], len(tokens_NT), axis=0)
    losses_NT = np.empty(tokens_NT.shape)
    for t in range(tokens_NT.shape[1]):
        joint_NS = belief_NS * emission[:, tokens_NT[:, t]].T
        likelihood_N = joint_NS.sum(axis=1)
        losses_NT[:, t] = -np.log(likelihood_N)
        belief_NS = (joint_NS / likelihood_N[:, None]) @ transition
    per_sequence = losses_NT[:, 1:].mean(axis=1)  # the first token of a window is an input only
    return float(per_sequence.mean()), float(per_sequence.std(ddof=1) / np.sqrt(len(per_sequence)))
