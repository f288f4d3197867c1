"""Teacher in, Hugging Face student out: what `python -m lrc_jax distill` does."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lrc_jax.clone import CloneFlags
from lrc_jax.compute.sharding import MeshSpec, mesh_for, to_host
from lrc_jax.data.pools import Pool, pool_from_sequences
from lrc_jax.data.text import TextSource, read_splits
from lrc_jax.errors import InputError
from lrc_jax.export import DTYPES, check_out, export_student
from lrc_jax.inference.evaluate import model_losses
from lrc_jax.losses import CLONE_DISTANCES
from lrc_jax.measure.cost import peak_process_bytes
from lrc_jax.model import DecoderConfig, Weights, count_parameters
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.projections import read_flags, read_projections
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, Student, StudentOptions, make_student
from lrc_jax.students.statistics import residual_basis, second_moments
from lrc_jax.teachers.load import Teacher, load_teacher
from lrc_jax.training import checkpoint
from lrc_jax.training.activation_cache import with_teacher_pass
from lrc_jax.training.train import History, Hyper, OptimizerSpec, StepOptions, TrainState, init_state, train

MOMENT_SEQUENCES = 64  # for principal components of the teacher's residual stream
EVALUATED = 32  # most held-out sequences that a loss is measured on
DWARFED = 100.0  # clone losses, weighted, above this many times the other losses are told about


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Everything that decides the result; a run is taken up only under equal settings.

    Attributes:
      text: a file, or a folder with train.txt and test.txt.
      samples: training sequences; 0 takes all.
      kl_weight, kl_temperature: of the distillation loss, which is averaged per token.
      clone_distance: "normalised", which no teacher's scale upsets, or another of losses.CLONE_DISTANCES; the
        reference's is "mseloss" with a clone_weight of 0.2.
      bf16: compute in bfloat16, with parameters, optimiser and losses in float32.
      projections: a reference checkpoint to start from, with `flags` in JSON.
    """

    teacher: str
    text: str
    rank: int
    steps: int
    student: str = "lrc"
    init: str = "pca"
    matrices: str = "all"
    samples: int = 0
    batch_size: int = 4
    sequence_length: int = 256
    learning_rate: float = 2e-4
    clone_weight: float = 0.01
    clone_distance: str = "normalised"
    kl_weight: float = 1.0
    kl_temperature: float = 1.0
    ce_weight: float = 1.0
    bf16: bool = False
    seed: int = 0
    projections: str | None = None
    flags: str | None = None

    def check(self) -> None:
        """Raise InputError where a number is out of range."""
        for name, least in (("rank", 1), ("steps", 0), ("samples", 0), ("batch_size", 1), ("sequence_length", 2)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is less than {least}")
        if not self.learning_rate > 0 or not self.kl_temperature > 0:
            raise InputError("--learning-rate and --kl-temperature: must be above 0")
        weights = [getattr(self, f"{name}_weight") for name in ("clone", "kl", "ce")]
        for name, value in zip(("clone", "kl", "ce"), weights, strict=True):
            if not value >= 0:
                raise InputError(f"--{name}-weight: {value} is negative")
        if not sum(weights):
            raise InputError("--clone-weight: every loss weight is 0, nothing would be trained; raise one of them")
        if self.clone_distance not in CLONE_DISTANCES:
            known = ", ".join(CLONE_DISTANCES)
            raise InputError(f"--clone-distance: {self.clone_distance!r} is unknown; choose one of {known}")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and how a run is computed; none of it changes the result beyond rounding, but for `accumulate` where losses
    are no plain means over sequences (the normalised clone distance is one of each part).

    Attributes:
      data, model: devices that share the batch and the teacher; data 0 takes all that are left.
      accumulate: parts of a batch that are computed one after another.
      remat: recompute the student's activations in the backward pass.
      activation_cache: folder for the teacher's activations on the training sequences in half precision; students
        that read the same ones share the teacher's pass.
    """

    data: int = 1
    model: int = 1
    accumulate: int = 1
    remat: bool = False
    activation_cache: Path | None = None


def held_out_loss(config: DecoderConfig, weights: Weights, pool: Pool, sequences: int = EVALUATED) -> float:
    """Nats per token on the first sequences of a pool."""
    first = Pool(pool.tokens_NT[:sequences], pool.labels_NT[:sequences])
    return float(model_losses(config, weights, first).mean())


def _build(settings: DistillSettings, teacher: Teacher, pool: Pool) -> tuple[Student, Frozen, Any]:
    """The student, what it reads, and start parameters (None: its own start)."""
    if settings.projections is not None:
        if settings.student != "lrc":
            raise InputError(f"--projections: continues an lrc student, not {settings.student}")
        flags = read_flags(Path(settings.flags)) if settings.flags else None
        clone, params = read_projections(Path(settings.projections), teacher.config, flags)
        if clone.lrc.flags.rank != settings.rank:
            raise InputError(f"--rank: {settings.rank}, but {settings.projections} has {clone.lrc.flags.rank}")
        return clone, Frozen(teacher.weights), params
    given = read_flags(Path(settings.flags)) if settings.flags else {}
    names = {field.name for field in dataclasses.fields(CloneFlags)} - {"rank"}
    chosen: dict[str, Any] = {
        name: tuple(v) if name == "del_layers" else v for name, v in given.items() if name in names
    }
    init = "pca" if settings.student == "svd" else settings.init
    options = StudentOptions(init=init, matrices=settings.matrices, clone=settings.clone_weight > 0)
    student = make_student(settings.student, teacher.config, CloneFlags(settings.rank, **chosen), options)
    basis = None
    if settings.student != "factorized" and init in ("pca", "channels"):
        some = Pool(pool.tokens_NT[:MOMENT_SEQUENCES], pool.labels_NT[:MOMENT_SEQUENCES])
        basis = residual_basis(init, second_moments(teacher.config, teacher.weights, some)[0], settings.rank)
    return student, Frozen(teacher.weights, None if basis is None else jax.numpy.asarray(basis)), None


def _taken_up(work: Path, settings: dict[str, Any], like: TrainState) -> TrainState | None:
    """The last checkpoint of an interrupted run under the same settings."""
    if not checkpoint.saved_steps(work):
        return None
    state, note = checkpoint.restore(work, like)
    different = [key for key in settings if note["settings"].get(key) != settings[key]]
    if different:
        raise InputError(
            f"{work}: holds an interrupted run with another {different[0]} ({note['settings'].get(different[0])}); "
            "repeat its settings, remove the folder or choose another --out"
        )
    return state


class _Report:
    """Progress lines with rate and time left, on standard error. The first chunk, which compiles, is not counted."""

    def __init__(self, tokens_per_step: int, say: Callable[[str], Any]) -> None:
        self.tokens_per_step = tokens_per_step
        self.say = say
        self.first: tuple[int, float] | None = None
        self.tokens_per_second: float | None = None

    def __call__(self, done: int, steps: int, loss: float) -> None:
        rate = ""
        if self.first is None:
            self.first = done, time.monotonic()
        else:
            steps_per_second = (done - self.first[0]) / (time.monotonic() - self.first[1])
            self.tokens_per_second = steps_per_second * self.tokens_per_step
            rate = f"  {self.tokens_per_second:,.0f} tokens/s  {(steps - done) / steps_per_second:,.0f} s left"
        self.say(f"step {done}/{steps}  loss {loss:.4f}{rate}")


def _dwarfed(settings: DistillSettings, history: History) -> str | None:
    """A warning where the clone losses leave nothing of the others, as raw ones of pretrained teachers do: a few
    channels of their residual stream are hundreds of times larger than the rest."""
    row = history.row()
    clone, rest = settings.clone_weight * row["clone"], settings.kl_weight * row["kl"] + settings.ce_weight * row["ce"]
    if not rest or clone <= DWARFED * rest:
        return None
    return (
        f"warning: the clone losses, weighted, are {clone / rest:,.0f} times the other losses together, which then "
        "hardly train; use --clone-distance normalised or lower --clone-weight"
    )


def _append_losses(path: Path, last: int, history: History) -> None:
    count = len(history.grad_norm)
    with path.open("a") as file:
        for i in range(count):
            file.write(json.dumps({"step": last - count + i + 1} | history.row(i)) + "\n")


def _keep_losses(path: Path, steps: int) -> None:
    """Forget rows after the step that is taken up."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines[:steps]))


def distill(
    settings: DistillSettings,
    out: Path,
    *,
    machine: Machine = Machine(),
    dtype: str = "float32",
    overwrite: bool = False,
    stop_after: Callable[[int], bool] | None = None,
) -> dict[str, Any]:
    """Train a student of a teacher on text and write it as a Hugging Face folder.

    While it runs, `OUT.training` holds the loss curve and the last two checkpoints; the same call takes an interrupted
    run up. In the end the folder holds the model, the tokenizer, `losses.jsonl` and `lrc.json`.

    Args:
      stop_after: called with each checkpointed step; True interrupts the run there (for tests of taking up).

    Returns:
      The numbers of `lrc.json`: losses in nats per token of teacher and student, before and after, on at most EVALUATED
      sequences of the test text, and of the student on as many of the validation text, to choose settings by.

    Raises:
      InputError: bad settings or files. DivergedError: a loss is not finite.
    """
    settings.check()
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    check_out(out, overwrite)
    teacher = load_teacher(settings.teacher)
    teacher.check_length(settings.sequence_length)
    tokenizer = teacher.require_tokenizer()
    source = TextSource(
        read_splits(Path(settings.text)),
        tokenizer,
        settings.sequence_length,
        vocab_size=teacher.config.vocab_size,
        teacher_share=0.0,
        reference_share=0.0,
    )
    samples = settings.samples or source.available("student") or 0
    for part, use in (("student", "to train on"), ("test", "to test on"), ("probe", "for validation")):
        if not source.available(part):
            raise InputError(
                f"--text: {settings.text} has no sequence of {settings.sequence_length} tokens {use}; give more "
                "text or a lower --sequence-length"
            )
    pool = pool_from_sequences(source.sequences("student", samples))
    test, valid = (
        pool_from_sequences(source.sequences(split, min(EVALUATED, source.available(split) or 0)))
        for split in ("test", "probe")
    )
    mesh = mesh_for(MeshSpec(machine.data, machine.model), settings.batch_size)
    student, frozen, params = _build(settings, teacher, pool)

    optimizer = OptimizerSpec(warmup=0.05, clip=1.0)
    objective = Objective(
        clone=settings.clone_weight > 0,
        kl=settings.kl_weight > 0,
        ce=settings.ce_weight > 0,
        distance=settings.clone_distance,
        kl_per_token=True,
    )
    init_key, order_key = key_for(settings.seed, "distill", "init"), key_for(settings.seed, "distill", "order")
    state = init_state(student, optimizer, init_key, frozen)
    if params is not None:
        state = dataclasses.replace(state, params=params)
    merged = jax.jit(student.weights)
    report: dict[str, Any] = {
        "teacher_loss": held_out_loss(teacher.config, frozen.teacher, test),
        "loss_before": held_out_loss(student.config, merged(state.params, frozen), test),
        "parameters": count_parameters(state.params),
    }
    first_process = jax.process_index() == 0
    say = functools.partial(print, file=sys.stderr, flush=True) if first_process else lambda text: None
    say(
        f"{settings.student} of rank {settings.rank}: {report['parameters']:,} trained parameters; held-out loss "
        f"{report['loss_before']:.4f} nats/token before, the teacher's {report['teacher_loss']:.4f}"
    )

    identity = dataclasses.asdict(settings) | {"teacher": teacher.digest, "text": source.digest}
    work = out.resolve().with_name(f"{out.resolve().name}.training")
    taken_up = _taken_up(work, identity, state)
    state = taken_up or state
    losses = work / "losses.jsonl"
    if first_process:
        _keep_losses(losses, int(state.step))
    if machine.activation_cache is not None:
        pool = with_teacher_pass(
            machine.activation_cache, student, objective, teacher.config, frozen, teacher.digest, pool
        )

    warnings: list[str] = []

    def on_chunk(state: TrainState, part: History) -> None:
        if not warnings and (warning := _dwarfed(settings, part)):
            warnings.append(warning)
            say(warning)
        if first_process:
            _append_losses(losses, int(state.step), part)
            checkpoint.save(work, int(state.step), to_host(state), {"settings": identity})
        if stop_after is not None and stop_after(int(state.step)):
            raise KeyboardInterrupt

    progress = _Report(settings.batch_size * settings.sequence_length, say)
    state, _ = train(
        student,
        objective,
        optimizer,
        teacher.config,
        frozen,
        pool,
        Hyper(
            settings.learning_rate,
            settings.steps,
            samples,
            LossWeights(settings.clone_weight, settings.kl_weight, settings.ce_weight, settings.kl_temperature),
        ),
        batch_size=settings.batch_size,
        init_key=init_key,
        order_key=order_key,
        state=state,
        progress=progress,
        on_chunk=on_chunk,
        options=StepOptions(machine.accumulate, machine.remat, settings.bf16),
        mesh=mesh,
    )
    report["loss_after"] = held_out_loss(student.config, merged(state.params, frozen), test)
    report["validation_loss"] = held_out_loss(student.config, merged(state.params, frozen), valid)
    report["tokens_per_second"] = progress.tokens_per_second and round(progress.tokens_per_second)
    report["peak_rss_mb"] = round(peak_process_bytes() / 2**20)
    if not first_process:
        return report
    # The teacher's path on this machine says nothing elsewhere, its digest does.
    provenance = report | {"settings": identity}
    export_student(
        out,
        student,
        state.params,
        frozen,
        tokenizer=tokenizer,
        dtype=dtype,
        provenance=provenance,
        overwrite=overwrite,
        extra_files=[losses],
    )
    shutil.rmtree(work)
    return report
