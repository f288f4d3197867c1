"""Parameters of a test of which some are enough for `make test`; `make slow` runs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The values, those that are not in `fast` marked slow; a tuple is several arguments."""
    values = list(values)
    assert set(fast) <= set(values)
    arguments = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*words, marks=() if value in fast else pytest.mark.slow)
        for value, words in zip(values, arguments, strict=True)
    ]
