"""Text as a source of sequences: documents, tokenizer, disjoint pools by document.

A folder with train and test (and valid) files keeps its splits; a single text, in one file or many, is split by
document. The training text is divided by document among the teacher, the reference model and the students, so that no
two of them share one. Within a pool the tokens of its documents are joined and cut into windows of T+1. Text is read as
a stream, and tokens lie in a memory-mapped file: neither is held in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.client
import itertools
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from lrc_jax import sealed
from lrc_jax.data.corpus import CUTS, LEAST, PIECES, SEPARATOR, Corpus, Documents, Stream, cut, equal_pieces
from lrc_jax.data.layouts import TextFile, chunks, find, records
from lrc_jax.data.pace import Pace
from lrc_jax.data.tokens import Tokens, default_cache, tokens_of
from lrc_jax.data.windows import Windows
from lrc_jax.errors import InputError
from lrc_jax.seeds import rng_for
from lrc_jax.teachers.tokenizer import Tokenizer

HELD_OUT_SHARE = 0.05  # of a single text: this share of documents for validation, and this share for the test
HUB_SECONDS = 3.0
PURPOSES = ("teacher", "reference", "student", "probe", "test")
READING = 1  # how documents are cut from files; another number is another entry of the cache


@dataclasses.dataclass(frozen=True)
class TextSplits:
    """Documents of the three splits.

    Attributes:
      digest: of all of them.
      corpus: where they lie; made when it is first asked for.
      cache: folder for what is made of them.
    """

    train: Documents
    valid: Documents
    test: Documents
    digest: str
    corpus: Callable[[], Corpus]
    cache: Path


def _splits(corpus: Callable[[], Corpus], index: list[np.ndarray], digest: str, cache: Path) -> TextSplits:
    train, valid, test = (Documents(corpus, numbers) for numbers in index)
    return TextSplits(train, valid, test, digest, corpus, cache)


def _index(counts: list[int], is_split: bool) -> list[np.ndarray]:
    """Numbers of the documents of train, valid and test, where a text's files say how many each has, or of a text that
    is split here."""
    if is_split:
        bounds = np.cumsum([0, *counts])
        return [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
    (n,) = counts
    order = rng_for(0, "split", n).permutation(n)
    held = max(1, round(HELD_OUT_SHARE * n))
    return [order[2 * held :], order[:held], order[held : 2 * held]]


class _Text:
    """A text as it lies on disk."""

    def __init__(self, path: Path, files: list[TextFile], field: str | None, cache: Path) -> None:
        self.path, self.files, self.field, self.cache = path, files, field, cache
        self.is_split = files[0].split != "all"
        if field is not None and (plain := next((f for f in files if f.kind == "text"), None)):
            raise InputError(f"--text-field: {field!r}, but {plain.path} is plain text; leave the field out")

    def _digest(self) -> str:
        """Of the files' content and of how it is read."""
        content = [[f.kind, f.split] for f in self.files]
        digest = hashlib.sha256(json.dumps([READING, content, self.field]).encode())
        pace = Pace(f"{self.path}: looking for changes", sum(f.size for f in self.files))
        for file in self.files:
            part = hashlib.sha256()
            with file.path.open("rb") as raw:
                while block := raw.read(1 << 20):
                    part.update(block)
                    pace.add(len(block))
            digest.update(part.digest())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def key(self) -> str:
        """Identifies the content."""
        return self._digest()

    def _documents(self, file: TextFile, pace: Pace) -> Stream:
        if file.kind != "text":
            yield from records(file.path, file.kind, self.field, pace.add)
            return
        yield from cut(lambda: chunks(file.path, pace.add))
        yield None

    @functools.cached_property
    def read(self) -> tuple[Corpus, list[int]]:
        """The documents, and how many each split has, or, of a text that is split here, how many there are."""
        key = self.key
        # A plain text is read twice: what ends its documents is known at its end.
        size = sum(f.size * (2 if f.kind == "text" else 1) for f in self.files)
        pace = Pace(f"{self.path}: reading", size)
        corpus, counts = Corpus(self.cache), dict.fromkeys(("train", "valid", "test") if self.is_split else ("all",), 0)
        for file in self.files:
            before = len(corpus)
            corpus.write(self._documents(file, pace))
            counts[file.split] += len(corpus) - before
            if not counts[file.split]:
                raise InputError(f"{file.path}: the file is empty; give a file with text")
        if not self.is_split and len(corpus) < PIECES:
            corpus = self._in_pieces(corpus)
            counts["all"] = len(corpus)
        if self._digest() != key:
            raise InputError(f"{self.path}: was changed while it was read; start again when it is complete")
        return corpus, list(counts.values())

    def _in_pieces(self, corpus: Corpus) -> Corpus:
        """A text of few documents, cut into pieces that stand for them."""

        def text() -> itertools.chain[str]:
            if self.files[0].kind == "text":
                plain = (itertools.chain(["\n"] if i else [], chunks(f.path)) for i, f in enumerate(self.files))
                return itertools.chain.from_iterable(plain)
            joined = (itertools.chain(corpus.parts(i), ["\n\n"]) for i in range(len(corpus)))
            return itertools.chain.from_iterable(joined)

        size = sum(map(len, text()))
        for end in CUTS:
            pieces = Corpus(self.cache).write(equal_pieces(text(), size, end))
            if len(pieces) >= (LEAST if end is CUTS[0] else PIECES):
                return pieces
        if len(pieces) < LEAST:
            raise InputError(
                f"{self.path}: too short to split into train, validation and test ({size} characters); give more text"
            )
        return pieces

    def splits(self) -> TextSplits:
        """The documents by split; their digest is remembered by that of the files."""
        note = self.cache / "texts" / f"{self.key}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):
            known = sealed.usable(note, "it")
            if known is None:
                corpus, counts = self.read
                index = _index(counts, self.is_split)
                pace = Pace(f"{self.path}: digest", corpus.size)
                known = {"counts": counts, "digest": corpus.digest(index, pace.add)}
                sealed.write_file(note, known)
        return _splits(lambda: self.read[0], _index(known["counts"], self.is_split), known["digest"], self.cache)


