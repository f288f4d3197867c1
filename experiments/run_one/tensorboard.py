"""TensorBoard's view of a run: what goes to metrics.jsonl as scalars too (`tensorboard=true`).

The files lie in results/<study>/tensorboard/<run>, one folder per run under a name that can be read:

    tensorboard --logdir results/STUDY/tensorboard
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.common.files import writing
from lrc_jax.errors import InputError

FLUSH_SECONDS = 10


def require() -> None:
    """Raises InputError where the writer of event files is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError("tensorboard: the package tensorboardX is missing; pip install '.[run,tensorboard]'")


@contextlib.contextmanager
def scalars(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes lines of metrics.jsonl and writes their numbers, by step, to an event file in `folder`.

    The file begins with the first line. What an earlier attempt wrote from that step on is taken back (TensorBoard's
    purge step), since a run that resumes from a checkpoint computes those steps again.
    """
    from tensorboardX import SummaryWriter

    writer: Any = None

    def write(line: dict[str, Any]) -> None:
        nonlocal writer
        step = line["step"]
        with writing(folder):
            if writer is None:
                suffix = f".{os.getpid()}.{step}"  # files are named by the second, and a restart can be quicker
                writer = SummaryWriter(str(folder), purge_step=step, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)
            for name, value in line.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
