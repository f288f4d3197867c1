"""Which method a run is of, and what it costs by formula: the columns by which claims 6 and 7 compare methods."""

from __future__ import annotations

from experiments.run_one.config import RunConfig
from experiments.run_one.run import Columns, Run, objective
from lrc_jax.measure.flops import inference_cost, training_flops
from lrc_jax.objective import Objective
from lrc_jax.students import Student


def method_of(config: RunConfig) -> str | None:
    """The method's name in column `method`, as `theory.judge.methods` reads it: KIND, or KIND:VARIANT.

    Settings of the losses and the optimiser are not part of it: two values of one under the same name are two
    experiments, and the judge says so.

    Returns:
      None for a student that replaces one matrix, or is no decoder: it is no way to make the teacher smaller.
    """
    student = config.student
    if student.name == "bilinear" or student.matrices == "head":
        return None
    if student.name in ("lrc", "direct"):
        kind = "clone" if student.name == "lrc" else "direct"
        return f"{kind}:{student.init}"
    if student.name == "scratch":
        return "scratch" if config.loss.kl_weight else "scratch:labels"
    if student.name == "factorized" and student.init == "whitened":
        return "whitened_svd:allocated" if student.allocation == "by_loss" else "whitened_svd"
    if student.name == "factorized":
        return "factorized:svd" if student.init == "pca" else "factorized:random"
    return f"quantised:int{student.bits}" if student.name == "quantised" else student.name


def cost_by_formula(run: Run, steps: int) -> Columns:
    """Training and inference by formula, with nothing timed.

    Args:
      steps: optimiser steps that were taken.
    """
    config = run.config
    return costs(run.student, objective(config), config.batch_size, config.sequence_length, steps)


def costs(student: Student, objective: Objective, batch_size: int, length: int, steps: int) -> Columns:
    """The same for any student: `steps` of `batch_size` sequences of `length` tokens, none where it is not trained."""
    taken, batch_tokens = steps if student.trained else 0, batch_size * length
    cost = inference_cost(student, length)
    return {
        "tokens": taken * batch_tokens,
        "training_flops": taken * training_flops(student, objective, batch_tokens, length).total,
        "inference_params": cost.numbers,
        "weight_bytes": cost.weight_bytes,
        "flops_per_token": cost.flops_per_token,
    }
