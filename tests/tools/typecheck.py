"""The type checker of the import hook in tests/conftest.py: beartype, with what mypy takes for granted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int is a float to mypy (PEP 484), so it is here.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, raising where an argument or its result is not what the annotations say.

    JAX rebuilds a pytree with whatever a transformation makes of its leaves (host arrays, shapes, axes, shardings),
    through the same constructor: the fields of flax.struct dataclasses are not checked, what reads them is.
    """
    strict = _beartype(function)
    if function.__name__ != "__init__":
        return strict

    @functools.wraps(function)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        (function if hasattr(self, "_flax_dataclass") else strict)(self, *args, **kwargs)

    return init
