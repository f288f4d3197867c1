"""Every figure of a study, from its table alone: PDF, PNG and the CSV of the points.

    python -m experiments.figures study=NAME

Each figure shows its uncertainty, the fitted law and the claimed law. Nothing here runs a model.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.command import guarded, study_arguments
from experiments.files import write_bytes, write_csv
from experiments.store import Study
from experiments.theme import CLAIMED, COLUMN, FITTED, series_style, theme
from lrc_jax.errors import InputError
from theory.check import check_file
from theory.report import ClaimReport, Exponent, Report
from theory.tables import InputError as TableError

TRAINING_POINTS = "training.csv"


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


def interval_text(exponent: Exponent) -> str:
    """'-1.21 [-1.29, -1.13]'."""
    if not np.isfinite(exponent.estimate):
        return "not estimable"
    if not np.isfinite(exponent.ci95.low):
        return f"{exponent.estimate:.2f} (no interval)"
    return f"{exponent.estimate:.2f} [{exponent.ci95.low:.2f}, {exponent.ci95.high:.2f}]"


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
    known = {"step_size", "smoothness", "grad_variance", "loss_decrease"} <= set(frame.columns)
    if known:
        first, noise = 2 * frame["loss_decrease"] / (frame["step_size"] * frame["steps"]), frame["step_size"]
        bound = frame.assign(bound=first + frame["smoothness"] * noise * frame["grad_variance"])
        means = bound.groupby("steps")["bound"].mean()
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
    _legend_above(figure, axes, 2)
    caption = (
        f"Mean squared gradient norm of separate SGD runs against their number of steps T, {claim.seeds} seeds; fitted "
        f"exponent {interval_text(exponent)}, claimed -0.5."
    )
    return Drawn("gradient_against_steps", caption, figure, points)


def training_points(study: Study) -> pd.DataFrame | None:
    """Training loss by rank and share of the run's steps: median and quartiles over the study's runs.

    From the runs' logs, or from the points that a compact copy of the study keeps (`training.csv`).
    """
    if not study.runs():
        kept = study.path / TRAINING_POINTS
        return pd.read_csv(kept) if kept.is_file() else None
    frames = []
    for folder in study.runs():
        metrics, row = folder.path / "metrics.jsonl", folder.row()
        if row is None or not metrics.is_file() or row["columns"].get("claim") == "optimal_rank":
            continue
        frame = pd.read_json(metrics, lines=True)
        if len(frame) and "total" in frame:
            frames.append(frame.assign(rank=row["columns"]["rank"], share=frame["step"] / row["columns"]["steps"]))
    if not frames:
        return None
    joined = pd.concat(frames, ignore_index=True)
    joined["share"] = (joined["share"] * 20).round() / 20
    quartiles = joined.groupby(["rank", "share"])["total"].describe()[["25%", "50%", "75%"]]
    return quartiles.set_axis(["low", "median", "high"], axis=1).reset_index()


def training_curves(study: Study) -> Drawn | None:
    """Training loss of a study's runs: median over runs of a rank, with the range between quartiles."""
    points = training_points(study)
    if points is None:
        return None
    figure = Figure(figsize=(COLUMN, 2.4))
    axes = figure.add_subplot()
    for i, (rank, part) in enumerate(points.groupby("rank")):
        colour = series_style(i)["color"]
        axes.plot(part["share"], part["median"], color=colour, label=f"r = {rank:g}")
        axes.fill_between(part["share"], part["low"], part["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="share of the run's steps", ylabel="training loss (nats/token)")
    axes.legend(ncols=2)
    caption = "Training loss over the runs, median and quartiles over sample sizes and seeds, one curve a rank."
    return Drawn("training_curves", caption, figure, points)


CLAIM_FIGURES: dict[str, list[Callable[[ClaimReport, pd.DataFrame], Drawn]]] = {
    "generalization": [gap_against_samples, gap_against_rank],
    "optimal_rank": [optimal_rank_against_samples, risk_against_rank],
    "convergence": [gradient_against_steps],
}


def draw(study: Study, report: Report) -> list[Drawn]:
    """All figures that the study's claims allow."""
    frame = pd.read_csv(study.path / "measurements.csv")
    drawn = []
    with theme():
        for name, makers in CLAIM_FIGURES.items():
            if name in report.claims and len(report.claims[name].points):
                rows = frame[frame["claim"] == name] if "claim" in frame else frame
                drawn += [make(report.claims[name], rows) for make in makers]
        curves = training_curves(study)
    return drawn + ([curves] if curves is not None else [])


def save(drawn: Drawn, folder: Path) -> None:
    """Write NAME.pdf, NAME.png and NAME.csv; the CSV is byte-identical for equal points."""
    with theme():
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            drawn.figure.savefig(buffer, format=kind, metadata=metadata)
            write_bytes(folder / f"{drawn.name}.{kind}", buffer.getvalue())
    write_csv(folder / f"{drawn.name}.csv", drawn.points)


def judge(study: Study) -> Report:
    """Verdicts of a study's table. Raises InputError where there is none or it cannot be judged."""
    path = study.path / "measurements.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `python -m experiments.collect study={study.path.name}` first")
    try:
        return check_file(path)
    except TableError as wrong:
        raise InputError(str(wrong)) from None


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    for drawn in draw(study, judge(study)):
        save(drawn, study.path / "figures")
        print(f"{study.path / 'figures' / drawn.name}.pdf .png .csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
