"""Train, compress, encode and certify Low-Rank Clone students: the rows of the certificate's table.

Recipe. Fixed before the sample: teacher, architecture, start P_0, random directions Q, the list of configurations and
the grid of smoothings. P = P_0 + Q z with dim z = `intrinsic_dimension` (all of P where that is None); z is trained on
exactly the N certified sequences, rounded to a few levels, trained on through the rounding (straight-through), encoded,
decoded, and the decoded student's loss on all N sequences enters the bound. Norm gains stay at their start.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lrc_jax import clock
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import batches
from lrc_jax.measure import bounds
from lrc_jax.measure.coding import QuantisedVector, decode, elias_gamma_bits, encode, entropy_bits
from lrc_jax.model import DecoderConfig
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.students.base import Frozen, Params, Student
from lrc_jax.training.train import student_loss

# Quantiser's step as a multiple of the standard deviation of z: near the optimum for a Gaussian.
STEP_FACTOR = {3: 1.2, 5: 0.85, 7: 0.65, 11: 0.45, 17: 0.33}


@dataclasses.dataclass(frozen=True)
class Compression:
    """One configuration of the prior (static).

    Attributes:
      intrinsic_dimension: length of z; None quantises the projections themselves; 0 is the start itself, untrained:
        what the guarantee is worth before the sample has told anything.
      levels: of the quantiser, odd; one of 3, 5, 7, 11, 17.
    """

    intrinsic_dimension: int | None
    levels: int = 3

    def __post_init__(self) -> None:
        if self.levels not in STEP_FACTOR:
            raise ValueError(f"levels: {self.levels} is unknown; choose one of {', '.join(map(str, STEP_FACTOR))}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """How z is found. None of it is paid for: a bound that holds for all students holds for any way of finding one.

    Attributes:
      float_steps, quantised_steps: before and after rounding, each with a cosine decay to 0.
      kl_weight: weight of the distillation term beside the cross-entropy on the certified labels.
    """

    float_steps: int = 2000
    quantised_steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-2
    quantised_learning_rate: float = 1e-2
    kl_weight: float = 0.0


def _matrix_names(params: Params) -> list[str]:
    return [name for name, x in params.items() if x.ndim == 2]


def trained_size(params: Params) -> int:
    """Numbers in the projections (norm gains are frozen)."""
    return sum(math.prod(params[n].shape) for n in _matrix_names(params))


def directions(start: Params, dimension: int, key: Array) -> Float[Array, "P d"]:
    """Random Gaussian directions Q, from a fixed key; each tensor's rows have the scale of its start values, so that z
    of order 1 moves it by its own size."""
    scale = jnp.concatenate([jnp.full(start[n].size, jnp.std(start[n])) for n in _matrix_names(start)])
    return jax.random.normal(key, (scale.size, dimension)) * (scale * max(dimension, 1) ** -0.5)[:, None]


def assemble(start: Params, directions_Pd: Array | None, z: Array) -> Params:
    """The student's parameters of a vector z."""
    names = _matrix_names(start)
    flat = z if directions_Pd is None else jnp.concatenate([start[n].ravel() for n in names]) + directions_Pd @ z
    out, position = dict(start), 0
    for name in names:
        size = math.prod(start[name].shape)
        out[name] = flat[position : position + size].reshape(start[name].shape)
        position += size
    return out


def _quantise(z: Array, step: Array, levels: Array) -> tuple[Array, Array]:
    """Rounded z with the gradient of the identity (straight-through), and the integer levels."""
    most = (levels - 1) // 2
    symbols = jnp.clip(jnp.round(z / step), -most.astype(z.dtype), most.astype(z.dtype))
    return z + jax.lax.stop_gradient(symbols * step - z), symbols


