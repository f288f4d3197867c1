"""Who writes: a name for this process that others can judge, so that what a kill left behind is told from work in
progress.

A name holds the machine (host, boot and PID namespace: two containers with one host name are two machines), the process
and when it started, which tells a recycled number from its first owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import socket
import time
from pathlib import Path

from lrc_jax.errors import InputError

PART = re.compile(r"\..*\.([0-9a-f]{8}-\d+-\d+)(\.\w+)?\.part")
FOREIGN = 86_400.0  # seconds without a change after which a part written by another machine is nobody's
_PROC = Path("/proc")


def machine() -> str:
    """8 hexadecimal digits of host, boot and PID namespace: within one such machine, process numbers say who lives."""
    return _machine(os.getpid())


@functools.lru_cache(maxsize=1)
def _machine(pid: int) -> str:  # asked once per process: a fork may enter another namespace
    del pid
    parts = [socket.gethostname()]
    try:
        parts += [(_PROC / "sys/kernel/random/boot_id").read_text(), os.readlink(_PROC / "self/ns/pid")]
    except OSError:  # no Linux
        parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _is_own_proc() -> bool:
    """Whether /proc shows this PID namespace, not that of a parent (`unshare -p` without `--mount-proc`)."""
    try:
        return os.readlink(_PROC / "self") == str(os.getpid())
    except OSError:
        return False


def process(pid: int) -> tuple[str, str] | None:
    """State (R, S, T, Z, ...) and start in clock ticks of a process of this machine; None where there is none.

    Raises:
      LookupError: this system does not tell.
    """
    if not _is_own_proc():
        raise LookupError(pid)
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
        return fields[0], fields[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError):
        raise LookupError(pid) from None


def start(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks; None where there is none or the system does not tell."""
    try:
        found = process(pid)
    except LookupError:
        return None
    return None if found is None else found[1]


def me() -> str:
    """This process as a part of a file's name."""
    return _me(os.getpid())


@functools.lru_cache(maxsize=1)
def _me(pid: int) -> str:
    return f"{machine()}-{pid}-{start(pid) or 0}"


def part_of(target: Path) -> Path:
    """Where this process writes what is then renamed to `target`: beside it, with its owner in the name."""
    return target.with_name(f".{target.name}.{me()}.part")


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it there; what killed processes left beside it is removed."""
    clear_parts(path.parent)
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all (`replace_text`). A pipe or a device is written to as it is.

    Raises:
      InputError: it cannot be written.
    """
    path = path.resolve()  # through a symbolic link, not in its place
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        replace_text(path, text)
    except OSError as wrong:
        raise InputError(f"{path}: cannot be written ({wrong.strerror}); choose another path") from None


def is_dead(name: str) -> bool | None:
    """Whether a process, as `me` named it, has ended; None where this machine cannot know."""
    where, pid, began = name.split("-")
    if where != machine() or began == "0":
        return None
    try:
        found = process(int(pid))
    except LookupError:
        return None
    return found is None or found[0] in "ZX" or found[1] != began


def discard(folder: Path) -> None:
    """Remove a folder: at once from its name, so that a kill leaves a part and no half of a folder."""
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def exchange(left: Path, right: Path) -> bool:
    """Swap two names in one moment, where the system can (Linux, on most file systems)."""
    with contextlib.suppress(AttributeError):
        renameat2 = ctypes.CDLL(None).renameat2
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return renameat2(here, os.fsencode(left), here, os.fsencode(right), swap) == 0
    return False


def clear_parts(folder: Path) -> None:
    """Remove what dead processes left in a folder half-written; looked for once per process and folder.

    Parts of another machine are judged by their age, since nobody here sees whether their owner lives.
    """
    if (key := (os.getpid(), str(folder))) in _cleared:
        return
    if len(_cleared) >= 256:  # runs come and go in a process; looking once more costs little
        _cleared.clear()
    _cleared.add(key)
    try:
        found = [(entry, match[1]) for entry in os.scandir(folder) if (match := PART.fullmatch(entry.name))]
    except OSError:
        return
    for entry, owner in found:
        try:
            dead = is_dead(owner)
            if dead is None:
                dead = time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN
            if dead and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif dead:
                os.unlink(entry.path)
        except OSError:  # another process was faster, or it may not be removed
            continue


_cleared: set[tuple[int, str]] = set()
