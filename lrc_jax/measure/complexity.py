"""What a bound on the generalisation gap could count or weigh: parameters, norms, and the counting bound itself.

Parameters of one m x n matrix of rank r: r (m + n) numbers in U V^T, of which r^2 are gauge. Low-Rank Clone's trained
numbers are r D a projection, not r (m + n); both are reported. A sum of norms (|U|^2 + |V|^2)/2 >= |U V^T|_* is the
only natural source of a bound linear in r (m + n), so that norms at the solution say whether that derivation applies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from lrc_jax.measure.dynamics import GAINS, by_class
from lrc_jax.model import Weights


@dataclasses.dataclass(frozen=True)
class MatrixNorms:
    """Norms of a class of matrices, summed over layers (spectral: the largest; stable rank: the mean)."""

    nuclear: float
    frobenius: float
    spectral: float
    stable_rank: float
    count: int


def matrix_norms(weights: Weights) -> dict[str, MatrixNorms]:
    """Norms of a student's merged matrices by class (`embed`, `q`, ..., `head`), from singular values in float64."""
    out = {}
    for name, arrays in by_class(weights).items():
        if name == GAINS:
            continue
        values = [np.linalg.svd(np.asarray(a, np.float64), compute_uv=False) for a in arrays]
        out[name] = MatrixNorms(
            nuclear=float(sum(s.sum() for s in values)),
            frobenius=math.sqrt(float(sum((s**2).sum() for s in values))),
            spectral=float(max(s[0] for s in values)),
            stable_rank=float(np.mean([(s**2).sum() / s[0] ** 2 for s in values])),
            count=len(values),
        )
    return out


def factor_norm(params: Any) -> float:
    """Phi = sum over factorized matrices of (|U|_F^2 + |V|_F^2) / 2, at least the sum of nuclear norms."""
    if isinstance(params, dict):
        if set(params) == {"u", "v"}:
            return 0.5 * float(sum(np.sum(np.asarray(params[k], np.float64) ** 2) for k in "uv"))
        return sum(map(factor_norm, params.values()))
    if isinstance(params, list | tuple):
        return sum(map(factor_norm, params))
    return 0.0


@dataclasses.dataclass(frozen=True)
class RankCount:
    """Numbers that a class of rank-r matrices counts.

    Attributes:
      factors: sum of r (m + n), what the abstract counts.
      dimension: sum of r (m + n - r), the dimension of the set of such matrices.
      covering: sum of r (m + n + 1), in the exponent of the covering number.
      matrices: how many.
    """

    factors: int
    dimension: int
    covering: int
    matrices: int


def rank_count(shapes: Iterable[tuple[int, int]], rank: int) -> RankCount:
    """Counts for matrices of these shapes, each of rank min(rank, m, n)."""
    sizes = [(min(rank, m, n), m + n) for m, n in shapes]
    return RankCount(
        factors=sum(r * s for r, s in sizes),
        dimension=sum(r * (s - r) for r, s in sizes),
        covering=sum(r * (s + 1) for r, s in sizes),
        matrices=len(sizes),
    )


def counting_bound(
    samples: int,
    covering: int,
    loss_range: float,
    radius: float,
    lipschitz: float,
    *,
    matrices: int = 1,
    factorized: bool = True,
    delta: float = 0.05,
    radius_fixed: bool = False,
) -> float:
    """Uniform bound on L - L_N (nats) by counting, with every constant.

        M / sqrt(N) + M sqrt([p_c ln(c R Lambda sqrt(K N) / M) + ln(1/delta)] / (2 N)),

    c = 18 for rank-r matrices (a net of (9 R / eps)^(r (m + n + 1)) points: Candes & Plan 2011, Lemma 3.1), c = 6 for a
    ball of `covering` trained numbers (3 R / eps each); then eps = M / (2 Lambda sqrt N), Hoeffding and a union bound.

    Args:
      samples: N independent units.
      covering: p_c: `RankCount.covering`, or the number of trained numbers where not `factorized`.
      loss_range: M, of a bounded (smoothed) loss.
      radius: R, Frobenius radius of the class.
      lipschitz: Lambda, of one unit's loss in Frobenius norm: the supremum of the gradient norm over the class. A
        factor 10 too small costs p_c ln 10 / 2N under the root.
      matrices: K.
      factorized: rank-r matrices rather than a ball of parameters.
      delta: failure probability.
      radius_fixed: R was fixed before the sample. Otherwise R is rounded up to a power of 2 and the union over them is
        paid: ln(pi^2/6) + 2 ln(k + 1) for R <= 2^k.

    Returns:
      The bound; vacuous where it exceeds `loss_range`.
    """
    if min(samples, covering, matrices) < 1 or min(loss_range, radius, lipschitz) <= 0 or not 0 < delta < 1:
        raise ValueError("counting bound: counts must be >= 1, range, radius and Lipschitz constant > 0, 0 < delta < 1")
    price = math.log(1 / delta)
    if not radius_fixed:
        k = max(0, math.ceil(math.log2(radius)))
        radius, price = 2.0**k, price + math.log(math.pi**2 / 6) + 2 * math.log(k + 1)
    argument = (18 if factorized else 6) * radius * lipschitz * math.sqrt(matrices * samples) / loss_range
    count = covering * math.log(max(argument, 1.0))
    return loss_range / math.sqrt(samples) + loss_range * math.sqrt((count + price) / (2 * samples))


def nuclear_norm_bound(
    features_ND: Float[np.ndarray, "N D"], vocab_size: int, nuclear: float, loss_range: float, delta: float = 0.05
) -> float:
    """Uniform bound on L - L_N (nats) for an unembedding W of nuclear norm at most `nuclear` on fixed features.

        2 Rad + M sqrt(ln(1/delta) / 2N),   Rad <= 2 B sqrt(2 ln(V + D) v / N),
        v = max(mean |x|^2, V lambda_max(mean x x^T)).

    Cross-entropy is sqrt(2)-Lipschitz in the logits, vector contraction costs another sqrt(2) (Maurer 2016), and the
    spectral norm of a matrix Rademacher series the rest (Tropp 2015, Theorem 4.1.1).
    """
    count, width = features_ND.shape
    second = features_ND.T @ features_ND / count
    size = max(float(np.trace(second)), vocab_size * float(np.linalg.eigvalsh(second)[-1]))
    rademacher = 2 * nuclear * math.sqrt(2 * math.log(vocab_size + width) * size / count)
    return 2 * rademacher + loss_range * math.sqrt(math.log(1 / delta) / (2 * count))
