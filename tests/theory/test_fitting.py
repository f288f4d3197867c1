"""Optimisers against closed forms and scipy; rival laws; the risk surface."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from theory.judge.model_selection import MAX_GROUPS, best_rival, compare, extrapolation_error
from theory.laws.least_squares import log_linear, robust_scale, smooth_deviation
from theory.laws.surface import Surface, nonnegative_least_squares


def test_log_linear_recovers_exponents_of_exact_data():
    x = np.geomspace(1, 100, 9)
    design = np.column_stack([np.ones(9), np.log(x)])
    y = np.stack([3.0 * x**-0.5, 0.1 * x**-1.2])
    np.testing.assert_allclose(
        log_linear(design, y, np.full(9, 0.1)), [[np.log(3), -0.5], [np.log(0.1), -1.2]], atol=1e-6
    )


def test_negative_cells_are_used_not_dropped():
    """Noise of mean zero is harmless on the linear scale; dropping negative cells would flatten the slope."""
    rng = np.random.default_rng(0)
    x = np.tile(np.geomspace(1, 100, 5), 400)
    y = x**-0.8 + 0.05 * rng.standard_normal(len(x))
    assert (y < 0).mean() > 0.05
    design = np.column_stack([np.ones_like(x), np.log(x)])
    assert log_linear(design, y[None], np.full_like(x, 0.05))[0, 1] == pytest.approx(-0.8, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_nonnegative_least_squares_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    columns, y = rng.standard_normal((3, 12, 3)), rng.standard_normal(12)
    found, error = nonnegative_least_squares(columns, y)
    for k in range(3):
        want, norm = nnls(columns[k], y)
        np.testing.assert_allclose(found[k], want, atol=1e-6)
        assert error[k] == pytest.approx(norm**2, abs=1e-6)


def test_smooth_deviation_recovers_a_power_law_of_the_noise():
    x = np.geomspace(1, 1000, 12)
    design = np.column_stack([np.ones(12), np.log(x)])
    rng = np.random.default_rng(1)
    sd = x**-0.5 * np.sqrt(rng.chisquare(4, 12) / 4)
    slope = np.polyfit(np.log(x), np.log(smooth_deviation(design, x**-0.5, sd)), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)


def test_robust_scale_ignores_outliers():
    r = np.random.default_rng(0).standard_normal(2000)
    r[:100] = 1e6
    assert robust_scale(r) == pytest.approx(1.0, abs=0.1)


def _noisy(law, noise=0.02, points=14):
    x = np.geomspace(1, 1e4, points)
    y = law(x) * np.exp(noise * np.random.default_rng(5).standard_normal(points))
    return x, np.zeros(points, dtype=int), y, noise * y


def test_a_power_law_has_no_rival():
    assert best_rival(compare(*_noisy(lambda x: x**-0.5))) is None


def test_an_offset_is_named():
    rival = best_rival(compare(*_noisy(lambda x: x**-0.7 + 0.02)))
    assert rival is not None
    assert rival.exponent == pytest.approx(-0.7, abs=0.05)


def test_an_offset_below_zero_is_named():
    rival = best_rival(compare(*_noisy(lambda x: x**-0.3 - 0.03)))
    assert rival is not None
    assert rival.exponent == pytest.approx(-0.3, abs=0.05)
    assert rival.offset < 0


def test_the_extrapolation_error_is_the_mean_log_residual_of_the_largest_half_decade():
    """Two groups with constants of their own; beyond the middle the law is lifted by a tenth."""
    x, group = np.tile(np.geomspace(1, 1e4, 9), 2), np.repeat([0, 1], 9)
    y = np.where(group == 0, 1.0, 50.0) * x**-0.5
    out = x > 10**3.5 * 1.001
    residual, distance = extrapolation_error(x, group, np.where(out, 1.1 * y, y), 0.1 * y)
    assert residual == pytest.approx(np.log(1.1), abs=1e-6)
    assert distance == pytest.approx(np.log(x[out]).mean() - np.log(x[~out]).mean())
    assert extrapolation_error(x, group, np.where(out, -y, y), 0.1 * y)[0] == np.inf
    short = x <= 10**0.5 * 1.001
    assert extrapolation_error(x[short], group[short], y[short], 0.1 * y[short]) is None


def test_laws_are_compared_on_a_bounded_number_of_groups():
    groups = 3 * MAX_GROUPS
    x, group = np.tile(np.geomspace(1, 1e3, 7), groups), np.repeat(np.arange(groups), 7)
    y = (1.0 + group) * (x**-0.7 + 0.02)
    assert best_rival(compare(x, group, y, 0.01 * y)).name == "power+offset"


def test_a_law_that_the_smaller_levels_do_not_determine_predicts_nothing():
    """Two levels below the largest half-decade: an offset of each group and the exponent are one number there."""
    x, group = np.tile([1.0, 8.0, 64.0], 4), np.repeat(np.arange(4), 3)
    y = (1.0 + group) * (x**-1.6 + 0.01) * np.exp(0.02 * np.sin(5.0 * np.arange(12)))
    errors = {f.name: f.heldout_error for f in compare(x, group, y, 0.02 * y)}
    assert np.isfinite([errors["power"], errors["power+shared offset"]]).all()
    assert np.isnan(errors["power+offset"])
    one = group == 0
    assert np.isnan([f.heldout_error for f in compare(x[one], group[one], y[one], 0.02 * y[one])][1:]).all()
    x = np.tile([1.0, 4.0, 8.0, 64.0], 4)
    group = np.repeat(np.arange(4), 4)
    y = (1.0 + group) * (x**-1.6 + 0.01)
    assert np.isfinite([f.heldout_error for f in compare(x, group, y, 0.02 * y)]).all()


def test_an_offset_that_all_groups_share_is_told_from_one_of_each():
    x, group = np.tile(np.geomspace(1, 1e4, 9), 3), np.repeat([0, 1, 2], 9)
    scale, rng = np.array([1.0, 10.0, 100.0])[group], np.random.default_rng(0)
    noise = np.exp(0.01 * rng.standard_normal(27))
    for law, name in ((scale * (x**-0.7 + 0.01), "power+offset"), (scale * x**-0.7 + 0.01, "power+shared offset")):
        assert best_rival(compare(x, group, law * noise, 0.01 * law)).name == name


SURFACE = Surface(0.5, 2.0, 1.5, 0.3, 0.8, 0.6)


def test_best_rank_minimises_the_surface():
    """Also with beta != gamma, so that the two cannot be swapped unnoticed."""
    for samples in (1e3, 1e5):
        best = SURFACE.best_rank(samples)
        grid = best * np.exp(np.linspace(-0.01, 0.01, 5))
        assert np.argmin(SURFACE(grid, samples)) == 2


def test_rank_exponent_is_the_growth_of_the_best_rank():
    growth = np.log(SURFACE.best_rank(1e5) / SURFACE.best_rank(1e3)) / np.log(100)
    assert SURFACE.rank_exponent == pytest.approx(growth)
    assert SURFACE.rank_exponent == pytest.approx(0.6 / (1.5 + 0.8))
