"""Documents of a text of any size: cut from a stream, kept in a file, read one by one. None of it is held in memory but
two numbers per document.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import os
import re
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

SEPARATOR = "<|endoftext|>"
# WikiText marks an article by a line " = Title = "; deeper headings have more signs.
ARTICLE = re.compile(r"^ = (?!=)[^\n]*[^=\n] = *$", re.MULTILINE)
BLANK = re.compile(r"\n\s*\n")
HEADING = 1 << 24  # characters from which a line is no heading
PIECES = 20  # of a text whose documents are fewer; they stand for documents
CUTS = (re.compile(r"\n"), re.compile(r"\s"), re.compile(r"(?s)."))  # where such pieces may end, the best first
LEAST = 4  # documents of a text that is to be split in training, validation and test
LONG = 1 << 18  # bytes from which a document is read in parts
BATCH = 1 << 20  # bytes of documents that are read together

# A stream of documents: a part of the one that is open, its end (None), or whole ones.
Stream = Iterator[str | list[str] | None]


class Corpus:
    """Documents by number, without white space around them, in a file that nobody else sees and that ends with the
    process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as the object
        weakref.finalize(self, file.close)
        self._ends, self._chars = array("q", [0]), array("q")
        self._open = [0, 0]  # bytes and characters of the document that is being written
        self._held = ""  # white space that belongs to it only if more follows

    def __len__(self) -> int:
        return len(self._chars)

    def write(self, stream: Iterable[str | list[str] | None]) -> Corpus:
        """Append documents; those that hold nothing but white space are left out."""
        for item in stream:
            if item is None:
                self._end()
            elif isinstance(item, str):
                self._add(item)
            else:
                self._end()
                texts = [stripped for text in item if (stripped := text.strip())]
                encoded = [text.encode() for text in texts]
                self._file.write(b"".join(encoded))
                self._chars.extend(map(len, texts))
                self._ends.extend(
                    itertools.islice(itertools.accumulate(map(len, encoded), initial=self._ends[-1]), 1, None)
                )
        self._end()
        self._file.flush()
        return self

    def _add(self, part: str) -> None:
        if not self._open[1]:
            part = part.lstrip()
        body = part.rstrip()
        if body:
            text = self._held + body
            encoded = text.encode()
            self._file.write(encoded)
            self._open = [self._open[0] + len(encoded), self._open[1] + len(text)]
            self._held = part[len(body) :]
        elif self._open[1]:
            self._held += part

    def _end(self) -> None:
        if self._open[1]:
            self._ends.append(self._ends[-1] + self._open[0])
            self._chars.append(self._open[1])
        self._open, self._held = [0, 0], ""

    @property
    def chars(self) -> np.ndarray:
        """Characters of every document, int64."""
        return np.frombuffer(self._chars, np.int64) if self._chars else np.zeros(0, np.int64)

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return self._ends[-1]

    def _bytes(self, i: int) -> bytes:
        return self._pread(self._ends[i], self._ends[i + 1])

    def _pread(self, start: int, end: int) -> bytes:
        data = os.pread(self._file.fileno(), end - start, start)
        if len(data) != end - start:  # a read gives at most 2 GiB
            return data + self._pread(start + len(data), end) if data else b""
        return data

    def __getitem__(self, i: int) -> str:
        return self._bytes(i).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def parts(self, i: int) -> Iterator[str]:
        """A document in parts of at most LONG bytes."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        end = self._ends[i + 1]
        for start in range(self._ends[i], end, LONG):
            yield decoder.decode(self._pread(start, min(start + LONG, end)))

    def walk(self, index: Iterable[int]) -> Iterator[list[str] | Iterator[str]]:
        """Documents in the order of their numbers given: lists of short ones, and each long one in parts."""
        batch: list[str] = []
        size = 0
        for i in index:
            length = self._ends[i + 1] - self._ends[i]
            if batch and (length > LONG or size + length > BATCH):
                yield batch
                batch, size = [], 0
            if length > LONG:
                yield self.parts(i)
            else:
                batch.append(self[i])
                size += length
        if batch:
            yield batch

    def digest(self, splits: Sequence[np.ndarray], count: Callable[[float], None] = lambda n: None) -> str:
        """sha256 of the JSON of documents by split: [[document, ...], ...]."""
        digest = hashlib.sha256()
        for number, index in enumerate(splits):
            digest.update(b", [" if number else b"[[")
            comma = b""
            for item in self.walk(map(int, index)):
                if isinstance(item, list):
                    text = json.dumps(item)[1:-1].encode()
                    digest.update(comma + text)
                    count(len(text))
                else:
                    digest.update(comma + b'"')
                    for part in item:
                        digest.update(json.dumps(part)[1:-1].encode())
                        count(len(part))
                    digest.update(b'"')
                comma = b", "
            digest.update(b"]")
        digest.update(b"]")
        return digest.hexdigest()


class Documents:
    """Some documents of a corpus, in an order of their own. The corpus is made when the first one is read."""

    def __init__(self, corpus: Callable[[], Corpus], numbers: np.ndarray) -> None:
        self.corpus, self.numbers = corpus, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> str:
        return self.corpus()[int(self.numbers[i])]

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def words(self) -> Iterator[str]:
        """All text in order, to count words in: long documents are cut between two words, before a space."""
        corpus = self.corpus()
        for item in corpus.walk(map(int, self.numbers)):
            if isinstance(item, list):
                yield from item
                continue
            rest = ""
            for part in item:
                rest += part
                at = [m.start() + 1 for m in BETWEEN.finditer(rest, max(0, len(rest) - LONG))][-1:] or [0]
                if at[0] or len(rest) > HEADING:
                    yield rest[: at[0] or len(rest)]
                    rest = rest[at[0] :] if at[0] else ""
            yield rest


BETWEEN = re.compile(r"[a-z](?= [a-z])", re.IGNORECASE)


# --- where documents end ----------------------------------------------------------------------------------------------


def cut(open_text: Callable[[], Iterator[str]]) -> Stream:
    """Cut text into documents: at <|endoftext|>, or at WikiText's article headings, or at blank lines.

    Args:
      open_text: gives the text in pieces, as often as it is called.
    """
    at = _rule(open_text())
    return (_at_separators if at == "separator" else _at_articles if at == "article" else _at_blank_lines)(open_text())


def _rule(text: Iterator[str]) -> str:
    """What ends the documents of a text."""
    separated, tail, articles = [False], "", 0

    def watched() -> Iterator[str]:
        nonlocal tail
        for piece in text:
            seen = tail + piece
            separated[0] = SEPARATOR in seen
            tail = seen[1 - len(SEPARATOR) :]
            yield piece
            if separated[0]:
                return

    for block, inside in _blocks(watched()):
        if articles < 2:
            articles += len(_headings(block, inside))
    return "separator" if separated[0] else "article" if articles > 1 else "blank"


def _blocks(text: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Whole lines at a time, and whether the first one began in the block before (of a line of endless length)."""
    rest, inside = "", False
    for piece in text:
        rest += piece
        end = rest.rfind("\n") + 1
        if not end and (len(rest) > HEADING or inside or not rest.startswith(" = "[: len(rest)])):
            end = len(rest)
        if end:
            yield rest[:end], inside
            inside, rest = rest[end - 1] != "\n", rest[end:]
    if rest:
        yield rest, inside


