"""FLOPs, parameters and bytes of a decoder and of a Low-Rank Clone step: by formula, and from the compiler.

A FLOP is an addition or a multiplication (a multiply-add is two), as XLA counts; transcendental functions are not
counted. Formulas are of what `model.forward` computes: attention is over all T x T pairs of a sequence and masked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrc_jax.clone import CloneFlags, LowRankClone
from lrc_jax.model import DecoderConfig, forward
from lrc_jax.objective import Objective
from lrc_jax.students.base import Student
from lrc_jax.students.dense import DenseStudent
from lrc_jax.students.factorized import FactorizedHead, FactorizedStudent, factored_size, matrix_shapes
from lrc_jax.students.projected import ProjectedStudent
from lrc_jax.students.quantised import QuantisedTeacher, quantised_bytes


def parameter_count(config: DecoderConfig) -> int:
    """Numbers in a decoder's weights."""
    D, F, Q, K, C = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size, config.head_dim
    layer = 2 * D * Q + 2 * D * K + 3 * D * F + 2 * D
    layer += (Q + 2 * K if config.qkv_bias else 0) + (2 * C if config.qk_norm else 0)
    return config.num_layers * layer + D + config.vocab_size * D * (1 if config.tie_word_embeddings else 2)


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass per token, by part."""

    attention_projections: float
    attention_scores: float
    mlp: float
    head: float
    elementwise: float

    @property
    def matmul(self) -> float:
        return self.attention_projections + self.attention_scores + self.mlp + self.head

    @property
    def total(self) -> float:
        return self.matmul + self.elementwise


def forward_flops(config: DecoderConfig, keys: int) -> Flops:
    """FLOPs of one token's forward pass that attends to `keys` positions.

    `keys` is the sequence length T for a whole (masked) sequence, and the cache's capacity for decoding.
    """
    D, F, L = config.hidden_size, config.intermediate_size, config.num_layers
    Q, K, H = config.q_size, config.kv_size, config.num_heads
    # RMSNorm 4 a number, residual 1, RoPE 3.5, softmax with scaling and mask 5 a score, SiLU and gating 3
    elementwise = L * (2 * 5 * D + 3.5 * (Q + K) + 5 * H * keys + 3 * F) + 4 * D
    return Flops(
        attention_projections=L * (4 * D * Q + 4 * D * K),
        attention_scores=L * 4 * Q * keys,
        mlp=L * 6 * D * F,
        head=2 * D * config.vocab_size,
        elementwise=elementwise,
    )


def projection_count(lrc: LowRankClone) -> int:
    """Trained numbers of a Low-Rank Clone."""
    return sum(math.prod(shape) for shape in lrc.shapes().values())


@dataclasses.dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of one training step by part: teacher's forward, student's forward and backward, making the student's
    weights of what is trained (and back), and what only the clone losses need."""

    teacher: float
    student: float
    merge: float
    clone: float

    @property
    def total(self) -> float:
        return self.teacher + self.student + self.merge + self.clone


def training_flops(
    student: Student, objective: Objective, batch_tokens: int, length: int, recompute: bool = False
) -> TrainingFlops:
    """FLOPs of one step, whatever is cached: the teacher's forward counts wherever the objective reads the teacher.

    Backward costs twice the forward for the student (its weights' gradients are needed to reach what is trained) and
    nothing for the teacher. The optimiser, a few operations per trained number, is not counted.

    Args:
      student: of any kind; a kind that is not known here counts as a decoder whose own weights are trained.
      batch_tokens: tokens of a step. length: of a sequence. recompute: layers are run a second time.
    """
    config = student.config
    teacher = student.lrc.teacher if isinstance(student, ProjectedStudent | DenseStudent) else config
    D, V, Q, K, F = teacher.hidden_size, teacher.vocab_size, teacher.q_size, teacher.kv_size, teacher.intermediate_size
    s, L, again = config.hidden_size, config.num_layers, 1 + bool(recompute)
    # Elementwise over the vocabulary: about 6 per logit and output loss, forward and backward.
    loss = 6 * V * (objective.kl + objective.ce)
    reads = batch_tokens * again * forward_flops(teacher, length).total if objective.needs_teacher else 0.0
    if isinstance(student, FactorizedHead):
        rank = min(student.rank, D, V)
        return TrainingFlops(
            teacher=batch_tokens * forward_flops(teacher, length).total,
            student=batch_tokens * (4 * D * rank + 6 * rank * V + loss),
            merge=0.0,
            clone=0.0,
        )
    once = forward_flops(config, length).total
    embed, merge = 0.0, 0.0
    if isinstance(student, ProjectedStudent):
        embed = 4 * D * s  # tokens are gathered in teacher width and projected
        merge = 4 * D * s * (L * (2 * Q + 2 * K + 3 * F) + V)  # the projections' gradients alone come back
    elif isinstance(student, FactorizedStudent):
        ranks = student.rank_by_matrix()
        embed = 6 * ranks["embed"] * D  # tokens are gathered as rows of U
        whole = [name for name in ranks if name != "embed" or config.tie_word_embeddings]
        merge = sum(6 * math.prod(student.shapes()[name]) * ranks[name] for name in whole)
    clone = 0.0
    if objective.clone:
        # Differences; through Wo as d . (d Wo Wo^T); the MLP's target through an aligner, forward and for its gradient.
        aligned = not isinstance(student, FactorizedStudent)
        width = 4 * Q * Q + (4 * D * s if aligned else 0) + 6 * (Q + 2 * K + Q + 2 * F + s)
        clone = batch_tokens * L * width + L * 2 * Q * Q * D
    return TrainingFlops(
        teacher=reads,
        student=batch_tokens * ((2 + again) * once + embed + loss),
        merge=merge,
        clone=clone,
    )


