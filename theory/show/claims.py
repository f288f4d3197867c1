"""One function per figure of a claim: it takes the judgement and the rows judged, and gives a `Drawn`.

It draws on a figure of one column, or on the part of a larger one that it is handed as `canvas`.

Each figure shows its uncertainty, the fitted law and the claimed law. Nothing here runs a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from theory.claims.convergence import CONSTANTS, right_hand_side
from theory.claims.dynamics import NOT_PRESERVED, PRESERVED, ratio_interval
from theory.judge.intervals import mean_interval
from theory.judge.optimum import AT_LEAST, AT_MOST, OUTSIDE, UNRESOLVED, USED
from theory.judge.verdicts import MARGIN
from theory.judge.window import near_middle
from theory.report import ClaimReport
from theory.show.axes import (
    AXIS,
    OPTIMA,
    SCALE,
    column,
    draw_claimed,
    draw_fitted,
    draw_optima,
    draw_trusted_range,
    errorbars,
    fitted_text,
    interval_text,
    interval_words,
    legend_above,
    level_bar,
    level_colours,
    log_edges,
    plain_decades,
    plain_log,
    power_text,
    slope_triangle,
)
from theory.show.palette import LETTER
from theory.show.theme import CLAIMED, FITTED, series_style, words

#: How the optimum of a risk curve is marked, by its status: filled where it is in the fit (see OPTIMA).
MARKS = {USED: "*", OUTSIDE: "*", AT_MOST: "<", AT_LEAST: ">", UNRESOLVED: "X"}

#: Borders of the colours of the risk surface, in units of the smallest excess loss at the same N.
TIMES_BEST = (1, 1.1, 1.25, 1.5, 2, 3, 5, 10)


@dataclass(frozen=True)
class Drawn:
    """One figure: its name, what it shows in a sentence (also its alternative text), and its points."""

    name: str
    caption: str
    figure: Figure
    points: pd.DataFrame


def _gap(claim: ClaimReport, x: str, series: str, canvas: Figure | None = None) -> Drawn:
    """Generalisation gap against one coordinate, a series per level of the other, with fits and the claimed slope."""
    figure = canvas or column(2.6)
    axes = figure.add_subplot()
    points, exponent = claim.points, claim.exponents[x]
    levels = sorted(points[series].unique())
    for level, colour in level_colours(levels, SCALE[series]).items():
        part = points[points[series] == level].sort_values(x)
        errorbars(axes, part[x].to_numpy(), part, "", 0, color=colour, marker="o", markersize=2.5)
        axes.plot(part[x], part[f"fitted_{x}"], color=colour, linewidth=0.8)
    bent = bool(exponent.details.get("bent"))
    axes.plot([], [], label=f"one power law per series: {fitted_text(x, exponent)}{', bent' * bent}", **FITTED)
    axes.set(xscale="log", yscale="log", xlabel=AXIS[x], ylabel="generalisation gap (nats/token)")
    plain_log(axes.xaxis, points[x].to_numpy())
    positive = points.loc[points["mean"] > 0, "mean"]
    if len(positive):
        axes.set_ylim(positive.min() / 2, positive.max() * 2)
    slope_triangle(axes, exponent.claimed, f"claimed\n{power_text(x, exponent.claimed)}")
    level_bar(figure, axes, series, levels)
    legend_above(figure, axes, 1)
    halves = ""
    if bent:
        low, top = (interval_words(exponent.details[part]["estimate"], *exponent.details[part]["ci95"])
                    for part in ("low", "top"))  # fmt: skip
        halves = f" No single exponent describes the range: {low} in its lower half, {top} in its upper."
    caption = (
        f"Generalisation gap against {AXIS[x]}, one series per {AXIS[series]} ({len(levels)}): cell means with 95 % "
        f"intervals over {claim.seeds} seeds, and power laws with a common exponent, {interval_text(exponent)}; "
        f"claimed {exponent.claimed:g} (triangle).{halves}"
    )
    return Drawn(f"gap_against_{x}", caption, figure, points)


def gap_against_samples(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """Generalisation gap against N, one series per rank."""
    return _gap(claim, "samples", "rank", canvas)


def gap_against_rank(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """The same cells against rank, one series per sample size."""
    return _gap(claim, "rank", "samples", canvas)


def _local_slopes(
    claim: ClaimReport, coordinate: str, name: str, quantity: str, short: str, canvas: Figure | None
) -> Drawn | None:
    """The exponent along the range, with the parts of the range that the verdict rests on; None where it is too short.

    Args:
        quantity: what falls, in words for the caption. short: the same for the axis.
    """
    exponent = claim.exponents[coordinate]
    found = exponent.details
    levels = np.unique(claim.points[coordinate])
    if not found.get("local_slopes") or len(levels) < 3:
        return None
    letter = LETTER[coordinate]
    middle, last = float(np.exp(near_middle(np.log(levels)))), float(levels[-1])
    parts = [
        ("lower half", "low", levels[0], middle, "#0072B2", "-", None),
        ("upper half", "top", middle, last, "#0072B2", "-", "halves of the range"),
        ("next half-decade", "reach", last, last * 10**0.5, "#56B4E9", ":", "next half-decade, if a plateau"),
    ]
    lines = [("local", x, x, slope, low, high) for x, slope, low, high in found["local_slopes"]]
    figure = canvas or column(2.4)
    axes = figure.add_subplot()
    axes.axhspan(exponent.claimed - MARGIN, exponent.claimed + MARGIN, color="#000000", alpha=0.1, linewidth=0)
    axes.axhline(exponent.claimed, label=f"claimed {exponent.claimed:g} ± {MARGIN:g}", **CLAIMED)
    for part, key, start, end, colour, style, label in parts:
        mean, (low, high) = found[key]["estimate"], found[key]["ci95"]
        axes.plot([start, end], [mean, mean], color=colour, linewidth=1.8, linestyle=style, label=label)
        axes.fill_between([start, end], low, high, color=colour, alpha=0.18, linewidth=0)
        lines.append((part, start, end, mean, low, high))
    points = pd.DataFrame(lines, columns=["part", "from", "to", "mean", "low", "high"])
    local = points[points["part"] == "local"]
    errorbars(axes, local["from"].to_numpy(), local, f"over half a decade of {letter} (95 %)", 0)
    axes.set(xscale="log", xlabel=AXIS[coordinate], ylabel=f"exponent of {short} in {letter}")
    plain_log(axes.xaxis, levels)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, exponent.claimed - 3 * MARGIN), max(high, exponent.claimed + 3 * MARGIN))
    for height, word, side in ((MARGIN, "slower", "bottom"), (-MARGIN, "faster", "top")):
        beside = axes.get_yaxis_transform()
        axes.text(1.01, exponent.claimed + height, word, transform=beside, va=side, fontsize=6, color="#444444")
    legend_above(figure, axes, 2)
    caption = (
        f"Local exponent of {quantity} in {letter} (95 % intervals over {claim.seeds} seeds), over the two halves "
        "of the tested range, and over the half-decade beyond it if the flattening were a plateau. Below the grey band "
        f"it falls faster than claimed ({exponent.claimed:g} ± {MARGIN:g}), above it more slowly."
    )
    return Drawn(name, caption, figure, points)


def gap_local_slopes(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn | None:
    """Local exponent of the gap in N."""
    return _local_slopes(claim, "samples", "gap_local_slopes", "the generalisation gap", "the gap", canvas)


def gradient_local_slopes(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn | None:
    """Local exponent of the squared gradient norm in T."""
    quantity = "the mean squared gradient norm"
    return _local_slopes(claim, "steps", "gradient_local_slopes", quantity, "gradient²", canvas)


def risk_against_rank(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """Test loss in excess of the teacher's against rank, one curve per sample size, with the optimum marked."""
    figure = canvas or column(2.8)
    axes = figure.add_subplot()
    curves, optima = claim.curves, claim.points
    sizes = sorted(curves["samples"].unique())
    if "teacher_loss" in frame and frame["teacher_loss"].notna().any():
        floor, label = float(frame["teacher_loss"].min()), "test loss - teacher's (nats/token)"
    else:  # a table without the teacher's loss: show the distance to just below the best loss of all
        best = float(curves["mean"].min())
        floor = best - 0.02 * (float(curves["mean"].max()) - best)
        label = f"test loss - {floor:.3f} (nats/token)"
    seen = set()
    for n, colour in level_colours(sizes).items():
        part = curves[curves["samples"] == n].sort_values("rank")
        y = part["mean"] - floor
        axes.plot(part["rank"], y, color=colour, marker="o", markersize=2, linewidth=0.9)
        if part["low"].notna().all():
            low, high = part["low"] - floor, part["high"] - floor
            axes.fill_between(part["rank"], low.clip(lower=1e-9), high, color=colour, alpha=0.2, linewidth=0)
        for rank, status in optima.loc[optima["samples"] == n, ["mean", "status"]].to_numpy():
            height = np.interp(np.log(rank), np.log(part["rank"]), y)
            face = colour if status == USED else "white"
            axes.plot(rank, height, MARKS[status], markersize=7, markerfacecolor=face, markeredgecolor=colour, zorder=5)
            seen.add(status)
    for status, marker in MARKS.items():
        if status in seen:
            face, text = ("#444444", "r*") if status == USED else ("white", OPTIMA[status][2])
            axes.plot([], [], marker, color="#444444", markerfacecolor=face, markersize=6, label=text)
    heights = curves["mean"] - floor
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel=label)
    axes.set_ylim(heights[heights > 0].min() / 1.6, heights.max() * 1.6)
    plain_log(axes.xaxis, curves["rank"].to_numpy())
    level_bar(figure, axes, "samples", sizes)
    legend_above(figure, axes, 2)
    caption = (
        f"Test loss against rank at {len(sizes)} sample sizes with the best rank r* marked (95 % bands over "
        f"{claim.seeds} seeds)."
    )
    return Drawn("risk_against_rank", caption, figure, curves)


