"""The workshop end to end: runs, sweeps, kill and resume, errors in one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests" / "reference" / "tied_tieproj_T40"
# A teacher and a pool so small that a run is a second.
SMALL = [
    "teacher.hidden_size=16",
    "teacher.intermediate_size=16",
    "teacher.steps=40",
    "teacher.check_every=20",
    "teacher.pool=512",
    "data.vocabulary=8",
    "sequence_length=6",
    "batch_size=8",
    "steps=20",
    "samples=64",
    "rank=4",
    "measure.test_samples=64",
    "measure.reference_samples=64",
]


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(*arguments, cwd):
    process = command(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a finished sweep of 2 x 2 runs."""
    folder = tmp_path_factory.mktemp("work")
    sweep = ["experiments.run", "-m", *SMALL, "rank=2,4", "seed=0,1", "study=whole"]
    code, out, err = call(*sweep, cwd=folder)
    assert code == 0, err
    assert out.count(" teacher_loss=") == 4
    return folder, sweep


def rows(folder, study="whole"):
    return [json.loads(p.read_text()) for p in sorted((folder / "results" / study / "runs").glob("*/row.json"))]


def test_rows_have_the_table_of_the_contract(workplace):
    folder, _ = workplace
    code, out, _ = call("experiments.collect", "study=whole", cwd=folder)
    assert code == 0
    assert "4 rows" in out
    frame = pd.read_csv(folder / "results/whole/measurements.csv")
    needed = {"rank", "samples", "steps", "seed", "params", "d_in", "d_out", "train_loss", "test_loss", "gap"}
    assert needed <= set(frame.columns)
    assert frame[sorted(needed)].notna().all().all()
    assert (frame["test_loss"] > frame["bayes_loss"]).all()
    parquet = pd.read_parquet(folder / "results/whole/measurements.parquet")
    np.testing.assert_allclose(parquet["gap"], frame["gap"], rtol=1e-8)
    for path in (folder / "results/whole/runs").glob("*/"):
        assert {p.name for p in path.iterdir()} >= {"config.yaml", "metrics.jsonl", "row.json"}
        assert not (path / "claim.json").exists()


def test_running_again_computes_nothing_and_status_says_done(workplace):
    folder, sweep = workplace
    before = {p: p.stat().st_mtime_ns for p in (folder / "results/whole/runs").glob("*/row.json")}
    code, out, _ = call(*sweep, cwd=folder)
    assert code == 0
    assert out.count("already done") == 4
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "results/whole/runs").glob("*/row.json")}
    code, out, _ = call("experiments.watch", "study=whole", cwd=folder)
    assert code == 0
    assert "4/4 runs done, best risk" in out
    assert call(*sweep, "threads=2", cwd=folder)[0] == 0  # the same runs, asked for in other words
    code, out, _ = call("experiments.status", "study=whole", cwd=folder)
    assert code == 0
    assert [line.split("│")[2].strip() for line in out.splitlines() if "sweep-" in line] == ["4", "4"]


