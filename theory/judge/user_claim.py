"""A claim of one's own about one's own columns: the entry points behind `theory test` and `theory check --claims`.

A claim is a law, what it says about the law's parameters, and how that is meant:

    target: loss   law: "E + A*tokens**-b"   claim: {"b": 0.34}   bound: upper

Where the law is a product of powers and the claim is about their exponents, the cells, gates and rules of the built-in
rates judge it (`theory.judge.rates`). Any other law is fitted (`theory.laws.user_law`), once more with an
exponent that changes in the middle of its range, once without the largest half-decade, and once with a constant added;
the same rules decide from these fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from theory.errors import OptionError
from theory.judge import gates, scrutiny
from theory.judge.gates import FAILED, FIRST, SECOND, Gate
from theory.judge.intervals import Interval, t_interval
from theory.judge.model_selection import OFFSETS, POWER, LawFit, held_out
from theory.judge.rates import Coordinate, RateResult, exponent_of, judge_rates
from theory.judge.rules import Limits
from theory.judge.verdicts import NOT_EVALUATED, REFUTED, as_equality, combine
from theory.judge.window import UNKNOWN, Estimate, Window, near_middle
from theory.laws.parser import Law, LawError, apply_to, parse_formula
from theory.laws.user_law import DISAGREE, FitResult, fit_law, law_of, stretched
from theory.report import FREE_CONSTANT, Bound, ClaimReport, Exponent, Report, undefined_exponent
from theory.settings import BOOTSTRAPS, OWN_MARGIN
from theory.tables import InputError, Table, numeric_column

#: What the claim of `theory test` is called, whose errors name options.
COMMAND = "test"
UPPER, LOWER, EQUAL = "upper", "lower", "equal"
BOUNDS = (UPPER, LOWER, EQUAL)
#: Along it a law is no extrapolation, and nine tenths of a decade are enough, as in the claims about the rank.
SHORT_COLUMNS = frozenset({"rank"})
#: How far beyond the table a parameter's effect is read off, to know which side of a bound it is on.
FAR = (1e3, 10.0, 1.0)
#: The law with a constant added: no claim about decay is CONSISTENT where this describes the table better.
OFFSET = "offset_"
#: The change of an exponent beyond the middle of its range, and the column that carries it.
BEND, SHARE = "bend_", "share_"
BEND_DRAWS = 200  # at most, of the fit that shows it


@dataclass(frozen=True)
class LawClaim:
    """A claim about the parameters of a law.

    Attributes:
        name: by which the report knows it.
        target: the column that the law describes. law: see `theory.laws.parser`.
        claimed: by expression in the law's parameters, the value that it is said to have: a number, or another
            expression ({"a": "b"} says that a and b are equal).
        bound: "upper": the target is at most the law's, it falls as fast as claimed or faster; "lower": at least;
            "equal": both.
        margin: values closer than this to the claimed one count as equal.
        cluster: column whose rows share noise, such as the seed; None: every row is a run of its own.
        signed: parameters that may be negative. where: conditions that select rows.
        statement, source: in words, and where it was made.
    """

    name: str
    target: str
    law: str
    claimed: Mapping[str, float | str]
    bound: str = EQUAL
    margin: float = OWN_MARGIN
    cluster: str | None = None
    signed: Sequence[str] = ()
    where: Sequence[str] = ()
    statement: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.bound not in BOUNDS:
            raise OptionError("bound", f"{self.bound}: choose one of {', '.join(BOUNDS)}")
        if not (np.isfinite(self.margin) and self.margin > 0):
            raise OptionError("margin", f"{self.margin:g}: must be a number above 0")
        if not self.claimed:
            raise OptionError("claim", "nothing is claimed; write for example b=0.34")


@dataclass(frozen=True)
class Drawn(Estimate):
    """An estimate whose interval is read off its bootstrap draws, skew as they are."""

    draws: np.ndarray = field(default_factory=lambda: np.empty(0))

    def interval(self, level: float) -> Interval:
        low, high = stretched(np.array(self.value), self.draws, int(self.clusters), level)
        return Interval(float(low), float(high))


@dataclass(frozen=True)
class Quantity:
    """An expression in the parameters of a law, and the number that it is claimed to be.

    Attributes:
        text: as written. claimed: the number. parameters: those that occur in it.
    """

    text: str
    claimed: float
    parameters: tuple[str, ...]
    expression: Law

    def of(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The expression [...] of parameter values [...]."""
        shape = np.shape(next(iter(values.values())))
        data = {c: np.ravel(values[c] + np.zeros(shape)) for c in self.expression.columns}
        return self.expression.value(np.ones(0), data).reshape(shape)


