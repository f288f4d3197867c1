"""The named families of laws, the risk surface, and non-negative least squares.

Every family is text for `theory.law_parser` in one coordinate `x`, times a scale that carries intercepts and the
other coordinates; the same optimiser serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from theory.law_parser import Law, parse_law

#: name -> (law with `base` for the scale, its own parameters, starting values). Exponents count decay in x > 0.
FAMILIES: dict[str, tuple[str, dict[str, tuple[float, ...]], frozenset[str]]] = {
    # A power law: the claimed form.
    "power": ("base*x**-c", {"c": (0.5,)}, frozenset({"c"})),
    # An offset of either sign, relative to the group's constant (a plateau that scales with the law).
    "power+offset": ("base*(x**-c + offset)", {"c": (0.5,), "offset": ()}, frozenset({"c", "offset"})),
    # One offset for all groups, in units of the smallest mean.
    "power+shared offset": ("base*x**-c + offset*size", {"c": (0.5,), "offset": ()}, frozenset({"c", "offset"})),
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
    columns = {"x", "span", "size", *(f"z{j}" for j in range(1, covariates + 1))}
    law = parse_law(text.replace("base", base), columns, max_length=None)
    return law, signed | {f"k{j}" for j in range(1, covariates + 1)}


@dataclass(frozen=True)
class Surface:
    """The risk surface E + A r^-alpha + B r^beta N^-gamma (all parameters >= 0; theory page, "The risk surface").

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
