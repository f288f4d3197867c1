"""What a model's files say, checked where it enters: JSON, keys that are each used or accounted for, finite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrc_jax.errors import InputError

REQUIRED: Any = object()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
      InputError: it is no JSON, holds Infinity or NaN, is nested too deeply, or is no object.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as wrong:
        raise InputError(f"{path}: not valid JSON ({wrong}); fetch the file again") from None
    except RecursionError:
        raise InputError(f"{path}: not valid JSON (nested too deeply); fetch the file again") from None
    except OSError as wrong:
        raise InputError(f"{path}: cannot be read ({wrong.strerror})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object is expected there; fetch the file again")
    return value


class Keys:
    """The keys of one file. Each is taken once; `finish` refuses by name what nobody took.

    Args:
      path: the file, for messages.
      values: its keys and values.
      where: what stands before a key in messages, such as "rope_parameters.".
    """

    def __init__(self, path: Path, values: Mapping[str, Any], where: str = "") -> None:
        self.path, self.where = path, where
        self._rest = dict(values)

    def _wrong(self, key: str, value: Any, expected: str) -> InputError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self.path}: {self.where}{key} is {shown}; {expected} is expected")

    def take(self, key: str, default: Any = None) -> Any:
        """A value as it stands; a key that is absent or null has the default.

        Raises:
          InputError: it is REQUIRED and absent.
        """
        value = self._rest.pop(key, None)
        if value is None and default is REQUIRED:
            raise InputError(f"{self.path}: key {self.where + key!r} is missing; is this a complete model file?")
        return default if value is None else value

    def is_null(self, key: str) -> bool:
        """Whether a key stands there with null, which for some says something else than its absence."""
        return key in self._rest and self._rest[key] is None

    def whole(self, key: str, default: Any = REQUIRED) -> int:
        """A whole number."""
        return self.as_whole(key, self.take(key, default))

    def as_whole(self, key: str, value: Any) -> int:
        """A value already taken, where it is a whole number."""
        if type(value) is not int:
            raise self._wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: Any = REQUIRED) -> float:
        """A number above 0."""
        return self.as_real(key, self.take(key, default))

    def as_real(self, key: str, value: Any) -> float:
        """A value already taken, where it is a number above 0."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self.take(key, REQUIRED)
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise self._wrong(key, value, "a list of strings")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """An object of further keys; empty where it is absent."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value

    def neutral(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Take keys that may stand there with a value that changes nothing.

        Raises:
          InputError: another value, which the decoder does not compute.
        """
        for key, values in allowed.items():
            value = self.take(key)
            if value is not None and value not in values:
                raise InputError(f"{self.path}: {self.where}{key} {value!r} is not supported; only {values[0]!r} is")

    def finish(self, harmless: Collection[str] = (), prefixes: tuple[str, ...] = ()) -> None:
        """Raise InputError where a key is left that nobody took and that is on no list; null asks for nothing."""
        for key, value in self._rest.items():
            if value is not None and key not in harmless and not (prefixes and key.startswith(prefixes)):
                raise InputError(
                    f"{self.path}: key {self.where + key!r} is not known, and it may change what the model computes; "
                    "remove it if it does not"
                )


def finite(file: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """The tensor. Raises InputError where a number in it is not finite."""
    if not np.isfinite(tensor).all():
        raise InputError(f"{file}: tensor {name} holds NaN or infinite numbers; fetch the file again")
    return tensor
