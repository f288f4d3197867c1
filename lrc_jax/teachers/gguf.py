"""Teachers in GGUF files (llama.cpp's format): llama, qwen2 and qwen3 architectures, float or quantised.

Quantised tensors are expanded to floats once, at loading. Two conventions differ from Hugging Face's layout: q and k
rows of the `llama` architecture are interleaved pair by pair for llama.cpp's RoPE (undone here), and Llama 3's RoPE
scaling is stored as a table of divisors, `rope_freqs.weight`, instead of its parameters (recovered here).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, RopeScaling, Weights, rope_inverse_frequencies
from lrc_jax.teachers.huggingface import build_weights, tensor_layout

SUPPORTED = ("llama", "qwen2", "qwen3")
QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
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
ROPE_TABLE = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file: metadata by key, tensor descriptions by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)

    def need(self, key: str) -> Any:
        """Metadata value. Raises InputError where it is missing."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: metadata key {key} is missing; is this a complete model file?")
        return self.metadata[key]

    def read(self, name: str) -> np.ndarray:
        """A tensor as floats in [out, in] layout. Read, not mapped: mapped pages would count as resident memory."""
        tensor = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, count=tensor.n_bytes, offset=tensor.data_offset)
        return dequantize(raw.view(tensor.data.dtype).reshape(tensor.data.shape), tensor.tensor_type)


def open_gguf(path: Path) -> GGUFFile:
    """Read a file's metadata and tensor table.

    Raises:
      InputError: the file is missing, damaged or truncated, or one part of a split model.
    """
    if not path.is_file():
        raise InputError(f"{path}: does not exist; give a .gguf file")
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items() if field.types}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as wrong:
        raise InputError(f"{path}: damaged or truncated GGUF file ({wrong}); fetch the file again") from None
    if metadata.get("split.count", 1) > 1:
        raise InputError(f"{path}: one part of a split model; join the parts with llama-gguf-split --merge")
    return GGUFFile(path, metadata, tensors)


def _llama3_scaling(file: GGUFFile, config: DecoderConfig) -> RopeScaling:
    """Parameters of the llama3 scaling from its table of divisors.

    All Llama 3.x models share the ramp (1, 4, 8192) and differ in the factor, which is the largest divisor. The
    parameters are accepted only where they reproduce the table.
    """
    table = file.read(ROPE_TABLE).astype(np.float64)
    scaling = RopeScaling("llama3", float(table.max()), 1.0, 4.0, 8192)
    plain = rope_inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    scaled = rope_inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    if table.shape != plain.shape or not np.allclose(plain / scaled, table, rtol=1e-4):
        raise InputError(f"{file.path}: {ROPE_TABLE} is no Llama 3 scaling; other RoPE tables are not supported")
    return scaling


def read_config(file: GGUFFile) -> DecoderConfig:
    """DecoderConfig from the metadata.

    Raises:
      InputError: an architecture or a feature that the decoder does not compute, or a missing key.
    """
    arch = file.need("general.architecture")
    if arch not in SUPPORTED:
        raise InputError(f"{file.path}: architecture {arch!r} is not supported; supported: {', '.join(SUPPORTED)}")
    if file.get(f"{arch}.expert_count", 0):
        raise InputError(f"{file.path}: mixtures of experts ({arch}.expert_count) are not supported")
    width, heads = int(file.need(f"{arch}.embedding_length")), file.need(f"{arch}.attention.head_count")
    kv_heads = file.get(f"{arch}.attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        raise InputError(f"{file.path}: {arch}.attention.head_count differs by layer; not supported")
    head_dim = int(file.get(f"{arch}.attention.key_length", width // heads))
    for key in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
        if file.get(key, head_dim) != head_dim:
            raise InputError(f"{file.path}: {key} {file.get(key)} differs from the head dimension {head_dim}")
    kind = file.get(f"{arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise InputError(f"{file.path}: {arch}.rope.scaling.type {kind!r} is not supported; supported: linear, llama3")
    longest = int(file.need(f"{arch}.context_length"))
    window = int(file.get(f"{arch}.attention.sliding_window", 0) or longest)
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: missing tensor token_embd.weight; is this a complete model file?")
    try:
        config = DecoderConfig(
            vocab_size=int(file.tensors["token_embd.weight"].shape[1]),
            hidden_size=width,
            intermediate_size=int(file.need(f"{arch}.feed_forward_length")),
            num_layers=int(file.need(f"{arch}.block_count")),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            # Stored as float32: 1e-5 comes back as 9.999999747378752e-06.
            rms_norm_eps=float(str(np.float32(file.need(f"{arch}.attention.layer_norm_rms_epsilon")))),
            rope_theta=float(str(np.float32(file.get(f"{arch}.rope.freq_base", 10000.0)))),
            rope_scaling=RopeScaling("linear", float(file.need(f"{arch}.rope.scaling.factor")))
            if kind == "linear"
            else None,
            tie_word_embeddings="output.weight" not in file.tensors,
            qkv_bias=arch == "qwen2",
            qk_norm=arch == "qwen3",
            max_position_embeddings=min(longest, window),
            model_type=arch,
        )
    except (ValueError, TypeError) as wrong:
        raise InputError(f"{file.path}: {wrong}; the metadata does not describe a model") from None
    if ROPE_TABLE in file.tensors:
        config = dataclasses.replace(config, rope_scaling=_llama3_scaling(file, config))
    return config


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
        found = tuple(int(n) for n in reversed(tensor.shape))
        if found != shape:
            raise InputError(f"{file.path}: tensor {name} has shape {list(found)}, the metadata say {list(shape)}")
        quantisation = GGMLQuantizationType(tensor.tensor_type).name
        if quantisation not in QUANTISATIONS:
            raise InputError(
                f"{file.path}: tensor {name} is {quantisation}; supported quantisations: {', '.join(QUANTISATIONS)}"
            )


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from llama.cpp's order (pairs side by side) to the half-split order of Hugging Face."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def load_weights(file: GGUFFile, config: DecoderConfig, dtype: Any = np.float32) -> Weights:
    """Expand the tensors, one at a time.

    Raises:
      InputError: tensors are missing, unexpected, of the wrong shape or of an unsupported quantisation.
    """
    check_tensors(file, config)

    def get(name: str) -> np.ndarray:
        tensor = file.read(gguf_name(name))
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = unpermute(tensor, config.num_heads if "q_proj" in name else config.num_kv_heads)
        return tensor

    return build_weights(config, get, dtype)
