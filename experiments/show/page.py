"""One self-contained page about a study: verdicts first, then each claim with its figures, reasons and rows.

Arguments:
    validation=FILE   JSON of `python -m theory validate --json FILE`, for the section on the judge's calibration
                      (results/<study>/validation.json is used if it is there)

Writes results/<study>/report.html. It opens from a file, in light and dark, and asks no server for anything. A study
with parts (results/<study>/<part>/measurements.csv) gets one page for all of them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from experiments.common.files import read_json
from experiments.common.paths import TEMPLATES
from experiments.show.controls import arm_table
from experiments.show.figures import draw, judge
from experiments.show.forest import data_set, forest
from experiments.show.lines import OUTCOME, Line, claims_of, lines_of
from experiments.show.looks import looks
from experiments.show.power import power
from experiments.show.students import side_by_side
from experiments.show.svg import DARK_GROUND, dark_variables, inline_svg, on_dark
from experiments.show.table_figures import CLAIM_FIGURES
from experiments.show.tables import measurements
from experiments.sweep.provenance import environment
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.judge.check import rows_of
from theory.judge.ledger import all_claims
from theory.judge.verdicts import MEANING, REFUTED, UNTESTABLE
from theory.report import ClaimReport, Report
from theory.show.axes import interval_words
from theory.show.claims import Drawn
from theory.show.palette import INK, LETTER, QUANTITY
from theory.show.theme import theme

SENTENCE = 40  # characters from which a column is text to read
FIRST_ROWS = 15  # of a table, before "show more"
MOST_ROWS = 4000  # of a table that the page carries; more are in measurements.csv
POLICY = "POLICY"  # where the page's content security policy goes, which depends on the rest of it
HEAVY_FIGURE = 400_000  # bytes of SVG beyond which a figure is embedded as PNG

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
#: Parts of the evidence about an exponent, as the table of its numbers names them.
PARTS = {
    "low": "lower half", "top": "upper half", "reach": "next half-decade", "corrected": "finite matrix corrected",
}  # fmt: skip
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

    @property
    def name(self) -> str:
        """The data set in plain words."""
        return data_set(Path(self.label)) if self.label else ""

    @property
    def anchor(self) -> str:
        """Before the ids of the part's elements: the label, or, where that has other than letters and digits, what is
        left of it with a digest."""
        if re.fullmatch(r"[A-Za-z0-9_-]*", self.label):
            return self.label
        left = re.sub(r"[^A-Za-z0-9_-]+", "-", self.label).strip("-")
        return f"{left}-{hashlib.sha256(os.fsencode(self.label)).hexdigest()[:8]}".strip("-")

    @functools.cached_property
    def lines(self) -> list[Line]:
        """Every quantity of every claim with its own verdict."""
        return lines_of(claims_of(self.report), self.report.margin)

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
    return Markup(
        f'<svg class="strip" role="img" aria-label="{escape(label)}" viewBox="0 0 140 18">{"".join(parts)}</svg>'
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def _measured(line: Line) -> dict[str, Any]:
    """What was measured against what was claimed, for the table at the top."""
    drawing: str = ""
    if math.isfinite(line.estimate):
        claimed = line.claimed if line.quantity not in ("clone_weight", "ceiling_ratio", "divergence_ratio") else None
        drawing = strip(line.estimate, line.low, line.high, line.band, line.name, claimed)
    return {
        "name": line.name, "text": line.measured, "claimed": line.target, "verdict": line.verdict, "strip": drawing,
        "note": "; ".join(filter(None, (line.missing, *line.remarks))),
    }  # fmt: skip


def _sentence(claim: ClaimReport, lines: list[Line]) -> str:
    """The verdict in words: what decided it, and what belongs to the claim as a whole."""
    deciding = ", ".join(line.name for line in lines if line.verdict == claim.verdict)
    said = [f"{OUTCOME[claim.verdict]}: {deciding}" if deciding else OUTCOME[claim.verdict]]
    said += [remark for line in lines for remark in line.of_claim]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in said)


def _details(claim: ClaimReport, lines: list[Line]) -> dict[str, Any] | None:
    """The evidence about each exponent, as a table without the columns that nothing fills."""
    rows = []
    for line in (line for line in lines if line.quantity in claim.exponents):
        exponent = claim.exponents[line.quantity]
        found = exponent.details
        decided = line.verdict not in (REFUTED, UNTESTABLE)
        rows.append(
            {
                "quantity": line.name,
                "measured": line.measured,
                "claimed": line.target,
                "verdict": line.verdict,
                "as an equality": exponent.rate,
                "bent": ("yes" if found["bent"] else "no") if "bent" in found else "",
                **{word: _part(found.get(key)) for key, word in PARTS.items()},
                "too slow at": f"{beyond:.3g}" if (beyond := found.get("n_dagger")) and decided else "",
                "rules": "second tier" if found.get("tier") == 2 else "",
            }
        )
    frame = pd.DataFrame(rows)
    filled = [name for name in frame if (frame[name] != "").any()]
    return data_table(frame[filled], "exponents") if rows else None


def _part(found: Mapping[str, Any] | None) -> str:
    """The estimate of a part of the range with its interval."""
    return "" if found is None or found["estimate"] is None else interval_words(found["estimate"], *found["ci95"])


def _needed(claim: ClaimReport) -> dict[str, Any] | None:
    """The runs that would make an untestable coordinate testable, as a small table."""
    runs = claim.fields.get("needed")
    if not runs:
        return None
    frame = pd.DataFrame(runs)
    seeds = frame.pop("seeds")
    frame = frame.rename(columns=LETTER).astype(object).fillna("every")
    return data_table(frame.assign(seeds=seeds.astype(int)), f"{claim.name}_needed")


def _looks(part: Part, name: str) -> dict[str, Any] | None:
    """The history of looks, where the claim was decided run by run."""
    found = looks(part.study, name)
    return None if found is None else {"said": found[0], "table": data_table(found[1], f"{name}_looks")}


def _claim(claim: ClaimReport, part: Part, figures: list[dict[str, Any]]) -> dict[str, Any]:
    ledger = all_claims()[claim.name]
    rows = rows_of(claim.name, part.frame)
    first = [*ledger.columns, *ledger.optional, "site", "clone_weight", "student"]
    lines = [line for line in part.lines if line.claim == claim.name]
    return {
        "name": claim.name,
        "id": f"{part.anchor}-{claim.name}".strip("-"),
        "part": part.name,
        "title": ledger.title,
        "statement": ledger.statement,
        "verdict": claim.verdict,
        "measured": [_measured(line) for line in lines],
        "sentence": _sentence(claim, lines),
        "reasons": claim.reasons,
        "cells": claim.cells,
        "seeds": claim.seeds,
        "figures": figures,
        "problems": ledger.problems,
        "assumptions": ledger.assumptions,
        "symbols": ledger.symbols,
        "rule": ledger.rule,
        "sources": ledger.sources,
        "details": _details(claim, lines),
        "needed": _needed(claim),
        "looks": _looks(part, claim.name),
        "points": data_table(claim.points, f"{claim.name}_cells") if len(claim.points) else None,
        "rows": data_table(rows, f"{claim.name}_rows", first=first) if len(rows) else None,
        "arms": _arms(part, claim.name),
        "power": _power(part, claim, rows),
        "command": f"python -m theory check {part.study.path} --claim {claim.name}",
    }


def _arms(part: Part, name: str) -> dict[str, Any] | None:
    """Controls and other protocols of a claim beside its primary design."""
    table = part.arms[part.arms["claim"] == name].drop(columns="claim")
    words = {**QUANTITY, "step_size": "exponent in the step size"}
    table = table.assign(coordinate=table["coordinate"].replace(words)).rename(columns={"coordinate": "quantity"})
    return data_table(table, f"{name}_arms") if len(table) else None


def _power(part: Part, claim: ClaimReport, rows: pd.DataFrame) -> dict[str, Any] | None:
    """What the design could decide, in words that are true beside the verdict."""
    found = power(part.study, claim.name, rows)
    if found is None:
        return None
    decided = claim.verdict != UNTESTABLE
    if found["gates"] and decided:
        said = "The measured table passes every gate. Planned anew from its grid and typical noise, it would not:"
    elif found["gates"]:
        said = "The design fails gates, so nothing was simulated:"
    elif decided:
        said = "The design passes every gate."
    else:
        said = "The grid and the noise pass every gate; what was measured on it does not (reasons above)."
    lines = [
        {"planted": p["planted"], "right": ", ".join(p.get("right", ()))} | _shares(p["verdicts"])
        for p in found["power"]
    ]
    return found | {"said": said, "table": data_table(pd.DataFrame(lines), "power") if lines else None}


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
    if "decode_tokens_per_s" not in frame or frame["decode_tokens_per_s"].isna().all():
        return None
    rows = frame[frame["decode_tokens_per_s"].notna()]
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
            elif isinstance(value, dict) and key != "decide":
                facts.append((key.replace("_", " "), "; ".join(f"{k} ({n} runs)" for k, n in value.items())))
            elif key not in ("schema", "decide"):
                facts.append((key.replace("_", " "), str(value)))
        facts += [("note", remark) for remark in getattr(part.report, "remarks", ())]
        facts.append(("table", f"{part.report.rows} rows, sha256 {part.report.sha256}"))
        out.append({"label": part.label, "facts": facts, "commands": commands})
    return out


def _lead(parts: list[Part]) -> str:
    """How much was tested on what."""
    claims = len({name for part in parts for name in part.report.claims})
    runs = sum(part.report.rows for part in parts)
    sets = f"{_count(len(parts), 'data set')} ({runs:,} rows of measurements)"
    return f"{_count(claims, 'claim').capitalize()} tested on {sets}. What the measurements say:"


def _count(number: int, noun: str) -> str:
    word = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return f"{word} {noun}{'s' * (number != 1)}"


def _outcomes(parts: list[Part]) -> list[dict[str, Any]]:
    """Per claim, its verdicts in words: on which data sets it was refuted, held, or could not be tested."""
    outcomes = []
    for name, ledger in all_claims().items():
        judged = [(part.name, part.report.claims[name].verdict) for part in parts if name in part.report.claims]
        said = []
        for word, text in OUTCOME.items():
            labels = [label for label, verdict in judged if verdict == word]
            if labels:
                said.append({"verdict": word, "text": f"{text} on {', '.join(labels)}" if any(labels) else text})
        if said:
            outcomes.append({"title": ledger.title, "said": said})
    return outcomes


def _shades() -> list[dict[str, str]]:
    """The verdicts' colours as text on a tint of itself, in the light and the dark scheme."""
    shades = []
    for word, ink in INK.items():
        ground = mixed(ink, DARK_GROUND, 0.25)
        shades.append({"word": word, "ink": ink, "tint": mixed(ink, "#ffffff", 0.12),
                       "dark_ink": on_dark(ink, ground), "dark_tint": ground})  # fmt: skip
    return shades


