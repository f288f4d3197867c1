"""The schema says what the library says: the same defaults and the same choices. It stands by itself because reading a
configuration must not load JAX; what has to stand twice is held together here."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.run_one import config
from lrc_jax import losses, objective
from lrc_jax.clone import CloneFlags
from lrc_jax.compute import fast
from lrc_jax.compute.sharding import MeshSpec
from lrc_jax.data.synthetic import LanguageSpec
from lrc_jax.measure import convergence
from lrc_jax.recipes import DEFAULT
from lrc_jax.students import STUDENT_KINDS, StudentOptions, registry
from lrc_jax.teachers.tiny import TinyTeacherSpec
from lrc_jax.training import train

# The schema's class, the library's, and fields whose default differs for the reason named.
PAIRS = [
    (config.SyntheticData, LanguageSpec, {}),
    (config.TinyTeacher, TinyTeacherSpec, {}),
    (config.Optimizer, train.OptimizerSpec, {}),
    (config.RunConfig, train.StepOptions, {}),
    (config.Student, StudentOptions, {"init": DEFAULT.init}),
    (config.Student, CloneFlags, {"del_layers": []}),  # a list where the library wants a tuple
    (config.Mesh, MeshSpec, {"data": 1}),  # a run takes one device unless it is told otherwise
]


def defaults(kind) -> dict:
    return {
        f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        for f in dataclasses.fields(kind)
    }


@pytest.mark.parametrize(
    ("schema", "library", "different"), PAIRS, ids=[f"{s.__name__}-{t.__name__}" for s, t, _ in PAIRS]
)
def test_defaults_are_those_of_the_library(schema, library, different):
    ours, theirs = defaults(schema), defaults(library)
    shared = set(ours) & set(theirs) - {"name"}
    assert shared
    for name in shared:
        assert ours[name] == different.get(name, theirs[name]), name
    assert all(different[name] != theirs[name] for name in different)
    known = {"clone"} if library is StudentOptions else {"rank"} if library is CloneFlags else set()
    assert set(theirs) - set(ours) <= known, "a setting of the library that no configuration reaches"


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("student.name", (*STUDENT_KINDS, "bilinear")),
        ("student.init", registry.INITS),
        ("optimizer.schedule", train.SCHEDULES),
        ("loss.clone_distance", losses.CLONE_DISTANCES),
        ("loss.clone_target", objective.CLONE_TARGETS),
        ("measure.spacing", convergence._SPACINGS),
        ("step", fast.STEPS),
    ],
)
def test_choices_are_those_of_the_library(key, choices):
    assert set(config.CHOICES[key]) == set(choices)
