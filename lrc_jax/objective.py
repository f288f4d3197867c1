"""The training objective: clone_weight * sum(clone losses) + kl_weight * KL + ce_weight * CE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lrc_jax import losses
from lrc_jax.errors import InputError
from lrc_jax.losses import CLONE_DISTANCES, IGNORE, ClonePair, clone_distance
from lrc_jax.model import Activations
from lrc_jax.recipes import AUTHORS
from lrc_jax.seeds import derive_seed

CLONE_TARGETS = ("teacher", "rotated", "shuffled")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which losses are computed (static: changes the compiled program).

    Attributes:
      clone, kl, ce: compute this term at all.
      distance: one of losses.CLONE_DISTANCES.
      kl_per_token: mean over tokens; False is the reference (sum over positions, mean over sequences), which grows
        with the sequence length.
      sites: names of the clone losses to keep; empty keeps all.
      target: what the student clones. "teacher"; or a control: "rotated" (a fixed rotation of each teacher
        activation: the same information, another regression target) or "shuffled" (another token's activation: the
        same distribution, no information).
    """

    clone: bool = True
    kl: bool = True
    ce: bool = True
    distance: str = AUTHORS.clone_distance
    kl_per_token: bool = False
    sites: tuple[str, ...] = ()
    target: str = "teacher"

    def __post_init__(self) -> None:
        if self.distance not in CLONE_DISTANCES:
            raise ValueError(f"clone distance {self.distance!r} is unknown; known: {', '.join(CLONE_DISTANCES)}")
        if self.target not in CLONE_TARGETS:
            raise ValueError(f"clone target {self.target!r} is unknown; known: {', '.join(CLONE_TARGETS)}")

    @property
    def needs_teacher(self) -> bool:
        return self.clone or self.kl

    def keeps(self, pair: ClonePair) -> bool:
        return not self.sites or pair.name in self.sites


@flax.struct.dataclass
class LossWeights:
    """Weights of the terms and the temperature: traced numbers, so that runs that differ in them share a program."""

    clone: Array | float = AUTHORS.clone_weight
    kl: Array | float = 1.0
    ce: Array | float = 1.0
    temperature: Array | float = 10.0


@flax.struct.dataclass
class Terms:
    """The objective and its parts, unweighted; nats. A part that is switched off is 0."""

    total: Any
    clone: Any
    kl: Any
    ce: Any


def with_target(pair: ClonePair, target: str) -> ClonePair:
    """The pair with a control in place of the teacher's side."""
    if target == "teacher":
        return pair
    if target == "shuffled":
        # A shift by half the batch's tokens: never the same token, seldom the same sequence.
        return dataclasses.replace(pair, teacher=jnp.roll(pair.teacher, pair.teacher.shape[0] // 2, axis=0))
    student, teacher = pair.student, pair.teacher
    if pair.through is not None:
        student, teacher = student @ pair.through, teacher @ pair.through
    seed = derive_seed(0, "rotation", pair.layer, pair.name)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(pair.features, pair.features)))[0]
    return ClonePair(pair.layer, pair.name, student, teacher @ jnp.asarray(rotation, teacher.dtype))


def evaluate_objective(
    objective: Objective,
    weights: LossWeights,
    pairs: list[ClonePair],
    teacher_acts: Activations | None,
    student_acts: Activations,
    labels_BT: Int[Array, "B T"],
    *,
    output_losses: Callable[..., tuple[Array, Array]] = losses.output_losses,
    squared_error: Callable[[ClonePair], Array] = losses.squared_error,
    weighted_losses: Callable[..., tuple[Array, Array, Array]] | None = None,
) -> Terms:
    """Total and parts for one batch. `teacher_acts` may be None where neither clone nor kl is asked for.

    `output_losses`, `squared_error` and `weighted_losses` are how, not what (see `lrc_jax.compute.fast`). With the
    last, KL and cross-entropy have no gradient of their own, only the total has one.
    """
    batch, length = labels_BT.shape
    zero = jnp.zeros((), student_acts.logits_NV.dtype)
    clone = zero
    if objective.clone:
        if unknown := set(objective.sites) - {pair.name for pair in pairs}:
            names = ", ".join(dict.fromkeys(pair.name for pair in pairs))
            raise InputError(f"loss.clone_sites: {min(unknown)} is no clone loss of this student; choose of {names}")
        kept = [with_target(pair, objective.target) for pair in pairs if objective.keeps(pair)]
        clone = sum((clone_distance(pair, objective.distance, squared_error) for pair in kept), start=zero)
    assert teacher_acts is not None or not objective.kl
    teacher = teacher_acts if objective.kl else None
    labels_N = labels_BT.reshape(-1) if objective.ce else None
    kl_count = batch * length if objective.kl_per_token else batch
    ce_count = jnp.sum(labels_BT != IGNORE) if objective.ce else 1
    if weighted_losses is not None:
        share = weights.kl / kl_count, weights.ce / ce_count
        weighted, kl_sum, ce_sum = weighted_losses(student_acts, teacher, labels_N, weights.temperature, share)
        return Terms(weights.clone * clone + weighted, clone, kl_sum / kl_count, ce_sum / ce_count)
    teacher_NV = None if teacher is None else teacher.logits_NV
    kl_sum, ce_sum = output_losses(student_acts.logits_NV, teacher_NV, labels_N, weights.temperature)
    kl, ce = kl_sum / kl_count, ce_sum / ce_count
    total = weights.clone * clone + weights.kl * kl + weights.ce * ce
    return Terms(total, clone, kl, ce)
