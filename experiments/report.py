"""One self-contained page about a study: verdicts first, then each claim with its figures, reasons and rows.

    python -m experiments.report study=NAME [validation=FILE]

Arguments:
    validation=FILE   JSON of `python -m theory validate --json FILE`, for the section on the judge's calibration
                      (results/<study>/validation.json is used if it is there)

Writes results/<study>/report.html. It opens from a file, in light and dark, and asks no server for anything. A study
with parts (results/<study>/<part>/measurements.csv) gets one page for all of them.
"""

from __future__ import annotations

from experiments.common.command import guarded, study_arguments
from experiments.common.files import write_text
from experiments.show.page import load_parts, render, validation_of
from experiments.sweep.store import Study


def main() -> int:
    arguments = study_arguments(__doc__, validation=None)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    page = render(study, load_parts(study), validation_of(study, arguments["validation"]))
    write_text(study.path / "report.html", page)
    print(study.path / "report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
