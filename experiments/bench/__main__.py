"""How fast the training step, a whole run and a sweep are, against what else could compute them.

    python -m experiments.bench --preset big|small [--threads n] [--students K] [--json OUT]
    python -m experiments.bench --base                     # tokens per second of the studies' base model, whole runs
    python -m experiments.bench --sweep --threads 2        # runs per minute of a 60-run sweep on two cores
    python -m experiments.bench --against COMMIT           # whether the step became slower since
    python -m experiments.bench --gpu [--json OUT]         # an accelerator, in ten minutes (experiments.bench.gpu)

One step is the teacher's forward pass, the student's forward and backward pass with KL, cross-entropy and clone losses,
and AdamW. Every way to compute it is a process of its own, pinned to as many cores as threads; they take turns:

    ours             the fast step with allocator settings (allocator=true)
    ours_default     the fast step without them
    plain            the readable specification (step=reference), without
    naive            as one would first write it in JAX: activations [B, T, D], a scan over layers, autodiff; without
    peer             PyTorch, unmerged, as the authors' code computes it (experiments.bench.baseline), without
    peer_allocator   the same with allocator settings
    together         K students, one forward pass of the teacher (--students), with

The limit is the step's matrix products at the rate of large ones in the same rounds. PyTorch is optional:
`pip install '.[run,peer]'`, or --peer-python names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench.against import measure_against, show_against
from experiments.bench.gpu import PLAN, measure_gpu, show_gpu
from experiments.bench.presets import PRESETS
from experiments.bench.sweep import measure_sweep
from experiments.bench.timing import Worker, take_turns, workers
from experiments.common.command import guarded
from experiments.common.files import write_json
from lrc_jax.errors import InputError

AGREE = 1e-4  # relative, between the first losses of all ways


def peer_interpreter(asked: Path | None) -> str | None:
    """An interpreter that has PyTorch, or None.

    Raises:
      InputError: the one that was asked for has none.
    """
    if asked is None:
        return sys.executable if importlib.util.find_spec("torch") else None
    try:
        found = subprocess.run([str(asked), "-c", "import torch"], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        raise InputError(f"--peer-python: {asked} cannot import torch; install torch there or leave the option out")
    return str(asked)


def check_losses(ways: dict[str, Worker]) -> None:
    """All ways start from the same numbers: a way whose first loss differs computes something else."""
    wanted = ways["ours"].losses
    for name, worker in ways.items():
        for term, value in worker.losses.items():
            if not math.isclose(value, wanted[term], rel_tol=AGREE):
                raise InputError(f"bench: {name} has {term} {value}, ours {wanted[term]}; they must agree")


def measure_step(
    name: str, *, threads: int = 1, rounds: int = 7, students: int = 1, peer: str | None = None
) -> dict[str, Any]:
    """Median seconds per step of each way, and what follows from them (the keys of the bench's JSON)."""
    preset = PRESETS[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as cache, workers() as start:
        shared = ("--preset", name, "--threads", str(threads))

        def ours(variant: str, *more: str) -> Worker:
            return start("experiments.bench.step", *shared, "--variant", variant, "--cache", cache, *more)

        cold = ours("ours", "--allocator")
        cold.close()
        ways = {
            "ours": ours("ours", "--allocator"),
            "ours_default": ours("ours"),
            "plain": ours("plain"),
            "naive": ours("naive"),
        }
        if peer is not None:
            ways["peer"] = start("experiments.bench.baseline", *shared, "--serve", python=peer)
            ways["peer_allocator"] = start("experiments.bench.baseline", *shared, "--serve", "--allocator", python=peer)
        if students > 1:
            ways["together"] = ours("together", "--allocator", "--students", str(students))
        check_losses(ways)
        products = ours("matmul")
        median = take_turns(ways | {"products": products}, rounds)
        rate = products.facts["products_flops"] / median.pop("products")
        step_flops, teacher_flops = products.facts["step_flops"], products.facts["teacher_flops"]
        result: dict[str, Any] = {f"{way}_s": seconds for way, seconds in median.items()}
        peak = {way: worker.peak_mb for way, worker in ways.items()}
        warm_start = ways["ours"].start_s
        compile_s, cached_compile_s = cold.facts["compile_s"], ways["ours"].facts["compile_s"]

    best = median["ours"]
    result |= {
        "preset": name,
        "threads": threads,
        "rounds": rounds,
        "peer_s": median.get("peer"),
        "limit_s": step_flops / rate,
        "ratio_peer": median["peer"] / best if peer else None,
        "ratio_peer_default": median["peer"] / median["ours_default"] if peer else None,
        "ratio_plain": median["plain"] / best,
        "ratio_naive": median["naive"] / best,
        "share_of_limit": step_flops / rate / best,
        "tokens_per_s": preset.tokens / best,
        "step_gflop": step_flops / 1e9,
        "matmul_gflop_per_s": rate / 1e9,
        "peak_rss_mb": peak["ours"],
        "peak_rss_mb_by_way": peak,
        "compile_s": compile_s,
        "cached_compile_s": cached_compile_s,
        "cold_start_s": cold.start_s,
        "warm_start_s": warm_start,
    }
    if students > 1:
        limit = (students * (step_flops - teacher_flops) + teacher_flops) / rate
        result |= {
            "students": students,
            "together_limit_s": limit,
            "ratio_separate": students * best / median["together"],
            "together_over_limit": median["together"] / limit,
        }
    return result


def measure_base(*, threads: int = 1, rounds: int = 7) -> dict[str, Any]:
    """Tokens a second of whole runs of the studies' base model: from its start, in chunks that report progress."""
    with tempfile.TemporaryDirectory(prefix="bench-") as cache, workers() as start:

        def run(*more: str) -> Worker:
            arguments = ("--preset", "base", "--threads", str(threads), "--variant", "run", "--cache", cache, *more)
            return start("experiments.bench.step", *arguments)

        ways = {"allocator": run("--allocator"), "default": run()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for worker in ways.values():
            worker.seconds(BASE_STEPS)
        for _ in range(rounds):
            for name, worker in ways.items():
                seconds[name].append(worker.seconds(BASE_STEPS))
    tokens = PRESETS["base"].tokens
    return {
        "preset": "base",
        "threads": threads,
        "rounds": rounds,
        "steps": BASE_STEPS,
        "ours_s": statistics.median(seconds["allocator"]),
        "ours_default_s": statistics.median(seconds["default"]),
        "tokens_per_s": tokens / statistics.median(seconds["allocator"]),
        "tokens_per_s_default": tokens / statistics.median(seconds["default"]),
    }


BASE_STEPS = 3000  # of a run


def show_step(r: dict[str, Any]) -> None:
    print(
        f"{r['preset']}, {r['threads']} thread{'s' * (r['threads'] > 1)}, medians of {r['rounds']} alternating rounds"
    )
    for way in ("ours", "ours_default", "plain", "naive", "peer", "peer_allocator", "together"):
        if (seconds := r.get(f"{way}_s")) is not None:
            ratio, peak = seconds / r["ours_s"], r["peak_rss_mb_by_way"][way]
            print(f"  {way:15} {1e3 * seconds:8.2f} ms   {ratio:5.2f} x ours   peak RSS {peak:5.0f} MB")
    if r["peer_s"] is None:
        print("  peer            no PyTorch here (pip install '.[run,peer]', or --peer-python)")
    else:
        print(f"  against PyTorch {r['ratio_peer']:.2f}x, without allocator settings {r['ratio_peer_default']:.2f}x")
    gflop, rate = r["step_gflop"], r["matmul_gflop_per_s"]
    print(f"  limit           {1e3 * r['limit_s']:8.2f} ms   {gflop:.2f} GFLOP at {rate:.0f} GFLOP/s")
    print(f"  share of limit  {r['share_of_limit']:.2f};  {r['tokens_per_s']:,.0f} tokens/s")
    cold, warm, compiling = r["cold_start_s"], r["warm_start_s"], r["compile_s"]
    print(f"  start to first step {cold:.1f} s cold (compiling {compiling:.1f}), {warm:.1f} s warm")
    if "students" in r:
        print(f"  {r['students']} students together: {r['ratio_separate']:.2f}x one after the other, "
              f"{r['together_over_limit']:.2f} of their arithmetic with one teacher")  # fmt: skip


def show_base(r: dict[str, Any]) -> None:
    print(f"base, {r['threads']} thread{'s' * (r['threads'] > 1)}, whole runs of {r['steps']} steps: "
          f"{r['tokens_per_s']:,.0f} tokens/s ({1e3 * r['ours_s']:.3f} ms per step), "
          f"{r['tokens_per_s_default']:,.0f} without allocator settings")  # fmt: skip


def show_sweep(r: dict[str, Any]) -> None:
    print(f"sweep of {r['runs']} runs, {r['threads']} core{'s' * (r['threads'] > 1)}, runs per minute")
    for name, value in r["runs_per_minute"].items():
        ratio = r["fused_over"].get(name)
        print(f"  {name:6} {value:6.1f}" + ("" if ratio is None else f"   fused is {ratio:.2f} times as fast"))
    if "peer" not in r["runs_per_minute"]:
        print("  no PyTorch here (--peer-python PATH)")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("big", "small"), default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="alternating rounds (7; 2 of a sweep, 15 --against)")
    parser.add_argument("--students", type=int, default=1, metavar="K", help="also K students on one teacher")
    parser.add_argument("--base", action="store_true", help="whole runs of the studies' base model instead")
    parser.add_argument("--sweep", action="store_true", help="a sweep instead")
    parser.add_argument("--against", metavar="COMMIT", help="this tree's step against another commit's instead")
    parser.add_argument("--gpu", action="store_true", help="what an accelerator does instead")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: toy shapes on the CPU, to try the command")
    parser.add_argument("--minutes", type=float, default=8.0, help="with --gpu: begin no further part after these")
    parser.add_argument("--parts", nargs="+", default=(), choices=[*PLAN, "many"], help="with --gpu: only these")
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="an interpreter that has PyTorch")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers")
    return parser


def main() -> int:
    args = parser().parse_args()
    for option in ("threads", "students", "rounds"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise InputError(f"--{option}: {value} is too small; give at least 1")
    rounds = {} if args.rounds is None else {"rounds": args.rounds}
    bench: Callable[..., dict[str, Any]]
    if args.base:
        bench, show = measure_base, show_base
    elif args.against:
        bench, show = functools.partial(measure_against, args.against, ("small", "big")), show_against
    else:
        peer = peer_interpreter(args.peer_python)
        if args.gpu:
            result = measure_gpu(
                tiny=args.tiny, peer=peer, minutes=args.minutes, parts=args.parts, out=args.json, **rounds
            )
            show_gpu(result)
            return 1 if result["failed"] else 0
        if args.sweep:
            bench, show = functools.partial(measure_sweep, peer=peer), show_sweep
        else:
            bench, show = functools.partial(measure_step, args.preset, students=args.students, peer=peer), show_step
    result = bench(threads=args.threads, **rounds)
    show(result)
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
