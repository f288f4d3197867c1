"""Random small checkpoints, written by stock transformers: our logits are stock's, or it is refused by name.

The folder is written by `save_pretrained`; then some of what people's folders differ in is done to it: names without
`model.`, config keys of transformers 4, shards, half precision, one matrix of a tied pair, a head of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lrc_jax.compute.fast import forward
from lrc_jax.errors import InputError
from lrc_jax.teachers.families import FAMILIES, REFUSED
from lrc_jax.teachers.huggingface import parse_config
from lrc_jax.teachers.load import load_teacher
from lrc_jax.training.export import write_model

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and transformers
FAST, ALL = 10, 200
ACCURACY = 1e-4  # of logits, relative to the largest
TOKENS = 20
LAYOUTS = ("as it is", "older keys", "stale theta", "no prefix", "half", "head of its own", "only the head")
# Features that are refused by name, and how the refusal names them.
UNREAD = {
    "attention_bias": "attention_bias, mlp_bias",
    "mlp_bias": "attention_bias, mlp_bias",
    "gelu": "hidden_act 'gelu'",
    "dynamic": "rope_scaling type 'dynamic'",
    "yarn": "rope_scaling type 'yarn'",
}


def random_config(rng: np.random.Generator) -> tuple[dict[str, Any], str | None]:
    """A configuration of some family, and which feature of it is not read (None: all are)."""
    family = str(rng.choice(list(FAMILIES)))
    head_dim, kv_heads, group = 2 * int(rng.integers(1, 9)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    heads, layers = kv_heads * group, int(rng.integers(1, 6))
    width = int(rng.choice([heads * head_dim, int(rng.integers(3, 40)) * (heads if family == "llama" else 1)]))
    raw: dict[str, Any] = {
        "model_type": family,
        "vocab_size": int(rng.integers(16, 90)),
        "hidden_size": width,
        "intermediate_size": int(rng.integers(3, 70)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": int(rng.choice([32, 64, 4096])),
        "rms_norm_eps": float(10 ** rng.uniform(-7, -2)),
        "tie_word_embeddings": bool(rng.integers(2)),
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(10 ** rng.uniform(2, 6.5))}
    kind = rng.choice(["default", "linear", "llama3"])
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": float(rng.uniform(1, 8))}
    elif kind == "llama3":
        low = float(rng.uniform(0.5, 2))
        rope |= {
            "rope_type": "llama3",
            "factor": float(rng.uniform(1, 32)),
            "low_freq_factor": low,
            "high_freq_factor": low + float(rng.uniform(0.5, 4)),
            "original_max_position_embeddings": int(rng.choice([8, 32, 8192])),
        }
    raw["rope_parameters"] = rope
    if family == "mistral":
        raw["sliding_window"] = None if rng.integers(2) else int(rng.integers(TOKENS, 40))
    if FAMILIES[family].windowed == "use_sliding_window":
        raw["use_sliding_window"] = bool(rng.integers(2))
        raw["sliding_window"] = int(rng.integers(TOKENS, 40))
        raw["max_window_layers"] = int(rng.integers(0, layers + 1))
    if family == "smollm3":
        raw["no_rope_layer_interval"] = int(rng.integers(1, 5))
        if rng.integers(2):
            raw["no_rope_layers"] = rng.integers(0, 2, layers).tolist()
    if family == "granite":
        raw["embedding_multiplier"], raw["logits_scaling"] = (10 ** rng.uniform(-1, 1, 2)).tolist()
        # Larger ones than a usual model's saturate its softmax, which makes much of rounding.
        raw["attention_multiplier"] = float(head_dim**-0.5 * 10 ** rng.uniform(-0.5, 0.3))
        raw["residual_multiplier"] = float(10 ** rng.uniform(-1, 0.3))
    unread = None
    if rng.random() < 0.15:
        choices = ["gelu", "yarn"] + ["dynamic"] * (head_dim > 2)  # stock divides by head_dim - 2
        if family in ("llama", "granite", "smollm3"):
            choices += ["attention_bias", "mlp_bias"]
        unread = str(rng.choice(choices))
        if unread == "gelu":
            raw["hidden_act"] = "gelu"
        elif unread in ("dynamic", "yarn"):
            raw["rope_parameters"] = {"rope_type": unread, "rope_theta": 1e4, "factor": 2.0}
        else:
            raw[unread] = True
    return raw, unread


def stock_model(raw: dict[str, Any], seed: int) -> Any:
    """A stock model of random weights at a scale at which every part of it matters to the logits."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw)).float().eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            x.copy_(centre + (0.3 if x.ndim == 1 else 1.5 * x.shape[-1] ** -0.5) * torch.randn_like(x))
    return model