def mixed(colour: str, ground: str, share: float) -> str:
    """A colour thinned with its ground; both '#rrggbb'."""
    pairs = [[int(c[i : i + 2], 16) for c in (colour, ground)] for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def _forest(study: Study, parts: list[Part], makers: _Figures) -> dict[str, Any]:
    tables = {Path(study.path.name) / part.label: claims_of(part.report) for part in parts}
    with theme():
        drawn = forest(tables, parts[0].report.margin)
    return makers.element(drawn, "")


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
        prefix = f"{part.anchor}-" if part.label else ""
        of_part = f" ({part.name})" if part.label else ""
        placed: dict[str, list[dict[str, Any]]] = {}
        for drawn in part.figures:
            placed.setdefault(_section(drawn), []).append(makers.element(drawn, prefix))
        claims += [_claim(c, part, placed.pop(name, [])) for name, c in part.report.claims.items()]
        for name, title in (EXTRAS | {"other": "Further figures"}).items():
            table = TABLES[name](part.frame) if name in TABLES else None
            if placed.get(name) or table is not None:
                heading = f"{title}: {part.name}" if part.label else title
                link = title.partition(":")[0].lower() + of_part
                found = {"id": f"{prefix}{name}", "title": heading, "link": link}
                extras.append(found | {"figures": placed.get(name, []), "table": table})
        leftover = [f for name in all_claims() for f in placed.get(name, [])]
        if leftover:
            found = {"id": f"{prefix}more", "title": "More figures", "link": f"more figures{of_part}"}
            extras.append(found | {"figures": leftover, "table": None})
    information = next((t for p in parts if (t := _information_calibration(p.frame)) is not None), None)
    page = _templates().get_template("report.html.j2").render(
        policy=POLICY,
        study=study.path.name,
        lead=_lead(parts),
        outcomes=_outcomes(parts),
        forest=_forest(study, parts, makers) if len(parts) > 1 else None,
        shades=_shades(),
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
    return _guarded(page)


def _guarded(page: str) -> str:
    """The page with its content security policy in place: it loads nothing, and only its own style and script count.

    Text of a study is escaped wherever it is shown; should one place have been forgotten, the browser still runs
    nothing of it. Style attributes are allowed, which figures have on every element.
    """
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    kept = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src-elem 'sha256-{kept[0]}'; style-src-attr 'unsafe-inline'; "
        f"script-src 'sha256-{kept[1]}'; script-src-attr 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return page.replace(POLICY, escape(policy), 1)  # the first stands in the head, before anything of the study


def validation_of(study: Study, given: str | None) -> Path | None:
    """The validation to show: the one given, else the study's own if it has one."""
    own = study.path / "validation.json"
    return Path(given) if given else own if own.is_file() else None