def quantity_of(text: str, value: float | str, law: Law) -> Quantity:
    """Read one claim, such as "b" = 0.34, "a/(a+b)" = 0.5 or "a" = "b" (which is a - b = 0).

    Raises:
        InputError: a name in it is no parameter of the law.
    """
    claimed = 0.0
    try:
        claimed = float(value)
    except ValueError:
        number = _expression(str(value), law)
        if not number.columns:
            claimed = float(number.value(np.ones(0), {})[0])
        else:
            text = f"{text} - ({value})" if " " in str(value).strip() or _compound(str(value)) else f"{text} - {value}"
    expression = _expression(text, law)
    named = tuple(p for p in law.parameters if p in expression.columns)
    if not named:
        raise OptionError("claim", f"{text}: names no parameter of the law; its parameters are {_listed(law)}")
    if not np.isfinite(claimed):
        raise OptionError("claim", f"{text}={value}: not a finite number")
    return Quantity(text, claimed, named, expression)


def _compound(text: str) -> bool:
    return any(sign in text for sign in "+-*/^")


def _listed(law: Law) -> str:
    return ", ".join(law.parameters)


def _expression(text: str, law: Law) -> Law:
    """An expression of parameters as a law whose columns they are."""
    try:
        return parse_formula(text, law.parameters, "parameter of the law")
    except LawError as error:
        said = error.rest
        if "not an expression" in said:
            said = "not an expression; write for example b=0.34 or a/(a+b)=0.5"
        elif "no parameter" in said:
            said = f"{said}; its parameters are {_listed(law)}"
        raise OptionError("claim", f"{text}: {said}") from None


def claimed_of(text: str) -> tuple[str, str]:
    """The two sides of `b=0.34`.

    Raises:
        InputError: there is no single =.
    """
    left, _, right = text.partition("=")
    if not left.strip() or not right.strip() or "=" in right:
        raise OptionError("claim", f"{text}: write EXPRESSION=VALUE, such as b=0.34 or a/(a+b)=0.5")
    return left.strip(), right.strip()


def check_claims(table: Table, claims: Sequence[LawClaim], *, bootstraps: int = BOOTSTRAPS) -> Report:
    """Judge claims of one's own on one table.

    Raises:
        InputError: a law, a claim or the table cannot be used; the message names the claim where there are several.
    """
    reports, skipped = {}, list[str]()
    for claim in claims:
        if claim.name != COMMAND and claim.target not in table.names.columns:
            skipped.append(f"{claim.name} is not judged: the table lacks its target {claim.target}")
            continue
        try:
            with np.errstate(all="ignore"):
                reports[claim.name] = judge_claim(table, claim, bootstraps=bootstraps)
        except InputError as error:
            if claim.name == COMMAND:
                raise
            raise InputError(f"claim {claim.name}: {error}") from None
    if not reports:
        raise InputError(f"{table.path}: no claim can be judged: {'; '.join(skipped)}")
    margins = {c.margin for c in claims}
    margin = margins.pop() if len(margins) == 1 else float("nan")
    return Report(table.path, table.sha256, len(table.frame), margin, reports, (*table.remarks, *skipped))


def judge_claim(table: Table, claim: LawClaim, *, bootstraps: int = BOOTSTRAPS) -> ClaimReport:
    """Judge a claim of one's own.

    Args:
        table: the measurements, one row per run. bootstraps: draws of every fit.

    Raises:
        InputError: the law, the claim or the table cannot be used.
    """
    if claim.where:
        table = table.where(claim.where)
    law = law_of(table, claim.law, claim.target, claim.cluster)
    quantities = [quantity_of(text, value, law) for text, value in claim.claimed.items()]
    powers = pure_powers(law) or {}
    if claim.cluster is not None and all(q.text in powers for q in quantities):
        return _judge_rates(table, claim, quantities, powers, law)
    return _judge_fits(table, claim, quantities, law, bootstraps)


