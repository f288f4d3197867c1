"""A study's controls and other protocols beside its primary design: each arm judged as if it were the whole study.

Writes arms.csv: one line per claim, arm and quantity with its interval, its own verdict and the claim's largest
measured/bound. Two arms are derived: `best_step`, at each horizon the step size with the smallest mean squared gradient
norm (a minimum over noisy means, so biased low), and `plateau`, whose exponent is that of the noise floor of long runs
in their step size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from experiments.show.lines import claims_of, lines_of
from theory.judge.check import check_table, rows_of
from theory.judge.intervals import mean_interval
from theory.judge.ledger import all_claims
from theory.tables import InputError as TableError

FILE = "arms.csv"
PRIMARY = "primary"
STEP_ARMS = "step_"  # arms of claim 1 that differ from its primary design in nothing but the step size
NOISELESS = 1e-6  # minibatch variance of a run whose minibatch is the whole pool
COLUMNS = (
    "claim", "arm", "verdict", "coordinate", "estimate", "low", "high", "claimed", "worst_ratio", "runs", "reason",
)  # fmt: skip


def arm_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Every arm of every claim, judged; empty where the study has no arms."""
    lines: list[dict[str, Any]] = []
    if "arm" not in frame or frame["arm"].isna().all():
        return pd.DataFrame(lines, columns=list(COLUMNS))
    names = set(frame["claim"].dropna()) if "claim" in frame else set()
    for claim in (c for c in all_claims() if c in names):
        rows = rows_of(claim, frame, arms=True)
        if not rows.loc[rows["claim"] == claim, "arm"].notna().any():
            continue
        for arm, part in _parts(claim, rows):
            lines += _judged(claim, arm, part)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _parts(claim: str, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    primary = rows[rows["arm"].isna()]
    if len(primary):
        yield PRIMARY, primary
    of_claim = rows[rows["arm"].notna() & (rows["claim"] == claim)]
    for arm, part in of_claim.groupby("arm"):
        yield str(arm), part
    named = rows["arm"].fillna(PRIMARY)
    by_step = rows[(named == PRIMARY) | named.str.startswith(STEP_ARMS)]
    if claim == "convergence" and by_step["arm"].notna().any():
        yield "best_step", _envelope(by_step)


def _envelope(rows: pd.DataFrame) -> pd.DataFrame:
    """At every horizon that all step sizes were run at, the rows of the one with the smallest mean over their seeds."""
    seeds = set.intersection(*(set(part["seed"]) for _, part in rows.groupby("arm", dropna=False)))
    rows = rows[rows["seed"].isin(seeds)]
    arm = rows["arm"].fillna(PRIMARY)
    means = rows.groupby([rows["steps"], arm])["grad_norm_sq"].mean().unstack().dropna()
    best = means.idxmin(axis=1)
    return rows[rows["steps"].map(best).eq(arm) & rows["steps"].isin(best.index)]


def _judged(claim: str, arm: str, part: pd.DataFrame) -> list[dict[str, Any]]:
    line: dict[str, Any] = {"claim": claim, "arm": arm, "runs": len(part)}
    if "plateau" in part and part["plateau"].notna().any():
        return [line | _floor(part)]
    own = {}
    if claim == "convergence" and "bound" in part and part["bound"].notna().all():
        means = part.groupby("steps")[["grad_norm_sq", "bound"]].mean()
        own["worst_ratio"] = float((means["grad_norm_sq"] / means["bound"]).max())
        if (part["decay"] > 0).any() or part["own_grad_variance"].max() < NOISELESS:
            # The judge's bound is that of a constant step with noise; other steps have their own in the column `bound`,
            # and without noise no horizon would lie beyond the crossover.
            part = part.drop(columns=["smoothness", "grad_variance"])
    try:
        report = check_table(part.drop(columns="arm"), claims=[claim])
    except (TableError, KeyError) as wrong:
        return [line | {"verdict": "not judged", "reason": str(wrong)}]
    found = report.claims[claim]
    line |= {"reason": "", "worst_ratio": found.bound.worst_ratio} | own
    return [
        line
        | {
            "verdict": one.verdict, "coordinate": one.quantity, "estimate": one.estimate, "low": one.low,
            "high": one.high, "claimed": one.claimed, "reason": one.note,
        }
        for one in lines_of(claims_of(report), report.margin)
    ] or [line | {"verdict": found.verdict}]  # fmt: skip


def _floor(part: pd.DataFrame) -> dict[str, Any]:
    """The exponent of the noise floor in the step size: a slope per seed, t interval over seeds (theory: at most 1)."""
    slopes = [
        np.polyfit(np.log(one["step_size"]), np.log(one["plateau"]), 1)[0]
        for _, one in part.groupby("seed")
        if (one["plateau"] > 0).all() and one["step_size"].nunique() > 1
    ]
    if len(slopes) < 2:
        return {"verdict": "not judged", "reason": "a plateau needs two seeds and two step sizes"}
    interval = mean_interval(np.asarray(slopes), 0.95)
    worst = float((part["plateau"] / (part["smoothness"] * part["step_size"] * part["grad_variance"])).max())
    return {
        "verdict": "",
        "reason": "noise floor of long runs at a constant step against L eta sigma^2",
        "coordinate": "step_size",
        "estimate": float(np.mean(slopes)),
        "low": interval.low,
        "high": interval.high,
        "claimed": 1.0,
        "worst_ratio": worst,
    }
