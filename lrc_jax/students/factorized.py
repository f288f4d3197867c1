"""`factorized`: a student of the teacher's shape whose matrices are U V^T of rank r.

This is the class for which r(m+n) counts parameters (the class r(m+n-r) of them up to the gauge U -> U G,
V^T -> G^-1 V^T). Low-Rank Clone's own "rank" is a width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lrc_jax.compute.fast import forward
from lrc_jax.losses import ClonePair
from lrc_jax.model import Activations, DecoderConfig, LayerWeights, Unembedding, Weights, count_parameters, init_weights
from lrc_jax.students.base import Frozen, pairs_of_every_layer

MATRICES = ("q_DQ", "k_DK", "v_DK", "o_QD", "gate_DF", "up_DF", "down_FD")
HEAD_START = 0.5  # scale of the head's random start in whitened coordinates


def _random_factors(key: Array, shape: tuple[int, ...], rank: int, scale: float) -> dict[str, Array]:
    """U, V with (U V)_ij of standard deviation scale / sqrt(fan_in), both factors of equal size."""
    n_in, n_out = shape
    k1, k2 = jax.random.split(key)
    std = (scale * n_in**-0.5) ** 0.5 * rank**-0.25
    return {"u": std * jax.random.normal(k1, (n_in, rank)), "v": std * jax.random.normal(k2, (rank, n_out))}


def _svd_factors(matrix: Array, rank: int) -> dict[str, Array]:
    """The best rank-r approximation (Eckart-Young), split evenly over the two factors."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    root = jnp.sqrt(s[:rank])
    return {"u": u[:, :rank] * root[None, :], "v": root[:, None] * vt[:rank]}


def factored_size(n_in: int, n_out: int, rank: int) -> int:
    """Numbers of U V^T as it is kept and run: its factors, or the whole matrix where that is smaller."""
    return min(rank * (n_in + n_out), n_in * n_out)


