"""Training many students in one compiled program.

A stream is one sequence of minibatches: a pool, a number of samples and a seed of the order. Its members are the
runs that see it; they may differ in rank, kind, objective, start, learning rate, number of steps, loss weights and
temperature. The teacher's forward pass on a batch is computed once for all of them.

How members and streams are batched depends on the machine. On CPU a member's arithmetic is done at its own shape, one
after the other (`lax.map` where shapes are equal): wide batched products leave the fast path, and a padded rank is
arithmetic wasted. On an accelerator ranks are padded with zeros (students/padding.py) and everything is `vmap`ped
over members and streams: few large kernels.

A member ends with the numbers of `train` up to the order of float32 sums (tests/lrc_jax/test_together.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax.compute.sharding import beside, to_host
from lrc_jax.data.pools import Pool
from lrc_jax.errors import DivergedError
from lrc_jax.model import Activations, DecoderConfig
from lrc_jax.objective import LossWeights, Objective, Terms
from lrc_jax.students import Frozen, Student
from lrc_jax.students.base import Params
from lrc_jax.students.padding import can_pad, cut, pad, rank_of, rescaled, width_scale, with_rank, without_start
from lrc_jax.training.train import (
    CHUNK,
    History,
    Hyper,
    OptimizerSpec,
    TrainState,
    chunk_room,
    chunk_size,
    distillation_loss,
    diverged,
    gather_chunk,
    init_state,
    reads_teacher,
    teacher_activations,
    train_step,
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One run: everything that train() takes besides its batches.

    Attributes:
      state: training resumes from here; None starts anew. All members start at the same step.
    """

    student: Student
    objective: Objective
    optimizer: OptimizerSpec
    frozen: Frozen
    hyper: Hyper
    init_key: Array
    state: TrainState | None = None


