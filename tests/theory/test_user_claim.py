"""`theory test` and `check --claims`: claims of one's own, right and wrong, one-sided and two-sided, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judging import judged

import theory as library
from theory.errors import OptionError
from theory.judge.claim_file import read_claims
from theory.judge.user_claim import LawClaim, coordinates, judge_claim, pure_powers, quantity_of
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.laws.parser import parse_law
from theory.planted.own_laws import PARAMS, TOKENS, broken, power, power_with_floor, scaling_table, two_terms
from theory.planted.surfaces import Design, gap_table, gradient_table
from theory.tables import InputError, wrap_frame

ROOT = Path(__file__).resolve().parents[2]
REGRESSION = ROOT / "docs" / "examples" / "regression.csv"
POWER, FLOOR = "A*tokens**-b", "E + A*tokens**-b"
TWO = "E + A*params**-a + B*tokens**-b"


def asked(frame, law, claimed, bound="equal", cluster="seed", **changes):
    claim = LawClaim("test", changes.pop("target", "loss"), law, claimed, bound, cluster=cluster, **changes)
    return judge_claim(wrap_frame(frame), claim, bootstraps=60)


@pytest.mark.parametrize(
    ("claimed", "bound", "word"),
    [
        (0.5, "upper", CONSISTENT),
        (0.75, "upper", REFUTED),  # claimed to fall faster than it does
        (0.25, "upper", LOOSE),
        (0.5, "lower", CONSISTENT),
        (0.25, "lower", REFUTED),  # claimed to fall more slowly than it does
        (0.75, "lower", LOOSE),
        (0.5, "equal", CONSISTENT),
        (0.4, "equal", REFUTED),
        (0.6, "equal", REFUTED),
    ],
)
@pytest.mark.parametrize("law", [POWER, "A*tokens**b", "A/tokens**b"])
def test_an_exponent_by_cells(law, claimed, bound, word, rng):
    """A power law with seeds, however it is written: the exponent is reported with the sign that the law gives it."""
    sign = -1 if law == "A*tokens**b" else 1
    report = asked(scaling_table(power(0.5), rng), law, {"b": sign * claimed}, bound)
    assert report.verdict == word
    exponent = report.exponents["b"]
    assert exponent.claimed == sign * claimed
    assert exponent.estimate == pytest.approx(sign * 0.5, abs=0.02)
    assert exponent.ci95.low < exponent.estimate < exponent.ci95.high
    low, high = exponent.details["low"]["ci95"]
    assert low < exponent.details["low"]["estimate"] < high
    assert exponent.details["tier"] == 1 and not exponent.details["bent"]


@pytest.mark.parametrize(
    ("claimed", "bound", "word"),
    [
        (0.5, "equal", CONSISTENT),
        (0.35, "equal", REFUTED),
        (0.35, "upper", LOOSE),
        (0.7, "upper", REFUTED),
        (0.7, "lower", LOOSE),
        (0.35, "lower", REFUTED),
    ],
)
def test_an_exponent_above_a_floor(claimed, bound, word, rng):
    report = asked(scaling_table(power_with_floor(0.5, 0.1), rng), FLOOR, {"b": claimed}, bound)
    assert report.verdict == word
    assert report.exponents["b"].estimate == pytest.approx(0.5, abs=0.04)


def test_without_its_floor_the_law_is_not_confirmed(rng):
    """The excess falls as D^-0.5; the loss itself does not, and the reader is told."""
    for cluster in ("seed", None):
        report = asked(scaling_table(power_with_floor(0.5, 0.1), rng), POWER, {"b": 0.5}, cluster=cluster)
        assert report.verdict == REFUTED
        said = ("no single exponent describes", "does not hold over the whole range", "constant added to the law")
        assert any(words in r for r in report.reasons for words in said)


def test_two_exponents_are_one_or_are_not(rng):
    equal = asked(scaling_table(two_terms(0.4, 0.4), rng, params=PARAMS), TWO, {"a": "b"})
    assert equal.verdict == CONSISTENT and equal.exponents["a - b"].claimed == 0.0
    other = scaling_table(two_terms(0.6, 0.4), rng, params=PARAMS)
    assert asked(other, TWO, {"a": "b"}).verdict == REFUTED
    shares = asked(other, TWO, {"a/(a+b)": 0.6, "b": 0.7})
    assert [e.verdict for e in shares.exponents.values()] == [CONSISTENT, REFUTED] and shares.verdict == REFUTED


def test_a_broken_law_is_never_confirmed(rng):
    """Exponent .3, then .7; their mean is .5."""
    frame = scaling_table(broken(0.3, 0.7), rng)
    by_cells = asked(frame, POWER, {"b": 0.5})
    by_rows = asked(frame, POWER, {"b": 0.5}, cluster=None)
    for report in (by_cells, by_rows):
        assert report.verdict in (INCONCLUSIVE, REFUTED)
        exponent = report.exponents["b"].details
        assert exponent["bent"]
        assert exponent["low"]["estimate"] == pytest.approx(0.3, abs=0.1)
        assert exponent["top"]["estimate"] == pytest.approx(0.7, abs=0.1)
    assert asked(frame, POWER, {"b": 0.5}, "upper", cluster=None).verdict in (INCONCLUSIVE, HOLDS)
    assert any("does not hold over the whole range" in r for r in by_rows.reasons)


def test_what_the_table_does_not_determine_is_untestable(rng):
    """Of (D^b)^-c only the product."""
    report = asked(scaling_table(power(0.5), rng), "A*(tokens**b)**-c", {"b": 0.5})
    assert report.verdict == UNTESTABLE
    assert any("does not determine b" in r for r in report.reasons)
    assert np.isnan(report.exponents["b"].estimate)
    product = asked(scaling_table(power(0.5), rng), "A*tokens**-b", {"b*2": 1})
    assert product.verdict == CONSISTENT


def test_designs_that_decide_nothing_say_what_is_missing(rng):
    frame = scaling_table(power_with_floor(0.5, 0.1), rng)
    short = asked(frame[frame["tokens"] < 1.1e8], FLOOR, {"b": 0.5})
    assert short.verdict == UNTESTABLE
    assert [run["tokens"] for run in short.fields["needed"]][:1] == pytest.approx([1e9])
    assert any("tokens covers a factor of" in r for r in short.reasons)
    two = asked(frame[frame["seed"] < 2], FLOOR, {"b": 0.5})
    assert two.verdict == UNTESTABLE and any("2 values of seed and 5 are needed: add 3" in r for r in two.reasons)
    four = asked(frame[frame["seed"] < 4], FLOOR, {"b": 0.5})
    assert four.exponents["b"].details["tier"] == 2 and four.verdict == INCONCLUSIVE  # never CONSISTENT
    few = asked(frame.iloc[:7], FLOOR, {"b": 0.5}, cluster=None)
    assert any("4 rows more than parameters and 5 are needed: add 1" in r for r in few.reasons)


def test_another_column_is_a_stratum_or_judged_beside(rng):
    """Every rank has a constant of its own where only samples is claimed."""
    frame = gap_table(1.0, 0.5, Design(noise=0.1), rng)
    one = asked(frame, "A*rank**b*samples**-c", {"c": 0.5}, "upper", target="gap")
    assert set(one.exponents) == {"c"} and one.exponents["c"].estimate == pytest.approx(0.5, abs=0.03)
    both = asked(frame, "A*rank**b*samples**-c", {"b": 1, "c": 0.5}, "upper", target="gap", margin=0.1)
    assert both.verdict == CONSISTENT


@pytest.mark.parametrize(
    ("claim", "law", "exponents", "claimed", "table"),
    [
        ("generalization", "A*rank**b*samples**-c", {"b": ("rank", 1), "c": ("samples", -1)}, {"b": 1, "c": 0.5},
         lambda rng: gap_table(1.2, 0.8, Design(noise=0.1), rng)),
        ("convergence", "A*steps**-c", {"c": ("steps", -1)}, {"c": 0.5},
         lambda rng: gradient_table(-0.3, Design(noise=0.1), rng)),
    ],
)  # fmt: skip
def test_the_built_in_rates_written_as_claims_of_ones_own(claim, law, exponents, claimed, table, rng):
    """The same words, numbers and intervals as the ledger's, in the law's own parameters."""
    frame = table(rng)
    ours = judged(frame, claim)
    target = {"generalization": "gap", "convergence": "grad_norm_sq"}[claim]
    own = asked(frame, law, claimed, "upper", target=target, margin=0.1)
    assert own.verdict == ours.verdict
    for name, (column, sign) in exponents.items():
        mine, theirs = own.exponents[name], ours.exponents[column]
        assert mine.verdict == theirs.verdict
        assert sign * mine.estimate == pytest.approx(theirs.estimate)
        ends = sorted((sign * mine.ci95.low, sign * mine.ci95.high))
        assert ends == pytest.approx([theirs.ci95.low, theirs.ci95.high])
        assert sign * mine.details["top"]["estimate"] == pytest.approx(theirs.details["top"]["estimate"])


def law(text, columns=("tokens", "params", "rank")):
    return parse_law(text, columns)


def test_which_laws_are_products_of_powers():
    assert pure_powers(law("A*tokens**-b")) == {"b": ("tokens", -1)}
    assert pure_powers(law("A*rank**b/tokens**c")) == {"b": ("rank", 1), "c": ("tokens", -1)}
    assert pure_powers(law("2*A*tokens**b")) == {"b": ("tokens", 1)}
    for other in (
        "E + A*tokens**-b", "A*tokens**-0.5", "A*rank*tokens**-b", "A*(tokens+1)**-b", "b*tokens**-b",
        "A*tokens**-(2*b)", "A*tokens**b*tokens**c", "tokens**-b", "A/(E*tokens**b)", "-A*tokens**b",
    ):  # fmt: skip
        assert pure_powers(law(other)) is None, other


def test_which_columns_a_parameter_is_about():
    found = coordinates(law("E + A*params**-a*rank**(c*2) + B*exp(-k*tokens)"))
    assert found == {"E": set(), "A": set(), "B": set(), "a": {"params"}, "c": {"rank"}, "k": {"tokens"}}


def test_a_claim_is_a_number_or_a_relation():
    two = law(TWO)
    values = {"E": np.array(1.0), "A": np.array(2.0), "a": np.array(0.3), "B": np.array(4.0), "b": np.array(0.6)}
    for text, value, name, claimed, at in (
        ("b", 0.34, "b", 0.34, 0.6),
        ("b", "1/3", "b", 1 / 3, 0.6),
        ("a", "b", "a - b", 0.0, -0.3),
        ("a", "2*b", "a - (2*b)", 0.0, -0.9),
        ("a/(a+b)", 0.5, "a/(a+b)", 0.5, 1 / 3),
    ):
        q = quantity_of(text, value, two)
        assert (q.text, q.claimed) == (name, pytest.approx(claimed))
        assert float(q.of(values)) == pytest.approx(at)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"claimed": {"c": 1}}, "claim c: c is no parameter of the law; its parameters are A, b"),
        ({"claimed": {"b/(": 1}}, r"claim b/(: not an expression; write for example b=0.34 or a/(a+b)=0.5"),
        ({"claimed": {"2": 1}}, "claim 2: names no parameter of the law"),
        ({"claimed": {"b": "1/0"}}, "not a finite number"),
        ({"claimed": {"A/b": 1}, "bound": "upper"}, "bound upper: only a claim about one parameter has sides"),
        ({"claimed": {}}, "claim nothing is claimed"),
        ({"bound": "both"}, "bound both: choose one of upper, lower, equal"),
        ({"margin": 0.0}, "margin 0: must be a number above 0"),
        ({"target": "los"}, "target los: no such column"),
        ({"cluster": "run"}, "cluster run: no such column"),
    ],
)
def test_claims_that_cannot_be_read(change, said, rng):
    given = {"law": POWER, "claimed": {"b": 0.5}} | change
    with pytest.raises(OptionError) as caught:
        asked(scaling_table(power(0.5), rng), **given)
    assert said in str(caught.value)


def test_a_gap_in_a_column_is_named(rng):
    frame = scaling_table(power(0.5), rng)
    frame.loc[7, "tokens"] = np.nan
    with pytest.raises(InputError, match="column tokens, row"):
        asked(frame, POWER, {"b": 0.5})


def test_rows_of_two_teachers_are_refused(rng):
    frame = scaling_table(power(0.5), rng).assign(teacher=["a", "b"] * 25)
    for cluster in ("seed", None):
        with pytest.raises(InputError, match="column teacher"):
            asked(frame, POWER, {"b": 0.5}, cluster=cluster)


# --- the command, the library, and the file ---


def test_the_regression_of_the_docs(theory, tmp_path):
    """A claim of -1 holds as an equality, one of -.5 is true as an upper bound and refuted as an equality."""
    out = tmp_path / "o.json"
    base = ["test", REGRESSION, "--target", "gap", "--law", "A*rank**b*samples**-c", "--cluster", "seed"]
    done = theory(*base, "--claim", "c=1", "--json", out, "--figures", tmp_path / "f")
    assert done.code == 0 and "test: CONSISTENT" in done.out and "as an equality" not in done.out.splitlines()[3]
    found = json.loads(out.read_text())["claims"]["test"]
    assert set(found) >= {"verdict", "reasons", "exponents", "bound", "cells", "seeds", "needed"}
    assert found["exponents"]["c"]["estimate"] == pytest.approx(1.02, abs=0.02)
    assert {p.name for p in (tmp_path / "f").iterdir()} == {"test.png", "test.pdf", "test.csv"}
    half = theory(*base, "--claim", "c=1/2")
    assert half.code == 1 and "test: REFUTED" in half.out
    upper = theory(*base, "--claim", "c=0.5", "--bound", "upper")
    assert upper.code == 0 and "LOOSE, better than claimed by more than the margin; true as an upper bound" in upper.out
    lower = theory(*base, "--claim", "c=1.5", "--bound", "lower")
    assert "LOOSE, better than claimed by more than the margin; true as a lower bound" in lower.out
    piped = theory(*base, "--claim", "c=1", "--json", "-")
    assert json.loads(piped.out)["claims"]["test"]["verdict"] == CONSISTENT
    assert theory(*base, "--claim", "d=1").error.startswith("--claim d: d is no parameter of the law")
    assert "--claim c: write EXPRESSION=VALUE" in theory(*base, "--claim", "c").error


def test_the_library_asks_as_one_writes(rng):
    frame = scaling_table(power_with_floor(0.5, 0.1), rng)
    report = library.test(frame, "loss ~ E + A*tokens**-b", claimed={"b": 0.5}, cluster="seed", bootstraps=60)
    assert report["test"].verdict == CONSISTENT
    assert library.test(frame, FLOOR, target="loss", claimed="b = 0.3", bootstraps=60)["test"].verdict == REFUTED
    with pytest.raises(InputError, match="target: the law does not say what it describes"):
        library.test(frame, FLOOR, claimed="b=1")
    assert report.plot("test") is not None


CLAIMS = """
claims:
  - name: fast
    target: gap
    law: "A*rank**b*samples**-c"
    claim: {c: 1}
    cluster: seed
    statement: the gap falls as 1/N
    where: rank >= 4
  - name: half
    target: gap
    law: "A*rank**b*samples**-c"
    claim: c = 1/2
    bound: equal
    margin: 0.1
    cluster: seed