def risk_surface(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn | None:
    """Excess loss over rank and N, relative to the best rank at the same N, with the measured and the claimed r*.

    None where the teacher's loss, below which excess is counted, is not in the table, or a student reaches it.
    """
    surface = claim.curves.pivot(index="rank", columns="samples", values="mean")
    if "teacher_loss" not in frame or frame["teacher_loss"].isna().all() or min(surface.shape) < 3:
        return None
    excess = surface - float(frame["teacher_loss"].min())
    if not (excess.min() > 0).all():
        return None
    times = excess / excess.min()
    figure = canvas or column(3.0)
    axes = figure.add_subplot()
    colours = ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.02, 1.0, len(TIMES_BEST))))
    ranks, sizes = times.index.to_numpy(np.float64), times.columns.to_numpy(np.float64)
    # As pixels, so that a page's dark face leaves the scale as it is.
    mesh = axes.pcolormesh(
        log_edges(sizes), log_edges(ranks), times, cmap=colours, rasterized=True,
        norm=BoundaryNorm(TIMES_BEST, len(TIMES_BEST), extend="max"),
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=25, ticks=TIMES_BEST, label="excess loss / best at this N")
    bar.ax.set_yticklabels([f"{times:g}" for times in TIMES_BEST], fontsize=6)
    bar.ax.minorticks_off()
    bar.ax.grid(visible=False)
    for shades in (*bar.ax.collections, *bar.ax.patches):
        shades.set_rasterized(True)
    optima, exponent = claim.points.sort_values("samples"), claim.exponents["samples"]
    seen = optima[optima["status"].isin((USED, OUTSIDE))]
    axes.plot(seen["samples"], seen["mean"], color="black", linewidth=1.0)
    if "claimed" in optima:
        draw_claimed(axes, optima, "samples", exponent)
        axes.lines[-1].set(color="black", linewidth=1.4)
    draw_optima(axes, optima, claim.curves, "black", 3.5)
    for line in (*axes.lines, *axes.collections[1:]):  # all but the surface
        line.set_path_effects([withStroke(linewidth=2.6, foreground="white")])
    axes.set(xscale="log", yscale="log", xlabel=AXIS["samples"], ylabel=AXIS["rank"])
    axes.grid(visible=False)
    plain_log(axes.xaxis, sizes)
    plain_log(axes.yaxis, ranks)
    axes.set(xlim=log_edges(sizes)[[0, -1]], ylim=log_edges(ranks)[[0, -1]])
    legend_above(figure, axes, 2)
    caption = (
        "Mean test loss in excess of the teacher's at every rank and N, in units of the smallest excess at the same N "
        f"({claim.seeds} seeds): 1 is the best rank. Points are the measured best rank r*, the dashed line is claimed."
    )
    shown = {"excess": excess, "times_best": times}
    first, second = (frame.melt(ignore_index=False, value_name=name) for name, frame in shown.items())
    points = first.assign(times_best=second["times_best"]).dropna().reset_index()
    return Drawn("risk_surface", caption, figure, points)


