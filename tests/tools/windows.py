"""Windows made by hand: estimates with a known half-width, straight and bent windows around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from theory.judge.intervals import UNDEFINED
from theory.judge.window import Estimate, Window

SEEDS = 5


def at(value: float, half: float = 0.0, level: float = 0.95) -> Estimate:
    """An estimate whose interval at a level has this half-width."""
    return Estimate(value, half / float(stats.t.ppf(0.5 + level / 2, SEEDS - 1)), SEEDS)


def window(whole: Estimate, **parts: object) -> Window:
    """A straight window whose parts all have the slope of the whole, unless they are given."""
    same = at(whole.value)
    found = Window(
        whole, same, same, same, same, same, at(0.0), 1e3, 1e4, 1.0, 1.0, 0.95, (0.0, 2.0), (), UNDEFINED, (),
        np.zeros(0),
    )  # fmt: skip
    return replace(found, **parts)


def bent(low: Estimate, top: Estimate, reach: Estimate | None = None, **parts: object) -> Window:
    """A window whose halves differ, significantly."""
    q = top.value - low.value
    whole = at((low.value + top.value) / 2)
    return window(whole, low=low, top=top, bend=at(q, abs(q) / 2), reach=reach or at(top.value), **parts)
