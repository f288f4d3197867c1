"""Teachers in Hugging Face layout: config.json, safetensors (one file or shards), tokenizer.json.

Llama (linear and llama3 RoPE scaling), Mistral, Qwen2 (biases) and Qwen3 (q/k norms). Whatever the decoder does not
compute is refused by name rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, LayerWeights, RopeScaling, Weights

FLOAT_DTYPES = ("F32", "F16", "BF16")
# Buffers of older files, and the copy of a tied head.
IGNORED_TENSORS = ("rotary_emb.inv_freq", "lm_head.weight")
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


def _rope(path: Path, raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """rope_theta and scaling; newer files nest both under `rope_parameters`."""
    nested = raw.get("rope_parameters") or {}
    theta = float(raw.get("rope_theta") or nested.get("rope_theta") or 10000.0)
    scaling = raw.get("rope_scaling") or nested
    kind = scaling.get("rope_type", scaling.get("type", "default")) if scaling else "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(scaling["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    raise InputError(f"{path}: rope_scaling type {kind!r} is not supported; supported: linear, llama3")


def _longest_input(model_type: str, raw: Mapping[str, Any]) -> int:
    """Up to the sliding window's length windowed attention is full causal attention; beyond, we do not compute it."""
    longest = int(raw.get("max_position_embeddings", 2048))
    window = raw.get("sliding_window")
    if window and raw.get("use_sliding_window", model_type == "mistral"):
        return min(longest, int(window))
    return longest


def parse_config(path: Path, raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> DecoderConfig.

    Raises:
      InputError: an architecture or a feature that the decoder does not compute, or a missing key.
    """
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED:
        raise InputError(f"{path}: model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act {raw['hidden_act']!r} is not supported; only silu (SwiGLU) is")
    if raw.get("quantization_config"):
        raise InputError(
            f"{path}: quantised checkpoints (quantization_config) are not supported; use a float one or GGUF"
        )
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{path}: partial_rotary_factor {raw['partial_rotary_factor']} is not supported; only 1.0 is")
    if raw.get("mlp_bias") or (raw.get("attention_bias") and model_type != "qwen2"):
        raise InputError(f"{path}: biases of {model_type} (attention_bias, mlp_bias) are not supported")
    try:
        heads = int(raw["num_attention_heads"])
        theta, scaling = _rope(path, raw)
        return DecoderConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or (128 if model_type == "qwen3" else raw["hidden_size"] // heads)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            max_position_embeddings=_longest_input(model_type, raw),
            model_type=model_type,
        )
    except KeyError as missing:
        raise InputError(f"{path}: key {missing} is missing; is this a complete model config?") from None
    except (ValueError, TypeError, ZeroDivisionError, AttributeError) as wrong:
        raise InputError(f"{path}: {wrong}; correct the config") from None


def read_config(folder: Path) -> DecoderConfig:
    """DecoderConfig of a folder. Raises InputError where config.json is missing, unreadable or unsupported."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json there; give a Hugging Face model folder")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as wrong:
        raise InputError(f"{path}: not valid JSON ({wrong}); fetch the file again") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a JSON object is expected there; fetch the file again")
    return parse_config(path, raw)


