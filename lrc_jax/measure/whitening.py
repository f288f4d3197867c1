"""The intervention that tests the explanation of the clone's dynamics: a teacher whose matrices are white.

With the polar factor of A in place of A, the preconditioner K = A A^T is the identity wherever A reaches every
direction (square, or wide on its projected side), and a projection elsewhere. Training the projections then *is* direct
training of that matrix. If whitening does not remove the discrepancy there, the explanation of it is wrong.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrc_jax.measure.spectra import LAYER_MATRICES, MATRIX_CLASSES
from lrc_jax.model import LayerWeights, Weights


def polar_factor(matrix: Float[Array, "a b"], tolerance: float = 1e-5) -> Float[Array, "a b"]:
    """U V^T of the compact singular value decomposition: the same row and column space, every singular value 1."""
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    rank = int(np.sum(s > tolerance * s[0]))
    return jnp.asarray(u[:, :rank] @ vt[:rank], matrix.dtype)


def whiten_teacher(weights: Weights, matrices: tuple[str, ...] = ("q", "k", "v", "o")) -> Weights:
    """The teacher with the matrices of these classes replaced by their polar factors.

    Only the map from projections to weights may use the result: distil from the original teacher.
    """
    unknown = [m for m in matrices if m not in MATRIX_CLASSES]
    if unknown:
        raise ValueError(f"matrices: {', '.join(unknown)} unknown; known: {', '.join(MATRIX_CLASSES)}")

    def whitened(layer: LayerWeights) -> LayerWeights:
        fields = [f for f, (name, _) in LAYER_MATRICES.items() if name in matrices]
        return layer.replace(**{f: polar_factor(getattr(layer, f)) for f in fields})  # type: ignore[attr-defined]

    embed, head = weights.embed_VD, weights.head_DV
    if "head" in matrices and head is None:
        raise ValueError("matrices: the head is the embedding, transposed; whiten embed")
    return Weights(
        embed_VD=polar_factor(embed) if "embed" in matrices else embed,
        layers=tuple(map(whitened, weights.layers)),
        final_norm_D=weights.final_norm_D,
        head_DV=polar_factor(head) if head is not None and "head" in matrices else head,
    )


def same_start(params: dict[str, Array], teacher: Weights, whitened: Weights) -> dict[str, Array]:
    """Projections for a whitened teacher that give the same student weights as `params` do for the original one.

    For S = A P and the polar factor Q of A: Q (Q^T A P) = A P, since Q Q^T projects on the columns of A.

    Args:
      params: of a Low-Rank Clone with projections of its own for q, k, v, gate and up (the default flags).

    Raises:
      ValueError: projections are shared between matrices.
    """
    layers = sorted({int(name.split(".")[2]) for name in params if name.startswith("model.layers.")})
    shared = [i for i in layers if f"model.layers.{i}.self_attn.zoom_q.weight" not in params]
    shared += [i for i in layers if f"model.layers.{i}.mlp.zoom_gate.weight" not in params]
    if shared or "zoom_down.weight" not in params:
        raise ValueError("same_start: projections are shared between matrices; use the default flags")
    out = dict(params)

    def moved(name: str, old: Array, new: Array, projects_input: bool, stored_transposed: bool) -> None:
        """P <- Q^T A P, with A = old and Q = new brought to [free, projected]; P may be stored as [s, D]."""
        if old is new:  # this matrix was not whitened
            return
        move_DD = new @ old.T if projects_input else new.T @ old
        out[name] = params[name] @ move_DD.T if stored_transposed else move_DD @ params[name]

    for i in layers:
        old, new = teacher.layers[i], whitened.layers[i]
        attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        for letter, field in (("q", "q_DQ"), ("k", "k_DK"), ("v", "v_DK")):
            moved(f"{attn}zoom_{letter}.weight", getattr(old, field), getattr(new, field), True, False)
        moved(attn + "zoom_down.weight", old.o_QD, new.o_QD, False, True)
        moved(mlp + "zoom_gate.weight", old.gate_DF, new.gate_DF, True, True)
        moved(mlp + "zoom_up.weight", old.up_DF, new.up_DF, True, True)
        moved(mlp + "zoom_down.weight", old.down_FD, new.down_FD, False, True)
    moved("model.zoom.weight", teacher.embed_VD, whitened.embed_VD, False, True)
    if teacher.head_DV is None:
        moved("zoom_down.weight", teacher.embed_VD, whitened.embed_VD, False, True)
    else:
        moved("zoom_down.weight", teacher.head_DV, whitened.head_DV, True, True)  # type: ignore[arg-type]
    return out
