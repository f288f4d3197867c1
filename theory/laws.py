"""The named families of laws, and the joint risk surface by variable projection.

Every family is text for `theory.law_parser` in one coordinate `x`, times a scale that carries intercepts and the
other coordinates; the same optimiser serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from theory.fitting import HUBER, SQUARES, Residual, huber, minimise, robust_scale
from theory.law_parser import Law, parse_law

#: name -> (law with `base` for the scale, its own parameters, starting values). Exponents count decay in x > 0.
FAMILIES: dict[str, tuple[str, dict[str, tuple[float, ...]], frozenset[str]]] = {
    # A power law: the claimed form.
    "power": ("base*x**-c", {"c": (0.5,)}, frozenset({"c"})),
    # A plateau below the power law: E x base so that E is relative to the scale of the data at x = 1.
    "power+offset": ("offset + base*x**-c", {"c": (0.5, 1.0)}, frozenset({"c"})),
    # A logarithmic factor, as in ln T / sqrt(T) for Adam (Defossez et al. 2020).
    "power*log": ("base*x**-c*log(x*span)**q", {"c": (0.5,), "q": (0.0,)}, frozenset({"c", "q"})),
    "exponential": ("base*exp(-k*x)", {"k": (0.01, 0.1, 1.0)}, frozenset()),
    # 1/x and 1/sqrt(x) together: the two terms of the Ghadimi-Lan bound.
    "two-term": ("base*(x**-0.5 + m*x**-1)", {"m": (0.1, 1.0, 10.0)}, frozenset()),
    # Two slopes joined smoothly at x0 (sharpness 4).
    "broken": (
        "base*x**-c*(1 + (x/x0)**4)**(-d/4)",
        {"c": (0.25, 0.75), "x0": (3.0, 10.0), "d": (0.5, -0.3)},
        frozenset({"c", "d"}),
    ),
}


def _balanced_sum(terms: list[str]) -> str:
    """Their sum as a tree of logarithmic depth: the parser's limit on nesting is for what people write."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_balanced_sum(terms[:half])} + {_balanced_sum(terms[half:])})"


def family_law(name: str, covariates: int) -> tuple[Law, frozenset[str]]:
    """The parsed law of a family with `covariates` log-linear covariates z1, z2, ... in its scale.

    Returns the law and the parameters that may be negative (all others are fitted as logarithms).
    """
    text, _, signed = FAMILIES[name]
    terms = [f"k{j}*z{j}" for j in range(1, covariates + 1)]
    base = f"exp({_balanced_sum(terms)})" if terms else "1"
    columns = {"x", "span", *(f"z{j}" for j in range(1, covariates + 1))}
    law = parse_law(text.replace("base", base), columns, max_length=None)
    return law, signed | {f"k{j}" for j in range(1, covariates + 1)}


