"""`lrc` and `svd`: students whose weights are projections of the teacher's."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Int

from lrc_jax.clone import LowRankClone, Projections
from lrc_jax.compute.fast import forward
from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, Weights
from lrc_jax.students.base import Frozen


@dataclasses.dataclass(frozen=True)
class ProjectedStudent:
    """Low-Rank Clone behind the students' interface. `svd` is its start from the teacher's principal components,
    left untrained."""

    kind: str
    lrc: LowRankClone
    reads_only_final: bool = dataclasses.field(default=False, init=False)

    @property
    def trained(self) -> bool:
        return self.kind == "lrc"

    @property
    def config(self) -> DecoderConfig:
        return self.lrc.config

    def init(self, key: Array, frozen: Frozen) -> Projections:
        return self.lrc.init(key, frozen.teacher, frozen.basis_DS)

    def weights(self, params: Projections, frozen: Frozen) -> Weights:
        return self.lrc.weights(self.lrc.normed(params, frozen.teacher), frozen.teacher)

    def forward(
        self, params: Projections, frozen: Frozen, tokens_BT: Int[Array, "B T"], teacher_acts: Activations | None
    ) -> Activations:
        del teacher_acts
        embedded = self.lrc.embedded(self.lrc.normed(params, frozen.teacher), frozen.teacher, tokens_BT)
        return forward(self.config, self.weights(params, frozen), tokens_BT, embedded)

    def clone_pairs(
        self, params: Projections, frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        return self.lrc.clone_pairs(self.lrc.normed(params, frozen.teacher), frozen.teacher, teacher_acts, student_acts)
