"""A group of a sweep's runs in one process, those that see the same minibatches trained together.

Called by the fused launcher (hydra_plugins/fused_launcher) with the composed configurations of a group; also fit for a
script. Every run has its own claim, folder, metrics, checkpoint and row, as if it had been run alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from experiments import command, config
from lrc_jax.errors import DivergedError, InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its row ({} where another process works on it) or its error, and a line for its log.
    `alone` asks the caller to run it singly."""

    row: dict[str, Any] | None = None
    error: Exception | None = None
    message: str = ""
    alone: bool = False

    def value(self) -> float | None:
        """As the single run's task function returns it."""
        return None if self.row is None else self.row.get("columns", {}).get("test_loss")


def run_group(raws: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> Iterator[tuple[int, Outcome]]:
    """Run a group; yields (index, outcome) as each run ends, each index once.

    Runs whose training is no single fit (bilinear, convergence, certificate, dynamics) are handed back to be run
    alone. Runs are claimed a bundle at a time, so that several launchers share a sweep.
    """
    typed: dict[int, config.RunConfig] = {}
    for i, raw in enumerate(raws):
        try:
            typed[i] = config.typed(raw)
        except InputError as wrong:
            yield i, Outcome(error=wrong)
    if not typed:
        return
    command.prepare_jax(next(iter(typed.values())))
    from experiments import interrupt, job, pipeline  # imports JAX: only after its environment is set

    interrupt.listen()
    bundles: dict[Any, dict[int, job.Job]] = {}
    for i, cfg in typed.items():
        if not pipeline.is_plain(cfg):
            yield i, Outcome(alone=True)
            continue
        try:
            run = job.identify(cfg)
            if (row := run.done_row()) is not None:
                yield i, Outcome(row, message=f"{run.name}: already done ({run.run_id})")
                continue
        except InputError as wrong:
            yield i, Outcome(error=wrong)
            continue
        # What makes a stream of minibatches: the same pool, drawn in the same order in batches of one size.
        stream = (id(run.materials), cfg.samples, cfg.seed, cfg.labels, cfg.batch_size)
        bundles.setdefault(stream, {})[i] = run
    sizes = sorted(len(b) for b in bundles.values())
    if bundles:
        log.info("fused: %d runs in %d bundles of %d to %d", sum(sizes), len(sizes), sizes[0], sizes[-1])
    for bundle in bundles.values():
        yield from _run_bundle(bundle, overrides)


def _run_bundle(bundle: dict[int, Any], overrides: Sequence[Sequence[str]]) -> Iterator[tuple[int, Outcome]]:
    """Train the runs of one stream together and measure each."""
    from experiments import building, interrupt, pipeline
    from experiments.job import summary
    from experiments.progress import Progress, duration
    from lrc_jax import clock
    from lrc_jax.fused import Member, Stream, train_together

    with contextlib.ExitStack() as stack:
        clock.start()
        prepared, keepers = {}, {}
        members: dict[int, Member] = {}
        for i, run in bundle.items():
            if not stack.enter_context(run.folder.claim()):
                yield i, Outcome({}, message=f"{run.name}: another process works on it ({run.run_id})")
                continue
            if (row := run.done_row()) is not None:  # finished between the look and the claim
                yield i, Outcome(row, message=f"{run.name}: already done ({run.run_id})")
                continue
            cfg = run.config
            try:
                with run.attempt(list(overrides[i])):
                    ready = pipeline.prepare(cfg, run.materials)
                    keeper = interrupt.FolderKeeper(run.folder)
                    state = keeper.resume(building.abstract_state(cfg, ready.student, ready.frozen))
            except (InputError, ValueError) as wrong:
                yield i, Outcome(error=wrong)
                continue
            prepared[i], keepers[i] = ready, keeper
            members[i] = Member(
                ready.student,
                building.objective(cfg),
                building.optimizer(cfg),
                ready.frozen,
                building.hyper(cfg, cfg.steps, ready.train_pool.size),
                building.init_key_of(cfg.seed),
                state,
            )
        writers = {i: stack.enter_context(bundle[i].metrics()) for i in members}
        trained: dict[int, Any] = {}
        for group in _trainable_together(members, prepared):
            any_run = bundle[group[0]]
            cfg = any_run.config
            # Hard labels read nothing of the teacher, outputs its features, clone losses its layers: the pool of
            # the most demanding member serves all.
            pools = [prepared[i].pool_to_fit for i in group]
            whole = all(p.final_NTD is not None for p in pools)
            pool = pools[0] if whole else next(p for p in pools if p.final_NTD is None)
            stream = Stream(pool, building.order_key_of(cfg.seed), pool.size, tuple(members[i] for i in group))
            name = any_run.name if len(group) == 1 else f"{len(group)} runs, samples={cfg.samples} seed={cfg.seed}"
            longest = max(bundle[i].config.steps for i in group)
            begun = members[group[0]].state
            step = [0 if begun is None else int(begun.step)]

            def on_chunk(parts: Any, states: Any, group: Any = group, step: Any = step) -> None:
                ran = [len(p.terms.total) for p in parts if p is not None]
                before, after = step[0], step[0] + max(ran, default=0)
                step[0] = after
                for i, part in zip(group, parts, strict=True):
                    if part is not None:
                        writers[i](building.metrics_line(before + len(part.terms.total), part))
                if any(keepers[i].due() for i in group):
                    for i, state in zip(group, states(), strict=True):
                        if (at := int(state.step)) < bundle[i].config.steps:
                            keepers[i].save(at, bundle[i].config.steps, state)
                interrupt.stop_if_wanted()

            with Progress(name, longest) as progress, interrupt.training(), clock.phase("training"):
                (outcomes,) = train_together(
                    any_run.materials.network().config,
                    [stream],
                    batch_size=cfg.batch_size,
                    progress=progress.update,
                    on_chunk=on_chunk,
                )
            trained |= dict(zip(group, outcomes, strict=True))
        shared = {name: value / max(1, len(trained)) for name, value in clock.stop().items()}
        for i, outcome in trained.items():
            run = bundle[i]
            if isinstance(outcome, DivergedError):
                run.fail(outcome)
                yield i, Outcome(error=outcome)
                continue
            clock.start()
            try:
                with run.attempt(list(overrides[i])), clock.phase("measuring"):
                    columns = pipeline.measure(prepared[i], outcome.params)
            except Exception as wrong:
                yield i, Outcome(error=wrong)
                continue
            phases = {name: shared[name] + value for name, value in clock.stop().items()}
            spent = sum(phases.values())
            row = run.finish(columns, spent, phases)
            yield i, Outcome(row, message=f"{run.name}: {summary(columns)} ({duration(spent)} of a fused bundle)")


def _trainable_together(members: dict[int, Any], prepared: dict[int, Any]) -> list[list[int]]:
    """Members by the step that they start from; students that are built, not trained, by themselves."""
    groups: dict[Any, list[int]] = {}
    for i, member in members.items():
        start = 0 if member.state is None else int(member.state.step)
        groups.setdefault((start, member.student.trained), []).append(i)
    return list(groups.values())
