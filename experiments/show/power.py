"""What a study's own design can decide: the gates it fails, and its verdicts on planted truths.

The grid is read off the measured rows, the noise off the spread between seeds; the truths are planted, not estimated,
so this is no power "at the observed effect". The outcome is kept beside the study, since it takes a while to simulate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.common.files import read_json, write_json
from experiments.common.progress import Progress
from experiments.sweep.store import Study
from theory.design.plan import plan
from theory.planted.surfaces import Design

REPLICATIONS = 20
RULES = 3  # edition of the decision rules: what was simulated under another is simulated anew
FILE = "power.json"
#: By claim: what is measured, and the coordinates of its grid.
GRIDS = {
    "convergence": ("grad_norm_sq", ("steps",)),
    "generalization": ("gap", ("rank", "samples")),
    "optimal_rank": ("test_loss", ("rank", "samples")),
}


def design_of_rows(claim: str, rows: pd.DataFrame) -> Design | None:
    """Grid, seeds per cell and relative noise of one run; None where the rows are no grid with replicates."""
    if claim not in GRIDS:
        return None
    value, coordinates = GRIDS[claim]
    if any(c not in rows for c in (value, *coordinates)):
        return None
    rows = rows.dropna(subset=[value, *coordinates])
    excess = rows[value]
    if claim == "optimal_rank" and "teacher_loss" in rows:  # the noise of the simulation is that of the excess risk
        excess = excess - rows["teacher_loss"].fillna(0.0)
    cells = excess.groupby([rows[c] for c in coordinates]).agg(["mean", "std", "count"])
    cells = cells[(cells["count"] > 1) & (cells["mean"] > 0)]
    if cells.empty:
        return None
    grids = {"rank": "ranks", "samples": "samples", "steps": "steps"}
    levels = {grids[c]: tuple(int(v) for v in sorted(rows[c].unique())) for c in coordinates}
    noise = float(np.clip((cells["std"] / cells["mean"]).median(), 1e-3, 2.0))
    return Design(seeds=int(cells["count"].median()), noise=round(noise, 3), **levels)  # type: ignore[arg-type]


def power(study: Study, claim: str, rows: pd.DataFrame) -> dict[str, Any] | None:
    """Gates and verdict shares of the claim's design, from `power.json` where the design is the same.

    `gates` are reasons for which the design would be UNTESTABLE (nothing is simulated then), `weak` those for which the
    weaker second tier of the rules would apply.
    """
    design = design_of_rows(claim, rows)
    if design is None:
        return None
    sides = [float(rows[c].iloc[0]) for c in ("d_in", "d_out") if c in rows and rows[c].nunique() == 1]
    dimension = min(sides, default=np.inf) if claim == "optimal_rank" else np.inf
    asked = {
        **{name: list(getattr(design, name)) for name in ("ranks", "samples", "steps")},
        "seeds": design.seeds,
        "noise": design.noise,
        "dimension": dimension if np.isfinite(dimension) else None,
        "replications": REPLICATIONS,
        "rules": RULES,
    }
    path = study.path / FILE
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    if kept.get(claim, {}).get("design") != asked:
        with np.errstate(all="ignore"), Progress(f"what the design of {claim} can decide", 1) as shown:
            outcome = plan(
                design,
                claims=[claim],
                dimension=dimension,
                replications=REPLICATIONS,
                progress=lambda done, total, _: shown.update(done, total),
                workers=None,
            )
        kept[claim] = {
            "design": asked,
            "gates": outcome.gates[claim],
            "weak": outcome.weak[claim],
            "power": outcome.power,
        }
        write_json(path, kept)
    return kept[claim]
