"""What Low-Rank Clone is, in one picture."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from theory.show.axes import column
from theory.show.claims import Drawn

FROZEN, TRAINED, STUDENT = "#d9d9d9", "#f2b27a", "#9ecae8"  # fills; the ink on them is dark
INK = "#222222"
WIDTH, HEIGHT = 3.4, 3.1  # inches; one unit of the drawing is an inch


def schematic() -> Drawn:
    """A matrix of the student is a frozen matrix of the teacher times a small trained one; two losses train it."""
    figure = column(HEIGHT)
    axes = _canvas(figure)
    _products(axes)
    _training(axes)
    caption = (
        "Low-Rank Clone. Every matrix of the student is the teacher's frozen matrix W times a trained projection P, so "
        "that the model's width shrinks from D to the rank r. Teacher and student read the same text; P is trained so "
        "that the student's predictions and its activations come close to the teacher's."
    )
    return Drawn("low_rank_clone", caption, figure, pd.DataFrame())


def _canvas(figure: Figure) -> Axes:
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    figure.set_layout_engine("none")
    return axes


def _products(axes: Axes) -> None:
    top, wide, narrow, tall, short = 2.72, 0.95, 0.3, 0.95, 0.75
    _text(axes, 0.05, 2.98, "One matrix of the student", weight="bold", ha="left")
    for x, width, height, colour, inside, side, across, below in (
        (0.3, wide, short, FROZEN, "W", "m", "D", "teacher's: frozen"),
        (1.62, narrow, tall, TRAINED, "P", "D", "r", "projection: trained"),
        (2.65, narrow, short, STUDENT, "WP", "m", "r", "student's: kept"),
    ):
        _box(axes, x, top - height, width, height, colour, inside)
        _text(axes, x - 0.1, top - height / 2, f"${side}$")
        _text(axes, x + width / 2, top + 0.09, f"${across}$")
        _text(axes, x + width / 2, top - tall - 0.13, below, size=6.5)
    for x, sign in ((1.4, "×"), (2.28, "=")):
        _text(axes, x, top - short / 2, sign, size=11)


def _training(axes: Axes) -> None:
    _text(axes, 0.05, 1.36, "Training", weight="bold", ha="left")
    _box(axes, 0.05, 0.5, 0.45, 0.4, "white", "text")
    for name, left, width, middle, colour in (
        ("teacher", 0.95, 0.95, 1.05, FROZEN),
        ("student", 1.275, 0.3, 0.35, STUDENT),
    ):
        _box(axes, left, middle - 0.2, width, 0.4, colour, "")
        _text(axes, 1.425, middle + (0.0 if name == "teacher" else -0.29), name)
        _arrow(axes, (0.51, 0.7), (left - 0.02, middle), "-|>")
        _arrow(axes, (left + width + 0.02, middle), (2.3, middle), "-|>")
        _text(axes, 2.33, middle, "predictions", ha="left")
    for x, words in ((1.425, "clone losses:\nactivations"), (2.62, "KL divergence")):
        _arrow(axes, (x, 0.84 if x < 2 else 0.95), (x, 0.56 if x < 2 else 0.45), "<|-|>")
        _text(axes, x + 0.06, 0.7, words, ha="left", size=6.5)


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, inside: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=INK, linewidth=0.8))
    if inside:
        _text(axes, x + width / 2, y + height / 2, inside)


def _text(
    axes: Axes, x: float, y: float, text: str, *, ha: str = "center", size: float = 7.5, weight: str = "normal"
) -> None:
    axes.text(x, y, text, ha=ha, va="center", fontsize=size, fontweight=weight, color=INK)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=7, color=INK, linewidth=0.8, shrinkA=0, shrinkB=0)
    )
