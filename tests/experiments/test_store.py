"""Folders that cannot be written, clocks that are set back, rows of a newer version: one line, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import time

import pytest

from experiments import files
from experiments.store import ROW_SCHEMA, STALE_AFTER, RunFolder
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
