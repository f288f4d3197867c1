"""Figures of a report: measured cells with intervals, the fitted law, the claimed slope, and the points as CSV.

Figures are drawn without pyplot (no display, no global state) and written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from theory.errors import OptionError
from theory.judge.optimum import AT_LEAST, AT_MOST, OUTSIDE, UNRESOLVED, USED
from theory.report import ClaimReport, Report, write_text
from theory.show.palette import INK, LETTER

#: By claim: the coordinate on the horizontal axis, what distinguishes the series, and the label of the vertical axis.
AXES: dict[str, tuple[str, str | None, str]] = {
    "convergence": ("steps", None, "mean squared gradient norm"),
    "generalization": ("samples", "rank", "signed gap (nats)"),
    "optimal_rank": ("samples", None, "optimal rank r*"),
    "information": ("clone_weight", "site", "I / I*"),
}
NAMES = {"samples": "samples N", "steps": "steps T", "rank": "rank r", "clone_weight": "clone weight"}
#: Marks of a limit, an arrow from a short bar to where r* lies, and of an optimum that may lie anywhere above.
UP = [(-0.5, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 2.0), (-0.4, 1.4), (0.0, 2.0), (0.4, 1.4)]
DOWN = [(x, -y) for x, y in UP]
OPEN_UP = [(-0.4, -0.4), (0.4, 0.4), (0.0, 0.0), (-0.4, 0.4), (0.4, -0.4), *UP[2:]]
#: By status of an optimal rank: its marker, whether that is an outline, and what it means.
OPTIMA: dict[str, tuple[Any, bool, str]] = {
    USED: ("o", False, "r*, in the fit"),
    OUTSIDE: ("o", True, "r* outside the trusted range"),
    AT_MOST: (DOWN, True, "r* at most this"),
    AT_LEAST: (UP, True, "r* at least this"),
    UNRESOLVED: (OPEN_UP, True, "r* open: no larger rank is clearly worse"),
}


#: More values of a second column than this are drawn as one series.
MOST_SERIES = 12


def level_colours(levels: Sequence[float], scale: str = "viridis") -> dict[float, tuple[float, ...]]:
    """A colour per level, from dark to light, at equal distances."""
    shades = mpl.colormaps[scale](np.linspace(0.0, 0.88, len(levels)))
    return dict(zip(sorted(levels), map(tuple, shades.tolist()), strict=True))


def slope_triangle(axes: Axes, slope: float, text: str) -> None:
    """A claimed exponent as a small triangle in a corner that the data leave free; call it once the limits are set."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    steepness = slope * np.log(right / left) / np.log(high / low)  # of the slope, in fractions of the axes
    width = min(0.2, 0.3 / max(abs(steepness), 1e-9))
    height = steepness * width
    x, y = 0.96 - width, 0.94 if slope < 0 else 0.06
    corner = (x, y + height) if slope < 0 else (x + width, y)
    corners = [(x, y), (x + width, y + height), corner]
    style: dict[str, Any] = {"facecolor": "#dddddd", "edgecolor": "#444444", "linewidth": 0.8, "zorder": 4}
    axes.add_patch(Polygon(corners, transform=axes.transAxes, **style))
    axes.text(x - 0.02, y + height / 2, text, transform=axes.transAxes, ha="right", va="center", zorder=4)


def draw_optima(axes: Axes, points: pd.DataFrame, curves: pd.DataFrame, colour: str, size: float) -> None:
    """r* by N: seen ones with intervals, one-sided limits as arrows, and the trusted range shaded."""
    points = points.sort_values("samples")
    axes.fill_between(
        points["samples"], points["limit_low"], points["limit_high"], color="#000000", alpha=0.06, linewidth=0,
        label="trusted range",
    )  # fmt: skip
    for status, (marker, outline, label) in OPTIMA.items():
        part = points[points["status"] == status]
        if part.empty:
            continue
        style: dict[str, Any] = {"color": colour, "markerfacecolor": "white" if outline else colour}
        if marker == "o":
            spread = np.vstack([part["mean"] - part["low"], part["high"] - part["mean"]])
            axes.errorbar(
                part["samples"], part["mean"], yerr=np.maximum(np.nan_to_num(spread), 0), linestyle="none", marker="o",
                elinewidth=0.8, markersize=size, label=label, **style,
            )  # fmt: skip
        else:
            limits = [_limit(curves, n, r, status) for n, r in zip(part["samples"], part["mean"], strict=True)]
            axes.plot(part["samples"], limits, linestyle="none", marker=marker, markersize=5 * size, **style)
            axes.plot([], [], linestyle="none", marker=marker, markersize=2.5 * size, label=label, **style)


