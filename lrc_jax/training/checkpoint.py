"""Checkpoints of a training run: written whole or not at all, verified when read, and resumed bit for bit (on one
thread)."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax

from lrc_jax import sealed
from lrc_jax.errors import InputError

STEP = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # a second to import

    for name in ("absl", "orbax"):  # each save reports forty lines
        logging.getLogger(name).setLevel(logging.WARNING)
    # One process saves for all of a group, and each restores for itself: no barriers between them.
    alone = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    if not folder.is_dir():
        return []
    found = [STEP.fullmatch(path.name) for path in folder.iterdir() if (path / sealed.NOTE).is_file()]
    return sorted(int(match[1]) for match in found if match)


def save(folder: Path, step: int, state: Any, note: dict[str, Any], keep: int = 2) -> None:
    """Write a pytree of arrays and a JSON note as the checkpoint of a step; older ones beyond `keep` are removed.

    It is written beside and renamed, so that a kill at any moment leaves the checkpoints before it usable, and sealed
    with a digest. Two are kept, so that a damaged one costs the steps since the one before.
    """
    with sealed.sealing(folder / f"step-{step:08d}", note) as part, _checkpointer() as checkpointer:
        checkpointer.save(part.absolute() / "state", state)
        checkpointer.wait_until_finished()
    for old in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)


def restore(folder: Path, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """State and note of the last checkpoint that is whole; a damaged one is removed, with a line, for the one before.

    Args:
      like: a pytree of the state's structure, shapes and dtypes (`jax.eval_shape` gives one).

    Returns:
      None where there is no checkpoint to resume from.

    Raises:
      InputError: a checkpoint is of another structure.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    steps = saved_steps(folder)
    while steps:
        path = folder / f"step-{steps.pop():08d}"
        try:
            note = sealed.opened(path)
        except sealed.DamagedError as wrong:
            instead = f"step {steps[-1]}, the checkpoint before it" if steps else "the start"
            log.warning("%s: damaged (%s); the training resumes from %s", path, wrong, instead)
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            with _checkpointer() as checkpointer:
                return checkpointer.restore(path.absolute() / "state", abstract), note
        except (ValueError, TypeError, KeyError, OSError) as wrong:
            reason = str(wrong).splitlines()[0] if str(wrong) else type(wrong).__name__
            raise InputError(f"{path}: cannot be resumed ({reason[:120]}); remove the folder to start again") from None
    return None
