"""What the bench trains: shapes, numbers and batches in NumPy alone, so that JAX and PyTorch start from equal ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RMS_NORM_EPS, ROPE_THETA = 1e-5, 10000.0
CLONE_WEIGHT, TEMPERATURE = 0.2, 1.0
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")  # of products on a GPU
LEARNING_RATE, BETAS, ADAM_EPS = 1e-3, (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Preset:
    """A Llama-like teacher (untied head), a clone's rank, and a batch.

    Attributes:
      kv_heads: key/value heads; None takes as many as query heads.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vocabulary: int
    rank: int
    batch_size: int
    length: int
    kv_heads: int | None = None

    @property
    def kv_size(self) -> int:
        """Width of keys and values."""
        return self.hidden_size // self.heads * (self.kv_heads or self.heads)

    @property
    def tokens(self) -> int:
        """In a batch."""
        return self.batch_size * self.length


PRESETS = {
    "big": Preset(256, 688, 6, 8, 2048, 64, 8, 128),
    "small": Preset(64, 172, 4, 4, 256, 16, 16, 64),
    "base": Preset(32, 64, 1, 2, 32, 8, 64, 16),  # of the studies; trained on labels alone
    "smollm2": Preset(576, 1536, 30, 9, 49152, 192, 8, 512, kv_heads=3),  # SmolLM2-135M's shape, head untied
    "test": Preset(16, 24, 2, 2, 20, 6, 3, 8),
}


def teacher_tensors(preset: Preset, seed: int = 0) -> dict[str, np.ndarray]:
    """A random teacher, matrices [out, in] ~ N(0, 1/in), under Hugging Face's names."""
    D, F, V = preset.hidden_size, preset.intermediate_size, preset.vocabulary
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(preset.layers):
        layer = f"model.layers.{i}."
        shapes |= {layer + name + ".weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (D, D) for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (preset.kv_size, D) for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": (D, F)}
    return _random(shapes | {"model.norm.weight": (D,), "lm_head.weight": (V, D)}, seed)


def projection_tensors(preset: Preset, seed: int = 1) -> dict[str, np.ndarray]:
    """A random clone, under the names and in the layout of the authors' checkpoints."""
    t, s = preset.hidden_size, preset.rank
    shapes: dict[str, tuple[int, ...]] = {"model.zoom.weight": (s, t), "zoom_down.weight": (s, t)}
    for i in range(preset.layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.zoom_{name}.weight": (t, s) for name in "qkv"}
        shapes |= {layer + "self_attn.zoom_down.weight": (s, t)}
        shapes |= {f"{layer}mlp.zoom_{name}.weight": (s, t) for name in ("gate", "up", "down")}
        shapes |= {f"{layer}target_{name}_layernorm.weight": (s,) for name in ("input", "post_attention")}
    return _random(shapes | {"model.target_norm.weight": (s,)}, seed)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (np.ones(shape) if len(shape) == 1 else rng.normal(0, shape[-1] ** -0.5, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def batch(preset: Preset, step: int = 0) -> np.ndarray:
    """Token ids [B, T] of a step; the label of a position is the next token of its row, and the last has none."""
    rng = np.random.default_rng((2, step))
    return rng.integers(0, preset.vocabulary, (preset.batch_size, preset.length)).astype(np.int32)
