"""Training a student: one compiled program that runs any number of steps, called in chunks for progress.

The number of steps and the pool are no part of the program, so that runs of different length, sample size, seed,
learning rate or loss weight share one compilation. Batches are drawn uniformly with replacement from the first
`samples` sequences of the pool (the minibatch gradient is then unbiased for the empirical risk), by a key folded
with the step: the order of data is a function of (seed, step) alone, and a run can be resumed at any step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from lrc_jax.compute.fast import evaluate_objective, forward
from lrc_jax.compute.sharding import DATA, beside, place_frozen, replicate, shard_batches, to_host
from lrc_jax.data.pools import Pool
from lrc_jax.errors import DivergedError, InputError
from lrc_jax.model import RESIDUAL, Activations, DecoderConfig, LayerActivations, Weights
from lrc_jax.objective import LossWeights, Objective, Terms
from lrc_jax.students.base import Frozen, Params, Student

CHUNK = 256  # most steps in one call of the compiled program
CHUNK_BYTES = 1 << 28  # of batches in one call; binds where they carry the teacher's activations
SCHEDULES = ("cosine", "constant", "linear", "inverse_sqrt")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser (static). Its learning rate is in Hyper.

    Attributes:
      name: "adamw" or "sgd" (plain, no momentum).
      schedule: "cosine" or "linear" decay to 0 over the run's steps, "constant", or "inverse_sqrt" (t^-1/2).
      warmup: share of the steps with a linear rise from 0.
      clip: global gradient norm to clip at; None does not clip.
    """

    name: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "sgd"):
            raise ValueError(f"optimizer {self.name!r} is unknown; choose adamw or sgd")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule {self.schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")

    def direction(self) -> optax.GradientTransformation:
        """The update's direction for a learning rate of 1, before the sign."""
        parts = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        if self.name == "adamw":
            parts.append(optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay))
        return optax.chain(*parts) if parts else optax.identity()

    def factor(self, step: Array, steps: Array) -> Array:
        """Share of the learning rate at a step (from 0) of a run of `steps`."""
        t, total = step.astype(jnp.float32), jnp.maximum(steps, 1).astype(jnp.float32)
        if self.schedule == "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * t / total))
        elif self.schedule == "linear":
            decay = 1 - t / total
        elif self.schedule == "inverse_sqrt":
            decay = jax.lax.rsqrt(t + 1)
        else:
            decay = jnp.ones_like(t)
        if not self.warmup:
            return decay
        return decay * jnp.minimum(1.0, (t + 1) / jnp.maximum(1.0, self.warmup * total))


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is computed (static); but for the exception below none changes what it means.

    Attributes:
      accumulate: parts that the batch is cut into, one after another; the gradient is their mean. For losses that
        are plain means over sequences that is the gradient of the whole; the normalised clone distance, and shuffled
        targets, are then those of each part.
      remat: keep only the student's residual stream for the backward pass and recompute the rest.
      bf16: compute both models in bfloat16; parameters, optimiser and losses stay float32.
    """

    accumulate: int = 1
    remat: bool = False
    bf16: bool = False

    def check(self, batch_size: int, mesh: Mesh | None) -> None:
        """Raise InputError where a batch cannot be cut as asked."""
        parts = self.accumulate * (1 if mesh is None else mesh.shape[DATA])
        if self.accumulate < 1 or batch_size % parts:
            raise InputError(f"batch_size: {batch_size} is no multiple of accumulate times mesh.data, {parts}")


@flax.struct.dataclass
class Hyper:
    """Numbers of a run that are arguments of the compiled program."""

    learning_rate: Array | float
    steps: Array | int
    samples: Array | int
    loss: LossWeights


@flax.struct.dataclass
class TrainState:
    params: Params
    opt_state: Any
    step: Array


@flax.struct.dataclass
class History:
    """Loss terms and gradient norm (before clipping) of every step, NumPy arrays [steps]."""

    terms: Terms
    grad_norm: np.ndarray

    def row(self, at: int | slice = slice(None)) -> dict[str, float]:
        """Terms and gradient norm of a step, or their means over some (all by default), by name."""
        parts = {name: getattr(self.terms, name) for name in ("total", "clone", "kl", "ce")}
        return {name: float(np.mean(x[at])) for name, x in (parts | {"grad_norm": self.grad_norm}).items()}


@functools.partial(jax.jit, static_argnames=("student", "optimizer"))
def init_state(student: Student, optimizer: OptimizerSpec, key: Array, frozen: Frozen) -> TrainState:
    """Start values of parameters and optimiser, in one compiled call."""
    params = student.init(key, frozen)
    return TrainState(params, optimizer.direction().init(params), jnp.zeros((), jnp.int32))


def cast_floats(tree: Any, dtype: Any) -> Any:
    """Float arrays in another dtype, everything else as it is."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def acts_in_float32(acts: Activations) -> Activations:
    """Activations as the losses read them. The unembedding and what it reads stay as they are: where logits are
    computed within the losses, it is at the model's precision."""
    return dataclasses.replace(cast_floats(acts, jnp.float32), final_ND=acts.final_ND, unembedding=acts.unembedding)


