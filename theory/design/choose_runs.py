"""Which of some candidate runs to train, so that a law predicts best where it matters, within a budget.

A table holds runs that are done and candidates, whose target is empty. An ensemble of fits to the runs that are done
stands for what is known: many starts, the fits that explain the runs about equally well, and each of them refitted
to the runs with noise added (randomised maximum likelihood). It spans several optima and several laws alike. Where
there are no runs, the target is taken to be about that of the runs, and every draw tilts it in its own way: so that
fewer runs than parameters do for a start.

The covariance of the ensemble's predictions says what a run at one point would tell of another, without a
linearisation. A candidate counts by the information (in nats) that its result holds about the results of runs at the
target points. That is a ratio of variances, so every direction in which the target points are uncertain counts, not
only the most uncertain one, which is the law's to get wrong. The information counts per square root of the cost. Per
cost, many cheap runs far away would be bought, which mislead where the law does not hold over the whole range; as it
is, few dear runs, whose noise then decides. Runs are planned for the whole budget, and only the cheap part of the plan
is to be trained now: a round at most doubles what has been spent, and the next one plans again with its results.

References:
    Oliver, He, Reynolds 1996, Conditioning permeability fields to pressure data (randomised maximum likelihood).
    Lindley 1956, On a measure of the information provided by an experiment.
    MacKay 1992, Information-based objective functions for active data selection (what a run tells of other points).
    Li et al. 2026, arXiv 2604.22753 (the problem, and a method that linearises about every optimum).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from theory.design.cost import cost_formula, prices
from theory.errors import InputError, OptionError
from theory.judge.intervals import generator
from theory.laws.least_squares import HUBER, huber, minimise
from theory.laws.parser import Law
from theory.laws.user_law import FINISHED, Problem, descend, law_of, polished, prepare, starting_points
from theory.tables import Table, numeric_column

#: Fits that are followed after a few steps of all starts, and draws of the ensemble.
FOLLOWED, DRAWS = 64, 256
#: Points at which a fit is kept from running away where there are no runs.
ANCHORS = 48
#: One standard deviation of what a column does to the logarithm of the target over its range, before any run.
SWING = 0.5
#: Relative noise of a run before any run, and how many runs this counts for.
NOISE, NOISE_RUNS = 0.01, 2.0
#: Residuals count for the noise up to this many Huber limits.
CLIPPED = 2.0
#: Fits are kept whose negative log likelihood exceeds the best one's by less.
NEAR = 8.0
#: Draws count up to this many robust deviations from their median.
FARTHEST = 4.0
#: The first round may spend this share of the budget.
FIRST = 1 / 32
#: Without target points: this share of the table, its most expensive rows.
DEAREST = 0.1
#: What a run is to tell of: the runs at the target points, or the law itself (D-optimality).
TARGET, INFORMATION = CRITERIA = ("target", "information")
#: What a run tells counts per this power of its cost.
THRIFT = 0.5
#: A cost that exceeds the budget by less is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, repr=False)
class Choice:
    """Candidates to train.

    Attributes:
        rows: the laws' columns, one row per chosen candidate, the cheapest first; the index is the table's.
        cost: [rows]. now: [rows] True where a run is to be trained in this round; the others are planned.
        targets: the law's columns, `prediction` and its standard deviation `sd` with the runs that are done, and
            `sd_planned` with all that is planned. Without a run there is no prediction (NaN).
        spent, budget: cost of the runs that are done, and what may still be spent.
        notes: remarks for the reader.
    """

    laws: tuple[str, ...]
    target: str
    path: str
    rows: pd.DataFrame
    targets: pd.DataFrame
    cost: np.ndarray
    now: np.ndarray
    spent: float
    budget: float
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Choice({int(self.now.sum())} runs now, {len(self.rows)} in all, cost {self.cost.sum():.4g})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "laws": list(self.laws),
            "target": self.target,
            "spent": self.spent,
            "budget": self.budget,
            "runs": [
                {"row": row, "cost": float(cost), "now": bool(now), "columns": _plain(values)}
                for row, (_, values), cost, now in zip(
                    self.rows.index.tolist(), self.rows.iterrows(), self.cost, self.now, strict=True
                )
            ],
            "targets": [_plain(values) for _, values in self.targets.iterrows()],
            "notes": list(self.notes),
        }


def _plain(values: pd.Series) -> dict[str, Any]:
    return {str(k): v.item() if hasattr(v, "item") else v for k, v in values.items()}


def choose_runs(
    table: Table,
    laws: Sequence[str],
    target: str,
    *,
    cost: str,
    budget: float,
    at: Table | None = None,
    signed: Collection[str] = (),
    criterion: str = TARGET,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Choose candidates to train.

    Args:
        table: one row per run; the target is empty in candidates.
        laws: one, or several rivals: each counts by its likelihood, less the Bayesian information criterion's price.
        cost: a column, or a formula of columns: what a run costs.
        budget: the most that the chosen runs may cost together, in the unit of the cost.
        at: points with the laws' columns where the law has to predict; None: the most expensive tenth of the table.
        signed: parameters that may be negative.
        criterion: of CRITERIA.
        progress: told what is fitted.

    Raises:
        InputError: a column is missing, a cost is not positive, no row is a candidate, or a law cannot be used.
    """
    if criterion not in CRITERIA:
        raise OptionError("criterion", f"{criterion}: choose from {', '.join(CRITERIA)}")
    if not (np.isfinite(budget) and budget > 0):
        raise OptionError("budget", f"{budget:g}: a positive number in the unit of the cost is needed")
    parsed = [law_of(table, text, target, None) for text in laws]
    parameters = {name for law in parsed for name in law.parameters}
    for name in signed:
        if name not in parameters:
            raise OptionError("signed", f"{name}: not a parameter; parameters are {', '.join(sorted(parameters))}")
    columns = list(dict.fromkeys(c for law in parsed for c in law.columns))
    domain = _arrays(table, columns)
    formula = cost_formula(cost, [str(c) for c in table.frame.columns])
    price = prices(formula, table.numbers(formula.columns), table.path)
    measured = numeric_column(table.frame[target], target, table.path).to_numpy(dtype=np.float64)
    done = ~np.isnan(measured)
    if done.all():
        raise InputError(f"{table.path}: column {target} is filled in every row; leave it empty in candidate runs")
    notes = list(table.remarks)
    if at is None:
        dear = np.argsort(-price, kind="stable")[: max(1, round(DEAREST * len(price)))]
        points = {c: x[dear] for c, x in domain.items()}
        notes.append(
            f"chosen to predict the {len(dear)} most expensive rows of the table; --at FILE names other points"
        )
    else:
        points = _arrays(at, columns)
    rest = np.flatnonzero(~done)
    spent, m = float(price[done].sum()), len(next(iter(points.values())))
    prediction, sd, planned = (np.full(m, np.nan) for _ in range(3))
    if done.any():
        runs_done = Table(table.frame[done], table.path)
        values, noise, unit = _known(runs_done, parsed, target, signed, domain, points, progress)
        count, middle = len(price), np.nanmedian(values, axis=0)
        fitted = np.exp(middle) if unit is None else unit * middle
        prediction = fitted[count:]
        both = covariance(np.concatenate([values[:, rest], values[:, count:]], axis=1), noise)
        sd = np.sqrt(np.diag(both)[len(rest) :])
        chosen, both = plan(both, noise, price[rest], budget, criterion)
        planned = np.sqrt(np.maximum(np.diag(both)[len(rest) :], 0.0))
        slope = prediction if unit is None else unit
        sd, planned = sd * slope, planned * slope
        notes += _tells_nothing(measured[done], fitted[:count][done], parsed)
        taken = rest[np.array(chosen, dtype=int)]
        taken = taken[np.argsort(price[taken], kind="stable")]
        step = max(spent, FIRST * (spent + budget))
    else:
        # Nothing is known: the cheapest, as many as there are parameters.
        order = rest[np.argsort(price[rest], kind="stable")][: max(len(law.parameters) for law in parsed)]
        step = FIRST * budget
        taken = order[np.cumsum(price[order]) <= max(step, price[order[0]]) * (1 + ROUNDING)]
        taken = taken[price[taken] <= budget * (1 + ROUNDING)]
    now = np.cumsum(price[taken]) <= step * (1 + ROUNDING)
    now[:1] = True
    if not len(taken):
        notes.append(f"no candidate fits into the budget: the cheapest costs {price[rest].min():.4g}")
    frame = pd.DataFrame({**points, "prediction": prediction, "sd": sd, "sd_planned": planned})
    return Choice(
        tuple(laws), target, table.path, table.frame.iloc[taken][columns], frame, price[taken], now, spent,
        float(budget), tuple(notes),
    )  # fmt: skip