# --- laws that are products of powers --------------------------------------------------------------------------------


def pure_powers(law: Law) -> dict[str, tuple[str, int]] | None:
    """By parameter that is the exponent of a column: that column, and the sign before the parameter.

    Returns:
        None where the law is anything but free constants times powers of columns, each column once.
    """
    found: dict[str, tuple[str, int]] = {}
    free: list[str] = []

    def join(what: str, taken: list[_Part | None]) -> _Part | None:
        parts = [part for part in taken if part is not None]
        if len(parts) < len(taken):
            return None
        first, last = parts[0], parts[-1]
        if what == "-" and len(parts) == 1 and first.kind == "parameter":
            return first._replace(sign=-first.sign)
        if what == "**" and first.kind == "column" and last.kind == "parameter":
            if last.name in found or first.name in {column for column, _ in found.values()}:
                return None
            found[last.name] = (first.name, last.sign)
            return _Part("power", last.name)
        if what != "*" and not (what == "/" and last.kind == "power"):
            return None
        if any(part.kind == "column" or part.sign < 0 for part in parts):
            return None
        if what == "/":
            column, sign = found[last.name]
            found[last.name] = (column, -sign)
        free.extend(part.name for part in parts if part.kind == "parameter")
        return _Part("factor")

    whole = law.fold(lambda kind, what: _Part(kind, str(what)), join)
    if whole is None or whole.kind not in ("factor", "power") or not free or set(free) & set(found) or not found:
        return None
    return found


class _Part(NamedTuple):
    """A part of a product: number, column, parameter, power or factor; its name, and the sign before a parameter."""

    kind: str
    name: str = ""
    sign: int = 1


def _judge_rates(
    table: Table, claim: LawClaim, quantities: Sequence[Quantity], powers: Mapping[str, tuple[str, int]], law: Law
) -> ClaimReport:
    """Judge exponents of a product of powers by cells, as the built-in rates; other columns of the law are strata."""
    frame = table.frame.assign(**table.numbers([*law.columns, claim.target]))
    scrutiny.refuse_mixtures(frame, table.path, claim.name)
    frame = frame.assign(seed=pd.factorize(frame[claim.cluster].astype(str), sort=True)[0].astype(float))
    if claim.cluster not in ("seed", None):
        frame = frame.drop(columns=claim.cluster)
    signs = {q.text: powers[q.text][1] for q in quantities}
    columns = {q.text: powers[q.text][0] for q in quantities}
    coordinates = [
        Coordinate(columns[q.text], signs[q.text] * q.claimed, columns[q.text] not in SHORT_COLUMNS) for q in quantities
    ]
    strata = [c for c in law.columns if c not in columns.values()]
    result = judge_rates(frame, claim.target, coordinates, claim.margin, strata=strata, path=table.path)
    exponents, floors = {}, list[str]()
    for q in quantities:
        column, sign = columns[q.text], signs[q.text]
        window, limit, doubts = result.windows[column], result.limits[column], result.doubts[column]
        if claim.bound == LOWER and window is not None:
            window, limit = turned(window), replace(limit, claimed=-limit.claimed)
            exponents[q.text] = in_units(exponent_of(window, limit, doubts), -sign)
        else:
            exponents[q.text] = in_units(result.exponents[column], sign)
        if window is not None and window.bent and window.offset is not None:
            floors.append(_floor(q, abs(window.offset.exponent)))
    return _report(claim, exponents, (*result.reasons, *floors), result.needed, result.cells.size, result.cells.seeds,
                   _rate_points(result, columns), result.rivals, columns[quantities[0].text])  # fmt: skip


def _rate_points(result: RateResult, columns: Mapping[str, str]) -> pd.DataFrame:
    return result.points.rename(columns={f"fitted_{c}": "fitted" for c in list(columns.values())[:1]})