def optimal_rank_against_samples(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """Every r* against N: those in the fit, those outside the trusted range, limits, and the three lines."""
    figure = canvas or column(2.9)
    axes = figure.add_subplot()
    points, exponent = claim.points.sort_values("samples"), claim.exponents["samples"]
    draw_trusted_range(axes, points)
    draw_optima(axes, points, claim.curves, "#0072B2", 3.5)
    corrected = exponent.details.get("corrected", {})
    both = interval_text(exponent)
    if "fitted" in points:  # too few optima: no law
        draw_fitted(axes, points, "samples", "fitted", exponent)
        if points["fitted_corrected"].notna().any():
            low, high = corrected["ci95"]
            power = power_text("samples", f"{corrected['estimate']:.2f}")
            label = f"corrected: {power} [{low:.2f}, {high:.2f}]"
            axes.plot(points["samples"], points["fitted_corrected"], color="#D55E00", linewidth=1, label=label)
            both += f", corrected for the finite matrix {interval_words(corrected['estimate'], low, high)}"
        draw_claimed(axes, points, "samples", exponent)
    axes.set(xscale="log", yscale="log", xlabel=AXIS["samples"], ylabel="optimal rank r*")
    plain_log(axes.xaxis, points["samples"].to_numpy())
    ranks = claim.curves["rank"]
    low, high = ranks.min() / 1.2, ranks.max() * 1.2
    axes.set_ylim(low, high)
    plain_log(axes.yaxis, 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1))
    legend_above(figure, axes, 2)
    caption = (
        f"Optimal rank against sample size with 95 % intervals; exponent {both}, claimed {exponent.claimed:g}. Optima "
        "outside the trusted range (grey) and limits (arrows) enter no fit. The correction takes out that r* "
        "accelerates as it nears the size of the matrix."
    )
    return Drawn("optimal_rank_against_samples", caption, figure, points)