@functools.partial(jax.jit, static_argnames=("student", "teacher_config", "batch_size", "distil"))
def _descend(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    start: Params,
    directions_Pd: Array | None,
    pool: Pool,
    samples: Array,
    z: Array,
    rounded: tuple[Array, Array, Array],
    key: Array,
    learning_rate: Array,
    steps: Array,
    kl_weight: Array,
    batch_size: int,
    distil: bool,
) -> Array:
    """Adam on z over the first `samples` sequences; `rounded` is (through the rounding or not, step, levels). Samples,
    rounding, levels and steps are traced: one program for every dimension of z."""
    objective = Objective(clone=False, kl=distil, ce=True, kl_per_token=True)
    weights = LossWeights(clone=0.0, kl=kl_weight, ce=1.0, temperature=1.0)
    rounding, step_size, levels = rounded

    def loss(z: Array, batch: Pool) -> Array:
        value = jnp.where(rounding, _quantise(z, step_size, levels)[0], z)
        return student_loss(
            student, objective, teacher_config, assemble(start, directions_Pd, value), frozen, weights, batch
        )[0]

    adam = optax.scale_by_adam()

    def step(i: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        z, state = carry
        index_B = jax.random.randint(jax.random.fold_in(key, i), (batch_size,), 0, samples)
        grad = jax.grad(loss)(z, jax.tree.map(lambda x: x[index_B], pool))
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to an integer step
            update, state = adam.update(grad, state)
        rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * i.astype(z.dtype) / steps.astype(z.dtype)))
        return z - rate * update, state

    return jax.lax.fori_loop(0, steps, step, (z, adam.init(z)))[0]


@functools.partial(jax.jit, static_argnames=("student", "teacher_config"))
def _evaluate(
    student: Student, teacher_config: DecoderConfig, frozen: Frozen, params: Params, batch: Pool, alphas: Array
) -> tuple[Array, Array, Array]:
    """Per sequence and smoothing [A, B]: loss on the labels, and its expectation over labels drawn again from the
    teacher in the same contexts; and the teacher's own loss [B]. Bits per token."""
    teacher_NV = forward(teacher_config, frozen.teacher, batch.tokens_NT).logits_NV
    logits_NV = student.forward(params, frozen, batch.tokens_NT, None).logits_NV
    shape, labels_N = batch.tokens_NT.shape, batch.labels_NT.reshape(-1)
    losses_AN = bounds.smoothed_loss(logits_NV, labels_N, alphas)
    p_NV, q_NV = jax.nn.softmax(teacher_NV, axis=-1), jax.nn.softmax(logits_NV, axis=-1)

    def again(alpha: Array) -> Array:
        return -jnp.sum(p_NV * jnp.log2((1 - alpha) * q_NV + alpha / q_NV.shape[-1]), axis=-1)

    teacher_N = bounds.smoothed_loss(teacher_NV, labels_N, jnp.zeros(1))[0]
    per_sequence = lambda x_AN: jnp.mean(x_AN.reshape(-1, *shape), axis=-1)  # noqa: E731
    return per_sequence(losses_AN), per_sequence(jax.lax.map(again, alphas)), per_sequence(teacher_N[None])[0]


