"""Log probabilities of given continuations: what cloze tasks and lm-eval's multiple-choice tasks are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrc_jax.compute.fast import forward
from lrc_jax.inference.evaluate import batch_tokens
from lrc_jax.losses import IGNORE, cross_entropy_per_token
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.teachers.tokenizer import Tokenizer

SHORTEST = 16  # lengths are powers of two from here on: few shapes to compile

Pair = tuple[Sequence[int], Sequence[int]]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of its continuation, encoded as one text and cut where the context alone would end.

    Args:
      context: not empty; spaces at its end go to the continuation.
    """
    kept = context.rstrip()
    whole = tokenizer.encode(context + continuation).tolist()
    begun = tokenizer.encode(kept).tolist()
    return begun, whole[len(begun) :]


@functools.partial(jax.jit, static_argnames=("config",))
def _scores(config: DecoderConfig, weights: Weights, tokens_BT: Array, labels_BT: Array) -> tuple[Array, Array]:
    logits_NV = forward(config, weights, tokens_BT).logits_NV
    labels_N = labels_BT.reshape(-1)
    cost_BT = cross_entropy_per_token(logits_NV, labels_N).reshape(labels_BT.shape)
    likeliest_BT = (jnp.argmax(logits_NV, axis=-1) == labels_N).reshape(labels_BT.shape)
    return -jnp.sum(cost_BT, axis=1), jnp.all(likeliest_BT | (labels_BT == IGNORE), axis=1)


def continuation_scores(config: DecoderConfig, weights: Weights, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Of each (context, continuation) in token ids, the continuation's log probability in nats, and whether each of its
    tokens is the likeliest.

    Contexts that are too long for the model lose their beginning, as in lm-eval.
    """
    most = config.max_position_embeddings
    rows: dict[int, list[tuple[int, list[int], int]]] = {}
    for i, (context, continuation) in enumerate(pairs):
        tokens = [*context, *continuation][-(most + 1) :]
        length = max(SHORTEST, 1 << (len(tokens) - 2).bit_length())
        rows.setdefault(min(length, max(most, len(tokens) - 1)), []).append((i, tokens, len(continuation)))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for length, group in rows.items():
        size = 1 << max(0, (batch_tokens(config.vocab_size) // length).bit_length() - 1)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            tokens_BT = np.zeros((size, length), np.int32)
            labels_BT = np.full((size, length), IGNORE, np.int32)
            for row, (_, tokens, count) in enumerate(part):
                last = len(tokens) - 1
                tokens_BT[row, :last] = tokens[:-1]
                scored = min(count, last)
                labels_BT[row, last - scored : last] = tokens[len(tokens) - scored :]
            logs_B, greedy_B = jax.device_get(_scores(config, weights, jnp.asarray(tokens_BT), jnp.asarray(labels_BT)))
            for (i, *_), log, greedy in zip(part, logs_B, greedy_B, strict=False):
                found[i] = float(log), bool(greedy)
    return found
