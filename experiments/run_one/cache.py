"""Things that many runs share and that are made once: teachers trained here, reference students, population curves.

Each lies in the cache under the hash of what made it, sealed (lrc_jax.sealed); a lock keeps two processes from making
the same one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from experiments.run_one.version import code_version
from lrc_jax import sealed

if TYPE_CHECKING:  # whoever looks for a finished run does without
    import jax


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cached_tree(
    cache: Path, kind: str, made_of: dict[str, Any], like: Any, make: Callable[[], tuple[Any, dict[str, Any]]]
) -> tuple[Any, dict[str, Any]]:
    """A pytree of arrays and a JSON note about it, made once; a damaged one is made again, with a line.

    Args:
      kind: subfolder of the cache.
      made_of: everything that determines the result; the code version is added.
      like: a pytree of the result's structure (jax.ShapeDtypeStruct leaves).
      make: makes (tree, note) where the cache has none.
    """
    import jax
    import orbax.checkpoint as ocp

    for name in ("absl", "orbax"):  # each save reports forty lines
        logging.getLogger(name).setLevel(logging.WARNING)
    made_of = made_of | {"code_version": code_version()}
    folder = cache / kind / fingerprint(kind, made_of)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), ocp.StandardCheckpointer() as checkpointer:
        kept = sealed.usable(folder, "it")
        if kept is None:
            tree, note = make()
            kept = {"made_of": made_of} | note
            with sealed.sealing(folder, kept) as part:
                checkpointer.save(part.absolute() / "tree", tree)
                checkpointer.wait_until_finished()
        tree = checkpointer.restore(folder.absolute() / "tree", jax.tree.map(_abstract, like))
    return tree, kept


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    import jax

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)


def cached_numbers(
    cache: Path, kind: str, made_of: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A JSON object, made once; a damaged one is made again, with a line."""
    made_of = made_of | {"code_version": code_version()}
    path = cache / kind / f"{fingerprint(kind, made_of)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        kept = sealed.usable(path, "it")
        if kept is None:
            kept = {"made_of": made_of} | make()
            sealed.write_file(path, kept)
    return kept
