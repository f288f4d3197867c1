"""A bundle of runs: claimed, trained together, each measured and written by itself.

Runs of one stream see the same minibatches. On a CPU a bundle is one stream; on an accelerator it may be many.

Imports JAX: only after its environment is set (experiments.sweep.fused does both).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.common.progress import Progress, duration
from experiments.run_one import pipeline
from experiments.run_one import run as running
from experiments.run_one.run import Run
from experiments.sweep import interrupt
from experiments.sweep.job import Job, summary
from experiments.sweep.outcome import Outcome
from experiments.sweep.store import LeaseLost
from lrc_jax import clock
from lrc_jax.errors import DivergedError
from lrc_jax.students.padding import can_pad
from lrc_jax.training.together import Member, Stream, is_vectorised, train_together
from lrc_jax.training.together import Outcome as Trained

log = logging.getLogger(__name__)
NO_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of XLA's error


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that is ours and prepared for its training."""

    run: Job
    prepared: pipeline.Prepared
    keeper: interrupt.FolderKeeper
    member: Member
    write: Callable[[dict[str, Any]], None]

    @property
    def begun(self) -> int:
        """The step that its training starts from."""
        return 0 if self.member.state is None else int(self.member.state.step)


def run_bundle(bundle: Mapping[int, Job]) -> Iterator[tuple[int, Outcome]]:
    """Train some runs together and measure each; yields (index, outcome) as each ends."""
    with contextlib.ExitStack() as held:
        clock.start()
        widest = max(run.config.rank for run in bundle.values()) if is_vectorised() else None
        ready: dict[int, Ready] = {}
        for i, run in bundle.items():
            found = _make_ready(run, held, widest)
            if isinstance(found, Outcome):
                yield i, found
            else:
                ready[i] = found
        trained: dict[int, Trained] = {}
        calls = _trainable_together(ready)
        while calls:
            streams = calls.pop(0)
            group = [i for stream in streams for i in stream]
            try:
                outcomes = _train([[ready[i] for i in stream] for stream in streams])
            except Exception as wrong:
                if NO_MEMORY in str(wrong) and (halves := _halves(streams)):
                    log.warning("fused: no memory for %d runs at once; they are trained in two parts", len(group))
                    calls = [*halves, *calls]
                    continue
                for i in group:  # each of them failed, and the other groups go on
                    ready[i].run.fail(wrong)
                    yield i, Outcome(error=wrong)
                continue
            trained |= dict(zip(group, outcomes, strict=True))
        shared = {name: value / max(1, len(trained)) for name, value in clock.stop().items()}
        for i, outcome in trained.items():
            yield i, _finish(ready[i], outcome, shared)


def _make_ready(run: Job, held: contextlib.ExitStack, widest: int | None) -> Ready | Outcome:
    """Claim a run and prepare its training; what it holds until the bundle's end goes on the stack. On an accelerator
    its losses are evaluated at the rank of the bundle's `widest` student, as it is trained."""
    if not held.enter_context(run.folder.claim()):
        return Outcome({}, message=f"{run.name}: another process works on it ({run.run_id})")
    if (row := run.done_row()) is not None:  # finished between the look and the claim
        return Outcome(row, message=f"{run.name}: already done ({run.run_id})")
    cfg = run.config
    try:
        with run.attempt():
            alone = Run.of(cfg, run.setup)
            pads = widest is not None and can_pad(alone.student, running.objective(cfg))
            prepared = pipeline.prepare(dataclasses.replace(alone, evaluated_at=widest if pads else None))
            keeper = interrupt.FolderKeeper(run.folder)
            state = keeper.resume(prepared.run.abstract_state())
    except Exception as wrong:
        return Outcome(error=wrong)
    member = Member(
        prepared.run.student,
        running.objective(cfg),
        running.optimizer(cfg),
        prepared.run.frozen,
        running.hyper(cfg, cfg.steps, prepared.train_pool.size),
        running.init_key_of(cfg.seed),
        state,
    )
    return Ready(run, prepared, keeper, member, held.enter_context(run.metrics()))


