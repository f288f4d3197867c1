"""Slopes with a free constant per group: exact data, noise of mean zero, equality with an independent optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from theory.judge.slopes import PowerLaw

X = np.tile(np.log(np.geomspace(1, 100, 5)), 3)
GROUP = np.repeat(np.arange(3), 5)


def test_exact_data_give_the_exponent_whatever_the_constants():
    y = np.array([3.0, 0.01, 700.0])[GROUP] * np.exp(-0.7 * X)
    law = PowerLaw.of(X, GROUP, 0.1 * y)
    assert law.fit(y[None])[0] == pytest.approx(-0.7, abs=1e-8)
    np.testing.assert_allclose(law.predict(y, -0.7, X, GROUP), y)


def test_equals_a_general_optimiser():
    rng = np.random.default_rng(1)
    y = np.array([3.0, 1.0, 7.0])[GROUP] * np.exp(-0.7 * X) * np.exp(0.3 * rng.standard_normal(15))
    sd = 0.2 * np.exp(-0.5 * X)

    def residual(theta: np.ndarray) -> np.ndarray:
        return (theta[GROUP] * np.exp(theta[3] * X) - y) / sd

    want = least_squares(residual, [1.0, 1.0, 1.0, -0.5], xtol=1e-14, ftol=1e-14).x[3]
    assert PowerLaw.of(X, GROUP, sd).fit(y[None])[0] == pytest.approx(want, abs=1e-6)


def test_many_vectors_at_once_equal_one_by_one_and_missing_cells_are_left_out():
    rng = np.random.default_rng(2)
    y = np.exp(-0.5 * X) * np.exp(0.2 * rng.standard_normal((6, 15)))
    y[3, 4] = np.nan
    law = PowerLaw.of(X, GROUP, np.exp(-0.5 * X))
    together = law.fit(y, -0.5)
    for k in range(6):
        assert together[k] == pytest.approx(law.fit(y[[k]])[0], abs=1e-7)
    without = PowerLaw.of(X, GROUP, np.exp(-0.5 * X), np.arange(15) != 4)
    assert together[3] == pytest.approx(without.fit(y[[3]])[0], abs=1e-7)


def test_cells_below_zero_are_measurements():
    """Noise of mean zero is harmless on the linear scale; dropping negative cells would flatten the slope."""
    rng = np.random.default_rng(0)
    x = np.tile(np.log(np.geomspace(1, 100, 5)), 400)
    y = np.exp(-0.8 * x) + 0.05 * rng.standard_normal(len(x))
    assert (y < 0).mean() > 0.05
    law = PowerLaw.of(x, np.zeros(len(x), dtype=int), np.full(len(x), 0.05))
    assert law.fit(y[None])[0] == pytest.approx(-0.8, abs=0.02)


def test_a_group_below_zero_says_nothing_about_the_slope():
    y = np.array([1.0, -1.0, 2.0])[GROUP] * np.exp(-0.7 * X) * np.where(GROUP == 1, np.exp(2 * X), 1.0)
    law = PowerLaw.of(X, GROUP, np.ones(15))
    assert law.fit(y[None])[0] == pytest.approx(-0.7, abs=1e-6)
    assert np.isnan(law.fit(-np.abs(y)[None])[0])


def test_influence_is_the_derivative():
    rng = np.random.default_rng(3)
    y = np.exp(-0.5 * X) * np.exp(0.02 * rng.standard_normal(15))
    law = PowerLaw.of(X, GROUP, np.exp(-0.5 * X))
    slope = float(law.fit(y[None])[0])
    step = 1e-6
    numeric = [(law.fit((y + step * np.eye(15)[c])[None], slope)[0] - slope) / step for c in law.cells]
    np.testing.assert_allclose(law.influence(y, slope), numeric, rtol=0.1, atol=0.02)


def test_one_level_per_group_determines_nothing():
    law = PowerLaw.of(np.log([1.0, 10.0]), np.array([0, 1]), np.ones(2))
    assert not law.determined
    assert np.isnan(law.fit(np.array([[1.0, 2.0]]))[0])


def test_a_draw_without_a_second_level_has_no_slope():
    """What is left of its curvature is rounding; a fit that followed it ended anywhere, differently on each
    processor."""
    x, group = np.log(np.tile([256.0, 724.0, 1619.0], 5)), np.repeat(np.arange(5), 3)
    y = (1.0 + group) * np.exp(-0.5 * x)
    law = PowerLaw.of(x, group, 0.1 * y)
    largest, first = np.exp(x) > 1000, group == 0
    alone, one_group = np.where(largest, y, np.nan), np.where(largest | first, y, np.nan)
    below = np.where(first, -one_group, one_group)  # the only group with two levels has no positive constant
    for start in (None, -0.4):
        slopes = law.fit(np.array([y, alone, one_group, below]), start)
        assert np.isfinite(slopes).tolist() == [True, False, True, False]


def test_prediction_needs_a_fitted_group():
    y = np.exp(-0.7 * X)
    law = PowerLaw.of(X, GROUP, y, GROUP < 2)
    predicted = law.predict(y, -0.7, np.array([5.0, 5.0]), np.array([1, 2]))
    assert predicted[0] == pytest.approx(np.exp(-3.5))
    assert np.isnan(predicted[1])


def test_without_a_cell_no_slope_is_determined():
    law = PowerLaw.of(X, GROUP, np.ones(15), np.zeros(15, dtype=bool))
    assert not law.determined
    assert np.isnan(law.fit(np.ones((3, 15)))).all()
