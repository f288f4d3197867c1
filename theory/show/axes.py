"""Parts of figures: logarithmic axes in plain numbers, points with intervals, levels by colour, optima by status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from theory.judge.cells import mean_points
from theory.judge.optimum import AT_LEAST, AT_MOST, OUTSIDE, UNRESOLVED, USED
from theory.report import Exponent
from theory.show.palette import LETTER
from theory.show.theme import CLAIMED, COLUMN, FITTED, series_style

#: Axes of the coordinates, and the colours of their levels where these tell series apart, the same in every figure.
AXIS = {
    "s": "decay s of the spectrum",
    "samples": "training sequences N",
    "rank": "rank r",
    "steps": "steps T (one run each)",
}
SCALE = {"samples": "viridis", "rank": "plasma", "s": "plasma"}

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


def column(height: float) -> Figure:
    """An empty figure of one column of a paper; its height in inches."""
    return Figure(figsize=(COLUMN, height))


def plain_log(axis: mpl.axis.Axis, values: np.ndarray) -> None:
    """Label a logarithmic axis at the values that occur, in plain numbers."""
    values = np.unique(values)
    if len(values) > 7:
        values = values[:: -(-len(values) // 7)]
    axis.set_ticks(values)
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:.3g}k" if v >= 10_000 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain_decades(axis: mpl.axis.Axis) -> None:
    """Label a logarithmic axis of few decades at 1, 2 and 5, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def spread_of(points: pd.DataFrame) -> np.ndarray:
    """Lengths [2, N] of error bars from `mean` down to `low` and up to `high`; 0 where an end is not known."""
    ends = [points["mean"] - points["low"], points["high"] - points["mean"]]
    return np.nan_to_num(np.maximum(np.array(ends, np.float64), 0.0))


def errorbars(axes: Axes, x: np.ndarray, frame: pd.DataFrame, label: str, i: int, **style: Any) -> None:
    """Means with 95 % intervals; an interval that is not known is not drawn."""
    style = series_style(i) | style
    axes.errorbar(x, frame["mean"], yerr=spread_of(frame), linestyle="none", label=label, elinewidth=0.8, **style)


def points_with_intervals(axes: Axes, x: np.ndarray, points: pd.DataFrame, colour: Any, label: str | None) -> None:
    """The same in a colour of one's own, with caps."""
    mean = points["mean"].to_numpy(dtype=np.float64)
    axes.errorbar(x, mean, spread_of(points), fmt="o", ms=3, lw=1, capsize=2, color=colour, label=label)


