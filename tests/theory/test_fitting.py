"""Optimisers against closed forms and scipy; rival laws; the risk surface."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from theory.comparison import best_rival, compare, hinge, local_slopes
from theory.fitting import log_linear, robust_scale, smooth_deviation
from theory.laws import Surface, family_law, fit_surface, nonnegative_least_squares


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
    return x, np.ones((points, 1)), y, noise * y


def test_a_power_law_has_no_rival():
    assert best_rival(compare(*_noisy(lambda x: x**-0.5))) is None


def test_an_offset_is_named():
    rival = best_rival(compare(*_noisy(lambda x: x**-0.7 + 0.02), names=("power", "power+offset")))
    assert rival is not None
    assert rival.parameters["c"] == pytest.approx(0.7, abs=0.05)


def test_a_broken_power_law_is_named():
    rival = best_rival(compare(*_noisy(lambda x: x**-0.2 * (1 + (x / 100) ** 4) ** -0.2)))
    assert rival is not None
    assert rival.name == "broken"


def test_hinge_is_the_difference_of_half_slopes():
    x = np.geomspace(1, 10_000, 5)
    y = np.where(x <= 100, x**-0.2, 100**0.6 * x**-0.8)
    bend = hinge(x)
    design = np.column_stack([np.ones(5), np.log(x), bend])
    assert np.linalg.lstsq(design, np.log(y), rcond=None)[0][2] == pytest.approx(-0.6)
    slopes = local_slopes(x, y / x**-0.5, np.ones(5), -0.5)
    np.testing.assert_allclose([s for _, s in slopes], [-0.2, -0.2, -0.8, -0.8])


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


def test_fit_surface_recovers_every_exponent():
    rank, samples = (a.ravel() for a in np.meshgrid(np.geomspace(2, 64, 9), np.geomspace(1e2, 1e5, 7)))
    fitted = fit_surface(rank, samples, SURFACE(rank, samples)).surface
    assert (fitted.alpha, fitted.beta, fitted.gamma) == pytest.approx((1.5, 0.8, 0.6), abs=0.01)
    assert fitted.offset == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("covariates", [1, 2, 200])
def test_a_family_takes_any_number_of_strata(covariates):
    law, signed = family_law("power", covariates)
    assert {f"k{j}" for j in range(1, covariates + 1)} <= signed
    data = {"x": np.array([2.0]), "span": np.array([1.0])} | {
        f"z{j}": np.array([1.0]) for j in range(1, covariates + 1)
    }
    theta = np.ones((1, len(law.parameters)))
    value, slopes = law.evaluate(theta, {c: data[c] for c in law.columns})
    assert np.isfinite(value).all() and np.isfinite(slopes).all()
