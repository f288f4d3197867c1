"""One self-contained page about a study: verdicts first, then each claim with its figures, reasons and rows.

    python -m experiments.report study=NAME [validation=FILE]

Arguments:
    validation=FILE   JSON of `python -m theory validate --json FILE`, for the section on the judge's calibration
                      (results/<study>/validation.json is used if it is there)

Writes results/<study>/report.html. It opens from a file, in light and dark, and asks no server for anything. A study
with parts (results/<study>/<part>/measurements.csv) gets one page for all of them.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from experiments.arms import arm_table
from experiments.claim_figures import CLAIM_FIGURES, Drawn, interval_text
from experiments.command import guarded, study_arguments
from experiments.compare import side_by_side
from experiments.figures import draw, judge
from experiments.files import read_json, write_text
from experiments.power import power
from experiments.provenance import environment
from experiments.store import Study
from experiments.svg import DARK_GROUND, dark_variables, inline_svg
from experiments.tables import measurements, rows_of
from lrc_jax.errors import InputError
from theory.claims.dynamics import PRESERVED
from theory.claims.information import REACHES
from theory.ledger import all_claims
from theory.report import ClaimReport, Report

TEMPLATES = Path(__file__).parent / "templates"
SENTENCE = 40  # characters from which a column is text to read
FIRST_ROWS = 15  # of a table, before "show more"
MOST_ROWS = 4000  # of a table that the page carries; more are in measurements.csv
HEAVY_FIGURE = 400_000  # bytes of SVG beyond which a figure is embedded as PNG

#: What a verdict says, in half a sentence.
MEANING = {
    "CONSISTENT": "measured as claimed",
    "LOOSE": "holds as an upper bound, but the truth is better than the claimed rate",
    "REFUTED": "worse than claimed in the range tested",
    "INCONCLUSIVE": "the data cannot tell",
    "UNTESTABLE": "this design cannot test it",
}
#: A coordinate as the reader meets it.
COORDINATE = {
    "steps": "exponent in T",
    "samples": "exponent in N",
    "rank": "exponent in r",
    "clone_weight": "trend in λ",
    "ceiling_ratio": "I / I*",
    "divergence_ratio": "D / D₀",
}
#: Sections beside the claims: figures whose names start so go there.
EXTRAS = {
    "ablation": "Ablation and rival students",
    "cost": "What compression costs",
    "certificate": "Certificate: a guarantee from training data alone",
    "training": "Training",
}
COST = (
    "test_loss", "inference_params", "weight_bytes", "kv_bytes_per_token", "flops_per_token", "prefill_tokens_per_s",
    "decode_tokens_per_s",
)  # fmt: skip
CERTIFICATE = (
    "samples", "rank", "intrinsic_dimension", "levels", "message_bits", "train_bits", "certificate", "test_bits",
    "unigram", "held_out_bound", "non_vacuous", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One table of measurements with its verdicts and figures; `label` is empty where a study has only one."""

    label: str
    study: Study
    report: Report
    figures: list[Drawn]
    frame: pd.DataFrame

    @functools.cached_property
    def arms(self) -> pd.DataFrame:
        """Controls and other protocols, judged."""
        return arm_table(self.frame)


def parts_of(study: Study) -> dict[str, Study]:
    """Label -> folder with a table: the study itself, or its subfolders, or both."""
    own = {"": study} if (study.path / "measurements.csv").is_file() else {}
    subfolders = sorted(p.parent for p in study.path.glob("*/measurements.csv")) if study.path.is_dir() else []
    return own | {p.name: Study(p) for p in subfolders}


def load_parts(study: Study) -> list[Part]:
    """Every part judged and drawn, those with most claims first, since a reader begins with the main one.

    Raises InputError where there is no table, or one cannot be judged.
    """
    found = []
    for label, part in (parts_of(study) or {"": study}).items():
        frame, report = measurements(part), judge(part)
        found.append(Part(label, part, report, draw(part, report, frame), frame))
    return sorted(found, key=lambda part: (-len(part.report.claims), part.label))


# --- figures ---------------------------------------------------------------------------------------------------------


