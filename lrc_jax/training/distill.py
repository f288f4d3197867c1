"""Teacher in, Hugging Face student out: `prepare`, `fit` and `write`.

`python -m lrc_jax distill` runs the three one after another; `lrc_jax.train` runs the first two and leaves the third to
the user. Messages name the command's options; the face spells them as Python's arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrc_jax.clone import CloneFlags
from lrc_jax.compute.sharding import MeshSpec, mesh_for, to_host
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import model_losses
from lrc_jax.losses import CLONE_DISTANCES
from lrc_jax.measure.cost import peak_process_bytes
from lrc_jax.model import DecoderConfig, Weights, count_parameters
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.owners import discard
from lrc_jax.projections import LOSS_SWITCHES, read_flags, read_projections, reference_losses
from lrc_jax.recipes import DEFAULT
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, Student, StudentOptions, make_student
from lrc_jax.students.base import Params
from lrc_jax.students.factorized import FactorizedStudent
from lrc_jax.students.statistics import input_moments, residual_basis, second_moments
from lrc_jax.students.whitened import measured_losses, spectra, whitened_start
from lrc_jax.teachers.load import Teacher, load_teacher
from lrc_jax.training import checkpoint
from lrc_jax.training.activation_cache import with_teacher_pass
from lrc_jax.training.export import DTYPES, check_out, export_student
from lrc_jax.training.text_pools import Pools, read_pools
from lrc_jax.training.train import History, Hyper, OptimizerSpec, StepOptions, TrainState, init_state, train

MOMENT_SEQUENCES = 64  # for second moments of the teacher's activations
DWARFED = 100.0  # warn where the weighted clone losses exceed the other losses by this factor
OPTIMIZER = OptimizerSpec(warmup=0.05, clip=1.0)
LOSSES_FILE = "losses.jsonl"

Say = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Everything that decides the result; a run is resumed only under equal settings.

    Attributes:
      text: a file, or a folder of train and test files or of shards.
      text_field: of JSON lines and parquet, the one with the text; None is "text".
      samples: training sequences; 0 takes all.
      kl_weight, kl_temperature: of the distillation loss, which is averaged per token.
      clone_distance: "normalised", which no teacher's scale upsets, or another of losses.CLONE_DISTANCES; the
        reference's is "mseloss" with a clone_weight of 0.2.
      bf16: compute in bfloat16, with parameters, optimiser and losses in float32.
      projections: a reference checkpoint to start from.
      flags: a JSON file with the reference's flags. Its loss flags decide the settings that are left at their default.
    """

    teacher: str
    text: str
    rank: int
    steps: int
    student: str = "lrc"
    init: str = DEFAULT.init
    matrices: str = "all"
    allocation: str = "none"
    samples: int = 0
    batch_size: int = 4
    sequence_length: int = 256
    learning_rate: float = 2e-4
    clone_weight: float = DEFAULT.clone_weight
    clone_distance: str = DEFAULT.clone_distance
    kl_weight: float = 1.0
    kl_temperature: float = 1.0
    ce_weight: float = 1.0
    bf16: bool = False
    seed: int = 0
    projections: str | None = None
    flags: str | None = None
    text_field: str | None = None

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


def with_reference_losses(settings: DistillSettings) -> DistillSettings:
    """The settings with what the loss flags of `settings.flags` ask for.

    Raises:
      InputError: the file is bad, asks for a loss that is not implemented, or for another one than the settings do.
    """
    if settings.flags is None:
        return settings
    flags = read_flags(Path(settings.flags))
    try:
        asked = reference_losses(flags)
    except InputError as wrong:
        raise InputError(f"{settings.flags}: {wrong}") from None
    for field in dataclasses.fields(settings):
        value, option = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if field.name in asked and value not in (field.default, asked[field.name]):
            raise InputError(
                f"{option}: {value}, but {settings.flags} asks for {asked[field.name]}; give one of the two"
            )
        switch = next((key for key, name in LOSS_SWITCHES.items() if name == field.name), None)
        if switch is not None and flags.get(switch) and not value:
            raise InputError(f"{option}: {value}, but {settings.flags} says {switch} = true; give one of the two")
    return dataclasses.replace(settings, **asked)


def held_out_loss(config: DecoderConfig, weights: Weights, pool: Pool) -> float:
    """Nats per token on a pool."""
    return float(model_losses(config, weights, pool).mean())


