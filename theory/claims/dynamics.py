"""Claim 5: low-rank projection preserves the optimisation dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from theory.judge import gates
from theory.judge.intervals import Interval, mean_interval
from theory.judge.ledger import Claim
from theory.judge.verdicts import CONSISTENT, INCONCLUSIVE, NOT_EVALUATED, PRECEDENCE, REFUTED, UNTESTABLE
from theory.report import Bound, ClaimReport, interval_list
from theory.tables import InputError, Table, claim_rows, describe, resolve_duplicates

PRESERVED = 1.5
NOT_PRESERVED = 2.0


def ratio_interval(divergence: np.ndarray, baseline: np.ndarray, level: float) -> tuple[float, Interval]:
    """D/D_0 as the geometric mean over seeds, with the t interval of its logarithm."""
    logs = np.log(divergence / baseline)
    interval = mean_interval(logs, level)
    return float(np.exp(logs.mean())), interval.exponential()


def judge(table: Table, margin: float) -> ClaimReport:
    """Judge the divergence from direct training against the divergence between two direct runs. No margin is used.

    Raises:
        InputError: unusable rows (see `theory.tables`).
    """
    frame, remarks = claim_rows(table, CLAIM.name, CLAIM.columns, CLAIM.measured, CLAIM.optional)
    zero = frame["dynamics_divergence"] <= 0
    if zero.any():
        raise InputError(
            f"{table.path}: column dynamics_divergence, row {frame.index[zero.to_numpy()][0]}: zero, so the clone "
            "is the "
            "direct student itself; remove the row or measure on more contexts"
        )
    arms = [c for c in ("site", "rank", "samples", "steps", "clone_weight") if c in frame and frame[c].notna().any()]
    values = ["dynamics_divergence", "dynamics_baseline"]
    frame, _ = resolve_duplicates(frame, table.path, CLAIM.name, [*arms, "seed"], values, [])
    varying = [c for c in arms if frame[c].nunique(dropna=False) > 1]
    groups = list(frame.groupby(varying, dropna=False)) if varying else [((), frame)]
    # With several arms the worst decides; each refutation is then held to the level divided by their number.
    refute_level = 1 - 0.05 / len(groups)
    results = [_judge_arm(varying, key, rows, refute_level) for key, rows in groups]
    worst = min(results, key=lambda r: (PRECEDENCE.index(r["verdict"]), -r["estimate"]))
    reasons = [r.pop("reason") for r in sorted(results, key=lambda r: PRECEDENCE.index(r["verdict"]))]
    points = pd.DataFrame(
        [{**r["arm"], "mean": r["estimate"], "low": r["ci95"][0], "high": r["ci95"][1]} for r in results]
    )
    return ClaimReport(
        CLAIM.name,
        worst["verdict"],
        (*reasons, *remarks),
        {},
        Bound(NOT_EVALUATED),
        len(groups),
        int(frame["seed"].nunique()),
        {"divergence_ratio": worst, "arms": results},
        points,
    )


def _judge_arm(varying: list[str], key: tuple[Any, ...], rows: pd.DataFrame, refute_level: float) -> dict[str, Any]:
    arm = dict(zip(varying, key, strict=True))
    label = describe(varying, arm.values()) or "all rows"
    divergence, baseline = (rows[c].to_numpy() for c in ("dynamics_divergence", "dynamics_baseline"))
    estimate, ci95 = ratio_interval(divergence, baseline, 0.95)
    _, ci90 = ratio_interval(divergence, baseline, 0.90)
    _, strict = ratio_interval(divergence, baseline, refute_level)
    gate = gates.seeds_gate(np.array([len(rows)]))
    if gate.tier != gates.FIRST:
        verdict, why = UNTESTABLE, gate.reason
    elif ci95.high <= PRESERVED:
        verdict, why = CONSISTENT, f"the upper limit is at most {PRESERVED:g}"
    elif strict.low >= NOT_PRESERVED:
        verdict, why = REFUTED, f"the lower limit is at least {NOT_PRESERVED:g}"
    elif ci95.low >= NOT_PRESERVED:
        verdict = INCONCLUSIVE
        why = (
            f"with so many arms only an interval of {refute_level:.2%} refutes, and it starts at {strict.low:.3g}, "
            f"below {NOT_PRESERVED:g}"
        )
    else:
        verdict, why = INCONCLUSIVE, f"the interval neither ends by {PRESERVED:g} nor starts at {NOT_PRESERVED:g}"
    return {
        "claimed": 1.0,
        "estimate": estimate,
        "ci90": interval_list(ci90),
        "ci95": interval_list(ci95),
        "verdict": verdict,
        "arm": arm,
        "reason": f"{label}: {verdict}: D/D_0 = {estimate:.3g}, 95 % interval {ci95.low:.3g} to {ci95.high:.3g}; {why}",
    }


CLAIM = Claim(
    name="dynamics",
    order=5,
    title="Low-rank projection preserves the optimisation dynamics",
    statement="D <= 1.5 D_0: the clone differs from the directly trained student hardly more than two direct runs do",
    symbols={
        "D": (
            "mean token KL(direct student || clone) on held-out contexts at matched training loss (column "
            "dynamics_divergence)"
        ),
        "D_0": "the same between two direct runs with different data order (column dynamics_baseline)",
        "direct": "training the same student architecture from the same initial weights A P_0 without a projection",
        "A": "frozen teacher matrix; P trained projection; K = A A^T the preconditioner of the clone's gradient flow",
    },
    assumptions=("both runs start from the same weights and see the same batches", "training losses are matched"),
    columns=("seed", "dynamics_divergence", "dynamics_baseline"),
    measured="dynamics_divergence",
    optional=("rank", "samples", "steps", "clone_weight"),
    exponents={},
    bound="none: the flows are equal up to a time change only if K is a multiple of the identity on the gradients",
    rule=(
        "D/D_0 as geometric mean over seeds with a t interval of its logarithm: CONSISTENT if the 95 % interval "
        "ends at 1.5 or below, REFUTED if it starts at 2 or above (with several arms the interval at 95 % of all of "
        "them together), else INCONCLUSIVE; the worst arm decides; 5 seeds are needed"
    ),
    problems=(
        "G2: Low-Rank Clone's flow is direct training preconditioned by A A^T, the same only where that is "
        "isotropic; tall and wide "
        "modules never are",
    ),
    sources=("derived: S = A P gives dS/dt = -A A^T G", "arXiv 2603.22355, abstract (the claim)"),
    judge=judge,
)