def gradient_against_steps(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """Averaged squared gradient norm of separate runs against the horizon, with the bound from a pilot's constants."""
    figure = canvas or column(2.7)
    axes = figure.add_subplot()
    points = claim.points.sort_values("steps")
    if set(CONSTANTS) <= set(frame):
        bound = right_hand_side(*(frame[c].to_numpy() for c in ("steps", *CONSTANTS)))
        means = frame.assign(bound=bound).groupby("steps")["bound"].mean()
        axes.plot(
            means.index, means.to_numpy(), color="#D55E00", marker="_", linestyle=":", label="bound, pilot's constants"
        )
    short = frame[~frame["steps"].isin(points["steps"])].groupby("steps")["grad_norm_sq"].mean()
    if len(short):
        axes.plot(
            short.index, short.to_numpy(), "s", color="#0072B2", markerfacecolor="white",
            label="too short to test the rate",
        )  # fmt: skip
    errorbars(axes, points["steps"].to_numpy(), points, "measured (95 %)", 1)
    exponent = claim.exponents["steps"]
    draw_fitted(axes, points, "steps", "fitted_steps", exponent)
    draw_claimed(axes, points, "steps", exponent, " (free constant)")
    axes.set(xscale="log", yscale="log", xlabel=AXIS["steps"], ylabel="mean squared gradient norm")
    plain_log(axes.xaxis, frame["steps"].to_numpy())
    plain_decades(axes.yaxis)
    legend_above(figure, axes, 2)
    caption = (
        f"Mean squared gradient norm of separate SGD runs against their number of steps T, {claim.seeds} seeds; fitted "
        f"exponent {interval_text(exponent)}, claimed -0.5."
    )
    return Drawn("gradient_against_steps", caption, figure, points)


def information_against_clone_weight(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """I / I* against the clone weight, one series per site."""
    figure = canvas or column(2.6)
    axes = figure.add_subplot()
    points = claim.points
    weights = np.array(sorted(points["clone_weight"].unique()))
    place = {w: i for i, w in enumerate(weights)}  # 0 has no place on a logarithmic axis: equal distances instead
    sites = points.groupby("site") if "site" in points else [("", points)]
    for i, (site, part) in enumerate(sites):
        x = part["clone_weight"].map(place).to_numpy() + 0.06 * (i - 1.5)
        axes.plot(x, part["mean"], color=series_style(i)["color"], linewidth=0.8)
        errorbars(axes, x, part, words(site), i)
    axes.axhline(1, label="best possible, I*", **CLAIMED)
    axes.set_xticks(list(place.values()), [f"{w:g}" for w in weights])
    axes.set(xlabel="weight of the clone losses", ylabel="information / best possible", ylim=(0, 1.1))
    legend_above(figure, axes, 3)
    worst = claim.fields["ceiling_ratio"]
    caption = (
        f"Noise-smoothed information between teacher and student activations as a share of the best that the rank "
        f"allows, against the weight of the clone losses (95 % over {claim.seeds} seeds); at the worst site, "
        f"{worst['site']}, {worst['estimate']:.2f} at best."
    )
    return Drawn("information_against_clone_weight", caption, figure, points)


def dynamics_divergence(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn:
    """D / D_0 of every seed and arm, with the two thresholds of the rule."""
    figure = canvas or column(1.7)
    axes = figure.add_subplot()
    arm = frame["arm"].fillna("Low-Rank Clone") if "arm" in frame else pd.Series("Low-Rank Clone", frame.index)
    points = frame.assign(arm=arm, ratio=frame["dynamics_divergence"] / frame["dynamics_baseline"])
    points = points[["arm", "seed", "dynamics_divergence", "dynamics_baseline", "ratio"]]
    names = sorted(points["arm"].unique(), key=lambda name: name != "Low-Rank Clone")
    for i, name in enumerate(names):
        rows = points[points["arm"] == name]
        ratios = rows["ratio"].to_numpy()
        centre, interval = ratio_interval(
            rows["dynamics_divergence"].to_numpy(), rows["dynamics_baseline"].to_numpy(), 0.95
        )
        style = series_style(i + 1)
        axes.plot(ratios, np.full(len(ratios), i) + 0.15, "|", color=style["color"], markersize=6)
        if np.isfinite(interval.low):
            axes.plot([interval.low, interval.high], [i, i], color=style["color"], linewidth=1.2)
        axes.plot(centre, i, color=style["color"], marker=style["marker"])
    for value, word, side in ((PRESERVED, "same", "right"), (NOT_PRESERVED, "different", "left")):
        axes.axvline(value, **CLAIMED)
        axes.text(value, 1.01, f" {word}: {value:g} ", transform=axes.get_xaxis_transform(), ha=side, fontsize=6)
    axes.set_yticks(range(len(names)), [words(n) for n in names])
    axes.set(xscale="log", xlabel="divergence / that of two data orders", ylim=(len(names) - 0.5, -0.5))
    caption = (
        f"Divergence of the clone from a student trained directly, in units of that of two direct students with other "
        f"data order, at matched training loss: seeds (ticks), geometric mean and 95 % interval. Below {PRESERVED:g} "
        f"the dynamics count as the same, above {NOT_PRESERVED:g} as different (dashed)."
    )
    return Drawn("dynamics_divergence", caption, figure, points)


def dynamics_alignment(claim: ClaimReport, frame: pd.DataFrame, canvas: Figure | None = None) -> Drawn | None:
    """Cosine between the clone's flow and direct training's, by class of matrix, with the floor that theory gives."""
    classes = [c.split(".")[1] for c in map(str, frame) if c.startswith("dynamics.") and c.endswith(".cos")]
    own = frame[frame["arm"].isna()] if "arm" in frame else frame
    if not classes or own.empty:
        return None
    lines = []
    for name in classes:
        values = own[f"dynamics.{name}.cos"].to_numpy(np.float64)
        interval = mean_interval(values, 0.95)
        floor, kappa = own[f"dynamics.{name}.floor"].mean(), own[f"dynamics.{name}.kappa"].mean()
        lines.append((name, values.mean(), interval.low, interval.high, floor, kappa))
    points = pd.DataFrame(lines, columns=["matrices", "mean", "low", "high", "floor", "kappa"])
    figure = canvas or column(2.2)
    axes = figure.add_subplot()
    x = np.arange(len(points))
    errorbars(axes, x, points, "measured (95 %)", 1)
    axes.plot(x, points["floor"], "_", color="#D55E00", markersize=9, label="least possible")
    axes.axhline(1, label="same direction", **CLAIMED)
    axes.set_xticks(x, points["matrices"].map(words))
    axes.set(ylabel="cosine with direct training", ylim=(0, 1.12))
    legend_above(figure, axes, 3)
    caption = (
        "Cosine between the directions in which the clone and direct training move each class of matrices at the "
        "start, and the least that the teacher's condition numbers allow (Kantorovich; 0 where a matrix cannot reach "
        "every direction)."
    )
    return Drawn("dynamics_alignment", caption, figure, points)
