"""Text from a decoder, to look at: greedy, at a temperature, or from the nucleus (top-p), with a key/value cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrc_jax.errors import InputError
from lrc_jax.inference.decode import Cache, decode_step, prefill
from lrc_jax.model import NEG_INF, DecoderConfig, Weights
from lrc_jax.teachers.tokenizer import Tokenizer


def nucleus(logits_BV: Float[Array, "B V"], top_p: Array | float) -> Float[Array, "B V"]:
    """Logits with all but the most likely tokens whose probabilities first sum to `top_p` set to NEG_INF
    (Holtzman et al. 2020). The most likely token is always kept."""
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # probability of all likelier tokens
    kept_BV = (before_BV < top_p) | (jnp.arange(logits_BV.shape[-1]) == 0)[None, :]
    threshold_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, NEG_INF)


def pick(logits_BV: Float[Array, "B V"], key: Array, temperature: Array, top_p: Array) -> Int[Array, "B"]:
    """The next tokens; temperature 0 takes the most likely."""
    warm_BV = nucleus(logits_BV / jnp.maximum(temperature, 1e-6), top_p)
    drawn_B = jax.random.categorical(key, warm_BV, axis=-1)
    return jnp.where(temperature > 0, drawn_B, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "count"))
def sample_tokens(
    config: DecoderConfig,
    weights: Weights,
    prompt_BT: Int[Array, "B T"],
    key: Array,
    temperature: Array | float,
    top_p: Array | float,
    count: int,
) -> Int[Array, "B count"]:
    """Continue prompts of one length by `count` tokens in one compiled program, a function of the key."""
    temperature, top_p = jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32)
    logits_BTV, cache = prefill(config, weights, prompt_BT, prompt_BT.shape[1] + count)
    keys = jax.random.split(key, count)
    first_B = pick(logits_BTV[:, -1].astype(jnp.float32), keys[0], temperature, top_p)

    def step(carry: tuple[Cache, Array], key: Array) -> tuple[tuple[Cache, Array], Array]:
        cache, token_B = carry
        logits_BV, cache = decode_step(config, weights, cache, token_B)
        token_B = pick(logits_BV.astype(jnp.float32), key, temperature, top_p)
        return (cache, token_B), token_B

    _, rest_SB = jax.lax.scan(step, (cache, first_B), keys[1:])
    return jnp.concatenate([first_B[:, None], rest_SB.T], axis=1)


def generate(
    config: DecoderConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    count: int = 50,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue a text.

    Args:
      prompt: may be empty where the tokenizer has a start token.
      count: tokens at most; the text ends before the first end token.
      temperature: 0 is greedy.
      top_p: share of probability to draw from.

    Returns:
      The continuation without the prompt.

    Raises:
      InputError: an argument is out of range, the prompt is empty, or prompt and continuation are too long.
    """
    if count < 1:
        raise InputError(f"tokens: {count} is less than 1")
    if not temperature >= 0:
        raise InputError(f"temperature: {temperature} is negative; 0 is greedy")
    if not 0 < top_p <= 1:
        raise InputError(f"top-p: {top_p} is outside (0, 1]")
    prompt_T = tokenizer.encode(prompt)
    if not len(prompt_T):
        raise InputError("prompt: empty, and the tokenizer has no start token; give some text")
    if len(prompt_T) + count > config.max_position_embeddings:
        raise InputError(
            f"tokens: prompt of {len(prompt_T)} and {count} more exceed the model's {config.max_position_embeddings}"
        )
    tokens = sample_tokens(
        config, weights, jnp.asarray(prompt_T)[None], jax.random.key(seed), temperature, top_p, count
    )
    ids = np.asarray(tokens)[0].tolist()
    end = next((i for i, token in enumerate(ids) if token in tokenizer.eos_ids), len(ids))
    # Decoded together with the prompt: a first token may need what stands before it (spaces, bytes of one character).
    whole, start = tokenizer.decode([*prompt_T, *ids[:end]]), tokenizer.decode(prompt_T)
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(ids[:end])
