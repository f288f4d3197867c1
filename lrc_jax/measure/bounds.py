"""Guarantees on the loss of a compressed student that need its training data only (bits per token).

A student that decodes from a self-delimiting string of K bits, given only what was fixed before the sample, has prior
probability 2^-K. With probability 1 - delta over N independent sequences, for all such students at once,

    L(h)  <=  L_N(h) + D sqrt((K ln 2 + ln 1/delta) / 2N)

(Lotfi et al. 2024, arXiv 2312.17173), where losses lie in an interval of width D because predictions are mixed with the
uniform distribution. However the student was found costs nothing; what says which it is costs bits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrc_jax.data.synthetic import LanguageSpec, markov_tables
from lrc_jax.measure.coding import elias_gamma_bits

# Shares of the uniform distribution: a grid fixed in advance, so that choosing from it costs 3 bits.
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """q(y|x) = (1 - alpha) p(y|x) + alpha / V, whose loss -log2 q lies in [low, high] bits."""

    alpha: float
    vocab_size: int

    @property
    def low(self) -> float:
        return -math.log2(1 - self.alpha + self.alpha / self.vocab_size)

    @property
    def high(self) -> float:
        return math.log2(self.vocab_size / self.alpha)

    @property
    def width(self) -> float:
        return self.high - self.low


def smoothed_loss(
    logits_NV: Float[Array, "N V"], labels_N: Int[Array, "N"], alphas: Float[Array, "A"]
) -> Float[Array, "A N"]:
    """-log2 of the smoothed probability of the label, for several alphas at once."""
    log_p_N = jnp.take_along_axis(jax.nn.log_softmax(logits_NV, axis=-1), labels_N[:, None], axis=-1)[:, 0]
    mixed_AN = (1 - alphas)[:, None] * jnp.exp(log_p_N)[None, :] + alphas[:, None] / logits_NV.shape[-1]
    return -jnp.log2(mixed_AN)


def _complexity(message_bits: int, delta: float) -> float:
    """K ln 2 + ln 1/delta (nats) of a message of C bits, K with its length."""
    return elias_gamma_bits(message_bits) * math.log(2) + math.log(1 / delta)


def sequence_bound(train_loss: float, smoothing: Smoothing, message_bits: int, samples: int, delta: float) -> float:
    """Finite-hypothesis bound on the population loss, Hoeffding form; N i.i.d. sequences, all of them evaluated."""
    return train_loss + smoothing.width * math.sqrt(_complexity(message_bits, delta) / (2 * samples))


def kl_inverse(observed: float, divergence: float) -> float:
    """Largest p with kl(observed || p) <= divergence, kl between Bernoulli distributions (nats)."""
    if not 0 <= observed <= 1:
        raise ValueError(f"kl_inverse: {observed} is outside [0, 1]")

    def kl(p: float) -> float:
        first = observed * math.log(observed / p) if observed > 0 else 0.0
        return first + ((1 - observed) * math.log((1 - observed) / (1 - p)) if observed < 1 else 0.0)

    low, high = observed, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < 1 and kl(middle) <= divergence else (low, middle)
    return high  # rounded to the safe side


def sequence_bound_kl(train_loss: float, smoothing: Smoothing, message_bits: int, samples: int, delta: float) -> float:
    """The same bound in Chernoff's form, low + D kl^-1((L_N - low) / D, (K ln 2 + ln 1/delta) / N): never above
    Hoeffding's, and of the same event, so that both may be quoted at one delta."""
    observed = min(max((train_loss - smoothing.low) / smoothing.width, 0.0), 1.0)
    return smoothing.low + smoothing.width * kl_inverse(observed, _complexity(message_bits, delta) / samples)


def subsample_bound(
    loss: float, smoothing: Smoothing, message_bits: int, samples: int, evaluated: int, delta: float
) -> float:
    """The bound where L_N was estimated on `evaluated` of the N sequences, drawn uniformly after training:
    delta is shared in the proportion evaluated / (evaluated + samples), and the estimate's own term is added."""
    share = evaluated / (evaluated + samples)
    complexity = math.sqrt(_complexity(message_bits, share * delta) / (2 * samples))
    estimate = math.sqrt(math.log(1 / ((1 - share) * delta)) / (2 * evaluated))
    return loss + smoothing.width * (complexity + estimate)


