"""One teacher pass for many students: logits and activations on disk, memory-mapped, in half precision.

An entry is a folder named by the digest of teacher, tokens and sites, one `.npy` file per site of shape [N, T, width].
It is written a batch at a time beside its final place, sealed (lrc_jax.sealed) and renamed: an interrupted pass leaves
nothing, and a damaged entry is computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array

from lrc_jax import sealed
from lrc_jax.compute.fast import forward
from lrc_jax.data.pace import Pace
from lrc_jax.data.pools import Pool
from lrc_jax.data.windows import Windows
from lrc_jax.errors import InputError
from lrc_jax.model import Activations, DecoderConfig, LayerActivations, Weights
from lrc_jax.objective import Objective
from lrc_jax.owners import clear_parts
from lrc_jax.students.base import Frozen, Student
from lrc_jax.training.train import reads_teacher

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
READ = 1 << 22  # tokens that are read together
SPARE = 1 << 30  # bytes of disk that an entry leaves free
LAYER_SITES = tuple(LayerActivations.__dataclass_fields__)


def read_site(acts: Activations, site: str) -> Array:
    """An activation by name: "logits", "final", "hidden.3", or a clone site as "layers.3.q_NQ".

    Raises:
      InputError: there is no such site.
    """
    parts = site.split(".")
    try:
        if site in ("logits", "final"):
            return acts.logits_NV if site == "logits" else acts.final_ND
        if parts[0] == "hidden" and len(parts) == 2:
            return acts.hidden_ND[int(parts[1])]
        if parts[0] == "layers" and len(parts) == 3 and parts[2] in LAYER_SITES:
            return getattr(acts.layers[int(parts[1])], parts[2])
    except (ValueError, IndexError):
        pass
    raise InputError(
        f"site {site!r} is unknown; use logits, final, hidden.LAYER or layers.LAYER.{'|'.join(LAYER_SITES)}"
    )


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _compute(config: DecoderConfig, weights: Weights, tokens_BT: Array, sites: tuple[str, ...]) -> tuple[Array, ...]:
    acts = forward(config, weights, tokens_BT)
    batch, length = tokens_BT.shape
    return tuple(read_site(acts, site).reshape(batch, length, -1) for site in sites)


def entry_name(teacher_digest: str, tokens_NT: np.ndarray | Windows, sites: tuple[str, ...], dtype: str) -> str:
    """32 hexadecimal digits that change with the teacher, the tokens, the sites and the precision."""
    n, length = tokens_NT.shape
    digest = hashlib.sha256(json.dumps([teacher_digest, sites, dtype, [n, length]]).encode())
    rows, pace = max(1, READ // length), Pace("tokens of the activation cache", 4.0 * n * length)
    for start in range(0, n, rows):
        part = np.ascontiguousarray(tokens_NT[start : start + rows], np.int32)
        digest.update(part.tobytes())
        pace.add(part.nbytes)
    return digest.hexdigest()[:32]


def cached_activations(
    cache: Path,
    config: DecoderConfig,
    weights: Weights,
    teacher_digest: str,
    tokens_NT: np.ndarray | Windows,
    sites: tuple[str, ...],
    *,
    dtype: str = "float16",
    batch_size: int = 8,
) -> dict[str, np.ndarray]:
    """The teacher's activations on sequences, computed once.

    Args:
      cache: folder of all entries.
      tokens_NT: the sequences; those of a text are read a batch at a time.
      sites: as `read_site` names them.
      dtype: on disk: "float16" (finer; values beyond 65,504 are refused), "bfloat16" or "float32" (exact).

    Returns:
      Site -> read-only memory-mapped array [N, T, width]; only the rows that are read come into memory.

    Raises:
      InputError: a site or dtype is unknown, or a value does not fit float16.
    """
    if dtype not in DTYPES:
        raise InputError(f"activation cache: dtype {dtype!r} is unknown; choose float16, bfloat16 or float32")
    folder = cache / entry_name(teacher_digest, tokens_NT, sites, dtype)
    clear_parts(cache)
    if not _is_verified(folder):
        if sealed.usable(folder, "the teacher's pass") is None:
            _write(folder, config, weights, tokens_NT, sites, dtype, batch_size)
        _verified[folder] = _stamps(folder)
    return {site: np.load(folder / f"{site}.npy", mmap_mode="r").view(DTYPES[dtype]) for site in sites}


_verified: dict[Path, list[tuple[int, int]]] = {}


def _is_verified(folder: Path) -> bool:
    """Whether this process has verified the entry, and no file of it was written since: a verification reads all of
    it."""
    try:
        return _verified.get(folder) == _stamps(folder)
    except OSError:
        return False


def _stamps(folder: Path) -> list[tuple[int, int]]:
    found = [path.stat() for path in sorted(folder.iterdir())]
    return [(status.st_mtime_ns, status.st_size) for status in found]


def _write(
    folder: Path,
    config: DecoderConfig,
    weights: Weights,
    tokens_NT: np.ndarray | Windows,
    sites: tuple[str, ...],
    dtype: str,
    batch_size: int,
) -> None:
    n, length = tokens_NT.shape
    size = min(batch_size, n)
    abstract = jax.eval_shape(functools.partial(_compute, config, sites=sites), weights, tokens_NT[:size])
    width = np.dtype(DTYPES[dtype]).itemsize
    size_bytes = sum(n * length * x.shape[-1] * width for x in abstract)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size_bytes > free - SPARE:
        raise InputError(
            f"activation cache: {len(sites)} sites of {n * length:,} tokens take {size_bytes / 1e9:.1f} GB, "
            f"{folder.parent} has {free / 1e9:.1f} GB; use fewer samples or no cache"
        )
    with sealed.sealing(folder, {"shape": [n, length], "dtype": dtype, "sites": list(sites)}) as part:
        files = {
            # .npy knows no bfloat16: its bits are stored as uint16.
            site: np.lib.format.open_memmap(
                part / f"{site}.npy", "w+", _stored(DTYPES[dtype]), (n, length, x.shape[-1])
            )
            for site, x in zip(sites, abstract, strict=True)
        }
        pace = Pace("the teacher's pass", n, "sequences", 1.0)
        for start in range(0, n, size):
            # The last batch is filled up with its last row: one shape, one compilation.
            index = np.minimum(np.arange(start, start + size), n - 1)
            kept = min(size, n - start)
            for site, x in zip(sites, _compute(config, weights, tokens_NT[index], sites), strict=True):
                values = np.asarray(x, np.float32)[:kept]
                if dtype == "float16" and np.abs(values).max() > np.finfo(np.float16).max:
                    raise InputError(f"activation cache: {site} exceeds float16's range; use bfloat16")
                files[site][start : start + kept] = values.astype(DTYPES[dtype]).view(files[site].dtype)
            pace.add(kept)
        for file in files.values():
            file.flush()
        del files


def _stored(dtype: Any) -> Any:
    return np.uint16 if dtype is ml_dtypes.bfloat16 else dtype


class _Noting:
    """A layer's activations that note which of them are looked at."""

    def __init__(self, layer: int, acts: LayerActivations, seen: set[str]) -> None:
        self._layer, self._acts, self._seen = layer, acts, seen

    def __getattr__(self, name: str) -> Array:
        self._seen.add(f"layers.{self._layer}.{name}")
        return getattr(self._acts, name)


