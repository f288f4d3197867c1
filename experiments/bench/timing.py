"""Timing several programs in alternating rounds: each is a process that trains when told to and sleeps otherwise.

A process of its own, because allocator settings, thread counts and peak memory belong to a process; in turns, because
the machine's speed drifts. A worker prints the losses of its first step and what it says of itself as JSON, then an
answer to every number of steps on its standard input.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.paths import ROOT
from lrc_jax.errors import InputError

TURN_SECONDS = 1.0  # about how long a worker computes at a turn


def serve(
    run: Callable[[int], dict[str, float]],
    facts: Callable[[], dict[str, float]] = dict,
    peak_mb: Callable[[], float] | None = None,
) -> None:
    """The worker's side.

    Args:
      run: takes so many steps and returns the losses of the last.
      facts: asked for after the first step.
      peak_mb: peak memory in MB; this process's resident memory by default.
    """
    peak_mb = peak_mb or peak_rss_mb

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    say(run(1))
    say(facts())
    for line in sys.stdin:
        steps = int(line)
        began = time.perf_counter()
        run(steps)
        say({"seconds": time.perf_counter() - began, "peak_mb": peak_mb()})


def pin(threads: int) -> None:
    """Keep this process on so many cores, where the system can: a limit on threads alone leaves helper threads on
    others. Has to come before threads are started."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes). Its own, since the PyTorch peer runs without JAX."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB on Linux
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Worker:
    """A worker seen from outside.

    Attributes:
      start_s: from the process's start to the end of its first step.
      losses, facts: what it said of that step and of itself.
      peak_mb: memory as of its last answer.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], root: Path = ROOT) -> None:
        self.name = " ".join(command[1:])
        self.peak_mb = 0.0
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            command, cwd=root, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self, at_most: float | None = None) -> None:
        """Until its first step is done, or for so many seconds: then it is ended.

        Raises:
          InputError: it has ended.
        """
        alarm = threading.Timer(threading.TIMEOUT_MAX if at_most is None else max(0.0, at_most), self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            # Two lines, so that the time ends with the first step.
            self.losses: dict[str, float] = self._answer()
            self.start_s = time.perf_counter() - self._began
            self.facts: dict[str, float] = self._answer()
        finally:
            alarm.cancel()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise InputError(
                f"bench: {self.name} ended with exit code {self._process.returncode}; its message is above"
            )
        return json.loads(line)

    def seconds(self, steps: int) -> float:
        """Let it take some steps; seconds per step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer["seconds"] / steps

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Starts workers; all of them end with the context."""
    started: list[Worker] = []

    def start(
        module: str, *arguments: str, python: str = sys.executable, wait: bool = True, root: Path = ROOT
    ) -> Worker:
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        # A cache that the caller set would make the first start warm.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"PYTHONPATH": path}
        worker = Worker([python, "-m", module, *arguments], environment, root)
        started.append(worker)
        if wait:
            worker.wait()
        return worker

    try:
        yield start
    finally:
        for worker in started:
            worker.close()


def rounds_of(ways: Mapping[str, Worker], rounds: int, turn_s: float | None = None) -> dict[str, list[float]]:
    """Seconds a step of each worker in every alternating round, in turns of about `turn_s` seconds."""
    turn_s = TURN_SECONDS if turn_s is None else turn_s
    steps = {name: max(2, math.ceil(turn_s / worker.seconds(2))) for name, worker in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, worker in ways.items():
            seconds[name].append(worker.seconds(steps[name]))
    return seconds


def take_turns(ways: Mapping[str, Worker], rounds: int, turn_s: float | None = None) -> dict[str, float]:
    """The medians of `rounds_of`."""
    return {name: statistics.median(s) for name, s in rounds_of(ways, rounds, turn_s).items()}
