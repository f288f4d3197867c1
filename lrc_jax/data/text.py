"""Text as a source of sequences: documents, tokenizer, disjoint pools by document.

A folder with train.txt and test.txt (and valid.txt) keeps its splits; a single file is split by document. The
training text is divided by document among the teacher, the reference model and the students, so that no two of them
share one. Within a pool the tokens of its documents are joined and cut into windows of T+1.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.client
import itertools
import json
import logging
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from filelock import FileLock

from lrc_jax import sealed
from lrc_jax.errors import InputError
from lrc_jax.seeds import rng_for
from lrc_jax.teachers.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
# WikiText marks an article by a line " = Title = "; deeper headings have more signs.
ARTICLE = re.compile(r"^ = (?!=)[^\n]*[^=\n] = *$", re.MULTILINE)
HELD_OUT_SHARE = 0.05  # of a single file: this share of documents for validation, and this share for the test
MIN_DOCUMENTS = 20  # a single file with fewer documents is cut into equal pieces that stand for documents
HUB_SECONDS = 3.0
PURPOSES = ("teacher", "reference", "student", "probe", "test")


@dataclasses.dataclass(frozen=True)
class TextSplits:
    """Documents of the three splits, and a digest of all of them."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    digest: str


def split_documents(text: str) -> list[str]:
    """Cut text into documents: at <|endoftext|>, or at WikiText's article headings, or at blank lines."""
    if SEPARATOR in text:
        parts = text.split(SEPARATOR)
    elif len(starts := [m.start() for m in ARTICLE.finditer(text)]) > 1:
        parts = [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]
    else:
        parts = re.split(r"\n\s*\n", text)
    return [part.strip() for part in parts if part.strip()]


