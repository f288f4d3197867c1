"""Seconds by phase: what is counted where, and compilation apart."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from lrc_jax import clock


def test_phases_add_up_and_measuring_keeps_what_is_inside(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    clock.start()
    take(2)
    with clock.phase("training"):
        take(4)
    with clock.phase("measuring"):
        take(3)
        with clock.phase("training"):  # a reference student: a cost of measuring
            take(5)
    assert clock.stop() == {"building": 2, "training": 4, "measuring": 8, "compiling": 0}
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
