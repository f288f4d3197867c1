"""Test configuration: mistakes become errors."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# One thread per worker and no accelerator: bit-identity is promised for one thread only. Set before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiled code is used once or twice here: LLVM's optimisation costs more than it saves (a quarter of the suite).
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 --xla_backend_optimization_level=0",
)
# Workers, and the commands that they start, compile the same small programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tokens of texts are kept for the tests of one run, not among the user's.
if "LRC_CACHE" not in os.environ:
    os.environ["LRC_CACHE"] = tempfile.mkdtemp(prefix="lrc-tests-")
    atexit.register(shutil.rmtree, os.environ["LRC_CACHE"], ignore_errors=True)

import numpy as np
import pytest
from jaxtyping import install_import_hook

HERE = Path(__file__).parent
# Annotations are checked, shapes too, in what a test runs in its own process (tests/lrc_jax/test_annotations.py).
# Not in modules without shapes that handle bytes and numbers one by one: half of all calls, and a suite 4 % slower.
BY_THE_BYTE = ("clock", "data/corpus", "measure/coding", "teachers/gguf_file", "teachers/keys")
UNCHECKED = {f"lrc_jax/{name}.py" for name in BY_THE_BYTE}
SOURCES = {str(path.relative_to(HERE.parent)) for path in (HERE.parent / "lrc_jax").rglob("*.py")}
install_import_hook([x[:-3].replace("/", ".") for x in sorted(SOURCES - UNCHECKED)], "typecheck.checked")


def reference_cases() -> list[Path]:
    """Folders with dumps of the authors' implementation: the copies here and those of LRC_REFERENCE_CASES."""
    roots = [HERE / "reference", *(Path(p) for p in os.environ.get("LRC_REFERENCE_CASES", "").split(":") if p)]
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise pytest.UsageError(f"LRC_REFERENCE_CASES: {root} is no folder")
        for path in sorted(root.rglob("expected.json")):
            found[path.parent.name] = path.parent  # a later root replaces an earlier case of the same name
    return [found[name] for name in sorted(found)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_folder" in metafunc.fixturenames:
        cases = reference_cases()
        metafunc.parametrize("case_folder", cases, ids=[c.name for c in cases])


SLOWEST = 1200  # seconds of one slow test, on a machine five times as slow as ours


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOWEST))


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Silent broadcasting over ranks is an error."""
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield


# A small teacher and a text for it, which the tests of commands and library share. They only read them.


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of random weights that reads words, as a Hugging Face folder."""
    from words import word_tokenizer

    from lrc_jax.model import DecoderConfig
    from lrc_jax.teachers.huggingface import build_weights, tensor_layout
    from lrc_jax.training.export import write_model

    folder = tmp_path_factory.mktemp("teacher")
    config = DecoderConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_position_embeddings=32,
    )
    rng = np.random.default_rng(0)
    shapes = tensor_layout(config)
    weights = build_weights(config, lambda n: 0.3 * rng.standard_normal(shapes[n], np.float32) + ("norm" in n))
    write_model(folder, config, weights, word_tokenizer(20))
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of random words of that teacher."""
    rng = np.random.default_rng(0)
    documents = ["\n".join(" ".join(f"w{i}" for i in rng.integers(0, 20, 40)) for _ in range(3)) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents))
    return path
