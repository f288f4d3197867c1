"""Where runs live on disk, who works on them, and what state they are in.

    results/<study>/runs/<run_id>/config.yaml     the resolved configuration
                                  metrics.jsonl   one line per chunk of training
                                  job.json        the overrides that asked for it, a list a sweep
                                  claim.json      while somebody works on it: owner, kept fresh by a heartbeat
                                  failed.json     the last attempt failed: why
                                  paused.json     stopped in good order at a step, whose state is in checkpoints/
                                  row.json        written last: its presence means done

A claim is made by creating its file, which only one process can, and made, taken over and released under one lock a
study, so that nobody removes a claim that is not the one it looked at. Its modification time is the heartbeat; a claim
that has not been refreshed for STALE_AFTER seconds, or whose process on this machine is gone, is taken over. Ages are
taken by the file system's own clock, so that machines need not agree on the time and a clock may be set back.

A claim's token fences its run: an owner that was suspended until somebody else took the run over finds another token
in the claim, and writes nothing. The row and its failure are written under the lock; training looks at each chunk.

What lies here may be damaged or somebody else's: a state file of any content is one line on standard error and counts
as not being there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.common.files import write_json, writing
from experiments.common.paths import study_name
from lrc_jax import owners
from lrc_jax.errors import InputError

REFERENCE = "reference"  # the folder under results/ of studies that are kept in compact form
ROW_SCHEMA = 1
HEARTBEAT = 10.0
STALE_AFTER = 120.0
LOCK = ".claims.lock"


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
        """The run's row, or None where it is not done; a damaged row is one line and counts as none.

        Raises:
          InputError: the row is written by a newer version of this program.
        """
        found = read_object(f"{self.path}/row.json", _is_row)
        if found is not None and found["schema"] > ROW_SCHEMA:
            raise InputError(
                f"{self.row_path}: written by a newer version (schema {found['schema']}, this one reads {ROW_SCHEMA}); "
                "update this program"
            )
        return found

    def jobs(self) -> list[list[str]]:
        """The overrides that asked for this run, a list a sweep that differs from the others."""
        note = read_object(f"{self.path}/job.json", lambda note: is_jobs(note.get("jobs", [note.get("overrides")])))
        if note is None:
            return []
        found: list[list[str]] = note["jobs"] if "jobs" in note else [note["overrides"]]  # as older versions wrote it
        return found

    def note_job(self, overrides: list[str]) -> None:
        """Write down that these overrides ask for this run: sweeps that spell it differently all find it."""
        jobs, job = self.jobs(), sorted(overrides)
        if job not in jobs:
            write_json(self.path / "job.json", {"jobs": [*jobs, job]})

    def state(self) -> str:
        """done, running, failed or missing."""
        return "done" if self.row() is not None else self.open_state()

    def open_state(self) -> str:
        """running, failed or missing: of a run that is not done."""
        if _alive(self.claim_path):
            return "running"
        return "failed" if self.failed_path.exists() else "missing"

    def reason(self) -> str:
        """Why the last attempt failed."""
        note = read_object(self.failed_path, lambda note: isinstance(note.get("reason"), str))
        return "" if note is None else str(note["reason"])

    def paused_at(self) -> tuple[int, int] | None:
        """The step that a stopped run resumes from, and its steps."""
        note = read_object(self.paused_path, lambda n: all(type(n.get(key)) is int for key in ("step", "steps")))
        return None if note is None else (note["step"], note["steps"])

    def finish(self, row: dict[str, Any]) -> None:
        """Write the row, which makes the run done.

        Raises:
          LeaseLost: somebody else has taken the run over.
        """
        with self._fenced():
            write_json(self.row_path, {"schema": ROW_SCHEMA, **row})
            self._tidy()

    def fail(self, reason: str) -> None:
        """Write down why the run failed, unless somebody else has taken it over."""
        with contextlib.suppress(LeaseLost), self._fenced():
            write_json(self.failed_path, {"schema": ROW_SCHEMA, "reason": reason})

    def check_ours(self) -> None:
        """Raises LeaseLost where somebody else has taken the run over."""
        if _token(self.claim_path) != HEART.token(self.claim_path):
            raise LeaseLost(f"{self.path}: another process took the run over while this one slept; what it does stays")

    @contextlib.contextmanager
    def _fenced(self) -> Iterator[None]:
        """Within it nobody takes the run over. Raises LeaseLost where somebody has."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._claim_lock()
            lock.acquire()
        try:
            self.check_ours()
            yield
        finally:
            lock.release()

    def tidy(self) -> None:
        """Remove what a kill left of a run that is done: its last owner wrote the row and no more."""
        left = (self.claim_path, self.failed_path, self.paused_path, self.checkpoints_path)
        if any(os.path.lexists(path) for path in left):
            with contextlib.suppress(OSError), self._claim_lock():
                if self.row_path.exists() and not _alive(self.claim_path):
                    self.claim_path.unlink(missing_ok=True)
                    self._tidy()
        owners.clear_parts(self.path)

    def _tidy(self) -> None:
        self.failed_path.unlink(missing_ok=True)
        self.paused_path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints_path, ignore_errors=True)

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
        owners.clear_parts(self.path)
        owners.clear_parts(self.checkpoints_path)
        try:
            yield True
        finally:
            HEART.remove(self.claim_path)
            with contextlib.suppress(OSError), self._claim_lock():
                # Not ours any more if we slept for so long that it was taken over.
                if _token(self.claim_path) == token:
                    self.claim_path.unlink(missing_ok=True)

    def _claim_lock(self) -> FileLock:
        return FileLock(str(self.path.parent / LOCK))

    def _create_claim(self) -> str | None:
        """Create the claim in place of a dead one; its token, or None where another process was faster."""
        self.claim_path.unlink(missing_ok=True)
        token, pid = uuid.uuid4().hex, os.getpid()
        owner = {
            "host": socket.gethostname(), "machine": owners.machine(), "pid": pid, "process_start": owners.start(pid),
            "token": token,
        }  # fmt: skip
        part = owners.part_of(self.claim_path)  # linked into place: a kill never leaves a claim without an owner
        part.write_text(json.dumps(owner))
        try:
            os.link(part, self.claim_path)
        except FileExistsError:
            return None
        except OSError:  # a file system without links; the lock has to do
            os.replace(part, self.claim_path)
        finally:
            part.unlink(missing_ok=True)
        return token