def turned(window: Window) -> Window:
    """The window with every exponent's sign turned: of a lower bound the smaller exponents are the worse ones.

    Flattening is then no threat, and the last slope is all that is known of what follows.
    """

    def turn(e: Estimate) -> Estimate:
        if isinstance(e, Drawn):
            return replace(e, value=-e.value, draws=-e.draws)
        return replace(e, value=-e.value)

    whole, low, top, late, bend = (turn(e) for e in (window.whole, window.low, window.top, window.late, window.bend))
    rivals = tuple(replace(f, exponent=-f.exponent) for f in window.rivals)
    local = tuple((x, -slope, -high, -low_end) for x, slope, low_end, high in window.local)
    return replace(
        window, whole=whole, low=low, top=top, bend=bend, reach=late, early=UNKNOWN, late=UNKNOWN, rivals=rivals,
        local=local, wild=Interval(-window.wild.high, -window.wild.low),
    )  # fmt: skip


_NUMBERS = ("middle", "standard_error", "n_dagger", "extrapolation_error", "extrapolation_limit", "effective_seeds")


def in_units(exponent: Exponent, sign: int) -> Exponent:
    """The exponent in the claim's own parameter, of which it is `sign` times."""
    if sign > 0:
        return exponent

    def turn(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: turn(v) for k, v in value.items()}
        if isinstance(value, list):  # an interval
            return [None if v is None else -v for v in reversed(value)]
        return -value if isinstance(value, float) else value

    details = dict(exponent.details)
    for key in details.keys() - {*_NUMBERS, "local_slopes"}:
        details[key] = turn(details[key])
    if "local_slopes" in details:
        details["local_slopes"] = [[x, -slope, -high, -low] for x, slope, low, high in details["local_slopes"]]
    return replace(
        exponent, claimed=-exponent.claimed, estimate=-exponent.estimate, details=details,
        ci90=Interval(-exponent.ci90.high, -exponent.ci90.low), ci95=Interval(-exponent.ci95.high, -exponent.ci95.low),
    )  # fmt: skip


# --- any other law ---------------------------------------------------------------------------------------------------


def _judge_fits(
    table: Table, claim: LawClaim, quantities: Sequence[Quantity], law: Law, bootstraps: int
) -> ClaimReport:
    """Judge expressions of fitted parameters: over the whole table, over both halves, and beyond the largest part."""
    scrutiny.refuse_mixtures(table.frame, table.path, claim.name)
    signs = {q.text: _worse_side(table, law, q, claim.bound) for q in quantities}

    fits = _Fits(table, claim, law, bootstraps)
    whole, data = fits.whole, fits.data
    checks, exponents, reasons = {}, {}, list[str]()
    for q in quantities:
        columns = sorted(set().union(*(coordinates(law)[p] for p in q.parameters)))
        checks[q.text] = [*_fit_gates(whole, q, {c: data[c] for c in columns}, claim)]
        tier = gates.tier_of(checks[q.text])
        refute_level = 1 - 0.05 / len(quantities)
        sign = signs[q.text]
        limit = Limits(sign * q.claimed, claim.margin, refute_level, True, tier)
        if loose := [p for p in q.parameters if not whole.determined[p]]:
            exponents[q.text] = undefined_exponent(q.claimed)
            reasons.append(f"{q.text}: the table does not determine {', '.join(loose)}")
            continue
        window = _window(q, fits, columns, sign)
        exponents[q.text] = in_units(exponent_of(window, limit), sign)
        reasons += _explain(q, window, exponents[q.text], columns, sign, claim.margin)
    needed = [dict(run) for found in checks.values() for gate in found for run in gate.needed]
    of_claims = sorted(set().union(*(coordinates(law)[p] for q in quantities for p in q.parameters))) or law.columns
    along = max(of_claims, key=lambda c: len(np.unique(data[c])))
    asked = {p for q in quantities for p in q.parameters}
    notes = [n for n in whole.notes if not n.startswith("columns:")]
    remarks = [n for n in notes if DISAGREE not in n or n.split(":")[0] in asked]
    if claim.cluster is None:
        remarks.append("every row counts as a run of its own; where rows share a run, name it with --cluster")
    points = _fit_points(fits)
    reasons = [*gates.reasons(checks), *reasons, *remarks]
    return _report(claim, exponents, reasons, needed, len(points), whole.clusters, points, [], along)


