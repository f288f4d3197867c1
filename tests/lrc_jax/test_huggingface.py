"""Teachers in Hugging Face layout, against logits of stock transformers.

`golden/huggingface.json` holds configurations and a few logits that stock transformers gave for weights made from a
seed, so that a machine without PyTorch checks them too. To write it again after adding an architecture: run
`test_stock_transformers_agrees` with LRC_UPDATE_GOLDEN=1 where torch and transformers are installed. Nothing else is a
reason to update it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models

from lrc_jax.clone import CloneFlags, LowRankClone
from lrc_jax.errors import InputError
from lrc_jax.losses import cross_entropy_per_token
from lrc_jax.model import RopeScaling, forward, rope_inverse_frequencies
from lrc_jax.teachers import hub, huggingface
from lrc_jax.teachers.families import FAMILIES, REFUSED
from lrc_jax.teachers.load import file_digest, load_teacher

GOLDEN = Path(__file__).parent / "golden" / "huggingface.json"
BASE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What is written to config.json, in the keys of transformers 4; transformers 5 writes `rope_parameters` instead.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama3": BASE | {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING},
    "llama_linear": BASE | {"model_type": "llama", "head_dim": 4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral": BASE | {"model_type": "mistral", "head_dim": 12, "sliding_window": None},
    "mistral_window": BASE | {"model_type": "mistral", "sliding_window": 32},
    "qwen2": BASE | {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": BASE | {"model_type": "qwen3", "head_dim": 16, "rope_theta": 1000000.0},
    "smollm3": BASE | {"model_type": "smollm3", "no_rope_layers": [1, 0], "pad_token_id": None, "rope_theta": 5e6},
    "granite": BASE
    | {
        "model_type": "granite",
        "tie_word_embeddings": True,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
}
TOKENS_BT = (np.arange(48).reshape(2, 24) ** 2 + 7) % 41
POSITIONS = (0, 23, 40)  # of the flattened 2 x 24


def seeded_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that depend on the name alone; raw bits, whose stream NumPy promises to keep."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape))) >> np.uint64(40)
    uniform = bits.astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    centre = 1.0 if "norm" in name else 0.0
    return (centre + uniform.reshape(shape) * np.float32(0.4)).astype(np.float32)


def write_folder(folder: Path, raw: dict[str, Any], dtype: Any = np.float32, shards: int = 1) -> Path:
    """A checkpoint written by hand, not by the code under test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    layout = huggingface.tensor_layout(huggingface.parse_config(folder / "config.json", raw))
    tensors = {name: seeded_tensor(name, shape).astype(dtype) for name, shape in layout.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def logits_of(folder: Path) -> np.ndarray:
    teacher = load_teacher(folder)
    return np.asarray(forward(teacher.config, teacher.weights, jnp.asarray(TOKENS_BT, jnp.int32)).logits_NV)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_those_of_stock_transformers(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    logits = logits_of(write_folder(tmp_path, golden["config"]))[list(POSITIONS)]
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stock_transformers_agrees(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    raw = dict(ARCHITECTURES[name])
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw)).float().eval()
    state = {key: torch.tensor(seeded_tensor(key, tuple(x.shape))) for key, x in model.state_dict().items()}
    if raw["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS_BT)).logits.reshape(-1, raw["vocab_size"]).numpy()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    np.testing.assert_allclose(logits_of(tmp_path), theirs, rtol=1e-4, atol=1e-4 * float(np.abs(theirs).max()))
    if os.environ.get("LRC_UPDATE_GOLDEN"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
        rows = [[round(float(x), 6) for x in theirs[i]] for i in POSITIONS]
        golden[name] = {"config": json.loads((tmp_path / "config.json").read_text()), "logits": rows}
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_older_config_keys_mean_the_same(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[name]["config"]
    path = tmp_path / "config.json"
    assert huggingface.parse_config(path, golden) == huggingface.parse_config(path, ARCHITECTURES[name])


def test_shards_and_dtypes(tmp_path: Path) -> None:
    raw = ARCHITECTURES["llama3"]
    whole = logits_of(write_folder(tmp_path / "whole", raw))
    np.testing.assert_array_equal(logits_of(write_folder(tmp_path / "shards", raw, shards=3)), whole)
    for dtype, error in ((ml_dtypes.bfloat16, 0.2), (np.float16, 0.02)):
        folder = write_folder(tmp_path / np.dtype(dtype).name, raw, dtype)
        assert load_teacher(folder).weights.embed_VD.dtype == jnp.float32
        assert 0 < np.abs(logits_of(folder) - whole).max() < error * np.abs(whole).max()
    assert load_teacher(tmp_path / "whole", dtype=ml_dtypes.bfloat16).weights.layers[0].q_DQ.dtype == jnp.bfloat16


def test_flatten_is_the_inverse_of_build(tmp_path: Path) -> None:
    for name in ("llama3", "qwen2", "qwen3"):
        teacher = load_teacher(write_folder(tmp_path / name, ARCHITECTURES[name]))
        flat = huggingface.flatten_weights(teacher.config, teacher.weights)
        for key, tensor in flat.items():
            np.testing.assert_array_equal(tensor, seeded_tensor(key, tensor.shape))


def test_sliding_window_bounds_the_length(tmp_path: Path) -> None:
    teacher = load_teacher(write_folder(tmp_path, ARCHITECTURES["mistral_window"]))
    teacher.check_length(32)
    with pytest.raises(InputError, match=r"sequence_length: 33 is longer than the 32 tokens"):
        teacher.check_length(33)


def test_digest_follows_content(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", ARCHITECTURES["qwen3"])
    second = write_folder(tmp_path / "b", ARCHITECTURES["qwen3"])
    assert load_teacher(first).digest == load_teacher(second).digest
    (second / "config.json").write_text(json.dumps(ARCHITECTURES["qwen3"] | {"rope_theta": 1e4}))
    assert load_teacher(first).digest != load_teacher(second).digest
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(65 << 20)  # sparse: above the size that is hashed whole
        before = file_digest(large)
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert file_digest(large) != before


def _layout(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder's only file, which is taken away."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    return tensors


TIED = BASE | {"model_type": "llama", "tie_word_embeddings": True}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_a_head_of_the_file_goes_before_the_tie(tmp_path: Path) -> None:
    """As stock: a merge that trained the head leaves `tie_word_embeddings` as it was."""
    untied = logits_of(write_folder(tmp_path / "untied", TIED | {"tie_word_embeddings": False}))
    folder = write_folder(tmp_path / "distinct", TIED)
    save_file(_layout(folder) | {HEAD: seeded_tensor(HEAD, (41, 24))}, folder / "model.safetensors")
    np.testing.assert_array_equal(logits_of(folder), untied)
    assert not load_teacher(folder).config.tie_word_embeddings
    assert not huggingface.read_config(folder).tie_word_embeddings


def test_layouts_that_stock_reads_too(tmp_path: Path) -> None:
    tied = logits_of(write_folder(tmp_path / "tied", TIED))
    config = load_teacher(tmp_path / "tied").config
    frequencies = rope_inverse_frequencies(config).astype(np.float32)
    layouts = {
        "both": lambda tensors: tensors | {HEAD: tensors[EMBED]},
        "only the head": lambda tensors: {HEAD if name == EMBED else name: x for name, x in tensors.items()},
        "no prefix": lambda tensors: {name.removeprefix("model."): x for name, x in tensors.items()},
        "float64": lambda tensors: {name: x.astype(np.float64) for name, x in tensors.items()},
        "buffers": lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies},
    }
    for name, change in layouts.items():
        folder = write_folder(tmp_path / name, TIED)
        save_file({key: x.copy() for key, x in change(_layout(folder)).items()}, folder / "model.safetensors")
        np.testing.assert_array_equal(logits_of(folder), tied, err_msg=name)
        assert load_teacher(folder).config == config, name
    # One file goes before an index, as in stock.
    folder = write_folder(tmp_path / "both files", TIED)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone.safetensors"}}')
    np.testing.assert_array_equal(logits_of(folder), tied)


LINEAR, LLAMA3 = {"rope_type": "linear", "factor": 2.0}, LLAMA3_SCALING | {"rope_theta": 5e5}
PRECEDENCE: dict[str, tuple[dict[str, Any], float, RopeScaling | None]] = {
    "nested before a stale top-level one": ({"rope_theta": 123.0, "rope_parameters": {"rope_theta": 5e5}}, 5e5, None),
    "top-level where nothing is nested": (
        {"rope_theta": 123.0, "rope_parameters": {"rope_type": "default"}},
        123,
        None,
    ),
    "the family's default": ({}, 1e4, None),
    "null is absent": ({"rope_theta": None, "rope_scaling": None, "rope_parameters": None}, 1e4, None),
    "rope_scaling stands for rope_parameters": (
        {"rope_theta": 7.0, "rope_scaling": LINEAR, "rope_parameters": LLAMA3},
        7.0,
        RopeScaling("linear", 2.0),
    ),
    "its own theta": ({"rope_theta": 7.0, "rope_scaling": LINEAR | {"rope_theta": 9}}, 9.0, RopeScaling("linear", 2.0)),
    "rope_type before type": ({"rope_scaling": LINEAR | {"type": "yarn"}}, 1e4, RopeScaling("linear", 2.0)),
    "top-level original length": (
        {"original_max_position_embeddings": 16, "rope_parameters": LLAMA3},
        5e5,
        RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
    ),
    "without original length": (
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
        5e5,
        RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
    ),
}


@pytest.mark.parametrize("case", PRECEDENCE)
def test_rope_keys_have_the_precedence_of_stock(case: str) -> None:
    changes, theta, scaling = PRECEDENCE[case]
    config = huggingface.parse_config(Path("config.json"), BASE | {"model_type": "llama"} | changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_windows() -> None:
    """The longest input that full attention computes faithfully."""

    def longest(**changes: Any) -> int:
        return huggingface.parse_config(Path("config.json"), BASE | changes).max_position_embeddings

    assert longest(model_type="mistral", max_position_embeddings=9000) == 4096  # stock's default window
    assert longest(model_type="mistral", sliding_window=None) == 64
    assert longest(model_type="qwen2", sliding_window=32) == 64
    assert longest(model_type="qwen2", sliding_window=32, use_sliding_window=True) == 32
    full = ["full_attention"] * 2
    assert longest(model_type="qwen3", sliding_window=32, use_sliding_window=True, layer_types=full) == 64


def test_layers_without_rope(tmp_path: Path) -> None:
    """SmolLM3's list, its interval, and stock's default interval of 4."""

    def layers(**changes: Any) -> tuple[int, ...]:
        raw = BASE | {"model_type": "smollm3", "num_hidden_layers": 9} | changes
        return huggingface.parse_config(Path("config.json"), raw).no_rope_layers

    assert layers() == (3, 7)
    assert layers(no_rope_layer_interval=3) == (2, 5, 8)
    assert layers(no_rope_layers=[1, 1, 0, 1, 0, 1, 1, 1, 1], no_rope_layer_interval=3) == (2, 4)
    rotated = logits_of(write_folder(tmp_path, ARCHITECTURES["smollm3"] | {"no_rope_layers": [1, 1]}))
    plain = logits_of(write_folder(tmp_path, ARCHITECTURES["smollm3"]))
    assert np.abs(rotated - plain).max() > 1e-3


def test_a_clone_keeps_the_layers_without_rope() -> None:
    raw = ARCHITECTURES["smollm3"] | {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}
    teacher = huggingface.parse_config(Path("config.json"), raw)
    clone = LowRankClone(teacher, CloneFlags(8, del_layers=(0, 2)))
    assert clone.config.no_rope_layers == (0, 1)
    assert dataclasses.replace(clone, flags=CloneFlags(8)).config.no_rope_layers == (1, 3)


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        InputError, match=r"hub does not answer; .*`hf download some-owner/some.model-1 --local"
    ) as caught:
        load_teacher("some-owner/some.model-1")
    assert "\n" not in str(caught.value)
    # A path that exists, a file of ours, and a folder whose parent exists are no hub names.
    folder = write_folder(tmp_path / "a" / "b", TIED)
    assert hub.fetched("a/b") == Path("a/b")
    for name in ("a/c", "x/model.gguf", "x/y/z", "./x", "/x/y"):
        assert hub.fetched(name) == Path(name)
    monkeypatch.setattr("lrc_jax.data.text.hub_answers", lambda: True)
    asked = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_teacher("owner/model").source == folder
    assert asked["name"] == "owner/model" and not asked["local_files_only"]
    assert any("safetensors" in pattern for pattern in asked["allow_patterns"])


def test_the_table_of_families() -> None:
    """docs/howto/teacher.md names every family that is read and every one that is refused, with the reason."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "teacher.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    found = {name.strip("` "): verdict for names, verdict, *_ in rows for name in names.split(",")}
    assert found == dict.fromkeys(FAMILIES, "read") | {name: f"refused: {reason}" for name, reason in REFUSED.items()}


def _damage_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-40])


def _drop_tensor(folder: Path) -> None:
    write_tensors(folder, drop="model.layers.1.mlp.up_proj.weight")


def write_tensors(folder: Path, drop: str = "", **replace: np.ndarray) -> None:
    raw = json.loads((folder / "config.json").read_text())
    layout = huggingface.tensor_layout(huggingface.parse_config(folder, raw))
    tensors = {n: seeded_tensor(n, s) for n, s in layout.items() if n != drop} | replace
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


def _edit_config(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))

    return edit


def _write(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


def _shard(name: str) -> Any:
    return _write("model.safetensors.index.json", json.dumps({"weight_map": {"model.norm.weight": name}}))


def _repeat_tensor(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)


# A template that names a special token which it does not define: the package's Rust code panics over it.
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}


def _tokenizer(eos: Any = None, **changes: Any) -> Any:
    def write(folder: Path) -> None:
        backend = json.loads(Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str())
        (folder / "tokenizer.json").write_text(json.dumps(backend | changes))
        if eos is not None:
            _edit_config(eos_token_id=eos)(folder)

    return write


NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
DAMAGES = {
    "truncated shard": (_damage_shard, r"model-00002-of-00003.safetensors: damaged or truncated .*fetch"),
    "missing shard": (lambda f: (f / "model-00001-of-00003.safetensors").unlink(), r"model-00001.*missing; fetch"),
    "missing tensor": (_drop_tensor, r"missing tensors model.layers.1.mlp.up_proj.weight"),
    "wrong shape": (
        lambda f: write_tensors(f, **{Q: np.zeros((24, 23), np.float32)}),
        r"model.safetensors: tensor .*q_proj.weight has shape \[24, 23\], config.json says \[24, 24\]",
    ),
    "wrong dtype": (lambda f: write_tensors(f, **{NORM: np.zeros(24, np.int8)}), r"tensor model.norm.weight is I8"),
    "unexpected tensor": (
        lambda f: write_tensors(f, **{"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)}),
        r"tensors model.layers.0.self_attn.q_proj.bias have no place",
    ),
    "unknown architecture": (
        _edit_config(model_type="new"),
        r"config.json: model_type 'new' is not supported; supported: llama",
    ),
    "missing key": (_edit_config(intermediate_size="absent"), r"config.json: key 'intermediate_size' is missing"),
    "odd heads": (_edit_config(num_key_value_heads=2), r"config.json: num_attention_heads 3 is no multiple"),
    "yarn": (_edit_config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), r"rope_scaling type 'yarn'"),
    "bias": (_edit_config(attention_bias=True), r"biases of llama"),
    "quantised": (_edit_config(quantization_config={"bits": 4}), r"quantised checkpoints"),
    "activation": (_edit_config(hidden_act="gelu"), r"hidden_act 'gelu' is not supported"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config.json there"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config.json: not valid JSON"),
    "list for a config": (lambda f: (f / "config.json").write_text("[]"), r"config.json: a JSON object is expected"),
    "broken index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), r"index.json: not a valid index"),
    "broken tokenizer": (_write("tokenizer.json", "{}"), r"tokenizer.json: not a readable tokenizer"),
    "panic in the tokenizer": (
        _tokenizer(post_processor=TEMPLATE),
        r"tokenizer.json: not a readable tokenizer \(no entry found for key\); fetch",
    ),
    "odd end token": (_tokenizer(eos="</s>"), r"config.json: eos_token_id '</s>' is no token id"),
    "nested end tokens": (_tokenizer(eos=[1, [2]]), r"config.json: eos_token_id \[1, \[2\]\] is no token id"),
    "negative end token": (_tokenizer(eos=-1), r"config.json: eos_token_id -1 is no token id"),
    "unknown key": (_edit_config(attn_logit_softcapping=50.0), r"key 'attn_logit_softcapping' is not known"),
    "unknown rope key": (
        _edit_config(rope_scaling=LINEAR | {"mscale": 2.0}),
        r"key 'rope_scaling.mscale' is not known",
    ),
    "rope per layer type": (
        _edit_config(rope_scaling=None, rope_parameters={"full_attention": {"rope_theta": 1e4}}),
        r"key 'rope_parameters.full_attention' is not known",
    ),
    "partial rotary": (_edit_config(partial_rotary_factor=0.5), r"partial_rotary_factor 0.5 is not supported"),
    "no heads": (_edit_config(num_attention_heads=0), r"num_attention_heads 0 is less than 1"),
    "negative heads": (_edit_config(num_key_value_heads=-2), r"num_key_value_heads -2 is outside 1.."),
    "no vocabulary": (_edit_config(vocab_size=0), r"vocab_size 0 is outside 1.."),
    "huge vocabulary": (_edit_config(vocab_size=2**40), r"vocab_size 1099511627776 is outside 1.."),
    "more rows than stored": (_edit_config(vocab_size=2**30), r"has shape \[41, 24\], config.json says"),
    "huge depth": (_edit_config(num_hidden_layers=10**12), r"num_hidden_layers 1000000000000 is more than"),
    "more layers than tensors": (
        _edit_config(num_hidden_layers=5000),
        r"says 5000 layers, the checkpoint has 21 tensors",
    ),
    "size as text": (_edit_config(hidden_size="24"), r"hidden_size is '24'; a whole number is expected"),
    "size as truth": (_edit_config(num_hidden_layers=True), r"num_hidden_layers is True; a whole number"),
    "fractional size": (_edit_config(intermediate_size=40.5), r"intermediate_size is 40.5; a whole number"),
    "infinite eps": (
        _edit_config(rms_norm_eps=float("inf")),
        r"config.json: not valid JSON \(Infinity is no JSON number",
    ),
    "overflowing eps": (
        _write("config.json", json.dumps(ARCHITECTURES["llama3"]).replace("1e-05", "1e999")),
        r"rms_norm_eps is inf; a number above 0",
    ),
    "negative eps": (_edit_config(rms_norm_eps=-1e-5), r"rms_norm_eps is -1e-05; a number above 0 is expected"),
    "no theta": (_edit_config(rope_theta=0), r"rope_theta is 0; a number above 0 is expected"),
    "ramp upside down": (
        _edit_config(rope_scaling=LLAMA3_SCALING | {"low_freq_factor": 5.0}),
        r"low_freq_factor 5.0 is not between 0 and high_freq_factor 4.0",
    ),
    "tie as text": (_edit_config(tie_word_embeddings="yes"), r"tie_word_embeddings is 'yes'; true or false"),
    "deep JSON": (_write("config.json", "[" * 200_000), r"config.json: not valid JSON \(nested too deeply\)"),
    "absolute shard": (_shard("/etc/passwd"), r"index.json: shard '/etc/passwd' lies outside the folder"),
    "shard above": (_shard("../model.safetensors"), r"shard '../model.safetensors' lies outside the folder"),
    "shard that is the folder": (_shard(".."), r"shard '..' lies outside the folder|\.\.: named in"),
    "tensor in two shards": (_repeat_tensor, r"lm_head.weight is in model-00001-of-00003.safetensors too"),
    "NaN": (
        lambda f: write_tensors(f, **{NORM: np.full(24, np.nan, np.float32)}),
        r"tensor model.norm.weight holds NaN",
    ),
    "other frequencies": (
        lambda f: write_tensors(f, **{"model.rotary_emb.inv_freq": np.full(4, 0.5, np.float32)}),
        r"tensor model.rotary_emb.inv_freq holds other RoPE frequencies than config.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, ARCHITECTURES["llama3"], shards=3)
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_path_and_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_teacher(tmp_path / "nowhere")
    teacher = load_teacher(write_folder(tmp_path / "t", ARCHITECTURES["mistral"]))
    with pytest.raises(InputError, match=r"no tokenizer.json there"):
        teacher.require_tokenizer()


def test_stories260k() -> None:
    """The value that stock transformers gives over the first story of TinyStories' 10,000 lines."""
    folder = os.environ.get("LRC_TEST_STORIES260K")
    text = os.environ.get("LRC_TEST_TINYSTORIES")
    if not folder or not text:
        pytest.skip("set LRC_TEST_STORIES260K (folder) and LRC_TEST_TINYSTORIES (text file)")
    teacher = load_teacher(folder)
    story = Path(text).read_text(encoding="utf-8").split("<|endoftext|>")[0].strip()
    tokens_T = jnp.asarray(teacher.require_tokenizer().encode(story))
    assert len(tokens_T) == 378
    logits_NV = forward(teacher.config, teacher.weights, tokens_T[None]).logits_NV
    nll = float(cross_entropy_per_token(logits_NV[:-1], tokens_T[1:]).mean())
    assert abs(nll - 1.3385) < 1e-4
