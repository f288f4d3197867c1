"""Information at the sites of real students: bounds in the right order, and better students tell more."""

import functools

import jax
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import Pool
from lrc_jax.measure.sites import information_rows
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.statistics import residual_basis
from lrc_jax.students import Frozen, StudentOptions, make_student

TEACHER = DecoderConfig(24, 16, 24, 2, 2, 2, 8)


@functools.lru_cache(maxsize=1)
def probes():
    weights = jax.jit(functools.partial(init_weights, TEACHER))(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 24, (512, 8)).astype(np.int32)
    return Frozen(weights), Pool(tokens, tokens)


def rows(rank, init="random", key=0, **kwargs):
    frozen, pool = probes()
    if init == "pca":
        embed = np.asarray(frozen.teacher.embed_VD, np.float64)
        frozen = Frozen(frozen.teacher, residual_basis("pca", embed.T @ embed, rank))
    student = make_student("lrc", TEACHER, CloneFlags(rank=rank), StudentOptions(init=init))
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    return information_rows(
        student, TEACHER, params, frozen, pool, np.arange(pool.size), jax.random.key(key), negatives=256, **kwargs
    )


def test_rows_have_the_tables_columns_and_ordered_bounds():
    got = rows(4)
    assert [r["site"] for r in got] == [f"layers.{i}.{s}" for i in (0, 1) for s in ("q", "gate", "mlp_out", "attn_out")]
    for r in got:
        assert r["mi_floor"] - 4 * r["mi_floor_se"] <= r["mutual_information"] <= r["mi_ceiling"]
        assert r["mi_pca_reference"] <= r["mi_ceiling"]
        assert r["mi_se"] > 0 and abs(r["calibration_error"]) < 0.1
        assert r["mi_documents"] == 512 and r["mi_tokens"] == 4096
    assert rows(4, sites=("q",))[0]["mutual_information"] == pytest.approx(got[0]["mutual_information"])


def test_a_student_that_is_the_teacher_tells_most():
    exact, narrow = rows(16, "pca", sites=("gate",)), rows(16, sites=("gate",))
    assert exact[0]["fvu"] < 1e-3 + 0.1  # what is left is the smoothing noise
    assert exact[0]["fvu"] < narrow[0]["fvu"]
    assert exact[0]["mutual_information"] > narrow[0]["mutual_information"] + 3 * narrow[0]["mi_se"]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="sites"):
        rows(4, sites=("nowhere",))
    frozen, pool = probes()
    student = make_student("lrc", TEACHER, CloneFlags(rank=4), StudentOptions())
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    few = Pool(pool.tokens_NT[:16], pool.labels_NT[:16])
    with pytest.raises(ValueError, match="too few"):
        information_rows(student, TEACHER, params, frozen, few, np.arange(16), jax.random.key(0))
    with pytest.raises(ValueError, match="document numbers"):
        information_rows(student, TEACHER, params, frozen, pool, np.arange(3), jax.random.key(0))