def _limit(curves: pd.DataFrame, samples: float, rank: float, status: str) -> float:
    """Where a mark stands: at the second or the last but one rank run at this N, beyond which no optimum is seen."""
    ranks = np.sort(curves.loc[curves["samples"] == samples, "rank"].unique())
    return {AT_MOST: ranks[1], AT_LEAST: ranks[-2]}.get(status, rank)


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
    axes[-1].set_title(f"{claim.name}: {claim.verdict}", color=INK.get(claim.verdict, "black"))
    return figure


def _claim_panel(axes: Axes, claim: ClaimReport) -> None:
    points = claim.points
    if "along" in claim.fields:
        _own_panel(axes, claim)
        return
    if claim.name not in AXES:
        positions = np.arange(len(points))
        _errors(axes, positions, points, "C0", None)
        axes.set_xticks(positions, [str(i + 1) for i in positions])
        axes.set_xlabel("arm")
        return
    x, split, label = AXES[claim.name]
    split = split if split in points else None
    one_law = split is None and x != "clone_weight"

    def lines(part: pd.DataFrame) -> None:
        drawn = {f"fitted_{x}": ("-", "fitted"), "fitted": ("-", "fitted"), "fitted_corrected": ("-.", "corrected")}
        for column, (style, name) in (drawn | ({"claimed": (":", "claimed")} if one_law else {})).items():
            if column in part and part[column].notna().any():
                axes.plot(part[x], part[column], style, color="black", lw=1, label=name if one_law else None)

    if "status" in points:
        draw_optima(axes, points, claim.curves, "C0", 4)
        lines(points.sort_values(x))
        axes.set(xlabel=NAMES[x], ylabel=label)
        axes.legend(fontsize=7)
    else:
        _series(axes, points, x, split, label, lines)
    if x == "clone_weight":
        axes.set_xscale("symlog", linthresh=max(float(points[x][points[x] > 0].min()), 1e-9) if points[x].any() else 1)
        axes.axhline(1.0, color="black", ls=":", lw=1)
        return
    axes.set_xscale("log")
    if (points["mean"] > 0).all():
        axes.set_yscale("log")
        if split is not None:
            claimed = claim.exponents[x].claimed
            slope_triangle(axes, claimed, f"claimed ${LETTER[x]}^{{{claimed:g}}}$")


def _own_panel(axes: Axes, claim: ClaimReport) -> None:
    """A claim of one's own: the target along the column that the claim is about, with the fitted law."""
    points, x = claim.points, claim.fields["along"]
    others = [c for c in points.columns if c not in (x, "mean", "low", "high", "fitted", "claimed")]
    split = max(others, key=lambda c: points[c].nunique()) if others else None
    if split is not None and points[split].nunique() > MOST_SERIES:
        split = None

    def line(part: pd.DataFrame) -> None:
        if split is not None or not others:
            axes.plot(part[x], part["fitted"], "-", color="black", lw=0.8)

    _series(axes, points, x, split, claim.fields["target"], line)
    if (points[x] > 0).all():
        axes.set_xscale("log")
    if (points["mean"] > 0).all():
        axes.set_yscale("log")


def _series(
    axes: Axes, points: pd.DataFrame, x: str, split: str | None, label: str, lines: Callable[[pd.DataFrame], None]
) -> None:
    groups = [(None, points)] if split is None else list(points.groupby(split, sort=True))
    shades = level_colours(list(range(len(groups)))) if len(groups) > 1 else {0: "C0"}
    for k, (value, part) in enumerate(groups):
        part = part.sort_values(x)
        name = None if value is None else f"{split} = {value:g}" if isinstance(value, (int, float)) else str(value)
        _errors(axes, part[x].to_numpy(), part, shades[k], name)
        lines(part)
    axes.set_xlabel(NAMES.get(x, x))
    axes.set_ylabel(label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)


def _errors(axes: Axes, x: np.ndarray, points: pd.DataFrame, colour: Any, label: str | None) -> None:
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
