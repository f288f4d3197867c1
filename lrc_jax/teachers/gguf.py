"""Teachers in GGUF files (llama.cpp's format), float or quantised.

Quantised tensors are expanded to floats once, at loading. Two conventions differ from Hugging Face's layout: q and k
rows of some architectures are interleaved pair by pair for llama.cpp's RoPE (undone here), and Llama 3's RoPE scaling
is stored as a table of divisors, `rope_freqs.weight`, instead of its parameters (recovered here). Every key of the
architecture is used, allowed with values that change nothing, or refused by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, RopeScaling, Weights, rope_inverse_frequencies
from lrc_jax.teachers.families import FAMILIES, REFUSED, granite_factors, times_factor
from lrc_jax.teachers.gguf_file import GGUFFile, decodable
from lrc_jax.teachers.huggingface import MOST_LAYERS, build_weights, tensor_layout
from lrc_jax.teachers.keys import REQUIRED, Keys

# Mistral is stored as llama.
SUPPORTED = tuple(name for name in FAMILIES if name != "mistral")
INTERLEAVED = ("llama", "granite", "smollm3")  # q and k rows in llama.cpp's order
NO_ROPE_INTERVAL = 4  # of SmolLM3; llama.cpp has it in its code
# Hugging Face name without ".weight" / ".bias" -> GGUF name, inside a layer and outside.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EMBED, ROPE_TABLE = "token_embd.weight", "rope_freqs.weight"
# Keys of an architecture that do not change what it computes on given tokens, and those that do not with one value.
HARMLESS_KEYS = ("tensor_data_layout", "pooling_type", "rope.scaling.original_context_length")
OFF = {
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "nextn_predict_layers": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
}
# A Granite's multipliers; absent or 0 is none.
GRANITE = {
    "embedding": "embedding_scale",
    "attention": "attention.scale",
    "residual": "residual_scale",
    "logits": "logit_scale",
}


def _decimal(number: float) -> float:
    """A number stored as float32: 1e-5 comes back as 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _llama3_scaling(file: GGUFFile, config: DecoderConfig) -> RopeScaling:
    """Parameters of the llama3 scaling from its table of divisors.

    All Llama 3.x models share the ramp (1, 4, 8192) and differ in the factor, which is the largest divisor. The
    parameters are accepted only where they reproduce the table.
    """
    if config.rope_scaling is not None:
        raise InputError(f"{file.path}: {ROPE_TABLE} beside another RoPE scaling is not supported")
    plain = rope_inverse_frequencies(config)
    table = file.read(ROPE_TABLE).astype(np.float64)
    if table.shape == plain.shape and (table > 0).all():
        scaling = RopeScaling("llama3", float(table.max()), 1.0, 4.0, 8192)
        scaled = rope_inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
        if np.allclose(plain / scaled, table, rtol=1e-4):
            return scaling
    raise InputError(f"{file.path}: {ROPE_TABLE} is no Llama 3 scaling; other RoPE tables are not supported")


def _rope_scaling(keys: Keys) -> RopeScaling | None:
    """As llama.cpp: linear where nothing else is said, by `rope.scaling.factor` or the older `rope.scale_linear`."""
    kind = keys.text("rope.scaling.type", "linear")
    factor, older = (keys.take(f"rope.{key}") for key in ("scaling.factor", "scale_linear"))
    factor = older if factor is None else factor
    if kind not in ("none", "linear"):
        raise InputError(
            f"{keys.path}: {keys.where}rope.scaling.type {kind!r} is not supported; supported: linear, llama3"
        )
    if kind == "none" or not factor or factor == 1.0:  # 0 is none
        return None
    return RopeScaling("linear", _decimal(keys.as_real("rope.scaling.factor", factor)))


