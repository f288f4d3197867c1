"""Losses of a model on a whole pool, one per sequence: means, standard errors and bootstraps are computed from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.losses import IGNORE, cross_entropy_per_token, fraction_unexplained, kl_per_token
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.students.base import Frozen, Params, Student
from lrc_jax.training.train import teacher_activations

EVAL_TOKENS = 4096  # most tokens in one evaluation batch: fits caches, and pools of different sizes share a shape
# Most logits in one evaluation batch (128 MiB of float32, 1 GiB on an accelerator): binds at a real model's vocabulary.
EVAL_LOGITS, EVAL_LOGITS_ACCELERATOR = 2**25, 2**28


@dataclasses.dataclass(frozen=True)
class SequenceLosses:
    """Per-sequence means over positions, nats per token, float64 arrays [N].

    Attributes:
      student: cross-entropy of the student on the labels.
      teacher: cross-entropy of the teacher on the labels.
      kl: KL(teacher || student) at temperature 1: the excess of the student over the teacher with no label noise.
      entropy: of the teacher's prediction. entropy + kl is the student's cross-entropy in expectation over labels
        drawn from the teacher.
    """

    student: np.ndarray
    teacher: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray


@functools.partial(jax.jit, static_argnames=("student",))
def _merged(student: Student, params: Params, frozen: Frozen) -> Weights:
    return student.weights(params, frozen)


@functools.partial(jax.jit, static_argnames=("student", "teacher_config"))
def _losses(
    student: Student | DecoderConfig, teacher_config: DecoderConfig, params: Params, frozen: Frozen, batch: Pool
) -> tuple[Array, ...]:
    teacher_acts = teacher_activations(teacher_config, frozen.teacher, batch.tokens_NT, batch.final_NTD)
    if isinstance(student, DecoderConfig):
        student_acts = forward(student, params, batch.tokens_NT)
    else:
        student_acts = student.forward(params, frozen, batch.tokens_NT, teacher_acts)
    return _per_sequence(student_acts.logits_NV, teacher_acts.logits_NV, batch.labels_NT)


def _per_sequence(student_NV: Array, teacher_NV: Array, labels_BT: Array) -> tuple[Array, Array, Array, Array]:
    shape, labels_N = labels_BT.shape, labels_BT.reshape(-1)
    counted_B = jnp.sum((labels_BT != IGNORE).astype(jnp.float32), axis=1)
    ce_student_B = jnp.sum(cross_entropy_per_token(student_NV, labels_N).reshape(shape), axis=1) / counted_B
    ce_teacher_B = jnp.sum(cross_entropy_per_token(teacher_NV, labels_N).reshape(shape), axis=1) / counted_B
    kl_B = jnp.mean(kl_per_token(teacher_NV, student_NV, 1.0).reshape(shape), axis=1)
    log_p_NV = jax.nn.log_softmax(teacher_NV, axis=-1)
    entropy_B = jnp.mean(-jnp.sum(jnp.exp(log_p_NV) * log_p_NV, axis=-1).reshape(shape), axis=1)
    return ce_student_B, ce_teacher_B, kl_B, entropy_B


def batch_tokens(vocab_size: int) -> int:
    """Most tokens of an evaluation batch."""
    logits = EVAL_LOGITS if jax.default_backend() == "cpu" else EVAL_LOGITS_ACCELERATOR
    return min(EVAL_TOKENS, logits // vocab_size)


def batches(pool: Pool, vocab_size: int, samples: int | None = None) -> tuple[list[Pool], int]:
    """Equal batches that cover the first `samples` sequences (the last is filled up by repeating a sequence),
    and the number of sequences that count. Sizes are powers of two: few shapes to compile."""
    n = pool.size if samples is None else samples
    most = max(1, batch_tokens(vocab_size) // pool.tokens_NT.shape[1])
    size = min(1 << (most.bit_length() - 1), 1 << (n - 1).bit_length())
    out = []
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)
        out.append(jax.tree.map(lambda x, i=index: np.asarray(x)[i], pool))
    return out, n


def sequence_losses(
    student: Student,
    teacher_config: DecoderConfig,
    params: Params,
    frozen: Frozen,
    pool: Pool,
    samples: int | None = None,
) -> SequenceLosses:
    """Student, teacher and KL losses of the first `samples` sequences of a pool."""
    parts, n = batches(pool, teacher_config.vocab_size, samples)
    kind: Student | DecoderConfig = student
    if not student.reads_only_final:  # its weights are put together once, not once per batch
        kind, params = student.config, _merged(student, params, frozen)
    rows = [_losses(kind, teacher_config, params, frozen, part) for part in parts]
    joined = [np.concatenate([np.asarray(row[i], np.float64) for row in rows])[:n] for i in range(4)]
    return SequenceLosses(*joined)


@functools.partial(jax.jit, static_argnames=("config",))
def _logits(config: DecoderConfig, weights: Weights, batch: Pool) -> Array:
    return forward(config, weights, batch.tokens_NT).logits_NV


@functools.partial(jax.jit, static_argnames=("config",))
def _kl(config: DecoderConfig, weights: Weights, teacher_NV: Array, batch: Pool) -> Array:
    student_NV = forward(config, weights, batch.tokens_NT).logits_NV
    return jnp.mean(kl_per_token(teacher_NV, student_NV, 1.0).reshape(batch.labels_NT.shape), axis=1)


def divergence_from(config: DecoderConfig, teacher: Weights, pool: Pool) -> Callable[[Weights], float]:
    """Of other decoders of one architecture: the mean KL(teacher || other) over a pool, nats per token. The teacher's
    logits are computed once and kept."""
    parts, n = batches(pool, config.vocab_size)
    known = [_logits(config, teacher, part) for part in parts]

    def divergence(weights: Weights) -> float:
        rows = [_kl(config, weights, logits_NV, part) for logits_NV, part in zip(known, parts, strict=True)]
        return float(np.concatenate([np.asarray(row, np.float64) for row in rows])[:n].mean())

    return divergence


@functools.partial(jax.jit, static_argnames=("config",))
def _model_losses(config: DecoderConfig, weights: Weights, batch: Pool) -> Array:
    logits_NV = forward(config, weights, batch.tokens_NT).logits_NV
    return _per_sequence(logits_NV, logits_NV, batch.labels_NT)[0]


def model_losses(config: DecoderConfig, weights: Weights, pool: Pool) -> np.ndarray:
    """Cross-entropy per sequence [N] of any decoder, nats per token."""
    parts, n = batches(pool, config.vocab_size)
    return np.concatenate([np.asarray(_model_losses(config, weights, part), np.float64) for part in parts])[:n]


@functools.partial(jax.jit, static_argnames=("student", "teacher_config"))
def _unexplained(
    student: Student, teacher_config: DecoderConfig, params: Params, frozen: Frozen, batch: Pool
) -> dict[str, Array]:
    teacher_acts = forward(teacher_config, frozen.teacher, batch.tokens_NT)
    student_acts = student.forward(params, frozen, batch.tokens_NT, teacher_acts)
    pairs = student.clone_pairs(params, frozen, teacher_acts, student_acts)
    return {f"layers.{pair.layer}.{pair.name}": fraction_unexplained(pair) for pair in pairs}


def clone_fvu(
    student: Student, teacher_config: DecoderConfig, params: Params, frozen: Frozen, pool: Pool
) -> dict[str, float]:
    """Fraction of variance unexplained at every clone site (one evaluation batch of the pool)."""
    (first, *_), n = batches(pool, teacher_config.vocab_size)
    batch = jax.tree.map(lambda x: x[:n], dataclasses.replace(first, final_NTD=None))
    return {name: float(x) for name, x in _unexplained(student, teacher_config, params, frozen, batch).items()}
