"""Which model families are read, and why others are not (the table of docs/howto/teacher.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of decoders, by its `model_type`; a Llama but for what is named here.

    Attributes:
      architecture: the class of stock transformers.
      longest, kv_heads, head_dim, theta, tied: what stock takes where config.json is silent (None: as many key/value
        heads as query heads; width / heads).
      qkv_bias, qk_norm: as in DecoderConfig.
      windowed: key of the configuration that switches the sliding window on; "always" where its length does.
    """

    architecture: str
    longest: int = 2048
    kv_heads: int | None = None
    head_dim: int | None = None
    theta: float = 10000.0
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    windowed: str | None = None


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", longest=131072, kv_heads=8, windowed="always"),
    "qwen2": Family("Qwen2ForCausalLM", longest=32768, kv_heads=32, qkv_bias=True, windowed="use_sliding_window"),
    "qwen3": Family(
        "Qwen3ForCausalLM", longest=32768, kv_heads=32, head_dim=128, qk_norm=True, windowed="use_sliding_window"
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", longest=32768, kv_heads=4, theta=2e6, tied=True, windowed="use_sliding_window"
    ),
    "granite": Family("GraniteForCausalLM"),
}
_POST_NORMS = "its norms follow attention and MLP, where Low-Rank Clone places its projections and losses"
_GELU = "its MLP is a GELU, not a SwiGLU, and its gains are 1 + weight"
_EXPERTS = "it is a mixture of experts"
REFUSED = {
    "olmo": "its norms have no gains, which a clone trains",
    "olmo2": _POST_NORMS,
    "olmo3": _POST_NORMS,
    "gemma": _GELU,
    "gemma2": f"{_POST_NORMS}; {_GELU}",
    "gemma3": f"{_POST_NORMS}; {_GELU}",
    "gemma3_text": f"{_POST_NORMS}; {_GELU}",
    "phi3": "its q, k, v and its gate and up are one matrix each, and its RoPE may be partial",
    "gpt2": "it has LayerNorm and learnt positions",
    "gpt_neox": "it has LayerNorm and parallel blocks",
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "granitemoe": _EXPERTS,
}


def family_of(path: Path, key: str, name: str) -> Family:
    """The family of a model type. Raises InputError, with the reason where one is known, if it is not read."""
    family = FAMILIES.get(name)
    if family is None:
        reason = f" ({REFUSED[name]})" if name in REFUSED else ""
        raise InputError(f"{path}: {key} {name!r} is not supported{reason}; supported: {', '.join(FAMILIES)}")
    return family


# Multipliers of a Granite, and what config.json calls them.
GRANITE = {
    "embedding": "embedding_multiplier",
    "attention": "attention_multiplier",
    "residual": "residual_multiplier",
    "logits": "logits_scaling",
}


def granite_factors(
    config: DecoderConfig, *, embedding: float, attention: float, residual: float, logits: float
) -> dict[str, float]:
    """Factors of tensors (by the end of their Hugging Face name) that make a Llama of a Granite.

    A Granite multiplies embedded tokens, attention scores (in place of 1/sqrt(head_dim)) and what attention and MLP
    add to the residual stream, and divides logits. Each of these scalars moves into the weights beside it; what a tied
    embedding gains as an embedding is taken from the head by the final norm's gain.

    Args:
      config: the architecture.
      embedding, attention, residual: multipliers.
      logits: divisor.
    """
    return {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": 1 / (logits * embedding if config.tie_word_embeddings else logits),
        "self_attn.q_proj.weight": attention * config.head_dim**0.5,
        "self_attn.o_proj.weight": residual,
        "mlp.down_proj.weight": residual,
    }


def times_factor(tensor: np.ndarray, name: str, factors: Mapping[str, float]) -> np.ndarray:
    """A tensor times the factor of its name, where it has one; half precision becomes float32."""
    factor = next((x for end, x in factors.items() if name.endswith(end)), 1.0)
    return tensor if factor == 1.0 else tensor.astype(np.promote_types(tensor.dtype, np.float32)) * np.float32(factor)