def stock_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy().reshape(tokens.size, -1)


def our_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    teacher = load_teacher(folder)
    teacher.check_length(tokens.shape[1])
    run = jax.jit(forward, static_argnums=0)
    return np.asarray(run(teacher.config, teacher.weights, jnp.asarray(tokens, jnp.int32)).logits_NV)


def older_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    raw = dict(raw)
    rope = dict(raw.pop("rope_parameters"))
    raw["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    raw["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    return raw


def disturb(folder: Path, rng: np.random.Generator) -> None:
    """One of the layouts that stock loads too."""
    config, file = folder / "config.json", folder / "model.safetensors"
    raw = json.loads(config.read_text())
    match rng.choice(LAYOUTS):
        case "older keys":
            config.write_text(json.dumps(older_keys(raw)))
        case "stale theta":
            config.write_text(json.dumps(raw | {"rope_theta": 123.0}))
        case "no prefix":
            if raw["tie_word_embeddings"]:
                save_file({n.removeprefix("model."): x for n, x in load_file(file).items()}, file, {"format": "pt"})
        case "half":
            save_file({n: x.astype(np.float16) for n, x in load_file(file).items()}, file, {"format": "pt"})
        case "head of its own":
            tensors = load_file(file)
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
            save_file(tensors, file, {"format": "pt"})
        case "only the head":
            tensors = load_file(file)
            if raw["tie_word_embeddings"]:
                tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
                save_file(tensors, file, {"format": "pt"})


def check(seed: int, folder: Path) -> None:
    rng = np.random.default_rng([18, seed])
    raw, unread = random_config(rng)
    model = stock_model(raw, seed)
    model.save_pretrained(folder)
    if unread is not None:
        with pytest.raises(InputError, match=UNREAD[unread]) as caught:
            load_teacher(folder)
        assert "\n" not in str(caught.value)
        return
    disturb(folder, rng)
    tokens = rng.integers(0, raw["vocab_size"], (2, TOKENS))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected, found = stock_logits(model, tokens), our_logits(folder, tokens)
    assert np.abs(found - expected).max() <= ACCURACY * np.abs(expected).max(), json.dumps(raw)


@pytest.mark.parametrize("seed", range(FAST))
def test_a_random_checkpoint_gives_the_logits_of_stock(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_random_checkpoints(tmp_path: Path) -> None:
    for seed in range(FAST, ALL):
        check(seed, tmp_path / str(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_decoder_is_of_its_family_and_stock_reads_it(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    raw, unread = random_config(rng)
    while raw["model_type"] != family or unread or raw["num_hidden_layers"] < 3:
        raw, unread = random_config(rng)
    stock_model(raw, 0).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", teacher.config, teacher.weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == family
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = rng.integers(0, raw["vocab_size"], (2, TOKENS))
    expected = our_logits(tmp_path / "teacher", tokens)
    for found in (stock_logits(again, tokens), our_logits(tmp_path / "out", tokens)):
        assert np.abs(found - expected).max() <= ACCURACY * np.abs(expected).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_silent_config_means_what_it_means_to_stock(name: str) -> None:
    """Stock's defaults where config.json says nothing."""
    stock = transformers.AutoConfig.for_model(name)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    raw = {"model_type": name} | {size: getattr(stock, size) for size in sizes}
    found = parse_config(Path("config.json"), raw)
    longest = min(stock.max_position_embeddings, getattr(stock, "sliding_window", None) or 10**9)
    assert found.max_position_embeddings == longest
    assert found.num_kv_heads == stock.num_key_value_heads
    assert found.head_dim == (getattr(stock, "head_dim", None) or stock.hidden_size // stock.num_attention_heads)
    assert found.rope_theta == stock.rope_parameters["rope_theta"]
    assert (found.rms_norm_eps, found.tie_word_embeddings) == (stock.rms_norm_eps, stock.tie_word_embeddings)


@pytest.mark.parametrize("model_type", [name for name in REFUSED if name in transformers.CONFIG_MAPPING])
def test_other_families_are_refused_with_the_reason(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(transformers.AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    with pytest.raises(InputError, match=f"model_type '{model_type}' is not supported") as caught:
        load_teacher(tmp_path)
    assert REFUSED[model_type] in str(caught.value)
    assert "\n" not in str(caught.value)
