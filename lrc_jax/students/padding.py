"""A student of rank s as one of rank r > s with zeros, so that students of several ranks have one shape.

Zeros stay zeros under training: every path into a padded coordinate is multiplied by a padded zero, so that its
gradient is 0. The one thing that notices is RMSNorm, which averages over r coordinates instead of s. With
c = sqrt(r/s), a residual stream c*x has the same mean square over r coordinates as x has over s (epsilon included), so
that everything that writes the stream is multiplied by c and every norm's gain divided by it. The rescaling is part of
the loss's graph: the parameters that are trained are the student's own.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from lrc_jax.model import Weights
from lrc_jax.objective import Objective
from lrc_jax.seeds import key_for
from lrc_jax.students.base import Frozen, Params, Student
from lrc_jax.students.dense import DenseStudent
from lrc_jax.students.factorized import FactorizedHead, FactorizedStudent
from lrc_jax.students.projected import ProjectedStudent

WRITES_STREAM = ("model.zoom.weight", "self_attn.zoom_down.weight", "mlp.zoom_down.weight")
DIVIDED = ("layernorm.weight", "target_norm.weight", "zoom_out.weight")  # norm gains; aligners that read the stream


def rank_of(student: Student) -> int:
    """The rank as configured: a residual width, or the inner dimension of U V^T."""
    if isinstance(student, ProjectedStudent | DenseStudent):
        return student.lrc.flags.rank
    if isinstance(student, FactorizedStudent | FactorizedHead):
        return student.rank
    return student.config.hidden_size  # of a kind that has no rank to choose


def with_rank(student: Student, rank: int) -> Student:
    """The same student at another rank."""
    if isinstance(student, ProjectedStudent | DenseStudent):
        flags = dataclasses.replace(student.lrc.flags, rank=rank)
        return dataclasses.replace(student, lrc=dataclasses.replace(student.lrc, flags=flags))
    if isinstance(student, FactorizedStudent | FactorizedHead):
        return dataclasses.replace(student, rank=rank)
    return student


def width_scale(student: Student, rank: int) -> float:
    """c = sqrt(r/s) where the rank is a residual width; padding an inner dimension needs no scale."""
    return (rank / rank_of(student)) ** 0.5 if isinstance(student, ProjectedStudent | DenseStudent) else 1.0


def can_pad(student: Student, objective: Objective) -> bool:
    """Whether the objective of a padded student is that of the student: a clone loss in student width has to average
    over features by 1/r where its sides carry sqrt(r/s), and its target must not be rotated within that width. Norms
    that are fixed would be those of the padded tensors."""
    if isinstance(student, ProjectedStudent) and student.lrc.unit_norm:
        return False
    return not objective.clone or (objective.distance in ("mseloss", "normalised") and objective.target != "rotated")


def pad(tree: Any, like: Any) -> Any:
    """Arrays on the host, filled up with zeros at the end of every axis to the shapes of `like`."""

    def fill(x: Any, y: Any) -> np.ndarray:
        width = [(0, n - m) for m, n in zip(x.shape, y.shape, strict=True)]
        return np.pad(x, width) if width else np.asarray(x)

    return jax.tree.map(fill, tree, like)


def cut(tree: Any, like: Any) -> Any:
    """The inverse of `pad`."""
    return jax.tree.map(lambda x, y: x[tuple(slice(n) for n in y.shape)], tree, like)


def widened(student: Student, params: Params, frozen: Frozen, rank: int) -> tuple[Student, Params]:
    """The same function at a larger rank, so that students of several ranks share one compiled evaluation.

    Args:
      params: of the student, on the host or the device.
      frozen: of the student, without its start.
    """
    wide = with_rank(student, rank)
    shapes = jax.eval_shape(functools.partial(wide.init, frozen=frozen), key_for(0))
    return wide, rescaled(wide, pad(params, shapes), width_scale(student, rank))


def without_start(frozen: Frozen) -> Frozen:
    """What training and evaluation read: basis and factors are for starts only, and their shapes are the rank's."""
    return dataclasses.replace(frozen, basis_DS=None, factors=None)


def rescaled(student: Student, params: Params, c: Array | float) -> Params:
    """Parameters of a padded student as its forward pass needs them."""
    if isinstance(student, ProjectedStudent):
        tied = student.config.tie_word_embeddings or student.lrc.flags.tie_word_emb_proj
        out = {}
        for name, x in params.items():
            if name.endswith(WRITES_STREAM):
                out[name] = x * c
            elif name == "model.target_norm.weight" and tied:  # the head, too, carries the embedding's factor
                out[name] = x / (c * c)
            else:
                out[name] = x / c if name.endswith(DIVIDED) else x
        return out
    if isinstance(student, DenseStudent):
        w: Weights = params["weights"]
        layers = tuple(
            dataclasses.replace(
                layer,
                input_norm_D=layer.input_norm_D / c,
                mlp_norm_D=layer.mlp_norm_D / c,
                o_QD=layer.o_QD * c,
                down_FD=layer.down_FD * c,
            )
            for layer in w.layers
        )
        final = w.final_norm_D / (c * c if w.head_DV is None else c)
        out = {"weights": dataclasses.replace(w, embed_VD=w.embed_VD * c, layers=layers, final_norm_D=final)}
        if "aligners" in params:  # the clone loss of the MLP's output: both sides by c, the mean over r by 1/r
            out["aligners"] = jax.tree.map(lambda x: x * c, params["aligners"])
        return out
    return params
