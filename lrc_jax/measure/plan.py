"""`lrc_jax plan`: what distilling a teacher of any size would take, from its configuration alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from lrc_jax.errors import InputError
from lrc_jax.measure.flops import (
    clone_of,
    forward_flops,
    kv_cache_bytes,
    parameter_count,
    projection_count,
    training_flops,
)
from lrc_jax.model import DecoderConfig
from lrc_jax.objective import Objective
from lrc_jax.owners import write_whole
from lrc_jax.students.projected import ProjectedStudent
from lrc_jax.teachers import hub
from lrc_jax.teachers.gguf import read_config as read_gguf_config
from lrc_jax.teachers.gguf_file import open_gguf
from lrc_jax.teachers.huggingface import parse_config, read_config
from lrc_jax.teachers.keys import read_json

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted; printed with it.

    Attributes:
      sequence_length: positions a training sequence; also the context at inference.
      batch_tokens: tokens an optimiser step; the projections are merged once for every micro-batch in it.
      micro_batch: sequences a device holds at once.
      compute_bytes: bytes a weight, activation and cache entry (2: bfloat16).
      state_bytes: bytes a trained number: float32 master, gradient and two Adam moments.
      device_memory_gb, device_tflops, device_gb_per_s: of one device (an 80 GB H100: 989 dense bfloat16 TFLOP/s).
      utilisation: share of the device's peak that training reaches.
      usable: share of the device's memory that can be planned with.
      recompute: run layers twice instead of keeping their activations.
    """

    sequence_length: int = 2048
    batch_tokens: int = 262_144
    micro_batch: int = 1
    compute_bytes: float = 2
    state_bytes: float = 16
    device_memory_gb: float = 80
    device_tflops: float = 989
    device_gb_per_s: float = 3350
    utilisation: float = 0.35
    usable: float = 0.9
    recompute: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """Predictions; bytes in GB (1e9), FLOPs as plain numbers, times in hours of wall clock.

    Attributes:
      teacher_params, student_params, trained_params: numbers in each; the student is what inference runs.
      rank_times_shapes: sum over the student's matrices of r (d_out + d_in), the abstract's count.
      steps: optimiser steps.
      training_flops, teacher_share: of the whole run, and the teacher's forward pass in it.
      state_gb: teacher's weights and the trained numbers with gradients and optimiser, sharded over the devices.
      activations_gb: of one micro-batch, on every device.
      devices: fewest that hold it.
      device_hours, hours: at the assumed utilisation, and on that many devices.
      *_flops_per_token: forward pass at the full context (prefill computes masked pairs too, so as much as decoding).
      *_weights_gb, *_kv_cache_gb: at inference; the cache of one sequence of the full context.
      *_decode_tokens_per_s: batch 1, limited by reading weights and cache once per token.
    """

    teacher_params: int
    student_params: int
    trained_params: int
    rank_times_shapes: int
    steps: int
    training_flops: float
    teacher_share: float
    state_gb: float
    activations_gb: float
    devices: int
    device_hours: float
    hours: float
    teacher_flops_per_token: float
    student_flops_per_token: float
    teacher_weights_gb: float
    student_weights_gb: float
    teacher_kv_cache_gb: float
    student_kv_cache_gb: float
    teacher_decode_tokens_per_s: float
    student_decode_tokens_per_s: float


def _activation_bytes(teacher: DecoderConfig, rank: int, assume: Assumptions) -> float:
    """Of one micro-batch: what the backward pass and the clone losses keep, logits in float32, the merged student."""
    D, F, Q, K, L, V = (
        teacher.hidden_size, teacher.intermediate_size, teacher.q_size, teacher.kv_size, teacher.num_layers,
        teacher.vocab_size,
    )  # fmt: skip
    targets = Q + 2 * K + Q + 2 * F + D  # q, k, v, context, gate, up, mlp_out of the teacher
    saved = 4 * rank + Q + 2 * K + Q + 3 * F  # inputs of both blocks, q, k, v, context, gate, up, hidden, outputs
    layer = targets + saved
    per_token = assume.compute_bytes * (L * (D + rank) + layer if assume.recompute else L * layer)
    per_token += 4 * 4 * V  # both logits, one log-softmax, the gradient
    # merged layers are rebuilt with their layer where layers are recomputed
    merged = rank * (2 * Q + 2 * K + 3 * F) * (1 if assume.recompute else L) + 2 * rank * V
    return assume.micro_batch * assume.sequence_length * per_token + 2 * assume.compute_bytes * merged


