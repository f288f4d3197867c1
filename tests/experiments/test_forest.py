"""Verdicts line by line, and the picture of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.text import Text

from experiments.show.forest import NARROW, WIDE, data_set, forest
from experiments.show.lines import lines_of
from theory.show.palette import INK
from theory.show.theme import theme


def exponent(verdict, estimate, claimed, half=0.05, **details):
    ci95 = [None, None] if estimate is None else [estimate - half, estimate + half]
    return {"claimed": claimed, "estimate": estimate, "ci95": ci95, "verdict": verdict, **details}


def part(estimate, half=0.05):
    return {"estimate": estimate, "ci95": [estimate - half, estimate + half]}


def claim(exponents=None, bound=("NOT_EVALUATED", None), reasons=(), **fields):
    return {
        "verdict": "", "exponents": exponents or {}, "bound": {"verdict": bound[0], "worst_ratio": bound[1]},
        "reasons": list(reasons), **fields,
    }  # fmt: skip


BENT = {"bent": True, "low": part(-1.5), "top": part(-1.1)}
TABLES = {
    Path("full/synthetic"): {
        "convergence": claim(
            {"steps": exponent("REFUTED", -0.28, -0.5)}, bound=("HOLDS", 0.392), cause="premise", needed=[]
        ),
        "generalization": claim(
            {
                "rank": exponent("CONSISTENT", 1.02, 1.0),
                "samples": exponent("LOOSE", -1.3, -0.5, **BENT),
            }
        ),
        "optimal_rank": claim(
            {"samples": exponent("UNTESTABLE", None, 0.5)},
            reasons=["samples untestable: a best rank was seen nowhere: 0 values of N, and 4 are needed"],
            needed=[{"samples": 128.0, "seeds": 5}],
        ),
        "information": claim(
            {"clone_weight": exponent("CONSISTENT", 0.8, 1.0)},
            bound=("HOLDS", 0.73),
            ceiling_ratio=exponent("REFUTED", 0.34, 1.0),
        ),
        "dynamics": claim(
            divergence_ratio={"claimed": 1.0, "estimate": 32.0, "ci95": [4.9, 213.0], "verdict": "REFUTED"}
        ),
    },
    Path("full/wikitext2"): {
        "generalization": claim(
            {
                "rank": exponent("UNTESTABLE", 1.3, 1.0),
                "samples": exponent(
                    "INCONCLUSIVE", -2.4, -0.5, **BENT, reach=part(-0.45), n_dagger=25727.0, tier=2
                ),
            },
            reasons=["rank and samples untestable: rank takes 4 values and 5 are needed: add rank = 11"],
            needed=[{"rank": 11.0, "seeds": 5}, {"seeds": 2}, {"rank": 4.0, "samples": 64.0, "seeds": 7}],
        ),
    },
    Path("full/spectrum_1"): {
        "optimal_rank": claim({"samples": exponent("CONSISTENT", 0.61, 0.5, bent=False, corrected=part(0.556, 0.04))})
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    with theme():
        return forest(TABLES)


def notes(folder):
    return {(line.claim, line.quantity): line.note for line in lines_of(TABLES[Path(folder)], 0.1)}


def test_each_quantity_says_what_belongs_to_it():
    synthetic = notes("full/synthetic")
    assert "bound holds (largest measured value: 39 % of the bound)" in synthetic["convergence", "steps"]
    assert "premise fails" in synthetic["convergence", "steps"]
    bent = "bent: -1.50 [-1.55, -1.45] in the lower half, -1.10 [-1.15, -1.05] in the upper"
    assert synthetic["generalization", "samples"] == bent
    assert synthetic["optimal_rank", "samples"] == "a best rank was seen nowhere"
    assert synthetic["information", "clone_weight"] == ""  # the bound belongs to I/I*
    assert synthetic["information", "ceiling_ratio"].startswith("bound holds (largest measured value: 73 %")
    wikitext = notes("full/wikitext2")
    assert wikitext["generalization", "rank"] == "needs r = 11; 2 more seeds per cell"
    undecided = wikitext["generalization", "samples"]
    assert undecided.startswith("flattens: a plateau would slow it to -0.4 at N = 25,700")
    assert "second tier" in undecided
    corrected = notes("full/spectrum_1")["optimal_rank", "samples"]
    assert corrected == "corrected for the finite matrix: 0.56 [0.52, 0.60]"


def test_a_reading_that_is_too_slow_at_once_names_no_far_n():
    too_slow = exponent("INCONCLUSIVE", -0.6, -0.5, reach=part(-0.2), n_dagger=100.0)
    (line,) = lines_of({"convergence": claim({"steps": too_slow})}, 0.1)
    assert line.missing == "flattens: a plateau would slow it to -0.20 over the next half-decade"


def test_what_a_confounded_coordinate_lacks_is_said():
    reasons = ["samples is confounded with data, which changes along it (a, b): no verdict"]
    (line,) = lines_of({"optimal_rank": claim({"samples": exponent("INCONCLUSIVE", 0.5, 0.5)}, reasons=reasons)}, 0.1)
    assert line.missing == "confounded with data"


def test_points_are_measured_minus_claimed_and_grouped(drawn):
    points = drawn.points
    gaps = points[points["quantity"] == "samples"].set_index(["claim", "table"])
    synthetic = gaps.loc[("generalization", "full/synthetic")]
    assert synthetic["value"] == pytest.approx(-0.8)
    assert synthetic["second_value"] == pytest.approx(-0.6)
    assert synthetic["label"] == "generalisation gap in N: synthetic language"
    assert gaps.loc[("optimal_rank", "full/spectrum_1"), "second_value"] == pytest.approx(0.056)
    assert list(points["group"]) == sorted(points["group"], key=list(points["group"].unique()).index)  # no group twice
    rates = points[points["panel"] == "difference"]
    assert set(rates["band_low"].round(9)) == {-0.1} and set(rates["band_high"].round(9)) == {0.1}
    ratio = points[points["quantity"] == "ceiling_ratio"].iloc[0]
    assert (ratio["value"], ratio["band_low"]) == (0.34, 0.95)  # on its own axis, not minus the claimed value
    assert points["reason"].ne("").sum() == 4  # three undecided lines, and the premise


def artists(drawn, gid):
    return [line for axes in drawn.figure.axes for line in axes.lines if line.get_gid() == gid]


def test_colours_are_those_of_the_verdicts(drawn):
    dots = [line for line in artists(drawn, "value") if line.get_marker() == "o"]
    shown = drawn.points[drawn.points["value"].between(-1.25, 60)]
    assert [dot.get_color() for dot in dots] == [INK[word] for word in shown["verdict"]]
    hollow = [dot.get_markerfacecolor() == "white" for dot in dots]
    assert hollow == [word in ("INCONCLUSIVE", "UNTESTABLE") for word in shown["verdict"]]
    said = {text.get_text(): text.get_color() for text in drawn.figure.findobj(Text) if text.get_text() in INK}
    assert said == {word: INK[word] for word in set(drawn.points["verdict"])}


def test_what_leaves_the_axis_is_an_arrow(drawn):
    beyond = drawn.points.set_index(["table", "quantity"])["beyond"]
    assert beyond["full/synthetic", "divergence_ratio"] == "right"
    assert beyond["full/wikitext2", "samples"] == "left"
    assert sum(beyond != "") == 2
    arrows = artists(drawn, "beyond")
    assert sorted(arrow.get_marker() for arrow in arrows) == ["<", ">"]
    for arrow in arrows:  # it stands at the edge
        assert arrow.get_xdata()[0] in arrow.axes.get_xlim()
    for line in artists(drawn, "interval"):
        low, high = line.axes.get_xlim()
        assert low <= min(line.get_xdata()) <= max(line.get_xdata()) <= high


@pytest.mark.parametrize(("layout", "page", "smallest"), [(WIDE, 900, 11), (NARROW, 360, 8.5)])
def test_text_is_legible_and_whole(layout, page, smallest):
    """At so many pixels of width, in pixels; NARROW is what a phone shows."""
    with theme():
        drawn = forest(TABLES, layout=layout)
    texts = [t for t in drawn.figure.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) * page / (72 * layout.width) >= smallest
    drawn.figure.canvas.draw()
    assert max(t.get_window_extent().x1 for t in texts) <= drawn.figure.bbox.x1, "text is cut off"


def test_data_sets_have_plain_names():
    assert data_set(Path("full/wikitext2")) == "WikiText-2"
    assert data_set(Path("full/spectrum_0.75")) == "spectral decay 0.75"
    assert data_set(Path("mine/my_table"), several=True) == "my table (mine)"