@functools.lru_cache(maxsize=4)
def _read_splits(path: Path, files: tuple[TextFile, ...], field: str | None, cache: Path, stamp: object) -> TextSplits:
    del stamp
    return _Text(path, list(files), field, cache).splits()


def read_splits(path: Path, field: str | None = None, cache: Path | None = None) -> TextSplits:
    """Read a text: a file, or a folder of train, test and perhaps valid files, or of shards of one text.

    Files are plain text, JSON lines or parquet, each perhaps compressed by gzip. A text of more than one split keeps
    it; another is split by document.

    Args:
      field: of JSON lines and parquet, the one with the text; None is "text".
      cache: folder for digests, tokens and, while they are made, the documents; None is `default_cache()`.

    Raises:
      InputError: nothing is there, or a file is empty, broken or no text; names file, line or row, and field.
    """
    files = tuple(find(path))
    stamp = tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for f in files if (stat := f.path.stat()))
    return _read_splits(path, files, field, cache or default_cache(), stamp)


@functools.cache
def hub_answers() -> bool:
    """Whether the hub, or the proxy before it, lets itself be spoken to within HUB_SECONDS. Asked once per process, in
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


def wikitext2_splits(cache: Path | None = None) -> TextSplits:
    """WikiText-2 (v1, with <unk>; CC BY-SA 3.0) through the `datasets` package, from the hub or its local cache.

    Args:
      cache: as of `read_splits`.

    Raises:
      InputError: the hub does not answer and nothing is cached; says what to do.
    """
    if not hub_answers():  # else every file is retried for half a minute
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
    corpus = Corpus(cache := cache or default_cache())
    counts = []
    for name in ("train", "validation", "test"):
        before, text = len(corpus), "".join(loaded[name]["text"])
        corpus.write(cut(lambda text=text: iter([text])))  # type: ignore[misc]
        counts.append(len(corpus) - before)
    index = _index(counts, is_split=True)
    return _splits(lambda: corpus, index, corpus.digest(index), cache)


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
            backend.train_from_iterator(splits.train.words(), trainer)
            with sealed.sealing(folder, {"vocabulary": vocab_size}) as part:
                backend.save(str(part / "tokenizer.json"))
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    return Tokenizer(backend, bos_id=backend.token_to_id(SEPARATOR))


@dataclasses.dataclass(frozen=True)
class _Region:
    """One pool: places and lengths of its documents among all tokens, in the order in which they are joined.

    Attributes:
      first: number of the first of its documents.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: int

    def part(self, a: int, b: int) -> _Region:
        return _Region(self.starts[a:b], self.lengths[a:b], self.first + a)

    def spread(self) -> _Region:
        """The same tokens with documents longer than a piece of all of them cut into pieces."""
        most = max(1, -(-int(self.lengths.sum()) // PIECES))
        pieces = np.maximum(1, -(-self.lengths // most))
        document = np.repeat(np.arange(len(pieces)), pieces)
        before = most * (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        lengths = np.minimum(self.lengths[document] - before, most)
        return _Region(self.starts[document] + before, lengths, self.first)


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
    ) -> None:
        """Args:
        vocab_size: of the model that will read it, where larger than the tokenizer's.
        teacher_share, reference_share: of the training documents; the students have the rest.
        """
        if sequence_length < 2:
            raise InputError(f"sequence_length: {sequence_length} is too short; use at least 2")
        if min(teacher_share, reference_share) < 0 or teacher_share + reference_share >= 1:
            raise InputError("data.teacher_share and data.reference_share: must be at least 0 and sum to less than 1")
        self.splits, self.tokenizer, self.sequence_length = splits, tokenizer, sequence_length
        self.vocab_size = vocab_size or tokenizer.vocab_size
        self.shares = (teacher_share, reference_share)

    @functools.cached_property
    def digest(self) -> str:
        content = [self.splits.digest, self.tokenizer.digest, self.sequence_length, self.shares]
        if self._divided[1]:
            content.append(self._divided[1])
        return "text-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @functools.cached_property
    def tokens(self) -> Tokens:
        """All documents' tokens; made at the first call, once for all sequence lengths and shares."""
        splits = self.splits
        # Equal splits of another corpus have their documents in another order.
        order = hashlib.sha256(b"".join(d.numbers.tobytes() for d in (splits.train, splits.valid, splits.test)))
        return tokens_of(splits.corpus, f"{splits.digest}-{order.hexdigest()[:16]}", self.tokenizer, splits.cache)

    def _region(self, index: np.ndarray, first: int) -> _Region:
        ends = self.tokens.ends
        starts = ends[index]
        return _Region(starts, ends[index + 1] - starts, first)

    @functools.cached_property
    def _divided(self) -> tuple[dict[str, _Region], list[str]]:
        """The pools, and what had to be divided inside documents since it has too few of them."""
        train, valid, test = (d.numbers for d in (self.splits.train, self.splits.valid, self.splits.test))
        train = train[rng_for(0, "pools", len(train)).permutation(len(train))]
        pool, inside = self._region(train, 0), []
        # Cut where the cumulated length passes each share: documents differ in length by orders of magnitude.
        cuts = self._cuts(self.tokens.chars[train])
        wanted = [*(share > 0 for share in self.shares), True]
        if any(a == b for a, b, wants in zip(cuts, cuts[1:], wanted, strict=False) if wants):
            pool = pool.spread()
            cuts = self._cuts(pool.lengths)
            inside.append("train")
        parts = {p: pool.part(a, b) for p, a, b in zip(PURPOSES[:3], cuts, cuts[1:], strict=False)}
        first = len(pool.starts)
        held = self._region(test, first + len(valid))
        if len(valid):
            return parts | {"probe": self._region(valid, first), "test": held}, inside
        if len(test) < 2 and held.lengths.sum() >= 2 * (self.sequence_length + 1):
            held = held.spread()
            inside.append("test")
        half = len(held.starts) // 2  # no validation split: the probe takes the first half of the test
        return parts | {"probe": held.part(0, half), "test": held.part(half, len(held.starts))}, inside

    def _cuts(self, sizes: np.ndarray) -> list[int]:
        """Where the pools of the training text begin and end, by the sizes of its documents."""
        bounds = np.searchsorted(np.cumsum(sizes) / sizes.sum(), np.cumsum(self.shares))
        return [0, *map(int, bounds), len(sizes)]

    def available(self, purpose: str) -> int | None:
        return int(self._divided[0][purpose].lengths.sum()) // (self.sequence_length + 1)

    def _order(self, purpose: str, n: int, replicate: int) -> np.ndarray:
        have = self.available(purpose) or 0
        if n > have:
            key = "samples" if purpose == "student" else f"{purpose} sequences"
            raise InputError(
                f"{key}: {n} asked, the {purpose} pool has {have} of {self.sequence_length} tokens; ask for at most "
                f"{have}, shorten sequence_length or give more text"
            )
        return rng_for(0, "windows", purpose, replicate).permutation(have)[:n]

    def windows(self, purpose: str, n: int, replicate: int = 0) -> Windows:
        """`sequences` that are read as they are used."""
        region, length = self._divided[0][purpose], self.sequence_length + 1
        order = self._order(purpose, n, replicate)
        return Windows(self.tokens.ids, region.starts, region.lengths, length, order, slice(0, length, 1))

    def sequences(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        return np.asarray(self.windows(purpose, n, replicate))

    def documents(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        region, begin = self._divided[0][purpose], self._order(purpose, n, replicate) * (self.sequence_length + 1)
        return region.first + np.searchsorted(np.cumsum(region.lengths), begin, side="right")

    def bayes_loss(self) -> tuple[float, float] | None:
        return None
