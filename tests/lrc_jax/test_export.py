"""Students out: folders that stock transformers loads with the same logits, and reference checkpoints in.

Without PyTorch the exported folder is read by our own loader, which test_huggingface.py holds against stock
transformers; the slow tests load it in stock transformers itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from lrc_jax import owners
from lrc_jax.clone import CloneFlags
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, RopeScaling, Weights, forward
from lrc_jax.projections import PROJECTIONS_FILE, read_flags, read_projections, reference_flags
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.teachers.load import load_teacher
from lrc_jax.teachers.tokenizer import Tokenizer
from lrc_jax.training import export
from lrc_jax.training.export import atomic_folder, export_student, write_model

LLAMA = DecoderConfig(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
)
TEACHERS = {
    "llama": LLAMA,
    "llama3": dataclasses.replace(
        LLAMA, rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), tie_word_embeddings=True
    ),
    "mistral": dataclasses.replace(LLAMA, model_type="mistral", head_dim=12),
    "qwen2": dataclasses.replace(LLAMA, model_type="qwen2", qkv_bias=True, tie_word_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, model_type="qwen3", qk_norm=True, head_dim=16),
}
KINDS: dict[str, tuple[str, CloneFlags, StudentOptions]] = {
    "lrc": ("lrc", CloneFlags(10), StudentOptions()),
    "lrc_all_flags": (
        "lrc",
        CloneFlags(9, False, True, True, True, del_layers=(0,), target_rms_norm_eps=3e-4),
        StudentOptions(),
    ),
    "direct": ("direct", CloneFlags(12), StudentOptions()),
    "scratch": ("scratch", CloneFlags(10, del_layers=(1,)), StudentOptions()),
    "svd": ("svd", CloneFlags(12), StudentOptions(init="pca")),
    "factorized": ("factorized", CloneFlags(5), StudentOptions(matrices="all")),
    "factorized_ranks": ("factorized", CloneFlags(8), StudentOptions(allocation="uniform")),
    "factorized_head": ("factorized", CloneFlags(5), StudentOptions(matrices="head")),
}
TOKENS_BT = (np.arange(40).reshape(2, 20) ** 2 + 5) % 37


def frozen_of(teacher: DecoderConfig, rank: int) -> Frozen:
    rng = np.random.default_rng(0)
    shapes = tensor_layout(teacher)

    def numbers(name: str) -> np.ndarray:
        centre = 1.0 if "norm" in name else 0.0
        return (centre + 0.4 * rng.standard_normal(shapes[name])).astype(np.float32)

    basis = np.linalg.qr(rng.standard_normal((teacher.hidden_size, rank)))[0]
    return Frozen(build_weights(teacher, numbers), jnp.asarray(basis, jnp.float32))


def student_of(kind: str, teacher: DecoderConfig) -> tuple[Any, Any, Frozen]:
    """A student whose projections and gains are all away from their start values."""
    name, flags, options = KINDS[kind]
    frozen = frozen_of(teacher, flags.rank)
    student = make_student(name, teacher, flags, options)
    if options.init == "random":
        frozen = dataclasses.replace(frozen, basis_DS=None)
    shapes = jax.eval_shape(student.init, jax.random.key(0), frozen)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray((len(x.shape) == 1) + 0.3 * rng.standard_normal(x.shape), jnp.float32), shapes
    )
    return student, params, frozen


def logits_of(student: Any, params: Any, frozen: Frozen) -> np.ndarray:
    tokens_BT = jnp.asarray(TOKENS_BT, jnp.int32)
    return np.asarray(student.forward(params, frozen, tokens_BT, None).logits_NV)


def small_tokenizer() -> Tokenizer:
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(backend, 0, (1, 4), {"tokenizer_config.json": json.dumps(settings).encode()})


CASES = [("lrc", teacher) for teacher in TEACHERS] + [(kind, "llama") for kind in KINDS if kind != "lrc"]
CASES += [("lrc_all_flags", "llama3"), ("factorized_head", "qwen2")]


@pytest.mark.parametrize(("kind", "teacher"), CASES)
def test_exported_model_computes_the_student(kind: str, teacher: str, tmp_path: Path) -> None:
    student, params, frozen = student_of(kind, TEACHERS[teacher])
    export_student(tmp_path / "out", student, params, frozen, tokenizer=small_tokenizer())
    loaded = load_teacher(tmp_path / "out")
    expected = dataclasses.replace(student.config, model_type=loaded.config.model_type)
    assert loaded.config == expected
    logits = np.asarray(forward(loaded.config, loaded.weights, jnp.asarray(TOKENS_BT, jnp.int32)).logits_NV)
    np.testing.assert_allclose(logits, logits_of(student, params, frozen), atol=5e-5, rtol=1e-5)
    tokenizer = loaded.require_tokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1, 4))
    assert tokenizer.encode("a b").tolist() == [0, 3, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize(("kind", "teacher"), CASES)
def test_stock_transformers_loads_it(kind: str, teacher: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    student, params, frozen = student_of(kind, TEACHERS[teacher])
    export_student(tmp_path / "out", student, params, frozen, tokenizer=small_tokenizer())
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        logits = model(torch.tensor(TOKENS_BT)).logits.reshape(-1, 37).numpy()
    np.testing.assert_allclose(logits, logits_of(student, params, frozen), atol=5e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a b")["input_ids"] == [0, 3, 4]
    assert model.generation_config.eos_token_id == [1, 4]


def test_reference_case(case_folder: Path, tmp_path: Path) -> None:
    """A reference checkpoint in, our export out: the reference's own student logits, in every case, also those that
    the reference could not export rightly. Flags from the JSON and flags from the names agree."""
    teacher = load_teacher(case_folder / "teacher")
    flags = read_flags(case_folder / "expected.json")
    student, params = read_projections(case_folder / PROJECTIONS_FILE, teacher.config, flags)
    inferred, _ = read_projections(case_folder / PROJECTIONS_FILE, teacher.config)
    eps = student.lrc.flags.target_rms_norm_eps
    assert dataclasses.replace(inferred.lrc.flags, target_rms_norm_eps=eps) == student.lrc.flags

    export_student(tmp_path / "out", student, params, Frozen(teacher.weights))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rms_norm_eps"] == flags["target_rms_norm_eps"]
    assert config["num_hidden_layers"] == teacher.config.num_layers - len(flags.get("del_layers", []))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in tensors)
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")}
    assert layers == set(range(config["num_hidden_layers"]))

    exported = load_teacher(tmp_path / "out")
    tokens_BT = jnp.asarray(np.load(case_folder / "input_ids.npy"), jnp.int32)
    logits = np.asarray(forward(exported.config, exported.weights, tokens_BT).logits_NV)
    expected = load_file(case_folder / "expected.safetensors")["student.logits"]
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=2e-5)


def test_an_untied_teacher_with_a_shared_projection_is_not_tied(tmp_path: Path) -> None:
    """The reference's first fault: it would write tie_word_embeddings, and the model would read E_s for H zoom^T."""
    frozen = frozen_of(LLAMA, 10)
    student = make_student("lrc", LLAMA, CloneFlags(10, tie_word_emb_proj=True), StudentOptions())
    params = jax.jit(student.init)(jax.random.key(0), dataclasses.replace(frozen, basis_DS=None))
    export_student(tmp_path / "out", student, params, frozen)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_projections_round_trip(tmp_path: Path) -> None:
    """What an export writes beside the model imports as the same student, flags included."""
    student, params, frozen = student_of("lrc_all_flags", LLAMA)
    export_student(tmp_path / "out", student, params, frozen, provenance={"steps": 3})
    note = json.loads((tmp_path / "out" / "lrc.json").read_text())
    assert note["steps"] == 3 and note["flags"] == reference_flags(student.lrc)
    flags = read_flags(tmp_path / "out" / "lrc.json")
    again, params_again = read_projections(tmp_path / "out" / PROJECTIONS_FILE, LLAMA, flags)
    assert again == student
    for name, x in params.items():
        np.testing.assert_array_equal(x, params_again[name])


