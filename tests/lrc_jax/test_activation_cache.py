"""The cache of teacher activations: what was computed, once, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.data.windows import Windows
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, Weights, forward
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.training import activation_cache
from lrc_jax.training.activation_cache import cached_activations

CONFIG = DecoderConfig(20, 16, 24, 2, 4, 2, 4)
TOKENS_NT = np.random.default_rng(0).integers(0, 20, (7, 5)).astype(np.int32)
SITES = ("logits", "final", "hidden.1", "layers.0.q_NQ", "layers.1.mlp_out_ND")


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(1)
    shapes = tensor_layout(CONFIG)
    return build_weights(CONFIG, lambda name: rng.standard_normal(shapes[name], np.float32))


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_values_and_reuse(
    dtype: str, precision: float, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, SITES, dtype=dtype, batch_size=3)
    acts = forward(CONFIG, weights, jnp.asarray(TOKENS_NT))
    expected = {
        "logits": acts.logits_NV,
        "final": acts.final_ND,
        "hidden.1": acts.hidden_ND[1],
        "layers.0.q_NQ": acts.layers[0].q_NQ,
        "layers.1.mlp_out_ND": acts.layers[1].mlp_out_ND,
    }
    for site, x in expected.items():
        got = entry[site].astype(np.float32).reshape(x.shape)
        np.testing.assert_allclose(got, x, rtol=precision, atol=1e-4)
    monkeypatch.setattr(activation_cache, "_write", None)  # a second pass would fail
    again = cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, SITES, dtype=dtype)
    for site in SITES:
        np.testing.assert_array_equal(again[site], entry[site])


def test_the_name_follows_the_content(weights: Weights, tmp_path: Path) -> None:
    other = TOKENS_NT.copy()
    other[0, 0] += 1
    for digest, tokens, sites in (("a", TOKENS_NT, ("final",)), ("b", TOKENS_NT, ("final",)), ("a", other, ("final",))):
        cached_activations(tmp_path, CONFIG, weights, digest, tokens, sites)
    assert len(list(tmp_path.iterdir())) == 3


def test_sequences_of_a_text_are_read_a_batch_at_a_time(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are never whole in memory, and give the entry of the array with their tokens."""
    ids = np.random.default_rng(2).integers(0, 20, 200).astype(np.uint16)
    windows = Windows(ids, np.array([0]), np.array([200]), 6, np.random.default_rng(3).permutation(33), slice(0, 5))
    tokens_NT = np.asarray(windows)
    expected = np.array(cached_activations(tmp_path / "a", CONFIG, weights, "d", tokens_NT, ("final",))["final"])
    monkeypatch.setattr(activation_cache, "READ", 20)
    read, most = Windows._read, []
    monkeypatch.setattr(Windows, "_read", lambda self, rows: most.append(np.size(rows)) or read(self, rows))
    found = cached_activations(tmp_path / "b", CONFIG, weights, "d", windows, ("final",))["final"]
    np.testing.assert_array_equal(found, expected)
    assert max(most) <= 8
    assert [p.name for p in (tmp_path / "a").iterdir()] == [p.name for p in (tmp_path / "b").iterdir()]


def test_interrupted_and_damaged(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(activation_cache, "read_site", fail)
        with pytest.raises(KeyboardInterrupt):
            cached_activations(tmp_path, CONFIG, weights, "x", TOKENS_NT[:6], ("final",))
    assert not list(tmp_path.iterdir())
    cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, ("final",))
    file = next(tmp_path.rglob("final.npy"))
    file.write_bytes(file.read_bytes()[:-20])
    again = cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, ("final",))["final"]  # computed again
    assert again.shape == (7, 5, 16) and np.isfinite(again.astype(np.float32)).all()


def test_bad_requests_are_one_line(weights: Weights, tmp_path: Path) -> None:
    for site in ("hidden.9", "layers.0.nothing", "logit"):
        with pytest.raises(InputError, match=f"site '{site}' is unknown"):
            cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, (site,))
    with pytest.raises(InputError, match="dtype 'int8' is unknown"):
        cached_activations(tmp_path, CONFIG, weights, "d", TOKENS_NT, ("final",), dtype="int8")
    huge = Weights(weights.embed_VD, weights.layers, weights.final_norm_D * 1e6, weights.head_DV)
    with pytest.raises(InputError, match="final exceeds float16's range"):
        cached_activations(tmp_path, CONFIG, huge, "d", TOKENS_NT, ("final",))
    assert not list(tmp_path.iterdir())