def teacher_activations(
    config: DecoderConfig,
    teacher: Weights,
    tokens_BT: Array,
    final_BTD: Array | None,
    sites: dict[str, Array] | None = None,
) -> Activations:
    """The teacher's forward pass, or just its head where final features (and clone sites) were precomputed."""
    if final_BTD is None:
        return forward(config, teacher, tokens_BT)
    known = {"final": final_BTD} | (sites or {})
    flat = {name: x.reshape(-1, x.shape[-1]).astype(teacher.embed_VD.dtype) for name, x in known.items()}
    final_ND = flat.pop("final")
    logits_NV = final_ND @ teacher.unembedding_DV()
    layers: tuple[LayerActivations, ...] = ()
    if flat:  # sites that nothing reads were not kept
        names = LayerActivations.__dataclass_fields__
        layers = tuple(
            LayerActivations(**{name: flat.get(f"layers.{i}.{name}") for name in names})  # type: ignore[arg-type]
            for i in range(config.num_layers)
        )
    return Activations(logits_NV, final_ND, layers, (), final_ND, teacher.unembedding())


def reads_teacher(student: Student, objective: Objective) -> bool:
    """Whether a training runs the teacher on its batches."""
    return objective.needs_teacher or student.reads_only_final


def teacher_side(
    student: Student, objective: Objective, teacher_config: DecoderConfig, frozen: Frozen, batch: Pool
) -> Activations | None:
    """What the student's objective needs of the teacher on a batch; None where it needs nothing."""
    if not reads_teacher(student, objective):
        return None
    distilled = frozen.teacher if frozen.distilled is None else frozen.distilled
    return teacher_activations(teacher_config, distilled, batch.tokens_NT, batch.final_NTD, batch.sites)


def distillation_loss(
    student: Student,
    objective: Objective,
    params: Params,
    frozen: Frozen,
    weights: LossWeights,
    batch: Pool,
    teacher_acts: Activations | None,
    *,
    bf16: bool = False,
) -> tuple[Array, Terms]:
    """The objective of one student on one batch, the teacher's side of it given. With `bf16` the student runs in
    bfloat16 and the losses are computed in float32."""
    low = cast_floats(params, jnp.bfloat16) if bf16 else params
    student_acts = student.forward(low, frozen, batch.tokens_NT, teacher_acts)
    if bf16:
        student_acts = acts_in_float32(student_acts)
        teacher_acts = None if teacher_acts is None else acts_in_float32(teacher_acts)
    pairs = []
    if objective.clone:
        assert teacher_acts is not None
        pairs = student.clone_pairs(params, frozen, teacher_acts, student_acts)
    terms = evaluate_objective(objective, weights, pairs, teacher_acts, student_acts, batch.labels_NT)
    return terms.total, terms


def student_loss(
    student: Student,
    objective: Objective,
    teacher_config: DecoderConfig,
    params: Params,
    frozen: Frozen,
    weights: LossWeights,
    batch: Pool,
    options: StepOptions = StepOptions(),
) -> tuple[Array, Terms]:
    """The objective of one student on one batch (as a whole: `options.accumulate` is the caller's)."""
    if options.bf16:
        frozen = cast_floats(frozen, jnp.bfloat16)
    teacher_acts = teacher_side(student, objective, teacher_config, frozen, batch)
    loss: Callable[..., tuple[Array, Terms]] = functools.partial(
        distillation_loss, student, objective, bf16=options.bf16
    )
    if options.remat:
        loss = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_only_these_names(RESIDUAL))
    return loss(params, frozen, weights, batch, teacher_acts)


def loss_and_grads(
    student: Student,
    objective: Objective,
    teacher_config: DecoderConfig,
    options: StepOptions,
    params: Params,
    frozen: Frozen,
    weights: LossWeights,
    batch: Pool,
) -> tuple[Terms, Params]:
    """Loss terms and gradient of a batch."""

    def loss(params: Params, part: Pool) -> tuple[Array, Terms]:
        return student_loss(student, objective, teacher_config, params, frozen, weights, part, options)

    grad = jax.value_and_grad(loss, has_aux=True)
    n = options.accumulate
    if n == 1:
        (_, terms), grads = grad(params, batch)
        return terms, grads
    # Every n-th row to a part, so that each part is spread over all devices as the whole is.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, n, *x.shape[1:]), 0, 1), batch)

    def add(total: Any, part: Pool) -> tuple[Any, None]:
        (_, terms), grads = grad(params, part)
        return jax.tree.map(jnp.add, total, (terms, grads)), None

    zero = jnp.zeros((), jnp.float32)
    start = (Terms(zero, zero, zero, zero), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, start, parts)
    return jax.tree.map(lambda x: x / n, total)


