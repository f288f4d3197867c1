"""Seconds by phase: what is counted where, and compilation apart."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from lrc_jax import clock


def test_phases_add_up_and_measuring_keeps_what_is_inside():
    began = time.monotonic()
    clock.start()
    time.sleep(0.02)
    with clock.phase("training"):
        time.sleep(0.04)
    with clock.phase("measuring"):
        time.sleep(0.03)
        with clock.phase("training"):  # a reference student: a cost of measuring
            time.sleep(0.05)
    seconds = clock.stop()
    assert sum(seconds.values()) == pytest.approx(time.monotonic() - began, abs=0.01)
    assert seconds["building"] == pytest.approx(0.02, abs=0.02)
    assert seconds["training"] == pytest.approx(0.04, abs=0.02)
    assert seconds["measuring"] == pytest.approx(0.08, abs=0.02)
    with pytest.raises(RuntimeError, match="not started"):
        clock.stop()


def test_compilation_is_counted_apart_and_once():
    """A function that traces and compiles another inside its own tracing: nested events must not count twice."""

    def deep(x):
        for i in range(60):
            x = jax.jit(lambda y, i=i: jnp.tanh(jnp.sin(y) * i) @ y.T)(x)
        return x

    began = time.monotonic()
    clock.start()
    with clock.phase("training"):
        jax.jit(deep)(jnp.ones((5, 5))).block_until_ready()
    seconds = clock.stop()
    elapsed = time.monotonic() - began
    assert 0.7 * elapsed < seconds["compiling"] <= elapsed
    assert 0 <= seconds["training"] < 0.3 * elapsed
