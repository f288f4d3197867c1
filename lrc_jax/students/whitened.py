"""Activation-aware truncated SVD of a teacher's matrices, and how many ranks each of them gets.

Of a matrix W [in, out] that reads x, the product x W' should stay near x W, so that the error to be made small is
E|x W - x W'|^2 = |C^1/2 (W - W')|^2 with C the second moment of x. With A = C^1/2 W = U S V^T the best W' of rank r is
W V_r V_r^T: its outputs are projected on their r principal directions. No inverse of C^1/2 is needed, so that inputs
that never occur do no harm. With C the identity this is the plain truncated SVD (Eckart-Young).

References: SVD-LLM (arXiv 2403.07378) whitens by the Cholesky factor of the same C.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import divergence_from
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.students.factorized import FactorizedStudent, factored_size, matrix, matrix_shapes, with_matrix
from lrc_jax.students.statistics import INPUTS

PROBES = (0.125, 0.25, 0.5, 0.75)  # shares of a matrix's full rank at which its truncation is measured
ALLOCATION_TOKENS = 2**12  # on which it is measured
NEGLIGIBLE = 1e-7  # singular values below this share of the largest are rounding, of a root in float64

Factors = dict[str, Array]


def root(moment: Float[np.ndarray, "..."]) -> np.ndarray:
    """Symmetric square root of a second moment [X, X], or of a diagonal one [X]."""
    if moment.ndim == 1:
        return np.sqrt(moment)
    values, vectors = np.linalg.eigh(moment)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[None, :]) @ vectors.T


def _through(root: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return root[:, None] * matrix if root.ndim == 1 else root @ matrix


def whitened_error(original: np.ndarray, other: np.ndarray, root: np.ndarray) -> float:
    """E|x W - x W'|^2 of inputs whose second moment has this root."""
    return float(np.sum(_through(root, original - other) ** 2))


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of C^1/2 W and the directions of x W that carry them.

    Attributes:
      matrix: W [in, out]. values: [K], the largest first. directions: V [out, K].
      transposed: W is the teacher's matrix, transposed.
    """

    matrix: np.ndarray
    values: np.ndarray
    directions: np.ndarray
    transposed: bool = False

    @classmethod
    def of(cls, matrix: np.ndarray, root: np.ndarray, *, transposed: bool = False) -> Spectrum:
        """Of a matrix whose inputs' second moment has this root; `transposed`: the matrix is given transposed."""
        _, values, vt = np.linalg.svd(_through(root, matrix), full_matrices=False)
        kept = values > NEGLIGIBLE * values[0]
        directions = vt[kept].T
        if not kept.all():  # what inputs never show: by size in the matrix itself
            rest = np.linalg.svd(matrix - matrix @ directions @ directions.T, full_matrices=False)[2]
            directions = np.concatenate([directions, rest[: len(values) - kept.sum()].T], axis=1)
        return cls(matrix, np.where(kept, values, 0.0), directions, transposed)

    def lost(self) -> np.ndarray:
        """Share of E|x W|^2 that is lost at rank 0, 1, ..., K."""
        power = self.values**2
        return np.concatenate([np.cumsum(power[::-1])[::-1], [0.0]]) / power.sum()

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The two factors of the teacher's matrix at a rank, [in, r] and [r, out], of equal size column by column."""
        chosen = self.directions[:, :rank]
        u = self.matrix @ chosen
        share = np.sqrt(np.maximum(np.linalg.norm(u, axis=0), np.finfo(np.float32).tiny))
        u, v = u / share[None, :], share[:, None] * chosen.T
        return (v.T, u.T) if self.transposed else (u, v)


def spectra(config: DecoderConfig, teacher: Weights, moments: Mapping[str, np.ndarray]) -> dict[str, Spectrum]:
    """Of every matrix of a teacher, by name.

    An embedding that is the head too is taken as the head, transposed: there it meets features, not indicators.

    Args:
      moments: `lrc_jax.students.statistics.input_moments` of the teacher.
    """
    tied = config.tie_word_embeddings
    roots: dict[str, np.ndarray] = {}
    found = {}
    for name in matrix_shapes(config):
        layer, _, field = name.rpartition(".")
        site = f"{layer}.{INPUTS[field]}" if layer else "tokens" if name == "embed" and not tied else "final"
        if site not in roots:
            roots[site] = root(moments[site])
        whole = np.asarray(matrix(teacher, name), np.float64)
        turn = name == "embed" and tied
        found[name] = Spectrum.of(whole.T if turn else whole, roots[site], transposed=turn)
    return found