def test_killed_and_started_again_gives_the_same_table(workplace):
    """SIGKILL as soon as one run is done; the second start runs the rest; the table equals the uninterrupted one."""
    folder, sweep = workplace
    again = [*sweep[:-1], "study=killed"]
    process = command(*again, cwd=folder)
    deadline = time.monotonic() + 240
    while not rows(folder, "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(rows(folder, "killed"))
    assert 1 <= done < 4
    code, out, err = call("experiments.status", "study=killed", cwd=folder)
    assert code == 1, err
    code, out, err = call(*again, cwd=folder)
    assert code == 0, err
    assert out.count("already done") == done
    for study in ("whole", "killed"):
        assert call("experiments.collect", f"study={study}", cwd=folder)[0] == 0
    whole, killed = (folder / f"results/{s}/measurements.csv" for s in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


IN_PROCESSES = ["+engine=fused", "hydra.launcher.inner.n_jobs=2", "hydra.launcher.max_group_size=3"]


@pytest.mark.parametrize(
    ("study", "engine", "logged", "times"),
    [
        ("fused", ["hydra/launcher=fused"], "4 runs in 2 bundles of 2 to 2", 1),
        pytest.param("fused2", IN_PROCESSES, "2 runs in 1 bundles of 2 to 2", 2, marks=pytest.mark.slow),
    ],
)
def test_fused_sweep_has_the_rows_of_the_basic_one(workplace, study, engine, logged, times):
    """Same ids, same columns, losses within 1e-5; Hydra leaves no folder; a second start computes nothing."""
    if engine is IN_PROCESSES:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra joblib")
    folder, sweep = workplace
    again = [*sweep[:-1], f"study={study}", *engine]
    code, out, err = call(*again, cwd=folder)
    assert code == 0, err
    assert out.count(logged) == times
    for alone, fused in zip(rows(folder), rows(folder, study), strict=True):
        assert alone["run_id"] == fused["run_id"]
        assert alone["columns"].keys() == fused["columns"].keys()
        scale = alone["columns"]["test_loss"]
        for name, value in alone["columns"].items():
            if isinstance(value, float):
                close = pytest.approx(value, rel=1e-5, abs=1e-5 * scale)
                assert fused["columns"][name] == close, name
    assert out.count(" test_loss=") == 4
    assert not (folder / "results" / study / "hydra").exists()
    code, out, _ = call(*again, cwd=folder)
    assert code == 0
    assert out.count("already done") == 4


AS_ON_AN_ACCELERATOR = """
import sys
from lrc_jax.training import together
together.is_vectorised = lambda: True
if "study=small_card" in sys.argv:  # memory for one student
    from experiments.sweep import bundle
    def train_together(config, streams, **options):
        if sum(len(stream.members) for stream in streams) > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
        return together.train_together(config, streams, **options)
    bundle.train_together = train_together
from experiments.common import command
from experiments.run import main
raise SystemExit(command.guarded(main))
"""


@pytest.mark.parametrize(("study", "parts"), [("streams", 0), ("small_card", 3)])
def test_on_an_accelerator_runs_of_several_streams_train_as_one_bundle(workplace, study, parts):
    """Two seeds and two ranks in one program, here on the CPU: the rows are those of the runs alone. Where memory is
    short they are trained in parts."""
    folder, sweep = workplace
    (folder / "as_on_an_accelerator.py").write_text(AS_ON_AN_ACCELERATOR)
    again = ["as_on_an_accelerator", *sweep[1:-1], f"study={study}", "hydra/launcher=fused"]
    code, out, err = call(*again, cwd=folder)
    assert code == 0, err
    assert "4 runs in 1 bundles of 4 to 4" in out
    assert out.count("they are trained in two parts") == parts
    for alone, fused in zip(rows(folder), rows(folder, study), strict=True):
        assert alone["run_id"] == fused["run_id"]
        for name in ("test_loss", "train_loss", "gap", "excess", "start_test_loss"):
            assert fused["columns"][name] == pytest.approx(alone["columns"][name], rel=1e-4, abs=1e-5), name
        assert (folder / "results" / study / "runs" / fused["run_id"] / "metrics.jsonl").stat().st_size > 0


@pytest.mark.slow
def test_what_cannot_be_fused_runs_singly_and_a_bad_run_leaves_the_others(workplace):
    folder, _ = workplace
    small = [s for s in SMALL if not s.startswith("teacher.")]
    bilinear = ["student=bilinear", "teacher=language", "data.order=1", "rank=2,99", "labels=teacher"]
    code, out, err = call(
        "experiments.run", "-m", *small, *bilinear, "study=singly", "hydra/launcher=fused", cwd=folder
    )
    assert code == 2
    assert "rank: 99 is above the vocabulary 8" in err.strip().splitlines()[-1]
    assert "2 of 2 jobs are run singly" in out
    assert len(rows(folder, "singly")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_sigterm_saves_and_the_next_start_goes_on_with_the_same_bits(workplace, launcher):
    """Stopped while it trains: exit code 143, a checkpoint, no row; the second start ends with the bits of a run that
    never stopped."""
    folder, _ = workplace
    run = ["experiments.run", "-m", *SMALL, "steps=150000", f"hydra/launcher={launcher}"]
    process = command(*run, f"study=stopped_{launcher}", cwd=folder)
    runs = folder / f"results/stopped_{launcher}/runs"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        lines = [p for p in runs.glob("*/metrics.jsonl") if p.read_text().count("\n") > 3]
        if lines:
            break
        time.sleep(0.1)
    time.sleep(11)  # so long that saving pays
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    (at,) = runs.glob("[!.]*")
    assert (at / "paused.json").exists()
    assert not (at / "row.json").exists()
    assert not (at / "claim.json").exists()
    _, out, _ = call("experiments.status", f"study=stopped_{launcher}", "verbose=true", cwd=folder)
    assert "resumes from step" in " ".join(out.split())
    assert call(*run, f"study=stopped_{launcher}", cwd=folder)[0] == 0
    assert call(*run, f"study=whole_{launcher}", cwd=folder)[0] == 0
    (stopped,), (whole,) = rows(folder, f"stopped_{launcher}"), rows(folder, f"whole_{launcher}")
    assert stopped["columns"] == whole["columns"]
    texts = [(p / "metrics.jsonl").read_text() for s in ("stopped", "whole")
             for p in (folder / f"results/{s}_{launcher}/runs").glob("[!.]*")]  # fmt: skip
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_four_launchers_at_once_share_a_sweep(workplace):
    """No run is computed twice and none is lost: every run is reported as computed by exactly one launcher."""
    folder, _ = workplace
    sweep = ["experiments.run", "-m", *SMALL, "rank=2,4", "seed=0,1,2,3,4,5", "study=four"]
    launchers = [command(*sweep, f"hydra/launcher={kind}", cwd=folder) for kind in ("basic", "fused") * 2]
    outs = [p.communicate(timeout=280) for p in launchers]
    assert [p.returncode for p in launchers] == [0] * 4, outs
    assert sum(out.count(" gap=") for out, _ in outs) == 12
    assert len(rows(folder, "four")) == 12
    assert call("experiments.status", "study=four", cwd=folder)[0] == 0


def test_a_diverged_run_is_marked_and_the_sweep_goes_on(workplace):
    folder, _ = workplace
    code, out, err = call("experiments.run", "-m", *SMALL, "optimizer.learning_rate=1e6,1e-2", "study=nan", cwd=folder)
    assert code == 1
    assert err.strip().splitlines()[-1].startswith("run failed: loss is nan at step")
    assert "Traceback" not in err
    assert len(rows(folder, "nan")) == 1
    code, out, _ = call("experiments.status", "study=nan", cwd=folder)
    assert code == 1
    assert "failed: " in out
    assert "lower the learning rate" in " ".join(out.split())


@pytest.mark.parametrize("student", ["direct", "scratch", "svd", "factorized", "head", "bilinear"])
def test_every_student_runs(workplace, student):
    folder, _ = workplace
    extra = {
        "head": ["student=factorized", "student.matrices=head", "measure.approximation=true", "clone_weight=0"],
        "bilinear": ["student=bilinear", "teacher=language", "data.order=1"],
    }.get(student, [f"student={student}"])
    small = [s for s in SMALL if student != "bilinear" or not s.startswith("teacher.")]
    code, _, err = call("experiments.run", *small, *extra, f"study={student}", "labels=teacher", cwd=folder)
    assert code == 0, err
    columns = rows(folder, student)[0]["columns"]
    assert columns["test_loss"] > columns["teacher_loss"] - 1e-9
    assert np.isfinite(columns["gap"])


def test_convergence_run_measures_both_sides(workplace):
    folder, _ = workplace
    code, _, err = call(
        "experiments.run", *SMALL, "optimizer=sgd", "measure.convergence=true", "labels=teacher", "measure.pool=256",
        "student.init=fan_in", "student.unit_embedding=true", "study=sgd", cwd=folder,
    )  # fmt: skip
    assert code == 0, err
    columns = rows(folder, "sgd")[0]["columns"]
    assert columns["step_size"] == pytest.approx(0.5 / np.sqrt(20))
    for name in ("grad_norm_sq", "smoothness", "grad_variance", "loss_decrease"):
        assert columns[name] > 0, name


def columns_of(workplace, study, *arguments):
    folder, _ = workplace
    code, _, err = call("experiments.run", *SMALL, *arguments, f"study={study}", cwd=folder)
    assert code == 0, err
    return rows(folder, study)[0]["columns"]


def test_information_is_a_line_a_site(workplace):
    columns = columns_of(
        workplace, "information", "measure.information=true", "measure.information_samples=1024",
        "measure.information_noise=[0.1,0.3]", "loss.clone_target=rotated",
    )  # fmt: skip
    assert {line["site"] for line in columns["lines"]} == {"q", "gate", "mlp_out", "attn_out"}
    for line in columns["lines"]:
        assert 0 < line["mutual_information"] <= line["mi_ceiling"]
        assert line["mutual_information@0.3"] < line["mutual_information"]  # more noise, less information
    folder, _ = workplace
    assert call("experiments.collect", "study=information", cwd=folder)[0] == 0
    assert len(pd.read_csv(folder / "results/information/measurements.csv")) == 4


@pytest.mark.slow
def test_dynamics_compares_with_direct_students(workplace):
    arguments = ["optimizer=sgd", "optimizer.horizon_power=0", "optimizer.learning_rate=0.1", "measure.dynamics=true"]
    plain = columns_of(workplace, "dynamics", *arguments, "student.init=fan_in")
    assert plain["dynamics_divergence"] > 0 < plain["dynamics_baseline"]
    white = columns_of(workplace, "whitened", *arguments, "student.init=fan_in", "measure.whiten=[q]")
    assert white["dynamics.q.cos"] == pytest.approx(1.0, abs=1e-3) != plain["dynamics.q.cos"]
    assert white["dynamics.up.cos"] == pytest.approx(plain["dynamics.up.cos"], abs=1e-4)


def test_cost_and_norms(workplace):
    columns = columns_of(workplace, "cost", "measure.cost=true", "measure.norms=true")
    assert columns["weight_bytes"] < columns["teacher.weight_bytes"]
    assert columns["kv_bytes_per_token"] == columns["teacher.kv_bytes_per_token"]
    assert columns["flops_per_token"] == pytest.approx(columns["flops_per_token_compiler"], rel=0.05)
    assert columns["spectral_norm"] <= columns["frobenius_norm"] <= columns["nuclear_norm"]


def test_certificate_is_a_line_a_configuration(workplace):
    columns = columns_of(workplace, "bound", "measure.certificate=true", "measure.certificate_dimensions=[0,5,-1]")
    assert [line["intrinsic_dimension"] for line in columns["lines"]][:2] == [0, 5]
    for line in columns["lines"]:
        assert line["certificate"] > line["train_bits"]
        assert line["non_vacuous"] == (line["certificate"] < line["unigram"])


def damaged(tmp_path, how):
    """A copy of a small teacher with something wrong."""
    folder = tmp_path / how
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((CASE / "teacher" / name).read_bytes())
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(weights)
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights)
    elif how == "shape":
        tensors["model.norm.weight"] = np.zeros(31, np.float32)
        save_file(tensors, weights)
    elif how == "architecture":
        config["model_type"] = "gpt2"
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "absent":
        weights.unlink()
    return folder


PROGRESS = re.compile(r": compiling$|: \d+/\d+(, \w+ left)?$")  # where the machine is slow
BAD_TEACHERS = {
    "truncated": "model.safetensors: damaged or truncated",
    "missing": "model.layers.1.mlp.up_proj.weight",
    "shape": "model.norm.weight has shape [31]",
    "architecture": "model_type 'gpt2' is not supported",
    "absent": "no *.safetensors file",
}


def one_line(code, err):
    lines = [line for line in err.splitlines() if line.strip() and not PROGRESS.search(line)]
    assert code == 2, err
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize("how", BAD_TEACHERS)
def test_bad_teacher_is_one_line(tmp_path, how):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 400)
    folder = damaged(tmp_path, how)
    code, _, err = call(
        "experiments.run",
        "teacher=huggingface",
        f"teacher.path={folder}",
        "data=text",
        f"data.path={text}",
        cwd=tmp_path,
    )
    assert BAD_TEACHERS[how] in one_line(code, err)


BAD_ARGUMENTS = {
    "rank=0": "rank: 0 is too small",
    "rank=99": "rank: 99 is outside 1..16",
    "samples=0": "samples: 0",
    "batch_size=x": "batch_size",
    "nonsense=1": "nonsense",
    "student.init=fast": "student.init: 'fast' is unknown; choose one of random, fan_in, pca, channels",
    "temperature=0": "temperature: 0.0 must be above 0",
    "optimizer.warmup=100": "optimizer.warmup: 100.0 is too large; give at most 1",
    "optimizer.clip=-1": "optimizer.clip: -1.0 must be above 0",
    "optimizer.b2=1": "optimizer.b2: 1.0 must be below 1",
    "teacher.heads=0": "teacher.heads: 0 is too small",
    "loss.clone_sites=[attn-q]": "loss.clone_sites: attn-q is no clone loss of this student; choose of attn-q-sim-loss",
    "student.matrices=head": "student.matrices: head needs student=factorized, not lrc",
    "optimizer=sgd measure.convergence=true optimizer.clip=1": "measure.convergence takes plain steps",
    "results_dir=/dev/null/x": "/dev/null/x",
    "optimizer.learning_rate=nan": "optimizer.learning_rate: nan is not finite",
    "data=text data.path=empty.txt": "empty.txt: the file is empty",
    "data=text data.path=none.txt": "none.txt does not exist",
    "data=text data.path=short.txt samples=100000": "samples: 100000 asked, the student pool has",
    "student=bilinear": "bilinear and teacher=language belong together",
    "+experiment=nothing": "nothing",
    "teacher=huggingface data=text data.path=short.txt": "path",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(tmp_path, arguments):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("the cat sat on the mat.\n" * 400)
    given = arguments.split()
    kept = [s for s in SMALL if "vocabulary" not in s or "data=text" not in given]
    kept = [s for s in kept if "teacher=huggingface" not in given or not s.startswith("teacher.")]
    code, _, err = call("experiments.run", *kept, *given, cwd=tmp_path)
    assert BAD_ARGUMENTS[arguments] in one_line(code, err)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("experiments.collect", [], "study: missing"),
        ("experiments.collect", ["study=none"], "does not exist"),
        ("experiments.status", ["study=none"], "does not exist"),
        ("experiments.figures", ["study=x", "colour=red"], "colour=red: unknown argument"),
        ("experiments.report", ["study=none"], "does not exist"),
        ("experiments.students", ["study=none"], "does not exist"),
        ("experiments.reproduce", ["study=none"], "choose one of"),
        ("experiments.reproduce", ["study=demo", "jobs=0"], "jobs"),
        ("experiments.reproduce", ["study=demo", "data.path=x"], "data.path needs"),
        ("experiments.reproduce", ["study=full", "parts=planted,wiki"], "the design has no wiki"),
    ],
)
def test_bad_study_arguments_are_one_line(tmp_path, module, arguments, message):
    code, _, err = call(module, *arguments, cwd=tmp_path)
    assert message in one_line(code, err)


