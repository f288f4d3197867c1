"""Finished studies in compact form, and everything that is shown of them.

    python -m experiments.reference study=NAME     copy a finished study to results/reference/NAME
    python -m experiments.reference study=all      draw and judge anew whatever is there (what `make figures` does)

The copy holds the table of measurements, the points of the training curves, the verdicts, the power of the design, and
the environment and commands that made them; figures, verdicts and pages are made from these alone, without a model.
CSV and JSON come out byte-identical; PNG files do with the pinned versions. PDF files and pages are not kept in git.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

from experiments.claim_figures import interval_words
from experiments.command import guarded, study_arguments
from experiments.compare_arms import draw_kept
from experiments.figures import TRAINING_POINTS, training_points
from experiments.files import read_json, write_bytes, write_csv, write_json, write_text
from experiments.power import FILE as POWER
from experiments.provenance import ENVIRONMENT, environment
from experiments.report import parts_of
from experiments.reproduce import tell
from experiments.store import REFERENCE, Study
from lrc_jax.errors import InputError

VERDICTS = "verdicts.md"  # what README shows of it


def keep(study: Study, target: Study) -> list[Study]:
    """Copy what a study needs to be shown again; returns the folders of its parts.

    Raises:
      InputError: the study has no table.
    """
    parts = parts_of(study.require())
    if not parts:
        raise InputError(f"{study.path}: no measurements.csv; run `python -m experiments.collect` first")
    kept = []
    for label, part in parts.items():
        folder = target.path / label
        write_bytes(folder / "measurements.csv", (part.path / "measurements.csv").read_bytes())
        write_json(folder / ENVIRONMENT, environment(part))
        points = training_points(part)
        if points is not None:
            write_csv(folder / TRAINING_POINTS, points, digits=6)
        for name in (POWER, "validation.json"):
            if (part.path / name).is_file():
                shutil.copyfile(part.path / name, folder / name)
        kept.append(Study(folder))
    if (study.path / "validation.json").is_file():
        shutil.copyfile(study.path / "validation.json", target.path / "validation.json")
    return kept


def verdicts_markdown(reference: Study) -> str:
    """The verdicts of every kept study as a Markdown table, each line with the folder that `theory check` judges."""
    lines = [
        "| table | claim | verdict | quantity | measured, 95 % interval | claimed | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {
        path.parent.relative_to(reference.path): read_json(path)["claims"]
        for path in reference.path.rglob("verdicts.json")
    }
    for folder, claims in sorted(found.items(), key=lambda item: (item[0].parts[0], -len(item[1]), item[0])):
        for name, claim in claims.items():
            head = [f"`{folder}`", name, claim["verdict"]]
            bound, ratio = claim["bound"]["verdict"], claim["bound"]["worst_ratio"]
            held = "" if bound == "NOT_EVALUATED" else bound + (f", at most {ratio:.2f} of it" if ratio else "")
            quantities = _measured(claim) or [["", "", ""]]
            lines += [f"| {' | '.join([*head, *quantity, held])} |" for quantity in quantities]
    if len(lines) == 2:
        return "No study is kept in `results/reference/` yet.\n"
    return "\n".join(lines) + "\n"


def _measured(claim: dict[str, Any]) -> list[list[str]]:
    """Lines (quantity, measured, claimed) of a claim's verdict."""
    lines = []
    for coordinate, e in claim["exponents"].items():
        word = "trend in" if coordinate == "clone_weight" else "exponent in"
        lines.append([f"{word} {coordinate}", interval_words(e["estimate"], *e["ci95"]), format(e["claimed"], "g")])
    for name, what, claimed in (("ceiling_ratio", "I / I*", "1"), ("divergence_ratio", "D / D_0", "at most 1.5")):
        ratio = claim.get(name)
        if ratio is not None and ratio.get("estimate") is not None:
            lines.append([what, interval_words(ratio["estimate"], *ratio["ci95"]), claimed])
    return lines


def main() -> int:
    arguments = study_arguments(__doc__)
    reference = Study.of(arguments["results_dir"], REFERENCE)
    if arguments["study"] == "all":
        studies = [Study(p) for p in sorted(reference.path.iterdir()) if p.is_dir()] if reference.path.is_dir() else []
        studies = [study for study in studies if parts_of(study)]
        if not studies:
            print(f"{reference.path}: no study is kept there yet", file=sys.stderr)
            return 0
    else:
        target = Study.of(str(reference.path), arguments["study"])
        keep(Study.of(arguments["results_dir"], arguments["study"]), target)
        studies = [target]
    for study in studies:
        tell(study)
        print(study.path)
    draw_kept(reference)
    write_text(reference.path / VERDICTS, verdicts_markdown(reference))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