class _Figures:
    """Turns figures into page elements and remembers their colours."""

    def __init__(self) -> None:
        self.colours: set[str] = set()

    def element(self, drawn: Drawn, prefix: str) -> dict[str, Any]:
        svg, colours = inline_svg(drawn.figure, f"{prefix}{drawn.name}", drawn.caption)
        if len(svg) > HEAVY_FIGURE:
            buffer = io.BytesIO()
            drawn.figure.savefig(buffer, format="png", metadata={"Software": None})
            return {"caption": drawn.caption, "png": base64.b64encode(buffer.getvalue()).decode()}
        self.colours |= colours
        return {"caption": drawn.caption, "svg": Markup(svg)}


def _section(drawn: Drawn) -> str:
    """The claim or extra section that a figure belongs to."""
    for claim, makers in CLAIM_FIGURES.items():
        if drawn.name in {getattr(make, "__name__", "") for make in makers}:
            return claim
    return next((name for name in (*all_claims(), *EXTRAS) if drawn.name.startswith(name)), "other")


def strip(
    estimate: float, low: float, high: float, band: tuple[float, float], name: str, claimed: float | None = None
) -> Markup:
    """A small drawing: the accepted band with the claimed value in it, the 95 % interval, the estimate."""
    inside = [v for v in (estimate, low, high, *band) if math.isfinite(v)]
    span = (max(inside) - min(inside)) or 1.0
    left, right = min(inside) - 0.08 * span, max(inside) + 0.08 * span

    def x(value: float) -> float:
        return round(140 * (min(max(value, left), right) - left) / (right - left), 1)

    b0, b1 = (x(v) if math.isfinite(v) else 140.0 for v in band)
    parts = [f'<rect x="{b0:g}" y="1" width="{max(b1 - b0, 2):g}" height="16" class="band"/>']
    parts.append('<line x1="0" x2="140" y1="17.5" y2="17.5" class="axis"/>')
    if claimed is not None:
        parts.append(f'<line x1="{x(claimed):g}" x2="{x(claimed):g}" y1="1" y2="17" class="tick"/>')
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f'<line x1="{x(low):g}" x2="{x(high):g}" y1="9" y2="9" class="bar"/>')
    parts.append(f'<circle cx="{x(estimate):g}" cy="9" r="4" class="dot"/>')
    label = (
        f"{name}: estimate {estimate:.2f}, 95 % interval {low:.2f} to {high:.2f}, accepted {band[0]:g} to {band[1]:g}"
    )
    return Markup(f'<svg class="strip" role="img" aria-label="{label}" viewBox="0 0 140 18">{"".join(parts)}</svg>')


# --- claims ----------------------------------------------------------------------------------------------------------


def _coordinates(claim: ClaimReport, margin: float) -> list[dict[str, Any]]:
    """What was measured against what was claimed, a line a coordinate."""
    lines = []
    for name, e in claim.exponents.items():
        line = {"name": COORDINATE.get(name, name), "text": interval_text(e), "claimed": f"{e.claimed:g}", "strip": ""}
        if name == "clone_weight":
            line["claimed"] = "rising"
        elif np.isfinite(e.estimate):
            band = (e.claimed - margin, e.claimed + margin)
            line["strip"] = strip(e.estimate, e.ci95.low, e.ci95.high, band, line["name"], e.claimed)
        lines.append(line)
    limits = {
        "ceiling_ratio": (f"at least {REACHES:g}", (REACHES, 1.0)),
        "divergence_ratio": (f"at most {PRESERVED:g}", (0.0, PRESERVED)),
    }
    for key, (claimed, band) in limits.items():
        if key in claim.fields:
            field = claim.fields[key]
            low, high = field["ci95"]
            text = f"{field['estimate']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else " (no interval)")
            drawing = strip(field["estimate"], low, high, band, COORDINATE[key])
            lines.append({"name": COORDINATE[key], "text": text, "claimed": claimed, "strip": drawing})
    return lines


