"""The judge as a library: `import theory; theory.check(df)`.

Every function takes the measurements first: a DataFrame, a CSV or parquet file, or a study folder. Tuning is by
keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from theory.judge.verdicts import MARGIN
from theory.settings import BOOTSTRAPS, PLAN_REPLICATIONS
from theory.tables import InputError, load_table, primary_rows

if TYPE_CHECKING:
    from theory.design.advise import Advice
    from theory.design.plan import Plan
    from theory.laws.user_law import FitResult
    from theory.report import Report

Measurements = pd.DataFrame | str | Path


def check(
    measurements: Measurements,
    *,
    claims: Sequence[str] = (),
    margin: float = MARGIN,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> Report:
    """Judge measurements against the claims whose columns are present.

    Args:
        measurements: a DataFrame with one row per run, the path of a file, or a study folder. The columns and formats
            are those of docs/howto/csv.md.
        claims: names of claims; empty for all that can be judged.
        margin: exponents closer than this to the claimed one count as equal.
        columns: new name -> name in the table, such as {"rank": "r"}.
        where: conditions that select rows, such as "rank >= 8", "arm != control", "site empty".

    Returns:
        A report with one entry per claim: `report["optimal_rank"].verdict`, `report.to_frame()`, `report.plot()`.

    Raises:
        InputError: the measurements cannot be used, or a name of a claim is unknown.

    Example:
        >>> report = theory.check("results/demo")
        >>> report["generalization"].verdict
        'LOOSE'
    """
    from theory.judge.check import check as judge

    return judge(load_table(measurements, columns=columns, where=where).known(), claims=claims, margin=margin)


def fit(
    measurements: Measurements,
    law: str,
    *,
    target: str,
    cluster: str | None = None,
    signed: Sequence[str] = (),
    bootstraps: int = BOOTSTRAPS,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> FitResult:
    """Fit a law of one's own by Huber loss on logarithms, with intervals from a cluster bootstrap.

    Args:
        measurements: see `check`.
        law: a formula such as "E + A*params**-a + B*tokens**-b"; names of columns are data, other names parameters.
        target: the column that the law describes.
        cluster: the column whose rows share noise and are resampled together, such as "seed"; None resamples rows.
        signed: parameters that may be negative.
        bootstraps: resamples for the intervals.
        columns, where: see `check`.

    Raises:
        InputError: the law cannot be read or does not fit the table.
    """
    from theory.laws.user_law import fit_law

    table = load_table(measurements, columns=columns, where=where)
    return fit_law(table, law, target, cluster=cluster, signed=signed, bootstraps=bootstraps)


def advise(
    measurements: Measurements,
    *,
    samples: float,
    max_rank: int | None = None,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> Advice:
    """The rank to take for N samples, with its interval and the price of half and double that rank.

    Args:
        measurements: see `check`; columns rank, samples, seed and test_loss.
        samples: N, the training sequences available.
        max_rank: the largest rank that can be afforded.
        columns, where: see `check`.

    Raises:
        InputError: there is nothing to say.
    """
    from theory.design.advise import advise as answer

    table, arms = primary_rows(load_table(measurements, columns=columns, where=where).known())
    advice = answer(table, samples, max_rank)
    return replace(advice, notes=(*table.remarks, *arms, *advice.notes))


def plan(
    *,
    rank: Sequence[int] = (),
    samples: Sequence[int] = (),
    steps: Sequence[int] = (),
    seeds: int,
    noise: float,
    dimension: float = float("inf"),
    replications: int = PLAN_REPLICATIONS,
    cost: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """What a design would decide, before its runs: each claim judged on planted laws over the design's grid.

    Args:
        rank, samples: the grid of claims 2 and 3. steps: the horizons of claim 1.
        seeds: per cell. noise: standard deviation of one run's logarithm.
        dimension: of the matrix whose rank is in question.
        replications: simulated studies per planted law.
        cost: seconds of one run as a formula in rank, samples and steps.
        progress: told what is simulated.

    Raises:
        InputError: the design names no claim, or its numbers cannot be used.
    """
    from theory.design.plan import claims_of, design_of
    from theory.design.plan import plan as simulate

    claims = claims_of(rank, samples, steps)
    if not claims:
        raise InputError("plan: give rank and samples, or steps")
    return simulate(
        design_of(rank, samples, steps, seeds, noise),
        claims=claims,
        dimension=dimension,
        replications=replications,
        cost=cost,
        progress=progress,
    )
