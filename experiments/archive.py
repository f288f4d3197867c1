"""Finished studies in compact form, and everything that is shown of them.

    python -m experiments.archive study=NAME     copy a finished study to results/reference/NAME
    python -m experiments.archive study=all      draw and judge anew whatever is there (what `make figures` does)

The copy holds the table of measurements, the points of the training curves, the verdicts, the power of the design, and
the environment and commands that made them; figures, verdicts and pages are made from these alone, without a model.
Files that say the same up to rounding are left alone, so that drawing them on another machine changes nothing. PDF
files and pages are not kept in git. `study=all` also draws what is seen across studies (the forest of all verdicts, the
phase diagram, all optima) and a picture of Low-Rank Clone beside them, and puts the kept tables into the pages of docs/
that show them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.command import guarded, study_arguments
from experiments.common.files import read_json, write_bytes, write_csv, write_json, write_text
from experiments.common.paths import ROOT
from experiments.reproduce import tell
from experiments.show.ablation_table import arms_markdown, draw_kept, kept_tables
from experiments.show.figures import TRAINING_POINTS, same_verdicts, save, training_points
from experiments.show.forest import NARROW, data_set, forest
from experiments.show.lines import lines_of
from experiments.show.page import parts_of
from experiments.show.power import FILE as POWER
from experiments.show.schematic import schematic
from experiments.show.spectra import optima_of_all_studies, phase_diagram, with_spectrum
from experiments.show.worth import STUDY as WORTH
from experiments.show.worth import answered, cloze_against_loss, read_kept, scaling_rows, tables_of_study
from experiments.sweep.provenance import ENVIRONMENT, environment
from experiments.sweep.store import REFERENCE, Study
from lrc_jax.errors import InputError
from theory.judge.verdicts import MARGIN
from theory.show.markdown import markdown_table
from theory.show.theme import theme

VALIDATION = "validation.json"  # of the judge, by `theory validate`
VERDICTS = "verdicts.md"  # what README shows of it
SCALING = "scaling.csv"  # of the study of what a clone is worth: the clone's losses, for `theory fit`
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


def kept_verdicts(reference: Study) -> dict[Path, dict[str, Any]]:
    """Folder of a kept table -> its claims, the studies by name and in each the tables with most claims first."""
    found = {
        path.parent.relative_to(reference.path): read_json(path)["claims"]
        for path in reference.path.rglob("verdicts.json")
    }
    return dict(sorted(found.items(), key=lambda item: (item[0].parts[0], -len(item[1]), item[0])))


def verdicts_markdown(verdicts: Mapping[Path, dict[str, Any]]) -> str:
    """Some of the `kept_verdicts` as a Markdown table, each quantity with its own."""
    rows = [
        (f"`{folder}`", line.claim, line.verdict, line.name, line.measured, line.target, line.note)
        for folder, claims in verdicts.items()
        for line in lines_of(claims, MARGIN)
    ]
    if not rows:
        return "No study is kept in `results/reference/` yet.\n"
    names = "table", "claim", "verdict", "quantity", "measured, 95 % interval", "claimed", "note"
    return markdown_table(names, rows) + "\n"


def claim_markdown(verdicts: Mapping[Path, dict[str, Any]], claim: str) -> str:
    """The verdicts of one claim on every kept table, each with a link to the file that it is read from.

    Args:
      verdicts: `kept_verdicts`.
    """
    rows = [
        (f"[{data_set(folder, True)}](../results/{REFERENCE}/{folder}/verdicts.json)", line.verdict,
         f"{line.name} {line.measured}", line.target)
        for folder, claims in verdicts.items()
        for line in lines_of({name: one for name, one in claims.items() if name == claim}, MARGIN)
    ]  # fmt: skip
    return markdown_table(("data", "verdict", "measured, 95 % interval", "claimed"), rows) + "\n"


def validation_markdown(reference: Study) -> str:
    """The judge's calibration by family of planted laws, from the kept output of `theory validate`."""
    path = reference.path / VALIDATION
    if not path.is_file():
        return f"No calibration is kept: write it with `python -m theory validate --json {VALIDATION}`.\n"
    found = read_json(path)
    rows = []
    for family in found["families"]:
        shares = [f"{100 * family[name]:.1f} %" for name in ("right", "harmful", "undecided")]
        covered = "" if family["coverage95"] is None else f"{100 * family['coverage95']:.1f} %"
        rows.append((family["family"], str(family["cases"]), *shares, covered))
    lines = [
        markdown_table(("planted laws", "cases", "right", "harmful", "undecided", "95 % intervals cover"), rows),
        "",
        f"Shares of simulated studies, {found['replications']} or more per case. *Harmful* is support for a law that "
        "is slower than claimed, or REFUTED for one that is not. The two plateaus inside the margin cannot be seen "
        "within 2.5 decades: the slopes in the window lie inside the margin.",
    ]
    return "\n".join(lines) + "\n"