@functools.partial(jax.jit, static_argnames=("student",))
def _merged(student: Student, params: Params, frozen: Frozen) -> Weights:
    return student.weights(params, frozen)


def choose_student(settings: DistillSettings, teacher: DecoderConfig) -> tuple[Student, Params | None]:
    """The student that settings name, and start parameters where they name some (None: its own start).

    Raises:
      InputError: the kind or an option is unknown, or it does not fit the teacher.
    """
    if settings.projections is not None:
        if settings.student != "lrc":
            raise InputError(f"--projections: continues an lrc student, not {settings.student}")
        flags = read_flags(Path(settings.flags)) if settings.flags else None
        clone, params = read_projections(Path(settings.projections), teacher, flags)
        if clone.lrc.flags.rank != settings.rank:
            raise InputError(f"--rank: {settings.rank}, but {settings.projections} has {clone.lrc.flags.rank}")
        return clone, params
    given = read_flags(Path(settings.flags)) if settings.flags else {}
    names = {field.name for field in dataclasses.fields(CloneFlags)} - {"rank"}
    chosen: dict[str, Any] = {
        name: tuple(v) if name == "del_layers" else v for name, v in given.items() if name in names
    }
    options = StudentOptions(
        init=_init(settings),
        matrices=settings.matrices,
        allocation=settings.allocation,
        clone=settings.clone_weight > 0,
    )
    return make_student(settings.student, teacher, CloneFlags(settings.rank, **chosen), options), None


def _init(settings: DistillSettings) -> str:
    return "pca" if settings.student == "svd" else settings.init


def _start_basis(settings: DistillSettings, teacher: Teacher, pool: Pool) -> np.ndarray | None:
    """What a start from the teacher's residual stream is read off; None where the start is another."""
    init = _init(settings)
    if settings.projections is not None or settings.student == "factorized" or init not in ("pca", "channels"):
        return None
    moment_DD = second_moments(teacher.config, teacher.weights, _calibration(pool))[0]
    return residual_basis(init, moment_DD, settings.rank)