def _headings(block: str, inside: bool) -> list[int]:
    return [m.start() for m in ARTICLE.finditer(block) if m.start() or not inside]


def _at_separators(text: Iterator[str]) -> Stream:
    rest = ""
    for piece in text:
        *whole, rest = (rest + piece).split(SEPARATOR)
        if whole:
            yield whole[0]
            yield None
            yield whole[1:]
        keep = max(0, len(rest) - len(SEPARATOR) + 1)
        yield rest[:keep]
        rest = rest[keep:]
    yield rest


def _at_articles(text: Iterator[str]) -> Stream:
    first = True
    for block, inside in _blocks(text):
        starts = _headings(block, inside)
        if first and starts:  # what precedes the first heading belongs to its article
            first, starts = False, starts[1:]
        yield block[: starts[0] if starts else None]
        for a, b in itertools.pairwise([*starts, len(block)]):
            yield None
            yield block[a:b]


def _at_blank_lines(text: Iterator[str]) -> Stream:
    rest = ""  # white space at the end of a piece: it may go on
    for piece in text:
        piece = rest + piece
        body = piece.rstrip()
        rest = piece[len(body) :]
        first, *others = BLANK.split(body)
        yield first
        if others:
            yield None
            yield others[:-1]
            yield others[-1]


def equal_pieces(text: Iterator[str], chars: int, end: re.Pattern[str]) -> Stream:
    """Cut after what matches `end`, near multiples of a share of the length."""
    targets = [chars * i // PIECES for i in range(1, PIECES)]
    done = 0
    for piece in text:
        start = 0
        while targets and targets[0] < done + len(piece):
            match = end.search(piece, max(targets[0] - done, start))
            if match is None:
                break
            yield piece[start : match.end()]
            yield None
            start = match.end()
            while targets and targets[0] < done + start:
                del targets[0]
        yield piece[start:]
        done += len(piece)
