"""The commands as a user runs them: what they write, how they fail, and that a killed distillation goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lrc_jax.__main__ import exact_products, main
from lrc_jax.errors import InputError
from lrc_jax.model import forward
from lrc_jax.teachers.load import load_teacher
from lrc_jax.training import checkpoint
from lrc_jax.training.distill import DistillSettings, distill, prepare, training_folder, with_reference_losses


def settings(teacher: Path, text: Path, **changes: Any) -> DistillSettings:
    base = {"rank": 8, "steps": 40, "batch_size": 2, "sequence_length": 8, "learning_rate": 3e-3}
    return DistillSettings(teacher=str(teacher), text=str(text), **(base | changes))


FLAGS = {
    "kl_temperature": 40.0,
    "aux_loss_type": "l1loss",
    "aux_loss_scale_factor": 0.2,
    "use_aux_loss": True,
    "use_ntp_loss": False,
    "use_logits_loss": True,
    "use_attn_map": False,
}


def test_loss_flags_of_the_reference_decide_the_training(teacher_folder: Path, text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "FLAGS.json"
    file.write_text(json.dumps(FLAGS))
    prepared = prepare(settings(teacher_folder, text_file, flags=str(file)))
    found = prepared.settings
    assert (found.kl_temperature, found.clone_distance, found.clone_weight) == (40.0, "l1loss", 0.2)
    assert (found.ce_weight, found.kl_weight) == (0.0, 1.0)
    objective = prepared.objective
    assert (objective.clone, objective.kl, objective.ce, objective.distance) == (True, True, False, "l1loss")
    file.write_text(json.dumps({"flags": FLAGS | {"use_aux_loss": False}}))
    assert with_reference_losses(settings(teacher_folder, text_file, flags=str(file))).clone_weight == 0


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        ({"kl_temperature": 40}, {"kl_temperature": 2.0}, r"--kl-temperature: 2.0, but .*FLAGS.json asks for 40.0"),
        ({"use_ntp_loss": True}, {"ce_weight": 0.0}, r"--ce-weight: 0.0, but .*FLAGS.json says use_ntp_loss = true"),
        ({"use_attn_map": True}, {}, r"FLAGS.json: use_attn_map is not supported"),
        ({"check_data_cls_loss": True}, {}, r"FLAGS.json: check_data_cls_loss is not supported"),
    ],
)
def test_loss_flags_that_cannot_be_honoured_are_refused(
    flags: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "FLAGS.json"
    file.write_text(json.dumps(flags))
    with pytest.raises(InputError, match=message):
        with_reference_losses(settings(tmp_path, tmp_path, flags=str(file), **options))


def test_distill_and_generate(
    teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    command = ["distill", "--teacher", str(teacher_folder), "--text", str(text_file), "--rank", "8", "--steps", "20"]
    options = ["--batch-size", "2", "--sequence-length", "8", "--out", str(out)]
    assert main([*command, *options]) == 0
    captured = capsys.readouterr()
    assert "held-out loss" in captured.out and "step 20/20" in captured.err and "s left" in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    rows = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["total"] < rows[0]["total"]
    note = json.loads((out / "lrc.json").read_text())
    assert note["loss_after"] < note["loss_before"] and note["flags"]["target_hidden_size"] == 8
    assert load_teacher(out).config.hidden_size == 8

    assert main([*command, *options]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["generate", "--model", str(out), "--prompt", "w1 w2", "--tokens", "4"]) == 0
    assert len(capsys.readouterr().out.split()) == 6

    # The projections beside the model export to the same model, and training resumes from them.
    again = tmp_path / "again"
    projections = ["--projections", str(out / "projections.safetensors"), "--config", str(out / "lrc.json")]
    assert main(["export", "--teacher", str(teacher_folder), *projections, "--out", str(again)]) == 0
    first, second = load_file(out / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert main([*command, *options[:-1], str(tmp_path / "more"), *projections, "--student", "lrc"]) == 0
    more = json.loads((tmp_path / "more" / "lrc.json").read_text())
    assert more["loss_before"] == pytest.approx(note["loss_after"], abs=1e-6)


def test_clone_losses_that_dwarf_the_others_are_told_about(
    teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As raw ones of a pretrained teacher do; the default does not."""
    raw = {"clone_distance": "mseloss", "clone_weight": 1e6}
    for name, changes, warnings in (("raw", raw, 1), ("default", {}, 0)):
        distill(settings(teacher_folder, text_file, steps=4, **changes), tmp_path / name)
        assert capsys.readouterr().err.count("use --clone-distance normalised") == warnings


