"""The container of GGUF files: metadata and tensor table, read with every count and size held against the file's.

The `gguf` package's reader trusts counts (a damaged one makes it run for ever) and builds an array for every string of
a vocabulary; it is used for what the numbers mean: types, block sizes, dequantisation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from lrc_jax.errors import InputError
from lrc_jax.teachers.keys import finite

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_DIMENSIONS = 4
SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: its shape as a reader of rows sees it ([out, in]), first byte and number of bytes."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file: metadata by key, tensor descriptions by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def read(self, name: str) -> np.ndarray:
        """A tensor as finite floats in [out, in] layout. Read, not mapped: mapped pages would count as resident
        memory."""
        tensor = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, count=tensor.size, offset=tensor.offset)
        with np.errstate(all="ignore"):  # numbers that overflow are found below
            return finite(self.path, name, dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.kind))


@functools.cache
def decodable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package expands this quantisation."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class _Cursor:
    """A position in the bytes of a file. Raises ValueError where the file ends before what it announces."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"{count} bytes are announced, {len(self.data) - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8")

    def value(self) -> Any:
        kind = GGUFValueType(self.number("<I"))
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.scalars(kind, 1)[0]
        kind, count = GGUFValueType(self.number("<I")), self.number("<Q")
        if kind == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        return self.scalars(kind, count)

    def scalars(self, kind: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def tensor(self) -> tuple[str, GGUFTensor]:
        name, dimensions = self.text(), self.number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = GGMLQuantizationType(self.number("<I")), self.number("<Q")
        block, size = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise ValueError(f"rows of tensor {name} are no multiple of {block}, the block of {kind.name}")
        return name, GGUFTensor(kind, shape, offset, math.prod(shape) // block * size)


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}; a little-endian file of version 2 or 3 is expected")
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"key {key} stands there twice")
        metadata[key] = cursor.value()
    relative: dict[str, GGUFTensor] = {}
    for _ in range(tensor_count):
        name, tensor = cursor.tensor()
        if name in relative:
            raise ValueError(f"tensor {name} stands there twice")
        relative[name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: dataclasses.replace(x, offset=start + x.offset) for name, x in relative.items()}
    for name, tensor in tensors.items():
        if tensor.offset + tensor.size > len(cursor.data):
            raise ValueError(f"tensor {name} ends beyond the file")
    return GGUFFile(path, metadata, tensors)


def open_gguf(path: Path) -> GGUFFile:
    """Read a file's metadata and tensor table.

    Raises:
      InputError: the file is missing, damaged or truncated, or one part of a split model.
    """
    if not path.is_file():
        raise InputError(f"{path}: does not exist; give a .gguf file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            out = _parse(path, _Cursor(data))
    except (ValueError, KeyError, OSError) as wrong:
        raise InputError(f"{path}: damaged or truncated GGUF file ({wrong}); fetch the file again") from None
    count = out.metadata.get("split.count", 1)
    if count not in (0, 1):
        raise InputError(f"{path}: one part of a split model; join the parts with llama-gguf-split --merge")
    return out
