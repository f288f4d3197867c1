"""Gates: can this design decide the question at all?

The same functions judge measured tables (`theory check`) and designs that have not been run (`theory plan`). A
gate that fails makes its coordinate UNTESTABLE; its message says what is missing and which run would supply it.
All thresholds are inclusive up to 1e-9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-9
MIN_DECADES_SIZE = 2.0  # samples N and steps T
MIN_DECADES_RANK = 0.9
MIN_RANKS = 5
MIN_SEEDS = 5
MIN_SIGNAL = 3.0
MIN_SIGNAL_SHARE = 0.9
MIN_DECADES_OFFSET = 3.0  # an offset or a bend can be told from a slower rate only over this range
MAX_CORRELATION = 0.95


@dataclass(frozen=True)
class Gate:
    """The outcome of one gate; `reason` is empty if it passed."""

    name: str
    passed: bool
    reason: str = ""


def decades(levels: np.ndarray) -> float:
    """log10(largest / smallest)."""
    return float(np.log10(np.max(levels) / np.min(levels)))


def range_gate(name: str, levels: np.ndarray, needed: float) -> Gate:
    """The coordinate must span `needed` decades."""
    levels = np.unique(levels)
    span = decades(levels)
    if span >= needed - TOLERANCE:
        return Gate("range", True)
    low, high = float(levels.min()), float(levels.max())
    return Gate(
        "range",
        False,
        f"{name} spans {span:.2f} decades ({low:g} to {high:g}) and {needed:g} are needed: "
        f"run {name} = {np.ceil(low * 10**needed):g} as well",
    )


def levels_gate(name: str, levels: np.ndarray, needed: int) -> Gate:
    """The coordinate must take `needed` different values."""
    count = len(np.unique(levels))
    if count >= needed:
        return Gate("levels", True)
    return Gate("levels", False, f"{name} takes {count} values and {needed} are needed: add {needed - count} between")


def seeds_gate(seeds: int) -> Gate:
    """Enough seeds in (at least 90 % of) the cells for an interval to mean something."""
    if seeds >= MIN_SEEDS:
        return Gate("seeds", True)
    return Gate(
        "seeds",
        False,
        f"{seeds} seed{'s' * (seeds != 1)} per cell and {MIN_SEEDS} are needed: repeat the cells with new seeds",
    )


def signal_gate(quantity: str, mean: np.ndarray, standard_error: np.ndarray) -> Gate:
    """The signed mean must exceed MIN_SIGNAL standard errors in nine cells of ten."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(standard_error > 0, mean / standard_error, np.where(mean > 0, np.inf, 0.0))
    ratio = np.where(np.isfinite(standard_error), ratio, np.nan)
    known = np.isfinite(ratio) | np.isinf(ratio)
    if not known.any():
        return Gate("signal", False, f"the noise of {quantity} is unknown with one seed per cell: repeat the cells")
    share = float(np.mean(ratio[known] >= MIN_SIGNAL - TOLERANCE))
    if share >= MIN_SIGNAL_SHARE - TOLERANCE:
        return Gate("signal", True)
    tenth = float(np.quantile(np.maximum(ratio[known], 0.0), 1 - MIN_SIGNAL_SHARE, method="lower"))
    needed = (MIN_SIGNAL / max(tenth, 1e-3)) ** 2
    more = f"about {needed:.3g} times the seeds" if needed < 1e6 else "many more seeds (some means are not above 0)"
    return Gate(
        "signal",
        False,
        f"mean {quantity} / standard error reaches {MIN_SIGNAL:g} in {share:.0%} of the cells and "
        f"{MIN_SIGNAL_SHARE:.0%} are "
        f"needed: reduce the noise (control variate, larger test set) or take {more}",
    )


def collinearity_gate(name_a: str, name_b: str, a: np.ndarray, b: np.ndarray) -> Gate:
    """Two coordinates that move together cannot be told apart."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return Gate("collinear", True)
    correlation = float(np.corrcoef(np.log(a), np.log(b))[0, 1])
    if abs(correlation) < MAX_CORRELATION:
        return Gate("collinear", True)
    return Gate(
        "collinear",
        False,
        f"{name_a} and {name_b} move together (correlation {correlation:.2f} of their logarithms): "
        f"run every {name_a} at several values of {name_b}",
    )