@dataclass(frozen=True)
class Surface:
    """The risk surface E + A r^-alpha + B r^beta N^-gamma (all parameters >= 0; theory page, section C1).

    r: rank, N: samples. Its minimum over r is at r* = (alpha A / (beta B))^(1/(alpha+beta)) N^(gamma/(alpha+beta)).
    """

    offset: float
    approximation: float
    alpha: float
    estimation: float
    beta: float
    gamma: float

    def __call__(self, rank: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
        rank, samples = np.asarray(rank, dtype=np.float64), np.asarray(samples, dtype=np.float64)
        return (
            self.offset
            + self.approximation * rank**-self.alpha
            + self.estimation * rank**self.beta * samples**-self.gamma
        )

    def best_rank(self, samples: float) -> float:
        """The minimiser r*(N); infinite without an estimation term."""
        if self.estimation <= 0 or self.beta <= 0:
            return float("inf")
        ratio = self.alpha * self.approximation / (self.beta * self.estimation)
        return float((ratio * samples**self.gamma) ** (1.0 / (self.alpha + self.beta)))

    @property
    def rank_exponent(self) -> float:
        """rho = gamma / (alpha + beta), the exponent of r* in N."""
        return self.gamma / (self.alpha + self.beta)


SURFACE_TEXT = "E + A*rank**-alpha + B*rank**beta*samples**-gamma"


@dataclass(frozen=True)
class SurfaceFit:
    """A fitted surface, and the same surface refitted to every bootstrap draw of the cell means."""

    surface: Surface
    draws: tuple[Surface, ...]


def fit_surface(rank: np.ndarray, samples: np.ndarray, risk: np.ndarray, draws: np.ndarray | None = None) -> SurfaceFit:
    """Fit the risk surface to cell means.

    Variable projection: given the three exponents the surface is linear in (E, A, B), so a grid of exponents needs
    only non-negative least squares (all 2^3 active sets at once); the best eight grid points are polished by Huber
    on log residuals (delta = 1.345 robust standard deviations, iterated). Draws start from the full fit.

    Args:
        rank, samples, risk: [C] cells; the risk must be positive. draws: [B, C] bootstrapped cell means.
    """
    grid = np.array(list(product(np.linspace(0.2, 3.0, 12), np.linspace(0.2, 2.0, 8), np.linspace(0.2, 1.6, 8))))
    # Units at the centre of the data keep the three columns comparable.
    r0, n0 = float(np.exp(np.mean(np.log(rank)))), float(np.exp(np.mean(np.log(samples))))
    lr, ln = np.log(rank / r0), np.log(samples / n0)
    columns = np.stack(
        [np.ones((len(grid), len(rank))), np.exp(-grid[:, :1] * lr), np.exp(grid[:, 1:2] * lr - grid[:, 2:] * ln)],
        axis=2,
    )
    coefficients, error = nonnegative_least_squares(columns / risk[None, :, None], np.ones_like(risk))
    best = np.argsort(error, kind="stable")[:8]
    coefficient = np.maximum(coefficients[best], 1e-6 * risk.min())
    law = parse_law(SURFACE_TEXT, {"rank", "samples"})
    data = {"rank": rank / r0, "samples": samples / n0}
    order = [law.parameters.index(n) for n in ("E", "A", "B", "alpha", "beta", "gamma")]
    start = np.empty((len(best), 6))
    start[:, order] = np.log(np.column_stack([coefficient, grid[best]]))
    targets = np.log(risk)[None, :] if draws is None else np.log(np.vstack([risk, np.maximum(draws, 1e-300)]))

    def residual_of(which: np.ndarray) -> Residual:
        def residual(theta: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            natural = np.exp(theta)
            values, slopes = law.evaluate(natural, data)
            with np.errstate(all="ignore"):
                return np.log(values) - targets[which[index]], slopes * (natural[:, None, :] / values[:, :, None])

        return residual

    full = residual_of(np.zeros(len(best), dtype=np.int64))
    optimum = minimise(full, start, iterations=100)
    loss = SQUARES
    for _ in range(3):
        r = full(optimum.theta[[optimum.best]], np.zeros(1, dtype=np.int64))[0][0]
        loss = huber(max(HUBER * robust_scale(r), 1e-12))
        optimum = minimise(full, optimum.theta, loss=loss, iterations=100)
    theta = optimum.theta[[optimum.best]]
    if len(targets) > 1:
        which = np.arange(1, len(targets))
        # A draw may lie many deltas away as a whole: least squares first brings it near.
        near = minimise(residual_of(which), np.repeat(theta, len(which), axis=0), iterations=60, ftol=1e-10)
        refit = minimise(residual_of(which), near.theta, loss=loss, iterations=60, ftol=1e-10)
        theta = np.vstack([theta, refit.theta])

    def surface(row: np.ndarray) -> Surface:
        e, a, b, alpha, beta, gamma = (float(v) for v in np.exp(row)[order])
        return Surface(e, a * r0**alpha, alpha, b * r0**-beta * n0**gamma, beta, gamma)

    return SurfaceFit(surface(theta[0]), tuple(surface(row) for row in theta[1:]))


def nonnegative_least_squares(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """min |columns x - y|^2 over x >= 0 for a batch of small designs, by enumerating the active sets.

    Args:
        columns: [B, n, k] with k <= 6; y: [n].

    Returns:
        coefficients [B, k] and squared errors [B].
    """
    batch, _, k = columns.shape
    normal = np.matmul(columns.transpose(0, 2, 1), columns)
    right = np.einsum("bnk,n->bk", columns, y)
    best = np.full(batch, float(y @ y))
    solution = np.zeros((batch, k))
    for mask in product((False, True), repeat=k):
        support = np.flatnonzero(mask)
        if support.size == 0:
            continue
        sub = normal[:, support[:, None], support[None, :]]
        ridge = 1e-12 * np.trace(sub, axis1=1, axis2=2)[:, None, None] * np.eye(len(support))
        x = np.linalg.solve(sub + ridge, right[:, support, None])[:, :, 0]
        error = y @ y - np.einsum("bk,bk->b", x, right[:, support])
        better = (x >= 0).all(axis=1) & (error < best)
        best = np.where(better, error, best)
        solution[better] = 0.0
        solution[np.ix_(better, support)] = x[better]
    return solution, np.maximum(best, 0.0)


def law_data(x: np.ndarray, covariates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns for a family: x in units of its smallest value, and `span` = e, so that log(x*span) >= 1."""
    return {"x": x / x.min(), "span": np.full(len(x), np.e), **covariates}
