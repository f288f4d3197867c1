"""What lies on disk: one flipped bit anywhere is seen, and what the dead left is told from work in progress."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import kills
import numpy as np
import pytest

from lrc_jax import owners, sealed
from lrc_jax.data import text as text_pools
from lrc_jax.data.text import TextSource, read_splits, train_tokenizer
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.training import checkpoint
from lrc_jax.training.activation_cache import cached_activations

FLIPS = 60


def flip_a_bit(folder: Path, rng: random.Random) -> Path:
    """Flip one bit, drawn uniformly over all bytes of a folder's files; the file's times stay as they were."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    sizes = [p.stat().st_size for p in files]
    path = rng.choices(files, sizes)[0] if rng.random() < 0.7 else rng.choice(files)  # small files too
    content, times = bytearray(path.read_bytes()), path.stat()
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return path


def state_of(step: int):
    return {"w": jnp.arange(300.0).reshape(3, 100) + step, "step": jnp.asarray(step)}


def test_no_flipped_bit_of_a_checkpoint_is_accepted(tmp_path, caplog):
    whole = tmp_path / "whole"
    for step in (10, 20):
        checkpoint.save(whole, step, state_of(step), {"steps": 100})
    like = jax.eval_shape(lambda: state_of(0))
    found = checkpoint.restore(whole, like)
    assert found is not None and int(found[0]["step"]) == 20 and found[1] == {"steps": 100}
    rng, files = random.Random(0), set()
    for _ in range(FLIPS):
        hurt = tmp_path / "hurt"
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(whole, hurt)
        files.add(flip_a_bit(hurt / "step-00000020", rng).name)
        caplog.clear()
        state, note = checkpoint.restore(hurt, like)
        np.testing.assert_array_equal(state["w"], state_of(10)["w"])  # the one before, whole
        assert note == {"steps": 100}
        (line,) = [r.message for r in caplog.records if r.name == "lrc_jax.training.checkpoint"]
        assert "step-00000020: damaged" in line and "resumes from step 10" in line and "\n" not in line
        assert checkpoint.saved_steps(hurt) == [10]
    assert "note.json" in files and len(files) > 3


def test_two_damaged_checkpoints_are_the_start(tmp_path, caplog):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state_of(step), {})
        flip_a_bit(tmp_path / f"step-{step:08d}", random.Random(step))
    assert checkpoint.restore(tmp_path, jax.eval_shape(lambda: state_of(0))) is None
    assert [r.message.rsplit(" resumes from ")[1] for r in caplog.records] == [
        "step 10, the checkpoint before it", "the start",
    ]  # fmt: skip
    assert checkpoint.saved_steps(tmp_path) == []


def test_a_checkpoint_of_another_structure_is_one_line(tmp_path):
    checkpoint.save(tmp_path, 1, state_of(1), {})
    with pytest.raises(InputError, match="step-00000001: cannot be resumed"):
        checkpoint.restore(tmp_path, {"other": jax.ShapeDtypeStruct((2,), jnp.float32)})


@pytest.mark.parametrize("change", ["a file more", "a file less", "no note", "another note", "a list"])
def test_other_damage_is_seen(tmp_path, change):
    folder = tmp_path / "x"
    with sealed.sealing(folder, {"a": 1}) as part:
        (part / "data").write_text("d")
    assert sealed.opened(folder) == {"a": 1}
    if change == "a file more":
        (folder / "more").write_text("")
    elif change == "a file less":
        (folder / "data").unlink()
    elif change == "no note":
        (folder / "note.json").unlink()
    elif change == "another note":
        sealed.write_file(folder / "note.json", {"a": 2})
    else:
        (folder / "note.json").write_text("[]")
    with pytest.raises(sealed.DamagedError):
        sealed.opened(folder)