def _arrays(table: Table, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """[n] values by column."""
    numbers = table.numbers(columns)
    return {c: numbers[c].to_numpy() for c in columns}


def _known(
    done: Table,
    laws: Sequence[Any],
    target: str,
    signed: Collection[str],
    domain: dict[str, np.ndarray],
    points: dict[str, np.ndarray],
    progress: Callable[[str], None],
) -> tuple[np.ndarray, float, float | None]:
    """[S, rows and points] draws of all laws on the scale of the fit, the noise on it, its unit (None: logarithms)."""
    whole = {c: np.concatenate([domain[c], points[c]]) for c in domain}
    found, unit = [], None
    for law in laws:
        progress(f"fitting {law.text}")
        problem, _ = prepare(done, law.text, target, None, [s for s in signed if s in law.parameters])
        if not problem.log_scale:
            unit = float(np.median(np.abs(problem.y)) or np.std(problem.y) or 1.0)
            problem = replace(problem, sd=np.full(len(problem.y), unit))
        found.append(ensemble(problem, whole, done.path))
    score = np.array([e.score for e in found])
    share = np.exp(np.maximum(score.min() - score, -700.0))
    share /= share.sum()
    taken = [e.values(whole)[: int(np.ceil(s * DRAWS))] for e, s in zip(found, share, strict=True)]
    return np.concatenate(taken), float(share @ [e.noise for e in found]), unit


def _tells_nothing(y: np.ndarray, fitted: np.ndarray, laws: Sequence[Law]) -> list[str]:
    """A note where the laws come no nearer to the runs than one number does. y, fitted: [n] the runs and the fits."""
    fewest = min(len(law.parameters) for law in laws)
    spread = np.median(np.abs(y - np.median(y)))
    if len(y) <= fewest or np.median(np.abs(y - fitted)) < spread or not spread:
        return []
    return [
        f"no law comes nearer to the {len(y)} runs that are done than their median does, so that neither the runs nor "
        "the deviations mean anything: write another law, or name parameters that may be negative (--signed NAME)"
    ]


@dataclass(frozen=True)
class Ensemble:
    """Fits that explain the runs about equally well.

    Attributes:
        theta: [S, p] internal parameters. noise: standard deviation of a run on the scale of the fit.
        score: half the Bayesian information criterion of the best fit.
    """

    problem: Problem
    theta: np.ndarray
    noise: float
    score: float

    def values(self, data: dict[str, np.ndarray]) -> np.ndarray:
        """[S, n] on the scale of the fit: logarithms, or units of `problem.sd`."""
        problem = self.problem
        values = problem.law.evaluate(problem.natural(self.theta), data)[0]
        with np.errstate(all="ignore"):
            return np.log(values) if problem.log_scale else values / problem.sd[0]


@dataclass(frozen=True)
class _Anchored(Problem):
    """A law on runs and anchors: `wanted` [B, n] is what each fit of a batch adds to the values, `unit` [n] the sd."""

    wanted: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    unit: np.ndarray = field(default_factory=lambda: np.empty(0))

    def residual(self, theta: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r, slopes = super().residual(theta, index)
        return (r - self.wanted[index]) / self.unit, slopes / self.unit[:, None]


def ensemble(problem: Problem, domain: dict[str, np.ndarray], path: str = "<memory>") -> Ensemble:
    """Draw fits of a law.

    Args:
        problem: the runs that are done. domain: columns at all points that matter. path: of the table, for errors.
    """
    rng = generator(21)
    law, n, p = problem.law, len(problem.y), len(problem.law.parameters)
    size = len(next(iter(domain.values())))
    at = np.sort(rng.choice(size, min(ANCHORS, size), replace=False))
    m = len(at)
    middle = float(np.exp(np.median(np.log(problem.y))) if problem.log_scale else np.median(problem.y))
    tilts = np.stack([_from_end_to_end(domain[c])[at] for c in law.columns])
    runs = _Anchored(
        law,
        {c: np.concatenate([problem.data[c], domain[c][at]]) for c in law.columns},
        np.concatenate([problem.y, np.full(m, middle)]),
        problem.signed,
        problem.log_scale,
        np.concatenate([problem.sd, np.full(m, problem.sd[0])]),
        np.arange(n + m),
        problem.signs,
        np.zeros((1, n + m)),
        # All anchors together weigh as much as one run of this deviation.
        np.concatenate([np.full(n, NOISE), np.full(m, SWING * np.sqrt(m))]),
    )
    starts = starting_points(problem, rng)
    # A batch of fits to the same values: the one row of `wanted` serves all.
    same = replace(runs, wanted=np.zeros((len(starts), n + m)))
    screened = minimise(same.residual, starts, iterations=15, ftol=1e-6, largest_step=same.largest_step)
    theta = screened.theta[np.argsort(screened.objective, kind="stable")[:FOLLOWED]]
    found = descend(same, theta, iterations=60, ftol=1e-6)
    theta = found.theta[np.argsort(found.objective, kind="stable")]
    # A damped Newton step may be too short for a bent valley.
    which = problem.signed & ~problem.exponent
    for k in range(min(FINISHED, len(theta))):
        theta[k], _ = polished(same, theta[k], np.inf, which)
    for _ in range(3):
        found = descend(same, theta, loss=huber(HUBER), iterations=30, ftol=1e-6)
        theta = found.theta
        r = same.residual(theta[[found.best]], np.zeros(1, dtype=int))[0][0, :n]
        kept = np.minimum(np.abs(r), CLIPPED * HUBER) * same.unit[:n]
        noise = float(np.sqrt((NOISE_RUNS * NOISE**2 + np.sum(kept**2)) / (NOISE_RUNS + max(n - p, 0))))
        same = replace(same, unit=np.concatenate([np.full(n, noise), same.unit[n:]]))
    objective = minimise(same.residual, theta, loss=huber(HUBER), iterations=0).objective
    best = float(objective.min())
    if not np.isfinite(best):
        raise InputError(f"{path}: the law {law.text} has no value on these rows; guard it with max(..., 0) or + 1")
    likely = np.where(objective < best + NEAR, np.exp(np.maximum(best - objective, -NEAR)), 0.0)
    chosen = rng.choice(len(theta), DRAWS, p=likely / likely.sum())
    noisy = noise * rng.standard_normal((DRAWS, n))
    tilted = SWING * rng.standard_normal((DRAWS, len(tilts))) @ tilts
    drawn = descend(
        replace(same, wanted=np.concatenate([noisy, tilted], axis=1)), theta[chosen], loss=huber(HUBER), iterations=25,
        ftol=1e-5,
    )  # fmt: skip
    theta = drawn.theta[np.isfinite(drawn.objective)]
    return Ensemble(problem, theta, noise, best + n * np.log(noise) + p / 2 * np.log(n))


def _from_end_to_end(x: np.ndarray) -> np.ndarray:
    """A column, by its logarithm where it is positive, moved to the range from -1/2 to 1/2."""
    x = np.log(x) if (x > 0).all() else x
    return (x - x.min()) / max(np.ptp(x), 1e-300) - 0.5 if np.ptp(x) else np.zeros(len(x))


def covariance(values: np.ndarray, noise: float) -> np.ndarray:
    """[n, n] of predictions [S, n]; draws far from the others are moved nearer."""
    values = np.where(np.isfinite(values), values, np.nan)
    middle = np.nanmedian(values, axis=0)
    spread = np.maximum(1.4826 * np.nanmedian(np.abs(values - middle), axis=0), 1e-3 * noise)
    away = np.clip(np.nan_to_num(values - middle), -FARTHEST * spread, FARTHEST * spread)
    away -= away.mean(axis=0)
    return away.T @ away / len(values)


def plan(
    between: np.ndarray, noise: float, cost: np.ndarray, budget: float, criterion: str = TARGET
) -> tuple[list[int], np.ndarray]:
    """Choose candidates for a budget: the one that tells most for its cost, again and again.

    Where cheap ones would use up what a dear one needs that tells more than all of them, the dear one is taken.

    Args:
        between: [c + t, c + t] covariance of the predictions at candidates and, after them, target points.
        noise: standard deviation of a run. cost: [c].

    Returns:
        Indices of candidates in the order of the choice, and the covariance that is left.
    """
    c = len(cost)
    # What would be unknown of the candidates if the results at the target points, or the law, were known.
    given = np.zeros((c, c))
    if criterion == TARGET:
        measured = between[c:, c:] + noise**2 * np.eye(len(between) - c)
        given = between[:c, :c] - between[:c, c:] @ np.linalg.solve(measured, between[c:, :c])
    plans = [_greedy(between, given, noise, cost, budget, thrift) for thrift in (THRIFT, 0.0)]
    chosen, left, _ = max(plans, key=lambda made: made[2])
    return chosen, left


def _greedy(
    between: np.ndarray, given: np.ndarray, noise: float, cost: np.ndarray, budget: float, thrift: float
) -> tuple[list[int], np.ndarray, float]:
    """A plan, the covariance that is left, and the information of its runs together.

    Args:
        given: [c, c] covariance of the candidates if what they are to tell of were known.
        thrift: the power of the cost per which the information counts.
    """
    between, given, chosen, total, c = between.copy(), given.copy(), list[int](), 0.0, len(cost)
    free = np.ones(c, dtype=bool)
    while (able := free & (cost <= budget * (1 + ROUNDING))).any():
        variance, variance_given = np.diag(between)[:c] + noise**2, np.diag(given) + noise**2
        information = np.log(variance / variance_given)
        best = int(np.argmax(np.where(able, information / cost**thrift, -np.inf)))
        total += float(information[best])
        between -= np.outer(between[:, best], between[best]) / variance[best]
        given -= np.outer(given[:, best], given[best]) / variance_given[best]
        free[best] = False
        budget -= float(cost[best])
        chosen.append(best)
    return chosen, between, total
