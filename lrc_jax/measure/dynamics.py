"""Does training the projections follow the dynamics of training the student's weights?

Let S be the student's weights, P what is trained, S = M(P), and G = dLoss/dS. Gradient flow moves

    direct training:     dS/dt = -G
    Low-Rank Clone:      dS/dt = -K G,    K = J J^T,  J = dS/dP

and K is A A^T for a matrix S = A P of the teacher's A: the clone is direct training with a constant preconditioner,
the same flow up to a change of time exactly where K is a multiple of the identity on the gradients. Measured here: the
angle between the two flows, the spectra of their tangent kernels, and the divergence of the students that result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lrc_jax.compute.fast import forward
from lrc_jax.losses import kl_per_token
from lrc_jax.measure.gradients import Loss, Params, SampleBatch, as_partial
from lrc_jax.measure.spectra import LAYER_MATRICES, MATRIX_CLASSES, Spectrum, projection_constants, teacher_spectra
from lrc_jax.measure.whitening import same_start as same_start
from lrc_jax.measure.whitening import whiten_teacher as whiten_teacher
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.students.base import Frozen, Student

GAINS = "gains"  # norm gains and biases: trained as they are by both


def by_class(weights: Weights) -> dict[str, list[Array]]:
    """The decoder's arrays grouped by the class of their matrix, layers together."""
    groups: dict[str, list[Array]] = {name: [] for name in (*MATRIX_CLASSES, GAINS)}
    groups["embed"].append(weights.embed_VD)
    groups[GAINS].append(weights.final_norm_D)
    if weights.head_DV is not None:
        groups["head"].append(weights.head_DV)
    for layer in weights.layers:
        for field, value in vars(layer).items():
            if value is not None:
                groups[LAYER_MATRICES[field][0] if field in LAYER_MATRICES else GAINS].append(value)
    return {name: arrays for name, arrays in groups.items() if arrays}


def _dots(a: list[Array], b: list[Array]) -> Array:
    """Inner products [A, B] of stacked arrays, summed over the arrays of a class."""
    flat = [(x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)) for x, y in zip(a, b, strict=True)]
    return functools.reduce(jnp.add, [x @ y.T for x, y in flat])


@functools.partial(jax.jit, static_argnames=("batch_size", "blocks"))
def _gram(
    weight_map: Any, loss: Any, sample: Any, params: Params, key: Array, batch_size: int, blocks: int
) -> dict[str, Array]:
    """By class [3, blocks, blocks]: <G_a, G_b>, <K G_a, G_b>, <K G_a, K G_b> of independent batches."""
    weights, pull = jax.vjp(weight_map, params)

    def flows(block_key: Array) -> tuple[Weights, Weights]:
        grad = jax.grad(loss)(weights, sample(block_key, batch_size))
        return grad, jax.jvp(weight_map, (params,), pull(grad))[1]

    grads, moved = jax.lax.map(flows, jax.random.split(key, blocks))
    classes, moved_classes = by_class(grads), by_class(moved)
    return {
        name: jnp.stack([_dots(g, g), _dots(moved_classes[name], g), _dots(moved_classes[name], moved_classes[name])])
        for name, g in classes.items()
    }


class Alignment(NamedTuple):
    """Of one class of matrices, layers together.

    Attributes:
      cos: cosine between K G and G, the flows of the clone and of direct training.
      descent: <K G, G> / (s^2 |G|^2) in [1/kappa^2, 1]: speed of descent against that of the fastest direction.
      floor: 2 kappa / (1 + kappa^2), the least cosine (Kantorovich); 0 where the matrix cannot reach every direction.
      cos_se, descent_se: by the jackknife over batches. nan where noise outweighs the gradient.
    """

    matrix: str
    cos: float
    cos_se: float
    descent: float
    descent_se: float
    floor: float
    kappa: float


def kantorovich_floor(spectra: list[Spectrum]) -> float:
    """Least possible cosine of K G with G, 2 kappa / (1 + kappa^2), for the block-diagonal K of these matrices."""
    if not all(x.spans_free for x in spectra):
        return 0.0
    kappa = max(x.s for x in spectra) / min(x.mu for x in spectra)
    return 2 * kappa / (1 + kappa**2)


def _ratios(gram: np.ndarray, s_sq: float) -> np.ndarray:
    """cos and descent from Gram matrices [3, B, B], by pairs of different batches only."""
    blocks = gram.shape[-1]
    different = ~np.eye(blocks, dtype=bool)
    gg, kg, kk = gram[:, different].mean(axis=1)
    cos = kg / math.sqrt(gg * kk) if gg > 0 and kk > 0 else math.nan
    return np.array([cos, kg / (s_sq * gg) if gg > 0 else math.nan])


