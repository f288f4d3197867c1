"""Many students in one program against one after another: runs of 16 ranks and 16 seeds, on synthetic batches.

    python -m experiments.bench.many --preset small --platform cuda --json OUT

Some of the runs are trained alone, each rank twice: the first time compiles, the second is what a run costs. All runs
together are trained twice too. Prints and writes seconds for all of them either way, and how far the losses differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

from experiments.bench.step import PRESETS, set_up
from experiments.common.command import guarded, prepare_jax
from experiments.common.files import write_json
from experiments.run_one.config import RunConfig

TIMED_RANKS = 2  # trained alone, with two seeds each


def measure(name: str, ranks: int, seeds: int, steps: int) -> dict[str, Any]:
    """Train `ranks` x `seeds` students of a preset's teacher together, and some of them alone."""
    import jax
    import numpy as np

    from lrc_jax.clone import CloneFlags
    from lrc_jax.data.pools import Pool
    from lrc_jax.objective import Objective
    from lrc_jax.seeds import key_for
    from lrc_jax.students import StudentOptions, make_student
    from lrc_jax.training.together import Member, Stream, train_together
    from lrc_jax.training.train import train

    setup = set_up(PRESETS[name])
    tokens_NT = setup.pool.tokens_NT.reshape(-1, setup.preset.length)
    pool = Pool(tokens_NT, setup.pool.labels_NT.reshape(tokens_NT.shape))
    objective = Objective(kl_per_token=True)
    hyper = dataclasses.replace(setup.hyper, steps=np.int32(steps), samples=np.int32(pool.size))
    widest = setup.preset.hidden_size // 2
    chosen = [max(1, widest * (i + 1) // ranks) for i in range(ranks)]

    def member(rank: int, seed: int) -> Member:
        student = make_student("lrc", setup.config, CloneFlags(rank), StudentOptions(init="fan_in"))
        return Member(student, objective, setup.optimizer, setup.frozen, hyper, key_for(seed, "bench", "init"))

    def alone(rank: int, seed: int) -> tuple[float, dict[str, Any]]:
        m = member(rank, seed)
        began = time.perf_counter()
        state, history = train(
            m.student, m.objective, m.optimizer, setup.config, m.frozen, pool, m.hyper,
            batch_size=setup.preset.batch_size, init_key=m.init_key, order_key=key_for(seed, "bench", "order"),
        )  # fmt: skip
        jax.block_until_ready(state.params)
        return time.perf_counter() - began, history.row(-1)

    def together() -> tuple[float, list[Any]]:
        streams = [
            Stream(pool, key_for(seed, "bench", "order"), pool.size, tuple(member(rank, seed) for rank in chosen))
            for seed in range(seeds)
        ]
        last: list[Any] = []

        def keep(parts: list[Any], _: Any) -> None:
            last[:] = parts

        began = time.perf_counter()
        train_together(setup.config, streams, batch_size=setup.preset.batch_size, vectorised=True, on_chunk=keep)
        return time.perf_counter() - began, [part.row(-1) for part in last]

    fused_first, rows = together()
    fused, rows = together()
    students, tokens = ranks * seeds, steps * setup.preset.tokens
    first: list[float] = []
    second: list[float] = []
    wrong: list[float] = []
    for rank in chosen[:: max(1, ranks // TIMED_RANKS)][:TIMED_RANKS]:
        for seed, seconds in ((0, first), (1, second)):
            taken, row = alone(rank, seed)
            seconds.append(taken)
            wrong.append(abs(rows[seed * ranks + chosen.index(rank)]["total"] / row["total"] - 1))
    run = statistics.median(second)
    compiling = ranks * max(0.0, statistics.median(first) - run)
    stats = jax.local_devices()[0].memory_stats()
    return {
        "preset": name, "students": students, "ranks": chosen, "seeds": seeds, "steps": steps,
        "run_s": run, "one_after_another_s": run * students, "one_after_another_compiling_s": compiling,
        "together_s": fused, "together_compiling_s": max(0.0, fused_first - fused),
        "ratio": run * students / fused,
        "ratio_with_compiling": (run * students + compiling) / fused_first,
        "tokens_per_s": students * tokens / fused, "tokens_per_s_one_after_another": tokens / run,
        "largest_loss_difference": max(wrong),
        "peak_mb": None if stats is None else stats["peak_bytes_in_use"] / 1e6,
    }  # fmt: skip


def show(r: dict[str, Any]) -> None:
    print(f"{r['preset']}: {r['students']} students x {r['steps']} steps: together {r['together_s']:.1f} s, one after "
          f"another {r['one_after_another_s']:.1f} s: {r['ratio']:.1f} times as fast ({r['ratio_with_compiling']:.1f} "
          f"with compiling); losses differ by {r['largest_loss_difference']:.1e} at most")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.many", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the compilation cache")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    prepare_jax(RunConfig(cache_dir=str(args.cache), platform=args.platform))
    result = measure(args.preset, args.ranks, args.seeds, args.steps)
    show(result)
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
