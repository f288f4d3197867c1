"""Token ids of a text in a memory-mapped file, made once for a text and a tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from lrc_jax import sealed
from lrc_jax.data.corpus import Corpus
from lrc_jax.data.pace import Pace
from lrc_jax.errors import InputError
from lrc_jax.teachers.tokenizer import Tokenizer

FORMAT = 1  # of the folder; another one is another entry of the cache
PIECE = 1 << 18  # characters from which a document is tokenised in parts
AROUND = 256  # characters on both sides of such a cut that must tokenise as if there was none
TRIES = 64  # places where a cut is tried
BATCH = 1 << 20  # characters that are tokenised together
TOKENS, ENDS, CHARS = "tokens.npy", "ends.npy", "chars.npy"


def default_cache() -> Path:
    """Where tokens are kept if nothing else is said: LRC_CACHE, or `lrc` among the user's caches."""
    if own := os.environ.get("LRC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrc"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Every document's token ids one after another, in the order of the corpus.

    Attributes:
      ids: memory-mapped, uint16 or uint32.
      ends: where each document ends, int64 [documents + 1], the first 0.
      chars: characters of each document, int64 [documents].
    """

    ids: np.ndarray
    ends: np.ndarray
    chars: np.ndarray


def tokens_of(corpus: Callable[[], Corpus], text_digest: str, tokenizer: Tokenizer, cache: Path) -> Tokens:
    """The tokens of a corpus, from the cache or, once, into it.

    Raises:
      InputError: a token has no row in the model's embedding table, or the folder cannot be written.
    """
    key = json.dumps([FORMAT, text_digest, tokenizer.digest])
    folder = cache / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if sealed.usable(folder, "it") is None:
                with sealed.sealing(folder, {"text": text_digest, "tokenizer": tokenizer.digest}) as part:
                    _write(part, corpus(), tokenizer)
    except OSError as wrong:
        raise InputError(
            f"{folder}: tokens cannot be kept there ({wrong.strerror}); set LRC_CACHE (cache_dir of a sweep) to a "
            "folder with room for two bytes per token"
        ) from None
    return Tokens(*(np.load(folder / name, mmap_mode="r") for name in (TOKENS, ENDS, CHARS)))


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    dtype = np.dtype(np.uint16 if max(ids, default=0) < 1 << 16 else np.uint32)
    lengths, length = array("q"), 0
    with (folder / TOKENS).open("wb") as file:
        _header(file, dtype, 0)
        for tokens, is_last in _encoded(corpus, tokenizer, Pace("tokenising", corpus.size)):
            file.write(tokens.astype(dtype).tobytes())
            length += len(tokens)
            if is_last:
                lengths.append(length)
                length = 0
        total = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
        file.seek(0)
        _header(file, dtype, int(total[-1]))
    np.save(folder / ENDS, total)
    np.save(folder / CHARS, corpus.chars)


def _header(file: IO[bytes], dtype: np.dtype[Any], size: int) -> None:
    """Of a .npy file; NumPy leaves room in it, so that a larger size does not move what follows."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(file, described)


def _encoded(corpus: Corpus, tokenizer: Tokenizer, pace: Pace) -> Iterator[tuple[np.ndarray, bool]]:
    """Token ids of every document, or of its parts, and whether it ends with them."""
    texts: list[str] = []
    places: list[tuple[bool, bool]] = []  # whether a text begins a document, and whether it ends it
    size = 0

    def flush() -> Iterator[tuple[np.ndarray, bool]]:
        nonlocal size
        encoded = tokenizer.encode_batch(texts, add_bos=False)
        for tokens, (begins, ends) in zip(encoded, places, strict=True):
            starts = begins and tokenizer.bos_id is not None
            yield np.concatenate([[tokenizer.bos_id], tokens]) if starts else tokens, ends
        pace.add(sum(len(text.encode()) for text in texts))
        texts.clear()
        places.clear()
        size = 0

    for item in corpus.walk(range(len(corpus))):
        for text, begins, ends in _pieces(item, tokenizer):
            texts.append(text)
            places.append((begins, ends))
            size += len(text)
            if size >= BATCH:
                yield from flush()
    yield from flush()


def _pieces(item: list[str] | Iterator[str], tokenizer: Tokenizer) -> Iterator[tuple[str, bool, bool]]:
    """Texts to tokenise, with whether each begins and ends its document."""
    if isinstance(item, list):
        yield from ((text, True, True) for text in item)
        return
    rest, begins = "", True
    for part in item:
        rest += part
        while len(rest) >= PIECE + 2 * AROUND + TRIES:
            end, start = _seam(rest, tokenizer)
            yield rest[:end], begins, False
            rest, begins = rest[start:], False
    yield rest, begins, True


def _seam(text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Where a part ends and the next one starts so that their tokens are those of the whole: before a space or, with
    tokenizers that put one before every text, around it. Proved on the neighbourhood of the cut."""
    spaces = [i for i in range(PIECE - AROUND, PIECE + AROUND) if text[i].isspace() and not text[i - 1].isspace()]
    tried = [(i, i + skip) for i in spaces[:TRIES] for skip in (0, 1)] or [(PIECE + i, PIECE + i) for i in range(TRIES)]
    for end, start in tried:
        before, after = text[end - AROUND : end], text[start : start + AROUND]
        whole, *parts = tokenizer.encode_batch([text[end - AROUND : start + AROUND], before, after], add_bos=False)
        if np.array_equal(whole, np.concatenate(parts)):
            return end, start
    return tried[0]