def plan_training(teacher: DecoderConfig, rank: int, tokens: float, assume: Assumptions | None = None) -> Plan:
    """Predict a Low-Rank Clone distillation from the teacher's configuration.

    Args:
      teacher: of any size; no weights are needed.
      rank: the student's width.
      tokens: training tokens.
      assume: hardware and settings.

    Raises:
      InputError: the rank does not fit the teacher, or one micro-batch does not fit a device.
    """
    assume = assume or Assumptions()
    if not tokens >= 1:
        raise InputError(f"tokens: {tokens:g} is less than 1; give the number of training tokens")
    lrc = clone_of(teacher, rank)
    student, length = lrc.config, assume.sequence_length
    steps = math.ceil(tokens / assume.batch_tokens)
    step = training_flops(ProjectedStudent("lrc", lrc), Objective(), assume.batch_tokens, length, assume.recompute)
    merges = max(1, assume.batch_tokens // (assume.micro_batch * length))
    step_flops = step.total + (merges - 1) * step.merge
    flops = step_flops * (tokens / assume.batch_tokens)

    trained = projection_count(lrc)
    state = parameter_count(teacher) * assume.compute_bytes + trained * assume.state_bytes
    activations = _activation_bytes(teacher, rank, assume)
    room = assume.device_memory_gb * GB * assume.usable - activations
    if room <= 0:
        hint = "a shorter sequence_length" if assume.recompute else "--recompute or a shorter sequence_length"
        raise InputError(
            f"one micro-batch needs {activations / GB:.0f} GB of activations, a device has "
            f"{assume.device_memory_gb * assume.usable:.0f} GB to use; try {hint}"
        )
    devices = max(1, math.ceil(state / room))
    device_hours = flops / (assume.device_tflops * 1e12 * assume.utilisation) / 3600

    Q, K, F, V = teacher.q_size, teacher.kv_size, teacher.intermediate_size, teacher.vocab_size
    shapes = len(lrc.kept_layers) * (2 * Q + 2 * K + 3 * F + 7 * rank) + 2 * (V + rank)

    def decode_rate(config: DecoderConfig) -> float:
        moved = assume.compute_bytes * parameter_count(config) + length * kv_cache_bytes(config, assume.compute_bytes)
        return assume.device_gb_per_s * GB / moved

    def gigabytes(config: DecoderConfig) -> tuple[float, float]:
        return (
            parameter_count(config) * assume.compute_bytes / GB,
            length * kv_cache_bytes(config, assume.compute_bytes) / GB,
        )

    return Plan(
        teacher_params=parameter_count(teacher),
        student_params=parameter_count(student),
        trained_params=trained,
        rank_times_shapes=rank * shapes,
        steps=steps,
        training_flops=flops,
        teacher_share=step.teacher / step_flops,
        state_gb=state / GB,
        activations_gb=activations / GB,
        devices=devices,
        device_hours=device_hours,
        hours=device_hours / devices,
        teacher_flops_per_token=forward_flops(teacher, length).total,
        student_flops_per_token=forward_flops(student, length).total,
        teacher_weights_gb=gigabytes(teacher)[0],
        student_weights_gb=gigabytes(student)[0],
        teacher_kv_cache_gb=gigabytes(teacher)[1],
        student_kv_cache_gb=gigabytes(student)[1],
        teacher_decode_tokens_per_s=decode_rate(teacher),
        student_decode_tokens_per_s=decode_rate(student),
    )


def read_teacher_config(path: Path) -> DecoderConfig:
    """A teacher's architecture: a Hugging Face folder, its config.json, a GGUF file, or a name on the hub.

    Raises:
      InputError: nothing readable is there.
    """
    path = hub.fetched(path)
    if path.suffix == ".gguf":
        return read_gguf_config(open_gguf(path))
    if path.suffix == ".json":
        if not path.is_file():
            raise InputError(f"{path}: does not exist; give a config.json, a model folder or a .gguf file")
        return parse_config(path, read_json(path))
    return read_config(path)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`: the teacher, rank and tokens, and one option for each assumption."""
    parser.add_argument("--teacher", type=Path, required=True, help="model folder, its config.json, or a .gguf file")
    parser.add_argument("--rank", type=int, required=True, help="the student's width")
    parser.add_argument("--tokens", type=float, required=True, help="training tokens, e.g. 10e9")
    parser.add_argument("--json", type=Path, default=None, help="write the plan there as JSON too")
    group = parser.add_argument_group("assumptions")
    for field in dataclasses.fields(Assumptions):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", default=field.default)
        else:
            group.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")


def run_plan(args: argparse.Namespace) -> int:
    """Print the plan and its assumptions. Returns 0; bad input raises InputError before anything is written."""
    assume = Assumptions(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Assumptions)})
    for field in dataclasses.fields(Assumptions):
        value = getattr(assume, field.name)
        if not isinstance(value, bool) and not value > 0:
            raise InputError(f"--{field.name.replace('_', '-')}: {value} must be above 0")
    teacher = read_teacher_config(args.teacher)
    plan = plan_training(teacher, args.rank, args.tokens, assume)
    print(format_plan(plan, teacher, args.rank, args.tokens, assume))
    if args.json is not None:
        document: dict[str, Any] = {
            "schema": 1, "rank": args.rank, "tokens": args.tokens,
            "plan": dataclasses.asdict(plan), "assumptions": dataclasses.asdict(assume),
        }  # fmt: skip
        write_whole(args.json, json.dumps(document, indent=2) + "\n")
    return 0


def format_plan(plan: Plan, teacher: DecoderConfig, rank: int, tokens: float, assume: Assumptions) -> str:
    """The plan as text, assumptions last."""
    rows = [
        ("", "teacher", "student"),
        ("parameters", _short(plan.teacher_params), _short(plan.student_params)),
        ("width x layers", f"{teacher.hidden_size} x {teacher.num_layers}", f"{rank} x {teacher.num_layers}"),
        ("FLOPs per token", _short(plan.teacher_flops_per_token), _short(plan.student_flops_per_token)),
        ("weights", f"{plan.teacher_weights_gb:.2f} GB", f"{plan.student_weights_gb:.2f} GB"),
        ("KV cache, one sequence", f"{plan.teacher_kv_cache_gb:.2f} GB", f"{plan.student_kv_cache_gb:.2f} GB"),
        (
            "decode, batch 1, at most",
            f"{plan.teacher_decode_tokens_per_s:,.0f} tokens/s",
            f"{plan.student_decode_tokens_per_s:,.0f} tokens/s",
        ),
    ]
    lines = [f"{name:<26}{a:>16}{b:>16}" for name, a, b in rows]
    lines += [
        "",
        f"training on {_short(tokens)} tokens: {_short(plan.training_flops)} FLOPs in {plan.steps:,} steps "
        f"({plan.teacher_share:.0%} of them the teacher's forward pass)",
        f"trained numbers: {_short(plan.trained_params)}; r (d_out + d_in) over all matrices: "
        f"{_short(plan.rank_times_shapes)}",
        f"memory: {plan.state_gb:,.1f} GB of weights and optimiser state, sharded; {plan.activations_gb:,.1f} GB of "
        "activations on each device",
        f"devices: {plan.devices}; {plan.device_hours:,.1f} device-hours, {plan.hours:,.1f} hours on {plan.devices}",
        "",
        "assumptions: " + ", ".join(f"{k} {v:g}" for k, v in dataclasses.asdict(assume).items()),
    ]
    return "\n".join(lines)


def _short(value: float) -> str:
    """1.23e9 -> 1.23 G."""
    for exponent, unit in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.2f} {unit}"
    return f"{value:g}"
