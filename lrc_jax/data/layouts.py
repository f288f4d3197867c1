"""Files of text in the layouts in which it is kept: plain text, JSON lines, parquet, each perhaps compressed by gzip.

What a file is follows from its content: a name decides only where the content leaves it open.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from lrc_jax.errors import InputError

Kind = Literal["text", "jsonl", "parquet"]
Count = Callable[[float], None]  # told of bytes that were read from disk

FIELD = "text"  # of a record, where none is named
SUFFIXES = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test"}
CHUNK = 1 << 20  # bytes that are read at once
FIRST_LINES = 1 << 24  # most bytes of a first line by which JSON is told from text
RECORDS = 256  # of a parquet file that are read at once
ARRAY = re.compile(rb"\s*(\[\s*)?\{\s*[\"}]")


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file, what it is, and which split its documents belong to ("all": the split is made here)."""

    path: Path
    kind: Kind
    split: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


# --- which files ------------------------------------------------------------------------------------------------------


def _stem(path: Path) -> tuple[str, str]:
    """A name's stem and its suffix, without .gz."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot else (name, "")


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and _stem(p)[1] in SUFFIXES)


def _split_of(name: str) -> str | None:
    """train-00000-of-00002 -> train."""
    return SPLITS.get(re.split(r"[-_.]", name.lower(), maxsplit=1)[0])


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Files by split: train.txt; else train-00000-of-00002.parquet and its like; or what lies in a folder train/."""
    found: dict[str, list[Path]] = {}
    for split_of in (lambda name: SPLITS.get(name.lower()), _split_of):
        more: dict[str, list[Path]] = {}
        for path in _shards(folder):
            more.setdefault(split_of(_stem(path)[0]) or "", []).append(path)
        found = more | found
    for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
        found.setdefault(SPLITS.get(sub.name.lower(), ""), _shards(sub))
    found = {split: paths for split, paths in found.items() if split and paths}
    return found


def _one_kind(folder: Path, paths: list[Path]) -> None:
    suffixes = {SUFFIXES[_stem(p)[1]]: p.name for p in reversed(paths)}
    if len(suffixes) > 1:
        names = " and ".join(sorted(suffixes.values()))
        raise InputError(f"{folder}: {names} are of different kinds; leave one kind in the folder, or give one file")


def find(path: Path) -> list[TextFile]:
    """The files of a text: the file itself, or those of a folder, in the order in which they are read.

    A folder holds train and test (and valid) files, or shards of one text, which is then split by document.

    Raises:
      InputError: nothing readable is there; says what is.
    """
    if path.is_file():
        return [TextFile(path, kind_of(path), "all")]
    if not path.is_dir():
        raise InputError(f"data.path: {path} does not exist; give a text file or a folder with train.txt and test.txt")
    splits = _by_split(path)
    if "test" in splits and "train" in splits:
        for paths in splits.values():
            _one_kind(path, paths)
        order = [name for name in ("train", "valid", "test") if name in splits]
        return [TextFile(p, kind_of(p), name) for name in order for p in splits[name]]
    shards = splits.get("train") or _shards(path)
    missing = [f"{n}.txt" for n in ("train", "test") if n not in splits]
    if not shards or {"valid", "test"} & set(splits):
        raise InputError(
            f"{path}: {' and '.join(missing)} missing; a text folder has train.txt, test.txt, valid.txt (or .jsonl, "
            f".parquet, .gz of these), or shards of one text{_others(path, shards)}"
        )
    _one_kind(path, shards)
    return [TextFile(p, kind_of(p), "all") for p in shards]


def _others(folder: Path, shards: list[Path]) -> str:
    names = sorted(p.name for p in folder.iterdir() if p not in shards)
    return f"; it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""


# --- what a file is ---------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as wrong:
        raise InputError(f"{path}: a damaged gzip file ({wrong}); fetch it again") from None
    except OSError as wrong:
        raise InputError(f"{path}: cannot be read ({wrong.strerror or wrong}); check the path") from None


