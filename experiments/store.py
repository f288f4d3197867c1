"""Where runs live on disk, who works on them, and what state they are in.

    results/<study>/runs/<run_id>/config.yaml     the resolved configuration
                                  metrics.jsonl   one line a chunk of training
                                  claim.json      while somebody works on it: owner, kept fresh by a heartbeat
                                  failed.json     the last attempt failed: why
                                  row.json        written last: its presence means done

A claim is made by creating its file, which only one process can. Its modification time is the heartbeat; a claim
that has not been refreshed for STALE_AFTER seconds, or whose process on this machine is gone, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.files import write_json
from lrc_jax.errors import InputError

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

    def fail(self, reason: str) -> None:
        write_json(self.failed_path, {"schema": ROW_SCHEMA, "reason": reason})

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Try to become the run's owner; yields whether we are. Released at the end, whatever happens."""
        self.path.mkdir(parents=True, exist_ok=True)
        owned = self._create_claim()
        if not owned:
            # Two takers of one dead claim must not each remove the other's fresh one.
            with FileLock(str(self.path / ".takeover.lock")):
                if not _alive(self.claim_path):
                    self.claim_path.unlink(missing_ok=True)
                    owned = self._create_claim()
        if not owned:
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(self.claim_path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
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


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _process_start(pid: int) -> str | None:
    """When a process on this machine started, in clock ticks; tells a recycled pid from its first owner."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _alive(claim: Path) -> bool:
    """Whether a claim's owner still works on it."""
    try:
        age = time.time() - claim.stat().st_mtime
        owner = json.loads(claim.read_text())
    except FileNotFoundError:
        return False
    except (json.JSONDecodeError, UnicodeDecodeError):
        return age < STALE_AFTER  # just being written, or its writer was killed in between
    if owner.get("host") == socket.gethostname():
        return owner.get("process_start") == _process_start(int(owner["pid"])) is not None
    return age < STALE_AFTER


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
