"""Where runs live on disk, who works on them, and what state they are in.

    results/<study>/runs/<run_id>/config.yaml     the resolved configuration
                                  metrics.jsonl   one line a chunk of training
                                  claim.json      while somebody works on it: owner, kept fresh by a heartbeat
                                  failed.json     the last attempt failed: why
                                  paused.json     stopped in good order at a step, whose state is in checkpoints/
                                  row.json        written last: its presence means done

A claim is made by creating its file, which only one process can. Its modification time is the heartbeat; a claim
that has not been refreshed for STALE_AFTER seconds, or whose process on this machine is gone, is taken over. Ages are
taken by the file system's own clock, so that machines need not agree on the time and a clock may be set back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.files import unwritable, write_json
from lrc_jax.errors import InputError

REFERENCE = "reference"  # the folder under results/ of studies that are kept in compact form
ROW_SCHEMA = 1
HEARTBEAT = 10.0
STALE_AFTER = 120.0


@dataclass(frozen=True)
class RunFolder:
    """One run's folder."""

    path: Path

    @property
    def row_path(self) -> Path:
        return self.path / "row.json"

    @property
    def claim_path(self) -> Path:
        return self.path / "claim.json"

    @property
    def failed_path(self) -> Path:
        return self.path / "failed.json"

    @property
    def paused_path(self) -> Path:
        return self.path / "paused.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def row(self) -> dict[str, Any] | None:
        """The run's row, or None where it is not done.

        Raises:
          InputError: the row is damaged, or written by a newer version of this program.
        """
        try:
            row = json.loads(self.row_path.read_text())
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise InputError(f"{self.row_path}: damaged; delete it and run the sweep again") from None
        if row.get("schema", 0) > ROW_SCHEMA:
            raise InputError(
                f"{self.row_path}: written by a newer version (schema {row['schema']}, this one reads {ROW_SCHEMA}); "
                "update this program"
            )
        return row

    def state(self) -> str:
        """done, running, failed or missing."""
        if self.row_path.exists():
            return "done"
        if _alive(self.claim_path):
            return "running"
        return "failed" if self.failed_path.exists() else "missing"

    def finish(self, row: dict[str, Any]) -> None:
        write_json(self.row_path, {"schema": ROW_SCHEMA, **row})
        self.failed_path.unlink(missing_ok=True)
        self.paused_path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints_path, ignore_errors=True)

    def fail(self, reason: str) -> None:
        write_json(self.failed_path, {"schema": ROW_SCHEMA, "reason": reason})

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Try to become the run's owner; yields whether we are. Released at the end, whatever happens.

        Raises:
          InputError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            owned = self._create_claim()
            if not owned:
                # Two takers of one dead claim must not each remove the other's fresh one.
                with FileLock(str(self.path / ".takeover.lock")):
                    if not _alive(self.claim_path):
                        self.claim_path.unlink(missing_ok=True)
                        owned = self._create_claim()
        except OSError as wrong:
            raise unwritable(self.path, wrong) from None
        if not owned:
            yield False
            return
        HEART.add(self.claim_path)
        try:
            yield True
        finally:
            HEART.remove(self.claim_path)
            self.claim_path.unlink(missing_ok=True)

    def _create_claim(self) -> bool:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": _process_start(os.getpid())}
        try:
            handle = os.open(self.claim_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump(owner, file)
        return True


class _Heart:
    """One thread that keeps all of this process's claims fresh."""

    def __init__(self) -> None:
        self._claims: set[Path] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, claim: Path) -> None:
        with self._lock:
            self._claims.add(claim)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()

    def remove(self, claim: Path) -> None:
        with self._lock:
            self._claims.discard(claim)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                for claim in self._claims:
                    with contextlib.suppress(OSError):
                        os.utime(claim)


HEART = _Heart()


def _process_start(pid: int) -> str | None:
    """When a process on this machine started, in clock ticks; tells a recycled pid from its first owner."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _age(path: Path) -> float:
    """Seconds since a file's last change by the file system's own clock; below 0 if that clock was set back."""
    changed = path.stat().st_mtime
    probe = path.with_name(f".now-{os.getpid()}-{threading.get_ident()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - changed


def _alive(claim: Path) -> bool:
    """Whether a claim's owner still works on it."""
    try:
        owner = json.loads(claim.read_text())
    except FileNotFoundError:
        return False
    except (json.JSONDecodeError, UnicodeDecodeError):
        owner = {}  # just being written, or its writer was killed in between
    if owner.get("host") == socket.gethostname():
        return owner.get("process_start") == _process_start(int(owner["pid"])) is not None
    try:
        # A heartbeat far in the future is as dead as one far in the past: the clock was set back since.
        return abs(_age(claim)) < STALE_AFTER
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Study:
    """One folder under results/."""

    path: Path

    @classmethod
    def of(cls, results_dir: str, name: str) -> Study:
        return cls(Path(results_dir) / name)

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders, by name."""
        folder = self.path / "runs"
        return [RunFolder(p) for p in sorted(folder.iterdir()) if p.is_dir()] if folder.is_dir() else []

    def require(self) -> Study:
        """Raises InputError where the study does not exist."""
        if not self.path.is_dir():
            raise InputError(f"study: {self.path} does not exist; run a sweep with study={self.path.name} first")
        return self
