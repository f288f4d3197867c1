"""Sequences that are read from a memory-mapped file of tokens as they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

GATHER = 1 << 22  # tokens that are gathered together


class Windows:
    """Sequences of T+1 tokens [N, T+1] of joined documents, int32, read as they are indexed: `windows[rows]` is an
    array [*rows.shape, T+1]. `np.asarray` reads all of them.

    Attributes:
      order: numbers of the windows, [N].
      columns: of a window that are read.
    """

    dtype = np.dtype(np.int32)

    def __init__(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, length: int, order: np.ndarray, columns: slice
    ) -> None:
        """Args:
        ids: all tokens.
        starts, lengths: of the documents among them, in the order in which they are joined, int64.
        length: T+1.
        """
        self._joined = ids, starts, np.concatenate([[0], np.cumsum(lengths)])
        self._length, self.order, self.columns = length, order, columns

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.order), len(range(self._length)[self.columns])

    @property
    def ndim(self) -> int:
        return 2

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """In memory: what is read as it is used counts nothing."""
        return 0

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: Any) -> Any:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, slice) and rows == slice(None) and isinstance(columns, slice):
            some = object.__new__(Windows)
            some.__dict__ |= self.__dict__ | {"columns": _within(range(self._length)[self.columns][columns])}
            return some
        return self._read(self.order[rows])[..., columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(self.order).astype(dtype or self.dtype, copy=False)

    def _read(self, windows: np.ndarray) -> np.ndarray:
        flat = np.ravel(windows)
        out = np.empty((len(flat), self.shape[1]), self.dtype)
        step = max(1, GATHER // self._length)
        for i in range(0, len(flat), step):
            out[i : i + step] = self._whole(flat[i : i + step])[:, self.columns]
        return out.reshape(*np.shape(windows), self.shape[1])

    def _whole(self, windows: np.ndarray) -> np.ndarray:
        """Windows [n, T+1] by their numbers. Each is made of spans, one of every document that it meets."""
        ids, starts, bounds = self._joined
        first = windows.astype(np.int64) * self._length
        low = np.searchsorted(bounds, first, side="right") - 1
        spans = np.searchsorted(bounds, first + self._length - 1, side="right") - low
        window = np.repeat(np.arange(len(windows)), spans)
        document = np.arange(len(window)) - np.repeat(np.cumsum(spans) - spans - low, spans)
        begin = np.maximum(bounds[document], first[window])
        count = np.minimum(bounds[document + 1], first[window] + self._length) - begin
        place = np.arange(len(windows) * self._length) - np.repeat(np.cumsum(count) - count, count)
        return ids[np.repeat(starts[document] + begin - bounds[document], count) + place].reshape(-1, self._length)


def _within(columns: range) -> slice:
    return slice(columns.start, columns.stop, columns.step)
