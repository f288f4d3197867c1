"""The forest: every claim on every data set in one picture, measured against claimed.

Exponents are shown as measured minus claimed, so that one band of +- margin serves them all; quantities of another kind
have a panel with a band of their own. A filled dot is a verdict that was reached, a hollow one that was not. There are
two layouts: WIDE for pages and print, NARROW for a phone, without the reasons.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from experiments.show.lines import CAUSE, UNDECIDED, Line, lines_of
from theory.judge.verdicts import MARGIN, MEANING, REFUTED
from theory.show.claims import Drawn
from theory.show.palette import INK
from theory.show.theme import words

ROW, SCALE, KEY = 0.19, 0.46, 0.13  # inches: of a line, of an axis with its label, of a line of the key
REASON_WIDTH = 36  # characters of a line beside the verdict


@dataclass(frozen=True)
class Layout:
    """Where things stand: names before the axes, verdicts and reasons behind them.

    Attributes:
      width: of the figure, in inches. left, right, key: where the axes begin and end, and the meanings of the words
        begin, as shares of it.
      line: characters of the smallest text on a line. heading: characters of a heading.
      reasons: whether they are shown. ticks: every how many-th.
    """

    name: str
    width: float
    left: float
    right: float
    key: float
    line: int
    heading: int
    reasons: bool
    ticks: int


WIDE = Layout("forest", 6.3, 0.2, 0.6, 0.14, 160, 80, True, 1)
NARROW = Layout("forest_narrow", 3.4, 0.46, 0.745, 0.26, 70, 52, False, 2)
GROUPS = {
    ("convergence", "steps"): "gradient norm in T, claimed $T^{-1/2}$",
    ("generalization", "samples"): "generalisation gap in N, claimed $N^{-1/2}$",
    ("generalization", "rank"): "generalisation gap in r, claimed $r^{1}$",
    ("optimal_rank", "samples"): "best rank r* in N, claimed $N^{1/2}$",
    ("information", "clone_weight"): "information, trend in the clone weight, claimed to rise",
    ("information", "ceiling_ratio"): "information, share of the best possible, claimed 1",
    ("dynamics", "divergence_ratio"): "dynamics, distance from direct training, claimed 1",
    ("efficiency", "budget_factor"): "efficiency, budget of direct training / of the clone, claimed 2",
    ("compression", "rival_difference"): "compression, loss of the clone - of the best rival, claimed 0",
}
#: Data sets whose folder's name does not say what they are.
DATA = {
    "synthetic": "synthetic language", "wikitext2": "WikiText-2", "planted": "planted teacher",
    "premise_open": "free norms", "premise_bounded": "fixed norms",
    "wikitext2_64": "WikiText-2, width 64", "wikitext2_128": "WikiText-2, width 128", "smollm2": "SmolLM2-135M",
}  # fmt: skip
#: Axes by quantity: label, limits and ticks; what leaves the limits is shown as an arrow.
DIFFERENCE = "difference"
PANELS: dict[str, tuple[str, tuple[float, float], tuple[float, ...]]] = {
    DIFFERENCE: ("measured exponent - claimed exponent", (-1.25, 0.6), (-1, -0.5, 0, 0.5)),
    "clone_weight": ("rank correlation with the clone weight", (-1.0, 1.0), (-1, -0.5, 0, 0.5, 1)),
    "ceiling_ratio": ("information / best possible", (0.0, 1.05), (0, 0.5, 1)),
    "divergence_ratio": ("distance / that of two direct runs", (0.7, 60.0), (1, 2, 5, 10, 20, 50)),
    "budget_factor": ("budget of direct training / of the clone", (0.1, 30.0), (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)),
    "rival_difference": (
        "loss of the clone - of the rival (nats/token)",
        (-1.6, 1.6),
        (-1.5, -1, -0.5, 0, 0.5, 1, 1.5),
    ),
}
LOGARITHMIC = ("divergence_ratio", "budget_factor")
MARKERS = (
    "● measured, 95 % interval   ○ undecided   ◆ upper half of a range that one exponent does not describe; for r*, "
    "corrected for the finite matrix"
)
PREMISE = "premise fails: L and $\\sigma^2$ grow with T"


def forest(tables: Mapping[Path, Mapping[str, Any]], margin: float = MARGIN, layout: Layout = WIDE) -> Drawn:
    """The picture of all verdicts.

    Args:
      tables: folder of a table -> the claims of its verdict's JSON, in the order in which they are shown.
      margin: of the verdicts. layout: WIDE or NARROW.
    """
    points = forest_points(tables, margin)
    panels = dict(iter(points.groupby("panel", sort=False)))
    heights = [ROW * len(list(_rows(part, layout))) for part in panels.values()]
    above = [*textwrap.wrap(MARKERS, layout.line), "shaded: counts as claimed"]
    below = [
        (word if k == 0 else "", meaning)
        for word in MEANING
        if word in set(points["verdict"])
        for k, meaning in enumerate(textwrap.wrap(MEANING[word], round(layout.line * (1 - layout.key))))
    ]
    total = sum(heights) + SCALE * len(panels) + KEY * (1.3 * len(above) + len(below) + 2.2)
    figure = Figure(figsize=(layout.width, total))
    figure.set_layout_engine("none")
    for k, text in enumerate(above):
        figure.text(0.01, 1 - (1 + 1.3 * k) * KEY / total, text, fontsize=6, va="center")
    top = total - (1.3 * len(above) + 1.2) * KEY
    for (name, part), height in zip(panels.items(), heights, strict=True):
        axes = figure.add_axes((layout.left, (top - height) / total, layout.right - layout.left, height / total))
        _panel(axes, str(name), part, layout)
        top -= height + SCALE
    for k, (word, meaning) in enumerate(below):
        y = (top - KEY * k) / total
        figure.text(0.01, y, word, color=INK.get(word), fontsize=6, fontweight="bold", va="center")
        figure.text(layout.key, y, meaning, fontsize=6, va="center")
    counts = points.drop_duplicates(["table", "claim"])
    caption = (
        f"{counts['claim'].nunique()} claims on {counts['table'].nunique()} data sets: each quantity with its 95 % "
        "interval against what is claimed (shaded: counts as claimed). Right of the band is worse than claimed for "
        "exponents, left of it better. Diamonds: the upper half of a range without a single exponent, or the exponent "
        "corrected for the finite matrix."
    )
    return Drawn(layout.name, caption, figure, points)


def forest_points(tables: Mapping[Path, Mapping[str, Any]], margin: float = MARGIN) -> pd.DataFrame:
    """A row per quantity of each claim and table, claims grouped; values as they lie on the axis of their panel."""
    several = len({folder.parts[0] for folder in tables}) > 1
    rows = [_point(folder, line, several) for folder, claims in tables.items() for line in lines_of(claims, margin)]
    order = {key: k for k, key in enumerate(GROUPS)}
    panels = list(PANELS)
    rows.sort(key=lambda row: (panels.index(row["panel"]), order.get((row["claim"], row["quantity"]), len(order))))
    return pd.DataFrame(rows)


def _point(folder: Path, line: Line, several: bool) -> dict[str, Any]:
    own = line.quantity in PANELS
    origin = 0.0 if own else line.claimed
    group = GROUPS.get((line.claim, line.quantity), f"{line.claim.replace('_', ' ')}, {line.name}")
    low, high = PANELS[line.quantity if own else DIFFERENCE][1]
    second = line.second or ("", np.nan, np.nan, np.nan)
    values = [v for v in (line.estimate, line.low, line.high, *second[1:]) if np.isfinite(v)]
    beyond = ("left" * any(v - origin < low for v in values), "right" * any(v - origin > high for v in values))
    premise = PREMISE if line.verdict == REFUTED and CAUSE["premise"] in line.of_claim else ""
    return {
        "panel": line.quantity if own else DIFFERENCE,
        "group": group,
        "label": f"{group.partition(',')[0]}: {data_set(folder, several)}",
        "table": str(folder),
        "claim": line.claim,
        "quantity": line.quantity,
        "verdict": line.verdict,
        "measured": line.estimate,
        "claimed": line.claimed,
        "value": line.estimate - origin,
        "low": line.low - origin,
        "high": line.high - origin,
        "band_low": line.band[0] - origin,
        "band_high": line.band[1] - origin,
        "second": second[0],
        "second_value": second[1] - origin,
        "second_low": second[2] - origin,
        "second_high": second[3] - origin,
        "beyond": " and ".join(filter(None, beyond)),
        # Where there is nothing to draw, what the verdict rests on instead.
        "reason": line.missing or premise or ("" if np.isfinite(line.estimate) else "; ".join(line.remarks)),
    }


def data_set(folder: Path, several: bool = False) -> str:
    """A table's folder in plain words; with the study's name where there are several."""
    name = folder.name
    plain = DATA.get(name, name.replace("_", " "))
    if name.startswith("spectrum_"):
        plain = f"spectral decay {name.removeprefix('spectrum_')}"
    return f"{plain} ({folder.parts[0]})" if several and len(folder.parts) > 1 else plain


def _rows(points: pd.DataFrame, layout: Layout) -> Iterator[Any]:
    """Lines of headings (text) and of points (tuples) of a panel, from the top."""
    for heading, part in points.groupby("group", sort=False):
        yield from textwrap.wrap(str(heading), layout.heading)
        yield from part.itertuples()


def _panel(axes: Axes, name: str, points: pd.DataFrame, layout: Layout) -> None:
    label, (low, high), ticks = PANELS[name]
    ticks, rows = ticks[:: layout.ticks], list(_rows(points, layout))
    beside = blended_transform_factory(axes.figure.transFigure, axes.transData)
    axes.set(xscale="log" if name in LOGARITHMIC else "linear", xlim=(low, high), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(label, fontsize=7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    band = points[["band_low", "band_high"]].iloc[0]
    axes.axvspan(max(band["band_low"], low), min(band["band_high"], high), color="#000000", alpha=0.1, linewidth=0)
    if name == DIFFERENCE:
        sides = ((band["band_low"], "← better than claimed", "right"), (band["band_high"], "worse →", "left"))
        for x, word, side in sides:
            axes.text(x, -0.7, word, ha=side, va="bottom", fontsize=6.5, color="#444444")
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.text(0.01, y, row, transform=beside, va="center", fontsize=7.5, fontweight="bold")
            continue
        colour = INK[row.verdict]
        axes.text(0.025, y, words(row.label.partition(": ")[2]), transform=beside, va="center", fontsize=7.5)
        axes.text(layout.right + 0.015, y, row.verdict, transform=beside, va="center", fontsize=6.5, color=colour,
                  fontweight="bold")  # fmt: skip
        if row.reason and layout.reasons:
            reason = "\n".join(textwrap.wrap(row.reason, REASON_WIDTH))
            axes.text(layout.right + 0.14, y, reason, transform=beside, va="center", fontsize=5.8, linespacing=1.0)
        hollow = row.verdict in UNDECIDED
        _estimate(axes, y - 0.1, (row.value, row.low, row.high), colour, hollow, "o", 4)
        _estimate(axes, y + 0.25, (row.second_value, row.second_low, row.second_high), colour, hollow, "D", 2.2)


def _estimate(
    axes: Axes, y: float, values: tuple[float, float, float], colour: str, hollow: bool, marker: str, size: float
) -> None:
    """A value with its interval; an arrow at the edge of the axis for what lies beyond it."""
    value, low, high = values
    if not np.isfinite(value):
        return
    left, right = axes.get_xlim()
    low, high = (low, high) if np.isfinite(low) else (value, value)
    axes.plot(np.clip([low, high], left, right), [y, y], color=colour, linewidth=1.0, gid="interval")
    for beyond, x, arrow in ((low < left, left, "<"), (high > right, right, ">")):
        if beyond:
            axes.plot(x, y, arrow, color=colour, markersize=4, clip_on=False, gid="beyond")
    if left <= value <= right:
        face = "white" if hollow else colour
        axes.plot(value, y, marker, color=colour, markerfacecolor=face, markersize=size, zorder=5, gid="value")