def _losses(
    student: Student, teacher_config: DecoderConfig, frozen: Frozen, params: Params, pool: Pool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts, count = batches(dataclasses.replace(pool, final_NTD=None), teacher_config.vocab_size)
    alphas = jnp.asarray(bounds.ALPHAS, jnp.float32)
    rows = [_evaluate(student, teacher_config, frozen, params, part, alphas) for part in parts]
    first, again, teacher = (
        np.concatenate([np.asarray(row[i], np.float64) for row in rows], axis=-1)[..., :count] for i in range(3)
    )
    return first, again, teacher


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A student that was trained, rounded, written and read back.

    Attributes:
      message: the bits, without their length.
      vector: what was decoded; equal to what was encoded.
      params: the decoded student.
      payload_entropy: ideal bits of the levels alone, for comparison.
    """

    message: np.ndarray
    vector: QuantisedVector
    params: Params
    payload_entropy: float


def _fit_vector(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    start: Params,
    matrix_Pd: Array | None,
    pool: Pool,
    samples: int,
    key: Array,
    levels: int,
    fit: Fit,
) -> QuantisedVector:
    """z, trained, rounded and trained on through the rounding."""
    first = (
        jnp.concatenate([start[n].ravel() for n in _matrix_names(start)])
        if matrix_Pd is None
        else jnp.zeros(matrix_Pd.shape[1])
    )
    device_pool = jax.tree.map(jnp.asarray, dataclasses.replace(pool, final_NTD=None))
    k_float, k_quantised = jax.random.split(key)
    level_count = jnp.asarray(levels, jnp.int32)

    def descend(z: Array, rounding: bool, step: float, k: Array, steps: int, rate: float) -> Array:
        return _descend(
            student,
            teacher_config,
            frozen,
            start,
            matrix_Pd,
            device_pool,
            jnp.asarray(samples, jnp.int32),
            z,
            (jnp.asarray(rounding), jnp.asarray(step, jnp.float32), level_count),
            k,
            jnp.asarray(rate, jnp.float32),
            jnp.asarray(steps, jnp.int32),
            jnp.asarray(fit.kl_weight, jnp.float32),
            fit.batch_size,
            fit.kl_weight > 0,
        )

    # Values of all projections have their start's scale; z has order 1.
    unit = float(jnp.std(first)) if matrix_Pd is None else 1.0
    z = descend(first, False, 1.0, k_float, fit.float_steps, fit.learning_rate * unit)
    step = float(np.float16(float(jnp.std(z)) * STEP_FACTOR[levels]))
    z = descend(z, True, step, k_quantised, fit.quantised_steps, fit.quantised_learning_rate * unit)
    symbols = _quantise(z, jnp.asarray(step, jnp.float32), level_count)[1]
    return QuantisedVector(np.asarray(symbols).astype(np.int64), step, levels)


def compress(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    start: Params,
    pool: Pool,
    samples: int,
    key: Array,
    prior: list[Compression],
    index: int,
    fit: Fit | None = None,
) -> Compressed:
    """Train on exactly the first `samples` sequences of `pool` and encode.

    Args:
      student: a Low-Rank Clone.
      frozen: teacher (and basis); must not have seen the pool.
      start: P_0, from a seed fixed before the sample.
      pool, samples: the certified sequences, all of them and no others.
      key: of minibatches (free).
      prior: the configurations fixed beforehand; their directions come from key 0 and their position in the list.
      index: which one to train.

    Raises:
      RuntimeError: what was decoded is not what was encoded (never seen; the check is the point).
    """
    dimension = prior[index].intrinsic_dimension
    matrix_Pd = None
    if dimension is not None:
        matrix_Pd = directions(start, dimension, jax.random.fold_in(jax.random.key(0), index))
    if dimension == 0:
        sent = QuantisedVector(np.zeros(0, np.int64), 1.0, prior[index].levels)
    else:
        sent = _fit_vector(
            student, teacher_config, frozen, start, matrix_Pd, pool, samples, key, prior[index].levels, fit or Fit()
        )
    size = trained_size(start)
    counts = [size if c.intrinsic_dimension is None else c.intrinsic_dimension for c in prior]
    lengths = [(n, c.levels) for n, c in zip(counts, prior, strict=True) for _ in bounds.ALPHAS]
    # The smoothing is part of the configuration: which of the eight is settled after training, at no further bits.
    message = encode(sent, index * len(bounds.ALPHAS), len(lengths))
    received_index, received = decode(message, lengths)
    if received_index // len(bounds.ALPHAS) != index or not np.array_equal(received.values(), sent.values()):
        raise RuntimeError("the decoded student differs from the encoded one")
    params = assemble(start, matrix_Pd, jnp.asarray(received.values()))
    return Compressed(message, received, params, entropy_bits(sent.symbols))


def certify(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    compressed: Compressed,
    train: Pool,
    test: Pool,
    *,
    delta: float = 0.05,
    labels_from_teacher: bool = False,
) -> dict[str, Any]:
    """One row of the certificate's table; losses and bounds in bits per token.

    Args:
      train: the sequences that `compress` trained on, exactly.
      test: fresh sequences, at least as many as make the held-out loss precise.
      delta: of this row and all others on the same sample; `certificate.shared_delta` where there are several samples.
      labels_from_teacher: labels were drawn from the teacher, so that the token-level bound's left side is known.

    Returns:
      samples, sequence_length, intrinsic_dimension (length of the coded vector), levels
      message_bits, prefix_bits   C, and K with the length code
      alpha                smoothing with the least bound
      train_loss           of the decoded, smoothed student on all N sequences
      certificate          bound on the population loss, Chernoff form; certificate_hoeffding the wider one
      complexity_share     share of (certificate - low end of the losses) that is not training loss
      test_loss, test_se   of the same student on fresh sequences
      unigram, uniform     entropy of the label frequencies on the test sequences, log2 V
      teacher_loss
      held_out_bound       Hoeffding on the test sequences, for a student that did not see them
      non_vacuous          certificate < unigram
      context_bound, context_loss   the token-level bound, and what it bounds: the loss on labels drawn again in the
                           training contexts (None where it is not known). Not a statement on new sequences.
    """
    on_train, again, _ = _losses(student, teacher_config, frozen, compressed.params, train)
    on_test, _, teacher = _losses(student, teacher_config, frozen, compressed.params, test)
    samples, length = train.tokens_NT.shape
    vocab, bits = teacher_config.vocab_size, len(compressed.message)
    train_means = on_train.mean(axis=1)
    smoothings = [bounds.Smoothing(a, vocab) for a in bounds.ALPHAS]
    certificates = [
        bounds.sequence_bound_kl(float(m), s, bits, samples, delta)
        for m, s in zip(train_means, smoothings, strict=True)
    ]
    best = int(np.argmin(certificates))
    smoothing, loss = smoothings[best], float(train_means[best])
    labels = np.asarray(test.labels_NT).ravel()
    frequencies = np.bincount(labels, minlength=vocab) / len(labels)
    unigram = float(-np.sum(frequencies[frequencies > 0] * np.log2(frequencies[frequencies > 0])))
    test_loss = float(on_test[best].mean())
    return {
        "samples": samples,
        "sequence_length": length,
        "rank": student.config.hidden_size,
        "intrinsic_dimension": len(compressed.vector.symbols),
        "levels": compressed.vector.levels,
        "message_bits": bits,
        "prefix_bits": elias_gamma_bits(bits),
        "payload_entropy_bits": compressed.payload_entropy,
        "alpha": smoothing.alpha,
        "train_loss": loss,
        "certificate": certificates[best],
        "certificate_hoeffding": bounds.sequence_bound(loss, smoothing, bits, samples, delta),
        "complexity_share": (certificates[best] - loss) / (certificates[best] - smoothing.low),
        "test_loss": test_loss,
        "test_se": float(on_test[best].std(ddof=1) / math.sqrt(on_test.shape[1])),
        "teacher_loss": float(teacher.mean()),
        "unigram": unigram,
        "uniform": math.log2(vocab),
        "held_out_bound": bounds.held_out_bound(test_loss, smoothing, on_test.shape[1], delta),
        "non_vacuous": certificates[best] < unigram,
        "context_bound": bounds.context_bound(loss, smoothing, bits, samples * length, delta),
        "context_loss": float(again[best].mean()) if labels_from_teacher else None,
        "delta": delta,
    }


def certificate_table(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    start: Params,
    pool: Pool,
    test: Pool,
    key: Array,
    *,
    prior: list[Compression],
    samples: tuple[int, ...],
    fit: Fit | None = None,
    delta: float = 0.05,
    labels_from_teacher: bool = False,
) -> list[dict[str, Any]]:
    """Certificates for every configuration and every sample size, all valid together with probability 1 - delta.

    Configurations share a prior (their index is in the message); sample sizes share delta. For each the first N
    sequences of `pool` are the sample: trained on and evaluated, all of them.
    """
    rows = []
    for count in samples:
        if count > pool.size:
            raise ValueError(f"{count} sequences are asked for, the pool has {pool.size}")
        part = pool.first(count)
        for index in range(len(prior)):
            order_key = jax.random.fold_in(key, index)
            with clock.phase("training"):
                compressed = compress(student, teacher_config, frozen, start, pool, count, order_key, prior, index, fit)
            with clock.phase("measuring"):
                row = certify(
                    student,
                    teacher_config,
                    frozen,
                    compressed,
                    part,
                    test,
                    delta=bounds.shared_delta(delta, len(samples)),
                    labels_from_teacher=labels_from_teacher,
                )
            rows.append(row)
    return rows