def alignment(
    weight_map: Any,
    loss: Loss,
    sample_batch: SampleBatch,
    params: Params,
    key: Array,
    spectra: list[Spectrum],
    *,
    batch_size: int = 256,
    blocks: int = 8,
) -> list[Alignment]:
    """Angle and speed of the clone's flow against direct training's, by class of matrix.

    Every inner product is taken between gradients of *different* batches, so that minibatch noise, which would align
    with itself, is not counted. (Noise enters cos and descent of a single batch with both signs.)

    Args:
      weight_map: params -> Weights, `Partial(student.weights, ...)` style; shared projections are followed.
      loss: loss(weights, batch) of the student's *weights*.
      sample_batch, batch_size: independent units.
      params: where.
      key: of the batches.
      spectra: `teacher_spectra` of the matrices behind the projections.
      blocks: independent batches, at least 3.
    """
    if blocks < 3:
        raise ValueError(f"blocks: {blocks} is too few for a standard error; give at least 3")
    grams = _gram(*map(as_partial, (weight_map, loss, sample_batch)), params, key, batch_size, blocks)
    out = []
    for name, value in grams.items():
        if name == GAINS:
            continue
        gram = np.asarray(value, np.float64)
        of_class = [x for x in spectra if x.name == name]
        s, mu = max(x.s for x in of_class), min(x.mu for x in of_class)
        without = np.array([_ratios(np.delete(np.delete(gram, b, axis=1), b, axis=2), s**2) for b in range(blocks)])
        (cos, descent), errors = _ratios(gram, s**2), np.sqrt((blocks - 1) * np.var(without, axis=0))
        floor = kantorovich_floor(of_class)
        out.append(Alignment(name, float(cos), float(errors[0]), float(descent), float(errors[1]), floor, s / mu))
    return out


class TangentKernels(NamedTuple):
    """Neural tangent kernels on the same outputs, and how they compare.

    Attributes:
      ratios: lambda_i(clone) / lambda_i(direct), eigenvalues in descending order; within [min mu^2, max s^2] of the
        matrices (Ostrowski). Only eigenvalues above rounding.
      alignment: tr(A B) / (|A| |B|), centred (CKA): 1 where they are proportional.
      direct, clone: the kernels [M, M].
    """

    ratios: np.ndarray
    alignment: float
    direct: np.ndarray
    clone: np.ndarray


@functools.partial(jax.jit, static_argnames=("chunk",))
def _kernels(weight_map: Any, outputs: Any, params: Params, chunk: int) -> tuple[Array, Array]:
    weights, pull_weights = jax.vjp(weight_map, params)
    values, pull_outputs = jax.vjp(outputs, weights)

    def rows(cotangent_M: Array) -> tuple[Array, Array]:
        (grad,) = pull_outputs(cotangent_M)
        (grad_p,) = pull_weights(grad)
        return tuple(jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (grad, grad_p))  # type: ignore

    jac_s, jac_p = jax.lax.map(rows, jnp.eye(values.shape[0], dtype=values.dtype), batch_size=chunk)
    return jac_s @ jac_s.T, jac_p @ jac_p.T


def tangent_kernels(weight_map: Any, outputs: Any, params: Params, chunk: int = 32) -> TangentKernels:
    """Kernels J_S J_S^T of direct training and J_P J_P^T of the clone.

    Args:
      weight_map: params -> Weights.
      outputs: weights -> [M] numbers, M <= 256 (`probe_logits`); cost M backward passes, memory M x parameters.
      params: where.
    """
    both = _kernels(as_partial(weight_map), as_partial(outputs), params, chunk)
    direct, clone = (np.asarray(x, np.float64) for x in both)
    values, clone_values = (np.linalg.eigvalsh(x)[::-1] for x in (direct, clone))
    keep = values > 1e-4 * values[0]  # float32 Jacobians
    centre = np.eye(len(direct)) - 1 / len(direct)
    a, b = centre @ direct @ centre, centre @ clone @ centre
    cka = float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return TangentKernels(clone_values[keep] / values[keep], cka, direct, clone)


def probe_logits(
    config: DecoderConfig,
    tokens_BT: Int[Array, "B T"],
    position_M: Int[Array, "M"],
    token_M: Int[Array, "M"],
    weights: Weights,
) -> Float[Array, "M"]:
    """Logits of chosen tokens at chosen flat positions, relative to the mean over the vocabulary (softmax does not
    see a common shift). Bind all but the weights: `Partial(functools.partial(probe_logits, config), tokens, ...)`."""
    logits_NV = forward(config, weights, tokens_BT).logits_NV
    centred_NV = logits_NV - jnp.mean(logits_NV, axis=-1, keepdims=True)
    return centred_NV[position_M, token_M]


# ---------------------------------------------------------------------------------- the same for students of this suite


@dataclasses.dataclass(frozen=True)
class _Merge:
    student: Student

    def __call__(self, frozen: Frozen, params: Params) -> Weights:
        return self.student.weights(params, frozen)


