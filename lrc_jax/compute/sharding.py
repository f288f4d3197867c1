"""Several devices and processes: a mesh, and where everything lies on it.

Batches are split over the mesh's `data` axis, students and optimiser states are replicated, and large teachers may be
split over its `model` axis. The training step is the program of one device (`train.train_chunk`): the loss is a mean
over the global batch and XLA inserts the reductions, so that losses agree up to the order of float32 sums.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.model import Weights
from lrc_jax.students.base import Frozen

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """How many devices share the batch and the teacher; data 0 takes all that are left."""

    data: int = 0
    model: int = 1


def connect(address: str, processes: int, index: int) -> None:
    """Join a group of processes, before any device is used. `address` is host:port of process 0.

    Raises:
      InputError: the index is none of the group's.
    """
    if not 0 <= index < processes:
        raise InputError(f"process {index} is outside 0..{processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of no effect on other devices
    jax.distributed.initialize(address, num_processes=processes, process_id=index)


def mesh_for(spec: MeshSpec, batch_size: int) -> Mesh | None:
    """The mesh, or None where a single device of a single process is asked for. Raises as `make_mesh`."""
    return None if spec.data * spec.model == jax.process_count() == 1 else make_mesh(spec, batch_size)


def make_mesh(spec: MeshSpec, batch_size: int) -> Mesh:
    """Devices as [data, model]: the first ones of a single process, all of several processes.

    Raises:
      InputError: there are too few devices, the axes leave devices of other processes over, or do not divide the batch.
    """
    devices = jax.device_count()
    if spec.data < 0:
        raise InputError(f"mesh.data: {spec.data} is negative; 0 takes all devices")
    if spec.model < 1 or (spec.data == 0 and devices % spec.model):
        raise InputError(f"mesh.model: {spec.model} does not divide the {devices} devices")
    data = spec.data or devices // spec.model
    used = data * spec.model
    if used > devices or (used < devices and jax.process_count() > 1):
        raise InputError(f"mesh: data {data} times model {spec.model} is not the number of devices, {devices}")
    if batch_size % data:
        raise InputError(f"batch_size: {batch_size} is no multiple of mesh.data, {data}")
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, spec.model), (DATA, MODEL), axis_types=auto, devices=jax.devices()[:used])


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


def place_frozen(mesh: Mesh, frozen: Frozen) -> Frozen:
    """Teachers split over the `model` axis, the rest replicated."""
    basis, whitener = replicate(mesh, (frozen.basis_DS, frozen.whitener_DD))
    distilled = None if frozen.distilled is None else shard_teacher(mesh, frozen.distilled)
    return Frozen(shard_teacher(mesh, frozen.teacher), basis, whitener, distilled)


def shard_batches(mesh: Mesh, batches: Pool) -> Pool:
    """Batches [C, B, ...] with B split over the `data` axis. Every process passes all rows and keeps its own."""
    return jax.tree.map(lambda x: _place(NamedSharding(mesh, PartitionSpec(None, DATA)), x), batches)


def beside(tree: Any, fixed: Any) -> Any:
    """`tree` committed to the device that `fixed` is committed to; as it is where nothing is committed to one device.

    Restored arrays are committed, and so is what a program computes from them, but not what starts beside them: a
    training whose state is free in the first call and committed in the second compiles its program twice.
    """
    committed = (x.sharding for x in jax.tree.leaves(fixed) if isinstance(x, jax.Array) and x.committed)
    where = next((sharding for sharding in committed if len(sharding.device_set) == 1), None)
    return tree if where is None else jax.device_put(tree, where)


def to_host(tree: Any) -> Any:
    """NumPy copies of arrays that are replicated, or all of whose parts are in this process."""
    return jax.tree.map(np.asarray, tree)


def _place(sharding: NamedSharding, x: Any) -> Array:
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
