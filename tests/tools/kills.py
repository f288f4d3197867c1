"""SIGKILL at random moments: what a command makes under them is what it makes undisturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KILLS = int(os.environ.get("LRC_TEST_KILLS", "4"))
PATIENCE = 300 + 40 * KILLS  # seconds
LEFT = (".part", ".tmp", "claim.json", "paused.json", ".training")


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """A Python process whose complaints can be read."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, **pipes)


def end(process: subprocess.Popen[str]) -> None:
    """Let a process end, and well."""
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err


def undisturbed(process: subprocess.Popen[str]) -> float:
    """Seconds that a process takes if nobody kills it."""
    began = time.monotonic()
    end(process)
    return time.monotonic() - began


def spend(
    begin: Callable[[int], subprocess.Popen[str]],
    check: Callable[[int], None],
    after: Callable[[int], None],
    first: float,
    last: float,
) -> int:
    """Kill a command KILLS times, each time between `first` and `last` seconds after its start, and start it again.

    Args:
      begin: starts the command of a round. One that ends before its killer comes ends the round, and another begins,
        until all kills are spent; the last round ends undisturbed.
      check: looks at what a round has made.
      after: looks at what a kill left.

    Returns:
      How many rounds there were.
    """
    rng, killed, rounds, fresh = random.Random(0), 0, 0, True
    while True:
        began = time.monotonic()
        process = begin(rounds)
        try:
            _, err = process.communicate(timeout=rng.uniform(first, last) if killed < KILLS else PATIENCE)
        except subprocess.TimeoutExpired:
            assert killed < KILLS, "the command hangs"
            process.kill()
            process.communicate()
            killed, fresh = killed + 1, False
            after(rounds)
            continue
        assert process.returncode == 0, err
        check(rounds)
        rounds += 1
        if killed == KILLS:
            return rounds
        if fresh and (took := time.monotonic() - began) < last:  # the first start was a cold one
            first, last = first * took / last, took
        fresh = True


def left_over(folder: Path) -> list[Path]:
    """What nothing may leave behind."""
    return [path for path in folder.rglob("*") if path.name.endswith(LEFT)]


def bytes_of(folder: Path, *suffixes: str) -> dict[str, bytes]:
    """Files below a folder, of these kinds where some are named."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and (not suffixes or p.suffix in suffixes)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
