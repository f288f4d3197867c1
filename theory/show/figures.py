"""The figures of a report: one per claim, with its points as CSV.

Figures are drawn without pyplot (no display, no global state) and written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from theory.errors import OptionError
from theory.judge.check import rows_of
from theory.report import ClaimReport, Report, write_text
from theory.show import claims, methods
from theory.show.axes import level_colours, points_with_intervals
from theory.show.palette import INK
from theory.show.theme import COLUMN, theme, words

#: What the one figure of a claim is made of, side by side.
PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "convergence": (claims.gradient_against_steps,),
    "generalization": (claims.gap_against_samples, claims.gap_against_rank),
    "optimal_rank": (claims.risk_against_rank, claims.optimal_rank_against_samples),
    "information": (claims.information_against_clone_weight,),
    "dynamics": (claims.dynamics_divergence,),
}
HEIGHT = 3.2  # inches
#: Claims that compare methods have figures of their own.
OF_METHODS: dict[str, Callable[[ClaimReport], Figure]] = {
    "efficiency": methods.efficiency_figure,
    "compression": methods.compression_figure,
}
#: More values of a second column than this are drawn as one series.
MOST_SERIES = 12


def write_figures(report: Report, folder: str | Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv for every claim of the report that has points.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("figures", f"{folder}: {error.strerror}; choose another folder") from None
    written = []
    for name, claim in report.claims.items():
        if claim.points.empty:
            continue
        figure = draw_of(report, name)
        for suffix in ("png", "pdf"):
            written.append(_save(figure, folder / f"{name}.{suffix}"))
        for frame, stem in ((claim.points, name), (claim.curves, f"{name}_curves")):
            if not frame.empty:
                write_text(folder / f"{stem}.csv", frame.to_csv(index=False))
                written.append(folder / f"{stem}.csv")
    return written


def draw_of(report: Report, name: str) -> Figure:
    """The figure of one claim of a report."""
    return draw(report[name], rows_of(name, report.frame) if name in PANELS else None)


def draw(claim: ClaimReport, rows: pd.DataFrame | None = None) -> Figure:
    """The figure of one claim; one of somebody else's is drawn along the column that it is about.

    Args:
        rows: those that speak about the claim, where its panels show more than its points.
    """
    if claim.name in OF_METHODS:
        return OF_METHODS[claim.name](claim)
    with theme():
        panels = PANELS.get(claim.name, (_own_panel,))
        figure = Figure(figsize=(COLUMN * len(panels), HEIGHT))
        parts = np.atleast_1d(np.asarray(figure.subfigures(1, len(panels))))
        for part, panel in zip(parts, panels, strict=True):
            panel(claim, pd.DataFrame() if rows is None else rows, part)
        figure.suptitle(f"{words(claim.name)}: {claim.verdict}", color=INK.get(claim.verdict, "black"))
    return figure


def _own_panel(claim: ClaimReport, rows: pd.DataFrame, canvas: Any) -> None:
    """Any claim: the target along the column that the claim is about, with the fitted law; or its points in a row."""
    del rows
    axes, points = canvas.add_subplot(), claim.points
    if "along" not in claim.fields:
        positions = np.arange(len(points))
        points_with_intervals(axes, positions, points, "C0", None)
        axes.set_xticks(positions, [str(i + 1) for i in positions])
        axes.set_xlabel("arm")
        return
    x = claim.fields["along"]
    others = [c for c in points.columns if c not in (x, "mean", "low", "high", "fitted", "claimed")]
    split = max(others, key=lambda c: points[c].nunique()) if others else None
    if split is not None and points[split].nunique() > MOST_SERIES:
        split = None
    groups = [(None, points)] if split is None else list(points.groupby(split, sort=True))
    shades: dict[Any, Any] = {0: "C0"} if len(groups) == 1 else level_colours(list(range(len(groups))))
    for k, (value, part) in enumerate(groups):
        part = part.sort_values(x)
        name = (
            None if value is None else f"{words(split)} = {value:g}" if isinstance(value, int | float) else words(value)
        )
        points_with_intervals(axes, part[x].to_numpy(), part, shades[k], name)
        if split is not None or not others:
            axes.plot(part[x], part["fitted"], "-", color="black", lw=0.8)
    axes.set(xlabel=words(x), ylabel=words(claim.fields["target"]))
    if split is not None:
        axes.legend(fontsize=7)
    _logarithmic_where_positive(axes, points, x)


def _logarithmic_where_positive(axes: Axes, points: pd.DataFrame, x: str) -> None:
    if (points[x] > 0).all():
        axes.set_xscale("log")
    if (points["mean"] > 0).all():
        axes.set_yscale("log")


def _save(figure: Figure, path: Path) -> Path:
    """Write beside, then rename; no time stamp, so that equal data give equal files."""
    beside = path.with_name(f".{path.name}.tmp")
    stamp = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with theme():
        figure.savefig(beside, format=path.suffix[1:], metadata=stamp)
    os.replace(beside, path)
    return path
