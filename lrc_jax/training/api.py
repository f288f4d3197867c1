"""The method from Python: choose a student of a teacher, train it, look at it, write it.

`import lrc_jax` gives these names. The `distill` command runs the same code: equal settings give equal students.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import html
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lrc_jax.errors import InputError, in_python
from lrc_jax.inference import generate as generation
from lrc_jax.model import DecoderConfig
from lrc_jax.owners import discard
from lrc_jax.students import Student
from lrc_jax.teachers.load import Teacher
from lrc_jax.training import distill
from lrc_jax.training.distill import DistillSettings, Machine, Prepared, Trained
from lrc_jax.training.text_pools import Pools, check_parts, held_out, text_source

if TYPE_CHECKING:
    import pandas as pd

Progress = bool | Callable[[str], Any]


@contextlib.contextmanager
def _as_library() -> Iterator[None]:
    """What commands do, as a library does it: products of float32 are exact to float32 on a GPU too, without a
    change of JAX's settings; errors name Python's arguments."""
    with jax.default_matmul_precision(jax.config.values["jax_default_matmul_precision"] or "highest"):
        try:
            yield
        except InputError as wrong:
            raise InputError(in_python(str(wrong))) from None


# --- a student that is chosen and not trained yet ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Untrained:
    """A student of a teacher, chosen and not trained yet. `LowRankClone.of` and `student_of` make one.

    Attributes:
      teacher: the loaded model that it is a student of.
      choice: which student. `train` fills in the rest: text, steps and how to train.
    """

    teacher: Teacher
    choice: DistillSettings

    @functools.cached_property
    def config(self) -> DecoderConfig:
        """The student's architecture."""
        return self._student.config

    @functools.cached_property
    def _student(self) -> Student:
        return distill.choose_student(self.choice, self.teacher.config)[0]

    def __repr__(self) -> str:
        choice, teacher = self.choice, self.teacher
        return (
            f"<{choice.student} of rank {choice.rank}, start {choice.init}, of {teacher.source} "
            f"(width {teacher.config.hidden_size}, {teacher.config.num_layers} layers)>"
        )


@_as_library()
def student_of(
    teacher: Teacher,
    kind: str = DistillSettings.student,
    *,
    rank: int,
    init: str = DistillSettings.init,
    matrices: str = DistillSettings.matrices,
    allocation: str = DistillSettings.allocation,
    projections: str | Path | None = None,
    flags: str | Path | None = None,
) -> Untrained:
    """Choose a student of a teacher.

    Args:
      teacher: a loaded model (`load_teacher`), or a trained student.
      kind: "lrc" (Low-Rank Clone), "direct" (the same small decoder, started at the clone's start and trained itself),
        "scratch" (the same, started at random), "svd" (the clone's start, not trained) or "factorized" (the teacher's
        width, matrices of low rank).
      rank: width of the student's residual stream, at most the teacher's; of a factorized student, the rank of its
        matrices.
      init: start of the projections: "pca" (principal components of the teacher's residual stream), "channels" (its
        most active coordinates), "random" (the authors') or "fan_in"; of a factorized student "random", "pca" (each
        matrix's truncated SVD) or "whitened" (the activation-aware one).
      matrices: factorized only: "all" or "head".
      allocation: factorized only: "none" (`rank` is every matrix's), "uniform" (as many numbers as a clone of this
        rank, one rank for all matrices) or "by_loss" (as many, each matrix at its own rank; needs init "whitened").
      projections: a Low-Rank Clone checkpoint to start from, `projections.safetensors`.
      flags: a JSON file with the reference's flags. Its loss flags decide what `train` is not told otherwise.

    Returns:
      The choice, for `train`.

    Raises:
      InputError: the kind or an option is unknown, or does not fit the teacher.
    """
    choice = DistillSettings(
        teacher=str(teacher.source),
        text="",
        rank=rank,
        steps=0,
        student=kind,
        init=init,
        matrices=matrices,
        allocation=allocation,
        projections=None if projections is None else str(projections),
        flags=None if flags is None else str(flags),
    )
    choice.check()
    chosen = Untrained(teacher, choice)
    _ = chosen.config  # raises here, and not during training, where the choice does not fit the teacher
    return chosen