def matrix_shapes(teacher: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Every matrix of a decoder by name, with its shape [in, out]; an embedding that is the head too stands once."""
    D, F, Q, K = teacher.hidden_size, teacher.intermediate_size, teacher.q_size, teacher.kv_size
    of = {"q_DQ": (D, Q), "k_DK": (D, K), "v_DK": (D, K), "o_QD": (Q, D), "gate_DF": (D, F), "up_DF": (D, F),
          "down_FD": (F, D)}  # fmt: skip
    found = {f"layers.{i}.{name}": of[name] for i in range(teacher.num_layers) for name in MATRICES}
    found["embed"] = (teacher.vocab_size, D)
    return found if teacher.tie_word_embeddings else found | {"head": (D, teacher.vocab_size)}


def matrix(weights: Weights, name: str) -> Array:
    """A matrix by its name in `matrix_shapes`."""
    if name == "embed":
        return weights.embed_VD
    if name == "head":
        return weights.unembedding_DV()
    _, layer, field = name.split(".")
    return getattr(weights.layers[int(layer)], field)


def with_matrix(weights: Weights, name: str, value: Array) -> Weights:
    """The same decoder with another matrix of a name."""
    if name == "embed":
        return dataclasses.replace(weights, embed_VD=value)
    if name == "head":
        return dataclasses.replace(weights, head_DV=value)
    _, number, field = name.split(".")
    layers = list(weights.layers)
    layers[int(number)] = dataclasses.replace(layers[int(number)], **{field: value})
    return dataclasses.replace(weights, layers=tuple(layers))


def matrix_budget(teacher: DecoderConfig, clone: DecoderConfig) -> int:
    """Numbers that the factorized matrices of a teacher's shape may hold for a student to be as large as a clone."""

    def numbers(config: DecoderConfig) -> int:
        return count_parameters(jax.eval_shape(functools.partial(init_weights, config), jax.random.key(0)))

    matrices = sum(math.prod(shape) for shape in matrix_shapes(teacher).values())
    return numbers(clone) - (numbers(teacher) - matrices)


def uniform_ranks(shapes: Sequence[tuple[int, int]], budget: int) -> tuple[int, ...]:
    """One rank for all matrices, as large as a budget of numbers allows, and one more for the first that still fit."""

    def size(ranks: Sequence[int]) -> int:
        return sum(factored_size(m, n, rank) for (m, n), rank in zip(shapes, ranks, strict=True))

    highest = max(min(shape) for shape in shapes)
    capped = [[min(rank, *shape) for shape in shapes] for rank in range(1, highest + 1)]
    ranks = ([capped[0]] + [one for one in capped if size(one) <= budget])[-1]
    for i, shape in enumerate(shapes):
        more = [*ranks[:i], min(ranks[i] + 1, *shape), *ranks[i + 1 :]]
        if size(more) <= budget:
            ranks = more
    return tuple(ranks)


@dataclasses.dataclass(frozen=True)
class FactorizedStudent:
    """Every matrix of the teacher's shape is U V^T (norm gains and biases are trained too).

    Attributes:
      rank: of every matrix, where `ranks` does not say otherwise.
      from_svd: start from each matrix's truncated SVD.
      ranks: one rank for each of `matrix_shapes`, in its order.
    """

    teacher: DecoderConfig
    rank: int
    from_svd: bool = False
    ranks: tuple[int, ...] | None = None
    kind: str = dataclasses.field(default="factorized", init=False)
    trained: bool = dataclasses.field(default=True, init=False)
    reads_only_final: bool = dataclasses.field(default=False, init=False)

    @property
    def config(self) -> DecoderConfig:
        return self.teacher

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Every matrix that is factorized, with its shape."""
        return matrix_shapes(self.teacher)

    def rank_by_matrix(self) -> dict[str, int]:
        """The inner dimension of every matrix, at most the matrix's own rank."""
        shapes = self.shapes()
        ranks = self.ranks or (self.rank,) * len(shapes)
        return {name: min(rank, *shape) for (name, shape), rank in zip(shapes.items(), ranks, strict=True)}

    def init(self, key: Array, frozen: Frozen) -> dict[str, Any]:
        teacher, ranks = frozen.teacher, self.rank_by_matrix()
        keys = jax.random.split(key, len(MATRICES) * len(teacher.layers) + 2)

        def start(name: str, key: Array) -> dict[str, Array]:
            if frozen.factors is not None:
                return frozen.factors[name]
            if self.from_svd:
                return _svd_factors(matrix(teacher, name), ranks[name])
            return _random_factors(key, self.shapes()[name], ranks[name], 1.0)

        factors = {name: start(name, k) for name, k in zip(ranks, keys, strict=False)}
        layers = [
            {name: factors[f"layers.{i}.{name}"] for name in MATRICES}
            | {
                f.name: getattr(w, f.name)
                for f in dataclasses.fields(w)
                if f.name not in MATRICES and getattr(w, f.name) is not None
            }
            for i, w in enumerate(teacher.layers)
        ]
        params: dict[str, Any] = {
            "embed": factors["embed"],
            "layers": layers,
            "final_norm": teacher.final_norm_D,
        }
        if "head" in factors:
            params["head"] = factors["head"]
        return params

    def weights(self, params: dict[str, Any], frozen: Frozen) -> Weights:
        del frozen
        layers = tuple(
            LayerWeights(**{n: x["u"] @ x["v"] if isinstance(x, dict) else x for n, x in layer.items()})
            for layer in params["layers"]
        )
        head = params.get("head")
        return Weights(
            embed_VD=params["embed"]["u"] @ params["embed"]["v"],
            layers=layers,
            final_norm_D=params["final_norm"],
            head_DV=None if head is None else head["u"] @ head["v"],
        )

    def forward(
        self,
        params: dict[str, Any],
        frozen: Frozen,
        tokens_BT: Int[Array, "B T"],
        teacher_acts: Activations | None,
    ) -> Activations:
        del teacher_acts
        embedded = params["embed"]["u"][tokens_BT.reshape(-1)] @ params["embed"]["v"]
        return forward(self.config, self.weights(params, frozen), tokens_BT, embedded)

    def clone_pairs(
        self, params: dict[str, Any], frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        del params
        return pairs_of_every_layer(frozen.teacher, teacher_acts, student_acts)


@dataclasses.dataclass(frozen=True)
class FactorizedHead:
    """The teacher's frozen trunk with an unembedding U V^T of rank r: one matrix's rank, and nothing else.

    With a whitener C^-1/2 the unembedding is C^-1/2 U V^T: the same class, trained in coordinates in which the
    trunk's features are white.
    """

    teacher: DecoderConfig
    rank: int
    from_svd: bool = False
    kind: str = dataclasses.field(default="factorized", init=False)
    trained: bool = dataclasses.field(default=True, init=False)
    reads_only_final: bool = dataclasses.field(default=True, init=False)

    @property
    def config(self) -> DecoderConfig:
        return dataclasses.replace(self.teacher, tie_word_embeddings=False)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The one matrix that is factorized."""
        return {"head": (self.teacher.hidden_size, self.teacher.vocab_size)}

    def rank_by_matrix(self) -> dict[str, int]:
        """Its inner dimension, at most its own rank."""
        return {"head": min(self.rank, *self.shapes()["head"])}

    def init(self, key: Array, frozen: Frozen) -> dict[str, Array]:
        head_DV, rank = frozen.teacher.unembedding_DV(), self.rank_by_matrix()["head"]
        if not self.from_svd:
            return _random_factors(key, head_DV.shape, rank, HEAD_START**2)
        if frozen.whitener_DD is not None:
            head_DV = jnp.linalg.solve(frozen.whitener_DD, head_DV)
        return _svd_factors(head_DV, rank)

    def head_DV(self, params: dict[str, Array], frozen: Frozen) -> Array:
        u_DR = params["u"] if frozen.whitener_DD is None else frozen.whitener_DD @ params["u"]
        return u_DR @ params["v"]

    def weights(self, params: dict[str, Array], frozen: Frozen) -> Weights:
        return dataclasses.replace(frozen.teacher, head_DV=self.head_DV(params, frozen))

    def forward(
        self,
        params: dict[str, Array],
        frozen: Frozen,
        tokens_BT: Int[Array, "B T"],
        teacher_acts: Activations | None,
    ) -> Activations:
        if teacher_acts is None:
            teacher_acts = forward(self.teacher, frozen.teacher, tokens_BT)
        u_DR = params["u"] if frozen.whitener_DD is None else frozen.whitener_DD @ params["u"]
        # (x U) V: two thin products instead of one by the merged [D, V] matrix.
        narrow_NR = teacher_acts.final_ND @ u_DR
        return dataclasses.replace(
            teacher_acts,
            logits_NV=narrow_NR @ params["v"],
            final_ND=narrow_NR,
            unembedding=Unembedding(params["v"]),
        )

    def clone_pairs(
        self, params: dict[str, Array], frozen: Frozen, teacher_acts: Activations, student_acts: Activations
    ) -> list[ClonePair]:
        """None: the trunk is the teacher's, so that every clone loss would be 0."""
        return []