def _bound(claim: ClaimReport) -> str:
    bound = claim.bound
    words = {"NOT_EVALUATED": "none evaluated", "HOLDS": "holds", "VIOLATED": "violated"}
    text = words.get(bound.verdict, bound.verdict.lower())
    return f"{text}; worst measured/bound {bound.worst_ratio:.2f}" if np.isfinite(bound.worst_ratio) else text


def _sentence(claim: ClaimReport) -> str:
    """What the verdict means and what decided it."""
    meaning = MEANING.get(claim.verdict, "").capitalize()
    deciding = [
        f"{COORDINATE.get(name, name)} {e.estimate:.2f}, claimed {e.claimed:g}"
        for name, e in claim.exponents.items()
        if e.verdict == claim.verdict and name != "clone_weight" and np.isfinite(e.estimate)
    ]
    if claim.bound.verdict == "VIOLATED":
        return f"{meaning}: the measured value exceeds its bound."
    if claim.verdict in ("CONSISTENT", "LOOSE", "REFUTED") and deciding:
        return f"{meaning}: {'; '.join(deciding)}."
    return f"{meaning}: {claim.reasons[0]}." if claim.reasons else f"{meaning}."


def _details(claim: ClaimReport) -> dict[str, Any] | None:
    """All numbers of the exponents, as a table."""
    rows = []
    for name, e in claim.exponents.items():
        rows.append(
            [
                COORDINATE.get(name, name), e.estimate, e.ci95.low, e.ci95.high, e.claimed, e.verdict, e.rate,
                e.details.get("decades"), e.details.get("drift"),
            ]
        )  # fmt: skip
    columns = (
        "coordinate", "estimate", "95 % low", "high", "claimed", "verdict", "as an equality", "decades",
        "drift of slope",
    )  # fmt: skip
    return data_table(pd.DataFrame(rows, columns=list(columns)), "exponents") if rows else None


def _claim(claim: ClaimReport, part: Part, figures: list[dict[str, Any]]) -> dict[str, Any]:
    ledger = all_claims()[claim.name]
    rows = rows_of(claim.name, part.frame)
    first = [*ledger.columns, *ledger.optional, "site", "clone_weight", "student"]
    return {
        "name": claim.name,
        "id": f"{part.label}-{claim.name}".strip("-"),
        "part": part.label,
        "title": ledger.title,
        "statement": ledger.statement,
        "verdict": claim.verdict,
        "coordinates": _coordinates(claim, part.report.margin),
        "bound": _bound(claim),
        "sentence": _sentence(claim),
        "reasons": claim.reasons,
        "cells": claim.cells,
        "seeds": claim.seeds,
        "figures": figures,
        "problems": ledger.problems,
        "assumptions": ledger.assumptions,
        "symbols": ledger.symbols,
        "rule": ledger.rule,
        "sources": ledger.sources,
        "details": _details(claim),
        "points": data_table(claim.points, f"{claim.name}_cells") if len(claim.points) else None,
        "rows": data_table(rows, f"{claim.name}_rows", first=first) if len(rows) else None,
        "arms": _arms(part, claim.name),
        "power": _power(part, claim.name, rows),
        "command": f"python -m theory check {part.study.path} --claim {claim.name}",
    }


def _arms(part: Part, name: str) -> dict[str, Any] | None:
    """Controls and other protocols of a claim beside its primary design."""
    table = part.arms[part.arms["claim"] == name].drop(columns="claim")
    return data_table(table, f"{name}_arms") if len(table) else None


def _power(part: Part, name: str, rows: pd.DataFrame) -> dict[str, Any] | None:
    found = power(part.study, name, rows)
    if found is None:
        return None
    lines = [{"planted": p["planted"]} | _shares(p["verdicts"]) for p in found["power"]]
    return found | {"table": data_table(pd.DataFrame(lines), "power")}


def _shares(verdicts: Mapping[str, float]) -> dict[str, str]:
    """Verdict shares in the order of MEANING; a verdict that never came is left empty."""
    return {word: f"{100 * verdicts[word]:.0f} %" if word in verdicts else "" for word in MEANING}


# --- tables ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A cell for JSON: whole numbers without a point, missing ones as null."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return int(value) if float(value).is_integer() else float(f"{value:.10g}")
    return None if value is pd.NA else str(value)


