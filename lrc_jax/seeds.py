"""The one path of randomness: every random draw names what it is for.

`key_for(seed, "data", "student", 3)` and `rng_for(...)` are functions of the seed and the names alone, so that adding
a draw somewhere never shifts another, and the same data come out whatever was drawn before.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np
from jaxtyping import Array


def derive_seed(seed: int, *path: str | int) -> int:
    """A 32-bit seed for a named purpose."""
    text = "/".join([str(int(seed)), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def key_for(seed: int, *path: str | int) -> Array:
    """A JAX key for a named purpose."""
    return jax.random.key(derive_seed(seed, *path))


def rng_for(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for a named purpose."""
    return np.random.default_rng(derive_seed(seed, *path))
