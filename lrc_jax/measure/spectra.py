"""Singular values of the teacher's matrices: the constants of the projection's effect on optimisation.

A student matrix is S = A P (q, k, v, gate, up, embedding, head) or S = P^T A (o, down) with the teacher's A frozen.
Then L and sigma^2 in P are at most s^2 times those in S, and the gradient in S is controlled with kappa^2, where
kappa = s / mu, s the largest and mu the smallest non-zero singular value of A.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from lrc_jax.model import Weights

# Field of LayerWeights -> (class, whether the projection multiplies the matrix's input side)
LAYER_MATRICES = {
    "q_DQ": ("q", True),
    "k_DK": ("k", True),
    "v_DK": ("v", True),
    "o_QD": ("o", False),
    "gate_DF": ("gate", True),
    "up_DF": ("up", True),
    "down_FD": ("down", False),
}
MATRIX_CLASSES = ("embed", "q", "k", "v", "o", "gate", "up", "down", "head")


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Spectrum of one frozen matrix.

    Attributes:
      name: class of the matrix: q, k, v, o, gate, up, down, embed, head.
      layer: index, or None for embed and head.
      projected, free: lengths of the axis that the projection replaces and of the axis that the student keeps.
      s, mu, kappa, rank: largest and smallest non-zero singular value, their ratio, numerical rank.
      spans_free: whether the rows (or columns) that the student keeps are unconstrained, i.e. rank == free. Where
        they are not, a part of the student's gradient never reaches the projection.
    """

    name: str
    layer: int | None
    projected: int
    free: int
    s: float
    mu: float
    kappa: float
    rank: int

    @property
    def spans_free(self) -> bool:
        return self.rank == self.free


def matrix_spectrum(
    matrix: Float[Array | np.ndarray, "in out"], name: str, layer: int | None, projects_input: bool
) -> Spectrum:
    """Spectrum of a frozen [in, out] matrix whose input (or output) axis is replaced by a projection."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    # The matrix is known to float32, so that smaller singular values are rounding.
    tolerance = max(matrix.shape) * float(np.finfo(np.float32).eps) * values[0]
    rank = int(np.sum(values > tolerance))
    if rank == 0:
        raise ValueError(f"matrix {name} of layer {layer} is zero")
    projected, free = matrix.shape if projects_input else matrix.shape[::-1]
    s, mu = float(values[0]), float(values[rank - 1])
    return Spectrum(name, layer, projected, free, s, mu, s / mu, rank)


def teacher_spectra(weights: Weights) -> list[Spectrum]:
    """Spectra of all matrices that Low-Rank Clone projects. One SVD each, on the host in float64."""
    out = [matrix_spectrum(weights.embed_VD.T, "embed", None, projects_input=True)]
    for index, layer in enumerate(weights.layers):
        out += [
            matrix_spectrum(getattr(layer, field), name, index, projects_input)
            for field, (name, projects_input) in LAYER_MATRICES.items()
        ]
    out.append(matrix_spectrum(weights.unembedding_DV(), "head", None, projects_input=True))
    return out


def projection_constants(spectra: list[Spectrum]) -> dict[str, float]:
    """s^2, mu^2 and kappa^2 of the block-diagonal map from what is trained to the student's weights.

    Bound in P <= s^2 x Bound in S; stationarity in S, within the reachable subspace, <= kappa^2 x Bound in S. The
    norm gains are trained as they are: their block is the identity, so that s >= 1 >= mu.
    """
    largest, smallest = max(1.0, *(x.s for x in spectra)), min(1.0, *(x.mu for x in spectra))
    return {"s_sq": largest**2, "mu_sq": smallest**2, "kappa_sq": (largest / smallest) ** 2}
