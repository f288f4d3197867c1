"""`import lrc_jax` as a user of the library meets it, and that it trains what the command trains."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest
from commands import ROOT
from safetensors.numpy import load_file

import lrc_jax as lrc
from lrc_jax.__main__ import _parser, main
from lrc_jax.errors import in_python
from lrc_jax.teachers.huggingface import flatten_weights
from lrc_jax.training.distill import DistillSettings

SHORT: dict[str, Any] = {"steps": 20, "batch_size": 2, "sequence_length": 8, "learning_rate": 3e-3}
NOTEBOOK = ROOT / "docs" / "examples" / "clone_and_judge.ipynb"


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> lrc.Teacher:
    return lrc.load_teacher(teacher_folder)


@pytest.fixture(scope="module")
def run(teacher: lrc.Teacher, text_file: Path) -> lrc.Run:
    return lrc.train(lrc.LowRankClone.of(teacher, rank=8), text_file, **SHORT, progress=False)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_the_import_is_light_and_every_name_is_there():
    code = "import sys; old = set(sys.modules); import lrc_jax; print(*(set(sys.modules) - old)); print(dir(lrc_jax))"
    loaded, names = python(code).splitlines()
    assert not {"jax", "numpy", "pandas", "importlib.metadata"} & set(loaded.split())
    assert set(lrc.__all__) == set(lrc._HOMES)
    for name in (*lrc.__all__, "__version__"):
        assert f"'{name}'" in names and getattr(lrc, name)
    with pytest.raises(AttributeError, match="module 'lrc_jax' has no attribute 'nothing'"):
        _ = lrc.nothing


def test_no_module_hides_a_name_once_it_is_imported():
    assert not {module.name for module in pkgutil.iter_modules(lrc.__path__)} & set(lrc.__all__)


def test_the_version_is_the_distribution_s_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lrc, "DISTRIBUTION", "no-such-distribution")
    assert lrc._version() == "0+unknown"


def test_the_library_trains_what_the_command_writes(
    run: lrc.Run, teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["distill", "--teacher", str(teacher_folder), "--text", str(text_file), "--rank", "8"]
    options = [word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*command, *options, "--out", str(tmp_path / "command")]) == 0
    assert lrc.export(run, tmp_path / "library") == tmp_path / "library"
    assert f"held-out loss {run.losses.before:.4f} -> {run.loss:.4f} nats/token" in capsys.readouterr().out
    command_out, library_out = tmp_path / "command", tmp_path / "library"
    assert sorted(p.name for p in command_out.iterdir()) == sorted(p.name for p in library_out.iterdir())
    for path in library_out.iterdir():
        if path.name != "lrc.json":
            assert path.read_bytes() == (command_out / path.name).read_bytes(), path.name
    notes = [json.loads((folder / "lrc.json").read_text()) for folder in (command_out, library_out)]
    for note in notes:
        del note["tokens_per_second"], note["peak_rss_mb"]
    assert notes[0] == notes[1]
    assert run.losses.after < run.losses.before


def test_history_is_that_of_losses_jsonl(run: lrc.Run, tmp_path: Path):
    rows = [json.loads(line) for line in (run.export(tmp_path / "out") / "losses.jsonl").read_text().splitlines()]
    frame = run.history.to_frame()
    assert frame.to_dict("records") == rows and len(run.history) == len(rows) == 20
    assert run.history.total[-5:].mean() < run.history.total[:5].mean()
    assert "20 steps" in repr(run.history)


def test_the_student_is_a_model(run: lrc.Run, teacher: lrc.Teacher, text_file: Path, tmp_path: Path):
    """It writes, is measured, comes back from its folder as it was, and can be a teacher."""
    student, text = run.student, "w1 w2"
    more = student.generate(text, 4)
    assert more.startswith(text) and len(more.split()) == 6
    assert lrc.generate(run, text, 4) == more
    assert lrc.evaluate(run, text_file, sequence_length=8) == run.loss
    assert student.loss(text_file, sequence_length=8) == run.loss
    assert lrc.evaluate(teacher, text_file, sequence_length=8) == run.losses.teacher

    loaded = lrc.load_teacher(run.export(tmp_path / "student"))
    assert loaded.config == student.config
    kept, read = (flatten_weights(m.config, m.weights) for m in (student, loaded))
    assert kept.keys() == read.keys() == load_file(tmp_path / "student" / "model.safetensors").keys()
    for name in kept:
        np.testing.assert_array_equal(kept[name], read[name])
    assert lrc.generate(loaded, text, 4) == more
    assert lrc.evaluate(loaded, text_file, sequence_length=8) == run.loss

    smaller = lrc.train(lrc.LowRankClone.of(student, 4), text_file, **SHORT | {"steps": 2}, progress=False)
    assert smaller.losses.teacher == run.loss and smaller.student.config.hidden_size == 4


def test_bfloat16_is_written_and_a_folder_is_not_overwritten_unasked(run: lrc.Run, tmp_path: Path):
    out = run.export(tmp_path / "out", "bfloat16")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with pytest.raises(lrc.InputError, match=r"choose another out or give overwrite=True$"):
        run.export(out)
    run.export(out, overwrite=True)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


def test_it_shows_itself_briefly_and_escaped(run: lrc.Run, teacher: lrc.Teacher, monkeypatch: pytest.MonkeyPatch):
    for thing in (run, run.student, teacher, lrc.LowRankClone, lrc.LowRankClone.of(teacher, 8)):
        assert len(repr(thing)) < 200 and "\n" not in repr(thing)
    assert f"{run.loss:.4f}" in repr(run)
    object.__setattr__(run.prepared.teacher, "source", Path("<b>&"))
    try:
        shown = run._repr_html_()
    finally:
        object.__setattr__(run.prepared.teacher, "source", teacher.source)
    assert "&lt;b&gt;&amp;" in shown and "<b>" not in shown and f"{run.loss:.4f}" in shown


@pytest.mark.parametrize("kind", ["direct", "svd", pytest.param("factorized", marks=pytest.mark.slow)])
def test_other_students_are_chosen_alike(kind: str, teacher: lrc.Teacher, text_file: Path):
    chosen = lrc.student_of(teacher, kind, rank=8)
    assert chosen.config.hidden_size == (16 if kind == "factorized" else 8)
    run = lrc.train(chosen, text_file, **SHORT | {"steps": 2}, progress=False)
    assert len(run.history) == (0 if kind == "svd" else 2)
    assert (run.loss == run.losses.before) == (kind == "svd")


def test_tokens_in_place_of_a_text(teacher: lrc.Teacher, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    train, test, valid = (rng.integers(0, 20, (n, 9)) for n in (30, 40, 5))
    clone = lrc.LowRankClone.of(teacher, 8)
    options = {"steps": 3, "batch_size": 2, "progress": False}
    run = lrc.train(clone, lrc.Pools.of(train, test, valid), **options)
    assert run.prepared.settings.sequence_length == 8 and np.isfinite(run.losses.validation)
    # All of the test counts, not the first 32 sequences as of a text.
    assert lrc.evaluate(teacher, lrc.Pools.of(train, test)) == run.losses.teacher
    assert lrc.evaluate(teacher, lrc.Pools.of(train, test[:32])) != run.losses.teacher
    assert lrc.train(clone, lrc.Pools.of(train, test), **options).losses.validation is None
    assert lrc.Pools.of(train, test).digest != lrc.Pools.of(train[::-1], test).digest

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what a user meets, who has no import hook
    for bad, message in (
        (lambda: lrc.Pools.of(train[0], test), r"train: an array of int64 \[9\]; integers"),
        (lambda: lrc.Pools.of(train, test + 0.5), r"test: an array of float64"),
        (lambda: lrc.Pools.of(train, test[:, :5]), "test: 5 tokens per sequence; give all pools one length"),
        (lambda: lrc.train(clone, lrc.Pools.of(train, test + 3), steps=1), r"^text: token 22 is outside 0\.\.19"),
        (lambda: lrc.evaluate(teacher, lrc.Pools.of(train, test - 1)), "^text: token -1 is outside"),
        (lambda: lrc.train(clone, lrc.Pools.of(train, test), steps=1, samples=31), "^samples: 31 asked, there are 30"),
    ):
        with pytest.raises(lrc.InputError, match=message):
            bad()


def test_errors_name_arguments_here_and_flags_in_the_command(
    teacher: lrc.Teacher, teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """One check, two voices."""
    short = tmp_path / "short"
    short.mkdir()
    for name, text in (("train", text_file.read_text()), ("valid", text_file.read_text()), ("test", "w1 w2")):
        (short / f"{name}.txt").write_text(text)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"rank": 0}, "rank: 0 is less than 1", "--rank: 0 is less than 1"),
        ({"batch_size": 0}, "batch_size: 0 is less than 1", "--batch-size: 0 is less than 1"),
        (
            {"learning_rate": 0.0},
            "learning_rate and kl_temperature: must be above 0",
            "--learning-rate and --kl-temperature: must be above 0",
        ),
        (
            {"clone_distance": "x"},
            "clone_distance: 'x' is unknown; choose one of ",
            "--clone-distance: 'x' is unknown; choose one of ",
        ),
        (
            {"text": short},
            f"text: {short} has no sequence of 8 tokens to test on; give more text or a lower sequence_length",
            f"--text: {short} has no sequence of 8 tokens to test on; give more text or a lower --sequence-length",
        ),
    ]
    for changes, library, command in cases:
        chosen = {"text": text_file, "rank": 8} | SHORT | changes
        options = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        assert main(["distill", "--teacher", str(teacher_folder), *options, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith(f"error: {command}")
        with pytest.raises(lrc.InputError) as caught:
            lrc.train(lrc.LowRankClone.of(teacher, chosen.pop("rank")), chosen.pop("text"), **chosen)
        assert str(caught.value).startswith(library)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: lrc.LowRankClone.of(t, 17), "rank: 17 is outside 1..16"),
        (lambda t: lrc.LowRankClone.of(t, 4, "middle"), "init: 'middle' is unknown"),
        (lambda t: lrc.student_of(t, "clone", rank=4), "kind: 'clone' is unknown; choose one of lrc, direct"),
        (lambda t: lrc.student_of(t, "factorized", rank=4, matrices="some"), "matrices: 'some' is unknown"),
        (lambda t: lrc.train(lrc.LowRankClone.of(t, 4), "nowhere", steps=1, sequence_length=8), "text: nowhere does"),
        (lambda t: lrc.evaluate(t, "nowhere"), "sequence_length: 256 is longer than the 32 tokens"),
        (lambda t: lrc.generate(t, "w1", 0), "tokens: 0 is less than 1"),
        (lambda t: lrc.generate(t, "w1", top_p=0.0), "top_p: 0.0 is outside"),
        (lambda t: lrc.LowRankClone.of(t, 4, projections="p", flags="f"), "f: cannot be read"),
    ],
)
def test_what_does_not_fit_is_told_at_once(call: Any, message: str, teacher: lrc.Teacher):
    with pytest.raises(lrc.InputError) as caught:
        call(teacher)
    assert str(caught.value).startswith(message)


def test_only_names_of_flags_are_respelt():
    for text in (
        "a--b/c: x",
        "/tmp/--out/x: is a file",
        "--out/x: is a file",
        "--3: x",
        "student.txt: x",
        "a - b -- c",
    ):
        assert in_python(text) == text
    assert in_python("p: choose another --out or give --overwrite") == "p: choose another out or give overwrite=True"
    assert in_python("x: its tensors say a, --config says b") == "x: its tensors say a, flags says b"


def test_progress_is_told_where_asked_and_a_warning_warns(
    teacher: lrc.Teacher, text_file: Path, capsys: pytest.CaptureFixture[str]
):
    clone, lines = lrc.LowRankClone.of(teacher, 8), []
    lrc.train(clone, text_file, **SHORT | {"steps": 2}, progress=lines.append)
    assert capsys.readouterr().err == ""
    assert lines[0].startswith("lrc of rank 8") and lines[-1].startswith("step 2/2")
    lrc.train(clone, text_file, **SHORT | {"steps": 2})
    assert "step 2/2" in capsys.readouterr().err
    raw = {"clone_distance": "mseloss", "clone_weight": 1e6, "progress": False}
    with pytest.warns(UserWarning, match="^the clone losses.* use clone_distance normalised or lower clone_weight$"):
        lrc.train(clone, text_file, **SHORT | {"steps": 2}, **raw)


def test_without_out_nothing_is_written_and_with_it_an_interrupted_call_goes_on(
    run: lrc.Run, teacher: lrc.Teacher, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    clone, out = lrc.LowRankClone.of(teacher, 8), tmp_path / "out"

    def stop(line: str) -> None:
        if line.startswith("step 12/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lrc.train(clone, text_file, **SHORT, progress=stop)
    assert not list(tmp_path.iterdir())

    with pytest.raises(KeyboardInterrupt):
        lrc.train(clone, text_file, **SHORT, out=out, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    steps: list[str] = []
    again = lrc.train(clone, text_file, **SHORT, out=out, progress=steps.append)
    assert steps[1].startswith("step 13/20")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert again.loss == run.loss and again.history.to_frame().equals(run.history.to_frame())
    assert lrc.evaluate(lrc.load_teacher(out), text_file, sequence_length=8) == run.loss


def test_every_argument_arrives(teacher: lrc.Teacher, text_file: Path):
    changed: dict[str, Any] = {
        "steps": 1,
        "samples": 20,
        "batch_size": 2,
        "sequence_length": 9,
        "learning_rate": 5e-4,
        "clone_weight": 0.02,
        "clone_distance": "l1loss",
        "kl_weight": 0.5,
        "kl_temperature": 2.0,
        "ce_weight": 0.7,
        "bf16": True,
        "seed": 3,
    }
    machine = lrc.Machine(accumulate=2, remat=True)
    clone = lrc.LowRankClone.of(teacher, 5, "channels")
    run = lrc.train(clone, text_file, **changed, machine=machine, progress=False)
    chosen = {"teacher": str(teacher.source), "text": str(text_file), "rank": 5, "init": "channels"}
    assert run.prepared.settings == DistillSettings(**chosen, **changed) and run.prepared.machine == machine
    own = {"machine", "student", "text", "text_field", "out", "overwrite", "progress"}
    assert inspect.signature(lrc.train).parameters.keys() - own == changed.keys()


def test_a_choice_can_be_trained_twice(run: lrc.Run, teacher: lrc.Teacher, text_file: Path):
    """Training gives the arrays of its state away; what was prepared stays as it is."""
    before = jax.tree.map(np.array, run.prepared.params)
    again = lrc.train(lrc.LowRankClone.of(teacher, 8), text_file, **SHORT, progress=False)
    assert again.losses == run.losses
    jax.tree.map(np.testing.assert_array_equal, before, run.prepared.start().params)


def test_defaults_are_written_once():
    """The command's own are those of the settings, and so are the library's."""
    words = ["distill", "--teacher", "t", "--text", "t", "--rank", "1", "--steps", "1", "--out", "o"]
    command = vars(_parser().parse_args(words))
    library = inspect.signature(lrc.train).parameters | inspect.signature(lrc.student_of).parameters
    shared = 0
    for name, default in vars(DistillSettings(teacher="t", text="t", rank=1, steps=1)).items():
        assert command[name] == default, name
        if name in library and library[name].default is not inspect.Parameter.empty:
            assert library[name].default == default, name
            shared += 1
    assert shared == 17


@pytest.mark.slow
def test_the_notebook_shows_what_it_says():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    shown = """
import json
last = df[df.samples == 512].groupby("rank").test_loss.mean()
print(json.dumps({"runs": len(df), "falls": bool((last.diff().dropna() < 0).all()), "steps": len(run.history),
    "above": bool(last.iloc[-1] > run.losses.teacher), "verdict": report["optimal_rank"].verdict}))
"""
    told = json.loads(python("\n".join([*code, shown])).splitlines()[-1])
    # Four ranks are one too few for the judge, who says so and refuses to decide.
    assert told == {"runs": 36, "falls": True, "steps": 200, "above": True, "verdict": "UNTESTABLE"}
