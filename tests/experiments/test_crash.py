"""Nothing silently wrong after a crash: damage is seen, owners are fenced, left-overs go, failures say why."""

from __future__ import annotations

import contextlib
import cProfile
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import kills
import numpy as np
import pandas as pd
import pytest

from experiments import collect, status
from experiments.run_one import cache, setup
from experiments.sweep import interrupt, job, rows, store
from experiments.sweep.store import LeaseLost, RunFolder, Study
from lrc_jax.data.synthetic import KEPT_STREAMS, LanguageSpec, SyntheticSource
from lrc_jax.errors import DivergedError, InputError
from tests.experiments.test_run import SMALL, call
from tests.lrc_jax.test_sealed import FLIPS, flip_a_bit
from theory.planted.surfaces import Design, gap_table

ROW = {"run_id": "a", "data_digest": "d", "code_version": "v", "config": {"rank": 2}, "columns": {"test_loss": 1.0}}
ROW |= {"machine": {"seconds": 1.0, "training_seconds": 0.5}}


# --- digests ---------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_a_teachers_cache_is_accepted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cache, "code_version", lambda: "v")
    right = np.arange(200, dtype=np.float32).reshape(10, 20)
    made = []

    def make():
        made.append(1)
        return {"w": jax.numpy.asarray(right)}, {"held_out_loss": 1.5}

    def get():
        return cache.cached_tree(tmp_path, "teachers", {"seed": 0}, {"w": jax.ShapeDtypeStruct((10, 20), "f4")}, make)

    get()
    (folder,) = [p for p in (tmp_path / "teachers").iterdir() if p.is_dir()]
    whole, rng = tmp_path / "whole", random.Random(0)
    shutil.copytree(folder, whole)
    for _ in range(FLIPS):
        flip_a_bit(folder, rng)
        caplog.clear()
        tree, note = get()
        np.testing.assert_array_equal(tree["w"], right)
        assert note["held_out_loss"] == 1.5
        (line,) = [r.message for r in caplog.records if r.name == "lrc_jax.sealed"]
        assert "damaged (" in line and line.endswith("it is made again") and "\n" not in line
    assert len(made) == FLIPS + 1
    get()
    assert len(made) == FLIPS + 1


def test_no_flipped_bit_of_cached_numbers_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "code_version", lambda: "v")
    made, rng = [], random.Random(0)
    get = lambda: cache.cached_numbers(tmp_path, "pace", {"n": 1}, lambda: made.append(1) or {"plain": 0.25})  # noqa: E731
    for count in range(1, FLIPS):
        assert get()["plain"] == 0.25 and len(made) == count
        for lock in (tmp_path / "pace").glob("*.lock"):
            lock.unlink()
        flip_a_bit(tmp_path / "pace", rng)


def test_half_an_entry_of_the_compilation_cache_is_no_news(tmp_path):
    """Another run may be writing it. That a cache cannot be read for another reason is said."""
    script = (
        "from experiments.common import command; from experiments.run_one.config import RunConfig\n"
        "command.prepare_jax(RunConfig())\n"
        "import jax; print(jax.jit(lambda x: 2 * x + 1)(3.0))"
    )
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    environment = os.environ | always | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}

    def said():
        process = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert (process.returncode, process.stdout) == (0, "7.0\n"), process.stderr
        return process.stderr

    assert said() == ""
    entries = list(tmp_path.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-100])
    assert said() == ""
    for entry in entries:
        entry.unlink()
        entry.mkdir()
    assert "Error reading persistent compilation cache entry" in said()


# --- owners ----------------------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from pathlib import Path
from experiments.sweep import interrupt, store
store.STALE_AFTER, store.HEARTBEAT = 1.0, 0.1
folder = store.RunFolder(Path(sys.argv[1]))
with folder.claim() as ours:
    print("ours" if ours else "not ours", flush=True)
    sys.stdin.readline()
    for act in (
        lambda: folder.finish({row!r} | {{"run_id": "late"}}),
        lambda: interrupt.FolderKeeper(folder).save(3, 9, None),
        folder.check_ours,
    ):
        try:
            act()
            print("written", flush=True)
        except store.LeaseLost as lost:
            print("lost", flush=True)
    folder.fail("late")
