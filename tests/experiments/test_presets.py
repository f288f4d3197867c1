"""One set of Low-Rank Clone defaults, and the authors' as a preset."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from experiments.run_one.config import RunConfig, register, typed
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.recipes import AUTHORS, DEFAULT, Recipe
from lrc_jax.students.base import StudentOptions
from lrc_jax.training.distill import DistillSettings

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str) -> RunConfig:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return typed(compose("config", overrides=list(overrides)))


def recipe(config: RunConfig) -> Recipe:
    return Recipe(config.student.init, config.loss.clone_distance, config.clone_weight)


def test_a_run_a_distillation_and_the_library_have_the_same_defaults():
    assert recipe(composed()) == DEFAULT
    settings = DistillSettings("t", "x", 1, 1)
    assert Recipe(settings.init, settings.clone_distance, settings.clone_weight) == DEFAULT


def test_the_authors_are_a_preset():
    assert recipe(composed("preset=authors")) == AUTHORS != DEFAULT
    assert Recipe(StudentOptions().init, Objective().distance, LossWeights().clone) == AUTHORS


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_kept_studies_experiments_are_the_authors(path):
    """They say so themselves; what an experiment changes of it, it changes by name."""
    assert composed(f"+experiment={path.stem}").loss.clone_distance == AUTHORS.clone_distance
    assert "preset: authors" in path.read_text()


def test_an_svd_starts_from_principal_components():
    assert composed("student=svd").student.init == "pca"
    assert composed("+experiment=ablation", "ablation=svd").student.init == "pca"
