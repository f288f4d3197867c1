"""The risk surface, and non-negative least squares over batches of small designs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from theory.laws.least_squares import solve


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
        columns: [B, n, k] with k <= 6; y: [n], or [B, n].

    Returns:
        coefficients [B, k] and squared errors [B].
    """
    batch, n, k = columns.shape
    y = np.broadcast_to(y, (batch, n))
    normal = np.matmul(columns.transpose(0, 2, 1), columns)
    right = np.einsum("bnk,bn->bk", columns, y)
    square = np.einsum("bn,bn->b", y, y)
    best = square.copy()
    solution = np.zeros((batch, k))
    for mask in product((False, True), repeat=k):
        support = np.flatnonzero(mask)
        if support.size == 0:
            continue
        sub = normal[:, support[:, None], support[None, :]]
        ridge = 1e-12 * np.trace(sub, axis1=1, axis2=2)[:, None, None] * np.eye(len(support))
        x = solve(sub + ridge, right[:, support])
        error = square - np.einsum("bk,bk->b", x, right[:, support])
        better = (x >= 0).all(axis=1) & (error < best)
        best = np.where(better, error, best)
        solution[better] = 0.0
        solution[np.ix_(better, support)] = x[better]
    return solution, np.maximum(best, 0.0)
