"""Figures of a report: measured cells with intervals, the fitted law and the claimed one, and the points as CSV.

Figures are drawn without pyplot (no display, no global state) and written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from theory.report import ClaimReport, Report, write_text
from theory.tables import InputError

#: By claim: the coordinate on the horizontal axis, what distinguishes the series, and the label of the vertical axis.
AXES: dict[str, tuple[str, str | None, str]] = {
    "convergence": ("steps", None, "mean squared gradient norm"),
    "generalization": ("samples", "rank", "signed gap (nats)"),
    "optimal_rank": ("samples", None, "optimal rank r*"),
    "information": ("clone_weight", "site", "I / I*"),
}
NAMES = {"samples": "samples N", "steps": "steps T", "rank": "rank r", "clone_weight": "clone weight"}


def write_figures(report: Report, folder: str | Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv for every claim of the report that has points.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--figures {folder}: {error.strerror}; choose another folder") from None
    written = []
    for name, claim in report.claims.items():
        if claim.points.empty:
            continue
        figure = draw(claim)
        for suffix in ("png", "pdf"):
            written.append(_save(figure, folder / f"{name}.{suffix}"))
        for frame, stem in ((claim.points, name), (claim.curves, f"{name}_curves")):
            if not frame.empty:
                write_text(folder / f"{stem}.csv", frame.to_csv(index=False))
                written.append(folder / f"{stem}.csv")
    return written


def draw(claim: ClaimReport) -> Figure:
    """The figure of one claim; risk curves stand beside the optima of `optimal_rank`."""
    columns = 1 if claim.curves.empty else 2
    figure = Figure(figsize=(5.5 * columns, 4.0), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    if columns == 2:
        _series(axes[0], claim.curves, "rank", "samples", "risk", lambda _: None)
        axes[0].set_xscale("log")
        if (claim.curves["mean"] > 0).all():
            axes[0].set_yscale("log")
    _claim_panel(axes[-1], claim)
    axes[-1].set_title(f"{claim.name}: {claim.verdict}")
    return figure


def _claim_panel(axes: Axes, claim: ClaimReport) -> None:
    points = claim.points
    if claim.name not in AXES:
        positions = np.arange(len(points))
        _errors(axes, positions, points, "C0", None)
        axes.set_xticks(positions, [str(i + 1) for i in positions])
        axes.set_xlabel("arm")
        return
    x, split, label = AXES[claim.name]
    split = split if split in points else None

    def lines(part: pd.DataFrame) -> None:
        for column, style, name in (("fitted", "-", "fitted"), ("claimed", ":", "claimed")):
            if column in part:
                axes.plot(part[x], part[column], style, color="black", lw=1, label=name if split is None else None)

    _series(axes, points, x, split, label, lines)
    if x == "clone_weight":
        axes.set_xscale("symlog", linthresh=max(float(points[x][points[x] > 0].min()), 1e-9) if points[x].any() else 1)
        axes.axhline(1.0, color="black", ls=":", lw=1)
    else:
        axes.set_xscale("log")
        if (points["mean"] > 0).all():
            axes.set_yscale("log")


def _series(
    axes: Axes, points: pd.DataFrame, x: str, split: str | None, label: str, lines: Callable[[pd.DataFrame], None]
) -> None:
    groups = [(None, points)] if split is None else list(points.groupby(split, sort=True))
    for k, (value, part) in enumerate(groups):
        part = part.sort_values(x)
        name = None if value is None else f"{split} = {value:g}" if isinstance(value, (int, float)) else str(value)
        _errors(axes, part[x].to_numpy(), part, f"C{k % 10}", name)
        lines(part)
    axes.set_xlabel(NAMES.get(x, x))
    axes.set_ylabel(label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)


def _errors(axes: Axes, x: np.ndarray, points: pd.DataFrame, colour: str, label: str | None) -> None:
    mean = points["mean"].to_numpy(dtype=np.float64)
    below = np.nan_to_num(np.maximum(mean - points["low"].to_numpy(dtype=np.float64), 0.0))
    above = np.nan_to_num(np.maximum(points["high"].to_numpy(dtype=np.float64) - mean, 0.0))
    axes.errorbar(x, mean, [below, above], fmt="o", ms=3, lw=1, capsize=2, color=colour, label=label)


def _save(figure: Figure, path: Path) -> Path:
    """Write beside, then rename; no time stamp, so that equal data give equal files."""
    beside = path.with_name(f".{path.name}.tmp")
    stamp = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    figure.savefig(beside, format=path.suffix[1:], dpi=150, metadata=stamp)
    os.replace(beside, path)
    return path
