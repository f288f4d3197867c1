"""One function a figure of a claim, a control or a table; each takes rows and gives a `Drawn`.

Each figure shows its uncertainty, the fitted law and the claimed law. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.tables import rows_of
from experiments.theme import CLAIMED, COLUMN, FITTED, series_style
from theory.claims.convergence import CONSTANTS, right_hand_side
from theory.claims.dynamics import NOT_PRESERVED, PRESERVED, ratio_interval
from theory.intervals import mean_interval
from theory.report import ClaimReport, Exponent


@dataclass(frozen=True)
class Drawn:
    """One figure: its name, what it shows in a sentence (also its alternative text), and its points."""

    name: str
    caption: str
    figure: Figure
    points: pd.DataFrame


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


def _errorbars(axes: Axes, x: np.ndarray, frame: pd.DataFrame, label: str, i: int) -> None:
    """Means with 95 % intervals; an interval that is not known is not drawn."""
    known = frame["low"].notna() & frame["high"].notna()
    spread = np.array(
        [
            frame["mean"] - frame["low"].where(known, frame["mean"]),
            frame["high"].where(known, frame["mean"]) - frame["mean"],
        ]
    )
    axes.errorbar(
        x, frame["mean"], yerr=np.maximum(spread, 0), linestyle="none", label=label, elinewidth=0.8, **series_style(i)
    )


def _cell_means(frame: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean of a column over the rows of each cell, with its 95 % t interval: columns *by, mean, low, high."""
    lines = []
    for key, cell in frame.groupby(by):
        values = cell[value].to_numpy(np.float64)
        interval = mean_interval(values, 0.95)
        lines.append((*key, values.mean(), interval.low, interval.high))
    return pd.DataFrame(lines, columns=[*by, "mean", "low", "high"])


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend that cannot cover data."""
    figure.legend(*axes.get_legend_handles_labels(), ncols=columns, loc="outside upper center", fontsize=6)


def gap_against_samples(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """Generalisation gap against N, one series a rank, with the fitted and the claimed law."""
    figure = Figure(figsize=(COLUMN, 2.7))
    axes = figure.add_subplot()
    points = claim.points
    for i, (rank, part) in enumerate(points.groupby("rank")):
        part = part.sort_values("samples")
        _errorbars(axes, part["samples"].to_numpy() * (1 + 0.015 * i), part, f"r = {rank:g}", i)
        axes.plot(part["samples"], part["fitted"], **FITTED | {"color": series_style(i)["color"]})
    middle = points[points["rank"] == sorted(points["rank"].unique())[points["rank"].nunique() // 2]].sort_values(
        "samples"
    )
    axes.plot([], [], label=f"fit: N^{interval_text(claim.exponents['samples'])}", **FITTED)
    axes.plot(middle["samples"], middle["claimed"], label="claimed: N^-0.5 (free constant)", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel="training sequences N", ylabel="generalisation gap (nats/token)")
    plain_log(axes.xaxis, points["samples"].to_numpy())
    positive = points.loc[points["mean"] > 0, "mean"]
    if len(positive):
        axes.set_ylim(positive.min() / 3, positive.max() * 3)
    _legend_above(figure, axes, 2)
    caption = (
        f"Generalisation gap against training sequences N at {points['rank'].nunique()} ranks, cell means "
        f"with 95 % intervals over {claim.seeds} seeds; fitted exponent {interval_text(claim.exponents['samples'])}, "
        "claimed -0.5."
    )
    return Drawn("gap_against_samples", caption, figure, points)


def gap_against_rank(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """The same cells against rank, one series a sample size."""
    figure = Figure(figsize=(COLUMN, 2.7))
    axes = figure.add_subplot()
    points = claim.points
    for i, (samples, part) in enumerate(points.groupby("samples")):
        part = part.sort_values("rank")
        _errorbars(axes, part["rank"].to_numpy() * (1 + 0.01 * i), part, f"N = {samples:g}", i)
        axes.plot(part["rank"], part["fitted"], **FITTED | {"color": series_style(i)["color"]})
    sizes = sorted(points["samples"].unique())
    middle = points[points["samples"] == sizes[len(sizes) // 2]].sort_values("rank")
    axes.plot([], [], label=f"fit: r^{interval_text(claim.exponents['rank'])}", **FITTED)
    axes.plot(middle["rank"], middle["claimed"], label="claimed: r^1 (free constant)", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel="generalisation gap (nats/token)")
    plain_log(axes.xaxis, points["rank"].to_numpy())
    positive = points.loc[points["mean"] > 0, "mean"]
    if len(positive):
        axes.set_ylim(positive.min() / 3, positive.max() * 3)
    _legend_above(figure, axes, 2)
    caption = (
        f"Generalisation gap against rank at {len(sizes)} sample sizes, cell means with 95 % intervals over "
        f"{claim.seeds} seeds; fitted exponent {interval_text(claim.exponents['rank'])}, claimed 1."
    )
    return Drawn("gap_against_rank", caption, figure, points)


def risk_against_rank(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """Test loss in excess of the teacher's against rank, one curve a sample size, with the optimum marked."""
    figure = Figure(figsize=(COLUMN, 2.8))
    axes = figure.add_subplot()
    curves, optima = claim.curves, claim.points
    sizes = sorted(curves["samples"].unique())
    if "teacher_loss" in frame and frame["teacher_loss"].notna().any():
        floor, label = float(frame["teacher_loss"].min()), "test loss - teacher's (nats/token)"
    else:  # a table without the teacher's loss: show the distance to just below the best loss of all
        best = float(curves["mean"].min())
        floor = best - 0.02 * (float(curves["mean"].max()) - best)
        label = f"test loss - {floor:.3f} (nats/token)"
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(sizes)))
    for colour, n in zip(shades, sizes, strict=True):
        part = curves[curves["samples"] == n].sort_values("rank")
        y = part["mean"] - floor
        axes.plot(part["rank"], y, color=colour, marker="o", markersize=2, linewidth=0.9, label=f"N = {n:g}")
        if part["low"].notna().all():
            low, high = part["low"] - floor, part["high"] - floor
            axes.fill_between(part["rank"], low.clip(lower=1e-9), high, color=colour, alpha=0.2, linewidth=0)
        found = optima[optima["samples"] == n]
        if len(found) and np.isfinite(found["mean"].iloc[0]):
            r_star = found["mean"].iloc[0]
            height = np.interp(np.log(r_star), np.log(part["rank"]), y)
            face = "white" if bool(found["censored"].iloc[0]) else colour
            axes.plot(r_star, height, "*", markersize=8, markerfacecolor=face, markeredgecolor=colour, zorder=5)
    for face, text in (("#444444", "r*"), ("white", "r* beyond trusted range")):
        axes.plot([], [], "*", color="#444444", markerfacecolor=face, markersize=7, label=text)
    heights = curves["mean"] - floor
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel=label)
    axes.set_ylim(heights[heights > 0].min() / 1.6, heights.max() * 1.6)
    plain_log(axes.xaxis, curves["rank"].to_numpy())
    _legend_above(figure, axes, 3)
    caption = (
        f"Test loss against rank at {len(sizes)} sample sizes with the optimum marked (95 % bands over "
        f"{claim.seeds} seeds)."
    )
    return Drawn("risk_against_rank", caption, figure, curves)