@contextmanager
def _opened(path: Path, count: Count = lambda n: None) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed."""
    with _readable(path), path.open("rb") as raw:
        counted: Any = _Counted(raw, count)
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = gzip.GzipFile(fileobj=counted) if zipped else counted
        yield file


class _Counted(io.RawIOBase):
    """A file that tells how many bytes are read from it."""

    def __init__(self, file: IO[bytes], count: Count) -> None:
        self.file, self.count = file, count

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.count(len(data))
        return data

    def readline(self, size: int | None = -1) -> bytes:
        data = self.file.readline(-1 if size is None else size)
        self.count(len(data))
        return data


def kind_of(path: Path) -> Kind:
    """Text, JSON lines or parquet.

    Raises:
      InputError: the file cannot be read, or is one JSON document.
    """
    with _opened(path) as file:
        start = file.read(4)
        if start == b"PAR1":
            return "parquet"
        if start == b"\x28\xb5\x2f\xfd":
            raise InputError(f"{path}: compressed by zstd, which is not read here; decompress it, or use gzip")
    if _stem(path)[1] in (".jsonl", ".ndjson"):
        return "jsonl"
    with _opened(path) as file:
        lines = (line.strip().removeprefix(codecs.BOM_UTF8) for line in iter(lambda: file.readline(FIRST_LINES), b""))
        first, second = next(filter(None, lines), b""), next(filter(None, lines), b"")
    if first.startswith(b"{") and _record(first) and second[:1] in (b"", b"{"):
        return "jsonl"
    if ARRAY.match(first + b"\n" + second) and (_stem(path)[1] == ".json" or first.startswith(b"[")):
        raise InputError(f"{path}: one JSON document; give JSON lines, one object per line (jq -c '.[]' makes them)")
    return "text"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- what is in it ----------------------------------------------------------------------------------------------------


def chunks(path: Path, count: Count = lambda n: None, size: int = CHUNK) -> Iterator[str]:
    """A plain text in pieces, its line ends as \\n.

    Raises:
      InputError: it cannot be read or is no UTF-8; names the line and the byte.
    """
    plain = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(plain, translate=True)
    done = lines = 0
    with _opened(path, count) as file:
        while True:
            raw = file.read(size)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as wrong:
                before = wrong.start - (len(wrong.object) - len(raw))
                line = lines + raw[: max(before, 0)].count(b"\n") + 1
                raise InputError(
                    f"{path}: not UTF-8 text (line {line}, byte {done + before}); give a text file"
                ) from None
            done, lines = done + len(raw), lines + raw.count(b"\n")
            if text:
                yield text
            if not raw:
                return


def records(path: Path, kind: Kind, field: str | None, count: Count = lambda n: None) -> Iterator[list[str]]:
    """The documents of JSON lines or of a parquet file: one field of every record.

    Raises:
      InputError: a record is broken or lacks the field; names file, line or row, and field.
    """
    return (_parquet if kind == "parquet" else _jsonl)(path, field or FIELD, count)


def _value(where: str, value: Any, field: str) -> str:
    if not isinstance(value, str):
        was = "null" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{where}: field {field!r} is {was}, not text; correct or remove the record")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {field!r} has half a surrogate pair; correct or remove the record") from None
    return value


def _lacks(where: str, field: str, names: list[str]) -> InputError:
    there = f"; it has {', '.join(map(repr, names[:8]))}" if names else ""
    return InputError(f"{where}: no field {field!r}{there}; name the one with the text by --text-field (data.field)")


def _jsonl(path: Path, field: str, count: Count) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    with _opened(path, count) as file:
        for number, line in enumerate(iter(file.readline, b""), 1):
            line = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if not line:
                continue
            where = f"{path}, line {number}"
            if (record := _record(line)) is None:
                raise InputError(f"{where}: no JSON object; every line of JSON lines is one")
            if field not in record:
                raise _lacks(where, field, list(record))
            batch.append(_value(where, record[field], field))
            size += len(line)
            if size >= CHUNK:
                yield batch
                batch, size = [], 0
    yield batch


def _parquet(path: Path, field: str, count: Count) -> Iterator[list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as raw, tempfile.TemporaryFile() as unzipped:
        source: IO[bytes] = raw
        if raw.read(2) == b"\x1f\x8b":  # parquet is read from its end
            with _opened(path) as file:
                shutil.copyfileobj(file, unzipped)
            source = unzipped
        source.seek(0)
        try:
            table = pq.ParquetFile(source, buffer_size=CHUNK, pre_buffer=False)
            names = table.schema_arrow.names
            if field not in names:
                raise _lacks(str(path), field, names)
            kind = table.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
                raise InputError(f"{path}: field {field!r} is {kind}, not text; name another by --text-field")
            row, rows, size = 0, max(1, table.metadata.num_rows), path.stat().st_size
            for batch in table.iter_batches(batch_size=RECORDS, columns=[field]):
                values = batch.column(0).to_pylist()
                yield [_value(f"{path}, row {row + i}", value, field) for i, value in enumerate(values)]
                row += len(values)
                count(size * len(values) / rows)
        except (pa.ArrowException, OSError) as wrong:
            raise InputError(f"{path}: not a readable parquet file ({' '.join(str(wrong).split())[:150]})") from None
