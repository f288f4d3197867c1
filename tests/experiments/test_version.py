"""Identities of runs: the same in every Python, and different where numbers are."""

from __future__ import annotations

import ast
import dataclasses
import hashlib

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


def test_accumulation_is_part_of_a_run_where_it_changes_its_losses():
    run = config.RunConfig(teacher=config.TinyTeacher(), data=config.SyntheticData())
    parts = dataclasses.replace(run, accumulate=4)
    assert config.identity(parts) == config.identity(run)
    for loss in (config.Loss(clone_distance="normalised"), config.Loss(clone_target="shuffled")):
        run, parts = (dataclasses.replace(c, loss=loss) for c in (run, parts))
        assert config.identity(parts) != config.identity(run)
