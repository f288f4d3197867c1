"""Conditions that select rows: `rank >= 8`, `arm != control`, `site empty`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from theory.errors import InputError
from theory.names import Names, unquoted

HOW = (
    'write "COLUMN OP VALUE" with = != < <= > >=, or "COLUMN empty", "COLUMN not empty"; put a column or value '
    "with blanks or signs in quotes or backticks"
)

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip
_CONDITION = re.compile(
    r"""\s*(?P<name>`[^`]+`|"[^"]+"|'[^']+'|[^=!<>`"']+?)\s*
    (?:(?P<sign>==|!=|<=|>=|=|<|>)\s*(?P<value>.*?)
    |(?<=[\s`"'])(?:is\s+)?(?P<negated>not\s+)?empty)\s*""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def satisfied(frame: pd.DataFrame, names: Names, condition: str) -> np.ndarray:
    """Which rows satisfy a condition.

    An empty cell satisfies `empty` and `!=` and nothing else. Text is compared with `=` and `!=` alone.

    Args:
        frame: the table; names: its columns. condition: see `HOW`.

    Returns:
        Truth by row.

    Raises:
        InputError: the condition is malformed, names no column, or compares text by size.
    """
    match = _CONDITION.fullmatch(condition)
    if not match:
        raise InputError(HOW)
    name = names.one_of(unquoted(match["name"]))
    column, sign = frame[name], match["sign"]
    empty = column.isna().to_numpy(copy=True)
    texts: np.ndarray | None = None
    if not _is_number(column):
        texts = column.astype(str).str.strip().to_numpy(dtype=object)
        empty |= texts == ""
    if sign is None:
        return ~empty if match["negated"] else empty
    value = unquoted(match["value"])
    if not value:
        raise InputError(f'no value after {sign}; for empty cells write "{match["name"]} empty"')
    number = _number(value)
    if texts is None and number is None:
        raise InputError(f'column {name} holds numbers, and {value!r} is none; for empty cells write "{name} empty"')
    numbers = _numbers(column)
    if sign in _ORDER:
        if number is None:
            raise InputError(f"{sign} compares numbers, and {value!r} is none; text is compared with = and !=")
        if np.isnan(numbers[~empty]).all():
            raise InputError(f"column {name} holds text, and {sign} compares numbers; text is compared with = and !=")
        with np.errstate(invalid="ignore"):
            return _ORDER[sign](numbers, number) & ~empty
    equal = np.zeros(len(column), dtype=bool) if number is None else numbers == number
    if texts is not None:
        equal |= texts == value
    return ~(equal & ~empty) if sign == "!=" else equal & ~empty


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _numbers(column: pd.Series) -> np.ndarray:
    """The column's numbers, NaN where a cell is none."""
    if not _is_number(column):
        column = pd.to_numeric(column.astype(str).where(column.notna()), errors="coerce")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if np.isnan(number) else number
