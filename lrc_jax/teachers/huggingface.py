"""Teachers in Hugging Face layout: config.json, safetensors (one file or shards), tokenizer.json.

Llama (linear and llama3 RoPE scaling), Mistral, Qwen2 (biases) and Qwen3 (q/k norms). Whatever the decoder does not
compute is refused by name rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, LayerWeights, RopeScaling, Weights

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
    if raw.get("mlp_bias") or (raw.get("attention_bias") and model_type != "qwen2"):
        raise InputError(f"{path}: biases of {model_type} (attention_bias, mlp_bias) are not supported")
    window = raw.get("sliding_window")
    if window and raw.get("use_sliding_window", model_type == "mistral"):
        limit = int(raw.get("max_position_embeddings", window))
        if int(window) < limit:
            raise InputError(
                f"{path}: sliding_window {window} is shorter than max_position_embeddings {limit}, and sliding "
                f"windows are not supported; set max_position_embeddings to {window} if shorter inputs are enough"
            )
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
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            model_type=model_type,
        )
    except KeyError as missing:
        raise InputError(f"{path}: key {missing} is missing; is this a complete model config?") from None
    except ValueError as wrong:
        raise InputError(f"{path}: {wrong}") from None


def read_config(folder: Path) -> DecoderConfig:
    """DecoderConfig of a folder. Raises InputError where config.json is missing, unreadable or unsupported."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json there; give a Hugging Face model folder")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as wrong:
        raise InputError(f"{path}: not valid JSON ({wrong}); fetch the file again") from None
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


def build_weights(config: DecoderConfig, get: Callable[[str], np.ndarray]) -> Weights:
    """Assemble Weights from tensors in the file's layout, one tensor in memory at a time besides the result."""

    def matrix(name: str) -> Any:
        return jnp.asarray(np.ascontiguousarray(get(name).T))

    def vector(name: str) -> Any:
        return jnp.asarray(get(name))

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
    return Weights(
        embed_VD=vector("model.embed_tokens.weight"),
        layers=tuple(layers),
        final_norm_D=vector("model.norm.weight"),
        head_DV=None if config.tie_word_embeddings else matrix("lm_head.weight"),
    )


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


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, for single and sharded checkpoints."""
    index = folder / "model.safetensors.index.json"
    files: Iterable[Path]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise InputError(f"{index}: not a valid index (no weight_map); fetch the file again") from None
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no *.safetensors file there; convert the checkpoint to safetensors first")
    out: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: named in {index.name} but missing; fetch the shard")
        try:
            with safe_open(file, framework="numpy") as f:
                out |= dict.fromkeys(f.keys(), file)
        except SafetensorError as wrong:
            raise InputError(f"{file}: damaged or truncated ({wrong}); fetch the file again") from None
    return out


def load_weights(folder: Path, config: DecoderConfig, dtype: Any = np.float32) -> Weights:
    """Read a folder's weights, converting a tensor at a time from memory-mapped files.

    Raises:
      InputError: a file is missing or damaged, or tensors are missing or of the wrong shape or type (named).
    """
    files = _tensor_files(folder)
    layout = tensor_layout(config)
    missing = [name for name in layout if name not in files]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{folder}: missing tensors {', '.join(missing[:3])}{more}; the checkpoint does not fit its config.json"
        )
    handles = {file: safe_open(file, framework="flax") for file in set(files.values())}

    def get(name: str) -> np.ndarray:
        handle = handles[files[name]]
        shape = tuple(handle.get_slice(name).get_shape())
        if shape != layout[name]:
            raise InputError(
                f"{files[name]}: tensor {name} has shape {list(shape)}, config.json says {list(layout[name])}"
            )
        tensor = np.asarray(handle.get_tensor(name))
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(
                f"{files[name]}: tensor {name} is {tensor.dtype}, not float; quantised files are not supported"
            )
        return tensor.astype(dtype)

    return build_weights(config, get)
