"""Every figure of a study, from its table alone: PDF, PNG and the CSV of the points; the verdicts as a LaTeX table.

    python -m experiments.figures study=NAME

Nothing here runs a model; the figures themselves are in theory.show.claims and experiments.show.table_figures.
"""

from __future__ import annotations

from experiments.common.command import guarded, study_arguments
from experiments.show.figures import draw, judge, save, save_table
from experiments.show.tables import measurements
from experiments.sweep.store import Study


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    frame = measurements(study)
    report = judge(study)
    save_table(report, study.path / "figures")
    for drawn in draw(study, report, frame):
        save(drawn, study.path / "figures")
        print(f"{study.path / 'figures' / drawn.name}.pdf .png .csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
