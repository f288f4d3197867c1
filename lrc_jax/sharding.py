"""Training over several devices and processes: a mesh, where everything lies on it, and a step that uses it.

Batches are split over the mesh's `data` axis, students and optimiser states are replicated, and large teachers may be
split over its `model` axis. The step is the same mathematics as on one device: the loss is a mean over the global
batch and XLA inserts the reductions, so that losses agree up to the order of float32 sums.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.objective import LossWeights, Objective, Terms
from lrc_jax.students.base import Frozen, Params, Student
from lrc_jax.train import Hyper, OptimizerSpec, TrainState, student_loss

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """How many devices share the batch and the teacher; data 0 takes all that are left."""

    data: int = 0
    model: int = 1


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is computed (static); none changes what it means.

    Attributes:
      accumulate: parts that the batch is cut into, one after another; the gradient is their mean. For losses that
        are plain means over sequences (all but the normalised clone distance) that is the gradient of the whole.
      remat: recompute the student's activations in the backward pass instead of keeping them.
      bf16: compute both models in bfloat16; parameters, optimiser and losses stay float32.
    """

    accumulate: int = 1
    remat: bool = False
    bf16: bool = False


def connect(address: str, processes: int, index: int) -> None:
    """Join a group of processes, before any device is used. `address` is host:port of process 0."""
    if not 0 <= index < processes:
        raise InputError(f"process {index} is outside 0..{processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect on other devices
    jax.distributed.initialize(address, num_processes=processes, process_id=index)


def make_mesh(spec: MeshSpec, batch_size: int) -> Mesh:
    """The devices of all processes as [data, model].

    Raises:
      InputError: the axes do not multiply to the number of devices, or do not divide the batch.
    """
    devices = jax.device_count()
    if spec.model < 1 or devices % spec.model:
        raise InputError(f"mesh.model: {spec.model} does not divide the {devices} devices")
    data = spec.data or devices // spec.model
    if data * spec.model != devices:
        raise InputError(f"mesh: data {data} times model {spec.model} is not the number of devices, {devices}")
    if batch_size % data:
        raise InputError(f"batch_size: {batch_size} is no multiple of mesh.data, {data}")
    return jax.make_mesh((data, spec.model), (DATA, MODEL), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A copy of every array on every device. Every process passes the same numbers."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: _place(sharding, x), tree)


def shard_teacher(mesh: Mesh, weights: Weights) -> Weights:
    """Matrices split over the `model` axis along their longest dimension that it divides, vectors replicated."""
    count = mesh.shape[MODEL]

    def spec(x: Array) -> PartitionSpec:
        fits = [axis for axis in range(x.ndim) if x.shape[axis] % count == 0]
        if count == 1 or x.ndim < 2 or not fits:
            return PartitionSpec()
        longest = max(fits, key=lambda axis: x.shape[axis])
        return PartitionSpec(*(MODEL if axis == longest else None for axis in range(x.ndim)))

    return jax.tree.map(lambda x: _place(NamedSharding(mesh, spec(x)), x), weights)


def shard_batch(mesh: Mesh, batch: Pool) -> Pool:
    """A global batch, rows split over the `data` axis. Every process passes the whole batch and keeps its rows."""
    return jax.tree.map(lambda x: _place(NamedSharding(mesh, PartitionSpec(DATA)), x), batch)


def _place(sharding: NamedSharding, x: Any) -> Array:
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def batch_rows(seed_key: Array, step: int, batch_size: int, samples: int) -> np.ndarray:
    """Rows of the batch that `train.draw_batch` would draw in this step, on the host of every process alike."""
    u_B = jax.random.uniform(jax.random.fold_in(seed_key, step), (batch_size,))
    index_B = jnp.minimum((u_B * jnp.float32(samples)).astype(jnp.int32), samples - 1)
    return np.asarray(index_B)


def cast_floats(tree: Any, dtype: Any) -> Any:
    """Float arrays in another dtype, everything else as it is."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def loss_and_grads(
    student: Student,
    objective: Objective,
    teacher_config: DecoderConfig,
    options: StepOptions,
    params: Params,
    frozen: Frozen,
    weights: LossWeights,
    batch: Pool,
) -> tuple[Terms, Params]:
    """Loss terms and gradient of a batch, as `options` say."""

    def loss(params: Params, part: Pool) -> tuple[Array, Terms]:
        teacher = frozen
        if options.bf16:
            params, teacher = cast_floats(params, jnp.bfloat16), cast_floats(frozen, jnp.bfloat16)
        total, terms = student_loss(student, objective, teacher_config, params, teacher, weights, part)
        return total.astype(jnp.float32), cast_floats(terms, jnp.float32)

    if options.remat:
        loss = jax.checkpoint(loss)
    grad = jax.value_and_grad(loss, has_aux=True)
    if options.accumulate == 1:
        (_, terms), grads = grad(params, batch)
        return terms, grads
    n = options.accumulate
    # Every n-th row to a part, so that each part is spread over all devices as the whole is.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, n, *x.shape[1:]), 0, 1), batch)

    def add(total: Any, part: Pool) -> tuple[Any, None]:
        (_, terms), grads = grad(params, part)
        return jax.tree.map(jnp.add, total, (terms, grads)), None

    zero = jnp.zeros((), jnp.float32)
    start = (Terms(zero, zero, zero, zero), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, start, parts)
    return jax.tree.map(lambda x: x / n, total)


@functools.partial(
    jax.jit,
    static_argnames=("student", "objective", "optimizer", "teacher_config", "options"),
    donate_argnames=("state",),
)
def train_step(
    student: Student,
    objective: Objective,
    optimizer: OptimizerSpec,
    teacher_config: DecoderConfig,
    options: StepOptions,
    state: TrainState,
    frozen: Frozen,
    hyper: Hyper,
    batch: Pool,
) -> tuple[TrainState, Terms, Array]:
    """One step of `train.train_chunk` on a batch that may be spread over devices: state, terms, gradient norm."""
    terms, grads = loss_and_grads(student, objective, teacher_config, options, state.params, frozen, hyper.loss, batch)
    updates, opt_state = optimizer.direction().update(grads, state.opt_state, state.params)
    rate = hyper.learning_rate * optimizer.factor(state.step, jnp.asarray(hyper.steps))
    params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
    return TrainState(params, opt_state, state.step + 1), terms, optax.tree.norm(grads)


def train_sharded(
    student: Student,
    objective: Objective,
    optimizer: OptimizerSpec,
    teacher_config: DecoderConfig,
    frozen: Frozen,
    pool: Pool,
    hyper: Hyper,
    *,
    mesh: Mesh,
    batch_size: int,
    order_key: Array,
    state: TrainState,
    options: StepOptions = StepOptions(),
) -> tuple[TrainState, np.ndarray]:
    """Train from `state` to the end of `hyper.steps`, the same batches as `train.train`.

    Returns:
      The state and the rows [steps, 5] of total, clone, kl, ce and gradient norm, on every process.

    Raises:
      InputError: the batch cannot be cut as asked.
    """
    if batch_size % (options.accumulate * math.prod(mesh.shape[a] for a in (DATA,))):
        raise InputError(f"batch_size: {batch_size} is no multiple of accumulate times mesh.data")
    basis, whitener = replicate(mesh, (frozen.basis_DS, frozen.whitener_DD))
    frozen = Frozen(shard_teacher(mesh, frozen.teacher), basis, whitener)
    first = int(state.step)
    state, hyper_on_mesh = replicate(mesh, state), replicate(mesh, _arrays(hyper))
    rows = []
    for step in range(first, int(hyper.steps)):
        index = batch_rows(order_key, step, batch_size, int(hyper.samples))
        batch = shard_batch(mesh, jax.tree.map(lambda x, i=index: np.asarray(x)[i], pool))
        state, terms, norm = train_step(
            student, objective, optimizer, teacher_config, options, state, frozen, hyper_on_mesh, batch
        )
        rows.append(jnp.stack([terms.total, terms.clone, terms.kl, terms.ce, norm]))
    return state, np.asarray([np.asarray(row) for row in rows], np.float32).reshape(-1, 5)


def _arrays(hyper: Hyper) -> Hyper:
    """Numbers of a run as arrays of the types that they have in `train`."""
    return jax.tree.map(lambda x: np.asarray(x, np.int32 if isinstance(x, int) else np.float32), hyper)
