"""Figures of a report: measured cells with intervals, the fitted law, the claimed slope, and the points as CSV.

Figures are drawn without pyplot (no display, no global state) and written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from theory.errors import OptionError
from theory.judge.methods import CLONE, kind_of
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
#: Budgets of training and costs of inference.
COST_NAMES = {
    "tokens": "training tokens",
    "training_flops": "training FLOPs",
    "weight_bytes": "weights (bytes)",
    "flops_per_token": "FLOPs per token",
    "decode_ms_per_token": "decoding time per token (ms)",
}
#: Columns of the points of F; all others tell comparisons apart.
FACTOR_COLUMNS = {"clone", "direct", "budget", "loss", "clone_budget", "direct_budget", "mean", "low", "high"}
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
#: Budgets or costs that are labelled one by one.
MOST_TICKS = 8


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
    if claim.name in OF_METHODS:
        return OF_METHODS[claim.name](claim)
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


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour per method: clones in shades of one hue, all others apart from it."""
    names = sorted(set(methods), key=lambda m: (kind_of(m) != CLONE, m))
    clones = [m for m in names if kind_of(m) == CLONE]
    others = [m for m in names if kind_of(m) != CLONE]
    shades = ("#b3141f", "#e0703a", "#7a0c4f", "#d89aa0")
    plain = ("#2450c8", "#1a7431", "#855800", "#0b6f85", "#9a2a9a", "#444444", "#6f8f2f", "#8a8a8a")
    return {m: shades[k % len(shades)] for k, m in enumerate(clones)} | {
        m: plain[k % len(plain)] for k, m in enumerate(others)
    }


def draw_losses(axes: Axes, points: pd.DataFrame, x: str, colours: Mapping[str, str]) -> None:
    """Loss of every method against a budget or a cost, with 95 % intervals over seeds; clones are drawn thicker."""
    for method, part in points.dropna(subset=[x]).groupby("method", sort=True):
        part, clone = part.sort_values(x), kind_of(str(method)) == CLONE
        _errors(axes, part[x].to_numpy(), part, colours[str(method)], str(method))
        axes.plot(part[x], part["mean"], color=colours[str(method)], lw=1.8 if clone else 0.8)
    axes.set(xscale="log", xlabel=COST_NAMES.get(x, x), ylabel="loss (nats/token)")
    measured = np.unique(points[x].dropna())
    if len(measured) <= MOST_TICKS:
        axes.set_xticks(measured)
    axes.xaxis.set_major_formatter(EngFormatter(places=1))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _efficiency_figure(claim: ClaimReport) -> Figure:
    """Loss against tokens with F drawn as the distance between two curves, and F against the target loss."""
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    worst = claim.fields["budget_factor"]
    points = _of_arm(claim.points, worst["arm"])
    budget = worst["budget"] if worst["budget"] in points else "tokens"
    draw_losses(left, points, budget, method_colours(points["method"]))
    draw_factor(left, worst)
    left.legend(fontsize=7)
    factors = claim.curves
    if not factors.empty:
        arms = [c for c in factors if c not in FACTOR_COLUMNS]
        for k, (key, part) in enumerate(factors.groupby([*arms, "clone", "budget"], dropna=False)):
            label = ", ".join(str(v) for v in key)
            _errors(right, part["loss"].to_numpy() + 0.002 * k, part, f"C{k}", label)
            right.plot(part["loss"] + 0.002 * k, part["mean"], color=f"C{k}", lw=0.8)
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
        right.invert_xaxis()
        right.legend(fontsize=7)
    right.axhline(1.0, color="black", lw=0.8)
    right.axhline(worst["claimed"], color="black", ls=":", lw=1)
    right.set(xlabel="target loss (nats/token)", ylabel="F = budget of direct training / of the clone")
    right.set_title(f"{claim.name}: {claim.verdict}", color=INK.get(claim.verdict, "black"))
    return figure


def draw_factor(axes: Axes, result: Mapping[str, Any]) -> None:
    """F at a target loss: an arrow from the clone's budget to that of direct training, with the interval in words."""
    targets = result["targets"]
    if not targets:
        return
    shown = min(targets, key=lambda t: t["ci95"][0] if np.isfinite(t["ci95"][0]) else np.inf)
    ends = (shown["clone_budget"], shown["direct_budget"])
    axes.annotate(
        "", xy=(ends[1], shown["loss"]), xytext=(ends[0], shown["loss"]),
        arrowprops={"arrowstyle": "<->", "color": "black", "linewidth": 1.0},
    )  # fmt: skip
    low, high = shown["ci95"]
    axes.annotate(
        f"F = {shown['estimate']:.3g} [{low:.3g}, {high:.3g}]", xy=(float(np.sqrt(ends[0] * ends[1])), shown["loss"]),
        xytext=(0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip


def _compression_figure(claim: ClaimReport) -> Figure:
    """Loss against every cost, with the front: the smallest loss at this cost or less."""
    worst = claim.fields["rival_difference"]
    points = _of_arm(claim.points, worst["arm"])
    costs = [r["cost"] for r in claim.fields["comparisons"] if r["arm"] == worst["arm"]]
    costs = [c for c in COST_NAMES if c in costs]
    figure = Figure(figsize=(4.6 * len(costs), 4.0), layout="constrained")
    colours = method_colours(points["method"])
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        draw_losses(axes, points, cost, colours)
        draw_front(axes, points, cost)
        word = next(r["verdict"] for r in claim.fields["comparisons"] if r["arm"] == worst["arm"] and r["cost"] == cost)
        axes.set_title(f"{COST_NAMES[cost].partition(' (')[0]}: {word}", color=INK.get(word, "black"), fontsize=9)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(f"{claim.name}: {claim.verdict}", color=INK.get(claim.verdict, "black"))
    return figure


def front_of(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points that no other has both a smaller loss and at most the cost of, by rising cost."""
    ordered = points.dropna(subset=[cost]).sort_values([cost, "mean"])
    return ordered[ordered["mean"] < ordered["mean"].cummin().shift(fill_value=np.inf)]


def draw_front(axes: Axes, points: pd.DataFrame, cost: str) -> None:
    """The front as steps: what is had at a cost is had at a larger one too."""
    front = front_of(points, cost)
    axes.step(front[cost], front["mean"], where="post", color="black", lw=1.0, ls="--", label="front", zorder=1)


def _of_arm(points: pd.DataFrame, arm: Mapping[str, Any]) -> pd.DataFrame:
    """The points of one comparison of several in a table."""
    for name, value in arm.items():
        points = points[points[name].isna() if pd.isna(value) else points[name] == value]
    return points


#: Claims that compare methods have figures of their own.
OF_METHODS: dict[str, Callable[[ClaimReport], Figure]] = {
    "efficiency": _efficiency_figure,
    "compression": _compression_figure,
}


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
