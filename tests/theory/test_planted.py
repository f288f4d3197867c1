"""The planted problems have the constants that the theory gives them."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from theory.judge.ledger import all_claims
from theory.judge.verdicts import CONSISTENT, HOLDS, LOOSE, REFUTED
from theory.planted import attacks
from theory.planted.cases import CONCAVE, DESIGN, HIDDEN, MARGINS, PLATEAUS, all_cases
from theory.planted.denoising import (
    curve_optimum,
    curve_risk,
    curve_table,
    denoising_table,
    minimum_between_ranks,
    mixture_risk,
    population_optimum,
    spectrum,
    threshold_rank,
    truncation_risk,
)
from theory.planted.linear_loss import finite_size_slope, gap_from_singular_values, top_singular_values
from theory.planted.optimisation import (
    alignment,
    alignment_floor,
    average_gradient,
    product_smoothness,
    quadratic_table,
    worst_case_ratio,
)
from theory.planted.rates import Slopes, broken, broken_rank, counted, power, saturating, slopes, with_offset
from theory.planted.softmax import parameters, softmax_gap
from theory.planted.surfaces import Design, law_table


def test_e1_risk_of_a_strong_low_rank_signal_is_its_parameter_count():
    """N E||W - W*||^2 / tau^2 -> r (m + n - r)."""
    d, r = 32, 3
    signal = np.where(np.arange(d) < r, 50.0, 0.0)
    risks = [truncation_risk(signal, 1.0, np.random.default_rng(k))[0] for k in range(60)]
    assert np.mean(risks, axis=0)[r] == pytest.approx(r * (2 * d - r), rel=0.04)
    # Beyond the true rank the noise's top components cost about twice their parameter count.
    extra = np.mean(risks, axis=0)[r + 3] - np.mean(risks, axis=0)[r]
    assert extra > 1.4 * 3 * (2 * (d - r) - 3)


def test_gap_of_denoising_is_an_inner_product_with_the_noise():
    rng = np.random.default_rng(0)
    risk, gap = truncation_risk(spectrum(8, 1.0), 0.1, rng)
    assert risk[0] == pytest.approx(np.sum(spectrum(8, 1.0) ** 2))
    assert gap[0] == 0
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((8, 8))
    assert gap[-1] == pytest.approx(2 * np.sum((np.diag(spectrum(8, 1.0)) + noise) * noise))


def test_e2_optimal_rank_follows_the_threshold():
    d, s, samples = 200, 1.0, 60_000.0
    best = [np.argmin(truncation_risk(spectrum(d, s), samples**-0.5, np.random.default_rng(k))[0]) for k in range(6)]
    assert np.mean(best) == pytest.approx(threshold_rank(samples, d, s), abs=1.0)
    growth = np.log(threshold_rank(1e6, d, s) / threshold_rank(1e4, d, s)) / np.log(100)
    assert growth == pytest.approx(0.5)


def test_e2_table_has_every_rank_and_seed():
    design = Design(ranks=(2, 4), samples=(100, 1000), seeds=2)
    frame = denoising_table(1.0, 16, design, np.random.default_rng(0))
    assert len(frame) == 8
    assert (frame.groupby("rank")["gap"].mean().diff().dropna() > 0).all()


def test_e2_population_optimum_is_that_of_the_mean_risk():
    """Continuous, within half a rank of the best whole rank, and half a rank below Gavish and Donoho's threshold."""
    d, s, samples = 96, 1.0, np.array([8192.0, 16384.0, 32768.0])
    found = population_optimum(samples, d, s)
    rng = np.random.default_rng(1)
    for n, optimum in zip(samples, found, strict=True):
        best = np.argmin(np.mean([truncation_risk(spectrum(d, s), n**-0.5, rng)[0] for _ in range(100)], axis=0))
        assert abs(optimum - best) < 0.7
        assert optimum == pytest.approx(threshold_rank(n, d, s) - 0.5, rel=0.07)
    # Four hundred other draws, not smoothed, gave 4.79, 7.09, 10.51.
    assert np.log(found / [4.79, 7.09, 10.51]) == pytest.approx(0.0, abs=0.01)
    assert population_optimum(np.array([1e9]), 16, 0.75)[0] == 16


