"""What the judge hands back: per claim the verdict, the numbers behind it, and points for a figure.

`Report.to_dict()` is the JSON of `theory check`; the `points` and `curves` frames are for plotting and are not part
of it.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from theory.judge.intervals import UNDEFINED, Interval
from theory.judge.verdicts import NOT_EVALUATED, REFUTED, UNTESTABLE, VIOLATED
from theory.tables import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FREE_CONSTANT = (
    "an O() with a free constant cannot be refuted on a finite grid: only the exponent in this range was tested"
)


@dataclass(frozen=True)
class Exponent:
    """An estimated exponent against the claimed one.

    Attributes:
        claimed, estimate: the exponent of the quantity as a power of the coordinate.
        ci90, ci95: unadjusted two-sided intervals.
        verdict: the one-sided verdict of the claim; rate: the two-sided one ("equal up to the margin").
        details: further numbers (range in decades, local slopes, drift, second interval).
    """

    claimed: float
    estimate: float
    ci90: Interval
    ci95: Interval
    verdict: str
    rate: str = UNTESTABLE
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "claimed": self.claimed,
            "estimate": self.estimate,
            "ci90": [self.ci90.low, self.ci90.high],
            "ci95": [self.ci95.low, self.ci95.high],
            "verdict": self.verdict,
            "rate_verdict": self.rate,
            **self.details,
        }


@dataclass(frozen=True)
class Bound:
    """The check of an inequality LHS <= RHS with explicit constants."""

    verdict: str = NOT_EVALUATED
    worst_ratio: float = float("nan")
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "worst_ratio": self.worst_ratio, **self.details}


@dataclass(frozen=True)
class ClaimReport:
    """The judgement of one claim.

    Attributes:
        reasons: sentences that explain the verdict, most important first.
        fields: further entries of the JSON (for example `ceiling_ratio`).
        points: cell means with 95 % intervals (`mean`, `low`, `high`), the fitted law (`fitted`) and the claimed law
            scaled to the data (`claimed`), one row per cell, for figures.
        curves: further points for figures (risk curves of optimal_rank), or empty.
    """

    name: str
    verdict: str
    reasons: tuple[str, ...]
    exponents: Mapping[str, Exponent]
    bound: Bound
    cells: int
    seeds: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    points: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "exponents": {name: e.to_dict() for name, e in self.exponents.items()},
            "bound": self.bound.to_dict(),
            "cells": self.cells,
            "seeds": self.seeds,
            **self.fields,
        }


@dataclass(frozen=True, repr=False)
class Report:
    """All claims judged on one table.

    Attributes:
        remarks: on the table as a whole: rows set aside, columns changed on request.
        frame: the rows that were judged, for figures; empty where they are not kept.
    """

    path: str
    sha256: str
    rows: int
    margin: float
    claims: Mapping[str, ClaimReport]
    remarks: tuple[str, ...] = ()
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __getitem__(self, name: str) -> ClaimReport:
        """The judgement of one claim.

        Raises:
            KeyError: the claim was not judged; the message names those that were.
        """
        if name not in self.claims:
            raise KeyError(f"{name}: not judged on {self.path}; judged: {', '.join(self.claims) or 'none'}")
        return self.claims[name]

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {claim.verdict}" for name, claim in self.claims.items())
        return f"Report({self.path}: {self.rows} rows; {said})"

    def __str__(self) -> str:
        """What `theory check` prints."""
        from theory.show import render

        out = render.console()
        with out.capture() as captured:
            render.print_report(self, out)
        return captured.get().rstrip("\n")

    def to_frame(self) -> pd.DataFrame:
        """One row per claim and exponent, and one for a claim without exponents.

        Returns:
            Columns claim, verdict, quantity, estimate, low, high (95 %), claimed, quantity_verdict, bound, reason.
        """
        lines = []
        for name, claim in self.claims.items():
            own = {"claim": name, "verdict": claim.verdict}
            rest = {"bound": claim.bound.verdict, "reason": claim.reasons[0] if claim.reasons else ""}
            measured = [
                {
                    "quantity": quantity,
                    "estimate": e.estimate,
                    "low": e.ci95.low,
                    "high": e.ci95.high,
                    "claimed": e.claimed,
                    "quantity_verdict": e.verdict,
                }
                for quantity, e in claim.exponents.items()
            ]
            lines += [own | m | rest for m in measured or [{}]]
        columns = ["claim", "verdict", "quantity", "estimate", "low", "high", "claimed", "quantity_verdict"]
        return pd.DataFrame(lines, columns=[*columns, "bound", "reason"])

    def plot(self, claim: str | None = None) -> Figure:
        """The figure of a claim: measured cells, the fitted and the claimed law.

        Args:
            claim: its name; None where one claim alone has a figure.

        Raises:
            ValueError: several claims have figures and none is named, or the claim has none.
        """
        from theory.show.figures import draw_of

        drawable = [name for name, c in self.claims.items() if not c.points.empty]
        if claim is None and len(drawable) == 1:
            claim = drawable[0]
        if claim not in drawable:
            raise ValueError(f"claim {claim!r} has no figure; choose one of {', '.join(drawable) or 'none'}")
        return draw_of(self, claim)

    def _repr_html_(self) -> str:
        """For notebooks: one row per claim and quantity, in the verdicts' colours."""
        from theory.show.palette import INK

        def cell(value: object) -> str:
            if isinstance(value, float):
                return "" if math.isnan(value) else f"{value:.3g}"
            return html.escape(str(value))

        head = "".join(f"<th>{name}</th>" for name in ("claim", "quantity", "estimate", "95 %", "claimed", "verdict"))
        body = ""
        for _, row in self.to_frame().iterrows():
            known = isinstance(row["quantity"], str)
            verdict = row["quantity_verdict"] if known else row["verdict"]
            interval = f"{cell(row['low'])} to {cell(row['high'])}" if known and not math.isnan(row["low"]) else ""
            cells = [row["claim"], row["quantity"] if known else "", row["estimate"], interval, row["claimed"]]
            body += "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in cells)
            colour, reason = INK.get(verdict, "black"), cell(row["reason"])
            body += f'<td title="{reason}" style="color:{colour}">{cell(verdict)}</td></tr>'
        said = f"{cell(self.path)}: {self.rows:,} rows, margin {self.margin:g}"
        return f"<table><caption>{said}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def exit_code(self) -> int:
        """1 if anything is REFUTED or VIOLATED, else 0."""
        refuted = any(c.verdict == REFUTED or c.bound.verdict == VIOLATED for c in self.claims.values())
        return 1 if refuted else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 2,
            "input": {"path": self.path, "sha256": self.sha256, "rows": self.rows},
            "margin": self.margin,
            "remarks": list(self.remarks),
            "claims": {name: claim.to_dict() for name, claim in self.claims.items()},
        }


def interval_list(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def undefined_exponent(claimed: float, **details: Any) -> Exponent:
    """An exponent that could not be estimated: null in the JSON."""
    return Exponent(claimed, float("nan"), UNDEFINED, UNDEFINED, UNTESTABLE, UNTESTABLE, details)


def to_json(value: Any, digits: int | None = 6) -> str:
    """Deterministic JSON: floats at six significant digits (whole numbers in full), NaN and infinities as null.

    A fit, from which predictions are made, keeps all of them (digits None).

    Other processors round the last bits otherwise, and an end of an interval that a root finder has found differs in
    the tenth digit: a file that is kept must not change with the machine that wrote it again.
    """
    return json.dumps(_plain(value, digits), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any, digits: int | None) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, digits) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    whole = number.is_integer() and abs(number) < 2**53
    return number if whole or digits is None else float(f"{number:.{digits}g}")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all (beside it first, then renamed).

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path).resolve()  # through a symbolic link, not in its place
    beside = path.with_name(f".{path.name}.tmp")  # always the same, so that what a kill left is written over
    try:
        if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
            path.write_text(text, encoding="utf-8")
            return
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another path") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
