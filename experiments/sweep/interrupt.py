"""Being stopped in good order: SIGTERM while a run trains saves its state, marks the run and ends the process.

Slurm sends SIGTERM before it takes a node away, and starts a requeued job again: the run then resumes from its
checkpoint, on one thread with the same bits as if it had never stopped. SIGKILL cannot be answered; a long run
therefore also saves its state every few minutes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.common.files import write_json
from experiments.sweep.store import RunFolder
from lrc_jax.training import checkpoint
from lrc_jax.training.train import TrainState

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended
EVERY = 120.0  # seconds of training between checkpoints; a save takes about a second
WORTH = 10.0  # seconds of training below which a stopped run starts again rather than save

_wanted = threading.Event()
_training = False


class Stopped(SystemExit):
    """The process was asked to end. Not an Exception: it passes through Hydra's jobs to the top."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


def _on_sigterm(number: int, frame: Any) -> None:
    _wanted.set()
    if not _training:
        raise Stopped


def listen() -> None:
    """Answer SIGTERM from now on; does nothing outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Within it SIGTERM waits for the end of a chunk of training, where the state can be saved."""
    global _training
    _training = True
    try:
        yield
    finally:
        _training = False


class FolderKeeper:
    """Checkpoints of one run, in its folder. As a context it also makes SIGTERM wait from the first step of training
    to the last; fused runs have `training()` for that."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.waits = folder, contextlib.ExitStack()
        self.is_context = False
        self.begin()

    def begin(self) -> None:
        """Training begins now: what came before needs no checkpoint."""
        self.started = self.saved = time.monotonic()

    def __enter__(self) -> FolderKeeper:
        self.is_context = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.waits.close()

    def resume(self, like: TrainState) -> TrainState | None:
        if self.is_context:
            self.waits.enter_context(training())
        found = checkpoint.restore(self.folder.checkpoints_path, like)
        if found is None:
            return None
        state, _ = found
        _cut_metrics(self.folder, int(state.step))
        return state

    def due(self, runs: int = 1) -> bool:
        """Whether the state should be saved now, with those of all `runs` that train together: saving takes at most a
        twentieth of the time."""
        now = time.monotonic()
        return now - self.saved > max(EVERY, 20.0 * runs) or (_wanted.is_set() and now - self.started > WORTH)

    def save(self, step: int, steps: int, state: TrainState) -> None:
        self.folder.check_ours()
        checkpoint.save(self.folder.checkpoints_path, step, state, {"steps": steps})
        write_json(self.folder.paused_path, {"step": step, "steps": steps})
        self.saved = time.monotonic()

    def chunk(self, step: int, steps: int, state: Callable[[], TrainState]) -> None:
        if step < steps and self.due():
            self.save(step, steps, state())
        stop_if_wanted()
        if step == steps:
            self.waits.close()


def stop_if_wanted() -> None:
    """End the process where it was asked to end."""
    if _wanted.is_set():
        raise Stopped


def _cut_metrics(folder: RunFolder, step: int) -> None:
    """Drop the lines of metrics.jsonl beyond a step: they will be written again. In place, since the run has the file
    open to append to it."""
    path = folder.path / "metrics.jsonl"
    end = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, TypeError, KeyError):  # a line that a kill cut off, or that is damaged
            break
        end += len(line)
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(end)