@dataclass(frozen=True)
class _Fits:
    """A law on a table: the fit to all of it, and those that it is compared with, each made once.

    Attributes:
        bootstraps: draws of the fit to the whole table.
    """

    table: Table
    claim: LawClaim
    law: Law
    bootstraps: int

    def fit(
        self, rows: pd.DataFrame, text: str, signed: Sequence[str] = (), draws: int = 0, beside: bool = True
    ) -> FitResult:
        """A fit of a law to some rows."""
        return fit_law(
            replace(self.table, frame=rows), text, self.claim.target, cluster=self.claim.cluster,
            signed=[*self.claim.signed, *signed], bootstraps=draws, beside=beside,
        )  # fmt: skip

    @cached_property
    def numbers(self) -> pd.DataFrame:
        return self.table.numbers([*self.law.columns, self.claim.target])

    @cached_property
    def data(self) -> dict[str, np.ndarray]:
        """[n] by column of the law."""
        return {c: self.numbers[c].to_numpy() for c in self.law.columns}

    @property
    def measured(self) -> np.ndarray:
        """[n] the target."""
        return self.numbers[self.claim.target].to_numpy()

    @cached_property
    def whole(self) -> FitResult:
        return self.fit(self.table.frame, self.claim.law, draws=self.bootstraps, beside=False)

    @cached_property
    def beside_an_offset(self) -> FitResult | None:
        """The law with a free constant added; None where it has one already or the table cannot tell."""
        theta = np.array([[self.whole.estimates[p] for p in self.law.parameters]])
        slopes = self.law.evaluate(theta, self.data)[1][0]
        constant = np.ptp(slopes, axis=0) <= 1e-9 * np.maximum(np.abs(slopes).max(axis=0), 1e-300)
        if constant.any() or len(self.table.frame) <= slopes.shape[1] + 2:
            return None
        try:
            found = self.fit(self.table.frame, f"({self.law.text}) + {OFFSET}", [OFFSET], beside=False)
        except InputError:
            return None
        return found if all(found.determined.values()) else None

    @cached_property
    def _beyond(self) -> dict[str, tuple[float, float] | None]:
        return {}

    def beyond(self, column: str) -> tuple[float, float] | None:
        """Mean log residual of the largest half-decade of a column under the law fitted without it, and its distance in
        ln x; None where that cannot be held out."""
        if column not in self._beyond:
            self._beyond[column] = self._held_out(self.data[column])
        return self._beyond[column]

    def _held_out(self, x: np.ndarray) -> tuple[float, float] | None:
        out = held_out(x)
        if out.all() or not out.any() or (~out).sum() <= len(self.law.parameters):
            return None
        try:
            inside = self.fit(self.table.frame[~out], self.claim.law)
        except InputError:
            return None
        theta = np.array([inside.estimates[p] for p in inside.law.parameters])
        predicted = inside.law.value(theta, {c: v[out] for c, v in self.data.items()})
        measured = self.measured[out]
        with np.errstate(all="ignore"):
            ratio = np.log(measured / predicted) if self.whole.log_scale else np.log(measured.mean() / predicted.mean())
        distance = float(np.mean(np.log(x[out])) - np.mean(np.log(x[~out])))
        error = float(np.mean(ratio))
        return (error if np.isfinite(error) else float("inf")), distance


def coordinates(law: Law) -> dict[str, frozenset[str]]:
    """By parameter, the columns whose power (or exponential) it is an exponent of; empty for coefficients."""
    found: dict[str, frozenset[str]] = dict.fromkeys(law.parameters, frozenset())

    def leaf(kind: str, what: float | str) -> tuple[frozenset[str], frozenset[str]]:
        name = frozenset({str(what)})
        return (name if kind == "column" else frozenset(), name if kind == "parameter" else frozenset())

    def join(what: str, taken: list[tuple[frozenset[str], frozenset[str]]]) -> tuple[frozenset[str], frozenset[str]]:
        columns, parameters = (frozenset[str]().union(*(t[k] for t in taken)) for k in (0, 1))
        exponents = taken[1][1] if what == "**" else parameters if what == "exp" else ()
        for p in exponents:
            found[p] |= columns
        return columns, parameters

    law.fold(leaf, join)
    return found


