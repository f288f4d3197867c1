"""One self-contained page about a study: verdicts first, then each claim with its figures and reasons.

    python -m experiments.report study=NAME

Writes results/<study>/report.html. It opens from a file and asks no server for anything.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from experiments.collect import load_rows
from experiments.command import guarded, study_arguments
from experiments.figures import CLAIM_FIGURES, Drawn, draw, interval_text, judge
from experiments.files import read_json, write_text
from experiments.store import Study
from experiments.theme import theme
from theory.ledger import all_claims
from theory.report import ClaimReport, Report

TEMPLATES = Path(__file__).parent / "templates"


def _png(drawn: Drawn) -> dict[str, str]:
    buffer = io.BytesIO()
    with theme():
        drawn.figure.savefig(buffer, format="png", metadata={"Software": None})
    return {"caption": drawn.caption, "png": base64.b64encode(buffer.getvalue()).decode()}


def _bound(claim: ClaimReport) -> str:
    bound = claim.bound
    if not np.isfinite(bound.worst_ratio):
        return bound.verdict.replace("_", " ").lower()
    return f"{bound.verdict}, worst measured/bound {bound.worst_ratio:.2f}"


def _claim(claim: ClaimReport, figures: list[Drawn]) -> dict[str, Any]:
    exponents = [
        {"coordinate": name, "text": interval_text(e), "claimed": f"{e.claimed:g}"}
        for name, e in claim.exponents.items()
    ]
    names = {make.__name__ for make in CLAIM_FIGURES.get(claim.name, [])}
    return {
        "name": claim.name,
        "verdict": claim.verdict,
        "statement": all_claims()[claim.name].statement,
        "exponents": exponents or [{"coordinate": "-", "text": "-", "claimed": "-"}],
        "bound": _bound(claim),
        "sentence": claim.reasons[0] if claim.reasons else "",
        "reasons": claim.reasons,
        "cells": claim.cells,
        "seeds": claim.seeds,
        "figures": [_png(f) for f in figures if f.name in names],
    }


def _environment(study: Study) -> list[tuple[str, str]]:
    rows, _ = load_rows(study)

    def several(values: Counter[str]) -> str:
        return "; ".join(f"{value} ({n} runs)" for value, n in values.most_common())

    out = [
        ("data and teacher", several(Counter(row["data_digest"] for row in rows))),
        ("code version", several(Counter(row["code_version"] for row in rows))),
        (
            "machine",
            several(
                Counter(f"{m['device']}, jax {m['jax']}, Python {m['python']}" for row in rows if (m := row["machine"]))
            ),
        ),
        ("time in runs", f"{sum(row['machine']['seconds'] for row in rows) / 60:.1f} minutes"),
    ]
    note = study.path / "study.json"
    if note.is_file():
        out += [(key, str(value)) for key, value in read_json(note).items()]
    return out


def render(study: Study, report: Report, figures: list[Drawn]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    training = next((f for f in figures if f.name == "training_curves"), None)
    verdicts = Counter(claim.verdict for claim in report.claims.values())
    lead = "Of the claims tested: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common()) + "."
    return environment.get_template("report.html.j2").render(
        title=f"Scaling-law claims for low-rank distillation: study {study.path.name}",
        lead=lead,
        claims=[_claim(claim, figures) for claim in report.claims.values()],
        margin=f"{report.margin:g}",
        training=None if training is None else _png(training),
        environment=_environment(study),
        rows=report.rows,
        command=f"python -m theory check {study.path}",
    )


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    report = judge(study)
    write_text(study.path / "report.html", render(study, report, draw(study, report)))
    print(study.path / "report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
