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
    """FLOPs of one Low-Rank Clone step by part: teacher's forward, student's forward and backward, merging the
    projections with the teacher's weights (and back), and what only the clone losses need."""

    teacher: float
    student: float
    merge: float
    clone: float

    @property
    def total(self) -> float:
        return self.teacher + self.student + self.merge + self.clone


def training_flops(lrc: LowRankClone, batch_tokens: int, length: int, recompute: bool = False) -> TrainingFlops:
    """FLOPs of one step of KL + CE + clone losses.

    Backward costs twice the forward for the student (its weights' gradients are needed to reach the projections) and
    nothing for the teacher; merging costs the same again backward. `recompute`: layers are run a second time.
    """
    teacher, student, s = lrc.teacher, lrc.config, lrc.flags.rank
    D, F, V = teacher.hidden_size, teacher.intermediate_size, teacher.vocab_size
    Q, K, L = teacher.q_size, teacher.kv_size, len(lrc.kept_layers)
    once = forward_flops(student, length)
    forward_student = once.total + 2 * D * s  # tokens are gathered in teacher width and projected
    backward = 2 * once.total + 2 * D * s
    # the backward pass of log-softmax, KL and CE is elementwise over the vocabulary: about 12 a logit with the forward
    loss = 12 * V
    merge = 2 * D * s * (L * (2 * Q + 2 * K + 3 * F) + V)
    # through Wo as d . (d Wo Wo^T); the MLP's target through zoom_down, forward and for its gradient; differences
    clone = batch_tokens * L * (4 * Q * Q + 4 * D * s + 6 * (Q + 2 * K + Q + 2 * F + s)) + L * 2 * Q * Q * D
    again = 1 + bool(recompute)
    return TrainingFlops(
        teacher=again * batch_tokens * forward_flops(teacher, length).total,
        student=batch_tokens * (again * forward_student + backward + loss),
        merge=2 * merge,
        clone=clone,
    )


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