def _worse_side(table: Table, law: Law, q: Quantity, bound: str) -> int:
    """+1 where a larger value of the quantity makes the bound harder to meet, else -1."""
    if bound == EQUAL:
        return 1
    if q.text not in law.parameters:
        raise OptionError("bound", f"{bound}: only a claim about one parameter has sides; for {q.text} use equal")
    index = law.parameters.index(q.text)
    columns = {c: numeric_column(table.frame[c], c, table.path).to_numpy() for c in law.columns}
    moved = coordinates(law)[q.text] or frozenset(law.columns)
    theta = np.full((1, len(law.parameters)), 0.3)
    for factor in FAR:
        far = {
            c: np.full(1, factor * max(float(np.nanmax(x)), 1.0) if c in moved else float(np.nanmedian(x)))
            for c, x in columns.items()
        }
        slope = law.evaluate(theta, far)[1][0, 0, index]
        if np.isfinite(slope) and slope != 0:
            side = 1 if slope > 0 else -1
            return side if bound == UPPER else -side
    raise OptionError("bound", f"{bound}: {q.text} moves the law to no side far out; use equal")


def _fit_gates(fit: FitResult, q: Quantity, data: Mapping[str, np.ndarray], claim: LawClaim) -> list[Gate]:
    """Range and levels of the columns that the quantity is about, and enough independent runs."""
    found = []
    for name, x in data.items():
        if not (x > 0).all():
            continue
        short = name in SHORT_COLUMNS
        least = gates.MIN_DECADES_RANK if short else gates.MIN_DECADES_SIZE
        found.append(gates.range_gate(name, x, least, least if short else gates.SECOND_TIER_DECADES))
        found.append(gates.levels_gate(name, x, gates.MIN_LEVELS_SIZE))
    free = fit.clusters if claim.cluster is not None else fit.clusters - len(fit.law.parameters)
    what = f"values of {claim.cluster}" if claim.cluster is not None else "rows more than parameters"
    if free < gates.MIN_SEEDS:
        tier = SECOND if free >= gates.SECOND_TIER_SEEDS else FAILED
        more = gates.MIN_SEEDS - free
        found.append(Gate("runs", tier, f"{max(free, 0)} {what} and {gates.MIN_SEEDS} are needed: add {more}",
                          ({"seeds": more},)))  # fmt: skip
    loose = [p for p in q.parameters if not fit.determined[p]]
    if loose:
        why = next((n.partition("What would determine them: ")[2] for n in fit.notes if loose[0] in n), "")
        found.append(
            Gate("determined", FAILED, f"the table does not determine {', '.join(loose)}: {why or 'see below'}")
        )
    return found or [Gate("fit", FIRST)]


def _estimate(q: Quantity, fit: FitResult, sign: int, moved: str | None = None) -> Drawn:
    """The quantity of a fit; of its upper half, where the exponent `moved` is another."""
    at = {p: np.array(fit.estimates[p]) for p in fit.law.parameters}
    drawn = dict(zip(fit.law.parameters, fit.draws.T, strict=True)) if len(fit.draws) else {}
    if moved is not None:
        at[moved] = at[moved] + at[BEND]
        drawn[moved] = drawn[moved] + drawn[BEND]
    value = float(q.of(at))
    draws = q.of(drawn) if drawn else np.full(2, np.nan)
    draws = draws[np.isfinite(draws)] if np.isfinite(draws).any() else np.full(2, np.nan)
    error = float(np.std(draws))
    return Drawn(sign * value, error, float(fit.clusters), sign * draws)


