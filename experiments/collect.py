"""Gather a study's rows into one table.

    python -m experiments.collect study=NAME

Writes results/<study>/measurements.csv and .parquet, one row per run. The same rows give byte-identical files, whatever
order they were computed in; times and machines stay in the rows' own files.
"""

from __future__ import annotations

from experiments.common.command import guarded, study_arguments
from experiments.sweep.rows import collect
from experiments.sweep.store import Study


def main() -> int:
    arguments = study_arguments(__doc__)
    study = Study.of(arguments["results_dir"], arguments["study"])
    frame = collect(study)
    print(f"{study.path / 'measurements.csv'}: {len(frame)} rows, {len(frame.columns)} columns")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
