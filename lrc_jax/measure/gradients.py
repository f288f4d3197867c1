"""Unbiased second moments of gradients, and the small pytree algebra they need.

A loss is any callable `loss(params, batch) -> scalar`, a sampler any `sample_batch(key, size) -> batch` that draws a
batch of `size` independent units. Wrap what they read in `jax.tree_util.Partial` (`Partial(loss, frozen)`): its arrays
then travel as arguments of the compiled program instead of being baked into it as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

Params = Any
Batch = Any
Loss = Callable[[Params, Batch], Array]
SampleBatch = Callable[[Array, int], Batch]


def as_partial(function: Callable[..., Any]) -> Partial:
    """The function as a pytree, so that jit takes it as an argument."""
    return function if isinstance(function, Partial) else Partial(function)


def tree_dot(a: Params, b: Params) -> Float[Array, ""]:
    """Inner product of two pytrees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


def tree_axpy(scale: Array | float, x: Params, y: Params) -> Params:
    """scale * x + y, leaf by leaf."""
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


class BlockMoments(NamedTuple):
    """Of K independent block gradients g_k: |sum g_k|^2, sum |g_k|^2 and K."""

    norm_sq_of_sum: Array
    sum_of_norms_sq: Array
    blocks: int

    def mean_norm_sq(self) -> Array:
        """Unbiased estimate of |E g|^2: the mean of <g_j, g_k> over j != k.

        With two blocks this is <g_A, g_B>. A single |g_B|^2 is too large by sigma^2 / B. May be negative: average
        first, take logarithms after.
        """
        return (self.norm_sq_of_sum - self.sum_of_norms_sq) / (self.blocks * (self.blocks - 1))

    def variance(self) -> Array:
        """Unbiased estimate of E |g - E g|^2 for gradients of one block's size."""
        return (self.sum_of_norms_sq - self.norm_sq_of_sum / self.blocks) / (self.blocks - 1)


class LossMoments(NamedTuple):
    """Mean of a loss over independent batches and the standard error of that mean (nats)."""

    mean: Array
    standard_error: Array


def mean_loss(
    loss: Loss, sample_batch: SampleBatch, params: Params, key: Array, batch_size: int, blocks: int
) -> LossMoments:
    """f(params) from `blocks` independent batches."""
    values = jax.lax.map(lambda k: loss(params, sample_batch(k, batch_size)), jax.random.split(key, blocks))
    return LossMoments(jnp.mean(values), jnp.std(values, ddof=1) * blocks**-0.5)