"""


def test_a_file_of_claims(theory, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CLAIMS)
    done = theory("check", REGRESSION, "--claims", path)
    assert done.code == 1
    assert "fast: CONSISTENT" in done.out and "half: REFUTED" in done.out and "the gap falls as 1/N" in done.out
    assert "36 cells" in done.out and "42 cells" in done.out  # `where` is of one claim
    assert theory("check", REGRESSION, "--claims", path, "--claim", "fast").code == 0
    unknown = theory("check", REGRESSION, "--claims", path, "--claim", "slow").error
    assert unknown.startswith("--claim slow: the file has no such claim")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claims: []", "no list of claims"),
        ("- a\n- b", "no list of claims"),
        ("claims:\n  - {name: a, target: b, law: c}", "claim 1: key claim is missing"),
        ("claims:\n  - {name: a, target: b, law: c, claim: {b: 1}, margn: 1}", "claim 1: key margn is unknown"),
        ("claims:\n  - {name: a, target: b, law: c, claim: [1]}", "claim a: key claim: write"),
        ("claims:\n  - {name: a, target: b, law: c, claim: {b: 1}, bound: up}", "claim a: bound up: choose one of"),
        ("claims:\n  - {name: a, target: 3, law: c, claim: {b: 1}}", "claim a: key target: 3 is not text"),
        ("claims:\n  - {name: a, target: b, law: c, claim: {b: 1}, margin: wide}", "margin: 'wide' is not a number"),
        ("claims:\n  - {name: a, target: b, law: c, claim: {b: 1}}\n  - {name: a, target: b, law: c, claim: {b: 1}}",
         "two claims are called a"),
        ("claims: {", "line 1: no YAML"),
        ("claims:\n  - text", "claim 1: not a mapping"),
    ],
)  # fmt: skip
def test_files_that_hold_no_claims(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_claims(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_claim_of_the_file_that_fails_is_named(tmp_path, rng, theory):
    table, path = tmp_path / "t.csv", tmp_path / "mine.yaml"
    scaling_table(power(0.5), rng).to_csv(table, index=False)
    path.write_text(CLAIMS)
    assert "fast is not judged: the table lacks its target gap" in theory("check", table, "--claims", path).error
    path.write_text(CLAIMS.replace("cluster: seed", "cluster: run"))
    assert theory("check", REGRESSION, "--claims", path).error.startswith("claim fast: cluster run: no such column")
    assert "cannot be read" in theory("check", table, "--claims", tmp_path / "none.yaml").error


def test_points_carry_the_target_and_the_law(rng):
    report = asked(scaling_table(power_with_floor(0.5, 0.1), rng), FLOOR, {"b": 0.5})
    points = report.points
    assert report.fields["along"] == "tokens"
    assert points["tokens"].tolist() == pytest.approx(list(TOKENS))
    truth = 0.1 + (np.array(TOKENS) / TOKENS[0]) ** -0.5
    assert points["fitted"].to_numpy() == pytest.approx(truth, rel=0.02)
    assert ((points["low"] < points["mean"]) & (points["mean"] < points["high"])).all()
    assert isinstance(points, pd.DataFrame) and report.cells == 10 and report.seeds == 5


def test_a_claim_with_the_wrong_sign_is_hinted_at(rng):
    frame = scaling_table(power(0.5), rng)
    said = "did you mean b=0.5?"
    assert any(said in r for r in asked(frame, POWER, {"b": -0.5}).reasons)
    assert not any(said in r for r in asked(frame, POWER, {"b": 0.5}).reasons)


def test_claims_without_their_target_are_left_out(tmp_path, rng, theory):
    path = tmp_path / "mine.yaml"
    path.write_text(CLAIMS.replace("  - name: half\n    target: gap", "  - name: half\n    target: loss"))
    done = theory("check", REGRESSION, "--claims", path)
    assert done.code == 0 and "half is not judged: the table lacks its target loss" in done.out
    path.write_text(CLAIMS.replace("target: gap", "target: loss"))
    assert "no claim can be judged: fast is not judged" in theory("check", REGRESSION, "--claims", path).error
