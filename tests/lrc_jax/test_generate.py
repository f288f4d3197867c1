"""Generation: the cache changes nothing, the nucleus is what it says, the seed decides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from words import word_tokenizer

from lrc_jax.errors import InputError
from lrc_jax.inference.generate import generate, nucleus, sample_tokens
from lrc_jax.model import NEG_INF, DecoderConfig, Weights, forward
from lrc_jax.teachers.huggingface import build_weights, tensor_layout
from lrc_jax.teachers.tokenizer import Tokenizer

CONFIG = DecoderConfig(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_position_embeddings=48,
)


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(0)
    shapes = tensor_layout(CONFIG)
    return build_weights(CONFIG, lambda name: rng.standard_normal(shapes[name], np.float32))


def test_greedy_follows_the_forward_pass(weights: Weights) -> None:
    prompt_BT = jnp.asarray([[1, 2, 3], [4, 5, 6]])
    out = sample_tokens(CONFIG, weights, prompt_BT, jax.random.key(0), 0.0, 1.0, 12)
    tokens = np.concatenate([np.asarray(prompt_BT), np.asarray(out)], axis=1)
    logits = forward(CONFIG, weights, jnp.asarray(tokens)).logits_NV.reshape(*tokens.shape, -1)
    np.testing.assert_array_equal(np.asarray(logits).argmax(-1)[:, 2:-1], out)
    # A tiny nucleus is greedy at any temperature.
    np.testing.assert_array_equal(
        sample_tokens(CONFIG, weights, prompt_BT, jax.random.key(1), 5.0, 1e-6, 12), tokens[:, 3:]
    )


def test_nucleus_by_hand() -> None:
    logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.15, 0.25]]))
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert np.flatnonzero(np.asarray(nucleus(logits, top_p))[0] > NEG_INF / 2).tolist() == kept


def test_samples_follow_the_distribution_and_the_seed(weights: Weights) -> None:
    prompt_BT = jnp.tile(jnp.asarray([[1, 2, 3]]), (4000, 1))
    first = np.asarray(sample_tokens(CONFIG, weights, prompt_BT, jax.random.key(0), 2.0, 1.0, 1))[:, 0]
    again = np.asarray(sample_tokens(CONFIG, weights, prompt_BT, jax.random.key(0), 2.0, 1.0, 1))[:, 0]
    np.testing.assert_array_equal(first, again)
    logits = forward(CONFIG, weights, prompt_BT[:1]).logits_NV[-1]
    expected = np.asarray(jax.nn.softmax(logits / 2.0))
    drawn = np.bincount(first, minlength=23) / 4000
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_text_and_bad_arguments(weights: Weights) -> None:
    tokenizer = word_tokenizer(23)
    text = generate(CONFIG, weights, tokenizer, "w1 w2", count=5)
    assert len(text.split()) == 5
    end = int(text.split()[2][1:])
    stopped = Tokenizer(tokenizer.backend, None, (end,))
    expected = text.split()[: [int(w[1:]) for w in text.split()].index(end)]
    assert generate(CONFIG, weights, stopped, "w1 w2", count=5).split() == expected
    for options, message in (
        ({"count": 0}, "tokens: 0 is less"),
        ({"temperature": -1.0}, "temperature: -1.0 is negative"),
        ({"top_p": 0.0}, "top-p: 0.0 is outside"),
        ({"count": 47}, "prompt of 2 and 47 more exceed the model's 48"),
    ):
        with pytest.raises(InputError, match=message):
            generate(CONFIG, weights, tokenizer, "w1 w2", **options)
    with pytest.raises(InputError, match="prompt: empty"):
        generate(CONFIG, weights, tokenizer, "")