@dataclasses.dataclass(frozen=True)
class Stream:
    """One sequence of minibatches and the runs that see it."""

    pool: Pool
    order_key: Array
    samples: int
    members: tuple[Member, ...]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What members have in common that are one array program (static)."""

    student: Student
    objective: Objective
    optimizer: OptimizerSpec

    def loss(
        self,
        scale: Array | None,
        params: Params,
        frozen: Frozen,
        weights: LossWeights,
        batch: Pool,
        teacher_acts: Activations | None,
    ) -> tuple[Array, Terms]:
        if scale is not None:
            params = rescaled(self.student, params, scale)
        return distillation_loss(self.student, self.objective, params, frozen, weights, batch, teacher_acts)


Outcome = TrainState | DivergedError
OnChunk = Callable[[list[History | None], Callable[[], list[TrainState]]], None]


@functools.partial(
    jax.jit,
    static_argnames=("shapes", "teacher_config", "vectorised", "uneven"),
    donate_argnames=("states",),
)
def fused_chunk(
    shapes: tuple[Shape, ...],
    teacher_config: DecoderConfig,
    vectorised: bool,
    uneven: bool,
    states: tuple[TrainState, ...],
    frozens: tuple[Frozen, ...],
    hypers: tuple[Hyper, ...],
    scales: tuple[Array | None, ...],
    batches: Pool,
    count: Array,
) -> tuple[tuple[TrainState, ...], tuple[Array, ...]]:
    """Run `count` (at most CHUNK) steps of every member of S streams.

    Args:
      vectorised: vmap over streams and members; else one after the other.
      uneven: members have different numbers of steps, so that each step asks who still runs.
      states, hypers, scales: an entry a shape, leaves [S, members, ...].
      batches: [S, CHUNK, B, ...].

    Returns:
      The states, and per shape the losses and gradient norms [S, members, CHUNK, 5].
    """
    each = (lambda f, xs: jax.vmap(f)(xs)) if vectorised else jax.lax.map
    reads = [reads_teacher(s.student, s.objective) for s in shapes]

    def stream_step(xs: Any) -> Any:
        states, hypers, scales, batch = xs
        acts = None
        if any(reads):
            acts = teacher_activations(teacher_config, frozens[0].teacher, batch.tokens_NT, batch.final_NTD)
            if not vectorised and sum(len(state.step) for state in states) > 1:
                # One after the other they would each compute its logits, where those are computed within the losses.
                acts = dataclasses.replace(acts, unembedding=None)
        out = []
        for shape, frozen, read, *members in zip(shapes, frozens, reads, states, hypers, scales, strict=True):

            def member_step(ys: Any, shape: Shape = shape, frozen: Frozen = frozen, read: bool = read) -> Any:
                state, hyper, scale = ys

                def advance() -> tuple[TrainState, Array]:
                    loss = functools.partial(shape.loss, scale)
                    return train_step(loss, shape.optimizer, state, frozen, hyper, batch, acts if read else None)

                if not uneven:
                    return advance()
                return jax.lax.cond(state.step < hyper.steps, advance, lambda: (state, jnp.zeros(5, jnp.float32)))

            out.append(each(member_step, tuple(members)))
        return tuple(x[0] for x in out), tuple(x[1] for x in out)

    def body(i: Array, carry: Any) -> Any:
        states, logs = carry
        batch = jax.tree.map(lambda x: x[:, i], batches)
        states, rows = each(stream_step, (states, hypers, scales, batch))
        return states, tuple(log.at[:, :, i].set(row) for log, row in zip(logs, rows, strict=True))

    sizes = [state.step.shape for state in states]
    logs = tuple(jnp.zeros((*size, CHUNK, 5), jnp.float32) for size in sizes)
    return jax.lax.fori_loop(0, count, body, (states, logs))


def is_vectorised() -> bool:
    """Whether students are trained by `vmap` here: on an accelerator, where few large kernels are what is fast."""
    return jax.default_backend() != "cpu"


def _stack(trees: Sequence[Any]) -> Any:
    """Stacked on the host: eager stacking would compile a program a shape."""
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *trees)


def _as_trained(member: Member) -> Member:
    """A student that is built, not trained, takes no step."""
    if member.student.trained:
        return member
    return dataclasses.replace(member, hyper=dataclasses.replace(member.hyper, steps=jnp.zeros((), jnp.int32)))


def _shape_of(member: Member, widest: int | None) -> Shape:
    student = member.student
    if widest is not None and can_pad(member.student, member.objective):
        student = with_rank(student, widest)
    return Shape(student, member.objective, member.optimizer)


def train_together(
    teacher_config: DecoderConfig,
    streams: Sequence[Stream],
    *,
    batch_size: int,
    vectorised: bool | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    on_chunk: OnChunk | None = None,
) -> list[list[Outcome]]:
    """Train every member of some streams to its end.

    Args:
      streams: with one frozen teacher in common; with the same kinds, ranks and numbers of members in each (or one).
      vectorised: None chooses by backend.
      progress: called after each chunk with (steps done, steps of the longest run, mean loss of the chunk).
      on_chunk: called after each chunk with the members' histories of it (stream by stream; None for a member that
        has ended), and a function that copies their states to the host.

    Returns:
      Per stream and member its final state, or the error of a loss that was not finite: one member's divergence
      leaves the others as they are.
    """
    if vectorised is None:
        vectorised = is_vectorised()
    streams = [dataclasses.replace(s, members=tuple(map(_as_trained, s.members))) for s in streams]
    everyone = [member for stream in streams for member in stream.members]
    ranks = [rank_of(m.student) for m in everyone]
    widest = max(ranks) if vectorised else None

    # Members by shape: `place[k]` are the positions, within every stream, of the members of shape k.
    layout = [[_shape_of(m, widest) for m in stream.members] for stream in streams]
    shapes = tuple(dict.fromkeys(layout[0]))
    if any(line != layout[0] for line in layout):
        raise ValueError("train_together: the streams' members differ in kind or order; train them one stream a call")
    place = [[j for j, shape in enumerate(layout[0]) if shape == wanted] for wanted in shapes]

    started = [m.state or init_state(m.student, m.optimizer, m.init_key, m.frozen) for m in everyone]
    done = int(started[0].step)
    if any(int(state.step) != done for state in started):
        raise ValueError("train_together: the members start at different steps; train those of one step together")
    steps = [int(m.hyper.steps) for m in everyone]
    width = len(layout[0])

    def stacked(values: Sequence[Any], shape: int) -> Any:
        return _stack([_stack([values[s * width + j] for j in place[shape]]) for s in range(len(streams))])

    abstract = [
        jax.eval_shape(functools.partial(init_state, shape.student, shape.optimizer), everyone[0].init_key, frozen)
        for shape, frozen in ((shapes[k], without_start(everyone[place[k][0]].frozen)) for k in range(len(shapes)))
    ]
    like = [jax.eval_shape(lambda x: x, state) for state in started]
    shape_of = {j: k for k in range(len(shapes)) for j in place[k]}
    padded = [pad(state, abstract[shape_of[i % width]]) for i, state in enumerate(started)]
    frozens = tuple(without_start(everyone[place[k][0]].frozen) for k in range(len(shapes)))
    states = beside(tuple(stacked(padded, k) for k in range(len(shapes))), frozens)
    hypers = tuple(stacked([m.hyper for m in everyone], k) for k in range(len(shapes)))
    scales: tuple[Any, ...] = (None,) * len(shapes)
    if vectorised:
        scale = [
            np.asarray(width_scale(m.student, rank_of(shapes[shape_of[i % width]].student)), jnp.result_type(float))
            for i, m in enumerate(everyone)
        ]
        scales = tuple(stacked(scale, k) for k in range(len(shapes)))

    def own_states() -> list[TrainState]:
        host = to_host(states)
        out = []
        for i, shape in enumerate(like):
            s, j = divmod(i, width)
            k = shape_of[j]
            m = place[k].index(j)
            out.append(cut(jax.tree.map(lambda x, s=s, m=m: x[s, m], host[k]), shape))
        return out

    errors: dict[int, DivergedError] = {}
    last = max(steps)
    chunk = min(chunk_size(last), *(chunk_room(stream.pool, batch_size * len(streams)) for stream in streams))
    while done < last and len(errors) < len(everyone):
        count = min(chunk, last - done)
        batches = _stack([gather_chunk(s.pool, s.order_key, done, count, batch_size, s.samples) for s in streams])
        states, logs = fused_chunk(
            shapes,
            teacher_config,
            vectorised,
            min(steps) < last,
            states,
            frozens,
            hypers,
            scales,
            batches,
            jnp.asarray(count, jnp.int32),
        )
        parts: list[History | None] = [None] * len(everyone)
        for k, log in enumerate(np.asarray(x) for x in logs):
            for s in range(len(streams)):
                for m, j in enumerate(place[k]):
                    i = s * width + j
                    ran = min(count, steps[i] - done)
                    if ran <= 0 or i in errors:
                        continue
                    columns = log[s, m, :ran].T
                    part = parts[i] = History(Terms(*columns[:4]), columns[4])
                    if (wrong := diverged(part, done, steps[i])) is not None:
                        errors[i] = wrong
        done += count
        if on_chunk is not None:
            on_chunk(parts, own_states)
        if progress is not None:
            means = [float(p.terms.total.mean()) for p in parts if p is not None]
            progress(done, last, float(np.mean(means)))
    final = own_states()
    outcomes: list[Outcome] = [errors.get(i) or jax.tree.map(jnp.asarray, state) for i, state in enumerate(final)]
    return [outcomes[s * width : (s + 1) * width] for s in range(len(streams))]
