"""What decides the exponent of the best rank: kept studies side by side, by the decay of their spectra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from theory.judge.optimum import USED
from theory.judge.verdicts import MARGIN
from theory.show.axes import column, legend_above, level_bar, level_colours, plain_log, slope_triangle, spread_of
from theory.show.claims import Drawn
from theory.show.palette import INK
from theory.show.theme import CLAIMED, FITTED, MARKERS, words

CLAIM, POINTS = "optimal_rank", "figures/optimal_rank_against_samples.csv"
SPECTRUM = "spectrum"  # column of a run: s of singular values k^-s


def with_spectrum(root: Path, tables: Mapping[Path, Mapping[str, Any]]) -> dict[Path, float]:
    """Kept folders whose runs all have one known spectrum, with its s.

    Args:
      tables: folder of a table, from `root` -> the claims of its verdict's JSON.
    """
    found = {}
    for folder, claims in tables.items():
        if CLAIM not in claims:
            continue
        frame = pd.read_csv(root / folder / "measurements.csv", usecols=lambda name: name == SPECTRUM)
        values = frame[SPECTRUM].dropna().unique() if SPECTRUM in frame else np.empty(0)
        if len(values) == 1:
            found[folder] = float(values[0])
    return found


def phase_diagram(spectra: Mapping[Path, float], tables: Mapping[Path, Mapping[str, Any]]) -> Drawn | None:
    """The exponent of r* against the decay of the spectrum, with 1/(2s) and the claimed 1/2; None below two spectra.

    Args:
      spectra: `with_spectrum` of the tables.
    """
    lines = []
    for folder, s in spectra.items():
        exponent = tables[folder][CLAIM]["exponents"]["samples"]
        if exponent["estimate"] is None:
            continue
        corrected = exponent.get("corrected") or {"estimate": None, "ci95": (None, None)}
        lines.append(
            (folder.parts[0], s, exponent["estimate"], *exponent["ci95"], corrected["estimate"], *corrected["ci95"],
             tables[folder][CLAIM]["verdict"])
        )  # fmt: skip
    names = ["study", "s", "exponent", "low", "high", "corrected", "corrected_low", "corrected_high", "verdict"]
    points = pd.DataFrame(lines, columns=names).sort_values(["study", "s"], ignore_index=True)
    if points["s"].nunique() < 2:
        return None
    figure = column(2.9)
    axes = figure.add_subplot()
    decay = np.linspace(points["s"].min() * 0.93, points["s"].max() * 1.04, 200)
    axes.axhspan(0.5 - MARGIN, 0.5 + MARGIN, color="#000000", alpha=0.08, linewidth=0)
    axes.plot(decay, np.full_like(decay, 0.5), label=f"claimed: 1/2 ± {MARGIN:g}", **CLAIMED)
    axes.plot(decay, 1 / (2 * decay), label="theory: 1/(2s)", **FITTED)
    shift = 0.008 * (decay[-1] - decay[0])
    for i, (study, part) in enumerate(points.groupby("study")):
        marker = MARKERS[i % len(MARKERS)]
        for _, row in part.iterrows():
            ink = INK[row["verdict"]]
            for x, name, face in ((row["s"] - shift, "exponent", ink), (row["s"] + shift, "corrected", "white")):
                if pd.notna(row[name]):
                    ends = ("low", "high") if name == "exponent" else ("corrected_low", "corrected_high")
                    spread = [[row[name] - row[ends[0]]], [row[ends[1]] - row[name]]]
                    axes.errorbar(x, row[name], spread, fmt=marker, color=ink, markerfacecolor=face, elinewidth=0.8)
        axes.plot([], [], marker, color="#444444", label=f"measured, {words(study)} study")
    axes.plot([], [], "o", color="#444444", markerfacecolor="white", label="open: corrected for the finite matrix")
    for verdict in sorted(set(points["verdict"])):
        axes.plot([], [], "s", color=INK[verdict], label=verdict)
    axes.set(xlabel="decay s of the singular values $k^{-s}$", ylabel="exponent of r* in N", ylim=(0, None))
    legend_above(figure, axes, 2)
    covered = (points["corrected_low"] <= 1 / (2 * points["s"])) & (1 / (2 * points["s"]) <= points["corrected_high"])
    caption = (
        f"Exponent of the best rank in N against the decay of the spectrum, with 95 % intervals. The claim √N is the "
        f"dashed line, theory's 1/(2s) the curve; {int(covered.sum())} of {len(points)} corrected intervals cover it."
    )
    return Drawn("phase_diagram", caption, figure, points)


def optima_of_all_studies(root: Path, spectra: Mapping[Path, float]) -> Drawn | None:
    """r* inside the trusted range against N, every kept table with a known spectrum in one panel."""
    parts = []
    for folder, s in spectra.items():
        if (root / folder / POINTS).is_file():
            points = pd.read_csv(root / folder / POINTS)
            points = points[points["status"] == USED][["samples", "mean", "low", "high"]]
            parts.append(points.assign(study=folder.parts[0], s=s))
    points = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if points.empty or points["s"].nunique() < 2:
        return None
    figure = column(2.7)
    axes = figure.add_subplot()
    colours = level_colours(sorted(points["s"].unique()), "plasma")
    for i, (study, rows) in enumerate(points.groupby("study")):
        marker = MARKERS[i % len(MARKERS)]
        for s, colour in colours.items():
            part = rows[rows["s"] == s]
            part = part.sort_values("samples")
            axes.errorbar(
                part["samples"], part["mean"], spread_of(part), fmt=marker, ls="-", color=colour, elinewidth=0.8
            )
        axes.plot([], [], marker, color="#444444", label=f"{words(study)} study")
    axes.set(xscale="log", yscale="log", xlabel="training sequences N", ylabel="optimal rank r*")
    ticks = np.outer(10.0 ** np.arange(1, 8), (1, 3)).ravel()
    low, high = axes.get_xlim()
    plain_log(axes.xaxis, ticks[(ticks > low) & (ticks < high)])
    plain_log(axes.yaxis, 2.0 ** np.arange(2, np.ceil(np.log2(points["mean"].max())) + 1))
    slope_triangle(axes, 0.5, "claimed\n$N^{0.5}$")
    level_bar(figure, axes, "s", list(colours))
    legend_above(figure, axes, 2)
    caption = (
        "The best rank against the sample size for every kept table with a known spectrum, inside the trusted range, "
        "with 95 % intervals: the slower the singular values k^-s fall, the faster r* grows."
    )
    return Drawn("optima_of_all_studies", caption, figure, points)
