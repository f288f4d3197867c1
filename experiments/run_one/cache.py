"""Things that many runs share and that are made once: teachers trained here, reference students, population curves.

Each lies in the cache under the hash of what made it, written by orbax and then renamed into place; a lock keeps two
processes from making the same one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock

from experiments.common.files import read_json, write_json
from experiments.run_one.version import code_version


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cached_tree(
    cache: Path, kind: str, made_of: dict[str, Any], like: Any, make: Callable[[], tuple[Any, dict[str, Any]]]
) -> tuple[Any, dict[str, Any]]:
    """A pytree of arrays and a JSON note about it, made once.

    Args:
      kind: subfolder of the cache.
      made_of: everything that determines the result; the code version is added.
      like: a pytree of the result's structure (jax.ShapeDtypeStruct leaves).
      make: makes (tree, note) where the cache has none.
    """
    import orbax.checkpoint as ocp

    for name in ("absl", "orbax"):  # each save reports forty lines
        logging.getLogger(name).setLevel(logging.WARNING)
    made_of = made_of | {"code_version": code_version()}
    folder = cache / kind / fingerprint(kind, made_of)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), ocp.StandardCheckpointer() as checkpointer:
        if not (folder / "note.json").is_file():
            tree, note = make()
            part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            checkpointer.save(part.absolute() / "tree", tree)
            checkpointer.wait_until_finished()
            write_json(part / "note.json", {"made_of": made_of} | note)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        tree = checkpointer.restore(folder.absolute() / "tree", jax.tree.map(_abstract, like))
    return tree, read_json(folder / "note.json")


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)


def cached_numbers(
    cache: Path, kind: str, made_of: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A JSON object, made once."""
    made_of = made_of | {"code_version": code_version()}
    path = cache / kind / f"{fingerprint(kind, made_of)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            write_json(path, {"made_of": made_of} | make())
    return read_json(path)