class StudentKind:
    """A kind of student with a name of its own."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def of(
        self,
        teacher: Teacher,
        rank: int,
        init: str = DistillSettings.init,
        *,
        projections: str | Path | None = None,
        flags: str | Path | None = None,
    ) -> Untrained:
        """Choose a student of this kind.

        Args:
          teacher: a loaded model (`load_teacher`), or a trained student.
          rank: width of the student's residual stream, at most the teacher's.
          init, projections, flags: as in `student_of`.

        Returns:
          The choice, for `train`.

        Raises:
          InputError: the rank or an option does not fit the teacher.
        """
        return student_of(teacher, self.kind, rank=rank, init=init, projections=projections, flags=flags)

    def __repr__(self) -> str:
        return f"<students of kind {self.kind}; .of(teacher, rank=...) chooses one>"


#: Low-Rank Clone, `LowRankClone.of(teacher, rank=192)`; its mathematics are in `lrc_jax.clone`.
LowRankClone = StudentKind("lrc")


# --- what training gives ----------------------------------------------------------------------------------------------


class TrainedStudent(Teacher):
    """A trained student. It has what a teacher has, `config`, `weights` and `tokenizer`, and can be one."""

    def generate(
        self, prompt: str, tokens: int = 50, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """A text and its continuation by this student; see `lrc_jax.generate`."""
        return generate(self, prompt, tokens, temperature=temperature, top_p=top_p, seed=seed)

    def loss(self, text: str | Path | Pools, *, sequence_length: int = DistillSettings.sequence_length) -> float:
        """Held-out loss of this student in nats per token; see `lrc_jax.evaluate`."""
        return evaluate(self, text, sequence_length=sequence_length)


class Losses(NamedTuple):
    """Losses on held-out sequences, nats per token.

    Attributes:
      before, after: of the student, on the test sequences.
      teacher: of the teacher, on the same.
      validation: of the trained student on other held-out sequences, to choose settings by; None where there are none.
    """

    before: float
    after: float
    teacher: float
    validation: float | None


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class History:
    """Loss terms of every step on its own batch, float64 arrays [steps].

    Attributes:
      step: 1, 2, ...
      total: the weighted sum that is trained.
      clone, kl, ce: its terms before weighting: clone losses, KL(teacher || student) and next-token loss, the last two
        in nats per token. 0 where a term has weight 0.
      grad_norm: norm of the gradient before clipping.
    """

    step: np.ndarray
    total: np.ndarray
    clone: np.ndarray
    kl: np.ndarray
    ce: np.ndarray
    grad_norm: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def to_frame(self) -> pd.DataFrame:
        """A data frame with a row for every step. Needs pandas."""
        import pandas as pd

        return pd.DataFrame({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def __repr__(self) -> str:
        ends = f", total {self.total[0]:.4f} -> {self.total[-1]:.4f}" if len(self) else ""
        return f"<losses of {len(self)} steps{ends}>"


class Run:
    """A finished training: its losses, its student, and the way to a folder.

    Attributes:
      prepared: what was trained on what, with which settings (`prepared.settings`).
      trained: parameters, the numbers of `lrc.json` (`trained.report`), loss terms of every step.
    """

    def __init__(self, prepared: Prepared, trained: Trained) -> None:
        self.prepared = prepared
        self.trained = trained

    @property
    def loss(self) -> float:
        """Held-out loss of the trained student, nats per token."""
        return self.losses.after

    @property
    def losses(self) -> Losses:
        """Held-out losses of student, before and after, and teacher."""
        report = self.trained.report
        return Losses(report["loss_before"], report["loss_after"], report["teacher_loss"], report["validation_loss"])

    @functools.cached_property
    def history(self) -> History:
        """Loss terms of every step."""
        names = [field.name for field in dataclasses.fields(History)]
        return History(**{name: np.array([row[name] for row in self.trained.rows]) for name in names})

    @functools.cached_property
    def student(self) -> TrainedStudent:
        """The trained student as a model."""
        settings, teacher = self.prepared.settings, self.prepared.teacher
        # Its weights follow from these, but for rounding.
        digest = hashlib.sha256(json.dumps(self.prepared.identity, sort_keys=True).encode()).hexdigest()
        return TrainedStudent(
            self.prepared.student.config,
            self.trained.weights,
            digest,
            teacher.tokenizer,
            Path(f"{settings.student} of rank {settings.rank} of {teacher.source.name}"),
        )

    @_as_library()
    def export(self, out: str | Path, dtype: str = "float32", overwrite: bool = False) -> Path:
        """Write the student as a Hugging Face folder that stock `transformers` loads.

        Args:
          out: the folder; besides the model and its tokenizer it gets `losses.jsonl`, `lrc.json`, and the projections
            of a clone.
          dtype: of the written weights: "float32", "bfloat16" or "float16".
          overwrite: replace the folder where it exists.

        Returns:
          The folder.

        Raises:
          InputError: `out` is taken or cannot be made, or the dtype is unknown.
        """
        distill.write(Path(out), self.prepared, self.trained, dtype=dtype, overwrite=overwrite)
        return Path(out)

    def __repr__(self) -> str:
        settings, losses = self.prepared.settings, self.losses
        return (
            f"<{settings.student} of rank {settings.rank}, {settings.steps} steps: held-out loss "
            f"{losses.before:.4f} -> {losses.after:.4f} nats/token (teacher {losses.teacher:.4f})>"
        )

    def _repr_html_(self) -> str:
        settings, losses = self.prepared.settings, self.losses
        facts = {
            "student": f"{settings.student} of rank {settings.rank}",
            "teacher": str(self.prepared.teacher.source),
            "trained parameters": f"{self.prepared.parameters:,}",
            "steps": f"{settings.steps:,}",
            "held-out loss, nats per token": f"{losses.before:.4f} -> {losses.after:.4f}",
            "the teacher's": f"{losses.teacher:.4f}",
        }
        rows = (
            f'<tr><th style="text-align: left">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
            for name, value in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"


# --- verbs ------------------------------------------------------------------------------------------------------------


@_as_library()
def train(
    student: Untrained,
    text: str | Path | Pools,
    *,
    steps: int,
    samples: int = DistillSettings.samples,
    batch_size: int = DistillSettings.batch_size,
    sequence_length: int = DistillSettings.sequence_length,
    learning_rate: float = DistillSettings.learning_rate,
    clone_weight: float = DistillSettings.clone_weight,
    clone_distance: str = DistillSettings.clone_distance,
    kl_weight: float = DistillSettings.kl_weight,
    kl_temperature: float = DistillSettings.kl_temperature,
    ce_weight: float = DistillSettings.ce_weight,
    bf16: bool = DistillSettings.bf16,
    seed: int = DistillSettings.seed,
    machine: Machine | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = True,
    text_field: str | None = DistillSettings.text_field,
) -> Run:
    """Train a student of a teacher on text.

    Args:
      student: what `LowRankClone.of` or `student_of` chose.
      text: a file, of which a part is held out; a folder with train.txt, test.txt and perhaps valid.txt, or of shards
        of one text; or tokens (`Pools.of`). Files are plain text, JSON lines or parquet, perhaps .gz.
      steps: optimiser steps (AdamW, warm-up over a twentieth of them, then cosine decay to 0).
      samples: training sequences; 0 takes all.
      batch_size: sequences per step.
      sequence_length: tokens per sequence, at most what the teacher reads. `Pools` have their own.
      learning_rate: the peak. Teachers of a few thousand parameters tolerate 1e-3 and more.
      clone_weight: of the clone losses; 0 leaves them out.
      clone_distance: "normalised", which no teacher's scale upsets, or "mseloss" (the authors' own), "l1loss" or their
        _v2 forms.
      kl_weight: of KL(teacher || student), a mean over tokens.
      kl_temperature: at which both predictions are compared.
      ce_weight: of the next-token loss, a mean over tokens.
      bf16: compute in bfloat16; parameters, optimiser and losses stay float32.
      seed: of the start and of the order of the batches.
      machine: devices that share the work, and how memory is saved; None: one device.
      out: write the student there at the end, as `Run.export` does. Until then OUT.training keeps checkpoints, and the
        same call resumes from the last one. None writes nothing.
      overwrite: replace `out` where it exists.
      progress: True tells standard error, False nobody; a function is called with each line.
      text_field: of JSON lines and parquet, the one with the text; None is "text".

    Returns:
      Losses, history and the trained student.

    Raises:
      InputError: an argument is out of range, or the text cannot be used.
      DivergedError: a loss is not finite.
    """
    pools = text if isinstance(text, Pools) else None
    settings = dataclasses.replace(
        student.choice,
        text=str(text) if pools is None else "tokens",
        steps=steps,
        samples=samples,
        batch_size=batch_size,
        sequence_length=sequence_length if pools is None else pools.sequence_length,
        learning_rate=learning_rate,
        clone_weight=clone_weight,
        clone_distance=clone_distance,
        kl_weight=kl_weight,
        kl_temperature=kl_temperature,
        ce_weight=ce_weight,
        bf16=bf16,
        seed=seed,
        text_field=text_field,
    )
    work = None if out is None else distill.training_folder(Path(out), overwrite)
    prepared = distill.prepare(settings, teacher=student.teacher, pools=pools, machine=machine or Machine())
    trained = distill.fit(prepared, work, say=_speaker(progress), warn=_warn)
    run = Run(prepared, trained)
    if out is not None and work is not None and jax.process_index() == 0:
        run.export(out, overwrite=overwrite)
        discard(work)
    return run


def _speaker(progress: Progress) -> Callable[[str], Any]:
    if callable(progress):
        return progress
    if progress and jax.process_index() == 0:
        return functools.partial(print, file=sys.stderr, flush=True)
    return lambda line: None


def _warn(message: str) -> None:
    warnings.warn(in_python(message), stacklevel=2)


@_as_library()
def evaluate(
    model: Teacher | Run,
    text: str | Path | Pools,
    *,
    sequence_length: int = DistillSettings.sequence_length,
    text_field: str | None = DistillSettings.text_field,
) -> float:
    """Loss of a teacher or student on held-out text.

    Args:
      model: a teacher, a trained student, or a run, whose student is taken.
      text: as `train` reads it. Measured are at most 32 sequences of what `train` holds out for its test, the same
        ones for every model of one tokenizer; of `Pools`, all of the test.
      sequence_length: tokens per sequence, at most what the model reads. `Pools` have their own.
      text_field: as of `train`.

    Returns:
      Nats per token.

    Raises:
      InputError: the text cannot be read or is too short, or the model has no tokenizer to read it with.
    """
    if isinstance(model, Run):
        model = model.student
    if isinstance(text, Pools):
        text.check(model.config)
        test = text.test
    else:
        model.check_length(sequence_length)
        source = text_source(text, model, sequence_length, text_field)
        check_parts(source, text, {"test": "to test on"})
        test = held_out(source, "test")
    return distill.held_out_loss(model.config, model.weights, test)


@_as_library()
def generate(
    model: Teacher | Run,
    prompt: str,
    tokens: int = 50,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue a text.

    Args:
      model: a teacher, a trained student, or a run, whose student is taken.
      prompt: the text to continue.
      tokens: at most so many more.
      temperature: 0 takes the likeliest token each time.
      top_p: draw from the likeliest tokens with this share of probability.
      seed: of the draws.

    Returns:
      The prompt and its continuation.

    Raises:
      InputError: an argument is out of range, or prompt and continuation are longer than the model reads.
    """
    if isinstance(model, Run):
        model = model.student
    more = generation.generate(
        model.config,
        model.weights,
        model.require_tokenizer(),
        prompt,
        count=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return prompt + more


def export(run: Run, out: str | Path, dtype: str = "float32", overwrite: bool = False) -> Path:
    """Write the student of a run as a Hugging Face folder; see `Run.export`."""
    return run.export(out, dtype=dtype, overwrite=overwrite)
