"""From the bytes of a file to a table, whatever wrote it: the format is seen in the bytes, not in the file's name.

Delimited text (comma, tab, semicolon, bar, blanks), JSON and JSON lines, parquet; each also packed by gzip, bzip2, xz,
zstandard or zip. Whatever is no table is refused in one line that says what it is.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import warnings
import zipfile
import zlib
from typing import Any

import pandas as pd

from theory.errors import InputError
from theory.names import repeated

#: A packed file that is larger than this when unpacked is refused: it would not fit into memory as a table.
LARGEST_UNPACKED = 2**30
#: Lines by which the separator is chosen.
SAMPLED = 50
#: A field of this many words in a header line is a sentence.
SENTENCE = 8

_PACKED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstandard": b"\x28\xb5\x2f\xfd"}

EXPORT = "export the measurements as CSV, JSON lines or parquet"

#: First bytes of files that are often given by mistake.
_FOREIGN = (
    (b"GGUF", "a GGUF model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook or other Office document"),
    (b"ARROW1", "an Arrow or feather file"),
    (b"ORC", "an ORC file"),
    (b"\x7fELF", "a program"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with git lfs pull)"),
)


def frame_of(data: bytes, given: str) -> pd.DataFrame:
    """The table in a file's bytes; names as they stand there, without the blanks around them.

    Args:
        data: the whole file. given: its name in messages.

    Raises:
        InputError: it is no table, or a damaged one.
    """
    data = _unpacked(data, given)
    if not data.strip():
        raise InputError(f"{given}: the file is empty; write a header line and one row per run")
    if data[:4] == b"PAR1":
        return _from_parquet(data, given)
    if foreign := _foreign(data):
        raise InputError(f"{given}: {foreign}, not a table; {EXPORT}")
    data = _utf8(data, given)
    if re.match(rb"\s*(?:\{\s*[\"}]|\[\s*[\[\]{\"\d-])", data):
        return _from_json(data, given)
    return _from_text(data, given)


def plain_frame(frame: pd.DataFrame, given: str) -> pd.DataFrame:
    """A frame of any origin with named levels of the index as columns and with distinct names that are text.

    Raises:
        InputError: two columns have one name.
    """
    named = [level for level, name in enumerate(frame.index.names) if name is not None and name not in frame.columns]
    if named:
        frame = frame.reset_index(level=named)
    names = [
        ".".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)
        for name in frame.columns
    ]
    frame = frame.set_axis([name.strip() for name in names], axis=1)
    _refuse_repeated(list(frame.columns), given)
    return frame


def _refuse_repeated(names: list[str], given: str) -> None:
    twice = repeated(names)
    if twice is not None:
        raise InputError(f"{given}: column {twice[:60]!r} occurs twice in the header; rename or remove one")


def _unpacked(data: bytes, given: str) -> bytes:
    if data[:4] == b"PK\x03\x04":
        return _unzipped(data, given)
    packing = next((name for name, start in _PACKED.items() if data.startswith(start)), None)
    if packing is None or (packing == "bzip2" and data[4:10] != b"1AY&SY"):
        return data
    try:
        with _opened(data, packing) as stream:
            return _at_most(stream.read(LARGEST_UNPACKED + 1), given)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{given}: a damaged or cut {packing} file ({_first_line(error)}); copy it again") from None


def _opened(data: bytes, packing: str) -> Any:
    """A file that gives the unpacked bytes."""
    if packing == "zstandard":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd")
    opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[packing]
    return opener(io.BytesIO(data))


def _unzipped(data: bytes, given: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
            for mark, what in (
                ("xl/workbook.xml", "an Excel workbook"),
                ("content.xml", "an OpenDocument file"),
                ("[Content_Types].xml", "an Office document"),
                ("data.pkl", "a PyTorch checkpoint"),
                (".npy", "a NumPy archive"),
            ):
                if any(name.endswith(mark) for name in members):
                    raise InputError(f"{given}: {what}, not a table; {EXPORT}")
            if len(members) != 1:
                raise InputError(
                    f"{given}: a zip archive of {len(members)} files; unpack it and name the one that holds the table"
                )
            with archive.open(members[0]) as stream:
                return _at_most(stream.read(LARGEST_UNPACKED + 1), given)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{given}: a damaged or cut zip file ({_first_line(error)}); copy it again") from None
    except (RuntimeError, NotImplementedError) as error:  # a password, or a packing that Python does not know
        raise InputError(f"{given}: the zip file cannot be unpacked ({_first_line(error)}); unpack it first") from None


def _at_most(data: bytes, given: str) -> bytes:
    if len(data) > LARGEST_UNPACKED:
        raise InputError(
            f"{given}: more than {LARGEST_UNPACKED / 2**30:g} GiB when unpacked; unpack it and keep fewer rows"
        )
    return data


def _foreign(data: bytes) -> str | None:
    """What a file is that is no table; None where its bytes can be text."""
    for start, what in _FOREIGN:
        if data.startswith(start):
            return what
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle (never opened: it could run code)"
    if data[8:10] == b'{"' and int.from_bytes(data[:8], "little") <= len(data):
        return "a safetensors model"
    if data[257:262] == b"ustar":
        return "a tar archive"
    start = data[:400].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG document"
    return None


def _utf8(data: bytes, given: str) -> bytes:
    """Text as UTF-8 without a byte-order mark, its lines ended by line feeds."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        encoding = "utf-32"
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif data[1:400:2].count(0) > 0.9 * len(data[1:400:2]):
        encoding = "utf-16-le"
    elif data[0:400:2].count(0) > 0.9 * len(data[0:400:2]):
        encoding = "utf-16-be"
    else:
        encoding = "utf-8-sig"
    binary = InputError(f"{given}: binary data of an unknown kind, not a table; {EXPORT}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise binary from None
        # Spreadsheets of western Europe still write Windows-1252. Binary data have control characters.
        if re.search(rb"[\x00-\x08\x0e-\x1f]", data):
            raise binary from None
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"{given}: line {line} is neither UTF-8 nor Windows-1252; save the file as UTF-8"
            ) from None
        encoding = "cp1252"
    if "\x00" in text:
        raise binary
    if encoding != "utf-8-sig" or data.startswith(b"\xef\xbb\xbf"):
        data = text.lstrip("\ufeff").encode()
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _from_parquet(data: bytes, given: str) -> pd.DataFrame:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
        while any(pyarrow.types.is_struct(field.type) for field in table.schema):
            table = table.flatten()
        _refuse_repeated(table.column_names, given)
        return plain_frame(table.to_pandas(), given)
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many types; each means the file is damaged
        raise InputError(f"{given}: a damaged parquet file ({_first_line(error)}); write it again") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are distinct; Python's own would keep the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKey(repeated(key for key, _ in pairs))
    return found


