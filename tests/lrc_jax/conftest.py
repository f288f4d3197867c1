"""A small teacher and a text for it, which the tests of commands and library share. They only read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lrc_jax.model import DecoderConfig
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.teachers.tokenizer import Tokenizer
from lrc_jax.training.export import write_model


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of random weights that reads words, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("teacher")
    config = DecoderConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_position_embeddings=32,
    )
    rng = np.random.default_rng(0)
    shapes = tensor_layout(config)
    weights = build_weights(config, lambda n: 0.3 * rng.standard_normal(shapes[n], np.float32) + ("norm" in n))
    backend = Backend(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    write_model(folder, config, weights, Tokenizer(backend))
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of random words of that teacher."""
    rng = np.random.default_rng(0)
    documents = ["\n".join(" ".join(f"w{i}" for i in rng.integers(0, 20, 40)) for _ in range(3)) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents))
    return path
