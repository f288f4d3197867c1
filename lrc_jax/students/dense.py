"""Students that train a small decoder's own weights: `direct` and `scratch`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Int

from lrc_jax.clone import LowRankClone
from lrc_jax.compute.fast import forward
from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, Weights, init_weights
from lrc_jax.students.base import Frozen, same_space_pairs


@dataclasses.dataclass(frozen=True)
class DenseStudent:
    """The Low-Rank Clone's architecture with every weight trained.

    `direct` starts from the merged weights of a fresh Low-Rank Clone: from there it and the clone differ only in
    what is trained. `scratch` starts at random. With clone losses, one aligner per layer ([s, D], starting as the
    clone's `zoom_down`) maps the teacher's MLP output to the student's width; it is trained and then thrown away.
    """

    kind: str
    lrc: LowRankClone
    aligned: bool = True
    trained: bool = dataclasses.field(default=True, init=False)
    reads_only_final: bool = dataclasses.field(default=False, init=False)

    @property
    def config(self) -> DecoderConfig:
        return self.lrc.config

    def init(self, key: Array, frozen: Frozen) -> dict[str, Any]:
        projections = self.lrc.init(key, frozen.teacher, frozen.basis_DS)
        if self.kind == "direct":
            weights = self.lrc.weights(projections, frozen.teacher)
        else:
            weights = init_weights(self.config, key)
        params: dict[str, Any] = {"weights": weights}
        if self.aligned:
            params["aligners"] = {
                i: projections[f"model.layers.{i}.mlp.zoom_down.weight"] for i in self.lrc.kept_layers
            }
        return params

    def weights(self, params: dict[str, Any], frozen: Frozen) -> Weights:
        del frozen
        return params["weights"]

    def forward(
        self,
        params: dict[str, Any],
        frozen: Frozen,
        tokens_BT: Int[Array, "B T"],
        teacher_acts: Activations | None,
    ) -> Activations:
        del frozen, teacher_acts
        return forward(self.config, params["weights"], tokens_BT)

    def clone_pairs(
        self, params: dict[str, Any], frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        pairs = []
        for j, i in enumerate(self.lrc.kept_layers):
            t, s = teacher_acts.layers[i], student_acts.layers[j]
            target = t.mlp_out_ND @ params["aligners"][i].T if self.aligned else None
            pairs += same_space_pairs(i, frozen.teacher, t, s, target)
        return pairs
