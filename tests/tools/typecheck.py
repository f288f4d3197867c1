"""The type checker of the import hook in tests/conftest.py: beartype, with what mypy takes for granted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from beartype import BeartypeConf, beartype

STAND_INS = (jax.ShapeDtypeStruct, jax.stages.ArgInfo)  # what JAX puts where a pytree has its arrays
# An int is a float to mypy (PEP 484), so it is here.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, raising where an argument or its result is not what the annotations say.

    JAX rebuilds a pytree with stand-ins in place of its arrays; the fields of such a one are not checked.
    """
    strict = _beartype(function)
    if function.__name__ != "__init__":
        return strict

    @functools.wraps(function)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        shapes_only = any(isinstance(value, STAND_INS) for value in (*args, *kwargs.values()))
        (function if shapes_only else strict)(self, *args, **kwargs)

    return init
