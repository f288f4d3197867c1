"""Intervals over seeds: golden numbers, and coverage in simulations small enough for every run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from theory.judge.intervals import (
    UNDEFINED,
    bootstrap_standard_error,
    cluster_weights,
    generator,
    mean_interval,
    small_sample_factor,
    t_interval,
    wild_cluster_interval,
)


def test_small_sample_factor_makes_the_bootstrap_match_the_classical_standard_error():
    """For a mean the corrected cluster bootstrap must reproduce sd/sqrt(S) with the S-1 divisor; without the factor it
    is 11 % too small at five seeds."""
    values = np.array([0.3, -1.2, 0.8, 2.0, 0.1])
    draws = cluster_weights(5, 200_000, generator(0)) @ values / 5
    classical = np.std(values, ddof=1) / np.sqrt(5)
    assert bootstrap_standard_error(draws, 5) == pytest.approx(classical, rel=0.01)
    assert small_sample_factor(5) == pytest.approx(np.sqrt(5 / 4))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_cluster_interval_of_a_mean_covers(seeds):
    """Nominal 95 % over 4,000 samples of normal seeds; the percentile bootstrap reaches .74 to .89 here."""
    rng = np.random.default_rng(seeds)
    samples = rng.standard_normal((4000, seeds))
    draws = samples @ cluster_weights(seeds, 2000, generator(1)).T / seeds
    errors = np.std(draws, axis=1) * small_sample_factor(seeds)
    half = stats.t.ppf(0.975, seeds - 1) * errors
    assert np.mean(np.abs(samples.mean(axis=1)) <= half) == pytest.approx(0.95, abs=0.012)


def test_wild_interval_covers_about_as_well():
    rng = np.random.default_rng(3)
    hits = 0
    for k in range(400):
        x = rng.standard_normal(5)
        interval = wild_cluster_interval(x.mean(), (x - x.mean()) / 5, 0.95, generator(9, k), draws=600)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.91 <= hits / 400 <= 0.99


def test_wild_interval_moves_with_the_estimate_and_scales_with_the_scores():
    scores = np.array([0.3, -0.1, 0.4, -0.5, -0.1])
    plain = wild_cluster_interval(0.0, scores, 0.95, generator(9))
    assert plain.low == -plain.high
    moved = wild_cluster_interval(7.0, 3 * scores, 0.95, generator(9))
    assert (moved.low, moved.high) == pytest.approx((7 - 3 * plain.high, 7 + 3 * plain.high))
    off = wild_cluster_interval(0.0, scores + 2.0, 0.95, generator(9))  # their mean is no spread
    assert off.high == pytest.approx(plain.high)
    assert wild_cluster_interval(0.0, np.array([0.1, np.nan, 0.2]), 0.95, generator(9)) is UNDEFINED


def test_t_interval_and_mean_interval_golden():
    interval = t_interval(1.0, 0.5, 5, 0.95)
    assert (interval.low, interval.high) == pytest.approx((1 - 0.5 * 2.7764451, 1 + 0.5 * 2.7764451))
    again = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 0.95)
    assert (again.low, again.high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)


def test_one_seed_has_no_interval():
    assert t_interval(1.0, 0.5, 1, 0.95) == UNDEFINED
    assert mean_interval(np.array([1.0]), 0.95) == UNDEFINED
    assert np.isnan(bootstrap_standard_error(np.ones(10), 1))


def test_streams_repeat_and_differ_by_key():
    assert np.array_equal(generator(1).random(3), generator(1).random(3))
    assert not np.array_equal(generator(1).random(3), generator(2).random(3))
