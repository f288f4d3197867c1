"""Checkpoints of a training run: written whole or not at all, and resumed bit for bit (on one thread)."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax

from lrc_jax.errors import InputError

STEP = re.compile(r"step-(\d{8})")


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
    found = [STEP.fullmatch(path.name) for path in folder.iterdir() if (path / "note.json").is_file()]
    return sorted(int(match[1]) for match in found if match)


def save(folder: Path, step: int, state: Any, note: dict[str, Any], keep: int = 2) -> None:
    """Write a pytree of arrays and a JSON note as the checkpoint of a step; older ones beyond `keep` are removed.

    It is written beside and renamed, so that a kill at any moment leaves the checkpoints before it usable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with _checkpointer() as checkpointer:
        checkpointer.save(part.absolute() / "state", state)
        checkpointer.wait_until_finished()
    (part / "note.json").write_text(json.dumps(note, sort_keys=True) + "\n")
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)


def restore(folder: Path, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """State and note of a step; None: the last.

    Args:
      like: a pytree of the state's structure, shapes and dtypes (`jax.eval_shape` gives one).

    Raises:
      InputError: no checkpoint is there, or it is damaged or of another structure.
    """
    steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
        raise InputError(f"{folder}: no checkpoint of step {'any' if step is None else step} there")
    path = folder / f"step-{steps[-1] if step is None else step:08d}"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    try:
        note = json.loads((path / "note.json").read_text())
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path.absolute() / "state", abstract), note
    except (ValueError, TypeError, KeyError, OSError) as wrong:
        reason = str(wrong).splitlines()[0] if str(wrong) else type(wrong).__name__
        raise InputError(f"{path}: cannot be resumed ({reason[:120]}); remove the folder to start again") from None
