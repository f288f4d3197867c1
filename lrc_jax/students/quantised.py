"""The teacher with its matrices rounded to nearest: nothing is trained, nothing is left out but bits.

int8 has one scale for each output channel, int4 one for every 32 inputs of an output channel; scales are float16,
levels symmetric around 0. The embedding's channels are its tokens, so that one rounding serves embedding and head.
Norms and biases stay float32. What is computed with are the rounded weights in float32: this says what rounding costs
in loss and saves in bytes, not how fast a kernel for it is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrc_jax.compute.fast import forward
from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, Weights
from lrc_jax.students.base import Frozen, pairs_of_every_layer
from lrc_jax.students.factorized import matrix, matrix_shapes, with_matrix

GROUP = {8: None, 4: 32}  # bits -> inputs that share a scale; None: all
SCALE_BYTES = 2


def rounded(matrix: Float[Array, "n_in n_out"], bits: int) -> Float[Array, "n_in n_out"]:
    """A matrix at the nearest levels of its channels (columns) or of their groups."""
    n_in, n_out = matrix.shape
    size = GROUP[bits] or n_in
    groups = jnp.pad(matrix, ((0, -n_in % size), (0, 0))).reshape(-1, size, n_out)
    most = 2 ** (bits - 1) - 1
    scale = (jnp.max(jnp.abs(groups), axis=1, keepdims=True) / most).astype(jnp.float16).astype(matrix.dtype)
    levels = jnp.clip(jnp.round(groups / jnp.where(scale > 0, scale, 1.0)), -most, most)
    return (levels * scale).reshape(-1, n_out)[:n_in]


def quantised_bytes(teacher: DecoderConfig, bits: int) -> float:
    """Bytes of the matrices' levels and scales."""
    total = 0.0
    for name, shape in matrix_shapes(teacher).items():
        n_in, n_out = shape[::-1] if name == "embed" else shape
        total += bits / 8 * n_in * n_out + SCALE_BYTES * n_out * math.ceil(n_in / (GROUP[bits] or n_in))
    return total


@dataclasses.dataclass(frozen=True)
class QuantisedTeacher:
    """The teacher at `bits` bits behind the students' interface."""

    teacher: DecoderConfig
    bits: int
    kind: str = dataclasses.field(default="quantised", init=False)
    trained: bool = dataclasses.field(default=False, init=False)
    reads_only_final: bool = dataclasses.field(default=False, init=False)

    @property
    def config(self) -> DecoderConfig:
        return self.teacher

    def init(self, key: Array, frozen: Frozen) -> dict[str, Any]:
        del key, frozen
        return {}

    def weights(self, params: dict[str, Any], frozen: Frozen) -> Weights:
        del params
        out = frozen.teacher
        for name in matrix_shapes(self.teacher):
            w = matrix(frozen.teacher, name)
            out = with_matrix(out, name, rounded(w.T, self.bits).T if name == "embed" else rounded(w, self.bits))
        return out

    def forward(
        self, params: dict[str, Any], frozen: Frozen, tokens_BT: Int[Array, "B T"], teacher_acts: Activations | None
    ) -> Activations:
        del teacher_acts
        return forward(self.config, self.weights(params, frozen), tokens_BT)

    def clone_pairs(
        self, params: dict[str, Any], frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        del params
        return pairs_of_every_layer(frozen.teacher, teacher_acts, student_acts)
