"""Folders that cannot be written, clocks that are set back, rows of a newer version: one line, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time

import pytest

from experiments.common import files
from experiments.sweep import store
from experiments.sweep.store import ROW_SCHEMA, STALE_AFTER, RunFolder
from lrc_jax import owners
from lrc_jax.errors import InputError


def foreign_claim(folder, age):
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.claim_path.write_text(json.dumps({"host": "another", "pid": 1, "process_start": "1"}))
    then = time.time() - age
    os.utime(folder.claim_path, (then, then))


@pytest.mark.parametrize(("age", "ours"), [(1, False), (STALE_AFTER + 5, True), (-STALE_AFTER - 5, True)])
def test_a_claim_is_judged_by_its_heartbeat_whichever_way_the_clock_went(tmp_path, age, ours):
    folder = RunFolder(tmp_path / "run")
    foreign_claim(folder, age)
    with folder.claim() as got:
        assert got is ours
    assert folder.claim_path.exists() is not ours


def test_a_claim_is_released_and_a_dead_owner_here_is_replaced(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim() as first, folder.claim() as second:
        assert (first, second) == (True, False)
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": "0"}
    folder.claim_path.write_text(json.dumps(dead))
    with folder.claim() as again:
        assert again


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim() as ours:
        assert ours
        foreign_claim(folder, 1)  # we slept, another machine took it
    assert json.loads(folder.claim_path.read_text())["host"] == "another"


def test_without_process_times_the_heartbeat_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "_is_own_proc", lambda: False)  # as on systems that have no /proc
    folder = RunFolder(tmp_path / "run")
    with folder.claim() as first, folder.claim() as second:
        assert (first, second) == (True, False)


def test_a_claim_made_between_a_look_and_a_takeover_is_seen(tmp_path, monkeypatch):
    """The owner releases while B looks, and A claims before B acts on what it saw: one of them owns the run."""
    folder, owners, done = RunFolder(tmp_path / "run"), [], threading.Event()
    foreign_claim(folder, 1)

    def claim(name):
        with folder.claim() as ours:
            owners.extend([name] if ours else [])
            done.wait(5)

    a, looks, look = threading.Thread(target=claim, args="A"), [], store._alive

    def alive(path):
        if looks:
            return look(path)
        looks.append(path)
        path.unlink()  # the owner's release
        seen = look(path)
        a.start()
        a.join(0.3)
        return seen

    monkeypatch.setattr(store, "_alive", alive)
    b = threading.Thread(target=claim, args="B")
    b.start()
    b.join(1)
    done.set()
    a.join()
    b.join()
    assert len(owners) == 1


def test_no_space_and_no_folder_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), RunFolder(tmp_path / "file" / "run").claim():
        pass

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"row\.json: cannot be written \(No space left on device\); free space"):
        RunFolder(tmp_path / "run").finish({"columns": {}})
    assert list((tmp_path / "run").iterdir()) == []  # nothing half-written


def test_a_row_of_a_newer_version_says_so(tmp_path):
    folder = RunFolder(tmp_path)
    folder.row_path.write_text(json.dumps({"schema": ROW_SCHEMA + 1}))
    with pytest.raises(InputError, match="newer version"):
        folder.row()