def data_table(frame: pd.DataFrame, name: str, *, first: Iterable[str] = ()) -> dict[str, Any]:
    """A table of the page: sortable, downloadable as NAME.csv.

    Args:
      first: columns to show, where present; all by default. The download has every column that varies.
    """
    note = ""
    columns, shown = list(frame), list(frame)
    if first:
        same = [c for c in frame if frame[c].nunique(dropna=False) == 1 and c != "seed"]
        columns = [c for c in frame if c not in same]
        shown = [c for c in dict.fromkeys(first) if c in columns]
        fixed = ", ".join(f"{c} = {_shown(_plain(frame[c].iloc[0]))}" for c in same if frame[c].notna().any())
        note = f"The same in every row: {fixed}." if fixed else ""
    kept = frame[columns].head(MOST_ROWS)
    rows = [[_plain(v) for v in row] for row in kept.astype(object).itertuples(index=False, name=None)]
    places = [columns.index(c) for c in shown]
    if len(kept) < len(frame):
        note += f" The first {len(kept)} of {len(frame)} rows; measurements.csv has them all."
    return {
        "name": name,
        "columns": columns,
        "places": places,
        "shown": [{"name": c, "style": _column_style(frame[c])} for c in shown],
        "rows": rows,
        "first": [[_shown(row[k]) for k in places] for row in rows[:FIRST_ROWS]],
        "total": len(frame),
        "note": note.strip(),
    }


def _column_style(values: pd.Series) -> str:
    """CSS class of a column: numbers to the right; sentences wide enough to be read on a phone."""
    if pd.api.types.is_numeric_dtype(values):
        return "n"
    return "sentence" if values.map(lambda v: len(str(v))).max() > SENTENCE else ""


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cost_table(frame: pd.DataFrame) -> dict[str, Any] | None:
    if "flops_per_token" not in frame or frame["flops_per_token"].isna().all():
        return None
    rows = frame[frame["flops_per_token"].notna()]
    kept = [c for c in COST if c in rows]
    means = rows.groupby(["student", "rank"], dropna=False)[kept].mean().reset_index()
    return data_table(means, "costs")


def _certificate_table(frame: pd.DataFrame) -> dict[str, Any] | None:
    if "certificate" not in frame or frame["certificate"].isna().all():
        return None
    rows = frame[frame["certificate"].notna()]
    return data_table(rows[[c for c in CERTIFICATE if c in rows]], "certificates")