def sites_read(student: Student, objective: Objective, config: DecoderConfig, frozen: Frozen) -> tuple[str, ...]:
    """What a student's training reads of its teacher: the final features (its logits are one product away) and, with
    clone losses, the sites that they compare."""
    seen: set[str] = set()

    def trace(params: Any, frozen: Frozen, tokens_BT: Array) -> Array:
        acts = forward(config, frozen.teacher, tokens_BT)
        noting: Any = tuple(_Noting(i, layer, seen) for i, layer in enumerate(acts.layers))
        noted = dataclasses.replace(acts, layers=noting)
        student.clone_pairs(params, frozen, noted, student.forward(params, frozen, tokens_BT, acts))
        return tokens_BT

    if objective.clone:
        params = jax.eval_shape(student.init, jax.random.key(0), frozen)
        jax.eval_shape(trace, params, frozen, jax.ShapeDtypeStruct((1, 2), np.int32))
    return ("final", *sorted(seen))


def with_teacher_pass(
    cache: Path,
    student: Student,
    objective: Objective,
    config: DecoderConfig,
    frozen: Frozen,
    teacher_digest: str,
    pool: Pool,
    *,
    dtype: str = "float16",
) -> Pool:
    """The pool with all that the student's training reads of its teacher, from the cache (memory-mapped).

    Students with the same sites share an entry, whatever their rank, start or losses. Where nothing of the teacher is
    read the pool stays as it is.

    Raises:
      InputError: as `cached_activations`, or the whitening intervention is asked for (two teachers).
    """
    if not reads_teacher(student, objective):
        return pool
    if frozen.distilled is not None:
        raise InputError("activation cache: not with a second teacher (measure.whiten); leave one of the two out")
    sites = sites_read(student, objective, config, frozen)
    entry = cached_activations(cache, config, frozen.teacher, teacher_digest, pool.tokens_NT, sites, dtype=dtype)
    final_NTD = entry.pop("final")
    return dataclasses.replace(pool, final_NTD=final_NTD, sites=entry or None)
