"""What a window shows: parts of the range, the plateau reading, seeds that hardly count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from theory.judge.cells import build_cells
from theory.judge.window import HALF_DECADE, look, near_middle, plateau_distance, plateau_slope
from theory.planted.surfaces import Design, gap_table

SAMPLES = (64, 256, 1024, 4096, 16384)


def cells_of(law, noise=1e-6, ranks=(4, 8, 16), samples=SAMPLES, seeds=5):
    rng = np.random.default_rng(0)
    rows = [
        (r, n, s, float(law(r, n)) * np.exp(noise * rng.standard_normal()))
        for r in ranks
        for n in samples
        for s in range(seeds)
    ]
    frame = pd.DataFrame(rows, columns=["rank", "samples", "seed", "gap"]).astype(float)
    return build_cells(frame, ["rank", "samples"], "gap")


def test_the_middle_is_the_inner_level_nearest_to_the_log_midpoint():
    assert near_middle(np.log([1.0, 10.0, 100.0])) == pytest.approx(np.log(10))
    assert near_middle(np.log([1.0, 2.0, 40.0, 100.0])) == pytest.approx(np.log(40))
    assert near_middle(np.log([1.0, 10.0, 100.0, 1000.0])) == pytest.approx(np.log(10))  # of two, the lower


def test_halves_are_fitted_separately_and_share_a_level():
    """A law broken at the middle: each half has its own exponent, the top half is straight."""
    law = lambda r, n: r * n**-0.3 if n <= 1024 else r * 1024**0.6 * n**-0.9  # noqa: E731
    w = look(cells_of(law), "samples", ["rank"], leading=True)
    assert w.middle == pytest.approx(1024)
    assert (w.low.value, w.top.value) == pytest.approx((-0.3, -0.9), abs=1e-4)
    assert w.bend.value == pytest.approx(-0.6, abs=1e-4)
    assert w.bent
    assert (w.early.value, w.late.value) == pytest.approx((-0.9, -0.9), abs=1e-4)
    assert w.reach.value == pytest.approx(-0.9, abs=1e-3)
    assert w.bend_level == 0.95
    assert [round(s, 2) for _, s, *_ in w.local] == [-0.3, -0.3, -0.9, -0.9]
    assert [round(x) for x, *_ in w.local] == [128, 512, 2048, 8192]


def test_the_rank_is_judged_without_a_law_in_the_samples():
    """A free constant per N: whatever the dependence on N, the slope in r is the planted one."""
    w = look(cells_of(lambda r, n: r**1.3 * (2 + np.sin(n))), "rank", ["samples"], leading=False)
    assert w.whole.value == pytest.approx(1.3, abs=1e-4)
    assert w.bend_level == 0.99
    assert w.extrapolation is None and w.rivals == ()


def test_with_two_levels_in_the_top_half_the_halves_are_compared():
    law = lambda r, n: r * (0.02 + n**-0.7)  # noqa: E731
    w = look(cells_of(law, samples=(64, 256, 4096, 16384)), "samples", ["rank"], leading=True)
    assert w.middle == pytest.approx(256)
    assert w.early.value != pytest.approx(w.low.value)
    w = look(cells_of(law, samples=(64, 2048, 16384)), "samples", ["rank"], leading=True)
    assert w.early.value == pytest.approx(w.low.value)
    assert w.late.value == pytest.approx(w.top.value)


@pytest.mark.parametrize(("decay", "share"), [(1.0, 0.2), (0.7, 0.6), (2.0, 0.05)])
def test_the_plateau_reading_is_exact_for_a_plateau(decay, share):
    """y = E + x^-c with E / y = share at the end of the range: from two local slopes to what comes next."""
    offset = share / (1 - share)  # with x measured from the end of the range, where x^-c = 1
    y = lambda u: np.log(offset + np.exp(-decay * u))  # noqa: E731
    slope = lambda u: -decay * np.exp(-decay * u) / (offset + np.exp(-decay * u))  # noqa: E731
    gap, to_end = 1.4, 0.7
    early, late = slope(-gap - to_end), slope(-to_end)
    assert plateau_slope(early, late, gap, to_end)[0] == pytest.approx((y(HALF_DECADE) - y(0)) / HALF_DECADE, rel=1e-6)
    limit = slope(1.0)
    assert plateau_distance(early, late, gap, to_end, limit) == pytest.approx(1.0, rel=1e-6)
    root = brentq(lambda u: slope(u) - 0.5 * slope(0.0), 0, 20)
    assert plateau_distance(early, late, gap, to_end, 0.5 * slope(0.0)) == pytest.approx(root, rel=1e-6)


def test_a_plateau_within_rounding_of_everything_has_a_distance():
    """The share of the plateau at the end rounds to 1; the distance back to the limit is finite."""
    early, late = -30.057674836604086, -0.9030899869919438
    distance = plateau_distance(early, late, np.log(10), np.log(10) / 2, -0.4)
    decay = -early  # the plateau is negligible at the first middle
    assert distance == pytest.approx(np.log(0.9030899869919438 / 0.4) / decay - np.log(10) / 2, rel=1e-2)


def test_steepening_earns_no_credit():
    np.testing.assert_allclose(
        plateau_slope(np.array([-0.5, -0.5, 0.2]), np.array([-0.9, -0.5, 0.3]), 1.0, 0.5), [-0.9, -0.5, 0.3]
    )
    assert plateau_distance(-0.5, -0.9, 1.0, 0.5, -0.4) == float("inf")


def test_n_dagger_is_the_level_where_the_reading_reaches_the_limit():
    law = lambda r, n: r * (1e-3 + 1.0 / n)  # noqa: E731
    w = look(cells_of(law), "samples", ["rank"], leading=True)
    reached = w.reaches(-0.4)
    local = -(1 / reached) / (1e-3 + 1 / reached)
    # The slopes are means over halves, not local ones, so that the reading is near and not exact.
    assert local == pytest.approx(-0.4, abs=0.12)
    steep = look(cells_of(lambda r, n: r * n**-0.5 / (1 + n / 1e4)), "samples", ["rank"], leading=True)
    assert steep.reaches(-0.4) is None


def test_an_offset_of_either_sign_is_found():
    for share in (0.4, -0.4):
        end = 16384**-0.5
        law = lambda r, n, k=share * end: r * (n**-0.5 + k)  # noqa: E731
        w = look(cells_of(law, noise=0.01), "samples", ["rank"], leading=True)
        assert w.offset is not None, share
        assert np.sign(w.offset.offset) == np.sign(share)
        assert w.offset.exponent == pytest.approx(-0.5, abs=0.1)
    assert look(cells_of(lambda r, n: r * n**-0.5, noise=0.01), "samples", ["rank"], leading=True).offset is None


def test_a_hundred_seeds_in_one_cell_hardly_count():
    design = Design(slope_sd=0.05)
    frame = gap_table(1, 0.5, design, np.random.default_rng(1))
    plain = look(build_cells(frame, ["rank", "samples"], "gap"), "samples", ["rank"], leading=True)
    assert plain.whole.clusters == pytest.approx(5)
    one = frame[(frame["rank"] == 4) & (frame["samples"] == 64)].iloc[[0]]
    extra = pd.concat([one] * 100).assign(seed=np.arange(100, 200), gap=lambda f: f["gap"] * np.linspace(0.8, 1.2, 100))
    more = look(build_cells(pd.concat([frame, extra]), ["rank", "samples"], "gap"), "samples", ["rank"], leading=True)
    assert more.whole.clusters == pytest.approx(5, abs=0.3)
    assert more.whole.interval(0.95).width > 0.8 * plain.whole.interval(0.95).width


def test_seeds_of_their_own_in_every_cell_count_each():
    frame = gap_table(1, 0.5, Design(), np.random.default_rng(1))
    own = frame.assign(seed=frame["seed"] + 10 * frame["rank"])
    w = look(build_cells(own, ["rank", "samples"], "gap"), "samples", ["rank"], leading=True)
    assert w.whole.clusters > 25


def test_a_coordinate_with_one_level_per_group_shows_nothing():
    frame = pd.DataFrame({"rank": [4.0, 8.0] * 3, "samples": [64.0, 128.0] * 3, "seed": [0.0, 0, 1, 1, 2, 2]})
    cells = build_cells(frame.assign(gap=[1.0, 2, 1.1, 2.1, 0.9, 1.9]), ["rank", "samples"], "gap")
    assert look(cells, "samples", ["rank"], leading=True) is None