def measured_losses(
    config: DecoderConfig,
    teacher: Weights,
    found: Mapping[str, Spectrum],
    pool: Pool,
    say: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, np.ndarray]:
    """What truncating one matrix costs, at rank 0, 1, ...: KL(teacher || truncated) in nats per token.

    Measured at a few ranks of each matrix, all others whole, on the first ALLOCATION_TOKENS of a pool; between them it
    is linear in the share of the matrix's output that is lost, which is known at every rank.

    Args:
      say: told after each matrix how many are done, and of how many.
    """
    losses, divergence = {}, divergence_from(config, teacher, _few(pool))
    for done, (name, one) in enumerate(found.items()):
        lost, most = one.lost(), len(one.values)
        probes = sorted({max(1, round(share * most)) for share in PROBES}, reverse=True)
        costs = []
        for rank in probes:
            u, v = one.factors(rank)
            costs.append(divergence(with_matrix(teacher, name, jnp.asarray(u @ v, jnp.float32))))
        x, y = np.array([0.0, *lost[probes]]), np.maximum.accumulate([0.0, *costs])
        beyond = np.maximum(lost - x[-1], 0.0) * (y[-1] / x[-1] if x[-1] > 0 else 0.0)
        losses[name] = np.interp(lost, x, y) + beyond
        say(done + 1, len(found))
    return losses


def allocate(losses: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]], budget: int) -> tuple[int, ...]:
    """Ranks of matrices that together hold at most `budget` numbers and lose little.

    Minimises the sum of their losses: along the lower convex hull of each matrix's loss against its size, the steps
    that save most per number are taken first. A matrix larger as factors than whole is kept whole. What the budget has
    left is filled up rank by rank.

    Args:
      losses: of each matrix, at rank 0, 1, ... (not increasing).
      shapes: of each matrix.
      budget: numbers; matrices that do not even get rank 1 keep it all the same.

    Returns:
      The ranks, from 1 on.
    """
    pairs = zip(shapes, losses, strict=True)
    sizes = [np.array([factored_size(m, n, rank) for rank in range(len(loss))]) for (m, n), loss in pairs]
    ranks = [1] * len(losses)
    left = budget - sum(int(size[1]) for size in sizes)

    def steps(i: int, start: int, *, single: bool) -> tuple[float, int, int] | None:
        """The step from a rank: to the next corner of the hull, or to the next larger size."""
        size, loss = sizes[i], losses[i]
        further = np.flatnonzero(size > size[start])
        if not len(further):
            return None
        saved = (loss[start] - loss[further]) / (size[further] - size[start])
        # Of equal sizes (the whole matrix) the highest rank; of equal savings the longest step.
        k = 0 if single else int(len(saved) - 1 - np.argmax(saved[::-1]))
        to = int(further[k])
        same = int(np.flatnonzero(size == size[to])[-1])
        return -float((loss[start] - loss[same]) / (size[same] - size[start])), i, same

    for single in (False, True):
        queue = [step for i in range(len(losses)) if (step := steps(i, ranks[i], single=single)) is not None]
        heapq.heapify(queue)
        while queue:
            _, i, to = heapq.heappop(queue)
            cost = int(sizes[i][to] - sizes[i][ranks[i]])
            if cost > left:
                continue  # smaller steps of the other matrices may still fit
            ranks[i], left = to, left - cost
            if (step := steps(i, to, single=single)) is not None:
                heapq.heappush(queue, step)
    return tuple(ranks)


def _few(pool: Pool) -> Pool:
    return pool.first(max(1, ALLOCATION_TOKENS // pool.tokens_NT.shape[1]))


def whitened_start(
    student: FactorizedStudent,
    teacher: Weights,
    found: Mapping[str, Spectrum],
    losses: Mapping[str, np.ndarray] | None = None,
    pool: Pool | None = None,
) -> tuple[FactorizedStudent, dict[str, Factors]]:
    """The student with its start: the activation-aware truncated SVD of every matrix of the teacher.

    Args:
      found: `spectra` of the teacher.
      losses: `measured_losses`, by which each matrix is given a rank of its own, in as many numbers as the student has.
        Losses of single matrices need not add up: these ranks are taken where they cost less than the student's own on
        (the first ALLOCATION_TOKENS of) `pool`. None keeps the student's ranks.

    Returns:
      The student (with its ranks, where they were allocated) and what `Frozen.factors` has to be.
    """
    if losses is not None:
        assert pool is not None
        shapes = student.shapes()
        budget = sum(factored_size(*shapes[name], rank) for name, rank in student.rank_by_matrix().items())
        ranks = allocate([losses[name] for name in shapes], list(shapes.values()), budget)
        other = dataclasses.replace(student, ranks=ranks)
        divergence = divergence_from(student.teacher, teacher, _few(pool))
        own, allocated = (divergence(truncated(one, teacher, found)) for one in (student, other))
        student = other if allocated < own else student
    factors = {}
    for name, rank in student.rank_by_matrix().items():
        u, v = found[name].factors(rank)
        factors[name] = {"u": jnp.asarray(u, jnp.float32), "v": jnp.asarray(v, jnp.float32)}
    return student, factors


def truncated(student: FactorizedStudent, teacher: Weights, found: Mapping[str, Spectrum]) -> Weights:
    """The teacher with every matrix at the student's rank."""
    for name, rank in student.rank_by_matrix().items():
        u, v = found[name].factors(rank)
        teacher = with_matrix(teacher, name, jnp.asarray(u @ v, jnp.float32))
    return teacher