"""


@contextlib.contextmanager
def owner(folder, *prefix):
    """Another process that claims a run and, told to, finishes it; yields (process, what it says first)."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", OWNER.format(row=ROW), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("ending", ["finished", "still at work"])
def test_an_owner_that_slept_too_long_writes_nothing(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(store, "STALE_AFTER", 1.0)
    folder = RunFolder(tmp_path / "runs" / "a")
    with owner(folder.path) as (process, said), contextlib.ExitStack() as held:
        assert said == "ours"
        with folder.claim() as ours:
            assert not ours
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        assert held.enter_context(folder.claim())
        if ending == "finished":
            folder.finish(ROW)
            held.close()
        before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
        process.send_signal(signal.SIGCONT)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.read().split() == ["lost"] * 3
        assert process.wait() == 0
        assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


def test_a_stopped_owner_has_until_its_heartbeat_is_stale(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    with owner(folder.path) as (process, _):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        with folder.claim() as ours:
            assert not ours


def test_a_zombie_owns_nothing(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    with owner(folder.path) as (process, _):
        process.kill()
        end = time.monotonic() + 10
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < end
        with folder.claim() as ours:
            assert ours


UNSHARE = (["unshare", "-p", "-f", "--mount-proc"], ["unshare", "-p", "-f"], ["unshare", "-U", "-r", "-p", "-f"])


def allowed(words):
    return shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize("words", UNSHARE, ids=" ".join)
def test_two_pid_namespaces_have_one_owner(tmp_path, words):
    """As two containers of one host name: process numbers say nothing, each sees its own."""
    if not allowed(words):
        pytest.skip("no such namespaces here")
    folder = RunFolder(tmp_path / "runs" / "a")
    with owner(folder.path, *words) as (_, first), owner(folder.path, *words) as (_, second):
        assert (first, second) == ("ours", "not ours")
        with folder.claim() as third:
            assert not third


def test_a_run_that_nobody_leased_can_be_finished_and_one_of_others_cannot(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.finish(ROW)
    with owner(tmp_path / "runs" / "b"), pytest.raises(LeaseLost):
        RunFolder(tmp_path / "runs" / "b").finish(ROW)


# --- failures --------------------------------------------------------------------------------------------------------


def test_one_sample_has_no_standard_error(tmp_path):
    words = [w for w in SMALL if "samples" not in w]
    code, _, err = call("experiments.run", *words, "samples=1", "measure.test_samples=1", cwd=tmp_path)
    assert code == 0, err
    (path,) = tmp_path.glob("results/default/runs/*/row.json")
    columns = json.loads(path.read_text())["columns"]
    assert columns["test_loss_se"] is None and columns["gap_se"] is None and columns["excess_se"] is None
    assert math.isfinite(columns["test_loss"]) and math.isfinite(columns["gap"])
    code, out, err = call("experiments.collect", "study=default", cwd=tmp_path)
    assert (code, err) == (0, "") and "1 rows" in out


def made_job(folder):
    class Config:
        student = type("Student", (), {"name": "lrc"})
        rank = samples = steps = seed = 1
        force = False

    made_of = type("Setup", (), {"data_digest": "d"})
    return job.Job(Config(), made_of, "a", folder)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"test_loss": math.nan}, "test_loss is nan after the training; lower optimizer.learning_rate"),
        ({"train_loss": math.inf, "test_loss": 1.0}, "train_loss is inf after"),
        ({"test_loss": 1.0, "object": object()}, "TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_what_fails_after_the_training_is_recorded(tmp_path, monkeypatch, columns, reason):
    monkeypatch.setattr(job.config, "identity", lambda config: {})
    folder = RunFolder(tmp_path / "runs" / "a")
    with folder.claim() as ours, pytest.raises((DivergedError, TypeError)):
        made_job(folder).finish(columns, 1.0, {"measuring": 1.0 * ours})
    assert folder.state() == "failed"
    assert folder.reason().startswith(reason)


def test_undefined_numbers_are_null():
    nan = {"a": math.nan, "lines": [{"b": -math.inf, "c": 1}], "d": "nan"}
    assert job.defined(nan) == {"a": None, "lines": [{"b": None, "c": 1}], "d": "nan"}


# --- state files of any content --------------------------------------------------------------------------------------

CONTENTS = ["", "[]", "null", "{}", "3", '"x"', "{", "\xff", "[" * 100_000, '{"schema": "2"}', '{"schema": 1}',
            '{"jobs": 3}', '{"jobs": [3]}', '{"reason": 3}', '{"token": [], "pid": "x", "process_start": 3}',
            '{"step": "x"}', json.dumps({"schema": "2", **ROW}), json.dumps({"schema": 1, **ROW, "columns": []}),
            json.dumps({"schema": 1, **ROW, "columns": {"lines": [3]}})]  # fmt: skip
FILES = ("runs/b/row.json", "runs/b/job.json", "runs/b/claim.json", "runs/b/failed.json", "runs/b/paused.json",
         "sweeps/x.json", "study.json")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_a_state_file_of_any_content_is_one_line(tmp_path, capsys, monkeypatch, name, content):
    study = Study.of(str(tmp_path), "s")
    study.run("a").finish(ROW)
    study.run("a").note_job(["rank=2"])
    study.run("b").note_job(["rank=3"])
    (study.path / "sweeps").mkdir()
    (study.path / "sweeps" / "good.json").write_text(json.dumps({"schema": 1, "jobs": [["rank=2"], ["rank=3"]]}))
    (study.path / name).write_bytes(content.encode("latin-1"))
    for command_, words in ((status, ["verbose=true"]), (rows, [])):
        monkeypatch.setattr(store, "_told", set())
        monkeypatch.setattr(sys, "argv", ["status", "study=s", f"results_dir={tmp_path}", *words])
        if command_ is status:
            running = name.endswith("claim.json") and content.startswith("{") and len(content) > 1
            assert status.main() == (0 if running else 1)  # an object may be a lease, by its age
        else:
            assert len(rows.collect(study)) == 1
        err = capsys.readouterr().err
        assert all(line.startswith(str(study.path / name)) and "damaged" in line for line in err.splitlines())
        assert len(err.splitlines()) <= 1
    assert study.run("a").state() == "done"
    assert study.run("b").state() in ("missing", "failed", "running")


@pytest.mark.parametrize("main", [status.main, collect.main], ids=["status", "collect"])
def test_words_of_the_sweep_may_be_given_to_commands_that_read_it(tmp_path, monkeypatch, main):
    Study.of(str(tmp_path), "s").run("a").finish(ROW)
    monkeypatch.setattr(sys, "argv", ["x", "study=s", f"results_dir={tmp_path}", f"cache_dir={tmp_path}"])
    assert main() in (0, None)


def test_a_damaged_row_is_made_anew(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    folder.row_path.write_text("[]")
    assert folder.row() is None
    with folder.claim() as ours:
        assert ours
        folder.finish(ROW)
    assert folder.row()["columns"] == ROW["columns"]


def test_text_among_numbers_gives_files_that_agree(tmp_path):
    study = Study.of(str(tmp_path), "s")
    odd = [{"test_loss": 1.5, "n": 1, "flag": True}, {"test_loss": "high", "n": [1, 2], "flag": None},
           {"test_loss": None, "n": {"a": 1}, "flag": False}, {"test_loss": 10**30, "n": "x"}]  # fmt: skip
    for i, columns in enumerate(odd):
        study.run(f"r{i}").finish({**ROW, "run_id": f"r{i}", "config": {"i": i}, "columns": columns | {"rank": i}})
    rows.collect(study)
    csv = pd.read_csv(study.path / "measurements.csv")
    parquet = pd.read_parquet(study.path / "measurements.parquet")
    assert list(csv) == list(parquet) and len(csv) == 4
    for column in csv:
        left, right = ([None if v != v or v is None else str(v) for v in frame[column]] for frame in (csv, parquet))
        assert left == right, column
    assert list(csv["test_loss"].fillna("")) == ["1.5", "high", "", str(10**30)]


# --- left-overs ------------------------------------------------------------------------------------------------------


def test_what_a_kill_left_of_a_done_run_is_removed_at_the_next_start(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    with owner(folder.path) as (process, _):
        store.write_json(folder.row_path, {"schema": 1, **ROW})  # killed after its row, before the rest
        folder.checkpoints_path.mkdir()
        folder.paused_path.write_text("{}")
        folder.tidy()
        assert folder.claim_path.exists() and folder.paused_path.exists()  # it lives
        process.kill()
        process.wait()
        folder.tidy()
    assert {p.name for p in folder.path.iterdir()} == {"row.json"}


KILLED = ["experiments.run", "-m", *SMALL, "rank=2,3,4", "seed=0,1"]


@pytest.mark.slow
@pytest.mark.timeout(kills.PATIENCE)
@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_a_sweep_survives_kills(tmp_path, launcher):
    """Every run once, the undisturbed table, nothing left over."""
    begin = lambda study: kills.start("-m", *KILLED, f"hydra/launcher={launcher}", f"study={study}", cwd=tmp_path)  # noqa: E731
    written = {}

    def table(study):
        assert call("experiments.collect", f"study={study}", cwd=tmp_path)[0] == 0
        return (tmp_path / f"results/{study}/measurements.csv").read_bytes()

    def after(_):
        for path in tmp_path.glob("results/*/runs/*/row.json"):
            assert written.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns

    def check(number):
        after(number)
        assert kills.left_over(tmp_path) == []
        made = table(f"killed{number}")
        if launcher == "basic":  # fused rows depend, in their last digits, on which runs were trained together
            assert made == whole
        else:
            frames = [pd.read_csv(io.BytesIO(x)).select_dtypes("number") for x in (made, whole)]
            np.testing.assert_allclose(*frames, rtol=1e-4, atol=1e-5)

    seconds = kills.undisturbed(begin("whole"))
    whole = table("whole")
    assert len(pd.read_csv(io.BytesIO(whole))) == 6
    kills.spend(lambda number: begin(f"killed{number}"), check, after, 2.0, min(0.8 * seconds, 12.0))


@pytest.mark.slow
@pytest.mark.timeout(kills.PATIENCE)
def test_a_teachers_training_survives_kills(tmp_path):
    """The teacher is the undisturbed one, and the run's row too; a kill leaves no teacher that looks finished."""
    words = [w for w in SMALL if not w.startswith("teacher.steps")] + ["teacher.steps=4000", "teacher.patience=1000"]
    begin = lambda at: kills.start("-m", "experiments.run", *words, f"cache_dir={at}", f"study={at}", cwd=tmp_path)  # noqa: E731

    def made(at):
        (row,) = tmp_path.glob(f"results/{at}/runs/*/row.json")
        return [p.name for p in (tmp_path / at / "teachers").iterdir() if p.is_dir()], json.loads(row.read_text())[
            "columns"
        ]

    def check(number):
        assert kills.left_over(tmp_path) == []
        names, columns = zip(*(made(at) for at in ("whole", f"killed{number}")), strict=True)
        assert names[0] == names[1] and len(names[0]) == 1
        assert columns[0] == columns[1]

    seconds = kills.undisturbed(begin("whole"))
    kills.spend(lambda number: begin(f"killed{number}"), check, lambda _: None, 0.2 * seconds, 1.05 * seconds)


def test_a_row_of_a_newer_version_stops_the_sweep(tmp_path):
    folder = RunFolder(tmp_path)
    folder.row_path.write_text(json.dumps({"schema": 2}))
    with pytest.raises(InputError, match="newer version"):
        folder.row()


def test_a_keeper_falls_back_to_the_checkpoint_before(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    keeper = interrupt.FolderKeeper(folder)
    like = jax.eval_shape(lambda: state(0))
    assert keeper.resume(like) is None
    for step in (5, 10, 15):
        keeper.save(step, 20, state(step))
    lines = "".join(json.dumps({"step": s}) + "\n" for s in (5, 10, 15))
    (folder.path / "metrics.jsonl").write_text(lines + '{"step": ')
    flip_a_bit(folder.checkpoints_path / "step-00000015", random.Random(1))
    found = keeper.resume(like)
    assert int(found.step) == 10
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 10}\n'


@flax.struct.dataclass
class Trained:
    """As a training's state; of the library's own the type checks of these tests refuse what orbax makes on the way."""

    params: Any
    step: Any


def state(step):
    return Trained({"w": jax.numpy.ones(3) * step}, jax.numpy.asarray(step, jax.numpy.int32))


# --- many runs -------------------------------------------------------------------------------------------------------


def test_a_process_of_many_seeds_keeps_few_streams_and_pools():
    source = SyntheticSource(LanguageSpec(vocabulary=4, order=1), 2)
    kept = setup.Setup(source, None)
    for seed in range(setup.MOST_KEPT + 10):
        kept.pool("student", 4, "data", seed)
        kept.once(str(seed), lambda: seed)  # noqa: B023
    assert len(source._drawn) == KEPT_STREAMS
    assert len(kept._pools) == len(kept._shared) == setup.MOST_KEPT
    again = SyntheticSource(source.spec, 2)
    np.testing.assert_array_equal(source.sequences("student", 4, 3), again.sequences("student", 4, 3))


MANY = """
import contextlib, io, sys
from hydra import compose, initialize_config_dir
from experiments.common.paths import CONF
from experiments.run_one import config
from experiments.sweep.local import execute
config.register()
with initialize_config_dir(str(CONF), version_base="1.3", job_name="run"):
    raw = compose("config", overrides=sys.argv[1:])
for seed in range(300):
    cfg = config.typed(raw)
    cfg.seed = seed
    with contextlib.redirect_stderr(io.StringIO()):
        execute(cfg, [f"seed={seed}"])
    if seed in (49, 299):
        print(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1], flush=True)
"""


@pytest.mark.slow
def test_memory_of_many_runs_does_not_grow(tmp_path):
    """Of the tiny bilinear student at the default length, in kB; 0.28 MB a run before streams were limited."""
    words = ["student=bilinear", "teacher=language", "data.order=1", "data.vocabulary=8", "steps=20", "rank=2"]
    words += ["samples=64"]
    made = subprocess.run(
        [sys.executable, "-c", MANY, *words], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    first, last = map(int, made.stdout.split())
    assert last - first < 20_000


def test_reading_many_rows_takes_work_in_proportion(tmp_path):
    def calls(count):
        study = Study.of(str(tmp_path), f"s{count}")
        for i in range(count):
            folder = study.run(f"{i:05d}").path
            folder.mkdir(parents=True)
            row = {"schema": 1, **ROW, "run_id": f"{i:05d}", "config": {"i": i}}
            (folder / "row.json").write_text(json.dumps(row))
        with cProfile.Profile() as profile:
            assert len(rows.load_rows(study)[0]) == count
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(1_200) / calls(300) == pytest.approx(4, rel=0.2)  # 16 by pairs


def test_a_look_reads_a_row_once(tmp_path, monkeypatch):
    study = Study.of(str(tmp_path), "s")
    seen, read = [], []
    monkeypatch.setattr(RunFolder, "row", lambda folder: read.append(folder.path) or ROW)
    for name in "ab":
        study.run(name).path.mkdir(parents=True)
    look = status.Look(study, seen.append)
    for _ in range(3):
        look.summary()
    assert len(seen) == len(read) == 2


@pytest.mark.slow
@pytest.mark.timeout(kills.PATIENCE)
@pytest.mark.parametrize("module", ["figures", "report", "collect"])
def test_pages_and_figures_survive_kills(tmp_path, module):
    """The files are those of an undisturbed start, and nothing is left beside them."""
    design = Design(ranks=(4, 8, 16), samples=(64, 256, 1024, 4096), seeds=3)
    table = gap_table(1, 1, design, np.random.default_rng(0)).assign(claim="generalization")

    def begin(at):
        folder = tmp_path / at / "results" / "s"
        if not folder.exists():
            folder.mkdir(parents=True)
            table.to_csv(folder / "measurements.csv", index=False)
            for i in range(3):
                Study(folder).run(f"r{i}").finish({**ROW, "run_id": f"r{i}", "config": {"i": i}})
        return kills.start("-m", f"experiments.{module}", "study=s", cwd=tmp_path / at)

    def check(number):
        assert kills.bytes_of(tmp_path / f"killed{number}") == whole

    seconds = kills.undisturbed(begin("whole"))
    whole = kills.bytes_of(tmp_path / "whole")
    kills.spend(lambda number: begin(f"killed{number}"), check, lambda _: None, 0.3 * seconds, 1.05 * seconds)
