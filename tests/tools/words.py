"""A tokenizer for tests: the words w0, w1, ... of a small vocabulary."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lrc_jax.teachers.tokenizer import Tokenizer


def word_tokenizer(count: int) -> Tokenizer:
    """Of so many words; any other is w0."""
    backend = Backend(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)
