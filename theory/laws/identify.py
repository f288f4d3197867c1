"""Which parameters of a fitted law does the table determine, and what would determine the others?

Source: numerical rank of the Jacobian at the optimum by its singular values (Bates & Watts 1988, chapter 3), and the
agreement of optima from different starts. Parameters enter in the optimiser's coordinates (logarithms of positive
ones), so that one unit is a factor e, or the size of a signed parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from theory.judge.intervals import generator

#: A direction whose standard error exceeds this many units (a factor e each) is not determined by the noisy table.
UNITS = 10.0
#: Singular values below this share of the largest are rounding.
ROUNDING = 1e-9
#: Slopes are clipped here; their squares are still numbers.
LARGEST = 1e100
#: Components of a null direction below this are rounding.
COMPONENT = 1e-3
#: An exponent outside this range is at its boundary: the power is a constant, or a step.
EXPONENTS = (1e-4, 50.0)

#: Functions of two parameters, and their slopes by each.
Form = Callable[[Any, Any], Any]
FORMS: dict[str, tuple[Form, Form]] = {
    "*": (lambda a, b: a * b, lambda a, b: (b, a)),
    "+": (lambda a, b: a + b, lambda a, b: (1.0, 1.0)),
    "/": (lambda a, b: a / b, lambda a, b: (1.0 / b, -a / b**2)),
    "-": (lambda a, b: a - b, lambda a, b: (1.0, -1.0)),
}

#: Jacobian [n, p] of the residuals in the optimiser's coordinates at theta [p], on data by column.
Slopes = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Combination:
    """A simple function of two parameters that the table determines although it does not determine them.

    Attributes:
        text: such as "a*b". first, second: indices of the parameters. form: the function.
    """

    text: str
    first: int
    second: int
    form: Form

    def value(self, natural: np.ndarray) -> np.ndarray:
        """[...] of parameters [..., p] as the law has them."""
        return np.asarray(self.form(natural[..., self.first], natural[..., self.second]))


@dataclass(frozen=True)
class Group:
    """Parameters that can change together without changing the fit.

    Attributes:
        members: indices of the parameters. combinations: what is determined of them.
        why: the cause, and what would determine them.
    """

    members: tuple[int, ...]
    combinations: tuple[Combination, ...]
    why: str


@dataclass(frozen=True)
class Identification:
    """Attributes:
    groups: of undetermined parameters. boundary: remarks on exponents and coefficients at their boundary.
    directions: [k, p] null directions in the optimiser's coordinates, one standard error long (at most 1e6 units).
    """

    groups: tuple[Group, ...]
    boundary: tuple[str, ...]
    directions: np.ndarray

    @property
    def undetermined(self) -> frozenset[int]:
        return frozenset(k for group in self.groups for k in group.members)


@dataclass(frozen=True)
class Situation:
    """A fitted law as `identify` needs it.

    Attributes:
        names: of the p parameters. theta: [p] optimum, optimiser's coordinates. natural: [p] the same parameters as
            the law has them. agreeing: [k, p] optima of the starts that agree.
        signed, exponent: [p] whether a parameter may be negative; whether it occurs in an exponent.
        slopes: Jacobian of the residuals. weights: [n] of the rows (Huber). sigma: standard deviation of a residual.
        size: [n] change of a residual when the law's value doubles (the unit of a signed coefficient).
        data: by column used.
    """

    names: Sequence[str]
    theta: np.ndarray
    natural: np.ndarray
    agreeing: np.ndarray
    signed: np.ndarray
    exponent: np.ndarray
    slopes: Slopes
    weights: np.ndarray
    sigma: float
    size: np.ndarray
    data: dict[str, np.ndarray]


def identify(at: Situation) -> Identification:
    """Find null directions, name their parameters and say what would determine them."""
    with np.errstate(all="ignore"):  # slopes beyond floating point are clipped, where they matter
        return _identify(at)


def _identify(at: Situation) -> Identification:
    jacobian = np.clip(np.nan_to_num(at.slopes(at.theta, at.data)), -LARGEST, LARGEST) * np.sqrt(at.weights)[:, None]
    unit = _units(at, jacobian)
    directions, values, errors = _null(jacobian * unit / at.sigma)
    structural = _generic_null(at, dict.fromkeys(at.data))
    free = np.abs(structural).max(axis=0, initial=0.0) > COMPONENT
    loose = _touched(directions, values) | free
    tied = np.abs(directions.T @ directions) + np.abs(structural.T @ structural) > COMPONENT**2
    loose |= _starts_apart(at, unit, errors)
    groups: dict[str, Group] = {}
    for members in _groups(tied, loose):
        group = _explain(at, members, directions, unit, structural)
        if group.why in groups and not group.combinations:  # several terms, one reason
            members = tuple(sorted({*members, *groups[group.why].members}))
            group = Group(members, groups[group.why].combinations, group.why)
        groups[group.why if not group.combinations else str(members)] = group
    length = 1.0 / np.maximum(values, 1e-6)
    boundaries = _boundaries(at, jacobian, loose, free)
    return Identification(tuple(groups.values()), boundaries, directions * length[:, None] * unit)


def _units(at: Situation, jacobian: np.ndarray) -> np.ndarray:
    """[p] one unit of each coordinate: 1 for a logarithm; for a signed one its size, or for a coefficient the change
    that moves the law by its own value, if that is larger."""
    size = np.sqrt(np.mean(np.square(at.size)))
    effect = np.sqrt(np.mean(np.square(jacobian), axis=0))
    own = np.where(at.exponent, 1.0, size / np.maximum(effect, 1e-12 * max(size, 1e-300)))
    return np.where(at.signed, np.maximum(np.abs(at.theta), own), 1.0)


def _null(scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Null directions [k, p], orthonormal, their singular values [k], and standard errors [p] without them; of a
    Jacobian in units of noise."""
    p = scaled.shape[1]
    _, values, rows = np.linalg.svd(np.vstack([scaled, np.zeros((p, p))]), full_matrices=False)
    null = values < max(1.0 / UNITS, ROUNDING * values.max(initial=0.0))
    errors = np.sqrt(np.sum(np.square(rows[~null] / values[~null, None]), axis=0))
    return rows[null], values[null], errors