def fill_pages(reference: Study, docs: Path) -> None:
    """Write the kept tables into README and the pages that show them, between `<!-- table: NAME -->` and
    `<!-- end -->`: a code host shows the pages as they are.

    Raises:
      InputError: a page asks for a table that is not kept.
    """
    verdicts = kept_verdicts(reference)
    tables = {"verdicts": verdicts_markdown(verdicts), "validation": validation_markdown(reference)}
    for study in {folder.parts[0] for folder in verdicts}:
        tables[f"study_{study}"] = verdicts_markdown({f: one for f, one in verdicts.items() if f.parts[0] == study})
    tables |= {name: arms_markdown(table) for name, table in kept_tables(reference).items()}
    tables |= tables_of_study(reference.path, verdicts)
    judged = {claim for claims in verdicts.values() for claim in claims}
    tables |= {f"claim_{name}": claim_markdown(verdicts, name) for name in judged}
    for page in filter(Path.is_file, (docs.parent / "README.md", *sorted(docs.glob("*.md")))):
        before = page.read_text()

        def filled(block: re.Match[str], page: Path = page) -> str:
            if block[2] not in tables:
                raise InputError(f"{page}: table {block[2]} is not kept; known: {', '.join(tables)}")
            return f"{block[1]}\n{tables[block[2]]}\n{block[3]}"

        if (after := TABLE.sub(filled, before)) != before:
            write_text(page, after)


def draw_together(reference: Study) -> None:
    """The method's picture, and what is seen across the kept studies: the forest of all verdicts, r* by spectrum."""
    verdicts, worth = kept_verdicts(reference), read_kept(reference.path)
    if not verdicts:
        return
    spectra = with_spectrum(reference.path, verdicts)
    with theme():
        pictures = [
            forest(verdicts),
            phase_diagram(spectra, verdicts),
            optima_of_all_studies(reference.path, spectra),
            cloze_against_loss(answered(worth)),
        ]
        without_points = [schematic(), forest(verdicts, layout=NARROW)]  # those of the narrow forest are the wide one's
    for drawn in pictures:
        if drawn is not None:
            save(drawn, reference.path)
    for drawn in without_points:
        save(drawn, reference.path, points=False)
    if len(rows := scaling_rows(worth)):
        write_csv(reference.path / WORTH / SCALING, rows)


def tell_again(study: Study) -> None:
    """Judge and draw a kept study; verdicts that differ from the kept ones by rounding alone do not replace them."""
    kept = {path: path.read_text() for path in study.path.rglob("verdicts.json")}
    tell(study)
    for path, before in kept.items():
        if same_verdicts(json.loads(before), read_json(path)):
            write_text(path, before)


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
        tell_again(study)
        print(study.path)
    draw_kept(reference)
    draw_together(reference)
    write_text(reference.path / VERDICTS, verdicts_markdown(kept_verdicts(reference)))
    if (docs := ROOT / "docs").is_dir() and reference.path.resolve() == (ROOT / "results" / REFERENCE).resolve():
        fill_pages(reference, docs)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
