"""Teachers in Hugging Face layout, against logits of stock transformers.

`golden/huggingface.json` holds configurations and a few logits that stock transformers gave for weights made from a
seed, so that a machine without PyTorch checks them too. To write it again after adding an architecture: run
`test_stock_transformers_agrees` with LRC_UPDATE_GOLDEN=1 where torch and transformers are installed. Nothing else is a
reason to update it.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lrc_jax.errors import InputError
from lrc_jax.losses import cross_entropy_per_token
from lrc_jax.model import forward
from lrc_jax.teachers import huggingface
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
    "unknown architecture": (_edit_config(model_type="gemma3"), r"config.json: model_type 'gemma3' is not supported"),
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
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        r"tokenizer.json: not a readable tokenizer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(damage: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ARCHITECTURES["llama3"], shards=3)
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(folder)
    assert "\n" not in str(caught.value)


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