def _from_json(data: bytes, given: str) -> pd.DataFrame:
    try:
        records = _records(data.decode(), given)
        return plain_frame(pd.json_normalize(records), given)
    except _RepeatedKey as error:
        raise InputError(f"{given}: key {str(error)!r} occurs twice in one JSON object; rename or remove one") from None
    except RecursionError:
        raise InputError(f"{given}: JSON nested too deeply for a table; write one flat object per run") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{given}: line {error.lineno}: damaged or cut JSON ({error.msg}, character {error.colno}); write it again"
        ) from None


def _records(text: str, given: str) -> list[dict[str, Any]]:
    """One object per row from a list of objects, one object per line, or columns as pandas writes them."""
    decode = json.JSONDecoder(object_pairs_hook=_object).decode
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        first = decode(lines[0][1])
        whole = None if len(lines) > 1 and isinstance(first, dict) else first
    except json.JSONDecodeError:
        whole = decode(text)
    if whole is None:
        rows = []
        for number, line in lines:
            try:
                rows.append(decode(line))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{given}: line {number} is not JSON ({error.msg}, character {error.colno}); write one per line"
                ) from None
        whole = rows
    if isinstance(whole, dict):
        whole = _rows_of_document(whole)
    if not whole:
        raise InputError(f"{given}: the JSON holds no record; write one object per run")
    for number, record in enumerate(whole, 1):
        if not isinstance(record, dict):
            raise InputError(
                f"{given}: row {number} is {json.dumps(record)[:40]}, not an object; write one object per run"
            )
    return whole


