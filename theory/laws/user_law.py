"""Fitting a law written by the user, with intervals that cover: the entry point behind `theory fit`.

Huber loss on log residuals with delta = 1.345 robust standard deviations, iterated; many starts by variable projection
(given the exponents, most laws are linear in their coefficients); intervals by bootstrap of rows or clusters. The
asymptotic covariance is not used: it is 35 to 70 % too narrow on real scaling data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from theory.judge.intervals import UNDEFINED, Interval, cluster_weights, generator, small_sample_factor
from theory.judge.model_selection import held_out
from theory.laws.identify import Identification, Situation, identify
from theory.laws.least_squares import (
    HUBER,
    SQUARES,
    Loss,
    Optimum,
    huber,
    minimise,
    polish,
    robust_scale,
    smooth_deviation,
    solve,
)
from theory.laws.parser import Law, LawError, parse_law
from theory.laws.predict import MOST_RESIDUALS, Prediction, Predictor
from theory.laws.profile import profile_intervals
from theory.laws.surface import nonnegative_least_squares
from theory.report import to_json, write_text
from theory.settings import BOOTSTRAPS
from theory.tables import InputError, Table

STARTS = 256
POLISHED = 32
#: Optima that are followed to the end one by one, and rounds of starts where one alone agrees.
FINISHED, ROUNDS = 4, 3
#: How often the polish of the best is repeated while it still gains.
REPEATS = 10
#: Starts whose objective exceeds the best by this factor are dropped before the Huber iterations.
WORSE = 2.0
AGREEMENT = 1e-6
DISAGREE = "two interval methods disagree"
#: A 95 % percentile interval needs a draw in each tail.
FEWEST_DRAWS = 40
#: Above this many rows every draw is one Newton step from the full fit instead of a full optimisation.
LARGE = 20_000


@dataclass(frozen=True, repr=False)
class FitResult:
    """A fitted law.

    Attributes:
        estimates, intervals: by parameter; profiles: profile-likelihood intervals where they are defined.
        objective: the summed Huber loss; starts_agreeing: starts that ended within 1e-6 of the best objective.
        holdout_log_rmse: error on the largest half-decade of the widest column, fitted without it (NaN if undefined).
        notes: remarks for the reader. fitted: the law's value for every row.
        determined: by parameter, whether the table determines it (its interval is undefined where not).
        draws: [draws, parameters] bootstrap draws of the parameters, in the order of `law.parameters`.
        residuals: [rows] on the scale of the fit: log(law) - log(target), or (law - target)/sd where `log_scale` is
            False. labels: [rows] the number of each row's cluster.
    """

    law: Law
    target: str
    rows: int
    clusters: int
    estimates: Mapping[str, float]
    intervals: Mapping[str, Interval]
    profiles: Mapping[str, Interval]
    objective: float
    starts_agreeing: int
    holdout_log_rmse: float
    determined: Mapping[str, bool]
    draws: np.ndarray
    residuals: np.ndarray
    labels: np.ndarray
    log_scale: bool
    predictor: Predictor
    notes: tuple[str, ...] = ()
    fitted: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __repr__(self) -> str:
        shown = (
            f"{k} = {v:.4g} [{self.intervals[k].low:.3g}, {self.intervals[k].high:.3g}]"
            for k, v in self.estimates.items()
        )
        return f"Fit({self.target} ~ {self.law.text}; {self.rows} rows; {', '.join(shown)})"

    def predict(self, new: pd.DataFrame, interval: float = 0.95) -> Prediction:
        """The target at new points.

        Args:
            new: one row per point, with the law's columns. interval: level of the intervals.

        Returns:
            `.frame` with the prediction, `mean_low` to `mean_high` for the mean, `low` to `high` for a new run, and
            the distance from the fitted range in decades; `.remarks`.

        Raises:
            InputError: a column is missing, or the draws are too few for this level.
        """
        return self.predictor.predict(new, interval)

    def save(self, path: str | Path) -> None:
        """Write the fit as JSON, as `theory fit --json` does; `theory.predict` reads it."""
        write_text(path, to_json(self.to_dict(), digits=None))

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law.text,
            "target": self.target,
            "rows": self.rows,
            "parameters": {
                name: {
                    "estimate": self.estimates[name],
                    "determined": self.determined[name],
                    "ci95": [self.intervals[name].low, self.intervals[name].high],
                    "ci95_profile": [self.profiles[name].low, self.profiles[name].high],
                }
                for name in self.law.parameters
            },
            "objective": self.objective,
            "starts_agreeing": self.starts_agreeing,
            "holdout_log_rmse": self.holdout_log_rmse,
            "clusters": self.clusters,
            "notes": list(self.notes),
            "prediction": self.predictor.to_dict(),
        }


@dataclass(frozen=True)
class Problem:
    """A law on data, in internal parameters (logarithms of the positive ones)."""

    law: Law
    data: dict[str, np.ndarray]
    y: np.ndarray
    signed: np.ndarray
    log_scale: bool
    sd: np.ndarray
    row: np.ndarray  # numbers of the rows in the table
    signs: np.ndarray  # [p] or [B, p] of the parameters that are logarithms

    def natural(self, theta: np.ndarray, signs: np.ndarray | None = None) -> np.ndarray:
        """The law's parameters [..., p] from internal ones."""
        signs = self.signs if signs is None else signs
        return np.where(self.signed, theta, signs * np.exp(np.minimum(np.where(self.signed, 0.0, theta), 300.0)))

    def internal(self, parameters: np.ndarray) -> np.ndarray:
        size = np.maximum(np.abs(parameters), 1e-300)
        return np.where(self.signed, parameters, np.log(np.where(self.signed, 1.0, size)))

    def logarithmic(self, parameters: np.ndarray, which: np.ndarray) -> Problem:
        """The same problem, with signed parameters by their logarithms and the signs that they have here ([B, p]).

        In A*x**b the best A moves exponentially with b: a straight line for log A, a bent valley for A.
        """
        signs = np.where(parameters < 0, -1.0, 1.0)
        return replace(self, signed=self.signed & ~which, signs=np.where(which, signs, self.signs))

    def residual(self, theta: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        natural = self.natural(theta, self.signs[index] if self.signs.ndim == 2 else self.signs)
        values, slopes = self.law.evaluate(natural, self.data)
        with np.errstate(all="ignore"):
            slopes = slopes * np.where(self.signed, 1.0, natural)[:, None, :]
            if self.log_scale:
                return np.log(values) - np.log(self.y), slopes / values[:, :, None]
            return (values - self.y) / self.sd, slopes / self.sd[:, None]

    def rows(self, keep: np.ndarray) -> Problem:
        return replace(
            self, data={k: v[keep] for k, v in self.data.items()}, y=self.y[keep], sd=self.sd[keep], row=self.row[keep]
        )

    @property
    def exponent(self) -> np.ndarray:
        return np.array([p in self.law.exponents for p in self.law.parameters])

    @property
    def largest_step(self) -> np.ndarray:
        """Logarithms and exponents move by at most 2 per step; signed coefficients are free."""
        return np.where(self.signed & ~self.exponent, np.inf, 2.0)


def fit_law(
    table: Table | pd.DataFrame,
    text: str,
    target: str,
    *,
    cluster: str | None = None,
    signed: Collection[str] = (),
    bootstraps: int = BOOTSTRAPS,
    beside: bool = False,
) -> FitResult:
    """Fit a law to a table.

    Args:
        text: for example "E + A*params**-alpha"; names that are not columns are parameters.
        target: the column to explain. Log residuals where it is positive throughout, else the linear scale.
        cluster: column whose values are resampled together (seed); rows if None.
        signed: parameters that may be negative; all others are positive.
        beside: a fit made only to compare another with: without profile intervals and held-out error.

    Raises:
        InputError: unknown column, text or gaps in a column used, or a law outside the grammar.
    """
    table = table if isinstance(table, Table) else Table(table)
    problem, labels = prepare(table, text, target, cluster, signed)
    law, n, p = problem.law, len(problem.y), len(problem.law.parameters)
    if n <= p:
        raise InputError(f"{table.path}: {n} rows cannot determine {p} parameters; add rows or simplify the law")
    found = _optimise(problem, table.path)
    theta, loss, objective, agreeing = found.theta, found.loss, found.objective, len(found.agreeing)
    clusters = int(labels.max()) + 1
    situation = _situation(problem, found)
    identified = identify(situation)
    draws = _bootstrap(problem, theta, loss, labels, clusters, bootstraps)
    natural, drawn = problem.natural(theta), problem.natural(draws)
    # A signed coefficient that no draw brings near zero is one of known sign: its logarithm is the better coordinate.
    known = problem.signed & ~problem.exponent & (drawn * natural > 0).all(axis=0)
    found_problem, problem = problem, problem.logarithmic(natural, known)
    theta, draws = problem.internal(natural), problem.internal(drawn)
    loose = {law.parameters[k] for k in identified.undetermined}
    intervals = _known(_intervals(problem, theta, draws, clusters), loose)
    independent = clusters == n and n <= LARGE
    profiles = dict.fromkeys(law.parameters, UNDEFINED)
    if independent and len(draws) and not beside:
        ends = profile_intervals(problem.residual, theta, loss, draws, n, problem.largest_step)
        profiles = _known(_named(problem, *ends), loose)
    determined = {name: name not in loose for name in law.parameters}
    estimates = dict(zip(law.parameters, natural.tolist(), strict=True))
    r, jacobian = (a[0] for a in problem.residual(theta[None, :], np.zeros(1, dtype=int)))
    holdout = float("nan") if beside else _holdout(problem, table.path)
    predictor = Predictor(
        law, target, problem.log_scale, natural, drawn, _sizes(r, jacobian), n - p, clusters,
        {c: (float(x.min()), float(x.max())) for c, x in problem.data.items()},
        # Null directions are of the optimiser's coordinates; a prediction moves with the law's own parameters.
        identified.directions * np.where(found_problem.signed, 1.0, natural), situation.sigma,
        _deviation_law(problem), holdout,
    )  # fmt: skip
    notes = table.remarks + _notes(
        problem, len(found.agreeing), natural, drawn, identified, intervals, profiles, clusters
    )
    return FitResult(
        law, target, n, clusters, estimates, intervals, profiles, objective, agreeing, holdout, determined, drawn, r,
        labels, problem.log_scale, predictor, notes, law.value(natural, problem.data),
    )  # fmt: skip


def _sizes(residuals: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Sorted sizes of the residuals, as large as those of rows that the fit has not seen: r / sqrt(1 - leverage)."""
    u, values, _ = np.linalg.svd(np.nan_to_num(jacobian), full_matrices=False)
    leverage = np.sum(np.square(u[:, values > 1e-9 * values.max(initial=0.0)]), axis=1)
    sizes = np.sort(np.abs(residuals) / np.sqrt(np.maximum(1.0 - leverage, 1.0 / len(residuals))))
    if len(sizes) <= MOST_RESIDUALS:
        return sizes
    return np.quantile(sizes, (np.arange(MOST_RESIDUALS) + 0.5) / MOST_RESIDUALS)


def _deviation_law(problem: Problem) -> np.ndarray:
    """Coefficients of ln sd on (1, ln columns), which `_row_deviation` made of them; of a constant where it is one."""
    log = np.log(problem.sd)
    if problem.log_scale:
        return np.empty(0)
    if not np.ptp(log):
        return log[:1]
    design = np.column_stack([np.ones(len(log)), *(np.log(x) for x in problem.data.values())])
    return np.linalg.lstsq(design, log, rcond=None)[0]


def law_of(table: Table, text: str, target: str, cluster: str | None) -> Law:
    """The law that a text means on a table.

    Raises:
        InputError: a column is missing, or the text is no law.
    """
    table.require(target, "target")
    table.require(cluster, "cluster")
    columns = [str(c) for c in table.frame.columns]
    try:
        constant = [c for c in columns if table.frame[c].nunique() <= 1]
        return parse_law(text, columns, target=target, constant=constant)
    except LawError as error:
        raise InputError(str(error)) from None


def prepare(
    table: Table, text: str, target: str, cluster: str | None, signed: Collection[str]
) -> tuple[Problem, np.ndarray]:
    """A law on a table (arguments as of `fit_law`), and the number of each row's cluster [n].

    Raises:
        InputError: as of `fit_law`.
    """
    law = law_of(table, text, target, cluster)
    unknown = sorted(set(signed) - set(law.parameters))
    if unknown:
        raise InputError(
            f"--signed {unknown[0]}: not a parameter of the law; parameters are {', '.join(law.parameters)}"
        )
    frame = table.frame
    numbers = table.numbers([*law.columns, target])
    data = {c: numbers[c].to_numpy() for c in law.columns}
    y = numbers[target].to_numpy()
    log_scale = bool((y > 0).all())
    if not np.any(y):
        raise InputError(f"{table.path}: column {target}: every value is zero; there is nothing to fit")
    flags = np.array([name in signed for name in law.parameters])
    sd = np.ones(len(y)) if log_scale else _row_deviation(data, y)
    labels = np.arange(len(y))
    if cluster is not None:
        if frame[cluster].isna().any():
            row = frame.index[frame[cluster].isna().to_numpy()][0]
            raise InputError(f"{table.path}: column {cluster}, row {row}: empty; every row needs its cluster")
        labels = np.unique(frame[cluster].astype(str).to_numpy(), return_inverse=True)[1]
    return Problem(law, data, y, flags, log_scale, sd, frame.index.to_numpy(), np.ones(len(flags))), labels


def _row_deviation(data: dict[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Standard deviation of every row from rows with equal columns, smoothed; constant without replicates."""
    frame = pd.DataFrame({**data, "y": y})
    groups = frame.groupby(list(data), sort=True)["y"]
    mean, sd = groups.mean(), groups.std()
    levels = mean.index.to_frame(index=False).to_numpy(dtype=np.float64)
    if not np.isfinite(sd).any() or (levels <= 0).any():
        return np.full(len(y), float(np.std(y)) or 1.0)
    design = np.column_stack([np.ones(len(levels)), np.log(levels)])
    smooth = smooth_deviation(design, mean.to_numpy(), sd.to_numpy())
    return smooth[groups.ngroup().to_numpy()]


@dataclass(frozen=True)
class _Fitted:
    """The best optimum, its loss, and the optima of the other starts that agree with it."""

    theta: np.ndarray
    objective: float
    loss: Loss
    agreeing: np.ndarray


def _optimise(problem: Problem, path: str, rounds: int = ROUNDS) -> _Fitted:
    """Screen many starts by least squares (on at most 2,000 rows), polish the best by iterated Huber on all.

    Where one start alone ends at the best objective, there are more starts.
    """
    n, limit = len(problem.y), problem.largest_step
    rng = generator(5)
    sample = problem if n <= 2000 else problem.rows(np.sort(rng.choice(n, 2000, replace=False)))
    pool = np.empty((0, len(problem.law.parameters)))
    for _ in range(rounds):
        starts = starting_points(sample, rng)
        if not len(pool):
            _refuse_undefined(sample, starts, path)
        screened = minimise(sample.residual, starts, iterations=60, ftol=1e-8, largest_step=limit)
        order = np.argsort(screened.objective, kind="stable")[:POLISHED]
        first = descend(problem, screened.theta[order])
        optimum = (
            first if not len(pool) else minimise(problem.residual, np.concatenate([pool, first.theta]), iterations=0)
        )
        # Starts that ended far above the best are of no more use.
        near = optimum.objective <= WORSE * optimum.objective.min()
        optimum = Optimum(optimum.theta[near], optimum.objective[near])
        for _ in range(5):
            r = problem.residual(optimum.theta[[optimum.best]], np.zeros(1, dtype=int))[0][0]
            # A perfect fit has no scale; any delta above rounding will do.
            delta = max(HUBER * robust_scale(r), 1e-12)
            optimum = descend(problem, optimum.theta, loss=huber(delta), iterations=100)
        theta, objective = optimum.theta.copy(), optimum.objective.copy()
        which = problem.signed & ~problem.exponent
        for k in np.argsort(objective, kind="stable")[:FINISHED]:
            theta[k], objective[k] = polished(problem, theta[k], delta, which)
        best = int(np.argmin(objective))
        for _ in range(REPEATS):
            before = objective[best]
            theta[best], objective[best] = polished(problem, theta[best], delta, which)
            if objective[best] >= (1.0 - 1e-9) * before:
                break
        agree = objective <= objective[best] + AGREEMENT * max(abs(objective[best]), 1e-12)
        if agree.sum() > 1:
            break
        pool = theta[np.argsort(objective, kind="stable")[:POLISHED]]
    return _Fitted(theta[best], float(objective[best]), huber(delta), theta[agree])


def polished(problem: Problem, theta: np.ndarray, delta: float, which: np.ndarray) -> tuple[np.ndarray, float]:
    """`polish` with the parameters `which` by their logarithms."""
    natural = problem.natural(theta)
    other = problem.logarithmic(natural, which)
    end, objective = polish(other.residual, other.internal(natural), delta)
    return problem.internal(other.natural(end)), objective


def _refuse_undefined(problem: Problem, starts: np.ndarray, path: str) -> None:
    """Refuse a law that has no value on some rows, whatever its parameters; they are named and counted."""
    first, _ = problem.residual(starts, np.arange(len(starts)))
    finite = np.isfinite(first)
    if finite.all(axis=1).any():
        return
    never = ~finite.any(axis=0)
    bad = np.flatnonzero(never) if never.any() else np.array([int(np.argmin(finite.mean(axis=0)))])
    named = next((f"column {c}, " for c, x in problem.data.items() if x[bad[0]] <= 0), "")
    many = f" (and in {len(bad) - 1} more rows)" if len(bad) > 1 else ""
    raise InputError(
        f"{path}: {named}row {problem.row[bad[0]]}: the law has no finite positive value there{many}; logarithms and "
        "powers need positive arguments: remove these rows, or guard the argument with max(..., 0) or + 1"
    )


def descend(
    problem: Problem,
    start: np.ndarray,
    *,
    loss: Loss = SQUARES,
    weights: np.ndarray | None = None,
    iterations: int = 300,
    ftol: float = 1e-12,
) -> Optimum:
    """`minimise` from internal starts [B, p]; then once more with signed coefficients by their logarithms."""
    limit = problem.largest_step
    found = minimise(
        problem.residual, start, loss=loss, weights=weights, iterations=iterations, ftol=ftol, largest_step=limit
    )
    which = problem.signed & ~problem.exponent
    if not which.any():
        return found
    natural = problem.natural(found.theta)
    other = problem.logarithmic(natural, which)
    again = minimise(
        other.residual, other.internal(natural), loss=loss, weights=weights, iterations=iterations, ftol=ftol,
        largest_step=other.largest_step,
    )  # fmt: skip
    better = again.objective < found.objective
    theta = np.where(better[:, None], problem.internal(other.natural(again.theta)), found.theta)
    return Optimum(theta, np.where(better, again.objective, found.objective))


def starting_points(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """[STARTS, p] internal starting points: random exponents; coefficients by least squares where the law is linear."""
    law = problem.law
    exponent = problem.exponent
    p, typical = len(law.parameters), float(np.median(np.abs(problem.y[problem.y != 0])))
    # Powers lie between .05 and 2; rates inside an exponential may be far smaller.
    power = np.exp(rng.uniform(np.log(0.05), np.log(2.0), (STARTS, p)))
    power[1::2] = 10.0 ** rng.uniform(-4.0, 1.0, (STARTS // 2, p))
    sign = np.where(problem.signed, rng.choice([-1.0, 1.0], (STARTS, p)), 1.0)
    coefficient = typical * 10.0 ** rng.uniform(-3.0, 3.0, (STARTS, p))
    natural = sign * np.where(exponent, power, coefficient)
    linear = _linear(problem, natural)
    if 0 < len(linear) <= 6:
        unit = natural.copy()
        unit[:, linear] = 0.0
        # What is left without these parameters, and a column for each.
        rest, slopes = law.evaluate(unit, problem.data)
        columns = slopes[:, :, linear]
        weight = 1.0 / problem.y if problem.log_scale else 1.0 / problem.sd
        # Overflowing columns belong to absurd exponents; their starts keep random coefficients.
        usable = np.isfinite(columns).all(axis=(1, 2)) & (np.abs(columns).max(axis=(1, 2)) < 1e100)
        usable &= np.isfinite(rest).all(axis=1) & (np.abs(rest).max(axis=1) < 1e100)
        scale = np.maximum(np.abs(columns[usable]).max(axis=1), 1e-300)
        weighted = columns[usable] * weight[None, :, None] / scale[:, None, :]
        right = (problem.y - rest[usable]) * weight
        if problem.signed[linear].any():
            normal = np.matmul(weighted.transpose(0, 2, 1), weighted) + 1e-12 * np.eye(len(linear))
            solved = solve(normal, np.einsum("bnk,bn->bk", weighted, right))
        else:
            solved, _ = nonnegative_least_squares(weighted, right)
        floor = 1e-6 * typical
        solved = np.where(problem.signed[linear], solved, np.maximum(solved, floor)) / scale
        natural[np.ix_(np.flatnonzero(usable), linear)] = solved
    return problem.internal(natural)


def _linear(problem: Problem, natural: np.ndarray) -> np.ndarray:
    """Indices of parameters in which the law is jointly linear (up to an offset), given the others.

    Their slopes do not change when they change, at eight random points.
    """
    law = problem.law
    a, b = natural[:8], natural[8:16]
    few = {c: x[:: max(1, len(x) // 50)] for c, x in problem.data.items()}
    chosen: list[int] = []
    for k, name in enumerate(law.parameters):
        if name in law.exponents:
            continue
        trial = [*chosen, k]
        moved = a.copy()
        moved[:, trial] = b[:, trial]
        here, there = law.evaluate(a, few)[1][:, :, trial], law.evaluate(moved, few)[1][:, :, trial]
        finite = np.isfinite(here) & np.isfinite(there)
        if finite.any() and np.allclose(here[finite], there[finite], rtol=1e-9, atol=0.0):
            chosen = trial
    return np.array(chosen, dtype=int)


def _bootstrap(
    problem: Problem, theta: np.ndarray, loss: Loss, labels: np.ndarray, clusters: int, bootstraps: int
) -> np.ndarray:
    """[B, p] internal parameters refitted with every cluster counted as often as it was drawn."""
    n, p = len(problem.y), len(theta)
    rng = generator(6)
    if clusters < 2 or not bootstraps:
        return np.empty((0, p))
    r, jacobian = (a[0] for a in problem.residual(theta[None, :], np.zeros(1, dtype=int)))
    weight = loss.weight(r)
    if n > LARGE:
        scores = np.zeros((clusters, p))
        np.add.at(scores, labels, jacobian * (weight * r)[:, None])
        hessian = (jacobian * weight[:, None]).T @ jacobian
        counts = [np.bincount(rng.integers(0, clusters, clusters), minlength=clusters) for _ in range(bootstraps)]
        return theta - np.linalg.lstsq(hessian, (np.array(counts) @ scores).T, rcond=None)[0].T
    chunk = max(1, int(4e6 / (n * p)))
    fitted = []
    for first in range(0, bootstraps, chunk):
        size = min(chunk, bootstraps - first)
        weights = cluster_weights(clusters, size, rng)[:, labels]
        start = np.repeat(theta[None, :], size, axis=0)
        fitted.append(descend(problem, start, loss=loss, weights=weights, iterations=100, ftol=1e-9).theta)
    return np.concatenate(fitted)


def _situation(problem: Problem, found: _Fitted) -> Situation:
    """The optimum as `identify` needs it."""

    def slopes(theta: np.ndarray, data: dict[str, np.ndarray]) -> np.ndarray:
        n = len(next(iter(data.values())))
        # Only the slopes are used: the target's values do not enter them, and its deviation is that of a typical row.
        sd = problem.sd if data is problem.data else np.full(n, float(np.median(problem.sd)))
        here = replace(problem, data=data, y=np.ones(n), sd=sd, row=np.arange(n))
        return here.residual(theta[None, :], np.zeros(1, dtype=int))[1][0]

    r = problem.residual(found.theta[None, :], np.zeros(1, dtype=int))[0][0]
    size = np.ones(len(r)) if problem.log_scale else problem.y / problem.sd
    # Exact data have no noise; what they determine is limited by rounding, and by the optimiser's tolerance.
    sigma = max(robust_scale(r), 1e-7 * float(np.sqrt(np.mean(size * size))))
    law = problem.law
    return Situation(
        law.parameters, found.theta, problem.natural(found.theta), found.agreeing, problem.signed,
        problem.exponent, slopes, found.loss.weight(r), sigma, size,
        problem.data,
    )  # fmt: skip


def _known(intervals: dict[str, Interval], loose: Collection[str]) -> dict[str, Interval]:
    """Intervals without those of parameters that the table does not determine."""
    return {name: UNDEFINED if name in loose else interval for name, interval in intervals.items()}


def _intervals(problem: Problem, theta: np.ndarray, draws: np.ndarray, clusters: int) -> dict[str, Interval]:
    """Percentile intervals, stretched about the estimate by the small-sample factor and t_{S-1} over the normal.

    For many clusters these are percentile intervals (a coefficient near zero has a skew distribution, and they keep
    it); for few they widen as the t interval does.
    """
    if len(draws) < FEWEST_DRAWS:
        return dict.fromkeys(problem.law.parameters, UNDEFINED)
    return _named(problem, *stretched(theta, draws, clusters))


def stretched(
    estimate: np.ndarray, draws: np.ndarray, clusters: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of `level` percentile intervals of draws [B, ...] about an estimate [...], stretched for few clusters."""
    tail = 0.5 - level / 2
    stretch = small_sample_factor(clusters) * stats.t.ppf(1 - tail, clusters - 1) / stats.norm.ppf(1 - tail)
    # The method whose expected rank is unbiased: with few draws the usual one is too narrow.
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0, method="weibull")
    below, above = np.maximum(estimate - low, 0.0), np.maximum(high - estimate, 0.0)
    return estimate - stretch * below, estimate + stretch * above


def _named(problem: Problem, low: np.ndarray, high: np.ndarray) -> dict[str, Interval]:
    """Intervals by parameter, from limits of the internal parameters."""
    ends = zip(problem.law.parameters, problem.natural(low), problem.natural(high), strict=True)
    return {name: Interval(float(min(a, b)), float(max(a, b))) for name, a, b in ends}


def _holdout(problem: Problem, path: str) -> float:
    """Root mean square log error on the largest half-decade of the widest column, fitted without those rows."""
    spans = {c: np.ptp(np.log(x)) for c, x in problem.data.items() if (x > 0).all()}
    if not spans or not problem.log_scale:
        return float("nan")
    widest = max(spans, key=lambda c: float(spans[c]))
    out = held_out(problem.data[widest])
    if (~out).sum() <= len(problem.law.parameters) or out.all():
        return float("nan")
    inside = problem.rows(~out)
    outside = problem.rows(out)
    r = outside.residual(_optimise(inside, path, rounds=1).theta[None, :], np.zeros(1, dtype=int))[0][0]
    return float(np.sqrt(np.mean(r * r)))


def _notes(
    problem: Problem,
    agreeing: int,
    estimate: np.ndarray,
    drawn: np.ndarray,
    identified: Identification,
    intervals: Mapping[str, Interval],
    profiles: Mapping[str, Interval],
    clusters: int,
) -> tuple[str, ...]:
    law = problem.law
    notes = [f"columns: {', '.join(law.columns)}; parameters: {', '.join(law.parameters)}"]
    if not problem.log_scale:
        notes.append("the target is not positive throughout: fitted on the linear scale")
    for group in identified.groups:
        said = f"not determined by this table: {', '.join(law.parameters[k] for k in group.members)}"
        for combination in group.combinations:
            value = combination.value(estimate)
            said += f"; {combination.text} = {value:.4g} is"
            if len(drawn) >= FEWEST_DRAWS:
                low, high = stretched(value, combination.value(drawn), clusters)
                said += f" ({low:.4g} to {high:.4g})"
        notes.append(f"{said}. What would determine them: {group.why}")
    notes += identified.boundary
    if agreeing < 5:
        notes.append(f"only {agreeing} starts agree on the optimum: there may be a better one")
    if len(drawn) < FEWEST_DRAWS:
        notes.append(
            "no intervals: one cluster cannot be resampled"
            if clusters < 2
            else f"no intervals: {len(drawn)} bootstrap draws have no 2.5 % tail; take at least {FEWEST_DRAWS}"
        )
    elif clusters < 5:
        notes.append(f"{clusters} clusters: intervals from fewer than 5 are unreliable")
    for name in law.parameters:
        a, b = intervals[name].width, profiles[name].width
        if np.isfinite(a) and np.isfinite(b) and abs(a - b) > 0.25 * min(a, b):
            notes.append(
                f"{name}: {DISAGREE} (bootstrap {intervals[name].low:.4g} to "
                f"{intervals[name].high:.4g}, profile {profiles[name].low:.4g} to {profiles[name].high:.4g}); "
                "trust the wider"
            )
    return tuple(notes)
