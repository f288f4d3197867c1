"""What is kept on disk to be read again: whole or not there, and told from what was damaged since.

A sealed folder has a `note.json` with the digest of all its files and of the note itself; a sealed file is such a note
alone. Both are written beside and renamed, so that a kill leaves nothing that looks finished. Reading verifies the
digest: one flipped bit anywhere is damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrc_jax.owners import clear_parts, part_of, replace_text

NOTE = "note.json"
LARGE = 1 << 31  # bytes from which a verification takes seconds and says so
log = logging.getLogger(__name__)


class DamagedError(Exception):
    """What lies there is not what was written; the text says what is wrong with it."""


def _digest_of_files(folder: Path) -> str:
    """Of every file's name, size and bytes but the note's."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NOTE)
    size = sum(p.stat().st_size for p in files)
    if size > LARGE:
        log.info("%s: digest of %.1f GB", folder, size / 1e9)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _text(note: dict[str, Any], files: str) -> str:
    """A note as it is written: with the digest of itself and of the files beside it."""
    plain = json.dumps(note, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(f"{plain}\n{files}".encode()).hexdigest()
    return json.dumps({"digest": digest, "note": json.loads(plain)}, sort_keys=True) + "\n"


def _opened(path: Path, files: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        note = json.loads(content)["note"]
        # The text as a whole is compared: a flipped space is damage too, and nobody has to ask whether it matters.
        right = isinstance(note, dict) and content == _text(note, files).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    except OSError as wrong:
        raise DamagedError(f"{path.name}: {wrong.strerror}") from None
    if not right:
        raise DamagedError("its content is not what its digest says")
    found: dict[str, Any] = note
    return found


@contextmanager
def sealing(folder: Path, note: dict[str, Any]) -> Iterator[Path]:
    """Fill the folder that is given; at the end it is sealed with the note and renamed to `folder`.

    What lies at `folder` is replaced. Parts that dead processes left beside it are removed. The note may be completed
    while the folder is filled. A failure leaves nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(folder.parent)
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        (part / NOTE).write_text(_text(note, _digest_of_files(part)))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            part.rename(folder)
        except OSError:  # another process was faster; what it made is the same
            if not (folder / NOTE).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def opened(folder: Path) -> dict[str, Any]:
    """The note of a sealed folder, whose files are then as they were written.

    Raises:
      DamagedError: something changed since.
    """
    if not (folder / NOTE).is_file():
        raise DamagedError(f"{NOTE} is missing")
    try:
        return _opened(folder / NOTE, _digest_of_files(folder))
    except OSError as wrong:
        raise DamagedError(f"{wrong.filename}: {wrong.strerror}") from None


def write_file(path: Path, note: dict[str, Any]) -> None:
    """Write a JSON object as a sealed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, _text(note, ""))


def read_file(path: Path) -> dict[str, Any]:
    """The object of a sealed file. Raises DamagedError where it is not what was written."""
    return _opened(path, "")


def usable(path: Path, what: str) -> dict[str, Any] | None:
    """The note of a sealed folder or file of a cache; None where none is there, or, with a line that says so, a damaged
    one, which is then to be made again."""
    if not path.exists():
        return None
    try:
        return opened(path) if path.is_dir() else read_file(path)
    except DamagedError as wrong:
        log.warning("%s: damaged (%s); %s is made again", path, wrong, what)
        return None
