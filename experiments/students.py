"""Students of a study side by side.

    python -m experiments.students study=NAME

One line per kind of student and rank: test loss with its standard error (over seeds where there are several, else over
test sequences), the loss that it started from, perplexity, trained numbers, tokens trained on.
"""

from __future__ import annotations

import math

import pandas as pd

from experiments.common.command import guarded, study_arguments
from experiments.show.students import KEYS, side_by_side
from experiments.sweep.rows import collect
from experiments.sweep.store import Study
from theory.show.render import console, grid


def main() -> int:
    arguments = study_arguments(__doc__)
    frame = side_by_side(collect(Study.of(arguments["results_dir"], arguments["study"])))
    varying = [k for k in KEYS if k in frame and (k in ("student", "rank") or frame[k].nunique(dropna=False) > 1)]
    first = frame.iloc[0]
    teacher = ["teacher", *[""] * (len(varying) - 1), "", ""]
    rows = [[*teacher, f"{first['teacher_loss']:.4f}", f"{math.exp(first['teacher_loss']):.2f}", "", ""]]
    for _, line in frame.iterrows():
        names = ["" if pd.isna(line[k]) else f"{line[k]}" for k in varying]
        numbers = [f"{line['start']:.4f}", f"{line['test_loss']:.4f} ± {line['se']:.4f}", f"{line['perplexity']:.2f}"]
        rows.append([*names, str(line["seeds"]), *numbers, f"{line['params']:,}", f"{line['tokens']:,}"])
    header = [*varying, "seeds", "start", "test loss", "perplexity", "params", "tokens"]
    console().print(grid(None, header, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
