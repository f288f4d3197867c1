"""Claim 2: the generalisation error is O(r (d_in + d_out) / sqrt N)."""

from __future__ import annotations

import pandas as pd

from theory import gates
from theory.cells import build_cells
from theory.ledger import Claim
from theory.rates import Coordinate, RateResult, judge_rates
from theory.report import FREE_CONSTANT, Bound, ClaimReport, Exponent
from theory.tables import Table, claim_rows, longest_training, resolve_duplicates
from theory.verdicts import CONSISTENT, INCONCLUSIVE, NOT_EVALUATED, UNTESTABLE, combine, rate

CLAIMED = {"rank": 1.0, "samples": -0.5}
#: Named regimes of the gap ~ r^b N^-c by their exponents (b, -c).
REGIMES = {
    "slow": {"rank": 0.5, "samples": -0.5},  # uniform convergence, sqrt(p/N)
    "abstract": {"rank": 1.0, "samples": -0.5},  # r (d_in + d_out) / sqrt N
    "fast": {"rank": 1.0, "samples": -1.0},  # regular parametric, p/N
}


def regime_verdicts(exponents: dict[str, Exponent], margin: float) -> dict[str, str]:
    """For each named regime the two-sided verdict on both exponents at once (the worse of the two)."""
    verdicts = {}
    for name, claimed in REGIMES.items():
        verdicts[name] = combine([_equals(e, claimed[c], margin) for c, e in exponents.items()])
    return verdicts


def _equals(exponent: Exponent, claimed: float, margin: float) -> str:
    """Is the exponent `claimed` up to the margin? Never CONSISTENT where the data are no power law."""
    if exponent.rate == UNTESTABLE:
        return UNTESTABLE
    word = rate(claimed, margin, exponent.ci90, exponent.ci95)
    return INCONCLUSIVE if word == CONSISTENT and not exponent.details["power_law"] else word


def judge(table: Table, margin: float, *, all_rivals: bool = True) -> ClaimReport:
    """Judge the exponents of the signed gap in rank and samples.

    Raises:
        InputError: unusable rows (see `theory.tables`).
    """
    frame, remarks = claim_rows(table, CLAIM.name, CLAIM.columns, CLAIM.measured, CLAIM.optional)
    run = ["rank", "samples", "steps", "seed"]
    shape = [c for c in ("d_in", "d_out") if c in frame]
    frame, needed = resolve_duplicates(frame, table.path, CLAIM.name, [*run, *shape], ["gap"], ["site", "clone_weight"])
    frame, shortened = longest_training(frame, ["rank", "samples", "seed", *shape, *needed])
    remarks += shortened
    strata = _shape_strata(frame, shape) + needed
    cells = build_cells(frame, [*strata, "rank", "samples"], "gap")
    result: RateResult = judge_rates(
        cells,
        "gap",
        [
            Coordinate("rank", CLAIMED["rank"], gates.MIN_DECADES_RANK, gates.MIN_RANKS),
            Coordinate("samples", CLAIMED["samples"], gates.MIN_DECADES_SIZE),
        ],
        "samples",
        margin,
        strata=strata,
        all_rivals=all_rivals,
    )
    regimes = regime_verdicts(result.exponents, margin)
    reasons = list(result.reasons)
    reasons += [
        f"both exponents equal those of the {name} regime, gap ~ r^{REGIMES[name]['rank']:g} "
        f"N^{REGIMES[name]['samples']:g}"
        for name, word in regimes.items()
        if word == CONSISTENT
    ]
    verdict = combine([e.verdict for e in result.exponents.values()])
    return ClaimReport(
        CLAIM.name,
        verdict,
        (*reasons, *remarks, FREE_CONSTANT),
        result.exponents,
        Bound(NOT_EVALUATED),
        cells.size,
        cells.seeds,
        {"regimes": regimes, "laws": result.rivals},
        result.points,
    )


def _shape_strata(frame: pd.DataFrame, shape: list[str]) -> list[str]:
    """Weight shapes that vary on their own get their own constant; shapes tied to the rank do not.

    Where every shape has a single rank, an intercept per shape would absorb the rank's exponent. A shape with a single
    rank among others says nothing about the rank, and with a constant of its own does no harm.
    """
    varying = [c for c in shape if frame[c].nunique() > 1]
    if not varying or frame.groupby(varying)["rank"].nunique().max() < 2:
        return []
    return varying


CLAIM = Claim(
    name="generalization",
    order=2,
    title="Generalisation error O(r (d_in + d_out) / sqrt N)",
    statement="E[L_test - L_train] <= C r (d_in + d_out) / sqrt(N)",
    symbols={
        "r": "rank, for Low-Rank Clone the student's width (column rank)",
        "N": "number of training samples, here sequences (column samples); not a matrix dimension",
        "d_in, d_out": "shape of a projected weight matrix (columns d_in, d_out)",
        "L_test - L_train": "signed generalisation gap, control-variate corrected where possible (column gap)",
        "C": "a constant free of r, N, d_in and d_out",
    },
    assumptions=(
        "samples are independent and identically distributed",
        "the linear form in r needs factors with bounded entries, so that ||W||_* <= (||U||_F^2 + ||V||_F^2)/2 "
        "grows as r (d_in + d_out)",
        "training reaches the same criterion at every N",
    ),
    columns=("rank", "samples", "seed", "gap"),
    measured="gap",
    optional=("steps", "d_in", "d_out", "params"),
    exponents=CLAIMED,
    bound=(
        "none is evaluated: the constant is free, and with constant 1 the form exceeds log V at every "
        "language-model scale"
    ),
    rule=(
        "gap ~ r^b N^-c on the linear scale, seeds as clusters. A coordinate is REFUTED if its interval lies on "
        "the slow side "
        "(b > 1 + margin or -c > -1/2 + margin; 97.5 % intervals where both are tested), LOOSE on the fast side, "
        "CONSISTENT if "
        "the 90 % interval lies within the margin. N must span 2 decades, r .9 of a decade with 5 values, 5 seeds "
        "a cell, and "
        "mean/SE >= 3 in 90 % of the cells"
    ),
    problems=(
        "G4: with one letter for matrix dimension and sample size the form grows with n; N is read as the sample size",
        "G5: linear r with 1/sqrt N takes the numerator of the fast rate p/N and the denominator of the slow rate "
        "sqrt(p/N); "
        "it is weaker than sqrt(r (d_in + d_out)/N) and vacuous for language models",
        "G6: gap, excess and total error differ; |gap| of a single run is the noise of the training loss and falls "
        "as 1/sqrt N "
        "for any model, so the signed mean is used",
        "G7: r is the student's width, and the number of trained entries is r d_T per projection, not r (d_in + d_out)",
        "G10: a bound with a free constant is confirmed by anything that is not slower",
    ),
    sources=(
        "Candes & Plan 2011, Lemma 3.1 (covering numbers, sqrt(p/N))",
        "Tropp 2015, Theorem 4.1.1 (norm-based bounds)",
        "Kratsios et al. 2025, arXiv 2506.14530 (sqrt(r/N) for LoRA)",
        "arXiv 2603.22355, abstract (the claim)",
    ),
    judge=judge,
)
