"""Several looks at a growing table err no more often than one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from follow_next import refuted_at_the_edge
from scipy import stats

from theory.errors import OptionError
from theory.judge import looks
from theory.judge.check import check_table
from theory.judge.intervals import mean_interval, spending, t_quantile
from theory.judge.looks import ERROR, RULES, Looks, agreed, level
from theory.judge.verdicts import DECIDED, HOLDS, INCONCLUSIVE, LOOSE, PRECEDENCE, REFUTED
from theory.judge.window import Estimate, is_bent
from theory.planted.surfaces import Design, gap_table
from theory.tables import table_from_frame

DESIGN = Design(ranks=(2, 4, 8, 15, 26), samples=(164, 512, 1600, 5120, 16400), seeds=5, noise=0.3)


@pytest.mark.parametrize(("rule", "planned"), [*product(RULES, (1, 2, 4, 7))])
def test_all_looks_spend_the_error_of_one(rule, planned):
    shares = [Looks(planned, rule).share(k + 1) for k in range(planned)]
    assert min(shares) > 0 and sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=rule == "pocock")
    left = [Looks(planned, rule).rest(k + 1) for k in range(planned)]
    assert left == pytest.approx(1 - np.cumsum([0.0, *shares[:-1]]))


def test_spent_errors_are_those_of_the_literature():
    """Lan & DeMets' functions at quarters: ln(1 + (e-1) t) and 2 - 2 Phi(z / sqrt t), of 5 %."""
    spent = {rule: ERROR * np.cumsum([Looks(4, rule).share(k) for k in (1, 2, 3, 4)]) for rule in RULES}
    np.testing.assert_allclose(spent["pocock"], [0.017869, 0.031006, 0.041399, 0.05], atol=1e-6)
    exact = 2 * stats.norm.sf(stats.norm.isf(0.025) / np.sqrt([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(spent["obrien_fleming"], exact, rtol=1e-9)
    assert level(Looks(4, "pocock").share(1)) == pytest.approx(0.982131, abs=1e-6)


def test_what_cannot_be_declared_is_refused():
    with pytest.raises(OptionError, match="looks 0: must be at least 1"):
        Looks(0)
    with pytest.raises(OptionError, match="choose from pocock, obrien_fleming"):
        Looks(4, "bonferroni")
    with pytest.raises(ValueError, match="look 5 of 4"):
        Looks(4).share(5)


def test_intervals_err_with_their_share_and_guards_stay():
    values = np.array([1.0, 2.0, 4.0, 3.0])
    usual, bend = mean_interval(values, 0.95), Estimate(0.5, 0.15, 5.0)
    with spending(0.2):
        wider = mean_interval(values, 0.95)
        assert is_bent(bend, 0.95)
        assert bend.interval(0.95).low < 0
        assert float(t_quantile(0.025, 3.0)) == pytest.approx(stats.t.ppf(0.005, 3))
    one_percent = mean_interval(values, 0.99)
    assert (wider.low, wider.high) == (pytest.approx(one_percent.low), pytest.approx(one_percent.high))
    assert mean_interval(values, 0.95) == usual


def test_a_look_never_says_more_than_the_usual_level():
    for strict, usual in product(PRECEDENCE, repeat=2):
        word = agreed(strict, usual)
        if word in DECIDED:
            assert strict in DECIDED and usual in DECIDED
            assert (word == REFUTED) == (strict == usual == REFUTED)
            assert word in (strict, usual, HOLDS)
    assert agreed(INCONCLUSIVE, LOOSE) == INCONCLUSIVE
    assert agreed("UNTESTABLE", INCONCLUSIVE) == INCONCLUSIVE
    assert agreed(LOOSE, "CONSISTENT") == HOLDS
    assert agreed(REFUTED, LOOSE) == INCONCLUSIVE


def test_a_table_that_one_look_refutes_narrowly_is_not_refuted_by_one_of_four():
    frame = gap_table(1.0, 0.3, DESIGN, np.random.default_rng(3))
    words = {}
    for share in (1.0, Looks(4, "obrien_fleming").share(1)):
        word, report = looks.look(table_from_frame(frame), "generalization", share)
        width = report["generalization"].exponents["samples"].ci95.width
        words[word] = width
    usual = check_table(frame, claims=["generalization"])["generalization"]
    assert usual.verdict == REFUTED
    assert list(words) == [REFUTED, INCONCLUSIVE]
    assert words[INCONCLUSIVE] > 3 * words[REFUTED]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_true_claim_at_the_edge_is_refuted_by_few_of_all_looks():
    found = refuted_at_the_edge(400, Looks())
    assert found["spent"] <= ERROR + 2 * np.sqrt(ERROR / 400)
    assert found["spent"] < found["each_at_95"]
