"""Does the judge come out right, both ways? Planted truths in, verdicts out.

Every case draws tables of a full design (the same grid, seeds and noise), judges them, and compares with what was
planted: verdicts, coverage of the intervals, refutations of truths at the margin and of wrong exponents. The
requirements are those that a judge has to meet before its verdicts on real data mean anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from theory.claims import convergence, dynamics, generalization, information, optimal_rank
from theory.intervals import generator
from theory.planted.cases import Case, all_cases
from theory.report import ClaimReport
from theory.tables import table_from_frame
from theory.verdicts import CONSISTENT, MARGIN, REFUTED

FULL_REPLICATIONS = 100
QUICK_REPLICATIONS = 5
#: Coverage and type I errors need more replications than verdicts that are nearly always the same.
DOUBLED = frozenset({"surface", "margin", "power at .15"})
COVERAGE_GROUPS = ("surface", "margin", "power at .15", "power at .25")

#: The judges without the rival laws that only the report shows.
JUDGES: dict[str, Callable[..., ClaimReport]] = {
    "convergence": partial(convergence.judge, all_rivals=False),
    "generalization": partial(generalization.judge, all_rivals=False),
    "optimal_rank": optimal_rank.judge,
    "information": information.judge,
    "dynamics": dynamics.judge,
}


@dataclass(frozen=True)
class Tally:
    """What the judge said over the replications of a case; every number is a share between 0 and 1.

    Attributes:
        verdicts: of the claim. rates: two-sided verdicts by quantity. refuted: coordinates refuted, by quantity.
        coverage90, coverage95: of the planted exponent, by quantity. bias: mean estimate minus planted exponent.
        regime_right: exactly the planted regime was named (None where there is none).
    """

    case: Case
    replications: int
    verdicts: Mapping[str, float]
    rates: Mapping[str, Mapping[str, float]]
    refuted: Mapping[str, float]
    coverage90: Mapping[str, float]
    coverage95: Mapping[str, float]
    bias: Mapping[str, float]
    regime_right: float | None

    @property
    def right(self) -> float:
        """Share of expected verdicts (of verdicts other than CONSISTENT where none is expected)."""
        if self.case.expected is None:
            return 1.0 - self.verdicts.get(CONSISTENT, 0.0)
        return sum(self.verdicts.get(word, 0.0) for word in self.case.expected)

    def to_dict(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "group": self.case.group,
            "claim": self.case.claim,
            "truth": self.case.truth,
            "expected": self.case.expected,
            "replications": self.replications,
            "verdicts": self.verdicts,
            "rate_verdicts": self.rates,
            "coordinate_refuted": self.refuted,
            "coverage90": self.coverage90,
            "coverage95": self.coverage95,
            "bias": self.bias,
            "regime_right": self.regime_right,
        }


def run_case(case: Case, replications: int, stream: int, margin: float = MARGIN) -> Tally:
    """Judge `replications` independent draws of a case; `stream` keys its random numbers."""
    reports = [
        JUDGES[case.claim](table_from_frame(case.draw(generator(100, stream, k))), margin) for k in range(replications)
    ]

    def shares(words: Sequence[str]) -> dict[str, float]:
        counts = Counter(words)
        return {word: counts[word] / len(words) for word in sorted(counts)}

    rates, refuted, coverage90, coverage95, bias = {}, {}, {}, {}, {}
    for quantity, truth in case.truth.items():
        exponents = [report.exponents[quantity] for report in reports]
        rates[quantity] = shares([e.rate for e in exponents])
        refuted[quantity] = float(np.mean([e.verdict == REFUTED for e in exponents]))
        coverage90[quantity] = float(np.mean([e.ci90.low <= truth <= e.ci90.high for e in exponents]))
        coverage95[quantity] = float(np.mean([e.ci95.low <= truth <= e.ci95.high for e in exponents]))
        bias[quantity] = float(np.mean([e.estimate for e in exponents])) - truth
    regime = None
    if case.regime is not None:
        named = [[n for n, word in r.fields["regimes"].items() if word == CONSISTENT] for r in reports]
        regime = float(np.mean([names == [case.regime] for names in named]))
    verdicts = shares([report.verdict for report in reports])
    return Tally(case, replications, verdicts, rates, refuted, coverage90, coverage95, bias, regime)


@dataclass(frozen=True)
class Requirement:
    """A property that the judge has to have: a measured value between limits (inclusive)."""

    name: str
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.low - 1e-12 <= self.value <= self.high + 1e-12

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "limits": [self.low, self.high], "met": self.met}


@dataclass(frozen=True)
class Validation:
    """All tallies, and the requirements drawn from them."""

    replications: int
    tallies: Sequence[Tally]
    requirements: Sequence[Requirement]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "replications": self.replications,
            "cases": [t.to_dict() for t in self.tallies],
            "requirements": [r.to_dict() for r in self.requirements],
        }


def requirements(tallies: Sequence[Tally]) -> list[Requirement]:
    """The must-haves, from the tallies."""

    def group(name: str) -> list[Tally]:
        return [t for t in tallies if t.case.group == name]

    def coverage(claim: str) -> float:
        rows = [t for name in COVERAGE_GROUPS for t in group(name) if t.case.claim == claim]
        weighted = [(v, t.replications) for t in rows for v in t.coverage95.values()]
        values, weights = zip(*weighted, strict=True)
        return float(np.average(values, weights=weights))

    truth = next(t for t in tallies if t.case.name == "gap r^1 N^-0.5")
    wrong = [t for t in tallies if t.case.expected == (REFUTED,)]
    at_margin = [share for t in group("margin") for share in t.refuted.values()]
    regimes = [t.regime_right for t in group("E4") if t.regime_right is not None]
    return [
        Requirement("coverage of 95 % intervals, exponents of the gap", coverage("generalization"), 0.93, 0.98),
        Requirement("coverage of 95 % intervals, exponent of the gradient", coverage("convergence"), 0.93, 0.98),
        Requirement("coverage of 95 % intervals, exponent of r*", coverage("optimal_rank"), 0.93, 0.98),
        Requirement("truths at the margin refuted, largest share", max(at_margin), 0.0, 0.05),
        Requirement("wrong by .25 or more and refuted, smallest share", min(t.right for t in wrong), 0.95, 1.0),
        Requirement("truth accepted at 5 seeds and 20 % noise", truth.right, 0.90, 1.0),
        Requirement("E4 verdict as constructed, smallest share", min(t.right for t in group("E4")), 0.95, 1.0),
        Requirement("E4 regime named as constructed, smallest share", min(regimes), 0.95, 1.0),
        Requirement("null called CONSISTENT, largest share", 1 - min(t.right for t in group("null")), 0.0, 0.05),
    ]


def validate(replications: int, progress: Callable[[str], None] = lambda _: None) -> Validation:
    """Run every case (those that measure coverage or type I error with twice the replications)."""
    tallies = []
    for stream, case in enumerate(all_cases()):
        progress(case.name)
        tallies.append(run_case(case, replications * (2 if case.group in DOUBLED else 1), stream))
    return Validation(replications, tallies, requirements(tallies))