def _window(q: Quantity, fits: _Fits, columns: Sequence[str], sign: int) -> Window:
    """The evidence about one quantity in the form that the rules read: larger is worse."""
    whole, data, beside = fits.whole, fits.data, fits.beside_an_offset
    estimate = _estimate(q, whole, sign)
    spans = {c: float(np.ptp(np.log(data[c]))) for c in columns if (data[c] > 0).all()}
    extrapolation, largest = None, float("nan")
    if spans:
        widest = max(spans, key=lambda c: spans[c])
        largest = float(data[widest].max())
        extrapolation = fits.beyond(widest)
    low = top = estimate  # parts that do not differ are weaker evidence of the same number
    bend = Drawn(0.0, 0.0, estimate.clusters, np.zeros(2))
    parts = _parts(q, fits, sign)
    if parts is not None:
        bend = parts[2]
        if _bends(bend):
            low, top = parts[:2]
    rivals: tuple[LawFit, ...] = ()
    if beside is not None:
        plain, other = (_aicc(f) for f in (whole, beside))
        beside_value = _estimate(q, beside, sign).value
        rivals = (
            LawFit(POWER, estimate.value, 0.0, plain, whole.holdout_log_rmse),
            LawFit(OFFSETS[-1], beside_value, beside.estimates[OFFSET], other, beside.holdout_log_rmse),
        )
    interval = estimate.interval(0.95)
    return Window(
        estimate, low, top, UNKNOWN, UNKNOWN, top, bend, float("nan"), largest, 0.0, 0.0, 0.95, extrapolation,
        rivals, interval, (), whole.fitted,
    )  # fmt: skip


def _bends(bend: Estimate) -> bool:
    interval = bend.interval(0.95)
    return interval.low > 0 or interval.high < 0


def _parts(q: Quantity, fits: _Fits, sign: int) -> tuple[Drawn, Drawn, Drawn] | None:
    """The quantity in the lower and the upper half of the range, and their difference, where that is clearest.

    One exponent after the other is given another value beyond the middle of its range, x^-b max(x/m, 1)^-q, and the
    whole law is fitted anew with q: so the halves share every other parameter, as they do in the law.

    Returns:
        None where no exponent of the quantity has a range of its own, or the table cannot tell the halves apart.
    """
    found, law = [], fits.whole.law
    for p, base in bases(law, fits.data).items():
        if p not in q.parameters or not (base > 0).all():
            continue
        u = np.log(base)
        levels = np.unique(u)
        if len(levels) < 3:
            continue
        share = np.maximum(u - near_middle(levels), 0.0) / np.where(u == 0, 1e-9, u)
        # The exponent p + q share of x is p below the middle m, and x^(q share) = (x/m)^q above it.
        text = "`".join(
            piece if k % 2 else re.sub(rf"\b{re.escape(p)}\b", f"({p} + {BEND}*{SHARE})", piece)
            for k, piece in enumerate(law.text.split("`"))
        )
        try:
            draws = min(len(fits.whole.draws), BEND_DRAWS)
            bent = fits.fit(fits.table.frame.assign(**{SHARE: share}), text, [BEND], draws)
        except InputError:
            continue
        if len(bent.draws) < 2 or not all(bent.determined[name] for name in (*q.parameters, BEND)):
            continue
        low, top = _estimate(q, bent, sign), _estimate(q, bent, sign, moved=p)
        size = min(len(low.draws), len(top.draws))
        difference = top.draws[:size] - low.draws[:size]
        found.append((low, top, Drawn(top.value - low.value, float(np.std(difference)), low.clusters, difference)))
    return max(found, key=lambda part: abs(part[2].value) / max(part[2].standard_error, 1e-12), default=None)


