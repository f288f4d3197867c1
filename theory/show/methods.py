"""Figures of claims that compare methods: loss against a budget or a cost, with the factor F or the front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from theory.claims.efficiency import MIN_COMMON, SECOND_TIER_BUDGETS
from theory.judge.methods import CLONE, kind_of
from theory.report import ClaimReport
from theory.show.axes import points_with_intervals
from theory.show.palette import INK

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

#: Budgets or costs that are labelled one by one.
MOST_TICKS = 8


UNTRAINED = ":untrained"  # what the judge appends to a method that was also trained


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour per method: clones in shades of one hue, all others apart from it; untrained as trained."""
    methods = set(methods)
    names = sorted({m.removesuffix(UNTRAINED) for m in methods}, key=lambda m: (kind_of(m) != CLONE, m))
    clones = [m for m in names if kind_of(m) == CLONE]
    others = [m for m in names if kind_of(m) != CLONE]
    shades = ("#b3141f", "#e0703a", "#7a0c4f", "#d89aa0")
    plain = ("#2450c8", "#1a7431", "#855800", "#0b6f85", "#9a2a9a", "#444444", "#6f8f2f", "#8a8a8a")
    colours = {m: shades[k % len(shades)] for k, m in enumerate(clones)}
    colours |= {m: plain[k % len(plain)] for k, m in enumerate(others)}
    return {m: colours[m.removesuffix(UNTRAINED)] for m in sorted(methods)}


def draw_losses(axes: Axes, points: pd.DataFrame, x: str, colours: Mapping[str, str]) -> None:
    """Loss of every method against a budget or a cost, with 95 % intervals over seeds; clones are drawn thicker, what
    was not trained is dashed."""
    for name, part in points.dropna(subset=[x]).groupby("method", sort=True):
        method, part = str(name), part.sort_values(x)
        points_with_intervals(axes, part[x].to_numpy(), part, colours[method], method)
        width, line = 1.8 if kind_of(method) == CLONE else 0.8, ":" if method.endswith(UNTRAINED) else "-"
        axes.plot(part[x], part["mean"], color=colours[method], lw=width, ls=line)
    axes.set(xscale="log", xlabel=COST_NAMES.get(x, x), ylabel="loss (nats/token)")
    measured = np.unique(points[x].dropna())
    if len(measured) <= MOST_TICKS:
        axes.set_xticks(measured)
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(places=1 if len(measured) <= MOST_TICKS else 0))
    axes.xaxis.set_minor_formatter(NullFormatter())


def efficiency_figure(claim: ClaimReport) -> Figure:
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
            points_with_intervals(right, part["loss"].to_numpy() + 0.002 * k, part, f"C{k}", label)
            right.plot(part["loss"] + 0.002 * k, part["mean"], color=f"C{k}", lw=0.8)
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
        right.invert_xaxis()
        right.legend(fontsize=7, loc="lower left")
    else:
        lacks = (
            f"F needs {SECOND_TIER_BUDGETS} budgets with enough seeds\n"
            f"and losses that both methods reach, over a factor of {10**MIN_COMMON:.2g} in budget"
        )
        right.text(0.5, 0.75, lacks, transform=right.transAxes, ha="center", va="center", fontsize=8)
        right.set(xticks=[], yticks=[worst["claimed"], 1.0])
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


def compression_figure(claim: ClaimReport) -> Figure:
    """Loss against every cost, with the front: the smallest loss at this cost or less."""
    worst = claim.fields["rival_difference"]
    points = _of_arm(claim.points, worst["arm"])
    costs = [r["cost"] for r in claim.fields["comparisons"] if r["arm"] == worst["arm"]]
    costs = [c for c in COST_NAMES if c in costs]
    figure = Figure(figsize=(4.6 * len(costs), 4.6), layout="constrained")
    colours = method_colours(points["method"])
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        draw_losses(axes, points, cost, colours)
        draw_front(axes, points, cost)
        word = next(r["verdict"] for r in claim.fields["comparisons"] if r["arm"] == worst["arm"] and r["cost"] == cost)
        axes.set_title(f"{COST_NAMES[cost].partition(' (')[0]}: {word}", color=INK.get(word, "black"), fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=4, loc="outside lower center")
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