def optimal_rank_against_samples(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """r* against N with interval, fit and the claimed square root."""
    figure = Figure(figsize=(COLUMN, 2.5))
    axes = figure.add_subplot()
    points = claim.points.sort_values("samples")
    for censored, part in points.groupby("censored"):
        style: dict[str, Any] = {"color": "#0072B2", "marker": "o"}
        if censored:
            style["markerfacecolor"] = "none"
        known = part["low"].notna()
        low, high = part["low"].where(known, part["mean"]), part["high"].where(known, part["mean"])
        label = "r* outside the trusted range" if censored else "r*"
        axes.errorbar(
            part["samples"], part["mean"], yerr=np.maximum([part["mean"] - low, high - part["mean"]], 0),
            linestyle="none", elinewidth=0.8, label=label, **style,
        )  # fmt: skip
    exponent = claim.exponents["samples"]
    if "fitted" in points:  # too few optima: no law
        axes.plot(points["samples"], points["fitted"], label=f"fit: N^{interval_text(exponent)}", **FITTED)
        axes.plot(points["samples"], points["claimed"], label="claimed: N^0.5 (free constant)", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel="training sequences N", ylabel="optimal rank r*")
    plain_log(axes.xaxis, points["samples"].to_numpy())
    low, high = points["mean"].min() / 2, points["mean"].max() * 2
    axes.set_ylim(low, high)
    plain_log(axes.yaxis, 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1))
    axes.legend(loc="upper left")
    caption = (
        f"Optimal rank against sample size with 95 % intervals; fitted exponent {interval_text(exponent)}, claimed 0.5."
    )
    return Drawn("optimal_rank_against_samples", caption, figure, points)