def test_a_killed_run_goes_on_bit_for_bit(teacher_folder: Path, text_file: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chosen = settings(teacher_folder, text_file)
    distill(chosen, whole)
    with pytest.raises(KeyboardInterrupt):
        distill(chosen, parts, stop_after=lambda step: step >= 14)
    assert not parts.exists()
    work = tmp_path / "parts.training"
    assert checkpoint.saved_steps(work) == [12, 14]
    # A kill during a save leaves a part, and one between log and checkpoint leaves a row too many.
    (work / "step-00000099").mkdir()
    with (work / "losses.jsonl").open("a") as file:
        file.write('{"step": 15}\n')
    with pytest.raises(InputError, match=r"parts.training: holds an interrupted run with another seed \(0\)"):
        distill(settings(teacher_folder, text_file, seed=1), parts)
    distill(chosen, parts)
    assert not work.exists()
    assert (whole / "losses.jsonl").read_text() == (parts / "losses.jsonl").read_text()
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_a_training_whose_result_is_written_leaves_nothing(tmp_path: Path) -> None:
    """A kill between the renaming of the result and the end is seen at the next start; other trainings stay."""
    out, work = tmp_path / "out", tmp_path / "out.training"
    for name, kept in (("losses of another", True), ("losses", False)):
        for folder, text in ((out, "losses"), (work, name)):
            folder.mkdir(exist_ok=True)
            (folder / "losses.jsonl").write_text(text)
        with pytest.raises(InputError, match="exists and is not empty"):
            training_folder(out, overwrite=False)
        assert work.exists() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "kind",
    [
        "direct",
        "factorized",
        pytest.param("scratch", marks=pytest.mark.slow),
        pytest.param("svd", marks=pytest.mark.slow),
    ],
)
def test_every_student(kind: str, teacher_folder: Path, text_file: Path, tmp_path: Path) -> None:
    report = distill(settings(teacher_folder, text_file, student=kind, steps=4), tmp_path / "out", dtype="bfloat16")
    loaded = load_teacher(tmp_path / "out")
    assert loaded.config.hidden_size == (16 if kind == "factorized" else 8)
    assert np.isfinite(report["loss_after"])
    tokens_BT = jax.numpy.arange(8)[None]
    assert np.isfinite(forward(loaded.config, loaded.weights, tokens_BT).logits_NV).all()


BAD = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "no such teacher": (["export", "--teacher", "nowhere", "--projections", "p", "--out", "o"], "nowhere: does not"),
    "unknown option": (["distill", "--ranks", "3"], "required"),
    "rank": (["distill", "TEXT", "--rank", "0"], "--rank: 0 is less than 1"),
    "rank too large": (["distill", "TEXT", "--rank", "17"], r"rank: 17 is outside 1..16"),
    "not a number": (["distill", "TEXT", "--rank", "x"], "invalid int value: 'x'"),
    "too long": (["distill", "TEXT", "--rank", "4", "--sequence-length", "64"], "64 is longer than the 32 tokens"),
    "no text": (["distill", "NOTEXT", "--rank", "4"], "does not exist"),
    "samples": (["distill", "TEXT", "--rank", "4", "--samples", "999999"], "samples: 999999 asked"),
    "output is a file": (["distill", "TEXT", "--rank", "4", "--out", __file__, "--overwrite"], "is a file; choose"),
    "no folder": (
        ["plan", "TEACHER", "--rank", "4", "--tokens", "1e6", "--json", "/nowhere/plan.json"],
        "/nowhere/plan.json: cannot be written (No such",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, message = BAD[case]
    common = ["--teacher", str(teacher_folder), "--steps", "2", "--sequence-length", "8", "--out", str(tmp_path / "o")]
    argv: list[str] = []
    for word in given:
        if word in ("TEXT", "NOTEXT"):
            argv += [*common, "--text", str(text_file) if word == "TEXT" else "nowhere.txt"]
        else:
            argv += ["--teacher", str(teacher_folder)] if word == "TEACHER" else [word]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_text_without_validation_is_refused_before_training(
    teacher_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text(text_file.read_text())
    (tmp_path / "test.txt").write_text(" ".join(["w1"] * 9))  # one sequence: nothing is left for validation
    with pytest.raises(InputError, match="no sequence of 8 tokens for validation"):
        distill(settings(teacher_folder, tmp_path), tmp_path / "out")
    (tmp_path / "test.txt").write_text(" ".join(["w1"] * 40))  # one document is enough: its halves serve
    assert prepare(settings(teacher_folder, tmp_path)).pools.test.size == 2


def test_teacher_without_tokenizer(teacher_folder: Path, text_file: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((teacher_folder / name).read_bytes())
    with pytest.raises(InputError, match=r"no tokenizer.json there"):
        distill(settings(tmp_path, text_file), tmp_path / "out")


def test_plan(teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--teacher", str(teacher_folder), "--rank", "8", "--tokens", "1e6"]) == 0
    assert "FLOPs" in capsys.readouterr().out


def test_products_are_exact_unless_asked_otherwise():
    """On a GPU JAX's own default would be TF32."""
    before = jax.config.values["jax_default_matmul_precision"]
    try:
        for given, used in ((None, "highest"), ("tensorfloat32", "tensorfloat32")):
            jax.config.update("jax_default_matmul_precision", given)
            exact_products()
            assert jax.config.values["jax_default_matmul_precision"] == used
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize("asked", [["--help"], ["distill", "--help"]])
def test_help_is_there_before_jax_is_loaded(asked):
    code = f"""import contextlib, sys
from lrc_jax.__main__ import main
with contextlib.suppress(SystemExit):
    main({asked})
assert "jax" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