def bases(law: Law, data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By parameter that occurs once, in the exponent of a base without parameters: that base [n]."""
    found: dict[str, np.ndarray] = {}
    seen: list[str] = []

    def leaf(kind: str, what: float | str) -> tuple[np.ndarray | None, frozenset[str]]:
        if kind == "parameter":
            seen.append(str(what))
            return None, frozenset({str(what)})
        return (data[str(what)] if kind == "column" else np.array(what, dtype=np.float64)), frozenset()

    def join(
        what: str, taken: list[tuple[np.ndarray | None, frozenset[str]]]
    ) -> tuple[np.ndarray | None, frozenset[str]]:
        values = [value for value, _ in taken if value is not None]
        if what == "**" and taken[0][0] is not None and np.ndim(taken[0][0]):
            found.update(dict.fromkeys(taken[1][1], taken[0][0]))
        parameters = frozenset[str]().union(*(t[1] for t in taken))
        return (apply_to(what, values) if len(values) == len(taken) else None), parameters

    law.fold(leaf, join)
    return {p: base for p, base in found.items() if seen.count(p) == 1}


def _aicc(fit: FitResult) -> float:
    n, k = fit.rows, len(fit.law.parameters) + 1
    spread = float(np.mean(np.square(fit.residuals)))
    return n * np.log(max(spread, 1e-300)) + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1)


def _floor(q: Quantity, beside: float) -> str:
    return f"{q.text}: a constant added to the law describes the table better; beside it {q.text} is {beside:.3g}"


def _explain(
    q: Quantity, window: Window, exponent: Exponent, columns: Sequence[str], sign: int, margin: float
) -> list[str]:
    found = []
    about = f" along {' and '.join(columns)}" if columns else ""
    if window.bent:
        first, last = sign * window.low.value, sign * window.top.value
        found.append(
            f"{q.text} is {first:.3g} in the lower half of the range and {last:.3g} in the upper half{about}: the law "
            "does not hold over the whole range"
        )
    if window.offset is not None:
        found.append(_floor(q, sign * window.offset.exponent))
    if window.extrapolation is None:
        found.append(f"{q.text}: the largest half-decade{about} cannot be held out to test the law beyond its rows")
    elif not window.extrapolates(margin):
        found.append(
            f"{q.text}: fitted without the largest half-decade{about} the law misses it by a factor of "
            f"{np.exp(window.extrapolation[0]):.3g}"
        )
    return found


# --- both ------------------------------------------------------------------------------------------------------------


def _report(
    claim: LawClaim, exponents: Mapping[str, Exponent], reasons: Sequence[str], needed: Sequence[Mapping[str, float]],
    cells: int, seeds: int, points: pd.DataFrame, rivals: list[dict[str, Any]], along: str,
) -> ClaimReport:  # fmt: skip
    if claim.bound == EQUAL:
        exponents = {name: replace(e, verdict=as_equality(e.verdict)) for name, e in exponents.items()}
    says = f"claimed: {claim.target} = {claim.law} with {', '.join(f'{k} = {v}' for k, v in claim.claimed.items())}"
    meant = {EQUAL: "as an equality", UPPER: "as an upper bound", LOWER: "as a lower bound"}[claim.bound]
    origin = [text for text in (claim.statement, claim.source) if text]
    refuted = any(e.verdict == REFUTED for e in exponents.values())
    remarks = [FREE_CONSTANT] if claim.bound != EQUAL and not refuted else []
    remarks += [
        f"{name}: the estimate is the claimed value with the opposite sign; the law already has a minus there: did you "
        f"mean {name}={-e.claimed:g}?"
        for name, e in exponents.items()
        if e.claimed and abs(e.estimate + e.claimed) <= claim.margin
    ]
    fields: dict[str, Any] = {
        "target": claim.target, "law": claim.law, "bound_kind": claim.bound, "margin": claim.margin, "along": along,
        "unit": "rows" if claim.cluster is None else "seeds",
        "needed": [dict(run) for run in needed], "laws": rivals,
    }  # fmt: skip
    said = f"{says}, {meant} (margin {claim.margin:g})"
    return ClaimReport(
        claim.name, combine([e.verdict for e in exponents.values()]), (said, *origin, *reasons, *remarks),
        exponents, Bound(NOT_EVALUATED), cells, seeds, fields, points,
    )  # fmt: skip


def _fit_points(fits: _Fits) -> pd.DataFrame:
    """Means by design point with 95 % intervals where they repeat, and the fitted law."""
    frame = pd.DataFrame({**fits.data, "_y": fits.measured, "fitted": fits.whole.fitted})
    groups = frame.groupby(list(fits.data), sort=True)
    mean, sd, count = groups["_y"].mean(), groups["_y"].std(), groups["_y"].size()
    points = groups["fitted"].mean().reset_index()
    half = np.array([
        t_interval(0.0, s / np.sqrt(n), n, 0.95).high if n > 1 else np.nan for s, n in zip(sd, count, strict=True)
    ])  # fmt: skip
    points["mean"], points["low"], points["high"] = mean.to_numpy(), mean.to_numpy() - half, mean.to_numpy() + half
    return points
