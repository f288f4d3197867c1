"""Event files for TensorBoard: the numbers of metrics.jsonl, by step."""

from __future__ import annotations

import json
import struct

import pytest

from experiments.run_one import config, tensorboard
from experiments.run_one.setup import Setup
from experiments.sweep.job import Job
from experiments.sweep.store import RunFolder
from lrc_jax.errors import InputError

LINES = [{"step": 10, "total": 2.0, "kl": None}, {"step": 20, "total": 1.5, "kl": 0.25}]


def events(folder):
    """Every event of a folder's files, in order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # TFRecord: length, its checksum, the record, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def job(tmp_path, **keys):
    settings = config.RunConfig(teacher=config.TinyTeacher(), data=config.SyntheticData(), **keys)
    folder = RunFolder(tmp_path / "study" / "runs" / "0123456789")
    folder.path.mkdir(parents=True, exist_ok=True)
    return Job(settings, Setup.__new__(Setup), "0123456789", folder)


def test_scalars_are_the_lines_of_metrics(tmp_path):
    with job(tmp_path, tensorboard=True).metrics() as write:
        for line in LINES:
            write(line)
    (folder,) = (tmp_path / "study" / "tensorboard").iterdir()
    assert folder.name == "lrc-rank8-samples1024-steps500-seed0-01234567"
    values = [(e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value]
    assert values == [(10, "total", 2.0), (20, "total", 1.5), (20, "kl", 0.25)]
    written = (tmp_path / "study/runs/0123456789/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == LINES


def test_a_run_that_goes_on_takes_back_what_it_computes_again(tmp_path):
    run = job(tmp_path, tensorboard=True)
    with run.metrics() as write:
        for line in LINES:
            write(line)
    with run.metrics() as write:
        write(LINES[1])
    (folder,) = (tmp_path / "study" / "tensorboard").iterdir()
    starts = [e.step for e in events(folder) if e.HasField("session_log")]
    assert starts == [10, 20]


def test_nothing_is_written_unless_asked(tmp_path):
    with job(tmp_path).metrics() as write:
        write(LINES[0])
    assert not (tmp_path / "study" / "tensorboard").exists()


def test_a_missing_package_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tensorboardX is missing; pip install"):
        config.check(job(tmp_path, tensorboard=True).config)


def test_where_it_is_shown_is_no_part_of_a_run(tmp_path):
    assert config.identity(job(tmp_path, tensorboard=True).config) == config.identity(job(tmp_path).config)