def _trainable_together(ready: Mapping[int, Ready]) -> list[list[list[int]]]:
    """The streams of every call of `train_together`: runs that start from the same step, with members of the same
    shapes in each stream; students that are built, not trained, by themselves."""
    streams: dict[Any, list[int]] = {}
    for i, one in ready.items():
        cfg = one.run.config
        streams.setdefault((one.begun, one.member.student.trained, cfg.samples, cfg.seed), []).append(i)
    calls: dict[Any, list[list[int]]] = {}
    for (begun, trained, *_), members in streams.items():
        layout = tuple((m.student, m.objective, m.optimizer) for m in (ready[i].member for i in members))
        calls.setdefault((begun, trained, layout), []).append(members)
    return list(calls.values())


def _halves(streams: list[list[int]]) -> list[list[list[int]]]:
    """The same runs in two calls: half of the streams each, or half of the members of the only one."""
    if len(streams) > 1:
        middle = len(streams) // 2
        return [streams[:middle], streams[middle:]]
    (members,) = streams
    middle = len(members) // 2
    return [[members[:middle]], [members[middle:]]] if middle else []


def _stream(members: Sequence[Ready]) -> Stream:
    cfg = members[0].run.config
    # Hard labels read nothing of the teacher, outputs its features, clone losses its layers: the pool of the most
    # demanding run serves all.
    pools = [one.prepared.pool_to_fit for one in members]
    pool = next((p for p in pools if p.final_NTD is None), pools[0])
    return Stream(pool, running.order_key_of(cfg.seed), pool.size, tuple(one.member for one in members))


def _train(streams: Sequence[Sequence[Ready]]) -> list[Trained]:
    """Train the runs of some streams that start from the same step; outcomes stream by stream."""
    group = [one for stream in streams for one in stream]
    first = group[0].run
    cfg, steps = first.config, [one.run.config.steps for one in group]
    done = group[0].begun

    def on_chunk(parts: Any, states: Any) -> None:
        nonlocal done
        for one, part in zip(group, parts, strict=True):
            if part is not None:
                with contextlib.suppress(LeaseLost):  # the others go on; `finish` says so of this one
                    one.write(running.metrics_line(done + len(part.terms.total), part))
        done += max((len(p.terms.total) for p in parts if p is not None), default=0)
        if any(one.keeper.due(len(group)) for one in group):
            for one, last, state in zip(group, steps, states(), strict=True):
                if (at := int(state.step)) < last:
                    with contextlib.suppress(LeaseLost):
                        one.keeper.save(at, last, state)
        interrupt.stop_if_wanted()

    for one in group:
        one.keeper.begin()
    name = first.name if len(group) == 1 else f"{len(group)} runs"
    if len(streams) == 1 < len(group):
        name += f", samples={cfg.samples} seed={cfg.seed}"
    with Progress(name, max(steps)) as progress, interrupt.training(), clock.phase("training"):
        outcomes = train_together(
            first.setup.network().config,
            [_stream(stream) for stream in streams],
            batch_size=cfg.batch_size,
            progress=progress.update,
            on_chunk=on_chunk,
        )
    return [outcome for stream in outcomes for outcome in stream]


def _finish(one: Ready, trained: Trained, shared: Mapping[str, float]) -> Outcome:
    """Measure a trained run and write its row; `shared` is its part of the bundle's seconds."""
    run = one.run
    if isinstance(trained, DivergedError):
        run.fail(trained)
        return Outcome(error=trained)
    clock.start()
    try:
        with run.attempt(), clock.phase("measuring"):
            columns = pipeline.measure(one.prepared, trained.params)
        phases = {name: shared[name] + value for name, value in clock.stop().items()}
        spent = sum(phases.values())
        row = run.finish(columns, spent, phases)
    except LeaseLost as lost:
        return Outcome(run.folder.row() or {}, message=f"{run.name}: {lost}")
    except Exception as wrong:
        return Outcome(error=wrong)
    return Outcome(row, message=f"{run.name}: {summary(columns)} ({duration(spent)} of a fused bundle)")
