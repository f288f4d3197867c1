"""How figures look: one column wide, colour-blind safe, legible in grey, fonts embedded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

from theory.show.plain import visible

COLUMN = 3.4  # inches: one column of a two-column paper
# Okabe & Ito's palette without its yellow, from dark to light: series also differ in marker and in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FITTED: dict[str, Any] = {"color": "#444444", "linestyle": "-", "linewidth": 1.0}
CLAIMED: dict[str, Any] = {"color": "#444444", "linestyle": (0, (4, 2)), "linewidth": 1.0}

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "errorbar.capsize": 1.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lrc",
}


def words(name: object) -> str:
    """A name out of somebody's table as text of a figure: no formula, no control characters, spaces for underscores."""
    return visible(str(name).replace("_", " ")).replace("$", r"\$")


@contextmanager
def theme() -> Iterator[None]:
    """Use inside `with theme():` around everything that draws."""
    with mpl.rc_context(SETTINGS):
        yield


def series_style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