def batch_index(key: Array, batch_size: int, samples: Array) -> Array:
    """Indices of a minibatch, uniform with replacement from the first `samples` sequences."""
    # floor(u * N) rather than randint(0, N): the same uniform numbers for every N, so that runs of one seed that
    # differ in N see corresponding batches. In integers, u = bits / 2^32: float32 has 24 bits, and of ten million
    # sequences it would never reach some and reach others twice.
    return _high_word(jax.random.bits(key, (batch_size,), jnp.uint32), samples.astype(jnp.uint32)).astype(jnp.int32)


def _high_word(a: Array, b: Array) -> Array:
    """floor(a * b / 2^32) of uint32, by halves of 16 bits: there are no 64 bits by default."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    first = a_high * b_low + (a_low * b_low >> 16)
    second = a_low * b_high + (first & 0xFFFF)
    return a_high * b_high + (first >> 16) + (second >> 16)


@functools.partial(jax.jit, static_argnames=("batch_size",))
def _chunk_index(order_key: Array, first: Array, batch_size: int, samples: Array) -> Array:
    """Minibatch indices [CHUNK, B] of the steps from `first` on."""
    keys = jax.vmap(lambda step: jax.random.fold_in(order_key, step))(first + jnp.arange(CHUNK))
    return jax.vmap(lambda key: batch_index(key, batch_size, samples))(keys)


def chunk_room(pool: Pool, batch_size: int) -> int:
    """Most steps whose batches are gathered at once: CHUNK, or as many as CHUNK_BYTES hold."""
    size = sum(x.dtype.itemsize * int(np.prod(x.shape[1:])) for x in jax.tree.leaves(pool))
    return max(1, min(CHUNK, CHUNK_BYTES // (size * batch_size)))


def gather_chunk(pool: Pool, order_key: Array, first: int, count: int, batch_size: int, samples: Any) -> Pool:
    """Minibatches of `count` steps from step `first` on, in arrays [room, B, ...] (the rest is never read).

    Gathered on the host: the compiled step then knows nothing of the pool's size, and runs that differ in it share
    one compilation.
    """
    index_CB = _chunk_index(order_key, jnp.asarray(first, jnp.int32), batch_size, jnp.asarray(samples, jnp.int32))
    index_CB = np.asarray(index_CB)[:count]
    room = chunk_room(pool, batch_size)

    def gather(x: Any) -> np.ndarray:
        out = np.zeros((room, batch_size, *x.shape[1:]), x.dtype)
        if isinstance(x, np.ndarray | jax.Array):  # straight to its place: half the time of indexing
            np.take(np.asarray(x), index_CB, axis=0, out=out[:count], mode="clip")
        else:
            out[:count] = x[index_CB]
        return out

    return jax.tree.map(gather, pool)


def update(
    optimizer: OptimizerSpec, state: TrainState, hyper: Hyper, terms: Terms, grads: Params
) -> tuple[TrainState, Array]:
    """The state after a step, and (total, clone, kl, ce, gradient norm before clipping)."""
    updates, opt_state = optimizer.direction().update(grads, state.opt_state, state.params)
    rate = hyper.learning_rate * optimizer.factor(state.step, jnp.asarray(hyper.steps))
    params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
    row = jnp.stack([terms.total, terms.clone, terms.kl, terms.ce, optax.tree.norm(grads)])
    return TrainState(params, opt_state, state.step + 1), row.astype(jnp.float32)


def train_step(
    loss: Callable[..., tuple[Array, Terms]],
    optimizer: OptimizerSpec,
    state: TrainState,
    frozen: Frozen,
    hyper: Hyper,
    batch: Pool,
    teacher_acts: Activations | None,
) -> tuple[TrainState, Array]:
    """One step of `loss(params, frozen, weights, batch, teacher_acts)`; returns as `update`."""
    (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(state.params, frozen, hyper.loss, batch, teacher_acts)
    return update(optimizer, state, hyper, terms, grads)


@functools.partial(
    jax.jit,
    static_argnames=("student", "objective", "optimizer", "teacher_config", "options"),
    donate_argnames=("state",),
)
def train_chunk(
    student: Student,
    objective: Objective,
    optimizer: OptimizerSpec,
    teacher_config: DecoderConfig,
    state: TrainState,
    frozen: Frozen,
    batches: Pool,
    hyper: Hyper,
    count: Array,
    options: StepOptions = StepOptions(),
) -> tuple[TrainState, Terms, Array]:
    """Run `count` (at most C) steps on `batches` [C, B, ...].

    Returns the state and, per step, loss terms and gradient norm [C]."""

    def body(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
        state, log_C5 = carry
        batch = jax.tree.map(lambda x: x[i], batches)
        terms, grads = loss_and_grads(
            student, objective, teacher_config, options, state.params, frozen, hyper.loss, batch
        )
        state, row = update(optimizer, state, hyper, terms, grads)
        return state, log_C5.at[i].set(row)

    rows = batches.tokens_NT.shape[0]
    state, log_C5 = jax.lax.fori_loop(0, count, body, (state, jnp.zeros((rows, 5), jnp.float32)))
    return state, Terms(*(log_C5[:, i] for i in range(4))), log_C5[:, 4]


def chunk_size(steps: int) -> int:
    """Steps in a call of the compiled program: progress is reported about twenty times per run."""
    return max(1, min(CHUNK, -(-steps // 20)))


def diverged(part: History, done: int, steps: int) -> DivergedError | None:
    """The error of the first loss that is not finite in a chunk that began after step `done`, or None."""
    bad = np.flatnonzero(~np.isfinite(part.terms.total))
    if not len(bad):
        return None
    return DivergedError(
        f"loss is {part.terms.total[bad[0]]} at step {done + int(bad[0]) + 1} of {steps}; lower the "
        "learning rate (optimizer.learning_rate) or clip gradients (optimizer.clip)"
    )


Progress = Callable[[int, int, float], None]


def train(
    student: Student,
    objective: Objective,
    optimizer: OptimizerSpec,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    pool: Pool,
    hyper: Hyper,
    *,
    batch_size: int,
    init_key: Array,
    order_key: Array,
    state: TrainState | None = None,
    until: int | None = None,
    progress: Progress | None = None,
    on_chunk: Callable[[TrainState, History], None] | None = None,
    options: StepOptions = StepOptions(),
    mesh: Mesh | None = None,
) -> tuple[TrainState, History]:
    """Train a student from its start, or from `state`, to the end of `hyper.steps`.

    Args:
      until: stop after this step (the schedule is still that of the whole run).
      progress: called after each chunk with (steps done, steps, mean loss of the chunk).
      on_chunk: called after each chunk with the state and its history (to log or checkpoint).
      options: how a step is computed.
      mesh: devices of all processes (`sharding.make_mesh`), each of which calls this with equal arguments: batches
        are split over its data axis, teachers over its model axis, everything else is on all of them. None: the
        default device.

    Raises:
      DivergedError: a loss is not finite; names the step.
      InputError: a batch cannot be cut as asked.
    """
    options.check(batch_size, mesh)
    if state is None:
        state = init_state(student, optimizer, init_key, frozen)
    steps = int(hyper.steps) if until is None else min(until, int(hyper.steps))
    if not student.trained or int(state.step) >= steps:  # a kill after the last checkpoint leaves none to take
        empty = np.zeros(0, np.float32)
        return state, History(Terms(empty, empty, empty, empty), empty)
    if mesh is not None:
        state, hyper, frozen = replicate(mesh, state), replicate(mesh, _arrays(hyper)), place_frozen(mesh, frozen)
    else:
        state = beside(state, frozen)
    chunk = min(chunk_size(steps), chunk_room(pool, batch_size))
    parts: list[History] = []
    done = int(state.step)
    while done < steps:
        count = min(chunk, steps - done)
        batches = gather_chunk(pool, order_key, done, count, batch_size, hyper.samples)
        if mesh is not None:
            batches = shard_batches(mesh, batches)
        state, terms, grad_norm = train_chunk(
            student,
            objective,
            optimizer,
            teacher_config,
            state,
            frozen,
            batches,
            hyper,
            np.int32(count),
            options,
        )
        part = History(*jax.tree.map(lambda x, n=count: np.asarray(x)[:n], (terms, grad_norm)))
        parts.append(part)
        if (wrong := diverged(part, done, steps)) is not None:
            raise wrong
        done += count
        if on_chunk is not None:
            on_chunk(state, part)
        if progress is not None:
            progress(done, steps, float(part.terms.total.mean()))
    if mesh is not None:  # back to where the caller's arrays are
        state = jax.tree.map(jnp.asarray, to_host(state))
    return state, jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def _arrays(hyper: Hyper) -> Hyper:
    """Numbers of a run as arrays of the types that they have in the program."""
    return jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), hyper)