def _same_in_all_layers(keys: Keys, key: str, default: Any = REQUIRED) -> int:
    """A number that may be stored as one for each layer."""
    value = keys.take(key, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise InputError(f"{keys.path}: {keys.where}{key} differs by layer; not supported")
        value = value[0]
    found = keys.as_whole(key, value)
    if found < 1:
        raise InputError(f"{keys.path}: {keys.where}{key} {found} is less than 1; the metadata do not describe a model")
    return found


def read_config(file: GGUFFile) -> DecoderConfig:
    """DecoderConfig from the metadata.

    Raises:
      InputError: an architecture or a feature that the decoder does not compute, a key that is missing, out of range
        or not known.
    """
    return _parse(file)[0]


def _parse(file: GGUFFile) -> tuple[DecoderConfig, dict[str, float]]:
    """The architecture, and a Granite's multipliers."""
    general = Keys(file.path, file.metadata)
    arch, kind = general.text("general.architecture"), general.text("general.type", "model")
    if arch not in SUPPORTED:
        reason = f" ({REFUSED[arch]})" if arch in REFUSED else ""
        raise InputError(
            f"{file.path}: architecture {arch!r} is not supported{reason}; supported: {', '.join(SUPPORTED)}"
        )
    if kind != "model":
        raise InputError(f"{file.path}: general.type is {kind!r}; a model is expected")
    general.finish(prefixes=("general.", "split.", "quantize.", "tokenizer.", f"{arch}."))
    prefix = f"{arch}."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    keys = Keys(file.path, own, prefix)

    if keys.take("expert_count", 0):
        raise InputError(f"{file.path}: mixtures of experts ({arch}.expert_count) are not supported")
    keys.neutral(OFF)
    # llama.cpp's Granite has RoPE only where this says so; elsewhere it says nothing about the computation.
    finetuned = keys.take("rope.scaling.finetuned", True)
    if arch == "granite" and not finetuned:
        raise InputError(f"{file.path}: {arch}.rope.scaling.finetuned {finetuned} (no RoPE) is not supported")
    width = keys.whole("embedding_length")
    heads = _same_in_all_layers(keys, "attention.head_count")
    kv_heads = _same_in_all_layers(keys, "attention.head_count_kv", heads)
    head_dim = keys.whole("attention.key_length", width // heads)
    embed = file.tensors.get(EMBED)
    if embed is None:
        raise InputError(f"{file.path}: missing tensor {EMBED}; is this a complete model file?")
    if len(embed.shape) != 2:
        raise InputError(f"{file.path}: tensor {EMBED} has shape {list(embed.shape)}; two dimensions are expected")
    for key, wanted, what in (
        ("attention.value_length", head_dim, "the head dimension"),
        ("rope.dimension_count", head_dim, "the head dimension"),
        ("vocab_size", embed.shape[0], f"the rows of {EMBED}"),
    ):
        if (found := keys.whole(key, wanted)) != wanted:
            raise InputError(f"{file.path}: {arch}.{key} {found} differs from {what}, {wanted}")
    layers, longest = keys.whole("block_count"), keys.whole("context_length")
    if layers > min(MOST_LAYERS, len(file.tensors)):
        raise InputError(f"{file.path}: {arch}.block_count {layers}, but the file has {len(file.tensors)} tensors")
    window = keys.take("attention.sliding_window") or longest
    try:
        config = DecoderConfig(
            vocab_size=embed.shape[0],
            hidden_size=width,
            intermediate_size=_same_in_all_layers(keys, "feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_decimal(keys.real("attention.layer_norm_rms_epsilon")),
            rope_theta=_decimal(keys.real("rope.freq_base", 10000.0)),
            rope_scaling=_rope_scaling(keys),
            tie_word_embeddings="output.weight" not in file.tensors,
            qkv_bias=FAMILIES[arch].qkv_bias,
            qk_norm=FAMILIES[arch].qk_norm,
            no_rope_layers=tuple(range(NO_ROPE_INTERVAL - 1, layers, NO_ROPE_INTERVAL)) if arch == "smollm3" else (),
            max_position_embeddings=min(longest, keys.as_whole("attention.sliding_window", window)),
            model_type=arch,
        )
    except ValueError as wrong:
        raise InputError(f"{file.path}: {wrong}; the metadata does not describe a model") from None
    if ROPE_TABLE in file.tensors:
        config = dataclasses.replace(config, rope_scaling=_llama3_scaling(file, config))
    multipliers = {}
    if arch == "granite":
        usual = {"attention": head_dim**-0.5}
        for name, key in GRANITE.items():
            multipliers[name] = _decimal(keys.as_real(key, keys.take(key) or usual.get(name, 1.0)))
    keys.finish(HARMLESS_KEYS)
    return config, multipliers


def gguf_name(name: str) -> str:
    """Hugging Face tensor name -> GGUF tensor name."""
    stem, kind = name.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[inner]}.{kind}"


def check_tensors(file: GGUFFile, config: DecoderConfig) -> None:
    """Raise InputError where tensors are missing, unexpected, of the wrong shape or of an unsupported quantisation."""
    layout = {gguf_name(name): shape for name, shape in tensor_layout(config).items()}
    missing = [name for name in layout if name not in file.tensors]
    if missing:
        raise InputError(
            f"{file.path}: missing tensors {', '.join(missing[:3])} ({len(missing)} in all); fetch it again"
        )
    extra = [name for name in file.tensors if name not in layout and name != ROPE_TABLE]
    if extra:
        raise InputError(f"{file.path}: tensors {', '.join(extra[:3])} have no place in a {config.model_type}")
    for name, shape in layout.items():
        tensor = file.tensors[name]
        if tensor.shape != shape:
            raise InputError(
                f"{file.path}: tensor {name} has shape {list(tensor.shape)}, the metadata say {list(shape)}"
            )
        if not decodable(tensor.kind):
            known = ", ".join(kind.name for kind in GGMLQuantizationType if decodable(kind))
            raise InputError(f"{file.path}: tensor {name} is {tensor.kind.name}; supported quantisations: {known}")


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from llama.cpp's order (pairs side by side) to the half-split order of Hugging Face."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def load_model(file: GGUFFile, dtype: Any = np.float32) -> tuple[DecoderConfig, Weights]:
    """Architecture and weights, expanded a tensor at a time.

    Raises:
      InputError: the metadata are refused (`read_config`), or tensors are missing, unexpected, not finite, of the
        wrong shape or of an unsupported quantisation.
    """
    config, multipliers = _parse(file)
    check_tensors(file, config)
    factors = granite_factors(config, **multipliers) if multipliers else {}

    def get(name: str) -> np.ndarray:
        tensor = file.read(gguf_name(name))
        if config.model_type in INTERLEAVED and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = unpermute(tensor, config.num_heads if "q_proj" in name else config.num_kv_heads)
        return times_factor(tensor, name, factors)

    return config, build_weights(config, get, dtype)