def test_optimum_between_ranks_is_that_of_the_exact_continuation():
    """Minimum of zeta(2s, r + 1) + (3/2) p/N over real r, which needs no interpolation."""
    samples = np.array([16384.0, 65536.0, 262144.0])
    assert curve_optimum(samples, 64, 1.5) == pytest.approx([3.961, 6.729, 11.324], rel=2e-3)
    assert minimum_between_ranks(np.array([3.0, 2.0, 1.0])) == 2
    assert minimum_between_ranks(np.array([1.0, 2.0, 3.0])) == 0
    # Parameters that cost more where they outnumber the samples make the optimum smaller.
    assert (curve_optimum(samples, 64, 1.5, blow_up=2.0) < curve_optimum(samples, 64, 1.5)).all()


def test_curve_table_is_the_curve_times_noise():
    design = Design(ranks=(2, 4), samples=(100, 1000), noise=0.0, intercept_sd=0.0, slope_sd=0.0)
    frame = curve_table(1.0, 16, design, np.random.default_rng(0))
    assert frame["test_loss"].to_numpy() == pytest.approx(curve_risk(frame["rank"], frame["samples"], 16, 1.0))


@pytest.mark.parametrize(
    ("law", "coordinate", "low_top_beyond"),
    [
        (power(0.5), "samples", (-0.5, -0.5, -0.5)),
        (power(0.5, 1.4), "rank", (1.4, 1.4, 1.4)),
        (broken(0.75, 0.25, DESIGN), "samples", (-0.75, -0.25, -0.25)),
        # N^-1 plus its end value M: the sum of x^-1 and M^-1 at N = 64, 1024, 16384 and sqrt(10) times that.
        (with_offset(power(1.0), 1.0, DESIGN), "samples", (-0.980, -0.772, -0.363)),
        # The break lies at 11.3, between the ranks 8 and 12 of which the halves share the latter.
        (broken_rank(1.5, 0.5, DESIGN), "rank", (1.446, 0.5, 0.5)),
        # r (128 - r) is concave; beyond the largest rank nothing is assumed but the slope of the upper half.
        (counted(64), "rank", (0.939, 0.807, 0.807)),
        (counted(64), "samples", (-1.0, -1.0, -1.0)),
        (counted(64, 4.0), "samples", (-1.555, -1.094, -1.012)),
        (saturating(8.0), "rank", (0.619, 0.239, 0.239)),
    ],
)
def test_slopes_are_those_of_the_law(law, coordinate, low_top_beyond):
    assert astuple(slopes(law, DESIGN, coordinate)) == pytest.approx(low_top_beyond, abs=0.001)


@pytest.mark.parametrize(
    ("planted", "allowed"),
    [
        (Slopes.constant(-0.25), {REFUTED}),
        (Slopes.constant(-0.4), {CONSISTENT, HOLDS}),
        (Slopes.constant(-0.6), {CONSISTENT, HOLDS}),
        (Slopes.constant(-1.0), {HOLDS, LOOSE}),
        (Slopes(-1.0, -0.7, -0.5), {HOLDS}),  # better than claimed in the window, at the claimed rate beyond it
        (Slopes(-1.0, -0.7, -0.3), {REFUTED}),  # a plateau beyond the window
        (Slopes(-0.25, -0.75, -0.75), {HOLDS, LOOSE}),  # only the top of the window and what follows count
    ],
)
def test_words_that_slopes_allow(planted, allowed):
    assert planted.allowed(-0.5, 0.1) == allowed
    harmful = planted.harmful(-0.5, 0.1)
    assert not harmful & allowed
    assert harmful == ({CONSISTENT, HOLDS, LOOSE} if allowed == {REFUTED} else {REFUTED})


def test_law_tables_have_the_law_as_their_mean():
    quiet = replace(DESIGN, noise=0.0, intercept_sd=0.0, slope_sd=0.0)
    law = with_offset(power(1.0), 1.0, quiet, per_rank=False)
    frame = law_table(law, quiet, np.random.default_rng(0))
    assert frame["gap"].to_numpy() == pytest.approx(0.1 * frame["rank"] / frame["samples"] + law(0.0, 1.0))