def _equal_pieces(text: str, pieces: int) -> list[str]:
    """Cut at line ends near multiples of the length, for a text without marked documents."""
    bounds = [0]
    for i in range(1, pieces):
        at = text.find("\n", len(text) * i // pieces)
        bounds.append(len(text) if at < 0 else at + 1)
    bounds.append(len(text))
    return [text[a:b].strip() for a, b in itertools.pairwise(bounds) if text[a:b].strip()]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as wrong:
        raise InputError(f"{path}: not UTF-8 text (byte {wrong.start}); give a text file") from None
    except OSError as wrong:
        raise InputError(f"{path}: cannot be read ({wrong.strerror}); check the path") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty; give a file with text")
    return text


def _splits(train: list[str], valid: list[str], test: list[str]) -> TextSplits:
    content = hashlib.sha256(json.dumps([train, valid, test]).encode())
    return TextSplits(tuple(train), tuple(valid), tuple(test), content.hexdigest())


@functools.lru_cache(maxsize=4)
def read_splits(path: Path) -> TextSplits:
    """Read a file, or a folder with train.txt, test.txt and perhaps valid.txt.

    Raises:
      InputError: nothing is there, or a file is empty or no text.
    """
    if path.is_dir():
        missing = [n for n in ("train.txt", "test.txt") if not (path / n).is_file()]
        if missing:
            raise InputError(
                f"{path}: {' and '.join(missing)} missing; a text folder has train.txt, test.txt, valid.txt"
            )
        valid = path / "valid.txt"
        return _splits(
            split_documents(_read(path / "train.txt")),
            split_documents(_read(valid)) if valid.is_file() else [],
            split_documents(_read(path / "test.txt")),
        )
    if not path.is_file():
        raise InputError(f"data.path: {path} does not exist; give a text file or a folder with train.txt and test.txt")
    text = _read(path)
    documents = split_documents(text)
    if len(documents) < MIN_DOCUMENTS:
        documents = _equal_pieces(text, MIN_DOCUMENTS)
    order = rng_for(0, "split", len(documents)).permutation(len(documents))
    held = max(1, round(HELD_OUT_SHARE * len(documents)))
    if len(documents) < 4 * held:
        raise InputError(f"{path}: too short to split into train, validation and test; give more text")
    picked = [documents[i] for i in order]
    return _splits(picked[2 * held :], picked[:held], picked[held : 2 * held])


@functools.cache
def _hub_answers() -> bool:
    """Whether the hub, or the proxy before it, lets itself be spoken to within HUB_SECONDS. Asked once a process, in
    a thread of its own, since looking up a name knows no time limit."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    hub = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    found = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(hub, timeout=HUB_SECONDS):
                found.append(True)
        except urllib.error.HTTPError:  # an answer too
            found.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(found)


def wikitext2_splits() -> TextSplits:
    """WikiText-2 (v1, with <unk>; CC BY-SA 3.0) through the `datasets` package, from the hub or its local cache.

    Raises:
      InputError: the hub does not answer and nothing is cached; says what to do.
    """
    if not _hub_answers():  # else every file is retried for half a minute
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True  # the variable of this name was read when the package was imported
    logging.getLogger("datasets").setLevel(logging.WARNING)  # else it tells which frameworks it finds
    import datasets

    try:
        loaded = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-v1")
    except Exception as wrong:  # the package raises many kinds
        raise InputError(
            f"data=wikitext2: the hub does not answer ({type(wrong).__name__}); give data.path=FOLDER with train.txt, "
            "valid.txt and test.txt, or use data=synthetic"
        ) from None
    return _splits(*(split_documents("".join(loaded[s]["text"])) for s in ("train", "validation", "test")))


def train_tokenizer(splits: TextSplits, vocab_size: int, cache: Path) -> Tokenizer:
    """A byte-level BPE trained on the training documents, cached by the digest of text and size.

    Raises:
      InputError: the size does not hold the 256 bytes and the separator.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise InputError(f"data.tokenizer_size: {vocab_size} is too small; a byte-level BPE needs at least 257")
    folder = cache / "tokenizers" / f"{splits.digest[:16]}-{vocab_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if sealed.usable(folder, "the tokenizer") is None:
            backend = Backend(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=[SEPARATOR],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            backend.train_from_iterator(splits.train, trainer)
            with sealed.sealing(folder, {"vocabulary": vocab_size}) as part:
                backend.save(str(part / "tokenizer.json"))
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    return Tokenizer(backend, bos_id=backend.token_to_id(SEPARATOR))


@dataclasses.dataclass(frozen=True)
class _Region:
    """One pool's windows [n, T+1] and the document that each begins in."""

    windows: np.ndarray
    documents: np.ndarray


def _windows(tokenizer: Tokenizer, documents: list[str], first_document: int, length: int) -> _Region:
    encoded = tokenizer.encode_batch(documents)
    tokens = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
    owner = np.repeat(np.arange(first_document, first_document + len(encoded)), [len(e) for e in encoded])
    n = len(tokens) // length
    return _Region(tokens[: n * length].reshape(n, length), owner[: n * length : length])


class TextSource:
    """Windows of tokenised text in disjoint pools."""

    def __init__(
        self,
        splits: TextSplits,
        tokenizer: Tokenizer,
        sequence_length: int,
        *,
        vocab_size: int | None = None,
        teacher_share: float = 0.5,
        reference_share: float = 0.15,
        cache: Path | None = None,
    ) -> None:
        """Args:
        vocab_size: of the model that will read it, where larger than the tokenizer's.
        teacher_share, reference_share: of the training documents; the students have the rest.
        cache: folder for token ids, keyed by their digest; None recomputes them.
        """
        if sequence_length < 2:
            raise InputError(f"sequence_length: {sequence_length} is too short; use at least 2")
        if min(teacher_share, reference_share) < 0 or teacher_share + reference_share >= 1:
            raise InputError("data.teacher_share and data.reference_share: must be at least 0 and sum to less than 1")
        self.splits, self.tokenizer, self.sequence_length = splits, tokenizer, sequence_length
        self.vocab_size = vocab_size or tokenizer.vocab_size
        self.shares = (teacher_share, reference_share)
        self._cache = cache

    @functools.cached_property
    def digest(self) -> str:
        content = json.dumps([self.splits.digest, self.tokenizer.digest, self.sequence_length, self.shares])
        return "text-" + hashlib.sha256(content.encode()).hexdigest()[:16]

    @functools.cached_property
    def _regions(self) -> dict[str, _Region]:
        folder = None if self._cache is None else self._cache / "tokens" / self.digest
        if folder is not None and sealed.usable(folder, "it") is not None:
            with np.load(folder / "tokens.npz") as file:
                return {p: _Region(file[f"{p}_windows"], file[f"{p}_documents"]) for p in PURPOSES}
        regions = self._tokenise()
        if folder is not None:
            arrays = {f"{p}_{f}": getattr(r, f) for p, r in regions.items() for f in ("windows", "documents")}
            with sealed.sealing(folder, {"data": self.digest}) as part:
                np.savez(part / "tokens.npz", **arrays)
        return regions

    def _tokenise(self) -> dict[str, _Region]:
        train = [
            self.splits.train[i]
            for i in rng_for(0, "pools", len(self.splits.train)).permutation(len(self.splits.train))
        ]
        length = self.sequence_length + 1
        sizes = np.array([len(d) for d in train])
        # Cut where the cumulated length passes each share: documents differ in length by orders of magnitude.
        bounds = np.searchsorted(np.cumsum(sizes) / sizes.sum(), np.cumsum(self.shares))
        cuts = [0, *map(int, bounds), len(train)]
        parts = {p: train[a:b] for p, a, b in zip(PURPOSES[:3], cuts, cuts[1:], strict=False)}
        held = list(self.splits.valid), list(self.splits.test)
        if not held[0]:  # no validation split: the probe takes the first half of the test
            half = len(held[1]) // 2
            held = held[1][:half], held[1][half:]
        parts |= {"probe": held[0], "test": held[1]}
        out, first = {}, 0
        for purpose in PURPOSES:
            out[purpose] = _windows(self.tokenizer, parts[purpose], first, length)
            first += len(parts[purpose])
        return out

    def available(self, purpose: str) -> int | None:
        return len(self._regions[purpose].windows)

    def _order(self, purpose: str, n: int, replicate: int) -> np.ndarray:
        have = len(self._regions[purpose].windows)
        if n > have:
            key = "samples" if purpose == "student" else f"{purpose} sequences"
            raise InputError(
                f"{key}: {n} asked, the {purpose} pool has {have} of {self.sequence_length} tokens; ask for at most "
                f"{have}, shorten sequence_length or give more text"
            )
        return rng_for(0, "windows", purpose, replicate).permutation(have)[:n]

    def sequences(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        return self._regions[purpose].windows[self._order(purpose, n, replicate)]

    def documents(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        return self._regions[purpose].documents[self._order(purpose, n, replicate)]

    def bayes_loss(self) -> tuple[float, float] | None:
        return None