def cell_means(frame: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean of a column over the rows of each cell, with its 95 % t interval: columns *by, mean, low, high."""
    return mean_points(frame.groupby(by)[value]).reset_index()


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend that cannot cover data."""
    figure.legend(*axes.get_legend_handles_labels(), ncols=columns, loc="outside upper center", fontsize=6)


def interval_text(exponent: Exponent) -> str:
    """'-1.21 [-1.29, -1.13]'."""
    return interval_words(exponent.estimate, exponent.ci95.low, exponent.ci95.high)


def interval_words(estimate: float | None, low: float | None, high: float | None) -> str:
    """An estimate with its interval in words; None (as in a verdict's JSON) and NaN are not known."""
    if estimate is None or not np.isfinite(estimate):
        return "not estimable"
    if low is None or high is None or not np.isfinite(low):
        return f"{estimate:.2f} (no interval)"
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def power_text(coordinate: str, value: float | str) -> str:
    """A power for a figure: $N^{-0.5}$."""
    return f"${LETTER[coordinate]}^{{{value}}}$".replace(".0}", "}")


def fitted_text(coordinate: str, exponent: Exponent) -> str:
    """A fitted power with its interval, for a legend."""
    if not np.isfinite(exponent.estimate):
        return "no power law can be fitted"
    power = power_text(coordinate, f"{exponent.estimate:.2f}")
    return f"{power} [{exponent.ci95.low:.2f}, {exponent.ci95.high:.2f}]"


def draw_fitted(axes: Axes, points: pd.DataFrame, coordinate: str, fitted: str, exponent: Exponent) -> None:
    """The fitted law, a column of the points, with its exponent."""
    axes.plot(points[coordinate], points[fitted], label=f"fit: {fitted_text(coordinate, exponent)}", **FITTED)


def draw_claimed(axes: Axes, points: pd.DataFrame, coordinate: str, exponent: Exponent, said: str = "") -> None:
    """The claimed law with its exponent, and what else is `said` of it."""
    label = f"claimed: {power_text(coordinate, exponent.claimed)}{said}"
    axes.plot(points[coordinate], points["claimed"], label=label, **CLAIMED)


def level_colours(levels: Sequence[float], scale: str = "viridis") -> dict[float, tuple[float, ...]]:
    """A colour per level, from dark to light, at equal distances."""
    shades = mpl.colormaps[scale](np.linspace(0.0, 0.88, len(levels)))
    return dict(zip(sorted(levels), map(tuple, shades.tolist()), strict=True))


def level_bar(figure: Figure, axes: Axes, coordinate: str, levels: list[float]) -> None:
    """The colours of the levels of a coordinate, beside the axes: many series need no legend and no markers."""
    colours = ListedColormap(list(level_colours(levels, SCALE[coordinate]).values()))
    edges = BoundaryNorm(np.arange(len(levels) + 1) - 0.5, len(levels))
    bar = figure.colorbar(ScalarMappable(edges, colours), ax=axes, ticks=range(len(levels)), pad=0.02, aspect=25)
    bar.ax.set_yticklabels([f"{v:g}" for v in levels], fontsize=6)
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.ax.grid(visible=False)
    bar.set_label(AXIS[coordinate], fontsize=7)


def log_edges(values: np.ndarray) -> np.ndarray:
    """[K + 1] borders of the K cells of a logarithmic axis whose sorted centres are given; K is 2 or more."""
    centres = np.log(values)
    middles = 0.5 * (centres[1:] + centres[:-1])
    return np.exp(np.r_[2 * centres[0] - middles[0], middles, 2 * centres[-1] - middles[-1]])


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


def draw_trusted_range(axes: Axes, points: pd.DataFrame) -> None:
    """The ranks at which an optimum enters the fit, shaded."""
    points = points.sort_values("samples")
    axes.fill_between(
        points["samples"], points["limit_low"], points["limit_high"], color="#000000", alpha=0.06, linewidth=0,
        label="trusted range",
    )  # fmt: skip


def draw_optima(axes: Axes, points: pd.DataFrame, curves: pd.DataFrame, colour: str, size: float) -> None:
    """r* by N: seen ones with intervals, one-sided limits as arrows."""
    points = points.sort_values("samples")
    for status, (marker, outline, label) in OPTIMA.items():
        part = points[points["status"] == status]
        if part.empty:
            continue
        style: dict[str, Any] = {"color": colour, "markerfacecolor": "white" if outline else colour}
        if marker == "o":
            axes.errorbar(
                part["samples"], part["mean"], yerr=spread_of(part), linestyle="none", marker="o", elinewidth=0.8,
                markersize=size, label=label, **style,
            )  # fmt: skip
        else:
            limits = [_limit(curves, n, r, status) for n, r in zip(part["samples"], part["mean"], strict=True)]
            axes.plot(part["samples"], limits, linestyle="none", marker=marker, markersize=5 * size, **style)
            axes.plot([], [], linestyle="none", marker=marker, markersize=2.5 * size, label=label, **style)


def _limit(curves: pd.DataFrame, samples: float, rank: float, status: str) -> float:
    """Where a mark stands: at the second or the last but one rank run at this N, beyond which no optimum is seen."""
    ranks = np.sort(curves.loc[curves["samples"] == samples, "rank"].unique())
    return {AT_MOST: ranks[1], AT_LEAST: ranks[-2]}.get(status, rank)
