"""Writing that is never half done: beside the target first, then renamed over it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrc_jax import owners
from lrc_jax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic on POSIX: a reader sees the old file or the new one. What dead processes left in the folder half-written
    is removed.

    Raises:
      InputError: the folder cannot be written to (read-only, full disk).
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        owners.clear_parts(path.parent)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{owners.me()}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_UMASK)  # mkstemp makes files private; results get what any new file gets
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in writing this file or folder, as one line: it is read-only, full or no folder."""
    try:
        yield
    except OSError as wrong:
        raise InputError(f"{path}: cannot be written ({wrong.strerror}); free space or choose another folder") from None


def write_csv(path: Path, frame: pd.DataFrame, *, digits: int = 10) -> None:
    write_text(path, csv_text(frame, digits=digits))


def csv_text(frame: pd.DataFrame, *, digits: int = 10) -> str:
    """The same text for the same table, on every system."""
    return frame.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n")


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises InputError where the file is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as wrong:
        raise InputError(f"{path}: not valid JSON ({wrong}); delete it and run again") from None