def gradient_against_steps(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """Averaged squared gradient norm of separate runs against the horizon, with the bound from a pilot's constants."""
    figure = Figure(figsize=(COLUMN, 2.7))
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
    _errorbars(axes, points["steps"].to_numpy(), points, "measured (95 %)", 1)
    exponent = claim.exponents["steps"]
    axes.plot(points["steps"], points["fitted"], label=f"fit: T^{interval_text(exponent)}", **FITTED)
    axes.plot(points["steps"], points["claimed"], label="claimed: T^-0.5 (free constant)", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel="steps T (one run each)", ylabel="mean squared gradient norm")
    plain_log(axes.xaxis, frame["steps"].to_numpy())
    plain_decades(axes.yaxis)
    _legend_above(figure, axes, 2)
    caption = (
        f"Mean squared gradient norm of separate SGD runs against their number of steps T, {claim.seeds} seeds; fitted "
        f"exponent {interval_text(exponent)}, claimed -0.5."
    )
    return Drawn("gradient_against_steps", caption, figure, points)


def information_against_clone_weight(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """I / I* against the clone weight, one series a site."""
    figure = Figure(figsize=(COLUMN, 2.6))
    axes = figure.add_subplot()
    points = claim.points
    weights = np.array(sorted(points["clone_weight"].unique()))
    place = {w: i for i, w in enumerate(weights)}  # 0 has no place on a logarithmic axis: equal distances instead
    sites = points.groupby("site") if "site" in points else [("", points)]
    for i, (site, part) in enumerate(sites):
        x = part["clone_weight"].map(place).to_numpy() + 0.06 * (i - 1.5)
        axes.plot(x, part["mean"], color=series_style(i)["color"], linewidth=0.8)
        _errorbars(axes, x, part, str(site).replace("_", " "), i)
    axes.axhline(1, label="best possible, I*", **CLAIMED)
    axes.set_xticks(list(place.values()), [f"{w:g}" for w in weights])
    axes.set(xlabel="weight of the clone losses", ylabel="information / best possible", ylim=(0, 1.1))
    _legend_above(figure, axes, 3)
    worst = claim.fields["ceiling_ratio"]
    caption = (
        f"Noise-smoothed information between teacher and student activations as a share of the best that the rank "
        f"allows, against the weight of the clone losses (95 % over {claim.seeds} seeds); at the worst site, "
        f"{worst['site']}, {worst['estimate']:.2f} at best."
    )
    return Drawn("information_against_clone_weight", caption, figure, points)


def dynamics_divergence(claim: ClaimReport, frame: pd.DataFrame) -> Drawn:
    """D / D_0 of every seed and arm, with the two thresholds of the rule."""
    figure = Figure(figsize=(COLUMN, 1.7))
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
    for value in (PRESERVED, NOT_PRESERVED):
        axes.axvline(value, **CLAIMED)
    axes.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    axes.set(xscale="log", xlabel="divergence / that of two data orders", ylim=(len(names) - 0.5, -0.5))
    caption = (
        f"Divergence of the clone from a student trained directly, in units of that of two direct students with other "
        f"data order, at matched training loss: seeds (ticks), geometric mean and 95 % interval. Below {PRESERVED:g} "
        f"the dynamics count as the same, above {NOT_PRESERVED:g} as different (dashed)."
    )
    return Drawn("dynamics_divergence", caption, figure, points)


def dynamics_alignment(claim: ClaimReport, frame: pd.DataFrame) -> Drawn | None:
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
    figure = Figure(figsize=(COLUMN, 2.2))
    axes = figure.add_subplot()
    x = np.arange(len(points))
    _errorbars(axes, x, points, "measured (95 %)", 1)
    axes.plot(x, points["floor"], "_", color="#D55E00", markersize=9, label="least possible")
    axes.axhline(1, label="same direction", **CLAIMED)
    axes.set_xticks(x, points["matrices"])
    axes.set(ylabel="cosine with direct training", ylim=(0, 1.12))
    _legend_above(figure, axes, 3)
    caption = (
        "Cosine between the directions in which the clone and direct training move each class of matrices at the "
        "start, and the least that the teacher's condition numbers allow (Kantorovich; 0 where a matrix cannot reach "
        "every direction)."
    )
    return Drawn("dynamics_alignment", caption, figure, points)


def convergence_arms(frame: pd.DataFrame) -> Drawn | None:
    """Mean squared gradient norm against T for claim 1's primary design and its controls."""
    rows = rows_of("convergence", frame, arms=True)
    if rows.empty or "arm" not in rows or rows["arm"].isna().all():
        return None
    rows = rows.assign(arm=rows["arm"].fillna("primary"))
    rows = rows[rows.groupby("arm")["steps"].transform("nunique") > 1]
    points = _cell_means(rows, ["arm", "steps"], "grad_norm_sq")
    figure = Figure(figsize=(COLUMN, 2.9))
    axes = figure.add_subplot()
    names = sorted(points["arm"].unique(), key=lambda name: name != "primary")
    for i, name in enumerate(names):
        part = points[points["arm"] == name]
        style = series_style(i)
        axes.plot(part["steps"], part["mean"], color=style["color"], linewidth=0.8)
        _errorbars(axes, part["steps"].to_numpy() * (1 + 0.02 * i), part, name.replace("_", " "), i)
    first = points[points["arm"] == names[0]].sort_values("steps")
    claimed = first["mean"].iloc[0] * (first["steps"] / first["steps"].iloc[0]) ** -0.5
    axes.plot(first["steps"], claimed, label="claimed: T^-0.5", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel="steps T (one run each)", ylabel="mean squared gradient norm")
    plain_log(axes.xaxis, points["steps"].to_numpy())
    plain_decades(axes.yaxis)
    _legend_above(figure, axes, 3)
    caption = (
        "Claim 1 and its controls: the primary design, other step sizes, a decaying step, the whole pool at every "
        "step (no gradient noise, a constant step) and a student trained directly; means with 95 % intervals."
    )
    return Drawn("convergence_arms", caption, figure, points)


def generalization_arms(frame: pd.DataFrame) -> Drawn | None:
    """Gap times tokens over parameters against N, for claim 2's primary design and its other protocols."""
    rows = rows_of("generalization", frame, arms=True)
    if rows.empty or "arm" not in rows:
        return None
    others = rows[rows["arm"].notna()]
    if others.empty:
        return None
    primary = rows[rows["arm"].isna() & rows["rank"].isin(others["rank"].unique())]
    rows = pd.concat([primary.assign(arm="primary"), others])
    per_parameter = rows["gap"] * rows["samples"] * rows["sequence_length"] / rows["params"]
    by = ["arm", "samples"]
    points = _cell_means(rows.assign(scaled=per_parameter), by, "scaled")
    points = points.merge(rows.groupby(by)["gap"].mean().reset_index(), on=by)
    figure = Figure(figsize=(COLUMN, 2.9))
    axes = figure.add_subplot()
    names = sorted(points["arm"].unique(), key=lambda name: name != "primary")
    for i, name in enumerate(names):
        part = points[points["arm"] == name]
        axes.plot(part["samples"], part["mean"], color=series_style(i)["color"], linewidth=0.8)
        _errorbars(axes, part["samples"].to_numpy() * (1 + 0.02 * i), part, name.replace("_", " "), i)
    axes.axhline(1, label="gap = parameters / tokens", **CLAIMED)
    axes.set(xscale="log", xlabel="training sequences N", ylabel="gap x tokens / parameters")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    plain_log(axes.xaxis, points["samples"].to_numpy())
    _legend_above(figure, axes, 3)
    caption = (
        f"Gap in units of trained parameters over training tokens at rank "
        f"{', '.join(f'{r:g}' for r in sorted(others['rank'].unique()))}, by protocol (95 % over seeds). A law p/N is "
        "flat here; 1/sqrt(N) rises by a factor of ten over two decades."
    )
    return Drawn("generalization_arms", caption, figure, points)


def cost_against_quality(frame: pd.DataFrame) -> Drawn | None:
    """Loss in excess of the teacher's against weight bytes and decoding speed."""
    if "flops_per_token" not in frame or frame["flops_per_token"].isna().all():
        return None
    rows = frame[frame["flops_per_token"].notna() & (frame["arm"] == "cost")] if "arm" in frame else frame
    if rows.empty or "teacher.weight_bytes" not in rows:
        return None
    rows = rows.assign(
        loss=rows["test_loss"] - rows["teacher_loss"],
        size=rows["weight_bytes"] / rows["teacher.weight_bytes"],
        speed=rows["decode_tokens_per_s"] / rows["teacher.decode_tokens_per_s"],
    )
    points = rows.groupby(["student", "rank"])[["size", "speed", "loss"]].mean().reset_index()
    figure = Figure(figsize=(COLUMN, 2.3))
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("weights / teacher's", "speed / teacher's")
    for axes, cost, label in zip(panels, ("size", "speed"), labels, strict=True):
        for i, (student, part) in enumerate(points.groupby("student")):
            part = part.sort_values("rank")
            axes.plot(part[cost], part["loss"], linewidth=0.8, label=str(student), **series_style(i))
            if i == 0:
                for rank, x, y in part[["rank", cost, "loss"]].to_numpy():
                    axes.annotate(f"{rank:g}", (x, y), fontsize=5.5, xytext=(2, 3), textcoords="offset points")
        axes.axvline(1, **CLAIMED)
        axes.set(xlabel=label)
        axes.set_yscale("symlog", linthresh=0.01)  # a student can be better than its teacher
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlim(left=0)
    panels[0].set_ylabel("loss - teacher's (nats/token)")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="outside upper center", fontsize=6)
    caption = (
        "What compression costs: loss in excess of the teacher's against weight bytes and decoding speed relative to "
        "the teacher's (dashed), for students of ranks "
        f"{', '.join(f'{r:g}' for r in sorted(points['rank'].unique()))} (marked on the first curve)."
    )
    return Drawn("cost_against_quality", caption, figure, points)


def certificate_against_bits(frame: pd.DataFrame) -> Drawn | None:
    """Guaranteed and held-out loss against the bits of the compressed student, with what a bound has to beat."""
    needed = {"certificate", "samples", "message_bits", "train_bits", "test_bits", "unigram"}
    if not needed <= set(frame) or frame["certificate"].isna().all():
        return None
    rows = frame[frame["certificate"].notna()].sort_values(["samples", "message_bits"])
    kept = ["samples", "intrinsic_dimension", "message_bits", "train_bits", "certificate", "test_bits", "unigram",
            "uniform", "teacher_bits"]  # fmt: skip
    points = rows[[c for c in kept if c in rows]]
    figure = Figure(figsize=(COLUMN, 2.5))
    axes = figure.add_subplot()
    for i, (samples, part) in enumerate(points.groupby("samples")):
        style = series_style(i + 1)
        axes.plot(part["message_bits"], part["certificate"], label=f"guarantee, N = {samples:g}", **style)
        axes.plot(part["message_bits"], part["test_bits"], color=style["color"], linestyle=":", linewidth=0.9,
                  label=f"held out, N = {samples:g}")  # fmt: skip
    axes.axhline(float(points["unigram"].iloc[0]), label="unigram entropy", **CLAIMED)
    if "uniform" in points:
        axes.axhline(float(points["uniform"].iloc[0]), color="#444444", linewidth=0.6, label="log2 V")
    axes.set(xscale="log", xlabel="bits of the compressed student", ylabel="bits a token")
    plain_log(axes.xaxis, points["message_bits"].to_numpy())
    _legend_above(figure, axes, 2)
    best, best_samples = points.sort_values("certificate")[["certificate", "samples"]].to_numpy()[0]
    caption = (
        "Train-only guarantee on the loss of quantised students against the bits that describe them, with the loss on "
        f"held-out sequences. Below the unigram entropy (dashed) a guarantee is non-vacuous; the best is "
        f"{best:.2f} bits at N = {best_samples:g}."
    )
    return Drawn("certificate_against_bits", caption, figure, points)


CLAIM_FIGURES: dict[str, list[Callable[[ClaimReport, pd.DataFrame], Drawn | None]]] = {
    "generalization": [gap_against_samples, gap_against_rank],
    "optimal_rank": [optimal_rank_against_samples, risk_against_rank],
    "convergence": [gradient_against_steps],
    "information": [information_against_clone_weight],
    "dynamics": [dynamics_divergence, dynamics_alignment],
}
#: Figures of a whole table; their names begin with the section of the page that they belong to.
TABLE_FIGURES: list[Callable[[pd.DataFrame], Drawn | None]] = [
    generalization_arms, convergence_arms, cost_against_quality, certificate_against_bits,
]  # fmt: skip
