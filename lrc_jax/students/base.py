"""The interface of a student and what all of them share."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.struct
from jaxtyping import Array, Float, Int

from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, Weights
from lrc_jax.recipes import AUTHORS

Params = Any  # a pytree of arrays; all of it is trained


@flax.struct.dataclass
class Frozen:
    """What a student reads and never trains. An argument of every compiled function: closing over the teacher
    would bake its weights into the program as constants.

    Attributes:
      teacher: the teacher's weights, whose projections the student is.
      basis_DS: orthonormal basis of the teacher's residual stream for data-driven starts, or None.
      whitener_DD: symmetric inverse square root of the final features' second moment, or None.
      distilled: the teacher that is distilled, where it is another one (the whitening intervention), or None.
      factors: start of a factorized student, {matrix: {"u": [in, r], "v": [r, out]}}, where it was computed from data,
        or None.
    """

    teacher: Weights
    basis_DS: Array | None = None
    whitener_DD: Array | None = None
    distilled: Weights | None = None
    factors: dict[str, dict[str, Array]] | None = None


@dataclasses.dataclass(frozen=True)
class StudentOptions:
    """Choices that make a student besides its kind and rank (static).

    Attributes:
      init: "random" (the authors' N(0, 0.02^2)), "fan_in" (N(0, 1/D)), "pca" (principal components of the teacher's
        residual stream) or "channels" (its most active coordinates); for factorized students "pca" means the
        truncated SVD of each matrix, and "whitened" the activation-aware one (lrc_jax.students.whitened).
      matrices: factorized only: "all" or "head".
      allocation: factorized all only: "none" (the rank is every matrix's), "uniform" (as many numbers as a clone of
        that rank has, at one rank for all matrices) or "by_loss" (the same, at the ranks that cost least; whitened
        only).
      bits: quantised only: 8 (a scale for each output channel) or 4 (one for every 32 inputs of it).
      whiten: factorized head only: train in coordinates in which the trunk's features are white. A free
        reparametrisation, but without it estimation saturates in the rank.
      clone: whether clone losses will be asked for (direct and scratch then carry aligners for them).
      unit_embedding: start from embedded tokens of rms 1 (see LowRankClone).
      unit_norm: lrc only: every trained tensor keeps its norm (see LowRankClone.normed).
    """

    init: str = AUTHORS.init
    matrices: str = "all"
    allocation: str = "none"
    bits: int = 8
    whiten: bool = True
    clone: bool = True
    unit_embedding: bool = False
    unit_norm: bool = False


@runtime_checkable
class Student(Protocol):
    """A trainable map from parameters to a decoder. Hashable; its methods are pure and can be traced."""

    @property
    def kind(self) -> str: ...

    @property
    def config(self) -> DecoderConfig:
        """Architecture of the decoder that the student is."""

    @property
    def trained(self) -> bool:
        """False for students that are built, not trained."""

    @property
    def reads_only_final(self) -> bool:
        """True where the student needs nothing of its input but the teacher's final features."""

    def init(self, key: Array, frozen: Frozen) -> Params:
        """Start values of everything that is trained."""

    def weights(self, params: Params, frozen: Frozen) -> Weights:
        """The student as an ordinary decoder."""

    def forward(
        self, params: Params, frozen: Frozen, tokens_BT: Int[Array, "B T"], teacher_acts: Activations | None
    ) -> Activations:
        """Logits and activations on a batch."""

    def clone_pairs(
        self, params: Params, frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        """What the clone losses compare."""


def pairs_of_every_layer(teacher: Weights, teacher_acts: Activations, student_acts: Activations) -> list[ClonePair]:
    """Clone pairs of a student of the teacher's own shape."""
    layers = enumerate(zip(teacher_acts.layers, student_acts.layers, strict=True))
    return [pair for i, (t, s) in layers for pair in same_space_pairs(i, teacher, t, s, t.mlp_out_ND)]


def same_space_pairs(
    teacher_layer: int, teacher: Weights, t: Any, s: Any, mlp_target_NS: Float[Array, "N s"] | None
) -> list[ClonePair]:
    """Clone pairs of a layer for students that own their weights: q, k, v, gate and up live in the teacher's
    spaces; the attention output is compared in teacher width through the teacher's Wo; the MLP output against
    `mlp_target_NS` where the student has a map to its own width (None: left out)."""
    pairs = [
        ClonePair(teacher_layer, "attn-q-sim-loss", s.q_NQ, t.q_NQ),
        ClonePair(teacher_layer, "attn-k-sim-loss", s.k_NK, t.k_NK),
        ClonePair(teacher_layer, "attn-v-sim-loss", s.v_NK, t.v_NK),
        ClonePair(
            teacher_layer, "attn-out-sim-loss", s.context_NQ, t.context_NQ, through=teacher.layers[teacher_layer].o_QD
        ),
        ClonePair(teacher_layer, "mlp-gate-loss", s.gate_NF, t.gate_NF),
        ClonePair(teacher_layer, "mlp-up-loss", s.up_NF, t.up_NF),
    ]
    if mlp_target_NS is not None:
        pairs.append(ClonePair(teacher_layer, "mlp-out-loss", s.mlp_out_ND, mlp_target_NS))
    return pairs
