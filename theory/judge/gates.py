"""Gates: can this design decide the question at all?

The same functions judge measured tables (`theory check`) and designs that have not been run (`theory plan`). A gate
puts its coordinate into the first tier, into the second (decided with the plateau guard always on and never
CONSISTENT), or makes it UNTESTABLE. Its message says what is missing, and `needed` names the runs as data. All
thresholds are inclusive up to 1e-9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.judge.cells import Cells
from theory.judge.intervals import TOLERANCE, at_least
from theory.judge.window import near_middle
from theory.tables import describe

MIN_DECADES_SIZE = 2.0  # samples N and steps T
SECOND_TIER_DECADES = 1.5
MIN_LEVELS_SIZE = 4
MIN_LEVELS_TOP = 3  # of them in the top half
MIN_DECADES_RANK = 0.9
MIN_RANKS = 5
MIN_SEEDS = 5  # in the median cell
SECOND_TIER_SEEDS = 3  # in every cell that counts
MIN_SIGNAL = 3.0
MIN_SIGNAL_SHARE = 0.9
MAX_CORRELATION = 0.95

FIRST, SECOND, FAILED = 1, 2, 0


@dataclass(frozen=True)
class Gate:
    """The outcome of one gate.

    Attributes:
        tier: 1 passed, 2 passed by the second tier only, 0 failed. reason: what is missing; empty if passed.
        needed: the missing runs, each {column: value, ..., "seeds": n}; without columns the seeds are for every cell.
    """

    name: str
    tier: int = FIRST
    reason: str = ""
    needed: tuple[Mapping[str, Any], ...] = ()


def tier_of(gates: Sequence[Gate]) -> int:
    """The tier of a coordinate: 0 if any gate failed, else the weakest."""
    tiers = [g.tier for g in gates]
    return FAILED if FAILED in tiers else max(tiers, default=FIRST)


def missing_runs(needed: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs that gates ask for, each once."""
    found: list[dict[str, Any]] = []
    for run in needed:
        if run not in found:
            found.append(dict(run))
    return found


def reasons(checks: Mapping[str, Sequence[Gate]]) -> list[str]:
    """One sentence per gate that failed or lowered the tier, with the coordinates that it concerns.

    Args:
        checks: the gates by coordinate.
    """
    owners: dict[tuple[int, str], list[str]] = {}
    for name, found in checks.items():
        for gate in found:
            if gate.tier == FAILED or gate.tier == tier_of(found) == SECOND:
                owners.setdefault((gate.tier, gate.reason), []).append(name)
    words = {FAILED: "untestable", SECOND: "second tier, never CONSISTENT"}
    ordered = sorted(owners.items(), key=lambda item: item[0][0])
    return [f"{' and '.join(names)} {words[tier]}: {reason}" for (tier, reason), names in ordered]


def decades(levels: np.ndarray) -> float:
    """log10(largest / smallest)."""
    return float(np.log10(np.max(levels) / np.min(levels)))


def range_gate(name: str, levels: np.ndarray, needed: float, second: float | None = None) -> Gate:
    """The coordinate must span `needed` decades; `second` are enough for the second tier."""
    low, high = float(np.min(levels)), float(np.max(levels))
    span = decades(np.asarray(levels))
    if at_least(span, needed):
        return Gate("range")
    tier = SECOND if second is not None and at_least(span, second) else FAILED
    missing = float(np.ceil(low * 10**needed * (1 - TOLERANCE)))
    reason = (
        f"{name} covers a factor of {high / low:.3g} ({low:g} to {high:g}); {10**needed:.3g} is needed: "
        f"add runs with {name} = {missing:g}"
    )
    return Gate("range", tier, reason, ({name: missing, "seeds": MIN_SEEDS},))


def levels_gate(name: str, levels: np.ndarray, needed: int) -> Gate:
    """The coordinate must take `needed` different values."""
    levels = np.unique(levels)
    if len(levels) >= needed:
        return Gate("levels")
    new = between(levels, needed - len(levels))
    reason = f"{name} takes {len(levels)} values and {needed} are needed: add {name} = {_listed(new)}"
    return Gate("levels", FAILED, reason, tuple({name: v, "seeds": MIN_SEEDS} for v in new))


def top_gate(name: str, levels: np.ndarray) -> Gate:
    """Three levels of N or T must lie in the top half, so that its own bend can be seen."""
    levels = np.unique(levels)
    if len(levels) < MIN_LEVELS_SIZE:
        return Gate("top")  # the gate on levels says what is missing
    top = levels[at_least(np.log(levels), near_middle(np.log(levels)))]
    if len(top) >= MIN_LEVELS_TOP:
        return Gate("top")
    new = between(top, MIN_LEVELS_TOP - len(top))
    reason = (
        f"the upper half of {name} ({top[0]:g} to {top[-1]:g}) holds {len(top)} values and {MIN_LEVELS_TOP} are "
        f"needed: add {name} = {_listed(new)}"
    )
    return Gate("top", FAILED, reason, tuple({name: v, "seeds": MIN_SEEDS} for v in new))


