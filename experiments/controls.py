"""A study's controls and other protocols beside its primary design: each arm judged as if it were the whole study.

    python -m experiments.controls study=NAME

Writes arms.csv: one line per claim, arm and quantity with its interval, its own verdict and the claim's largest
measured/bound. Two arms are derived: `best_step`, at each horizon the step size with the smallest mean squared gradient
norm (a minimum over noisy means, so biased low), and `plateau`, whose exponent is that of the noise floor of long runs
in their step size.
"""

from __future__ import annotations

from experiments.common.command import guarded, study_arguments
from experiments.common.files import write_csv
from experiments.show.controls import FILE, arm_table
from experiments.show.tables import measurements
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.show.plain import visible


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"]).require()
    table = arm_table(measurements(study))
    if table.empty:
        raise InputError(f"{study.path}: no row has an arm; nothing to compare with the primary design")
    write_csv(study.path / FILE, table, digits=6)
    print(visible(table.drop(columns="reason").to_string(index=False)))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