def test_the_zoo_has_every_family_and_its_truths():
    cases = {c.name: c for c in all_cases()}
    for b, c in ((1, 1), (0.5, 0.5), (1, 0.5), (0.75, 0.75), (1.4, 0.5), (1, 0.25)):
        assert cases[f"gap r^{b:g} N^-{c:g}"].exponents == {"rank": b, "samples": -c}
    sizes = {family: sum(c.family == family for c in cases.values()) for family in (PLATEAUS, CONCAVE, HIDDEN)}
    assert sizes == {PLATEAUS: 18, CONCAVE: 3, HIDDEN: 2}
    # At the margin exactly: never slower than the claim allows, so that REFUTED is the only harmful word.
    claimed = {"rank": 1.0, "samples": -0.5, "steps": -0.5}
    for case in cases.values():
        if case.family == MARGINS:
            (coordinate,) = case.slopes
            value = 0.5 if case.claim == "optimal_rank" else claimed[coordinate]
            assert not case.slopes[coordinate].slower(value, 0.1), case.name
    assert all((c.log_rank_of is not None) == (c.claim == "optimal_rank") for c in cases.values() if c.slopes)


def test_attacked_tables_are_what_they_say(rng):
    copied = attacks.copied_seeds(rng)
    assert copied["seed"].nunique() == 6
    assert (copied.groupby(["rank", "samples"])["gap"].nunique() == 2).all()
    assert attacks.crowded_cell(rng).groupby(["rank", "samples"]).size().value_counts().to_dict() == {5: 34, 105: 1}
    for small, thin in ((True, [64, 256]), (False, [4096, 16384])):
        kept = attacks.survivors(rng, small=small).groupby("samples").size()
        assert kept[kept == 35].index.tolist() == thin
    second = attacks.second_study(rng).groupby("samples")[["teacher", "data", "learning_rate"]].first()
    assert second.loc[256].tolist() != second.loc[1024].tolist()
    assert set(attacks.pooled_labels(rng)["labels"]) == {"data", "teacher"}
    assert attacks.lone_run(rng).groupby("samples").size()[6400] == 1
    wild = attacks.misplaced_point(rng)
    assert (wild["gap"] / wild.groupby(["rank", "samples"])["gap"].transform("median") > 30).sum() == 1
    for c, share in ((0.35, 0.5), (0.38, 0.3)):
        negative = attacks.negative_offset(rng, c=c, share=share)
        slope = np.polyfit(np.log(negative["samples"]), np.log(negative["gap"]), 1)[0]
        assert -0.6 < slope < -c
    assert (attacks.impossible_rank(rng)[["d_in", "d_out"]].min(axis=1) < 512).all()
    assert attacks.missing_runs(rng).groupby(["rank", "samples"]).size().value_counts().to_dict() == {5: 31, 4: 4}
    assert attacks.other_shape(rng).groupby("seed")["d_in"].first().value_counts().to_dict() == {4096: 4, 2048: 1}


def test_e3_softmax_gap_is_p_over_n():
    p, samples = parameters(2, 8, 8), 3000
    values = np.array([softmax_gap(2, samples, np.random.default_rng(k)) for k in range(10)])
    excess, gap = values.mean(axis=0) * samples / p
    assert excess == pytest.approx(0.5, abs=0.12)
    assert gap == pytest.approx(1.0, abs=0.2)


def test_e4_singular_values_have_the_law_of_a_gaussian_matrix():
    """Bidiagonal shortcut against a dense matrix, in the mean of the sums that enter the gaps."""
    dense, short = [], []
    for k in range(40):
        rng = np.random.default_rng(k)
        dense.append(np.linalg.svd(rng.standard_normal((64, 64)), compute_uv=False)[:8])
        short.append(top_singular_values(64, 8, rng))
    np.testing.assert_allclose(np.mean(short, axis=0), np.mean(dense, axis=0), rtol=0.01)


@pytest.mark.parametrize(("regime", "slope"), [("slow", 0.45), ("abstract", 0.95), ("fast", 0.90)])
def test_e4_finite_size_slopes(regime, slope):
    """The slopes for a 64 x 64 matrix and ranks to 8, and the exact exponents in N."""
    assert finite_size_slope(regime, (1, 2, 3, 4, 6, 8), side=64) == pytest.approx(slope, abs=0.005)
    sigma = np.array([3.0, 2.0, 1.0])
    gaps = gap_from_singular_values(regime, sigma, np.array([2, 2]), np.array([100.0, 10_000.0]))
    assert np.log(gaps[1] / gaps[0]) / np.log(100) == pytest.approx(-1.0 if regime == "fast" else -0.5)