def test_dtypes_and_widths(tmp_path: Path) -> None:
    student, params, frozen = student_of("lrc", LLAMA)
    export_student(tmp_path / "out", student, params, frozen, dtype="bfloat16")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    # Width 10 with 3 heads: stock LlamaConfig refuses it, a Mistral without window is the same model.
    assert (config["model_type"], config["sliding_window"]) == ("mistral", None)
    student, params, frozen = student_of("direct", LLAMA)
    export_student(tmp_path / "twelve", student, params, frozen)
    assert json.loads((tmp_path / "twelve" / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(InputError, match="--dtype: 'int8' is unknown"):
        export_student(tmp_path / "no", student, params, frozen, dtype="int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "twelve"]


def test_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail_half_way(overwrite: bool) -> None:
        with atomic_folder(out, overwrite=overwrite) as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way(overwrite=False)
    assert not list(tmp_path.iterdir())
    out.mkdir()  # an empty folder may be filled
    with atomic_folder(out) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(InputError, match="exists and is not empty"), atomic_folder(out):
        pass
    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way(overwrite=True)
    assert (out / "a").read_text() == "1"  # the old one is still there
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in out.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="cannot be made"), atomic_folder(out / "b" / "c"):
        pass


@pytest.mark.parametrize("can", [True, False], ids=["names swapped", "two renames"])
def test_an_old_folder_is_there_until_the_new_one_is(
    can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any moment leaves one of the two: in place, or, where a system swaps no names, the old one beside."""
    out, seen = tmp_path / "out", []
    out.mkdir()
    (out / "a").write_text("old")

    def looked(act: Callable[..., Any], *args: Any) -> Any:
        found = act(*args)
        seen.append(sorted(p.name for p in tmp_path.rglob("[ab]") if p.parent.suffix != ".part"))
        return found

    swap, rename = owners.exchange, Path.rename
    monkeypatch.setattr(export, "exchange", lambda *paths: can and looked(swap, *paths))
    monkeypatch.setattr(Path, "rename", lambda *paths: looked(rename, *paths))
    if can and not swap(tmp_path, tmp_path):
        pytest.skip("no swapping of names here")
    with atomic_folder(out, overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert seen == ([["b"]] if can else [["a"], ["a", "b"], ["b"]])
    assert [p.name for p in out.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_exported_files_can_be_read_by_others(tmp_path: Path) -> None:
    teacher = frozen_of(LLAMA, 4).teacher
    assert isinstance(teacher, Weights)
    write_model(tmp_path, LLAMA, teacher)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def _with(tensors: dict[str, np.ndarray], **changes: Any) -> dict[str, np.ndarray]:
    return {name: x for name, x in (tensors | changes).items() if x is not None}


DAMAGES = {
    "missing": ({"model.layers.1.mlp.zoom_up.weight": None}, r"missing tensors model.layers.1.mlp.zoom_up.weight"),
    "unexpected": ({"model.layers.0.mlp.zoom_x.weight": np.zeros(3, np.float32)}, r"unexpected tensors .*zoom_x"),
    "shape": ({"model.target_norm.weight": np.zeros(3, np.float32)}, r"target_norm.weight has shape \[3\].*\[10\]"),
    "dtype": ({"model.target_norm.weight": np.zeros(10, np.int32)}, r"target_norm.weight is int32; float32"),
    "no clone": ({"model.zoom.weight": None}, r"tensor model.zoom.weight is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_projections_are_one_line(damage: str, tmp_path: Path) -> None:
    student, params, _ = student_of("lrc", LLAMA)
    changes, message = DAMAGES[damage]
    path = tmp_path / "p.safetensors"
    save_file(_with({name: np.asarray(x) for name, x in params.items()}, **changes), path)
    with pytest.raises(InputError, match=message) as caught:
        read_projections(path, student.lrc.teacher)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"p.safetensors: damaged or truncated"):
        read_projections(path, student.lrc.teacher)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_in_out_mlp": True}, r"its tensors say use_in_out_mlp = False, --config says True"),
        ({"del_layers": [1]}, r"--config says del_layers = \[1\]"),
        ({"target_hidden_size": 11}, r"its rank is 10, --config says target_hidden_size = 11"),
        ({"use_in_out_mpl": True}, r"use_in_out_mpl is unknown; did you mean use_in_out_mlp"),
        ({"target_rms_norm_eps": "small"}, r"target_rms_norm_eps is 'small'"),
        ({"use_all_attn": 1}, r"use_all_attn is 1; true or false"),
        ({"del_layers": 1}, r"del_layers is 1; a list"),
        ({"student_attn_from_scratch": True}, r"student_attn_from_scratch is not supported"),
        ({"use_ntp_loss": "no"}, r"use_ntp_loss is 'no'; true or false"),
        ({"use_ntp_los": False}, r"use_ntp_los is unknown; did you mean use_ntp_loss"),
        ({"kl_temperature": 0}, r"kl_temperature is 0; a number above 0"),
        ({"aux_loss_type": "huber"}, r"aux_loss_type is 'huber'; choose one of mseloss"),
        ({"target_hidden_size": "10"}, r"target_hidden_size is '10'; a whole number"),
        ([], r"a JSON object"),
    ],
)
def test_flags_that_contradict_are_one_line(flags: Any, message: str, tmp_path: Path) -> None:
    student, params, _ = student_of("lrc", LLAMA)
    save_file({name: np.asarray(x) for name, x in params.items()}, tmp_path / "p.safetensors")
    for content in (flags, {"flags": flags}):
        (tmp_path / "flags.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_projections(tmp_path / "p.safetensors", student.lrc.teacher, read_flags(tmp_path / "flags.json"))
