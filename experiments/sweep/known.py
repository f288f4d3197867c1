"""The digests of data and teachers that were loaded before, so that a run that is done is found without loading them.

A digest is believed as long as the files that it was taken of look as they did: same names, sizes and times of change,
and the same teachers in the cache. It only ever serves to find a row; whatever is computed loads and digests anew.
Needs no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.common.files import write_json
from experiments.run_one.cache import fingerprint
from experiments.run_one.config import RunConfig, TextData, TinyTeacher
from experiments.run_one.version import code_version
from experiments.sweep.store import read_object


def digest_of(config: RunConfig) -> str | None:
    """Of a run's data and teacher together, where they were loaded before."""
    path = _path(config)
    note = None if path is None else read_object(path, lambda note: isinstance(note.get("data_digest"), str))
    return None if note is None or note.get("looks") != _looks(config) else note["data_digest"]


def remember(config: RunConfig, data_digest: str) -> None:
    """Keep the digest of what was just loaded."""
    path = _path(config)
    if path is not None and digest_of(config) != data_digest:
        write_json(path, {"data_digest": data_digest, "looks": _looks(config)})


def _path(config: RunConfig) -> Path | None:
    """Where a digest is kept; None for what has no file to look at, such as text from the hub."""
    if isinstance(config.data, TextData) and not config.data.path:
        return None
    teacher = getattr(config.teacher, "path", None)
    if teacher is not None and not Path(teacher).exists():
        return None
    made_of = [dataclasses.asdict(config.data), dataclasses.asdict(config.teacher), config.sequence_length]
    return Path(config.cache_dir) / "digests" / f"{fingerprint(made_of, code_version())}.json"


def _looks(config: RunConfig) -> list[list[Any]]:
    found: list[list[Any]] = []
    for group in (config.data, config.teacher):
        if path := getattr(group, "path", None):
            found += [_look(file) for file in sorted(_files(Path(path)))]
    if isinstance(config.teacher, TinyTeacher):
        made_here = Path(config.cache_dir) / "teachers"
        found += [_look(entry) for entry in sorted(made_here.glob("*")) if entry.is_dir()]
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        yield path


def _look(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]
