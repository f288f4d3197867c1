"""Teachers in Hugging Face layout: config.json, safetensors (one file or shards), tokenizer.json.

The families of `families.FAMILIES`. Every key of config.json and every tensor of the files is used, proved to say
nothing new, or refused by name. Where stock transformers keeps a value in two places, its precedence is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, LayerWeights, RopeScaling, Weights, rope_inverse_frequencies
from lrc_jax.teachers.families import GRANITE, Family, family_of, granite_factors, times_factor
from lrc_jax.teachers.keys import Keys, finite, read_json

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MOST_LAYERS = 10_000
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Keys of config.json that do not change what a decoder computes on given tokens.
HARMLESS_KEYS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    auto_map bos_token_id dtype embd_pdrop eos_token_id finetuning_task hidden_dropout id2label initializer_range
    label2id license max_window_layers model_max_length name_or_path num_labels pad_token_id prefix pretraining_tp
    problem_type resid_pdrop sep_token_id task_specific_params tokenizer_class torch_dtype transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    chunk_size_feed_forward output_attentions output_hidden_states return_dict torchscript is_decoder
    decoder_start_token_id
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
    """.split()  # noqa: SIM905
)
# Switches of things that the decoder does not compute, with the values that leave them off.
OFF = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "use_mrope": (False,),
}


def _rope(keys: Keys, family: Family, longest: int) -> tuple[float, RopeScaling | None]:
    """rope_theta and scaling, with stock's precedence: a top-level `rope_scaling` (transformers 4) stands for the
    whole of `rope_parameters` (5); within them, their own `rope_theta` goes before the top-level one."""
    outer = {name: keys.take(name) for name in ("rope_theta", "partial_rotary_factor")}
    nested, scaling = keys.table("rope_parameters"), keys.table("rope_scaling")
    original = keys.take("original_max_position_embeddings")
    named = "rope_scaling" if scaling else "rope_parameters"
    inner = scaling or nested
    rope = Keys(keys.path, outer | {k: v for k, v in inner.items() if v is not None}, f"{named}.")
    theta = rope.real("rope_theta", family.theta)
    rope.neutral({"partial_rotary_factor": (1.0,)})
    legacy = rope.text("type", "default")
    kind = rope.text("rope_type", legacy)
    if kind == "default":
        found = None
    elif kind == "linear":
        found = RopeScaling("linear", rope.real("factor"))
    elif kind == "llama3":
        length = rope.whole("original_max_position_embeddings", longest)
        if original is not None:
            length = keys.as_whole("original_max_position_embeddings", original)
        found = RopeScaling(
            "llama3", rope.real("factor"), rope.real("low_freq_factor"), rope.real("high_freq_factor"), length
        )
    else:
        raise InputError(f"{keys.path}: rope_scaling type {kind!r} is not supported; supported: linear, llama3")
    rope.finish()
    return theta, found


def _window(keys: Keys, family: Family, layers: int) -> int | None:
    """Length of the sliding window, None where no layer has one. Up to that length windowed attention is full causal
    attention; beyond, we do not compute it."""
    types = keys.take("layer_types", [])
    if not isinstance(types, list) or any(kind not in ("full_attention", "sliding_attention") for kind in types):
        raise InputError(f"{keys.path}: layer_types other than full_attention and sliding_attention are not supported")
    if types and len(types) != layers:
        raise InputError(f"{keys.path}: layer_types has {len(types)} entries for {layers} layers; correct the config")
    if family.windowed is None:
        return None
    if family.windowed == "always":
        on = not keys.is_null("sliding_window")  # absent is stock's default, a window
    else:
        on = keys.flag(family.windowed, False) and (not types or "sliding_attention" in types)
    window = keys.whole("sliding_window", 4096)
    if on and window < 1:
        raise InputError(f"{keys.path}: sliding_window {window} is less than 1; correct the config")
    return window if on else None


def _no_rope_layers(keys: Keys, layers: int) -> tuple[int, ...]:
    """SmolLM3: `no_rope_layers` holds 0 for a layer without RoPE, or every `no_rope_layer_interval`-th is one."""
    interval = keys.whole("no_rope_layer_interval", 4)
    rotated = keys.take("no_rope_layers")
    if rotated is None:
        if interval < 1:
            raise InputError(f"{keys.path}: no_rope_layer_interval {interval} is less than 1")
        return tuple(range(interval - 1, layers, interval))
    if not isinstance(rotated, list) or len(rotated) < layers or any(x not in (0, 1) for x in rotated):
        raise InputError(f"{keys.path}: no_rope_layers must hold a 0 or 1 for each of {layers} layers")
    return tuple(i for i in range(layers) if not rotated[i])