def test_e5_a_mixture_of_fast_problems_mimics_one_over_root_n():
    n = np.geomspace(1e2, 1e6, 9)
    assert np.polyfit(np.log(n), np.log(mixture_risk(n, 1.0)), 1)[0] == pytest.approx(-0.5, abs=0.01)
    assert np.polyfit(np.log(n), np.log(mixture_risk(n, 2.0)), 1)[0] == pytest.approx(-0.75, abs=0.02)


def test_e6_closed_form_equals_the_recursion():
    curvature, start, variance = np.array([0.3, 1.0]), np.array([2.0, 0.5]), np.array([0.1, 0.2])
    step, moments, total = 0.4, np.array([2.0, 0.5]), 0.0
    for _ in range(50):
        total += np.sum(curvature**2 * moments)
        moments = (1 - step * curvature) ** 2 * moments + step**2 * variance
    assert average_gradient(curvature, start, variance, step, 50) == pytest.approx(total / 50)


def test_e6_worst_case_comes_within_a_factor_two_of_the_bound():
    ratios = [worst_case_ratio(t) for t in (1e3, 1e4, 1e5)]
    assert ratios[-1] == pytest.approx(0.5, abs=0.005)
    assert max(ratios) < 1.0


def test_e6_projection_scales_the_constants():
    """L and sigma^2 grow by at most the squared largest singular value; the bound still holds."""
    design = replace(Design(), noise=0.0)
    plain, projected = (quadratic_table(design, np.random.default_rng(0), kappa=k) for k in (1.0, 5.0))
    assert plain["smoothness"].iloc[0] < projected["smoothness"].iloc[0] <= 25 * plain["smoothness"].iloc[0] + 1e-9
    assert plain["grad_variance"].iloc[0] < projected["grad_variance"].iloc[0] <= 25 * plain["grad_variance"].iloc[0]


def test_e6_alignment_never_falls_below_kantorovich():
    rng = np.random.default_rng(0)
    for kappa in (2.0, 10.0):
        values = np.geomspace(1.0, kappa, 6)
        cosines = alignment(values, rng.standard_normal((20_000, 6)))
        assert cosines.min() >= alignment_floor(kappa)
        worst = np.zeros((1, 6))
        worst[0, 0], worst[0, -1] = kappa, 1.0
        assert alignment(values, worst)[0] == pytest.approx(alignment_floor(kappa))
    assert alignment(np.ones(6), rng.standard_normal((5, 6))) == pytest.approx(1.0)


def test_e6_two_factors_are_smooth_only_where_they_are_bounded():
    local = [product_smoothness(u, 1.0 / u) for u in (1.0, 10.0, 100.0)]
    assert local[2][0] > 1000 * local[0][0]
    assert all(value <= bound + 1e-9 for value, bound in local)


@pytest.mark.parametrize("claim", list(all_claims()))
@pytest.mark.parametrize(("wrong", "verdict", "code"), [((), "CONSISTENT", 0), (("--wrong",), "REFUTED", 1)])
def test_a_planted_table_is_judged_as_planted(theory, tmp_path, claim, wrong, verdict, code):
    path = tmp_path / "planted.csv"
    outcome = theory("plant", claim, *wrong, "--out", path)
    assert outcome.code == 0
    assert f"{claim} should be {verdict}" in outcome.out
    judged = theory("check", path)
    assert judged.code == code
    assert f"{claim}: {verdict}" in judged.out
    first = path.read_bytes()
    theory("plant", claim, *wrong, "--out", path)
    assert path.read_bytes() == first
    theory("plant", claim, *wrong, "--seed", 7, "--out", path)
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("speed", "--out", "x.csv"), "speed: no planted case"),
        (("dynamics", "--out", "nowhere/x.csv"), "--out nowhere/x.csv"),
        (("dynamics", "--seed", -1, "--out", "x.csv"), "--seed -1"),
    ],
)
def test_planting_refuses_nonsense(theory, arguments, said):
    assert said in theory("plant", *arguments).error
