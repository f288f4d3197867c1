"""One device, eight devices and two processes train alike; so do accumulation, rematerialisation and bfloat16.

The devices are simulated: XLA offers several on one CPU, in processes of their own since their number is fixed when
JAX starts. The processes talk over the loopback interface only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = """
import json, sys
job = json.loads(sys.argv[1])
import jax
if "address" in job:
    from lrc_jax.compute.sharding import connect
    connect(job["address"], job["processes"], job["index"])
import numpy as np
from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import pool_from_sequences
from lrc_jax.model import DecoderConfig
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.compute.sharding import MeshSpec, make_mesh, shard_teacher
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.training.train import Hyper, OptimizerSpec, StepOptions, train

config = DecoderConfig(32, 16, 24, 2, 4, 2, 4)
rng = np.random.default_rng(0)
shapes = tensor_layout(config)
weights = build_weights(config, lambda n: 0.5 * rng.standard_normal(shapes[n], np.float32) + ("norm" in n))
student = make_student("lrc", config, CloneFlags(8), StudentOptions())
pool = pool_from_sequences(rng.integers(0, 32, (64, 13)))
mesh = None if job.get("reference") else make_mesh(MeshSpec(**job.get("mesh", {})), 16)
_, history = train(
    student, Objective(kl_per_token=True), OptimizerSpec(clip=1.0), config, Frozen(weights), pool,
    Hyper(3e-3, 8, 64, LossWeights(temperature=2.0)),
    batch_size=16, init_key=key_for(0, "init"), order_key=key_for(0, "order"),
    mesh=mesh, options=StepOptions(**job.get("options", {})),
)
t = history.terms
out = {"devices": jax.device_count()}
out["rows"] = np.stack([t.total, t.clone, t.kl, t.ce, history.grad_norm], 1).tolist()
if mesh is not None:
    out["teacher_shard"] = list(shard_teacher(mesh, weights).embed_VD.addressable_shards[0].data.shape)
print("RESULT" + json.dumps(out))
"""


def start(devices: int, **job: Any) -> subprocess.Popen[str]:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(job)]
    folder = Path(__file__).parents[2]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
    lines = [line for line in out.splitlines() if line.startswith("RESULT")]
    assert process.returncode == 0 and lines, error[-3000:]
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def one_device() -> np.ndarray:
    return np.asarray(finish(start(1, reference=True))["rows"])


def assert_alike(rows: Any, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    rows = np.asarray(rows)
    assert rows.shape == expected.shape == (8, 5)
    assert rows[-1, 0] < rows[0, 0]  # it trains
    np.testing.assert_allclose(rows, expected, rtol=tolerance, atol=tolerance)


def test_eight_devices(one_device: np.ndarray) -> None:
    result = finish(start(8))
    assert result["devices"] == 8 and result["teacher_shard"] == [32, 16]
    assert_alike(result["rows"], one_device)


@pytest.mark.slow
def test_teacher_split_over_the_model_axis(one_device: np.ndarray) -> None:
    result = finish(start(8, mesh={"data": 2, "model": 4}))
    assert result["teacher_shard"] == [8, 16]
    assert_alike(result["rows"], one_device)


@pytest.mark.slow
def test_two_processes(one_device: np.ndarray) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [start(2, address=address, processes=2, index=i) for i in range(2)]
    try:
        results = [finish(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for result in results:
        assert result["devices"] == 4
        assert_alike(result["rows"], one_device)


@pytest.mark.slow
def test_accumulation_and_remat(one_device: np.ndarray) -> None:
    assert_alike(finish(start(2, options={"accumulate": 4, "remat": True}))["rows"], one_device)


@pytest.mark.slow
def test_bfloat16_stays_near(one_device: np.ndarray) -> None:
    rows = np.asarray(finish(start(1, options={"bf16": True}))["rows"])
    error = np.abs(rows[:, 0] / one_device[:, 0] - 1)
    assert 1e-7 < error.max() < 0.02


def test_meshes_that_do_not_fit_are_one_line() -> None:
    from lrc_jax.compute.sharding import MeshSpec, make_mesh
    from lrc_jax.errors import InputError

    for spec, message in (
        (MeshSpec(model=3), "mesh.model: 3 does not divide"),
        (MeshSpec(data=5), "mesh: data 5 times model 1 is not"),
        (MeshSpec(data=-1), "mesh.data: -1 is negative"),
        (MeshSpec(model=0), "mesh.model: 0"),
    ):
        with pytest.raises(InputError, match=message):
            make_mesh(spec, 16)
