"""Where runs live on disk, who works on them, and what state they are in.

    results/<study>/runs/<run_id>/config.yaml     the resolved configuration
                                  metrics.jsonl   one line a chunk of training
                                  job.json        the overrides that asked for it, a list a sweep
                                  claim.json      while somebody works on it: owner, kept fresh by a heartbeat
                                  failed.json     the last attempt failed: why
                                  paused.json     stopped in good order at a step, whose state is in checkpoints/
                                  row.json        written last: its presence means done

A claim is made by creating its file, which only one process can, and made, taken over and released under one lock a
study, so that nobody removes a claim that is not the one it looked at. Its modification time is the heartbeat; a claim
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
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.common.files import read_json, write_json, writing
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

    def jobs(self) -> list[list[str]]:
        """The overrides that asked for this run, a list a sweep that differs from the others."""
        path = self.path / "job.json"
        if not path.is_file():
            return []
        note = read_json(path)
        return note["jobs"] if "jobs" in note else [note["overrides"]]  # as older versions wrote it

    def note_job(self, overrides: list[str]) -> None:
        """Write down that these overrides ask for this run: sweeps that spell it differently all find it."""
        jobs, job = self.jobs(), sorted(overrides)
        if job not in jobs:
            write_json(self.path / "job.json", {"jobs": [*jobs, job]})

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
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with self._claim_lock():
                token = None if _alive(self.claim_path) else self._create_claim()
        if token is None:
            yield False
            return
        HEART.add(self.claim_path, token)
        try:
            yield True
        finally:
            HEART.remove(self.claim_path)
            with contextlib.suppress(OSError), self._claim_lock():
                # Not ours any more if we slept for so long that it was taken over.
                if _owner(self.claim_path).get("token") == token:
                    self.claim_path.unlink(missing_ok=True)

    def _claim_lock(self) -> FileLock:
        return FileLock(str(self.path.parent / ".claims.lock"))

    def _create_claim(self) -> str | None:
        """Create the claim in place of a dead one; its token, or None where another process was faster."""
        self.claim_path.unlink(missing_ok=True)
        token = uuid.uuid4().hex
        pid = os.getpid()
        owner = {"host": socket.gethostname(), "pid": pid, "process_start": _process_start(pid), "token": token}
        try:
            handle = os.open(self.claim_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w") as file:
            json.dump(owner, file)
        return token


class _Heart:
    """One thread that keeps all of this process's claims fresh."""

    def __init__(self) -> None:
        self._claims: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, claim: Path, token: str) -> None:
        with self._lock:
            self._claims[claim] = token
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, daemon=True)
                self._thread.start()

    def remove(self, claim: Path) -> None:
        with self._lock:
            self._claims.pop(claim, None)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                for claim, token in self._claims.items():
                    with contextlib.suppress(OSError):
                        if _owner(claim).get("token") == token:
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


def _owner(claim: Path) -> dict[str, Any]:
    """What a claim says of its owner: nothing where it is just being written, or its writer was killed in between.

    Raises:
      FileNotFoundError: there is no claim.
    """
    try:
        return json.loads(claim.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _alive(claim: Path) -> bool:
    """Whether a claim's owner still works on it."""
    try:
        owner = _owner(claim)
    except FileNotFoundError:
        return False
    # Systems without /proc know no start of a process: there, as from other machines, the heartbeat decides.
    if owner.get("host") == socket.gethostname() and owner.get("process_start") is not None:
        return owner["process_start"] == _process_start(int(owner["pid"]))
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