def _calibration(pool: Pool) -> Pool:
    return pool.first(MOMENT_SEQUENCES)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that a training needs, read, checked and put together. Training changes none of it.

    Attributes:
      params: start values of what is trained.
      teacher_loss, loss_before: held out, nats per token, of the teacher and of the student as it starts.
    """

    settings: DistillSettings
    machine: Machine
    mesh: Mesh | None
    teacher: Teacher
    pools: Pools
    student: Student
    frozen: Frozen
    params: Params
    teacher_loss: float
    loss_before: float

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return count_parameters(self.params)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result. Paths say nothing on another machine, digests do."""
        return dataclasses.asdict(self.settings) | {"teacher": self.teacher.digest, "text": self.pools.digest}

    @property
    def objective(self) -> Objective:
        """The losses whose weight is above 0."""
        settings = self.settings
        return Objective(
            clone=settings.clone_weight > 0,
            kl=settings.kl_weight > 0,
            ce=settings.ce_weight > 0,
            distance=settings.clone_distance,
            kl_per_token=True,
        )

    def start(self) -> TrainState:
        """The state before the first step: a copy, since training gives its arrays away."""
        params = jax.tree.map(jnp.copy, self.params)
        return TrainState(params, OPTIMIZER.direction().init(params), jnp.zeros((), jnp.int32))

    def __str__(self) -> str:
        settings = self.settings
        return (
            f"{settings.student} of rank {settings.rank}: {self.parameters:,} trained parameters; held-out loss "
            f"{self.loss_before:.4f} nats/token before, the teacher's {self.teacher_loss:.4f}"
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
      params: what was trained.
      weights: the student as an ordinary decoder.
      report: the numbers of `lrc.json` (see `distill`).
      rows: loss terms and gradient norm of every step, as in losses.jsonl.
    """

    params: Params
    weights: Weights
    report: dict[str, Any]
    rows: list[dict[str, float]]


def prepare(
    settings: DistillSettings,
    *,
    teacher: Teacher | None = None,
    pools: Pools | None = None,
    machine: Machine = Machine(),
) -> Prepared:
    """Check settings, read teacher and text, and put the student together.

    Args:
      teacher: None reads `settings.teacher`.
      pools: None reads `settings.text`.

    Raises:
      InputError: bad settings or files.
    """
    settings = with_reference_losses(settings)
    settings.check()
    teacher = teacher or load_teacher(settings.teacher)
    teacher.check_length(settings.sequence_length)
    if pools is None:
        pools = read_pools(settings.text, teacher, settings.sequence_length, settings.samples, settings.text_field)
    else:
        pools.check(teacher.config, settings.samples)
    mesh = mesh_for(MeshSpec(machine.data, machine.model), settings.batch_size)
    student, params = choose_student(settings, teacher.config)
    basis = _start_basis(settings, teacher, pools.train)
    frozen = Frozen(teacher.weights, None if basis is None else jnp.asarray(basis))
    if isinstance(student, FactorizedStudent) and settings.init == "whitened":
        some = _calibration(pools.train)
        found = spectra(teacher.config, teacher.weights, input_moments(teacher.config, teacher.weights, some))
        by_loss = settings.allocation == "by_loss"
        losses = measured_losses(teacher.config, teacher.weights, found, some) if by_loss else None
        student, factors = whitened_start(student, teacher.weights, found, losses, some)
        frozen = dataclasses.replace(frozen, factors=factors)
    if params is None:
        params = init_state(student, OPTIMIZER, key_for(settings.seed, "distill", "init"), frozen).params
    return Prepared(
        settings,
        machine,
        mesh,
        teacher,
        pools,
        student,
        frozen,
        params,
        teacher_loss=held_out_loss(teacher.config, frozen.teacher, pools.test),
        loss_before=held_out_loss(student.config, _merged(student, params, frozen), pools.test),
    )


def _resumed(work: Path, settings: dict[str, Any], like: TrainState) -> TrainState | None:
    """The last whole checkpoint of an interrupted run under the same settings."""
    found = checkpoint.restore(work, like)
    if found is None:
        return None
    state, note = found
    different = [key for key in settings if note["settings"].get(key) != settings[key]]
    if different:
        raise InputError(
            f"{work}: holds an interrupted run with another {different[0]} ({note['settings'].get(different[0])}); "
            "repeat its settings, remove the folder or choose another --out"
        )
    return state


class _Report:
    """Progress lines with rate and time left, on standard error. The first chunk, which compiles, is not counted."""

    def __init__(self, tokens_per_step: int, say: Say) -> None:
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
        f"the clone losses, weighted, are {clone / rest:,.0f} times the other losses together, which then "
        "hardly train; use --clone-distance normalised or lower --clone-weight"
    )


class _Losses:
    """Loss terms of every step: rows, and as many lines of a file where there is one."""

    def __init__(self, path: Path | None, steps: int) -> None:
        """Keep the rows of the first `steps` steps: training resumes after them."""
        self.path = path
        lines = path.read_text().splitlines(keepends=True)[:steps] if path is not None and path.is_file() else []
        self.rows: list[dict[str, float]] = [json.loads(line) for line in lines]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines))

    def append(self, last: int, history: History) -> None:
        count = len(history.grad_norm)
        new = [{"step": last - count + i + 1} | history.row(i) for i in range(count)]
        self.rows += new
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(_lines(new))


def _lines(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def training_folder(out: Path, overwrite: bool) -> Path:
    """Where a run keeps its loss curve and checkpoints while it is not finished: OUT.training. If its result lies in
    `out` already, a kill came right after that was written, and the folder is removed.

    Raises:
      InputError: `out` is taken or cannot be a folder.
    """
    work = out.resolve().with_name(f"{out.resolve().name}.training")
    curves = [folder / LOSSES_FILE for folder in (work, out)]
    if all(path.is_file() for path in curves) and curves[0].read_bytes() == curves[1].read_bytes():
        discard(work)
    check_out(out, overwrite)
    return work


def return_freed_memory() -> None:
    """Give back to the system what was freed. glibc keeps it, and a training's peak comes on top: for a teacher of 135
    million parameters 400 MiB after reading and compiling, and as much again after a dozen calls of the step."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def fit(
    prepared: Prepared,
    work: Path | None = None,
    *,
    say: Say = lambda text: None,
    warn: Say | None = None,
    stop_after: Callable[[int], bool] | None = None,
) -> Trained:
    """Train, and measure the student on held-out sequences.

    Args:
      work: folder for the loss curve and the last two checkpoints; an interrupted run of the same
        settings that lies there is resumed. None: nothing is kept.
      say: told of progress, one line at a time.
      warn: told of what may be wrong; None tells `say`.
      stop_after: called after each chunk of steps with the last one; True interrupts the run there.

    Raises:
      InputError: the folder holds another run. DivergedError: a loss is not finite.
    """
    settings, machine, student, frozen = prepared.settings, prepared.machine, prepared.student, prepared.frozen
    say(str(prepared))
    state = prepared.start()
    if work is not None:
        state = _resumed(work, prepared.identity, state) or state
    writes = work is not None and jax.process_index() == 0
    losses = _Losses(work / LOSSES_FILE if work is not None and writes else None, int(state.step))
    pool = prepared.pools.train
    if machine.activation_cache is not None:
        teacher = prepared.teacher
        pool = with_teacher_pass(
            machine.activation_cache, student, prepared.objective, teacher.config, frozen, teacher.digest, pool
        )
    warnings: list[str] = []

    def on_chunk(state: TrainState, part: History) -> None:
        if not warnings and (warning := _dwarfed(settings, part)):
            warnings.append(warning)
            (warn or say)(warning)
        losses.append(int(state.step), part)
        if work is not None and writes:
            checkpoint.save(work, int(state.step), to_host(state), {"settings": prepared.identity})
        return_freed_memory()
        if stop_after is not None and stop_after(int(state.step)):
            raise KeyboardInterrupt

    progress = _Report(settings.batch_size * settings.sequence_length, say)
    weights = LossWeights(settings.clone_weight, settings.kl_weight, settings.ce_weight, settings.kl_temperature)
    return_freed_memory()
    state, _ = train(
        student,
        prepared.objective,
        OPTIMIZER,
        prepared.teacher.config,
        frozen,
        pool,
        Hyper(settings.learning_rate, settings.steps, settings.samples or pool.size, weights),
        batch_size=settings.batch_size,
        init_key=key_for(settings.seed, "distill", "init"),
        order_key=key_for(settings.seed, "distill", "order"),
        state=state,
        progress=progress,
        on_chunk=on_chunk,
        options=StepOptions(machine.accumulate, machine.remat, settings.bf16),
        mesh=prepared.mesh,
    )
    return _measured(prepared, state, losses.rows, progress.tokens_per_second)


