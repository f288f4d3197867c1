"""Exponents of a quantity in its coordinates, judged: the shared core of the claims about rates.

The evidence is measured first (`window`), then the design is put through its gates (`gates`) and the
table through what must be noticed (`scrutiny`); one function decides from these (`rules`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from theory.judge import gates, scrutiny
from theory.judge.cells import Cells, build_cells
from theory.judge.rules import Limits, decide
from theory.judge.scrutiny import Doubt
from theory.judge.verdicts import INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE, as_equality
from theory.judge.window import Window, look, with_rivals
from theory.report import Exponent, interval_list, undefined_exponent

WIDER = 1.25  # a second interval wider by more than this factor is mentioned


@dataclass(frozen=True)
class Coordinate:
    """A coordinate of a claim: its column, claimed exponent, and whether laws extrapolate along it (N and T)."""

    name: str
    claimed: float
    leading: bool


@dataclass(frozen=True)
class RateResult:
    """Exponents by coordinate, the reasons, the missing runs as data, rival laws, and figure points."""

    exponents: dict[str, Exponent]
    windows: dict[str, Window | None]
    limits: dict[str, Limits]
    reasons: tuple[str, ...]
    needed: tuple[Mapping[str, float], ...]
    rivals: list[dict[str, Any]]
    points: pd.DataFrame
    cells: Cells
    doubts: dict[str, list[Doubt]] = field(default_factory=dict)


def judge_rates(
    frame: pd.DataFrame,
    quantity: str,
    coordinates: Sequence[Coordinate],
    margin: float,
    *,
    strata: Sequence[str] = (),
    path: str = "<memory>",
    ignore: Sequence[str] = (),
) -> RateResult:
    """Estimate and judge the exponents of a quantity.

    Args:
        frame: the rows, one per run. quantity: the measured column.
        coordinates: what to estimate. strata: design columns whose combinations get their own constant.
        path: the table's name, for errors. ignore: columns that may change along a coordinate by design.

    Raises:
        InputError: replicates are copies of each other.
    """
    names = [c.name for c in coordinates]
    design = [*strata, *names]
    scrutiny.refuse_copies(frame, path, design, quantity)
    every = build_cells(frame, design, quantity)
    cells, remark = gates.cells_that_count(every)
    reasons = [remark] if remark else []
    reasons += scrutiny.far_runs(frame, design, quantity)

    checks = {c.name: design_gates(c, cells, quantity, names) for c in coordinates}
    limits = _limits(coordinates, checks, margin)
    exponents: dict[str, Exponent] = {}
    windows: dict[str, Window | None] = {}
    doubts: dict[str, list[Doubt]] = {}
    for c in coordinates:
        others = [*strata, *(n for n in names if n != c.name)]
        window = look(cells, c.name, others, leading=c.leading)
        levels = every.levels[c.name].to_numpy(dtype=np.float64)
        doubts[c.name] = [
            *scrutiny.confounded(frame, c.name, ignore),
            *scrutiny.survivors(levels, every.replicates, c.name),
        ]
        windows[c.name] = window
        exponents[c.name] = exponent_of(window, limits[c.name], doubts[c.name])
        reasons += explain(c.name, window, limits[c.name], exponents[c.name])
    reasons = [*gates.reasons(checks), *reasons]
    reasons += dict.fromkeys(d.remark for found in doubts.values() for d in found)
    needed = gates.missing_runs(run for found in checks.values() for gate in found for run in gate.needed)
    return RateResult(
        exponents, windows, limits, tuple(reasons), tuple(needed), _rivals(windows), _points(cells, windows, exponents),
        cells, doubts,
    )  # fmt: skip


def _limits(
    coordinates: Sequence[Coordinate], checks: Mapping[str, Sequence[gates.Gate]], margin: float
) -> dict[str, Limits]:
    """What each coordinate is held to."""
    tiers = {name: gates.tier_of(found) for name, found in checks.items()}
    tested = sum(tier != gates.FAILED for tier in tiers.values())
    return {c.name: Limits(c.claimed, margin, 1 - 0.05 / max(tested, 1), c.leading, tiers[c.name]) for c in coordinates}


def words_of(
    every: Cells, quantity: str, coordinates: Sequence[Coordinate], margin: float, strata: Sequence[str] = ()
) -> dict[str, str]:
    """The word of each coordinate and nothing else, ten times as fast: for simulated tables.

    The words are those of `judge_rates`, with draws to first order and without doubts about rows. HOLDS stands for
    CONSISTENT too where both are possible: telling them apart takes the rival laws, and both are decided.

    Args:
        every: cells of the design, by strata and coordinates. The rest is as in `judge_rates`.
    """
    names = [c.name for c in coordinates]
    cells, _ = gates.cells_that_count(every)
    limits = _limits(coordinates, {c.name: design_gates(c, cells, quantity, names) for c in coordinates}, margin)
    found: dict[str, str] = {}
    # The leading coordinate last: its rival laws, which may still say CONSISTENT, are only asked where they count.
    for c in sorted(coordinates, key=lambda c: c.leading):
        others, limit = [*strata, *(n for n in names if n != c.name)], limits[c.name]
        window = None if limit.tier == gates.FAILED else look(cells, c.name, others, leading=c.leading, brief=True)
        word = decide(window, limit)
        counts = c.leading and word == INCONCLUSIVE and not {INCONCLUSIVE, UNTESTABLE} & set(found.values())
        if window is not None and counts and window.whole.interval(0.90).inside(limit.better, limit.worse):
            word = decide(with_rivals(window, cells, c.name, others), limit)
        doubts = scrutiny.survivors(every.levels[c.name].to_numpy(dtype=np.float64), every.replicates, c.name)
        found[c.name] = scrutiny.apply(word, doubts)
    return found


def design_gates(coordinate: Coordinate, cells: Cells, quantity: str, names: Sequence[str]) -> list[gates.Gate]:
    """Every gate that a coordinate of a rate has to pass."""
    values = {name: cells.levels[name].to_numpy(dtype=np.float64) for name in names}
    own = values[coordinate.name]
    found = gates.size_gates(coordinate.name, own) if coordinate.leading else gates.rank_gates(own)
    found += gates.replication_gates(quantity, cells)
    if len(names) == 2:
        found.append(gates.collinearity_gate(names[0], names[1], values[names[0]], values[names[1]]))
    return found


def exponent_of(window: Window | None, limit: Limits, doubts: Sequence[Doubt] = ()) -> Exponent:
    """The judged exponent with its evidence."""
    if window is None:
        return undefined_exponent(limit.claimed)
    word = scrutiny.apply(decide(window, limit), doubts)
    beyond = window.reaches(limit.worse)
    details: dict[str, Any] = {
        "bent": window.bent,
        "tier": limit.tier,
        **{name: e.to_dict() for name, e in (("low", window.low), ("top", window.top), ("reach", window.reach))},
        "n_dagger": beyond,
        "middle": window.middle,
        "standard_error": window.whole.standard_error,
        "ci95_wild": [window.wild.low, window.wild.high],
        "drift": window.bend.value,
        "drift_ci95": interval_list(window.bend.interval(0.95)),
        "local_slopes": [list(point) for point in window.local],
        "extrapolation_error": None if window.extrapolation is None else window.extrapolation[0],
        "extrapolation_limit": None if window.extrapolation is None else limit.margin * window.extrapolation[1],
        "effective_seeds": window.whole.clusters,
    }
    return Exponent(
        limit.claimed, window.whole.value, window.whole.interval(0.90), window.whole.interval(0.95), word,
        as_equality(word), details,
    )  # fmt: skip


def equals(window: Window | None, limit: Limits, claimed: float) -> str:
    """Is the exponent equal to another value up to the margin?"""
    return as_equality(decide(window, replace(limit, claimed=claimed)))


def explain(name: str, window: Window | None, limit: Limits, exponent: Exponent) -> list[str]:
    """Sentences on one coordinate: what the window shows and what decided."""
    if window is None or not np.isfinite(window.whole.value):
        return [] if window is None else [f"{name}: no power law fits cell means that are not positive"]
    found = []
    if window.bent:
        low, top = window.low, window.top
        found.append(
            f"{name}: bent: the slope is {low.value:.2f} up to {window.middle:g} and {top.value:.2f} "
            f"[{top.low(0.95):.2f}, {top.high(0.95):.2f}] beyond; no single exponent describes this range"
        )
        if exponent.verdict in (LOOSE, REFUTED):
            side = "better" if exponent.verdict == LOOSE else "worse"
            found.append(f"{name}: {side} than claimed in every part that decides ({limit.claimed:g} claimed)")
    beyond = window.reaches(limit.worse)
    guarded = window.bent or limit.tier == gates.SECOND
    if beyond is not None and guarded and exponent.verdict not in (REFUTED, UNTESTABLE):
        found.append(
            f"{name}: if the flattening were a plateau, the slope would reach {limit.worse:g} at {name} = {beyond:.3g} "
            f"(over the next half-decade {window.reach.value:.2f}, upper 90 % limit {window.reach.high(0.90):.2f})"
        )
    if window.offset is not None and not window.bent:
        found.append(
            f"{name}: an offset describes the means better than a power law; beside it the exponent "
            f"is {window.offset.exponent:.2f}"
        )
    if window.extrapolation is None and limit.leading:
        found.append(f"{name}: too few values below the largest half-decade to test the extrapolation")
    elif limit.leading and not window.extrapolates(limit.margin) and exponent.verdict != REFUTED and not window.bent:
        found.append(f"{name}: the power law fitted without the largest half-decade misses it")
    wild, plain = window.wild, window.whole.interval(0.95)
    if wild.width > WIDER * plain.width:
        found.append(
            f"{name}: a second method gives a wider 95 % interval, {wild.low:.3f} to {wild.high:.3f}; trust that one"
        )
    return found


def _rivals(windows: Mapping[str, Window | None]) -> list[dict[str, Any]]:
    """Laws compared along the leading coordinate."""
    fits = next((w.rivals for w in windows.values() if w is not None and w.rivals), ())
    return [{"law": f.name, "exponent": f.exponent, "aicc": f.aicc, "heldout_error": f.heldout_error} for f in fits]


def _points(cells: Cells, windows: Mapping[str, Window | None], exponents: Mapping[str, Exponent]) -> pd.DataFrame:
    """Cell means with t intervals, the power law in each coordinate with free constants (`fitted_NAME`), and the
    claimed law with its constant fitted to the data (`claimed`)."""
    points = cells.levels.copy()
    half = cells.half_widths()
    points["mean"], points["low"], points["high"] = cells.mean, cells.mean - half, cells.mean + half
    shape = np.ones(cells.size)
    for name, window in windows.items():
        points[f"fitted_{name}"] = np.nan if window is None else window.fitted
        shape *= cells.levels[name].to_numpy(dtype=np.float64) ** exponents[name].claimed
    group = cells.groups([str(c) for c in cells.levels if c not in windows])
    # The constant minimises the relative deviations of the runs; a mean of 0 has none.
    ratio = np.divide(shape, cells.mean, out=np.zeros(cells.size), where=cells.mean != 0)
    constant = np.bincount(group, cells.replicates * ratio) / np.bincount(group, cells.replicates * ratio**2)
    points["claimed"] = constant[group] * shape
    return points