def _students_table(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Students side by side: of the rows that belong to no claim, where there are several kinds."""
    needed = {"student", "test_loss", "test_loss_se", "params", "batch_size", "sequence_length", "teacher_loss"}
    if not needed <= set(frame):
        return None
    if "claim" in frame:
        frame = frame[~frame["claim"].isin(list(all_claims()))]
    rows = frame[frame["test_loss"].notna()]
    kinds = [c for c in ("student", "matrices", "init", "clone_weight", "kl_weight") if c in rows]
    if len(rows) < 2 or len(rows[kinds].drop_duplicates()) < 2:
        return None
    return data_table(side_by_side(rows), "students")


TABLES: Mapping[str, Callable[[pd.DataFrame], dict[str, Any] | None]] = {
    "ablation": _students_table,
    "cost": _cost_table,
    "certificate": _certificate_table,
}


def _information_calibration(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Error of the information estimator on Gaussian pairs of the same size, by site."""
    if "calibration_error" not in frame or frame["calibration_error"].isna().all():
        return None
    rows = frame[frame["calibration_error"].notna()]
    kept = [
        c for c in ("mutual_information", "calibration_error", "calibration_se", "mi_floor", "mi_plug_in") if c in rows
    ]
    return data_table(rows.groupby("site")[kept].mean().reset_index(), "information_calibration")


def _judge_calibration(path: Path | None) -> dict[str, Any] | None:
    """Requirements and verdict shares of `theory validate`."""
    if path is None:
        return None
    found = read_json(path)
    try:
        needed = pd.DataFrame(
            [
                (r["name"], r["value"], r["limits"][0], r["limits"][1], "yes" if r["met"] else "NO")
                for r in found["requirements"]
            ],
            columns=["requirement", "value", "from", "to", "met"],
        )
        shares = pd.DataFrame(
            [
                {"planted": c["case"], "claim": c["claim"], "studies": c["replications"]} | _shares(c["verdicts"])
                for c in found["cases"]
            ]
        )
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{path}: no validation; write it with `python -m theory validate --json {path}`") from None
    return {
        "replications": found["replications"],
        "unmet": [r["name"] for r in found["requirements"] if not r["met"]],
        "requirements": data_table(needed, "requirements"),
        "shares": data_table(shares, "validation"),
    }


# --- the page --------------------------------------------------------------------------------------------------------


def _environment(parts: list[Part]) -> list[dict[str, Any]]:
    out = []
    for part in parts:
        facts, commands = [], []
        for key, value in environment(part.study).items():
            if key == "commands":
                commands = list(value.values()) if isinstance(value, dict) else list(value)
            elif isinstance(value, dict):
                facts.append((key.replace("_", " "), "; ".join(f"{k} ({n} runs)" for k, n in value.items())))
            elif key != "schema":
                facts.append((key.replace("_", " "), str(value)))
        facts += [("note", remark) for remark in getattr(part.report, "remarks", ())]
        facts.append(("table", f"{part.report.rows} rows, sha256 {part.report.sha256}"))
        out.append({"label": part.label, "facts": facts, "commands": commands})
    return out


def _lead(parts: list[Part]) -> str:
    verdicts = Counter(claim.verdict for part in parts for claim in part.report.claims.values())
    runs = sum(part.report.rows for part in parts)
    counts = ", ".join(f"{n} {word}" for word, n in verdicts.most_common())
    return f"{verdicts.total()} claims put to the test on {runs:,} rows of measurements: {counts}."


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def render(study: Study, parts: list[Part], validation: Path | None = None) -> str:
    """The page as text. Pieces that a study lacks are left out."""
    makers = _Figures()
    claims, extras = [], []
    for part in parts:
        prefix = f"{part.label}-" if part.label else ""
        of_part = f" ({part.label})" if part.label else ""
        placed: dict[str, list[dict[str, Any]]] = {}
        for drawn in part.figures:
            placed.setdefault(_section(drawn), []).append(makers.element(drawn, prefix))
        claims += [_claim(c, part, placed.pop(name, [])) for name, c in part.report.claims.items()]
        for name, title in (EXTRAS | {"other": "Further figures"}).items():
            table = TABLES[name](part.frame) if name in TABLES else None
            if placed.get(name) or table is not None:
                heading = f"{title}: {part.label}" if part.label else title
                link = title.partition(":")[0].lower() + of_part
                found = {"id": f"{prefix}{name}", "title": heading, "link": link}
                extras.append(found | {"figures": placed.get(name, []), "table": table})
        leftover = [f for name in all_claims() for f in placed.get(name, [])]
        if leftover:
            found = {"id": f"{prefix}more", "title": "More figures", "link": f"more figures{of_part}"}
            extras.append(found | {"figures": leftover, "table": None})
    information = next((t for p in parts if (t := _information_calibration(p.frame)) is not None), None)
    return _templates().get_template("report.html.j2").render(
        title=f"Study {study.path.name}",
        lead=_lead(parts),
        claims=claims,
        extras=extras,
        several=len(parts) > 1,
        margin=f"{parts[0].report.margin:g}",
        meaning=MEANING,
        calibration=_judge_calibration(validation),
        information_calibration=information,
        environment=_environment(parts),
        command=f"python -m theory check {parts[0].study.path}",
        ground=DARK_GROUND,
        dark=Markup(dark_variables(makers.colours)),
    )  # fmt: skip


def validation_of(study: Study, given: str | None) -> Path | None:
    """The validation to show: the one given, else the study's own if it has one."""
    own = study.path / "validation.json"
    return Path(given) if given else own if own.is_file() else None


def main() -> int:
    arguments = study_arguments(__doc__, validation=None)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    page = render(study, load_parts(study), validation_of(study, arguments["validation"]))
    write_text(study.path / "report.html", page)
    print(study.path / "report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