def context_bound(train_loss: float, smoothing: Smoothing, message_bits: int, tokens: int, delta: float) -> float:
    """Token-level bound (Lotfi et al. 2024b, arXiv 2407.18158; Azuma): of the loss on tokens drawn *again in the
    contexts of the training set*, not of the loss on new text. Never quote it as test loss."""
    return train_loss + smoothing.width * math.sqrt(_complexity(message_bits, delta) / (2 * tokens))


def held_out_bound(test_loss: float, smoothing: Smoothing, samples: int, delta: float) -> float:
    """Hoeffding for a student that never saw these sequences: no complexity is paid. Always the tighter guarantee
    where data can be held out."""
    return test_loss + smoothing.width * math.sqrt(math.log(1 / delta) / (2 * samples))


def shared_delta(delta: float, sample_sizes: int) -> float:
    """delta of each certificate when some are printed for several training sets (Bonferroni). Those on one training
    set share a prior over configurations and cost nothing."""
    return delta / sample_sizes


class Coverage(NamedTuple):
    """Redraws of the sample in which the population loss exceeded a bound.

    Attributes:
      violations: of the certificate.
      violations_without_bits: of the same bound with the message's bits left out (a control: it must fail).
      redraws: how many.
      mean_slack: mean of certificate - population loss, bits.
      mean_optimism: mean of population - training loss, bits.
    """

    violations: int
    violations_without_bits: int
    redraws: int
    mean_slack: float
    mean_optimism: float


def coverage(
    rng: np.random.Generator,
    *,
    redraws: int = 200,
    samples: int = 30,
    length: int = 1,
    index_bits: int = 14,
    alpha: float = 0.02,
    delta: float = 0.05,
    spec: LanguageSpec | None = None,
) -> Coverage:
    """Does the certificate hold in 1 - delta of repeated samples? On a class small enough to search exhaustively.

    2^index_bits quantised linear-softmax students, logits 12 Q[last] with signs Q from a fixed seed, of a first-order
    language whose conditionals give the population loss exactly. On each sample the student of least training loss is
    chosen and certified. Falsified if the violations exceed the 99 % quantile of Binomial(redraws, delta): 18 of 200.
    The class is rich for its samples, so that the bound without the message's bits fails this test.
    """
    spec = spec or LanguageSpec(vocabulary=8, order=1, sharpness=0.5)
    tables, vocab = markov_tables(spec), spec.vocabulary
    students = np.random.default_rng(0).choice([-1.0, 1.0], (2**index_bits, vocab, vocab))  # fixed before any sample
    weights = np.exp(12 * students)
    smoothing = Smoothing(alpha, vocab)
    loss = -np.log2((1 - alpha) * weights / weights.sum(axis=-1, keepdims=True) + alpha / vocab)
    joint = tables.stationary[0][:, None] * tables.conditional[0]  # of (last, next)
    population = loss.reshape(len(loss), -1) @ joint.ravel()

    violations = without_bits = 0
    slack, optimism = [], []
    for _ in range(redraws):
        counts = _transition_counts(rng, tables.stationary[0], tables.conditional[0], samples, length)
        train = loss.reshape(len(loss), -1) @ (counts / counts.sum()).ravel()
        best = int(np.argmin(train))
        bound = sequence_bound(float(train[best]), smoothing, index_bits, samples, delta)
        naive = train[best] + smoothing.width * math.sqrt(math.log(1 / delta) / (2 * samples))
        violations += int(population[best] > bound)
        without_bits += int(population[best] > naive)
        slack.append(bound - population[best])
        optimism.append(population[best] - train[best])
    return Coverage(violations, without_bits, redraws, float(np.mean(slack)), float(np.mean(optimism)))


def _transition_counts(
    rng: np.random.Generator, start: np.ndarray, conditional: np.ndarray, samples: int, length: int
) -> np.ndarray:
    """Counts [V, V] of (last, next) over `samples` independent stationary sequences of `length` predictions."""
    last = rng.choice(len(start), size=samples, p=start)
    counts = np.zeros_like(conditional)
    cdf = np.cumsum(conditional, axis=1)
    for _ in range(length):
        following = np.minimum((rng.random(samples)[:, None] > cdf[last]).sum(axis=1), len(start) - 1)
        np.add.at(counts, (last, following), 1)
        last = following
    return counts