class LeaseLost(InputError):
    """Somebody else took a run over while its owner was suspended."""


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

    def token(self, claim: Path) -> str | None:
        """Our token of a claim; None where we made none."""
        with self._lock:
            return self._claims.get(claim)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                for claim, token in self._claims.items():
                    with contextlib.suppress(OSError):
                        if _token(claim) == token:
                            os.utime(claim)


HEART = _Heart()


def _age(path: Path) -> float:
    """Seconds since a file's last change by the file system's own clock; below 0 if that clock was set back."""
    changed = path.stat().st_mtime
    probe = path.parent.parent / LOCK  # a file that is there anyway
    try:
        os.utime(probe)
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    return now - changed


def _owner(claim: Path) -> dict[str, Any] | None:
    """What a claim says of its owner; None where there is none. Claims are linked into place whole, so that a damaged
    one has no owner: whoever made it finds no token of its own there."""
    return read_object(claim, lambda owner: True)


def _token(claim: Path) -> str | None:
    """The token of a claim; None where there is none."""
    token = (_owner(claim) or {}).get("token")
    return token if isinstance(token, str) else None


def _alive(claim: Path) -> bool:
    """Whether a claim's owner still works on it."""
    owner = _owner(claim)
    if owner is None:
        return False
    try:
        pid, start = owner.get("pid"), owner.get("process_start")
        # Claims of older versions name no machine. Of another machine, of a process in another PID namespace, and where
        # the system tells no start of a process, the heartbeat decides.
        here = owner["machine"] == owners.machine() if "machine" in owner else owner.get("host") == socket.gethostname()
        if here and type(pid) is int and isinstance(start, str):
            with contextlib.suppress(LookupError):
                found = owners.process(pid)
                if found is None or found[0] in "ZX" or found[1] != start:
                    return False
                if found[0] not in "Tt":  # a suspended one has its heartbeat to show
                    return True
        # A heartbeat far in the future is as dead as one far in the past: the clock was set back since.
        return abs(_age(claim)) < STALE_AFTER
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Within it Python looks for no reference cycles: rows have none, and with thousands of them each look takes as
    long as reading some more."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_object(path: Path | str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """A state file's object, or None where none is there. What is damaged or somebody else's is one line on standard
    error, once per process, and counts as not being there."""
    try:
        handle = os.open(path, os.O_RDONLY)
        with open(handle, "rb", buffering=0) as file:
            found = json.loads(file.read().decode())
        if isinstance(found, dict) and fits(found):
            return found
        wrong = f"a {type(found).__name__}" if not isinstance(found, dict) else "not what this program writes"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        wrong = "no text" if isinstance(error, UnicodeDecodeError) else "no JSON"
    except OSError as error:
        wrong = f"{error.strerror}"
    if path not in _told:
        _told.add(path)
        print(f"{path}: damaged ({wrong}); it counts as missing, the next sweep writes it anew", file=sys.stderr)
    return None


_told: set[Path | str] = set()


_ROW_KEYS = (("code_version", str), ("columns", dict), ("config", dict), ("machine", dict))


def _is_row(row: dict[str, Any]) -> bool:
    if type(row.get("schema")) is not int:
        return False
    if row["schema"] > ROW_SCHEMA:
        return True  # said by its reader
    for key, kind in _ROW_KEYS:
        if not isinstance(row.get(key), kind):
            return False
    if not (isinstance(row.setdefault("run_id", ""), str) and isinstance(row.setdefault("data_digest", ""), str)):
        return False
    lines = row["columns"].get("lines") or []
    return isinstance(lines, list) and all(isinstance(line, dict) for line in lines)


def is_jobs(value: Any) -> bool:
    """Whether something is a list of jobs, each a list of overrides."""
    return isinstance(value, list) and all(
        isinstance(job, list) and all(isinstance(word, str) for word in job) for job in value
    )


@dataclass(frozen=True)
class Study:
    """One folder under results/."""

    path: Path

    @classmethod
    def of(cls, results_dir: str, name: str) -> Study:
        """Raises InputError where the name leads out of results_dir."""
        return cls(Path(results_dir) / study_name(name))

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders, by name."""
        folder = self.path / "runs"
        try:
            return [RunFolder(folder / name) for name in sorted(e.name for e in os.scandir(folder) if e.is_dir())]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def require(self) -> Study:
        """Raises InputError where the study does not exist."""
        if not self.path.is_dir():
            raise InputError(f"study: {self.path} does not exist; run a sweep with study={self.path.name} first")
        return self
