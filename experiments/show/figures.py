"""Every figure of a study, from its table alone: PDF, PNG and the CSV of the points.

Nothing here runs a model; the figures themselves are in theory.show.claims and experiments.show.table_figures.
"""

from __future__ import annotations

import io
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.common.files import csv_text, write_bytes, write_text
from experiments.show import latex
from experiments.show.lines import claims_of
from experiments.show.table_figures import CLAIM_FIGURES, TABLE_FIGURES
from experiments.show.tables import FILE
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.judge.check import check_file, rows_of
from theory.report import Report
from theory.show.axes import SCALE, level_bar, level_colours
from theory.show.claims import Drawn
from theory.show.theme import COLUMN, theme
from theory.tables import InputError as TableError

TRAINING_POINTS = "training.csv"
ROUNDING = 2e-3  # relative difference that another processor makes in an estimate or the end of an interval
SMALLEST = 1e-9  # what is smaller is as good as zero
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
WITH_ARMS = ("dynamics",)  # claims whose figure shows the arms beside the primary rows


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
    colours = level_colours(sorted(points["rank"].unique()), SCALE["rank"])
    for rank, colour in colours.items():
        part = points[points["rank"] == rank]
        axes.plot(part["share"], part["median"], color=colour)
        axes.fill_between(part["share"], part["low"], part["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="share of the run's steps", ylabel="training loss (nats/token)")
    level_bar(figure, axes, "rank", list(colours))
    caption = "Training loss over the runs, one curve per rank: median and quartiles over sample sizes and seeds."
    return Drawn("training_curves", caption, figure, points)


def draw(study: Study, report: Report, frame: pd.DataFrame) -> list[Drawn]:
    """All figures that the study's table, `frame`, allows."""
    drawn: list[Drawn | None] = []
    with theme():
        for name, makers in CLAIM_FIGURES.items():
            if name in report.claims and len(report.claims[name].points):
                rows = rows_of(name, frame, arms=name in WITH_ARMS)
                drawn += [make(report.claims[name], rows) for make in makers]
        drawn += [make(frame) for make in TABLE_FIGURES]
        drawn.append(training_curves(study))
    return [d for d in drawn if d is not None]


def looks_the_same(before: bytes, after: bytes) -> bool:
    """Whether two PNG files differ by no more than rounding: one level of 255 in any channel of any pixel."""
    try:
        old, new = (imread(io.BytesIO(image), format="png") for image in (before, after))
    except (OSError, SyntaxError):  # what is there is no PNG
        return False
    return old.shape == new.shape and bool(np.abs(old - new).max(initial=0.0) < 1.5 / 255)


def same_text(before: str, after: str, *, sentence: bool = False) -> bool:
    """Whether two texts have the same words and, up to rounding, the same numbers.

    Args:
      sentence: numbers are printed with few digits, so that rounding may change the last one by one.
    """

    def close(a: str, b: str) -> bool:
        places = [place for x in (a, b) if (place := int(Decimal(x).as_tuple().exponent)) and "." in x]
        last = 1.01 * 10.0 ** max(places) if sentence and places else 0.0
        return math.isclose(float(a), float(b), rel_tol=ROUNDING, abs_tol=max(last, SMALLEST))

    numbers = zip(NUMBER.findall(before), NUMBER.findall(after), strict=False)
    return NUMBER.split(before) == NUMBER.split(after) and all(close(a, b) for a, b in numbers)


def same_verdicts(before: Any, after: Any) -> bool:
    """Whether two JSON values agree: exactly in words and structure, up to rounding in numbers."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(same_verdicts(v, after[k]) for k, v in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(same_verdicts, before, after))
    if isinstance(before, str) and isinstance(after, str):
        return same_text(before, after, sentence=True)
    if isinstance(before, (int, float)) and isinstance(after, (int, float)) and bool not in (type(before), type(after)):
        return math.isclose(before, after, rel_tol=ROUNDING, abs_tol=SMALLEST)
    return type(before) is type(after) and bool(before == after)


def save(drawn: Drawn, folder: Path, *, points: bool = True) -> None:
    """Write NAME.pdf, NAME.png and, unless the figure was drawn from it, NAME.csv at six digits: fits differ in the
    tenth between processors.

    A PNG that is there and looks the same, or a CSV that says the same, is left alone, so that drawing a kept figure on
    another machine does not change it.
    """
    with theme():
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            drawn.figure.savefig(buffer, format=kind, metadata=metadata)
            path = folder / f"{drawn.name}.{kind}"
            if not (kind == "png" and path.is_file() and looks_the_same(path.read_bytes(), buffer.getvalue())):
                write_bytes(path, buffer.getvalue())
    if points:
        path, text = folder / f"{drawn.name}.csv", csv_text(drawn.points, digits=6)
        if not (path.is_file() and same_text(path.read_text(), text)):
            write_text(path, text)


def save_table(report: Report, folder: Path) -> None:
    """Write the verdicts for a paper; what says the same up to rounding is left alone."""
    path, text = folder / latex.FILE, latex.verdicts_latex(claims_of(report), report.margin)
    if not (path.is_file() and same_text(path.read_text(), text, sentence=True)):
        write_text(path, text)


def judge(study: Study) -> Report:
    """Verdicts of a study's table. Raises InputError where there is none or it cannot be judged."""
    try:
        return check_file(study.path / FILE)
    except TableError as wrong:
        raise InputError(str(wrong)) from None
