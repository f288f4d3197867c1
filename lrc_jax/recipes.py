"""How a Low-Rank Clone is set up, in one place: the defaults of the library, of `distill` and of a sweep's runs."""

from __future__ import annotations

from typing import NamedTuple


class Recipe(NamedTuple):
    """What has to be chosen before a clone is trained.

    Attributes:
      init: start of the projections, one of `lrc_jax.students.registry.INITS`.
      clone_distance: how activations are compared, one of `lrc_jax.losses.CLONE_DISTANCES`.
      clone_weight: of the clone losses.
    """

    init: str
    clone_distance: str
    clone_weight: float


#: Works on every teacher tried: no scale of a teacher's activations upsets it (docs/ablation.md).
DEFAULT = Recipe("pca", "normalised", 0.01)
#: As the authors train it; `preset=authors` in a sweep (conf/preset/authors.yaml).
AUTHORS = Recipe("random", "mseloss", 0.2)