def _rows_of_document(document: dict[str, Any]) -> list[Any]:
    """Rows of a JSON object: columns as lists or as `DataFrame.to_json` writes them, a key with a list of objects, or
    a single row."""
    values = list(document.values())
    if values and all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1 and len(values) > 1:
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    if values and all(isinstance(v, dict) and v for v in values) and len({tuple(v) for v in values}) == 1:
        keys = values[0]
        if all(key.isdigit() for key in keys):
            return [{name: column[key] for name, column in document.items()} for key in keys]
    lists = [v for v in values if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    return lists[0] if len(lists) == 1 else [document]


def _from_text(data: bytes, given: str) -> pd.DataFrame:
    declared = re.match(rb"\s*\"?sep=(.)\"?[ \t]*\n", data)  # spreadsheets write this line, and mean the next ones
    if declared:
        data = data[declared.end() :]
    sample = list(itertools.islice((line for line in _lines(data) if line.strip()), SAMPLED))
    if not sample:
        raise InputError(f"{given}: there is no header and no row; write a header line and one row per run")
    separator = declared[1].decode() if declared else _separator(sample)
    if separator == " ":
        data = b"\n".join(b" ".join(line.split()) for line in data.split(b"\n"))
    header, rows, ragged = _shape(data, separator or ",", given)
    prose = any(len(name.split()) >= SENTENCE for name in header)
    # pandas writes 0, 1, 2, ... above columns without names.
    numbers = all(_is_number(name) for name in header) and header != [str(k) for k in range(len(header))]
    if prose and (ragged or not rows or len(header) == 1):
        raise InputError(f"{given}: prose, not a table: no header line with the names of columns; {EXPORT}")
    if not rows:
        raise InputError(f"{given}: there is a header but no row; write one row per run")
    if numbers:
        raise InputError(f"{given}: no header: the first line holds numbers; write the names of the columns above it")
    if ragged:
        raise InputError(f"{given}: {ragged}; every row needs the header's fields")
    _refuse_repeated([name for name in header if name], given)
    names = [name or f"Unnamed: {k}" for k, name in enumerate(header)]
    try:
        with warnings.catch_warnings():
            # Whatever pandas would only warn about (lost fields) is an error here.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.BytesIO(data), sep=separator or ",", names=names, header=0, index_col=False, low_memory=False,
                skipinitialspace=True, encoding="utf-8",
            )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, ValueError) as error:
        said = "a quote is left open" if "EOF inside string" in str(error) else " ".join(str(error).split())
        raise InputError(f"{given}: not a readable table ({said}); export it again") from None
    if len(header) == 1 and not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]):
        raise InputError(f"{given}: text without columns: no comma, tab or semicolon separates the fields; {EXPORT}")
    empty = [name for name, own in zip(names, header, strict=True) if not own and frame[name].isna().all()]
    return _with_decimal_comma(frame.drop(columns=empty) if empty else frame)


def _lines(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="\n")


def _separator(sample: list[str]) -> str | None:
    """The separator that splits the header and gives most of the next lines as many fields; a blank where nothing else
    separates and the lines are plainly a table; None for a single column."""
    best, separator = (0.0, 1), None
    for candidate in ",\t;|":
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=candidate, skipinitialspace=True)]
        except csv.Error:
            continue
        score = (sum(w == widths[0] for w in widths) / len(widths), widths[0])
        if widths[0] > 1 and score > best:
            best, separator = score, candidate
    if separator is None and len(sample) > 1 and _is_blank_separated(sample):
        return " "
    return separator


def _is_blank_separated(sample: list[str]) -> bool:
    """Are the lines plainly a table: names, and as many fields in every line below, some of them numbers?"""
    try:
        header, *rows = csv.reader([" ".join(line.split()) for line in sample], delimiter=" ")
    except csv.Error:
        return False
    named = len(header) > 1 and not any(_is_number(name) for name in header)
    return named and {len(row) for row in rows} == {len(header)} and any(_is_number(cell) for cell in rows[0])


def _shape(data: bytes, separator: str, given: str) -> tuple[list[str], int, str]:
    """The header, the number of rows, and where a row is longer or shorter than the header ("" if none is)."""
    header: list[str] | None = None
    rows, ragged = 0, ""
    reader = csv.reader(_lines(data), delimiter=separator, skipinitialspace=True)
    try:
        for fields in reader:
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                continue
            if header is None:
                header = [name.strip() for name in fields]
                continue
            rows += 1
            if len(fields) != len(header):
                ragged = f"row {rows} (line {reader.line_num}) has {len(fields)} fields and the header {len(header)}"
                break
    except csv.Error as error:
        if header is None:
            return ["word " * SENTENCE], 0, ""  # a first field beyond the limit of `csv` is a text, not a name
        raise InputError(f"{given}: line {reader.line_num}: {error}; is a quote left open?") from None
    return header or [""], rows, ragged


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_decimal_comma(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns such as 0,25 as numbers. 1,000 can be a thousand: it is read only beside numbers that leave no doubt."""
    found: dict[str, pd.Series] = {}
    certain = False
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        cells = frame[name].dropna().astype(str)
        comma = cells.str.contains(",", regex=False)
        if comma.any() and cells.str.fullmatch(r"\s*[-+]?\d*(,\d+)?([eE][-+]?\d+)?\s*").all():
            found[name] = frame[name].astype(str).where(frame[name].notna()).str.replace(",", ".", regex=False)
            certain |= not cells[comma].str.fullmatch(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*").all()
    return frame.assign(**{name: pd.to_numeric(column) for name, column in found.items()}) if certain else frame
