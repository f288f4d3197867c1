"""Identities of runs: the same in every Python, and different where numbers are."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import shutil

import pytest

from experiments.run_one import config, version

TEXT = """
import numpy as np
class A(B):
    x: int = 1
def f(a, *b, c=None, **d):
    'words'
    return [y for y in b if y] or f"{a:.2f}{c!r}"
"""


def test_the_code_version_does_not_depend_on_the_python():
    # Written down once, by Python 3.11; `ast.dump` differs between 3.11, 3.12 and 3.13.
    text = version._without_docstrings(ast.parse(TEXT))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c67d84c2dcefb7c3"


def test_everything_that_the_pipeline_reaches_is_declared(monkeypatch):
    """A module that a run's numbers come from and that nobody declared would change them unnoticed."""
    assert version.undeclared() == []
    for name in (*version.METHOD, *version.CARRIERS):
        assert all(path.is_file() for _, path in version._members(name)), name
    monkeypatch.setattr(version, "METHOD", tuple(m for m in version.METHOD if m != "lrc_jax.losses"))
    assert version.undeclared() == ["lrc_jax.losses"]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Edits a copy of the packages, and returns the code version of the copy."""
    for package in version.PACKAGES:
        shutil.copytree(version.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(version, "ROOT", tmp_path)

    def edit(file: str, old: str, new: str) -> str:
        path = tmp_path / file
        assert old in path.read_text(), f"{file} no longer has {old!r}"
        path.write_text(path.read_text().replace(old, new, 1))
        version.code_version.cache_clear()
        return version.code_version()

    yield edit
    version.code_version.cache_clear()


def test_rewording_a_progress_bar_keeps_the_version_and_another_loss_changes_it(edited):
    version.code_version.cache_clear()
    before = version.code_version()
    assert edited("experiments/common/progress.py", "class Progress", "WORDS = 'new'\n\n\nclass Progress") == before
    assert edited("lrc_jax/losses.py", '"""', '"""Reworded. ') == before
    assert edited("lrc_jax/losses.py", "jnp.mean", "jnp.sum") != before


def test_accumulation_is_part_of_a_run_where_it_changes_its_losses():
    plain = config.Loss(clone_distance="mseloss")
    run = config.RunConfig(teacher=config.TinyTeacher(), data=config.SyntheticData(), loss=plain)
    parts = dataclasses.replace(run, accumulate=4)
    assert config.identity(parts) == config.identity(run)
    for loss in (config.Loss(clone_distance="normalised"), dataclasses.replace(plain, clone_target="shuffled")):
        run, parts = (dataclasses.replace(c, loss=loss) for c in (run, parts))
        assert config.identity(parts) != config.identity(run)
