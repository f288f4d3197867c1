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
from theory.settings import BOOTSTRAPS, LOSS_NOISE, NEXT_SIMULATIONS, NOISE, OWN_MARGIN, PLAN_REPLICATIONS, RATES
from theory.tables import InputError, load_table, primary_rows

if TYPE_CHECKING:
    from theory.design.advise import Advice
    from theory.design.choose_runs import Choice
    from theory.design.next import Next
    from theory.design.plan import Plan
    from theory.judge.compare import Comparison
    from theory.laws.predict import Prediction
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


def test(
    measurements: Measurements,
    law: str,
    *,
    claimed: Mapping[str, float | str] | str | Sequence[str],
    target: str | None = None,
    bound: str = "equal",
    margin: float = OWN_MARGIN,
    cluster: str | None = None,
    signed: Sequence[str] = (),
    bootstraps: int = BOOTSTRAPS,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> Report:
    """Judge a claim of one's own about the parameters of a law.

    Args:
        measurements: see `check`; any columns.
        law: "loss ~ E + A*tokens**-b", or its right side with `target`.
        claimed: what the parameters are said to be: {"b": 0.34}, {"a": "b"} for equal ones, or "a/(a+b) = 0.5".
        target: the column that the law describes, where `law` does not begin with it.
        bound: "upper", the target falls as claimed or faster; "lower", not faster; "equal", both.
        margin: values closer than this to the claimed one count as equal.
        cluster: the column whose rows share a run, such as "seed"; None: every row is a run of its own.
        signed: parameters that may be negative.
        bootstraps: resamples of every fit.
        columns, where: see `check`.

    Returns:
        A report with the one claim "test", in the form of `check`'s.

    Raises:
        InputError: the law, the claim or the table cannot be used.

    Example:
        >>> theory.test(df, "loss ~ E + A*tokens**-b", claimed={"b": 0.34}, cluster="seed")["test"].verdict
        'CONSISTENT'
    """
    from theory.judge.user_claim import COMMAND, LawClaim, check_claims, claimed_of

    left, tilde, right = law.partition("~")
    if tilde:
        law, target = right.strip(), target or left.strip()
    if not target:
        raise InputError("target: the law does not say what it describes; write 'loss ~ E + ...' or give target")
    said = (
        claimed
        if isinstance(claimed, Mapping)
        else dict(map(claimed_of, [claimed] if isinstance(claimed, str) else claimed))
    )
    claim = LawClaim(COMMAND, target, law, said, bound, margin, cluster, tuple(signed))
    return check_claims(load_table(measurements, columns=columns, where=where), [claim], bootstraps=bootstraps)


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


def predict(
    fit: FitResult | str | Path,
    new: Measurements,
    *,
    interval: float = 0.95,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> Prediction:
    """The target of a fitted law at new points.

    Args:
        fit: from `fit`, or the path of a file that it or `theory fit --json` saved.
        new: as `measurements` of `check`; one row per point, with the law's columns.
        interval: level of the intervals.
        columns, where: see `check`.

    Returns:
        `.frame`: per row the prediction, `mean_low` to `mean_high` (interval of the mean), `low` to `high` (of a new
        run), `outside` the fitted range or not, and by how many decades; `.remarks`.

    Raises:
        InputError: the file is no fit, a column is missing, or the draws are too few for this level.
    """
    from theory.laws.predict import read_fit

    predictor = read_fit(fit) if isinstance(fit, (str, Path)) else fit.predictor
    table = load_table(new, columns=columns, where=where)
    return predictor.predict(table.frame, interval, table.path)


def compare(
    measurements: Measurements,
    *,
    by: str,
    quantities: Sequence[str] = (),
    cells: Sequence[str] | None = None,
    seed: str = "seed",
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
) -> Comparison:
    """Differences between two groups of runs, paired by seed, with 95 % intervals.

    Args:
        measurements: see `check`.
        by: the column whose two values make the groups; differences are the second (in sorted order) less the first.
        quantities: measured columns; () for every known one in the table.
        cells: columns of the design; None for rank, samples, steps, clone_weight and site where they are there.
        seed: the column that pairs runs; without it rows count as independent.
        columns, where: see `check`.

    Returns:
        `.to_frame()`: per quantity the difference over all cells, and in each.

    Raises:
        InputError: a column is missing, or `by` has not two values.
    """
    from theory.judge.compare import compare as contrast

    table = load_table(measurements, columns=columns, where=where)
    return contrast(table, by, quantities=quantities, cells=cells, seed=seed)


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
    tokens: Sequence[int] = (),
    weight_bytes: Sequence[int] = (),
    seeds: int,
    noise: float = NOISE,
    loss_noise: float = LOSS_NOISE,
    rates: int = RATES,
    dimension: float = float("inf"),
    replications: int = PLAN_REPLICATIONS,
    cost: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    workers: int | None = 1,
) -> Plan:
    """What a design would decide, before its runs: each claim judged on planted laws over the design's grid.

    Args:
        rank, samples: the grid of claims 2 and 3. steps: the horizons of claim 1. tokens: the budgets of claim 6.
        weight_bytes: the sizes of claim 7.
        seeds: per cell. noise: standard deviation of one run's logarithm (claims 1 to 3).
        loss_noise: standard deviation of one run's loss in nats per token, rates: learning rates per method (6 and 7).
        dimension: of the matrix whose rank is in question.
        replications: simulated studies per planted law.
        cost: seconds of one run as a formula in the coordinates of the claims.
        progress: told what is simulated.
        workers: processes, None for one per core; more than one only from a script whose main module can be imported
            again.

    Raises:
        InputError: the design names no claim, or its numbers cannot be used.
    """
    from theory.design.plan import claims_of, design_of, worth_of
    from theory.design.plan import plan as simulate

    claims = claims_of(rank, samples, steps, tokens, weight_bytes)
    if not claims:
        raise InputError("plan: give rank and samples, steps, tokens, or weight_bytes")
    return simulate(
        design_of(rank, samples, steps, seeds, noise),
        claims=claims,
        dimension=dimension,
        replications=replications,
        cost=cost,
        worth=worth_of(tokens, weight_bytes, seeds, loss_noise, rates),
        progress=lambda k, laws, name: progress(f"{k} of {laws} planted laws judged: {name}"),
        workers=workers,
    )


def next(
    measurements: Measurements | None = None,
    *,
    claim: str,
    budget: float | None = None,
    cost: str | None = None,
    margin: float = MARGIN,
    rank: Sequence[int] = (),
    samples: Sequence[int] = (),
    steps: Sequence[int] = (),
    seeds: int = 5,
    noise: float = NOISE,
    dimension: float = float("inf"),
    simulations: int = NEXT_SIMULATIONS,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Next:
    """Which runs to add, so that a claim is decided for the least cost.

    Args:
        measurements: see `check`; None for an empty design, which `rank`, `samples` or `steps` give.
        claim: generalization, optimal_rank or convergence; for information and dynamics only seeds are proposed.
        budget: the most that the runs may cost, in the unit of the cost: seconds where the table has them.
        cost: what one run costs: a column, or a formula of columns, such as "rank*samples"; None: `seconds`,
            `training_seconds`, steps x batch size, or equal costs, whichever the table has first.
        margin: as in `check`.
        rank, samples, steps, seeds: the grid of an empty design, and its seeds per cell.
        noise: standard deviation of one run's logarithm, where a table has no replicates.
        dimension: smaller side of the weight matrix of an empty design.
        simulations: simulated tables for each of the best sets of runs.
        columns, where: see `check`.
        progress: told what is simulated.

    Returns:
        `.best`, `.proposals`: sets of runs with the expected chance of each verdict and the cost; `.verdict` now.

    Raises:
        InputError: the measurements, the design or an option cannot be used.

    Example:
        >>> theory.next(df, claim="generalization", budget=7200).best.needed
        [{'rank': 4, 'samples': 16400, 'seeds': 5}, ...]
    """
    from theory.design.next import next_runs
    from theory.design.plan import claims_of, design_of

    table = None
    grid = design_of(rank, samples, steps, seeds, noise)
    if measurements is not None:
        if rank or samples or steps:
            raise InputError("next: rank, samples and steps give an empty design; with a table they are read from it")
        table = load_table(measurements, columns=columns, where=where).known()
    elif claim not in claims_of(rank, samples, steps):
        raise InputError(
            "next: give a table, or an empty design: rank and samples (generalization, optimal_rank), or steps "
            "(convergence)"
        )
    return next_runs(
        table, claim, design=grid, dimension=dimension, budget=budget, cost=cost, margin=margin,
        simulations=simulations, progress=progress,
    )  # fmt: skip


def choose(
    measurements: Measurements,
    law: str | Sequence[str],
    *,
    target: str,
    cost: str,
    budget: float,
    at: Measurements | None = None,
    signed: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Which candidate runs to train, so that a law predicts best where it matters, within a budget.

    Args:
        measurements: see `check`; one row per run that is done or could be trained. The target is empty in candidates.
        law: as in `fit`; a sequence for rival laws.
        target: the column that the law describes.
        cost: what one run costs: a column, or a formula of columns such as "6*params*tokens".
        budget: the most that the chosen runs may cost together, in the unit of the cost.
        at: points where the law has to predict, as `measurements`; None: the most expensive tenth of the table.
        signed: parameters that may be negative.
        columns, where: see `check`.
        progress: told what is fitted.

    Returns:
        `.rows`: the chosen candidates, the cheapest first; `.now`: which of them to train before asking again;
        `.targets`: predictions and their standard deviations, with the runs that are done and with all planned ones.

    Raises:
        InputError: the table, the cost or a law cannot be used, or no row is a candidate.

    Example:
        >>> choice = theory.choose(df, "E + A*params**-a", target="loss", cost="flops", budget=1e20)
        >>> choice.rows[choice.now]
    """
    from theory.design.choose_runs import choose_runs

    table = load_table(measurements, columns=columns, where=where)
    points = None if at is None else load_table(at, columns=columns)
    laws = [law] if isinstance(law, str) else list(law)
    return choose_runs(table, laws, target, cost=cost, budget=budget, at=points, signed=signed, progress=progress)
