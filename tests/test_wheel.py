"""The suite as a stranger has it: a wheel, installed away from any checkout, used in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from experiments.run_one.version import code_version

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("conf", "experiments", "hydra_plugins", "lrc_jax", "theory")

pytestmark = pytest.mark.slow


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's contents; what it depends on comes from the environment of the tests."""
    source, built, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "target"))
    for name in SOURCES:  # a copy: a build leaves its folder behind
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Old setuptools cannot read pyproject.toml: pip then fetches one for the build.
    here = int(metadata.version("setuptools").partition(".")[0]) >= 77
    pip("wheel", "--no-deps", *(["--no-build-isolation"] if here else []), "--wheel-dir", str(built), str(source))
    (wheel,) = built.glob("*.whl")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


@pytest.fixture
def call(installed, tmp_path):
    """Run a command of the installed wheel in an empty folder; returns what it prints."""

    def run(*words, code=0):
        environment = os.environ | {"PYTHONPATH": str(installed), "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stderr
        return done.stdout

    return run


@pytest.mark.timeout(900)
def test_a_wheel_needs_no_checkout(call, installed, tmp_path):
    where = "import experiments, lrc_jax, theory; print(experiments.__file__, lrc_jax.__file__, theory.__file__)"
    assert all(Path(path).is_relative_to(installed) for path in call(sys.executable, "-c", where).split())
    for program in ("lrc", "theory"):
        assert call(program, "--version") == f"lrc-scaling-suite {metadata.version('lrc-scaling-suite')}\n"
    version = "from experiments.run_one.version import code_version; print(code_version())"
    assert call(sys.executable, "-c", version).strip() == code_version()

    assert "test_loss=" in call("lrc", "run", "rank=4", "samples=256", "steps=100")
    assert "already done" in call("lrc", "run", "rank=4", "samples=256", "steps=100")
    sweep = ("lrc", "run", "-m", "rank=4,8", "samples=256", "steps=100", "study=sweep", "hydra/launcher=fused")
    assert call(*sweep).count("test_loss=") >= 2
    assert "done" in call("lrc", "status", "study=sweep")
    assert "2 rows" in call("lrc", "collect", "study=sweep")
    assert "generalization" in call("theory", "check", "results/sweep/measurements.csv")
    call("lrc", "figures", "study=sweep")
    call("lrc", "report", "study=sweep")
    assert (tmp_path / "results" / "sweep" / "report.html").is_file()
    assert "usage: lrc distill" in call("lrc", "distill", "--help")
