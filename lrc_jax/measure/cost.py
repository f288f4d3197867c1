"""What a model costs to run, for teacher and students alike: by formula, from the compiler, and by the clock."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrc_jax.inference.decode import greedy_continue, prefill
from lrc_jax.measure.flops import compiled_forward, forward_flops, kv_cache_bytes, parameter_count, weight_bytes
from lrc_jax.model import DecoderConfig, Weights


def peak_process_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclasses.dataclass(frozen=True)
class InferenceTiming:
    """Medians over repeats. Prefill: the prompt in one pass; decode: one token per step with the cache."""

    prefill_s: float
    prefill_tokens_per_s: float
    decode_s_per_token: float
    decode_tokens_per_s: float
    batch: int
    prompt: int
    new_tokens: int


def time_inference(
    config: DecoderConfig,
    weights: Weights,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    prompt: int = 64,
    new_tokens: int = 32,
    repeats: int = 7,
) -> InferenceTiming:
    """Time prefill and decoding with a key/value cache, compiled and warmed up; latency of a step is for the batch."""
    weights = jax.device_put(weights)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (batch, prompt)), jnp.int32)
    read = jax.jit(lambda w, t: _last_token(*prefill(config, w, t, prompt + new_tokens)))
    prefill_times, decode_times = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        first, cache = jax.block_until_ready(read(weights, tokens))
        middle = time.perf_counter()
        jax.block_until_ready(greedy_continue(config, weights, cache, first, new_tokens)[0])
        if repeat:  # the first round compiles
            prefill_times.append(middle - start)
            decode_times.append((time.perf_counter() - middle) / new_tokens)
    prefill_s, decode_s = float(np.median(prefill_times)), float(np.median(decode_times))
    return InferenceTiming(prefill_s, batch * prompt / prefill_s, decode_s, batch / decode_s, batch, prompt, new_tokens)


def _last_token(logits_BTV: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return jnp.argmax(logits_BTV[:, -1], axis=-1).astype(jnp.int32), cache


def inference_columns(
    config: DecoderConfig,
    weights: Weights,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    prompt: int = 64,
    new_tokens: int = 32,
    repeats: int = 7,
    length: int | None = None,
) -> dict[str, float | int]:
    """Columns of a row of the cost table: teacher and students alike.

    Args:
      prompt, new_tokens: whose time is measured. length: tokens of the sequences whose FLOPs and memory are counted;
        None: those of the prompt.
    """
    bytes_each = jax.tree.leaves(weights)[0].dtype.itemsize
    length = prompt if length is None else length
    compiled = compiled_forward(config, weights, batch, length)
    timing = time_inference(config, weights, rng, batch=batch, prompt=prompt, new_tokens=new_tokens, repeats=repeats)
    return {
        "inference_params": parameter_count(config),
        "flops_per_token": forward_flops(config, length).total,
        "flops_per_token_compiler": compiled.flops / (batch * length),
        "weight_bytes": weight_bytes(config, bytes_each),
        "kv_bytes_per_token": kv_cache_bytes(config, bytes_each),
        "forward_peak_bytes": compiled.peak_bytes,
        "process_peak_bytes": peak_process_bytes(),
        "prefill_tokens_per_s": timing.prefill_tokens_per_s,
        "prefill_ms": 1e3 * timing.prefill_s,
        "decode_tokens_per_s": timing.decode_tokens_per_s,
        "decode_ms_per_token": 1e3 * timing.decode_s_per_token,
        "timing_batch": batch,
        "timing_prompt": prompt,
    }
