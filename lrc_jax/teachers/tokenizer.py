"""A thin wrapper of the `tokenizers` package: text to ids and back, with the ids of the special tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from tokenizers import Tokenizer as _Tokenizer

from lrc_jax.errors import InputError
from lrc_jax.teachers.keys import read_json

TOKENIZER_FILE = "tokenizer.json"
# What stock transformers reads beside tokenizer.json; an export copies those that are there.
COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
      backend: the `tokenizers` object.
      bos_id: id of the token that the model expects before every text, None where it expects none (a model may
        have a start token for chats and yet read plain text without it, as SmolLM2 does).
      eos_ids: ids that end a sequence (chat models have several); may be empty.
      companions: further files (name -> content) that stock transformers wants beside tokenizer.json.
      table: rows of the model's embedding table; None where no model is known. A token beyond it is refused.
    """

    backend: _Tokenizer
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    companions: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    table: int | None = None

    @property
    def eos_id(self) -> int | None:
        """The first of `eos_ids`, None where there is none."""
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def vocab_size(self) -> int:
        """Tokens including the added ones. The model's embedding may have more rows (padding)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over everything that decides the ids."""
        ids = f"{self.bos_id} {self.eos_ids}"
        return hashlib.sha256(f"{ids}\n{self.backend.to_str()}".encode()).hexdigest()

    def encode(self, text: str, add_bos: bool = True) -> np.ndarray:
        """Token ids [T] int32; with `add_bos` the start-of-sequence token first, where there is one.

        Raises:
          InputError: a token has no row in the model's embedding table.
        """
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        return self._checked(ids)

    def _checked(self, ids: list[int]) -> np.ndarray:
        ids_T = np.asarray(ids, np.int32)
        if self.table is not None and ids_T.size and (highest := int(ids_T.max())) >= self.table:
            raise InputError(
                f"tokenizer: token {self.backend.id_to_token(highest)!r} has id {highest}, but the model's embedding "
                f"table has {self.table} rows (0..{self.table - 1}); leave the token out of the text, or give the "
                "tokenizer that belongs to the model"
            )
        return ids_T

    def encode_batch(self, texts: list[str], add_bos: bool = True) -> list[np.ndarray]:
        """`encode` of many texts, in parallel."""
        start = [self.bos_id] if add_bos and self.bos_id is not None else []
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [self._checked(start + encoding.ids) for encoding in encodings]

    def decode(self, ids: Iterable[SupportsIndex], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and its companions as stock transformers reads them."""
        self.backend.save(str(folder / TOKENIZER_FILE))
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Whatever the package raises in the block as an InputError that begins with `what`. A panic of its Rust code is
    no Exception, and would print a backtrace: standard error is shut meanwhile."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as wrong:
        reason = " ".join(str(wrong).split())[:200]
        raise InputError(f"{what} ({reason}); fetch the file again") from None
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None where there is no tokenizer.json.

    The start token is what tokenizer.json's own post-processor puts before a text, or tokenizer_config.json's where
    that says `add_bos_token`; the ends are those of tokenizer_config.json, generation_config.json and config.json.

    Raises:
      InputError: a file is damaged, or a special token is not in the vocabulary.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    with readable(f"{path}: not a readable tokenizer"):
        backend = _Tokenizer.from_file(str(path))
        backend.no_padding()
        backend.no_truncation()
        plain, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    settings = _settings(folder / "tokenizer_config.json")
    model = _settings(folder / "config.json")
    generation = _settings(folder / "generation_config.json")

    def named(key: str) -> int | None:
        token = settings.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            return None
        found = backend.token_to_id(token) if isinstance(token, str) else None
        if found is None:
            raise InputError(f"{folder / 'tokenizer_config.json'}: {key} {token!r} is not a token of {TOKENIZER_FILE}")
        return found

    def start() -> int | None:
        if len(whole) > len(plain) and whole[0] != plain[0]:
            return whole[0]
        return named("bos_token") if settings.get("add_bos_token") else None

    ends = [named("eos_token")]
    for name, config in (("generation_config.json", generation), ("config.json", model)):
        value = config.get("eos_token_id")
        some = value if isinstance(value, list) else [value]
        if any(i is not None and (type(i) is not int or i < 0) for i in some):
            raise InputError(f"{folder / name}: eos_token_id {value!r} is no token id, nor a list of them")
        ends += some
    return Tokenizer(
        backend,
        bos_id=start(),
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        companions={name: (folder / name).read_bytes() for name in COMPANION_FILES if (folder / name).is_file()},
    )