@dataclasses.dataclass(frozen=True)
class _DistillationLoss:
    teacher: DecoderConfig
    student: DecoderConfig

    def __call__(self, teacher_weights: Weights, weights: Weights, tokens_BT: Array) -> Array:
        teacher_NV = forward(self.teacher, teacher_weights, tokens_BT).logits_NV
        return jnp.mean(kl_per_token(teacher_NV, forward(self.student, weights, tokens_BT).logits_NV, 1.0))


def _draw_sequences(tokens_NT: Array, key: Array, size: int) -> Array:
    return tokens_NT[jax.random.randint(key, (size,), 0, tokens_NT.shape[0])]


def dynamics_columns(
    student: Student,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    params: Params,
    tokens_NT: Int[np.ndarray, "N T"],
    key: Array,
    *,
    distilled: Weights | None = None,
    batch_size: int = 256,
    blocks: int = 8,
    probes: int = 128,
) -> dict[str, float]:
    """Columns of a row: angles and speeds by class, tangent kernels on random probe logits, teacher's constants.

    Args:
      student, frozen, params: a Low-Rank Clone; `frozen` holds the matrices behind its projections (whitened or not).
      teacher_config, distilled: the teacher whose predictions are distilled (KL per token); None: the one in `frozen`.
      tokens_NT: the pool that minibatches and probes are drawn from, with replacement.
      key: of both.
      batch_size, blocks: see `alignment`.
      probes: logits on which the kernels are compared; 0 leaves them out.

    Returns:
      dynamics.<class>.cos, .cos_se, .descent, .descent_se, .floor, .kappa; kernel_cka, kernel_ratio_min, _max;
      spectrum_s_sq, spectrum_mu_sq, spectrum_kappa_sq.
    """
    k_batches, k_sequences, k_probes = jax.random.split(key, 3)
    tokens = jnp.asarray(tokens_NT)
    weight_map = Partial(_Merge(student), frozen)
    loss = Partial(_DistillationLoss(teacher_config, student.config), distilled or frozen.teacher)
    spectra = teacher_spectra(frozen.teacher)
    rows = alignment(
        weight_map, loss, Partial(_draw_sequences, tokens), params, k_batches, spectra,
        batch_size=batch_size, blocks=blocks,
    )  # fmt: skip
    columns = {
        f"dynamics.{row.matrix}.{name}": value
        for row in rows
        for name, value in row._asdict().items()
        if name != "matrix"
    }
    if probes:
        chosen = _draw_sequences(tokens, k_sequences, 32)
        k_position, k_token = jax.random.split(k_probes)
        position = jax.random.randint(k_position, (probes,), 0, chosen.size)
        token = jax.random.randint(k_token, (probes,), 0, student.config.vocab_size)
        outputs = Partial(functools.partial(probe_logits, student.config), chosen, position, token)
        kernels = tangent_kernels(weight_map, outputs, params)
        columns |= {
            "kernel_cka": kernels.alignment,
            "kernel_ratio_min": float(kernels.ratios.min()),
            "kernel_ratio_max": float(kernels.ratios.max()),
        }
    return columns | {f"spectrum_{name}": value for name, value in projection_constants(spectra).items()}


class Divergence(NamedTuple):
    """Mean token KL over held-out contexts (nats) and its standard error over sequences."""

    value: float
    standard_error: float


@functools.partial(jax.jit, static_argnames=("configs",))
def _sequence_kl(
    configs: tuple[DecoderConfig, DecoderConfig], first: Weights, second: Weights, tokens_BT: Array
) -> Array:
    first_NV, second_NV = (
        forward(config, w, tokens_BT).logits_NV for config, w in zip(configs, (first, second), strict=True)
    )
    return jnp.mean(kl_per_token(first_NV, second_NV, 1.0).reshape(tokens_BT.shape), axis=1)


def divergence(
    first: tuple[DecoderConfig, Weights],
    second: tuple[DecoderConfig, Weights],
    tokens_NT: Int[np.ndarray, "N T"],
    batch: int = 512,
) -> Divergence:
    """D = mean token KL(first || second) of two students on held-out contexts.

    The claim compares D(direct, clone) with D_0 = D(direct, direct with another order of data), at matched training
    loss. Sequences beyond a whole number of batches are left out.
    """
    batch = min(batch, len(tokens_NT))
    values = np.concatenate(
        [
            np.asarray(_sequence_kl((first[0], second[0]), first[1], second[1], tokens_NT[i : i + batch]), np.float64)
            for i in range(0, len(tokens_NT) - batch + 1, batch)
        ]
    )
    return Divergence(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def matched_step(losses: Float[np.ndarray, "T"], target: float, window: int = 50) -> int | None:
    """First step at which the trailing mean of the training loss over `window` steps is at most `target`; None where
    it never is. Students are compared at matched training loss, not at equal numbers of steps."""
    losses = np.asarray(losses, np.float64)
    if len(losses) < window:
        return None
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    reached = np.flatnonzero(means <= target)
    return int(reached[0]) + window if reached.size else None