def tensor_layout(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor name -> shape for an architecture, in the file's [out, in] layout."""
    D, F, Q, K, C = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size, config.head_dim
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, D)}
    for i in range(config.num_layers):
        p = f"model.layers.{i}."
        out |= {
            p + "input_layernorm.weight": (D,),
            p + "self_attn.q_proj.weight": (Q, D),
            p + "self_attn.k_proj.weight": (K, D),
            p + "self_attn.v_proj.weight": (K, D),
            p + "self_attn.o_proj.weight": (D, Q),
            p + "post_attention_layernorm.weight": (D,),
            p + "mlp.gate_proj.weight": (F, D),
            p + "mlp.up_proj.weight": (F, D),
            p + "mlp.down_proj.weight": (D, F),
        }
        if config.qkv_bias:
            out |= {p + "self_attn.q_proj.bias": (Q,)}
            out |= {p + f"self_attn.{n}_proj.bias": (K,) for n in "kv"}
        if config.qk_norm:
            out |= {p + f"self_attn.{n}_norm.weight": (C,) for n in "qk"}
    out["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, D)
    return out


def build_weights(config: DecoderConfig, get: Callable[[str], np.ndarray], dtype: Any = np.float32) -> Weights:
    """Assemble Weights of a dtype from tensors in the file's layout and type, a tensor at a time."""

    def matrix(name: str) -> Any:
        return jnp.asarray(np.array(get(name).T, dtype, order="C"))  # transposed and converted in one copy

    def vector(name: str) -> Any:
        return jnp.asarray(get(name).astype(dtype, copy=False))

    # The largest tensors first, while their temporary copies do not yet add to everything else.
    embed_VD = vector("model.embed_tokens.weight")
    head_DV = None if config.tie_word_embeddings else matrix("lm_head.weight")
    layers = []
    for i in range(config.num_layers):
        p, a, m = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        layers.append(
            LayerWeights(
                input_norm_D=vector(p + "input_layernorm.weight"),
                q_DQ=matrix(a + "q_proj.weight"),
                k_DK=matrix(a + "k_proj.weight"),
                v_DK=matrix(a + "v_proj.weight"),
                o_QD=matrix(a + "o_proj.weight"),
                mlp_norm_D=vector(p + "post_attention_layernorm.weight"),
                gate_DF=matrix(m + "gate_proj.weight"),
                up_DF=matrix(m + "up_proj.weight"),
                down_FD=matrix(m + "down_proj.weight"),
                q_bias_Q=vector(a + "q_proj.bias") if config.qkv_bias else None,
                k_bias_K=vector(a + "k_proj.bias") if config.qkv_bias else None,
                v_bias_K=vector(a + "v_proj.bias") if config.qkv_bias else None,
                q_norm_C=vector(a + "q_norm.weight") if config.qk_norm else None,
                k_norm_C=vector(a + "k_norm.weight") if config.qk_norm else None,
            )
        )
    return Weights(embed_VD, tuple(layers), vector("model.norm.weight"), head_DV)


def flatten_weights(config: DecoderConfig, weights: Weights) -> dict[str, np.ndarray]:
    """Weights -> tensors under Hugging Face names in the file's layout; the inverse of build_weights."""
    out = {
        "model.embed_tokens.weight": np.asarray(weights.embed_VD),
        "model.norm.weight": np.asarray(weights.final_norm_D),
    }
    for i, w in enumerate(weights.layers):
        p, a, m = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        vectors = {
            p + "input_layernorm.weight": w.input_norm_D,
            p + "post_attention_layernorm.weight": w.mlp_norm_D,
            a + "q_proj.bias": w.q_bias_Q,
            a + "k_proj.bias": w.k_bias_K,
            a + "v_proj.bias": w.v_bias_K,
            a + "q_norm.weight": w.q_norm_C,
            a + "k_norm.weight": w.k_norm_C,
        }
        matrices = {
            a + "q_proj.weight": w.q_DQ,
            a + "k_proj.weight": w.k_DK,
            a + "v_proj.weight": w.v_DK,
            a + "o_proj.weight": w.o_QD,
            m + "gate_proj.weight": w.gate_DF,
            m + "up_proj.weight": w.up_DF,
            m + "down_proj.weight": w.down_FD,
        }
        out |= {name: np.asarray(x) for name, x in vectors.items() if x is not None}
        out |= {name: np.ascontiguousarray(np.asarray(x).T) for name, x in matrices.items()}
    if weights.head_DV is not None:
        out["lm_head.weight"] = np.ascontiguousarray(np.asarray(weights.head_DV).T)
    expected = tensor_layout(config)
    assert out.keys() == expected.keys(), sorted(out.keys() ^ expected.keys())
    return {name: out[name] for name in expected}


class TensorEntry(NamedTuple):
    """Where a tensor lies and what its file's header says of it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, for single and sharded checkpoints, from the headers alone.

    Raises:
      InputError: no safetensors file is there, or one is missing, damaged or truncated.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    files: Iterable[Path]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{index}: not a valid index (no weight_map); fetch the file again") from None
        files = [folder / name for name in names]
    elif single.is_file():
        files = [single]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no *.safetensors file there; convert the checkpoint to safetensors first")
    out: dict[str, TensorEntry] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: named in {index.name} but missing; fetch the shard")
        try:
            with safe_open(file, framework="numpy") as f:
                for name in f.keys():  # noqa: SIM118 - not a dict
                    part = f.get_slice(name)
                    out[name] = TensorEntry(file, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as wrong:
            raise InputError(f"{file}: damaged or truncated ({wrong}); fetch the file again") from None
    return out


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_entries(folder: Path, config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> None:
    """Raise InputError where tensors are missing, unexpected, or of the wrong shape or type (named)."""
    layout = tensor_layout(config)
    missing = [name for name in layout if name not in entries]
    if missing:
        raise InputError(
            f"{folder}: missing tensors {_some(missing)}; the checkpoint is incomplete or not that of its config.json"
        )
    # A tensor that the decoder would not read (a bias, an adapter) must not be dropped in silence.
    extra = [name for name in entries if name not in layout and not name.endswith(IGNORED_TENSORS)]
    if extra:
        raise InputError(f"{folder}: tensors {_some(extra)} have no place in a {config.model_type} of its config.json")
    for name, shape in layout.items():
        entry = entries[name]
        if entry.shape != shape:
            raise InputError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, config.json says {list(shape)}"
            )
        if entry.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{entry.file}: tensor {name} is {entry.dtype}; only {', '.join(FLOAT_DTYPES)} are supported, "
                "use an unquantised checkpoint"
            )


def load_weights(folder: Path, config: DecoderConfig, dtype: Any = np.float32) -> Weights:
    """Read a folder's weights, converting a tensor at a time from memory-mapped files.

    Raises:
      InputError: a file is missing or damaged, or tensors are missing, unexpected or of the wrong shape or type.
    """
    entries = tensor_entries(folder)
    check_entries(folder, config, entries)

    def get(name: str) -> np.ndarray:
        # Opened and closed for each tensor: pages of a mapping that stays open would count as resident memory.
        with safe_open(entries[name].file, framework="numpy") as f:
            return f.get_tensor(name)

    return build_weights(config, get, dtype)