@dataclasses.dataclass(frozen=True)
class InferenceCost:
    """What a student costs as it is run: factors as factors, unless the whole matrix is smaller.

    Attributes:
      numbers: in its weights. weight_bytes: of them in float32 where they are not quantised. flops_per_token: of a
        forward pass that attends to a whole sequence.
    """

    numbers: int
    weight_bytes: float
    flops_per_token: float


def inference_cost(student: Student, length: int) -> InferenceCost:
    """Cost of a student of any kind; one that is not known here counts as the decoder that it is.

    Args:
      length: tokens of a sequence.
    """
    config = student.config
    numbers, flops = parameter_count(config), forward_flops(config, length).total
    if isinstance(student, FactorizedStudent | FactorizedHead):
        ranks, shapes = student.rank_by_matrix(), student.shapes()
        for name, (m, n) in shapes.items():
            small = factored_size(m, n, ranks[name])
            numbers += small - m * n
            if name != "embed":
                flops += 2 * (small - m * n)
            elif small < m * n:
                flops += 2 * ranks[name] * n
            if name == "embed" and config.tie_word_embeddings:
                flops += 2 * (small - m * n)
    stored = 4.0 * numbers
    if isinstance(student, QuantisedTeacher):
        whole = sum(math.prod(shape) for shape in matrix_shapes(config).values())
        stored = 4.0 * (numbers - whole) + quantised_bytes(config, student.bits)
    return InferenceCost(numbers, stored, flops)


def weight_bytes(config: DecoderConfig, bytes_each: float = 4) -> float:
    return parameter_count(config) * bytes_each


def kv_cache_bytes(config: DecoderConfig, bytes_each: float = 4) -> float:
    """Bytes of key/value cache a position of one sequence. A Low-Rank Clone keeps the teacher's heads: its cache is the
    teacher's, only its weights shrink."""
    return 2 * config.num_layers * config.kv_size * bytes_each


def clone_of(teacher: DecoderConfig, rank: int) -> LowRankClone:
    """The Low-Rank Clone of a rank with default flags."""
    flags = CloneFlags(rank=rank)
    flags.check(teacher)
    return LowRankClone(teacher, flags)


# --------------------------------------------------------------------------------------------------- from the compiler


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA says of a compiled program: FLOPs, and bytes of arguments, results and temporaries together."""

    flops: float
    peak_bytes: float


def compiled_cost(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """Compile for arguments (arrays or `jax.ShapeDtypeStruct`s) and ask. Loops are counted once, so unroll them."""
    compiled = jax.jit(function).lower(*arguments).compile()
    analysis: Any = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis  # a list in older releases
    memory = compiled.memory_analysis()
    peak = 0 if memory is None else (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )  # fmt: skip
    return Compiled(float(analysis["flops"]), float(peak))


def compiled_forward(config: DecoderConfig, weights: Any, batch: int, length: int) -> Compiled:
    """The forward pass to the logits; divide FLOPs by batch * length for those of a token."""
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return compiled_cost(lambda w, t: forward(config, w, t).logits_NV, weights, tokens)
