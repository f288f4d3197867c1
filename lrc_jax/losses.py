"""The losses of Low-Rank Clone: clone distances, distillation KL, next-token cross-entropy. All in nats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CLONE_DISTANCES = ("mseloss", "l1loss", "mseloss_v2", "l1loss_v2", "normalised")
L1_V2_DIVISOR = 50.0  # the authors' constant
IGNORE = -1  # label of a position without a target


@dataclasses.dataclass(frozen=True)
class ClonePair:
    """One clone loss: student and teacher activations [N, X] of a teacher layer, to be compared.

    Where `through` is a frozen matrix [X, Y] of the teacher, student @ through and teacher @ through are compared.
    """

    layer: int
    name: str
    student: Array
    teacher: Array
    through: Array | None = None

    @property
    def features(self) -> int:
        return self.student.shape[-1] if self.through is None else self.through.shape[-1]

    def difference(self) -> Array:
        diff = self.student - self.teacher
        return diff if self.through is None else diff @ self.through

    def squared_error(self) -> Array:
        """Sum of squared differences over tokens and features.

        Through a matrix M narrower than its output (X <= Y), |d M|^2 = d . (d M M^T) needs no product of width Y.
        """
        diff = self.student - self.teacher
        if self.through is None:
            return jnp.sum(diff * diff)
        n_in, n_out = self.through.shape
        if n_in <= n_out:
            gram = self.through @ self.through.T
            return jnp.sum(diff * (diff @ gram))
        wide = diff @ self.through
        return jnp.sum(wide * wide)

    def target_variance(self) -> Array:
        """Sum over tokens and features of the squared deviation of the teacher side from its mean token."""
        centred = self.teacher - jnp.mean(self.teacher, axis=0, keepdims=True)
        return ClonePair(self.layer, self.name, centred, jnp.zeros_like(centred), self.through).squared_error()


def squared_error(pair: ClonePair) -> Array:
    """`pair.squared_error()`, as a function: one of the operations that have a fast way."""
    return pair.squared_error()


def clone_distance(
    pair: ClonePair, kind: str, squared_error: Callable[[ClonePair], Array] = squared_error
) -> Float[Array, ""]:
    """One clone loss.

    mseloss: mean square over tokens and features; l1loss: mean absolute; mseloss_v2: summed over features, mean
    over tokens; l1loss_v2: absolute, summed over features and divided by 50, mean over tokens (all four as the
    authors' `aux_loss_type`). normalised: fraction of variance unexplained, which shrinking both sides leaves as it
    is, so that it cannot be won by letting `zoom_down` collapse.
    """
    tokens = pair.student.shape[0]
    if kind == "mseloss":
        return squared_error(pair) / (tokens * pair.features)
    if kind == "mseloss_v2":
        return squared_error(pair) / tokens
    if kind == "l1loss":
        return jnp.mean(jnp.abs(pair.difference()))
    if kind == "l1loss_v2":
        return jnp.sum(jnp.abs(pair.difference())) / (L1_V2_DIVISOR * tokens)
    if kind == "normalised":
        return fraction_unexplained(pair)
    raise ValueError(f"clone distance {kind!r} is unknown; known: {', '.join(CLONE_DISTANCES)}")


def fraction_unexplained(pair: ClonePair) -> Float[Array, ""]:
    """FVU = sum |student - teacher|^2 / sum |teacher - mean teacher|^2. 0 is a perfect clone; 1 no better than the
    mean; scale-free, so comparable across sites (the raw loss of a collapsed site is not)."""
    return pair.squared_error() / (pair.target_variance() + 1e-12)


def kl_per_token(teacher_logits_NV: Array, student_logits_NV: Array, temperature: Array | float) -> Float[Array, "N"]:
    """KL(teacher || student) of every position at a temperature, without the T^2 factor."""
    log_p = jax.nn.log_softmax(teacher_logits_NV / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student_logits_NV / temperature, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def cross_entropy_per_token(logits_NV: Array, labels_N: Int[Array, "N"]) -> Float[Array, "N"]:
    """-log softmax(logits)[label] of every position; 0 where the label is IGNORE."""
    log_q = jax.nn.log_softmax(logits_NV, axis=-1)
    picked = jnp.take_along_axis(log_q, jnp.maximum(labels_N, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(labels_N == IGNORE, 0.0, -picked)


def output_losses(
    student_NV: Array, teacher_NV: Array | None, labels_N: Array | None, temperature: Array | float
) -> tuple[Array, Array]:
    """Sums over tokens of KL(teacher || student) and of cross-entropy; 0 where teacher or labels are None."""
    zero = jnp.zeros((), student_NV.dtype)
    kl = zero if teacher_NV is None else jnp.sum(kl_per_token(teacher_NV, student_NV, temperature))
    ce = zero if labels_N is None else jnp.sum(cross_entropy_per_token(student_NV, labels_N))
    return kl, ce
