"""Figures of claims show what the judge decided from: statuses of optima, local slopes, the claimed slope."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Polygon, Rectangle

from experiments.show.latex import verdicts_latex
from experiments.show.lines import claims_of
from experiments.show.schematic import schematic
from theory.judge.check import check_table
from theory.judge.intervals import Interval
from theory.judge.verdicts import MARGIN
from theory.planted.surfaces import Design, gap_table
from theory.report import Bound, ClaimReport, Exponent
from theory.show.axes import OPTIMA, level_colours
from theory.show.claims import (
    gap_against_rank,
    gap_against_samples,
    gap_local_slopes,
    gradient_local_slopes,
    optimal_rank_against_samples,
    risk_against_rank,
    risk_surface,
)
from theory.show.theme import theme

STATUSES = ["at_most", "outside", "used", "used", "unresolved", "at_least"]
RANKS = (2.0, 4.0, 8.0, 16.0, 32.0)


@pytest.fixture(scope="module")
def optima():
    samples = 100.0 * 4.0 ** np.arange(6)
    points = pd.DataFrame({"samples": samples, "mean": [2.0, 3.5, 6.0, 12.0, 16.0, 32.0], "status": STATUSES})
    points = points.assign(low=points["mean"] / 1.1, high=points["mean"] * 1.1, limit_low=4.0, limit_high=8.0)
    points = points.assign(fitted=points["mean"], fitted_corrected=np.nan, claimed=points["mean"])
    curves = pd.DataFrame([{"samples": n, "rank": r} for n in samples for r in RANKS])
    curves = curves.assign(mean=1.0 + 0.01 * curves["rank"], low=1.0, high=2.0)
    exponent = Exponent(0.5, 0.3, Interval(0.25, 0.35), Interval(0.2, 0.4), "LOOSE")
    return ClaimReport("optimal_rank", "LOOSE", (), {"samples": exponent}, Bound(), 30, 5, {}, points, curves)


@pytest.fixture(scope="module")
def gap():
    frame = gap_table(1, 1, Design(samples=(64, 256, 1024, 4096, 16384)), np.random.default_rng(0))
    return check_table(frame).claims["generalization"], frame


def test_every_optimum_is_shown_by_its_status(optima):
    with theme():
        drawn = optimal_rank_against_samples(optima, pd.DataFrame())
    axes = drawn.figure.axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) >= {OPTIMA[status][2] for status in STATUSES}
    marks = {
        (float(x), float(y))
        for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() not in ("_", "|")
        for x, y in line.get_xydata()
    }  # fmt: skip
    samples = drawn.points["samples"].tolist()
    # Limits stand at the second and the last but one rank of the grid, the others at the optimum.
    assert marks >= set(zip(samples, [4.0, 3.5, 6.0, 12.0, 16.0, 16.0], strict=True))
    faces = {line.get_label(): line.get_markerfacecolor() for line in axes.lines}
    seen = {c.get_label(): c[0].get_markerfacecolor() for c in axes.containers if c.get_label()}
    assert seen[OPTIMA["outside"][2]] == "white" != seen[OPTIMA["used"][2]]
    assert faces[OPTIMA["at_least"][2]] == "white"
    assert any("0.30" in label and "[0.20, 0.40]" in label for label in labels)


def test_stars_follow_the_status(optima):
    with theme():
        axes = risk_against_rank(optima, pd.DataFrame()).figure.axes[0]
    stars = [line for line in axes.lines if line.get_marker() in "*<>X" and len(line.get_xdata())]
    assert [line.get_marker() for line in stars] == ["<", "*", "*", "*", "X", ">"]
    assert [line.get_markerfacecolor() == "white" for line in stars] == [s != "used" for s in STATUSES]


@pytest.mark.parametrize(("make", "slope"), [(gap_against_samples, -0.5), (gap_against_rank, 1.0)])
def test_the_triangle_has_the_claimed_slope(gap, make, slope):
    with theme():
        axes = make(*gap).figure.axes[0]
        axes.figure.canvas.draw()
    (triangle,) = [patch for patch in axes.patches if isinstance(patch, Polygon)]
    (x0, y0), (x1, y1) = axes.transData.inverted().transform(triangle.get_transform().transform(triangle.get_xy()[:2]))
    assert np.log(y1 / y0) / np.log(x1 / x0) == pytest.approx(slope)


def test_one_colour_for_n_in_every_figure(gap, optima):
    claim, frame = gap
    sizes = sorted(claim.points["samples"].unique())
    expected = [to_hex(c) for c in level_colours(sizes).values()]
    curves = claim.points.assign(low=claim.points["mean"], high=claim.points["mean"])
    risk = ClaimReport("optimal_rank", "", (), {}, Bound(), 1, 1, {}, optima.points[:0], curves)
    with theme():
        for drawn in (gap_against_rank(claim, frame), risk_against_rank(risk, pd.DataFrame())):
            solid = [line for line in drawn.figure.axes[0].lines if len(line.get_xdata()) > 1 and line.get_ls() == "-"]
            assert [to_hex(line.get_color()) for line in solid] == expected


def test_local_slopes_show_what_the_verdict_rests_on(gap):
    claim, frame = gap
    with theme():
        drawn = gap_local_slopes(claim, frame)
    points, details = drawn.points.set_index("part"), claim.exponents["samples"].details
    assert points.loc["upper half", "mean"] == details["top"]["estimate"]
    assert points.loc["upper half", "to"] == 16384
    assert points.loc["next half-decade", "to"] == pytest.approx(16384 * 10**0.5)
    assert len(points.loc[["local"]]) == len(details["local_slopes"])
    band = drawn.figure.axes[0].patches[0].get_extents()
    assert (drawn.figure.axes[0].transData.inverted().transform(band)[:, 1]) == pytest.approx(
        [-0.5 - MARGIN, -0.5 + MARGIN]
    )
    short = check_table(frame[frame["samples"] < 300]).claims["generalization"]
    assert gap_local_slopes(short, frame) is None


def test_local_slopes_of_the_gradient_are_those_between_horizons():
    steps, seeds = 256.0 * 4.0 ** np.arange(5), range(8)
    noise = np.random.default_rng(0).normal(0, 0.01, (5, 8))
    norms = np.array([1.0, 0.5, 0.25, 0.2, 0.16])[:, None] * np.exp(noise)
    frame = pd.DataFrame(
        [{"steps": t, "seed": s, "grad_norm_sq": norms[i, s]} for i, t in enumerate(steps) for s in seeds]
    )
    with theme():
        drawn = gradient_local_slopes(check_table(frame).claims["convergence"], frame)
    local = drawn.points[drawn.points["part"] == "local"]
    assert local["from"].tolist() == pytest.approx(np.sqrt(steps[1:] * steps[:-1]).tolist())
    means = norms.mean(axis=1)
    assert local["mean"].tolist() == pytest.approx((np.diff(np.log(means)) / np.log(4)).tolist(), rel=1e-4)
    line = next(line for line in drawn.figure.axes[0].lines if line.get_label().startswith("claimed"))
    assert set(line.get_ydata()) == {-0.5}


def test_the_risk_surface_is_in_units_of_the_best_rank_at_each_n(optima):
    """Excess is r / sqrt(N) + N / r^2: cells, colours, and the two paths on them."""
    curves = optima.curves.assign(mean=lambda c: 2.0 + c["rank"] / c["samples"] ** 0.5 + c["samples"] / c["rank"] ** 2)
    claim = ClaimReport("optimal_rank", "LOOSE", (), optima.exponents, Bound(), 30, 5, {}, optima.points, curves)
    frame = pd.DataFrame({"teacher_loss": [2.0]})
    with theme():
        drawn = risk_surface(claim, frame)
    points = drawn.points.set_index(["samples", "rank"])
    assert len(points) == 30 and (points.groupby("samples")["times_best"].min() == 1).all()
    excess = 32 / 20.0 + 400 / 32.0**2
    assert points.loc[(400, 32), "excess"] == pytest.approx(excess)
    others = [r / 20.0 + 400 / r**2 for r in RANKS]
    assert points.loc[(400, 32), "times_best"] == pytest.approx(excess / min(others))
    axes = drawn.figure.axes[0]
    mesh = axes.collections[0].get_array()
    assert mesh.shape == (5, 6) and mesh[-1, 1] == pytest.approx(excess / min(others))
    seen = optima.points[optima.points["status"].isin(["used", "outside"])]
    assert axes.lines[0].get_xydata().tolist() == seen[["samples", "mean"]].to_numpy().tolist()
    assert axes.lines[1].get_xydata().tolist() == optima.points[["samples", "claimed"]].to_numpy().tolist()
    with theme():
        assert risk_surface(claim, frame.assign(teacher_loss=6.0)) is None  # students beat this teacher
        assert risk_surface(claim, pd.DataFrame({"rank": [1]})) is None


def test_the_latex_table_has_every_line_and_no_bare_symbol(gap):
    """What the page says, in characters that pdflatex sets."""
    report = check_table(gap[1])
    text = verdicts_latex(claims_of(report), report.margin)
    rows = [line.strip().split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    assert [row[-1].removesuffix(r" \\") for row in rows[1:]] == [e.verdict for e in gap[0].exponents.values()]
    found = gap[0].exponents["samples"]
    assert f"{found.estimate:.2f} [{found.ci95.low:.2f}, {found.ci95.high:.2f}]" in text
    claims = claims_of(report)
    claims["dynamics"] = {"verdict": "REFUTED", "bound": {"verdict": "", "worst_ratio": None}, "exponents": {},
                          "divergence_ratio": {"claimed": 1.0, "estimate": 3.0, "ci95": [2, 4], "verdict": "REFUTED"},
                          "reasons": []}  # fmt: skip
    text = verdicts_latex(claims, report.margin)
    assert "$D/D_0$" in text and r"optimal\_rank" not in text and text.isascii()
    assert r"95 \% interval" in text


def test_the_picture_of_low_rank_clone_multiplies_matrices_that_fit():
    """Boxes to scale: [m, D] times [D, r] is [m, r], and the two models of the training have the widths D and r."""
    with theme():
        axes = schematic().figure.axes[0]
    inside = {text.get_text(): text.get_position() for text in axes.texts}

    def size(name: str) -> tuple[float, float]:
        x, y = inside[name]
        (box,) = [b for b in axes.patches if isinstance(b, Rectangle) and b.get_bbox().contains(x, y)]
        return box.get_height(), box.get_width()

    (m, d), (d_of_p, r), product = size("W"), size("P"), size("WP")
    assert d_of_p == d and product == (m, r)
    assert size("teacher")[1] == d
    student = [b.get_width() for b in axes.patches if isinstance(b, Rectangle) and b.get_width() == r]
    assert len(student) == 3  # P, its product, and the student below
