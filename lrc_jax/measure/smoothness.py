"""Smoothness of a loss: along the path that was taken, and as the top of the Hessian's spectrum.

The path needs gradients only. Lanczos differentiates forward over reverse: the gradient, hand-written or not, must be
built of plain JAX operations; the plain step (`compute.fast.computed`) is the one to give it, since the fast step's
gradients take 2.5 times as long to differentiate.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from matfree import decomp

from lrc_jax.measure.gradients import Batch, Loss, Params, as_partial, tree_axpy, tree_dot


def hessian_vector(loss: Loss, params: Params, batch: Batch, vector: Params) -> Params:
    """H v at `params`, by forward over reverse differentiation (two to three gradients' cost)."""
    return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (vector,))[1]


def segment_smoothness(
    loss: Loss, start: Params, end: Params, batch: Batch, start_grad: Params | None = None
) -> Float[Array, ""]:
    """The constant L for which the descent lemma is an equality on the segment from x = start to y = end:

        L = 2 [f(y) - f(x) - <grad f(x), d>] / |d|^2,  d = y - x.

    f(y) - f(x) is the integral of <grad f(x + s d), d> over s in [0, 1], by Simpson's rule, which avoids the
    difference of two losses that float32 ruins for small steps; exact for losses that are quartic along the segment.
    `start_grad` is grad f(x) where it is known already. A maximum over a path's segments is the smallest constant that
    the path needed; it underestimates a global Lipschitz constant.
    """
    gradient = jax.grad(loss)
    step = jax.tree.map(jnp.subtract, end, start)
    first = gradient(start, batch) if start_grad is None else start_grad
    middle, last = gradient(tree_axpy(0.5, step, start), batch), gradient(end, batch)
    excess = jax.tree.map(lambda a, b, c: (4 * (b - a) + (c - a)) / 6, first, middle, last)
    return 2 * tree_dot(step, excess) / tree_dot(step, step)


class TopEigenvalue(NamedTuple):
    """Extreme Ritz values of a Hessian.

    Attributes:
      largest, smallest: Ritz values; they lie inside the spectrum.
      residual: |H u - theta u| of the largest one: some eigenvalue lies within it of `largest`.
    """

    largest: float
    smallest: float
    residual: float


@functools.partial(jax.jit, static_argnames=("iterations",))
def _tridiagonalise(loss: Any, params: Params, batch: Batch, key: Array, iterations: int) -> tuple[Array, Array]:
    flat, unravel = ravel_pytree(params)

    def matvec(vector: Array) -> Array:
        return ravel_pytree(hessian_vector(loss, params, batch, unravel(vector)))[0]

    start = jax.random.normal(key, flat.shape, flat.dtype)
    lanczos = decomp.tridiag_sym(iterations, materialize=True, reortho="full", custom_vjp=False)
    result = lanczos(matvec, start)
    return result.J_small, jnp.linalg.norm(result.residual)


def hessian_top_eigenvalue(loss: Loss, params: Params, batch: Batch, key: Array, iterations: int = 30) -> TopEigenvalue:
    """Top of the Hessian's spectrum by Lanczos with full reorthogonalisation, on Hessian-vector products only.

    Args:
      loss: loss(params, batch), twice differentiable in forward mode.
      params: where.
      batch: one fixed (large) batch.
      key: of the random start vector.
      iterations: Hessian-vector products; capped at the number of parameters.

    Returns:
      Extreme Ritz values and the residual of the top one. Memory: iterations x parameters numbers.
    """
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    iterations = min(iterations, size)
    tridiagonal, residual = _tridiagonalise(as_partial(loss), params, batch, key, iterations)
    # The Krylov space of a Hessian with few distinct eigenvalues closes early. What follows is rounding noise divided
    # by itself, so the matrix is cut where the off-diagonal has vanished.
    matrix = np.asarray(tridiagonal, np.float64)
    beta = np.abs(np.diagonal(matrix, 1))
    finite = np.isfinite(np.diagonal(matrix))
    scale = np.max(np.abs(matrix[:2, :2]))
    closed = np.flatnonzero(~(beta > 1e-5 * scale) | ~finite[1:])
    if closed.size:
        matrix, last_beta = matrix[: closed[0] + 1, : closed[0] + 1], 0.0
    else:
        last_beta = float(residual)
    values, vectors = np.linalg.eigh(matrix)
    return TopEigenvalue(float(values[-1]), float(values[0]), float(abs(last_beta * vectors[-1, -1])))
