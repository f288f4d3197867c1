"""The table and the figure of an ablation.

    python -m experiments.ablation_table study=NAME [keep=TEACHER]

Writes results/<study>/ablation.csv and figures/ablation.pdf, .png and .csv, from the study's runs alone; with `keep`
also the table as results/reference/ablation/TEACHER.csv, from which the documentation and `make figures` show it.
An arm's learning rate is the one with the lowest mean validation loss among those swept; the test loss is then
reported with two intervals: over test documents (bootstrap, mean over seeds of its ends) and over seeds (range).
"""

from __future__ import annotations

from typing import Any

from experiments.common.command import guarded, study_arguments
from experiments.common.files import write_csv
from experiments.show.ablation_table import KEPT, SHOWN, arm_table, arms_figure, draw_kept
from experiments.show.figures import save
from experiments.sweep.rows import collect
from experiments.sweep.store import REFERENCE, Study
from theory.show.render import console, grid
from theory.show.theme import theme


def main() -> int:
    arguments = study_arguments(__doc__, keep=None)
    study = Study.of(arguments["results_dir"], arguments["study"])
    table = arm_table(collect(study))
    write_csv(study.path / "ablation.csv", table)
    with theme():
        drawn = arms_figure(table)
    save(drawn, study.path / "figures")
    if arguments["keep"]:
        reference = Study.of(arguments["results_dir"], REFERENCE)
        write_csv(reference.path / KEPT / f"{arguments['keep']}.csv", table)
        draw_kept(reference)
    cells = [[_shown(row[key]) for key in SHOWN] for _, row in table.iterrows()]
    console().print(grid(None, SHOWN, cells))
    print(f"{study.path / 'ablation.csv'}; {study.path / 'figures' / 'ablation'}.pdf .png .csv")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