def parse_config(path: Path, raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> DecoderConfig.

    Raises:
      InputError: an architecture or a feature that the decoder does not compute, a key that is missing, out of range
        or not known.
    """
    return _parse(path, raw)[0]


def _parse(path: Path, raw: Mapping[str, Any]) -> tuple[DecoderConfig, dict[str, float]]:
    """The architecture, and a Granite's multipliers."""
    keys = Keys(path, raw)
    model_type = keys.text("model_type", "missing")
    family = family_of(path, "model_type", model_type)
    activation = keys.take("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InputError(f"{path}: hidden_act {activation!r} is not supported; only silu (SwiGLU) is")
    if keys.take("quantization_config"):
        raise InputError(
            f"{path}: quantised checkpoints (quantization_config) are not supported; use a float one or GGUF"
        )
    # Stock's Qwen2 has its biases whatever attention_bias says.
    if (keys.take("attention_bias") and not family.qkv_bias) or keys.take("mlp_bias"):
        raise InputError(f"{path}: biases of {model_type} (attention_bias, mlp_bias) are not supported")
    keys.neutral(OFF)
    heads, layers = keys.whole("num_attention_heads"), keys.whole("num_hidden_layers")
    if heads < 1:
        raise InputError(f"{path}: num_attention_heads {heads} is less than 1; correct the config")
    if layers > MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers {layers} is more than {MOST_LAYERS}; correct the config")
    width = keys.whole("hidden_size")
    longest, window = keys.whole("max_position_embeddings", family.longest), _window(keys, family, layers)
    kv_heads = heads if keys.is_null("num_key_value_heads") else family.kv_heads or heads
    try:
        theta, scaling = _rope(keys, family, longest)
        config = DecoderConfig(
            vocab_size=keys.whole("vocab_size"),
            hidden_size=width,
            intermediate_size=keys.whole("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=keys.whole("num_key_value_heads", kv_heads),
            head_dim=keys.whole("head_dim", family.head_dim or width // heads),
            rms_norm_eps=keys.real("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=keys.flag("tie_word_embeddings", family.tied),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            no_rope_layers=_no_rope_layers(keys, layers) if model_type == "smollm3" else (),
            max_position_embeddings=longest if window is None else min(longest, window),
            model_type=model_type,
        )
    except (ValueError, OverflowError) as wrong:
        raise InputError(f"{path}: {wrong}; correct the config") from None
    multipliers = {}
    if model_type == "granite":
        multipliers = {name: keys.real(stock, 1.0) for name, stock in GRANITE.items()}
    keys.finish(HARMLESS_KEYS)
    return config, multipliers


def read_config(folder: Path) -> DecoderConfig:
    """DecoderConfig of a folder: that of config.json, untied where the folder's files hold a head of its own.

    Raises:
      InputError: config.json is missing, unreadable or unsupported, or a file of weights is damaged.
    """
    config = parse_config(*_config_file(folder))
    return _resolve_head(config, tensor_entries(folder)) if any(folder.glob("*.safetensors")) else config


def _config_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json there; give a Hugging Face model folder")
    return path, read_json(path)


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
    embed_VD = vector(EMBED)
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
    name: str  # in the file
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The tensor, in the file's layout and type; all its numbers are finite."""
        # Opened and closed for each tensor: pages of a mapping that stays open would count as resident memory.
        with safe_open(self.file, framework="numpy") as f:
            return finite(self.file, self.name, f.get_tensor(self.name))


def _tensor_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, with stock's precedence: one file, an index of shards, any *.safetensors."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no *.safetensors file there; convert the checkpoint to safetensors first")
        return files
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index}: not a valid index (no weight_map); fetch the file again")
    names: Iterable[str] = sorted(set(shards.values()))
    for name in names:
        if PurePath(name).name != name or "\\" in name:
            raise InputError(f"{index}: shard {name!r} lies outside the folder; a shard is named by its file's name")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: named in {index.name} but missing; fetch the shard")
    return [folder / name for name in names]


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, for single and sharded checkpoints, from the headers alone. A decoder without head is
    stored without the names' "model.": it is added.

    Raises:
      InputError: no safetensors file is there, one is missing, damaged or truncated, or a tensor is stored twice.
    """
    out: dict[str, TensorEntry] = {}
    for file in _tensor_files(folder):
        try:
            with safe_open(file, framework="numpy") as f:
                for name in f.keys():  # noqa: SIM118 - not a dict
                    part = f.get_slice(name)
                    full = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
                    if full in out:
                        raise InputError(
                            f"{file}: tensor {name} is in {out[full].file.name} too; fetch the files again"
                        )
                    out[full] = TensorEntry(file, name, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as wrong:
            raise InputError(f"{file}: damaged or truncated ({wrong}); fetch the file again") from None
    return out


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_type(entry: TensorEntry) -> None:
    if entry.dtype not in FLOAT_DTYPES:
        raise InputError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}; only {', '.join(FLOAT_DTYPES)} are supported, "
            "use an unquantised checkpoint"
        )


def _resolve_head(config: DecoderConfig, entries: dict[str, TensorEntry]) -> DecoderConfig:
    """What a tied configuration stores: one matrix under either name, or two. Stock keeps a head of the file that is
    not the embedding."""
    embed, head = entries.get(EMBED), entries.get(HEAD)
    if not config.tie_word_embeddings or head is None:
        return config
    if embed is None:
        entries[EMBED] = entries.pop(HEAD)
        return config
    _check_type(embed)
    _check_type(head)
    if head.shape == embed.shape and np.array_equal(embed.read(), head.read()):
        del entries[HEAD]
        return config
    return dataclasses.replace(config, tie_word_embeddings=False)


def _drop_rope_buffers(config: DecoderConfig, entries: dict[str, TensorEntry]) -> None:
    """Older files hold RoPE's frequencies, which stock computes anew: left out where they are those of the config."""
    for name in [name for name in entries if name.endswith("rotary_emb.inv_freq")]:
        entry = entries.pop(name)
        found = entry.read().astype(np.float64)
        computed = [rope_inverse_frequencies(dataclasses.replace(config, rope_scaling=None))]
        computed.append(rope_inverse_frequencies(config))
        if not any(found.shape == x.shape and np.allclose(found, x, rtol=1e-2, atol=0) for x in computed):
            raise InputError(
                f"{entry.file}: tensor {entry.name} holds other RoPE frequencies than config.json; correct rope_theta "
                "there, or remove the tensor"
            )


def _check_entries(folder: Path, config: DecoderConfig, entries: Mapping[str, TensorEntry]) -> None:
    """Raise InputError where tensors are missing, unexpected, or of the wrong shape or type (named)."""
    if config.num_layers > len(entries):
        raise InputError(
            f"{folder}: config.json says {config.num_layers} layers, the checkpoint has {len(entries)} tensors in all"
        )
    layout = tensor_layout(config)
    missing = [name for name in layout if name not in entries]
    if missing:
        raise InputError(
            f"{folder}: missing tensors {_some(missing)}; the checkpoint is incomplete or not that of its config.json"
        )
    # A tensor that the decoder would not read (a bias, an adapter) must not be dropped in silence.
    extra = [entry.name for name, entry in entries.items() if name not in layout]
    if extra:
        raise InputError(f"{folder}: tensors {_some(extra)} have no place in a {config.model_type} of its config.json")
    for name, shape in layout.items():
        entry = entries[name]
        if entry.shape != shape:
            raise InputError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, config.json says {list(shape)}"
            )
        _check_type(entry)


class Model(NamedTuple):
    """A decoder as read from a folder, and the files that it was read from."""

    config: DecoderConfig
    weights: Weights
    files: list[Path]


def load_model(folder: Path, dtype: Any = np.float32) -> Model:
    """Read a folder's decoder, converting a tensor at a time from memory-mapped files.

    Args:
      folder: with config.json and safetensors.
      dtype: of the weights in memory, whatever that of the files.

    Returns:
      Architecture, weights and files. The architecture is that of config.json, untied where the file's head is not
      the embedding.

    Raises:
      InputError: a file is missing or damaged, config.json is refused (`parse_config`), or tensors are missing,
        unexpected, not finite, or of the wrong shape or type.
    """
    path, raw = _config_file(folder)
    config, multipliers = _parse(path, raw)
    entries = tensor_entries(folder)
    files = sorted({path, *(entry.file for entry in entries.values())})
    config = _resolve_head(config, entries)
    _drop_rope_buffers(config, entries)
    _check_entries(folder, config, entries)
    factors = granite_factors(config, **multipliers) if multipliers else {}

    def get(name: str) -> np.ndarray:
        return times_factor(entries[name].read(), name, factors)

    return Model(config, build_weights(config, get, dtype), files)
