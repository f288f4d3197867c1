"""Whether the training step became slower: this tree against another commit, in alternating rounds.

The other commit is checked out into a folder of its own for the time of the measurement; each round times both, one
after the other, and the ratio of a round is free of what the machine did to both.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench import timing
from experiments.common.paths import ROOT
from lrc_jax.errors import InputError
from theory.judge.intervals import mean_interval

MODULE = "experiments.bench.step"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"--against: git {words[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[tuple[str, Path]]:
    """The commit's id and a folder with its files, removed afterwards.

    Raises:
      InputError: this is no git checkout, or there is no such commit.
    """
    name = _git("rev-parse", "--verify", "--short", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="bench-") as above:
        folder = Path(above) / name
        _git("worktree", "add", "--detach", "--quiet", str(folder), name)
        try:
            yield name, folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def measure_against(commit: str, presets: tuple[str, ...], *, threads: int = 1, rounds: int = 15) -> dict[str, Any]:
    """Seconds a step of this tree over those of a commit, by preset.

    Args:
      commit: anything that git takes for one.
      rounds: alternating rounds; each gives one ratio.

    Returns:
      `commit`, `threads`, `rounds`, and by preset `ours_s`, `theirs_s` (medians), `ratio` (geometric mean over rounds;
      above 1 this tree is slower) and its 95 % interval `low`, `high`.

    Raises:
      InputError: as `checked_out`; a worker ended, as where the commit has no such bench.
    """
    result: dict[str, Any] = {"threads": threads, "rounds": rounds, "presets": {}}
    with checked_out(commit) as (name, folder), tempfile.TemporaryDirectory(prefix="bench-") as cache:
        result["commit"] = name
        for preset in presets:
            with timing.workers() as start:
                arguments = ("--preset", preset, "--threads", str(threads), "--variant", "ours", "--allocator")
                ways = {
                    side: start(MODULE, *arguments, "--cache", f"{cache}/{side}", root=root)
                    for side, root in (("ours", ROOT), ("theirs", folder))
                }
                seconds = timing.rounds_of(ways, rounds)
            result["presets"][preset] = compared(seconds)
    return result


def compared(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The entry of a preset in `measure_against`, from the seconds of a step of `ours` and `theirs` by round."""
    ratios = np.log(np.divide(seconds["ours"], seconds["theirs"]))
    interval = mean_interval(ratios, 0.95).exponential()
    medians = {f"{side}_s": float(np.median(values)) for side, values in seconds.items()}
    return {**medians, "ratio": float(np.exp(ratios.mean())), "low": interval.low, "high": interval.high}


def show_against(r: dict[str, Any]) -> None:
    print(f"this tree against {r['commit']}, {r['threads']} thread{'s' * (r['threads'] > 1)}, {r['rounds']} rounds")
    for preset, found in r["presets"].items():
        word = "slower" if found["low"] > 1 else "faster" if found["high"] < 1 else "no difference seen"
        print(
            f"  {preset:6} {1e3 * found['ours_s']:8.2f} ms against {1e3 * found['theirs_s']:8.2f}: "
            f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}], {word}"
        )
