"""One way to a teacher, whatever its file format."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.teachers import gguf, hub, huggingface
from lrc_jax.teachers.gguf_file import open_gguf
from lrc_jax.teachers.gguf_tokenizer import read_tokenizer
from lrc_jax.teachers.tokenizer import Tokenizer, load_tokenizer

DIGEST_WHOLE = 64 << 20  # files up to this many bytes are hashed whole
DIGEST_BLOCKS, DIGEST_BLOCK = 64, 1 << 20  # of larger ones, this many blocks spread evenly, first and last included


@dataclasses.dataclass(frozen=True, repr=False)
class Teacher:
    """A frozen model to clone.

    Attributes:
      config: the architecture. `max_position_embeddings` is the longest input that is computed faithfully.
      weights: its numbers, in the dtype asked for.
      digest: sha256 (hex) of the model's files; see `file_digest`.
      tokenizer: None where the source has none (`require_tokenizer` says so in one line).
      source: where it was read from.
    """

    config: DecoderConfig
    weights: Weights
    digest: str
    tokenizer: Tokenizer | None
    source: Path

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<{self.source}: {config.num_layers} layers of width {config.hidden_size}, "
            f"{config.vocab_size:,} tokens, reads {config.max_position_embeddings:,}>"
        )

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError where the teacher came without one."""
        if self.tokenizer is None and self.source.is_dir():
            raise InputError(
                f"{self.source}: no tokenizer.json there; put the model's tokenizer.json beside config.json"
            )
        if self.tokenizer is None:
            raise InputError(
                f"{self.source}: the file holds no tokenizer (tokenizer.ggml.model); convert the model again together "
                "with its tokenizer"
            )
        return self.tokenizer

    def check_length(self, length: int) -> None:
        """Raise InputError where sequences of `length` tokens are longer than the teacher can read."""
        limit = self.config.max_position_embeddings
        if length > limit:
            raise InputError(
                f"sequence_length: {length} is longer than the {limit} tokens that {self.source} reads; choose "
                f"{limit} or less"
            )


def file_digest(path: Path) -> str:
    """sha256 over a file's size and content; of files above 64 MiB, over 64 blocks of 1 MiB spread evenly over it
    (the first and the last included), so that the digest of a large checkpoint takes milliseconds."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= DIGEST_WHOLE:
            digest.update(file.read())
        else:
            for start in np.linspace(0, size - DIGEST_BLOCK, DIGEST_BLOCKS).astype(np.int64):
                file.seek(int(start))
                digest.update(file.read(DIGEST_BLOCK))
    return digest.hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Digest of several files and their names, in order of name."""
    lines = [f"{path.name} {file_digest(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_teacher(path: str | Path, dtype: Any = np.float32) -> Teacher:
    """Read a teacher.

    Args:
      path: a Hugging Face folder of one of the families in `families.FAMILIES`, a `.gguf` file, or a model's name on
        the Hugging Face hub, such as "Qwen/Qwen2.5-0.5B" (fetched once, then read from the hub's cache).
      dtype: of the weights in memory, whatever that of the file.

    Raises:
      InputError: the path does not exist, the hub does not answer, or what is there is missing, damaged or
        unsupported (named).
    """
    path = hub.fetched(path)
    if path.suffix.lower() == ".gguf":
        file = open_gguf(path)
        config, weights = gguf.load_model(file, dtype)
        digest, tokenizer = files_digest([path]), read_tokenizer(file)
    else:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise InputError(f"{path}: {what}; give a Hugging Face model folder or a .gguf file")
        config, weights, files = huggingface.load_model(path, dtype)
        digest, tokenizer = files_digest(files), load_tokenizer(path)
    if tokenizer is not None:
        tokenizer = dataclasses.replace(tokenizer, table=config.vocab_size)
    return Teacher(config, weights, digest, tokenizer, path)