def test_a_failure_while_sealing_leaves_what_was_there(tmp_path):
    folder = tmp_path / "x"
    with sealed.sealing(folder, {"a": 1}):
        pass

    def fails() -> None:
        with sealed.sealing(folder, {"a": 2}) as part:
            (part / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert sealed.opened(folder) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def damage(folder: Path, seed: int) -> None:
    flip_a_bit(folder, random.Random(seed))


def test_a_damaged_activation_cache_is_computed_again(tmp_path, monkeypatch, caplog):
    config = DecoderConfig(20, 16, 24, 2, 4, 2, 4)
    shapes, rng = tensor_layout(config), np.random.default_rng(1)
    weights = build_weights(config, lambda name: rng.standard_normal(shapes[name], np.float32))
    tokens_NT = rng.integers(0, 20, (7, 5)).astype(np.int32)
    get = lambda: cached_activations(tmp_path, config, weights, "d", tokens_NT, ("final",))["final"]  # noqa: E731
    right = np.array(get())
    (folder,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    for seed in range(20):
        damage(folder, seed)
        monkeypatch.setattr("lrc_jax.training.activation_cache._verified", {})  # as another process
        caplog.clear()
        np.testing.assert_array_equal(get(), right)
        assert [r.message.count("the teacher's pass is made again") for r in caplog.records] == [1]
    caplog.clear()
    np.testing.assert_array_equal(get(), right)
    (folder / "final.npy").write_bytes(b"cut")  # seen within a process too
    np.testing.assert_array_equal(get(), right)
    assert len(caplog.records) == 1


def test_damaged_tokens_and_tokenizer_are_made_again(tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} of a text with {i * i} words" for i in range(400)))
    cache = tmp_path / "cache"

    def windows() -> np.ndarray:
        text_pools._read_splits.cache_clear()  # as another process
        splits = read_splits(text, None, cache)
        return TextSource(splits, train_tokenizer(splits, 300, cache), 8).sequences("student", 20)

    right = windows()
    for kind in ("tokens", "tokenizers"):
        (folder,) = [p for p in (cache / kind).iterdir() if p.is_dir()]
        for seed in range(10):
            damage(folder, seed)
            caplog.clear()
            np.testing.assert_array_equal(windows(), right)
            assert [r.message.count("made again") for r in caplog.records] == [1]


def child(code: str, *, start: bool = True, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    process = subprocess.Popen([*prefix, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if start:
        assert process.stdout is not None and process.stdout.readline().strip() == "there"
    return process


HOLDS = """
import sys, time
from pathlib import Path
from lrc_jax import owners
part = owners.part_of(Path({folder!r}) / "row.json")
part.{make}
print("there", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("make", ["write_text('')", "mkdir()"])
def test_parts_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path, make):
    living = child(HOLDS.format(folder=str(tmp_path), make=make))
    dead = child(HOLDS.format(folder=str(tmp_path), make=make))
    dead.kill()
    try:
        # A process that ended and that nobody has asked for yet is a zombie: dead too.
        assert Path(f"/proc/{dead.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z" or time.sleep(0.5) is None
        (tmp_path / ".other.part").write_text("somebody's")
        assert len(list(tmp_path.glob(".row.json.*"))) == 2
        owners.clear_parts(tmp_path)
        (left,) = tmp_path.glob(".row.json.*")
        assert f"-{living.pid}-" in left.name
        assert (tmp_path / ".other.part").exists()
    finally:
        dead.wait()
        living.kill()
        living.wait()
        for process in (dead, living):
            process.stdout.close()


def test_parts_of_another_machine_go_by_age(tmp_path):
    name = f".x.0123abcd-{os.getpid()}-1.part"
    (tmp_path / name).write_text("")
    owners.clear_parts(tmp_path)
    assert (tmp_path / name).exists()
    old = time.time() - owners.FOREIGN - 10
    os.utime(tmp_path / name, (old, old))
    owners._cleared.clear()
    owners.clear_parts(tmp_path)
    assert not (tmp_path / name).exists()


def test_a_stopped_process_lives_and_a_recycled_number_does_not():
    process = child("import time\nprint('there', flush=True)\ntime.sleep(60)")
    try:
        name = f"{owners.machine()}-{process.pid}-{owners.start(process.pid)}"
        assert owners.is_dead(name) is False
        process.send_signal(signal.SIGSTOP)
        assert owners.is_dead(name) is False
        assert owners.is_dead(f"{owners.machine()}-{process.pid}-1") is True
        assert owners.is_dead(f"01234567-{process.pid}-1") is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert owners.is_dead(name) is True


@pytest.mark.slow
@pytest.mark.timeout(kills.PATIENCE)
def test_a_distillation_survives_kills(teacher_folder, text_file, tmp_path):
    """What it exports is what an undisturbed one does, in place of an older folder that is whole until then. Nothing is
    left beside it: neither of its training nor of its cache of activations."""

    def begin(name, rank=4):
        words = ["--teacher", teacher_folder, "--text", text_file, "--rank", rank, "--steps", 2000, "--overwrite"]
        words += ["--sequence-length", 8, "--batch-size", 4, "--out", tmp_path / name / "out"]
        words += ["--activation-cache", tmp_path / name / "cache"]
        if name not in ("whole", "old") and not (tmp_path / name).exists():
            shutil.copytree(tmp_path / "old" / "out", tmp_path / name / "out")
        return kills.start("-m", "lrc_jax", "distill", *words, cwd=tmp_path)

    def content(name):
        return kills.bytes_of(tmp_path / name, ".safetensors", ".npy", ".jsonl")

    def names(name):
        return {p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*")}

    def out(name):
        return kills.bytes_of(tmp_path / name / "out", ".safetensors", ".jsonl")

    kills.end(begin("old", 2))
    seconds = kills.undisturbed(begin("whole"))
    kinds = [out("old"), out("whole")]

    def after(number):
        assert out(f"killed{number}") in kinds

    def check(number):
        assert names(f"killed{number}") == names("whole")
        assert content(f"killed{number}") == content("whole")

    kills.spend(lambda number: begin(f"killed{number}"), check, after, 0.3 * seconds, 0.8 * seconds)


ACTIVATIONS = """
import sys
from pathlib import Path
import numpy as np
from lrc_jax.model import DecoderConfig
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.training.activation_cache import cached_activations
config = DecoderConfig(20, 16, 24, 2, 4, 2, 4)
shapes, rng = tensor_layout(config), np.random.default_rng(1)
weights = build_weights(config, lambda name: rng.standard_normal(shapes[name], np.float32))
tokens = rng.integers(0, 20, (4000, 8)).astype(np.int32)
cached_activations(Path(sys.argv[1]), config, weights, "d", tokens, ("final", "logits"), batch_size=1)
"""


@pytest.mark.slow
@pytest.mark.timeout(kills.PATIENCE)
def test_an_activation_cache_survives_kills(tmp_path):
    begin = lambda name: kills.start("-c", ACTIVATIONS, tmp_path / name, cwd=tmp_path)  # noqa: E731

    def after(number):
        cache = tmp_path / f"killed{number}"
        for folder in cache.iterdir() if cache.exists() else []:
            assert folder.name.endswith(".part") or kills.bytes_of(folder) == kills.bytes_of(whole)

    def check(number):
        assert kills.bytes_of(tmp_path / f"killed{number}") == kills.bytes_of(whole.parent)

    seconds = kills.undisturbed(begin("whole"))
    (whole,) = (tmp_path / "whole").iterdir()
    kills.spend(lambda number: begin(f"killed{number}"), check, after, 0.3 * seconds, 1.05 * seconds)


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, link = tmp_path / "numbers.json", tmp_path / "link.json"
    owners.write_whole(target, "old")
    link.symlink_to(target)
    owners.write_whole(link, "new")
    assert (target.read_text(), link.is_symlink()) == ("new", True)
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"numbers.json: cannot be written \(No space left on device\)"):
        owners.write_whole(target, "half")
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "numbers.json"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be written"):
        owners.write_whole(tmp_path / "nowhere" / "numbers.json", "{}")
    owners.write_whole(Path("/dev/null"), "{}")
    assert Path("/dev/null").is_char_device()