@pytest.mark.parametrize("module", ["run", "collect", "status", "watch", "figures", "report", "reproduce", "students"])
def test_help(tmp_path, module):
    code, out, _ = call(f"experiments.{module}", "--help", cwd=tmp_path)
    assert code == 0
    assert "study" in out


def test_one_thread_is_the_default(workplace):
    folder, _ = workplace
    with contextlib.suppress(KeyError):
        assert "intra_op_parallelism_threads" in os.environ["XLA_FLAGS"]
    assert rows(folder)[0]["machine"]["jax"]


@pytest.mark.slow
def test_an_ablation_becomes_a_table(workplace):
    folder, _ = workplace
    sizes = [*SMALL, "measure.test_samples=32", "study=ablation"]
    sweep = [
        "+experiment=ablation",
        "ablation=lrc,direct,no_clone,svd",
        "optimizer.learning_rate=1e-2,3e-2",
        "seed=0,1",
    ]
    code, _, err = call("experiments.run", "-m", *sweep, *sizes, cwd=folder)
    assert code == 0, err
    code, _, err = call("experiments.ablation_table", "study=ablation", cwd=folder)
    assert code == 0, err
    table = pd.read_csv(folder / "results" / "ablation" / "ablation.csv")
    assert sorted(zip(table["match"], table["arm"], strict=True)) == sorted(
        (match, arm) for match in ("tokens", "time") for arm in ("lrc", "direct", "no_clone", "svd")
    )
    assert (table["seeds"] == 2).all() and (table["rates"] == 2).all()
    assert (table["low"] < table["perplexity"]).all() and (table["perplexity"] < table["high"]).all()
    equal = table[table["match"] == "tokens"]
    assert equal["steps"].nunique() == 1
    for kind in ("pdf", "png", "csv"):
        assert (folder / "results" / "ablation" / "figures" / f"ablation.{kind}").stat().st_size > 0


@pytest.mark.slow
def test_where_a_run_is_computed_changes_nothing_and_the_cache_little(workplace):
    folder, _ = workplace
    losses = {}
    two = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    for name, keys in {
        "plain": ["preset=authors"],  # whose losses are plain means, so that parts of a batch add up to the whole
        "mesh": ["preset=authors", "mesh.data=2", "accumulate=2", "remat=true"],
        "cache": ["preset=authors", "teacher_cache=float16"],
        "default": [],
        "in parts": ["accumulate=2"],
    }.items():
        process = subprocess.run(
            [sys.executable, "-m", "experiments.run", *SMALL, *keys, f"study={name}"],
            cwd=folder, env=two, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        row = rows(folder, name)[0]
        losses[name] = row["columns"]["test_loss"], row["run_id"]
    assert losses["mesh"][0] == pytest.approx(losses["plain"][0], abs=1e-5)
    assert losses["mesh"][1] == losses["plain"][1] != losses["cache"][1]
    assert 0 < abs(losses["cache"][0] - losses["plain"][0]) < 1e-3
    assert losses["in parts"][1] != losses["default"][1]  # the normalised loss of a part is another loss