def seeds_gate(replicates: np.ndarray) -> Gate:
    """Five seeds in the median cell; three are enough for the second tier. [C] seeds per cell (cells that count)."""
    typical = float(np.median(replicates)) if len(replicates) else 0.0
    if typical >= MIN_SEEDS:
        return Gate("seeds")
    tier = SECOND if typical >= SECOND_TIER_SEEDS else FAILED
    more = int(np.ceil(MIN_SEEDS - typical))
    reason = f"{typical:g} seed{'s' * (typical != 1)} per cell and {MIN_SEEDS} are needed: repeat the cells with "
    reason += f"{more} new seed{'s' * (more != 1)}"
    return Gate("seeds", tier, reason, ({"seeds": more},))


def signal_gate(quantity: str, levels: Sequence[Mapping[str, Any]], mean: np.ndarray, error: np.ndarray) -> Gate:
    """The signed mean must exceed MIN_SIGNAL standard errors in nine cells of ten.

    Args:
        levels: the design point of each cell. mean, error: [C] cell means and their standard errors.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.nan_to_num(mean / error, posinf=np.inf)
    known = np.isfinite(error)
    if not known.any():
        return Gate("signal", FAILED, f"the noise of {quantity} is unknown with one seed per cell: repeat the cells",
                    ({"seeds": MIN_SEEDS - 1},))  # fmt: skip
    strong = at_least(ratio, MIN_SIGNAL)
    share = float(np.mean(strong[known]))
    if at_least(share, MIN_SIGNAL_SHARE):
        return Gate("signal")
    # A cell whose mean is not clearly above 0 has no number of seeds that would be enough.
    hopeful = known & ~strong & (ratio > MIN_SIGNAL / 10)
    needed = tuple(
        {**levels[k], "seeds": int(np.ceil(MIN_SEEDS * ((MIN_SIGNAL / ratio[k]) ** 2 - 1)))}
        for k in np.flatnonzero(hopeful).tolist()
    )
    tenth = float(np.quantile(ratio[known], 1 - MIN_SIGNAL_SHARE, method="lower"))
    more = (
        f"about {(MIN_SIGNAL / tenth) ** 2:.3g} times the seeds"
        if tenth > MIN_SIGNAL / 10
        else "many more seeds (some means are not above 0)"
    )
    reason = (
        f"{quantity} exceeds {MIN_SIGNAL:g} standard errors in {share:.0%} of the cells and {MIN_SIGNAL_SHARE:.0%} are "
        f"needed: reduce the noise (control variate, larger test set) or take {more} in the others"
    )
    return Gate("signal", SECOND, reason, needed)


def collinearity_gate(name_a: str, name_b: str, a: np.ndarray, b: np.ndarray) -> Gate:
    """Two coordinates that move together cannot be told apart."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return Gate("collinear")
    correlation = float(np.corrcoef(np.log(a), np.log(b))[0, 1])
    if abs(correlation) < MAX_CORRELATION:
        return Gate("collinear")
    return Gate(
        "collinear",
        FAILED,
        f"{name_a} and {name_b} move together (correlation {correlation:.2f} of their logarithms): "
        f"run every {name_a} at several values of {name_b}",
    )


def size_gates(name: str, levels: np.ndarray) -> list[Gate]:
    """Range and levels of N or T."""
    return [
        range_gate(name, levels, MIN_DECADES_SIZE, SECOND_TIER_DECADES),
        levels_gate(name, levels, MIN_LEVELS_SIZE),
        top_gate(name, levels),
    ]


def rank_gates(levels: np.ndarray) -> list[Gate]:
    """Range and levels of r."""
    return [range_gate("rank", levels, MIN_DECADES_RANK), levels_gate("rank", levels, MIN_RANKS)]


def replication_gates(quantity: str, cells: Cells) -> list[Gate]:
    """Seeds and signal of measured cells."""
    points = [{str(k): v for k, v in point.items()} for point in cells.levels.to_dict("records")]
    return [seeds_gate(cells.replicates), signal_gate(quantity, points, cells.mean, cells.standard_error)]


def cells_that_count(cells: Cells) -> tuple[Cells, str]:
    """The cells with at least three seeds, and a remark on the others: a single run far out opens no range."""
    few = cells.replicates < SECOND_TIER_SEEDS
    if not few.any() or few.all():
        return cells, ""
    names = [str(c) for c in cells.levels]
    points = [describe(names, point) for point in cells.levels[few].head(4).itertuples(index=False)]
    more = f" and {int(few.sum()) - len(points)} more" if few.sum() > len(points) else ""
    remark = (
        f"cells with fewer than {SECOND_TIER_SEEDS} seeds do not count: {int(few.sum())} of {cells.size} "
        f"({'; '.join(points)}{more})"
    )
    return cells.keep(~few), remark


def between(levels: np.ndarray, count: int) -> list[float]:
    """Whole values at the middles of the widest gaps (beyond the largest level where there is a single one)."""
    values = [float(v) for v in levels if v > 0] or [1.0]
    added = []
    for _ in range(count):
        logs = np.log(values)
        if len(values) < 2:
            new = values[0] * 4
        else:
            widest = int(np.argmax(np.diff(logs)))
            new = float(np.round(np.exp(0.5 * (logs[widest] + logs[widest + 1]))))
        if new in values:
            new = values[-1] * 2
        values = sorted([*values, new])
        added.append(new)
    return sorted(added)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)
