"""A small teacher trained here, from scratch, on its own pool, stopped by its loss on held-out sequences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.errors import DivergedError
from lrc_jax.inference.evaluate import model_losses
from lrc_jax.losses import cross_entropy_per_token
from lrc_jax.model import DecoderConfig, Weights, init_weights
from lrc_jax.training.train import batch_index


@dataclasses.dataclass(frozen=True)
class TinyTeacherSpec:
    """Architecture and training of a teacher.

    Attributes:
      steps: at most; the learning rate decays to 0 over them (cosine).
      check_every: steps between looks at the held-out loss.
      patience: looks without a new best loss after which training stops.
    """

    hidden_size: int = 32
    intermediate_size: int = 64
    layers: int = 1
    heads: int = 2
    kv_heads: int = 2
    tied: bool = False
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    check_every: int = 100
    patience: int = 5
    seed: int = 0

    def config(self, vocab_size: int, sequence_length: int) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.hidden_size // self.heads,
            tie_word_embeddings=self.tied,
            max_position_embeddings=sequence_length,
        )


@dataclasses.dataclass(frozen=True)
class TeacherCurve:
    """Training curve: at `step`, the mean training loss since the look before and the held-out loss (nats/token)."""

    step: list[int]
    train_loss: list[float]
    held_out_loss: list[float]


def _optimizer(spec: TinyTeacherSpec) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(spec.learning_rate, spec.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=spec.weight_decay))


@functools.partial(jax.jit, static_argnames=("config", "spec", "count"), donate_argnames=("weights", "opt_state"))
def _steps(
    config: DecoderConfig,
    spec: TinyTeacherSpec,
    count: int,
    weights: Weights,
    opt_state: optax.OptState,
    pool: Pool,
    key: Array,
    first: Array,
) -> tuple[Weights, optax.OptState, Array]:
    optimizer = _optimizer(spec)

    def loss(weights: Weights, batch: Pool) -> Array:
        logits_NV = forward(config, weights, batch.tokens_NT).logits_NV
        return jnp.mean(cross_entropy_per_token(logits_NV, batch.labels_NT.reshape(-1)))

    def step(carry: tuple[Weights, optax.OptState], i: Array) -> tuple[tuple[Weights, optax.OptState], Array]:
        weights, opt_state = carry
        index_B = batch_index(jax.random.fold_in(key, first + i), spec.batch_size, jnp.asarray(pool.size, jnp.int32))
        batch = jax.tree.map(lambda x: x[index_B], pool)
        value, grads = jax.value_and_grad(loss)(weights, batch)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        return (optax.apply_updates(weights, updates), opt_state), value

    (weights, opt_state), losses = jax.lax.scan(step, (weights, opt_state), jnp.arange(count))
    return weights, opt_state, jnp.mean(losses)


def train_teacher(
    spec: TinyTeacherSpec,
    config: DecoderConfig,
    pool: Pool,
    held_out: Pool,
    init_key: Array,
    order_key: Array,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Weights, TeacherCurve]:
    """Train, and return the weights with the best held-out loss and the curve.

    Raises:
      DivergedError: a loss is not finite.
    """
    weights = jax.jit(init_weights, static_argnums=0)(config, init_key)
    opt_state = jax.jit(_optimizer(spec).init)(weights)
    curve = TeacherCurve([], [], [])
    best_loss, best, bad_looks, done = np.inf, weights, 0, 0
    while done < spec.steps and bad_looks < spec.patience:
        count = min(spec.check_every, spec.steps - done)
        weights, opt_state, train_loss = _steps(
            config, spec, count, weights, opt_state, pool, order_key, jnp.asarray(done, jnp.int32)
        )
        done += count
        held_out_loss = float(model_losses(config, weights, held_out).mean())
        if not np.isfinite(held_out_loss):
            raise DivergedError(f"the teacher's loss is {held_out_loss} at step {done}; lower teacher.learning_rate")
        curve.step.append(done)
        curve.train_loss.append(float(train_loss))
        curve.held_out_loss.append(held_out_loss)
        if held_out_loss < best_loss:
            best_loss, bad_looks = held_out_loss, 0
            best = jax.tree.map(jnp.copy, weights)
        else:
            bad_looks += 1
        if progress is not None:
            progress(done, spec.steps, held_out_loss)
    return best, curve


def plant_spectrum(weights: Weights, power: float) -> Weights:
    """Every matrix with singular values proportional to k^-power in place of its own; singular vectors and Frobenius
    norm stay. A teacher whose spectra are known decides how much each further rank of a clone is worth."""

    def planted(matrix: Array) -> Array:
        if matrix.ndim != 2:
            return matrix
        u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
        law = np.arange(1, len(s) + 1) ** -power
        law *= np.sqrt(np.sum(s**2) / np.sum(law**2))
        return jnp.asarray((u * law) @ vt, matrix.dtype)

    return jax.tree.map(planted, weights)