def _touched(directions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[p] True for parameters that a null direction moves by more than one unit within its standard error."""
    moved = np.abs(directions) / np.maximum(values, 1e-300)[:, None]
    return ((moved > 1.0) & (np.abs(directions) > COMPONENT)).any(axis=0)


def _groups(tied: np.ndarray, loose: np.ndarray) -> list[tuple[int, ...]]:
    """Loose parameters that a null direction ties together."""
    left, groups = set(np.flatnonzero(loose).tolist()), []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            k = todo.pop()
            if k in left:
                left.remove(k)
                group.add(k)
                todo += [j for j in left if tied[k, j]]
        groups.append(tuple(sorted(group)))
    return groups


def _starts_apart(at: Situation, unit: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """[p] True where optima of equal objective differ by more than the objective's tolerance explains.

    Two terms of one form that have changed roles are one optimum.
    """
    away = np.abs(at.agreeing - at.theta) / unit
    same = np.isclose(np.sort(at.agreeing, axis=1), np.sort(at.theta), rtol=1e-3, atol=1e-6).all(axis=1)
    return (away[~same] > np.maximum(0.01, 0.5 * errors)).any(axis=0)


def _boundaries(at: Situation, jacobian: np.ndarray, loose: np.ndarray, free: np.ndarray) -> tuple[str, ...]:
    """Positive parameters that have run to 0 or away; where those end that no table could tell, chance decides."""
    remarks = []
    effect = np.linalg.norm(jacobian, axis=0) / at.sigma
    low, high = EXPONENTS
    exponents = [name for k, name in enumerate(at.names) if loose[k] and at.exponent[k] and not at.signed[k]]
    for k, name in enumerate(at.names):
        value = at.natural[k]
        if at.signed[k] or free[k]:
            continue
        if at.exponent[k] and not low <= value <= high:
            end = "0" if value < low else "infinity"
            remarks.append(f"{name} = {value:.3g} is at its boundary ({end}); --signed {name} lets it be negative")
        elif not at.exponent[k] and effect[k] < 1.0 / UNITS:
            signs = " ".join([name, *(e for e in exponents if e != name)])
            remarks.append(f"{name} = {value:.3g} is at its boundary (0); --signed {signs} lets them be negative")
    return tuple(remarks)


def _explain(
    at: Situation, members: tuple[int, ...], directions: np.ndarray, unit: np.ndarray, structural: np.ndarray
) -> Group:
    names = ", ".join(at.names[k] for k in members)
    found = _combinations(at, members, directions, unit)
    if np.abs(structural[:, members]).max(initial=0.0) > COMPONENT:
        return Group(members, found, "no table: the law says the same with fewer parameters, leave one out")

    def loose_by_design(columns: tuple[str, ...]) -> bool:
        null = _generic_null(at, dict.fromkeys(columns))
        return bool(np.abs(null[:, members]).max(initial=0.0) > COMPONENT)

    loose = loose_by_design if loose_by_design(()) else lambda columns: bool(set(members) & _loose_with(at, columns))
    for columns in _changes(at):
        if not loose(columns):
            lone = [c for c in columns if np.ptp(at.data[c]) == 0]
            if lone:
                what = f"vary {' and '.join(lone)}: a constant column says nothing about {names}"
            elif apart := sorted({d for c in columns for d in (c, *_tied(c, at.data)) if _tied(c, at.data)}):
                what = f"vary {' and '.join(apart)} apart: they change only together in this table"
            else:
                what = f"more values of {' and '.join(columns)}, over a wider range"
            return Group(members, found, what)
    return Group(
        members, found, "at this optimum the law does not depend on them: leave their term out, or use more rows"
    )


def _combinations(
    at: Situation, members: tuple[int, ...], directions: np.ndarray, unit: np.ndarray
) -> tuple[Combination, ...]:
    """Products, sums, ratios and differences of two members that no null direction moves, independent ones."""
    free = len(members) - int(np.linalg.matrix_rank(directions[:, members], tol=0.1))
    optima = np.where(at.signed, at.agreeing, np.exp(np.minimum(at.agreeing, 300.0)))
    chosen: list[Combination] = []
    gradients: list[np.ndarray] = []
    for sign, (form, slope) in FORMS.items():
        for i, j in combinations(members, 2):
            if len(chosen) == free:
                return tuple(chosen)
            gradient = np.zeros(len(at.names))
            with np.errstate(all="ignore"):
                gradient[[i, j]] = slope(at.natural[i], at.natural[j])
                gradient *= unit * np.where(at.signed, 1.0, at.natural)
                gradient /= np.linalg.norm(gradient)
                values = form(optima[:, i], optima[:, j])
            if not np.isfinite(gradient).all() or np.abs(directions @ gradient).max(initial=0.0) > COMPONENT:
                continue
            if not np.allclose(values, form(at.natural[i], at.natural[j]), rtol=0.01):
                continue  # two parameters of equal size: their product and their sum have one gradient
            if np.linalg.matrix_rank(np.array([*gradients, gradient]), tol=1e-6) > len(gradients):
                gradients.append(gradient)
                chosen.append(Combination(f"{at.names[i]}{sign}{at.names[j]}", i, j, form))
    return tuple(chosen)


def _generic_null(at: Situation, changed: Mapping[str, None]) -> np.ndarray:
    """[k, p] null directions of the law at generic parameters, on the table with the columns `changed` made generic.

    With all columns changed these are redundancies of the law itself; with none, those of the law on this design.
    """
    rng, p = generator(7), len(at.names)
    n = len(next(iter(at.data.values())))
    rows = rng.integers(0, n, 20 * p + 40) if changed else np.arange(n)
    all_changed = set(changed) == set(at.data)
    best = np.empty((0, p))
    fewest = p + 1
    for _ in range(3):
        data = {c: _varied(x, rng, len(rows), all_changed) if c in changed else x[rows] for c, x in at.data.items()}
        size = rng.uniform(0.3, 1.5, p)
        jacobian = at.slopes(np.where(at.signed, size * rng.choice([-1.0, 1.0], p), np.log(size)), data)
        jacobian = jacobian[(np.abs(jacobian) < LARGEST).all(axis=1)]
        if not len(jacobian):
            continue
        length = np.linalg.norm(jacobian, axis=0)
        scaled = jacobian / np.where(length > 0, length, 1.0)
        _, values, directions = np.linalg.svd(np.vstack([scaled, np.zeros((p, p))]), full_matrices=False)
        null = values < ROUNDING * values.max(initial=1e-300)
        if null.sum() < fewest:  # what is redundant anywhere is redundant here too, but not the other way round
            fewest, best = int(null.sum()), directions[null]
    return best


def _varied(x: np.ndarray, rng: np.random.Generator, rows: int, generic: bool) -> np.ndarray:
    """Values [rows] that vary by themselves: over the column's range and a decade to each side, or near 1."""
    if generic:
        return np.exp(rng.uniform(0.2, 2.0, rows))
    if (x > 0).all():
        return np.exp(rng.uniform(np.log(x.min() / 10.0), np.log(x.max() * 10.0), rows))
    reach = max(float(np.ptp(x)), 1.0)
    return rng.uniform(x.min() - reach, x.max() + reach, rows)


def _changes(at: Situation) -> list[tuple[str, ...]]:
    """Columns to try to vary: each alone, each pair, all."""
    columns = tuple(at.data)
    return [c for size in range(1, len(columns) + 1) for c in combinations(columns, size)][:30]


def _loose_with(at: Situation, columns: tuple[str, ...]) -> set[int]:
    """Parameters that would still be loose if these columns varied by themselves, over a decade more to each side."""
    rng = generator(8)
    n = len(next(iter(at.data.values())))
    rows = rng.integers(0, n, max(400, 20 * len(at.names)))
    data = {c: x[rows] for c, x in at.data.items()}
    data |= {c: _varied(at.data[c], rng, len(rows), generic=False) for c in columns}
    jacobian = at.slopes(at.theta, data)
    jacobian = jacobian[(np.abs(jacobian) < LARGEST).all(axis=1)]
    if len(jacobian) < len(at.names):
        return set(range(len(at.names)))
    unit = _units(at, jacobian)
    directions, values, _ = _null(jacobian * unit / at.sigma * np.sqrt(n / len(jacobian)))
    return set(np.flatnonzero(_touched(directions, values)).tolist())


def _tied(column: str, data: dict[str, np.ndarray]) -> list[str]:
    """Other columns that are a power or a linear function of this one in the table."""
    x = data[column]
    found = []
    for other, y in data.items():
        if other == column or not np.ptp(x) or not np.ptp(y):
            continue
        pairs = [(x, y)] + ([(np.log(x), np.log(y))] if (x > 0).all() and (y > 0).all() else [])
        if any(abs(np.corrcoef(a, b)[0, 1]) > 1.0 - 1e-6 for a, b in pairs):
            found.append(other)
    return found
