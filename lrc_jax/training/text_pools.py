"""What a distillation reads: pools of a text, or of tokens that the user brings."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lrc_jax.data.pools import Pool, pool_from_sequences
from lrc_jax.data.text import TextSource, read_splits
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig
from lrc_jax.teachers.load import Teacher

EVALUATED = 32  # most held-out sequences of a text that a loss is measured on


@dataclasses.dataclass(frozen=True)
class Pools:
    """Sequences to train on and held-out ones, disjoint and of one length.

    Attributes:
      train: what batches are drawn from.
      test: what the reported losses are measured on.
      valid: what to choose settings by; None measures nothing there.
      digest: identifies the content.
    """

    train: Pool
    test: Pool
    valid: Pool | None
    digest: str

    @classmethod
    def of(
        cls,
        train: Int[np.ndarray, "N T1"],
        test: Int[np.ndarray, "M T1"],
        valid: Int[np.ndarray, "K T1"] | None = None,
    ) -> Pools:
        """Pools of sequences that are tokens already.

        Args:
          train, test, valid: token ids, integers [sequences, T+1]: T inputs, each with the next token as its label.

        Raises:
          InputError: an array has no sequence, or the lengths differ.
        """
        given = {"train": train, "test": test} | ({} if valid is None else {"valid": valid})
        arrays = {name: np.asarray(x) for name, x in given.items()}
        digest = hashlib.sha256()
        for name, x in arrays.items():
            if x.ndim != 2 or not len(x) or not np.issubdtype(x.dtype, np.integer):
                raise InputError(
                    f"{name}: an array of {x.dtype} {list(x.shape)}; integers [sequences, T+1] are expected"
                )
            if x.shape[1] != arrays["train"].shape[1] or x.shape[1] < 3:
                raise InputError(f"{name}: {x.shape[1]} tokens per sequence; give all pools one length of at least 3")
            digest.update(f"{name} {x.shape}\n".encode() + np.ascontiguousarray(x, np.int32).tobytes())
        pools = {name: pool_from_sequences(x) for name, x in arrays.items()}
        return cls(pools["train"], pools["test"], pools.get("valid"), f"pools-{digest.hexdigest()[:16]}")

    @property
    def sequence_length(self) -> int:
        """Inputs a sequence, T."""
        return self.train.tokens_NT.shape[1]

    def check(self, config: DecoderConfig, samples: int = 0) -> None:
        """Raise InputError where a token is none of the model's, or there are fewer than `samples` to train on."""
        if samples > self.train.size:
            raise InputError(f"--samples: {samples} asked, there are {self.train.size} to train on")
        pools = [pool for pool in (self.train, self.test, self.valid) if pool]
        tokens = [np.asarray(x) for pool in pools for x in (pool.tokens_NT, pool.labels_NT)]
        low, high = min(int(x.min()) for x in tokens[::2]), max(int(x.max()) for x in tokens)
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise InputError(f"--text: token {wrong} is outside 0..{config.vocab_size - 1}, the teacher's vocabulary")


def text_source(text: str | Path, model: Teacher, sequence_length: int, field: str | None = None) -> TextSource:
    """A text as a source of sequences for a model: nothing of it is set aside for training a teacher."""
    return TextSource(
        read_splits(Path(text), field),
        model.require_tokenizer(),
        sequence_length,
        vocab_size=model.config.vocab_size,
        teacher_share=0.0,
        reference_share=0.0,
    )


def check_parts(source: TextSource, text: str | Path, parts: dict[str, str]) -> None:
    """Raise InputError where a part of a text has no sequence; `parts` says what each is for."""
    for part, use in parts.items():
        if not source.available(part):
            raise InputError(
                f"--text: {text} has no sequence of {source.sequence_length} tokens {use}; give more "
                "text or a lower --sequence-length"
            )


def held_out(source: TextSource, part: str, most: int = EVALUATED) -> Pool:
    """At most so many sequences of a part of a text."""
    return pool_from_sequences(source.sequences(part, min(most, source.available(part) or 0)))


def read_pools(
    text: str,
    teacher: Teacher,
    sequence_length: int,
    samples: int = 0,
    field: str | None = None,
    evaluated: int = EVALUATED,
) -> Pools:
    """The pools of a text file or folder. Training sequences are read from the file of tokens as they are used.

    Args:
      samples: training sequences; 0 takes all.
      field: of JSON lines and parquet, the one with the text; None is "text".
      evaluated: most held-out sequences of the test and of the validation text.

    Raises:
      InputError: the text cannot be read or is too short, or the teacher has no tokenizer.
    """
    source = text_source(text, teacher, sequence_length, field)
    samples = samples or source.available("student") or 0
    check_parts(source, text, {"student": "to train on", "test": "to test on", "probe": "for validation"})
    train = pool_from_sequences(source.windows("student", samples))
    return Pools(train, held_out(source, "test", evaluated), held_out(source, "probe", evaluated), source.digest)