def _measured(
    prepared: Prepared, state: TrainState, rows: list[dict[str, float]], tokens_per_second: float | None
) -> Trained:
    student, pools = prepared.student, prepared.pools
    merged = _merged(student, state.params, prepared.frozen)
    valid = None if pools.valid is None else held_out_loss(student.config, merged, pools.valid)
    report = {
        "teacher_loss": prepared.teacher_loss,
        "loss_before": prepared.loss_before,
        "parameters": prepared.parameters,
        "loss_after": held_out_loss(student.config, merged, pools.test),
        "validation_loss": valid,
        "tokens_per_second": tokens_per_second and round(tokens_per_second),
        "peak_rss_mb": round(peak_process_bytes() / 2**20),
    }
    return Trained(state.params, merged, report, rows)


def write(out: Path, prepared: Prepared, trained: Trained, *, dtype: str = "float32", overwrite: bool = False) -> None:
    """Write a trained student as a Hugging Face folder with `losses.jsonl` and `lrc.json`, all or nothing.

    Raises:
      InputError: `out` is taken or cannot be made, or the dtype is unknown.
    """
    export_student(
        out,
        prepared.student,
        trained.params,
        prepared.frozen,
        tokenizer=prepared.teacher.tokenizer,
        dtype=dtype,
        provenance=trained.report | {"settings": prepared.identity},
        overwrite=overwrite,
        extra={LOSSES_FILE: _lines(trained.rows)},
    )


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

    While it runs, `OUT.training` holds the loss curve and the last two checkpoints; the same call resumes an
    interrupted run. In the end the folder holds the model, the tokenizer, `losses.jsonl` and `lrc.json`.

    Args:
      stop_after: called with each checkpointed step; True interrupts the run there (for tests of resuming).

    Returns:
      The numbers of `lrc.json`: losses in nats per token of teacher and student, before and after, on at most 32
      sequences of the test text, and of the student on as many of the validation text, to choose settings by.

    Raises:
      InputError: bad settings or files. DivergedError: a loss is not finite.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    work = training_folder(out, overwrite)
    prepared = prepare(settings, machine=machine)
    first_process = jax.process_index() == 0
    say: Say = functools.partial(print, file=sys.stderr, flush=True) if first_process else lambda text: None
    trained = fit(prepared, work, say=say, warn=lambda text: say(f"warning: {text}"), stop_after=stop_after)
    if first_process:
        write(out, prepared, trained, dtype=dtype, overwrite=overwrite)
        discard(work)
    return trained.report
