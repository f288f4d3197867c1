"""Information at the sites of real students: a student that is the teacher tells most."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.measure.sites import information_rows, site_information
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.students.statistics import residual_basis

TEACHER = DecoderConfig(24, 16, 24, 1, 2, 2, 8)


@functools.lru_cache(maxsize=1)
def probes():
    weights = jax.jit(functools.partial(init_weights, TEACHER))(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 24, (512, 8)).astype(np.int32)
    return Frozen(weights), Pool(tokens, tokens)


def rows(rank, init="random", key=0, **kwargs):
    frozen, pool = probes()
    if init == "pca":
        embed = np.asarray(frozen.teacher.embed_VD, np.float64)
        frozen = Frozen(frozen.teacher, jnp.asarray(residual_basis("pca", embed.T @ embed, rank)))
    student = make_student("lrc", TEACHER, CloneFlags(rank=rank), StudentOptions(init=init))
    params = jax.jit(student.init)(jax.random.key(1), frozen)
    return information_rows(
        student, TEACHER, params, frozen, pool, np.arange(pool.size), jax.random.key(key), negatives=256, **kwargs
    )


def test_a_student_that_is_the_teacher_tells_most():
    exact, narrow = rows(16, "pca", sites=("gate",)), rows(16, sites=("gate",))
    assert exact[0]["fvu"] < 1e-3 + 0.1  # what is left is the smoothing noise
    assert exact[0]["fvu"] < narrow[0]["fvu"]
    assert exact[0]["mutual_information"] > narrow[0]["mutual_information"] + 3 * narrow[0]["mi_se"]


def test_too_few_tokens_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"^measure\.information_samples: 32 tokens are too few for 16 \+ 4"):
        site_information(rng.normal(size=(32, 16)), rng.normal(size=(32, 4)), np.arange(32), 4, rng)
