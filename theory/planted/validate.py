"""Does the judge come out right, both ways? Planted truths in, verdicts out.

Every case draws tables of a full design, judges them, and compares the words with those that are right about what was
planted. Cases come in families (pure powers, bends, plateaus, finite matrices, nulls, ...), and the requirements are
shares over a family: those that a judge has to meet before its verdicts on real data mean anything.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from theory.claims import compression, convergence, dynamics, efficiency, generalization, information, optimal_rank
from theory.judge.intervals import generator
from theory.judge.user_claim import judge_claim
from theory.judge.verdicts import CONSISTENT, INCONCLUSIVE, MARGIN, REFUTED, UNTESTABLE
from theory.planted.cases import (
    BENT,
    BEYOND,
    COMPRESSION,
    CONCAVE,
    EFFICIENCY,
    EFFICIENCY_MARGINS,
    FINITE,
    HIDDEN,
    LINEAR,
    MARGINS,
    NULLS,
    OWN,
    PURE,
    RANK_LAWS,
    RATIOS,
    SEED_SLOPES,
    SURFACES,
    Case,
    all_cases,
)
from theory.report import ClaimReport
from theory.tables import table_from_frame, wrap_frame

#: Rare errors (at the margin) and coverage of the few cases in T need more draws than words that hardly ever change.
MANY = 3
#: Where coverage of planted exponents is required: laws that are pure powers, judged with a full design.
COVERAGE_FAMILIES = (PURE, MARGINS, BEYOND, RANK_LAWS, CONCAVE, SEED_SLOPES)

#: Draws of every fit that is made for a claim of one's own.
OWN_BOOTSTRAPS = 200

JUDGES: dict[str, Callable[..., ClaimReport]] = {
    "convergence": convergence.judge,
    "generalization": generalization.judge,
    "optimal_rank": optimal_rank.judge,
    "information": information.judge,
    "dynamics": dynamics.judge,
    "efficiency": efficiency.judge,
    "compression": compression.judge,
}

RIGHT, HARMFUL, UNDECIDED, OFF = "right", "harmful", "undecided", "off"


@dataclass(frozen=True)
class Outcome:
    """What the judge said about one draw.

    Attributes:
        verdict: of the claim. words: by coordinate.
        grades: RIGHT, HARMFUL, UNDECIDED, or OFF (wrong without harm, as LOOSE of a law at the claimed rate), one for
            every coordinate that counts in the case's family.
        errors: estimate minus truth, by coordinate that could be tested and whose truth is one number (of F, by target
            loss, the logarithm). covered:
            whether its 95 % interval holds the truth.
        regime_right: exactly the planted regime was named (None where there is none).
    """

    verdict: str
    words: Mapping[str, str]
    grades: tuple[str, ...]
    errors: Mapping[str, float]
    covered: Mapping[str, bool]
    regime_right: bool | None


@dataclass(frozen=True)
class Tally:
    """The outcomes of a case; every number is a share between 0 and 1.

    Attributes:
        verdicts: of the claim. words: by coordinate. grades: of the words that count.
        covered: by coordinate how often the 95 % interval held the truth, and in how many draws it was tested.
        bias: mean estimate minus truth, by coordinate.
    """

    case: Case
    replications: int
    verdicts: Mapping[str, float]
    words: Mapping[str, Mapping[str, float]]
    grades: Mapping[str, float]
    covered: Mapping[str, tuple[int, int]]
    bias: Mapping[str, float]
    regime_right: float | None

    def grade(self, name: str) -> float:
        return self.grades.get(name, 0.0)

    @property
    def as_expected(self) -> float:
        """Share of the claim's verdicts that were expected (of those other than CONSISTENT where none is)."""
        return sum(self.verdicts.get(word, 0.0) for word in self.case.allowed(None, 0.0, 0.0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "family": self.case.family,
            "claim": self.case.claim,
            "slopes": {name: [s.low, s.top, s.beyond] for name, s in self.case.slopes.items()},
            "expected": self.case.expected,
            "replications": self.replications,
            "verdicts": self.verdicts,
            "coordinate_verdicts": self.words,
            **{name: self.grade(name) for name in (RIGHT, HARMFUL, UNDECIDED)},
            "coverage95": {name: hits / n for name, (hits, n) in self.covered.items()},
            "bias": self.bias,
            "regime_right": self.regime_right,
        }


def judge_draw(case: Case, stream: int, replication: int, margin: float = MARGIN) -> Outcome:
    """Judge one draw of a case; `stream` and the replication key its random numbers."""
    frame = case.draw(generator(100, stream, replication))
    if case.own is not None:
        report = judge_claim(wrap_frame(frame), case.own, bootstraps=OWN_BOOTSTRAPS)
    else:
        report = JUDGES[case.claim](table_from_frame(frame), margin)
    exponents = report.exponents
    words = {name: e.verdict for name, e in exponents.items()}
    grades = [_grade(case, name, words[name], exponents[name].claimed, margin) for name in case.slopes]
    tested = [n for n, e in exponents.items() if e.verdict != UNTESTABLE and np.isfinite(e.ci95.width)]
    known = {name: case.exponents[name] for name in tested if name in case.exponents}
    if case.log_rank_of is not None and "samples" in tested:
        window = np.array(exponents["samples"].details["window"], dtype=np.float64)
        known["samples"] = float(np.polyfit(np.log(window), case.log_rank_of(window), 1)[0])
    regimes = [name for name, word in report.fields.get("regimes", {}).items() if word == CONSISTENT]
    errors = {name: exponents[name].estimate - truth for name, truth in known.items()}
    covered = {
        name: bool(exponents[name].ci95.low <= truth <= exponents[name].ci95.high) for name, truth in known.items()
    }
    if case.factor_at is not None:
        measured = _factors(case.factor_at, report)
        errors |= {name: error for name, (error, _) in measured.items()}
        covered |= {name: hit for name, (_, hit) in measured.items()}
    return Outcome(
        report.verdict,
        words,
        tuple(grades) or (_grade(case, None, report.verdict, np.nan, margin),),
        errors,
        covered,
        None if case.regime is None else regimes == [case.regime],
    )


def _factors(factor_at: Callable[[np.ndarray], np.ndarray], report: ClaimReport) -> dict[str, tuple[float, bool]]:
    """F in tokens at each target loss: its error in ln F, and whether its interval holds the truth."""
    tested = [c for c in report.fields["comparisons"] if c["budget"] == "tokens" and c["verdict"] != UNTESTABLE]
    targets = [t for c in tested for t in c["targets"]]
    truth = factor_at(np.array([t["loss"] for t in targets]))
    return {
        f"F at target {k + 1}": (float(np.log(t["estimate"] / f)), bool(t["ci95"][0] <= f <= t["ci95"][1]))
        for k, (t, f) in enumerate(zip(targets, truth, strict=True))
    }


def _grade(case: Case, coordinate: str | None, word: str, claimed: float, margin: float) -> str:
    if word in case.allowed(coordinate, claimed, margin):
        return RIGHT
    if word in case.harmful(coordinate, claimed, margin):
        return HARMFUL
    return UNDECIDED if word in (INCONCLUSIVE, UNTESTABLE) else OFF


def tally(case: Case, outcomes: Sequence[Outcome]) -> Tally:
    def shares(words: Iterable[str]) -> dict[str, float]:
        counts = Counter(words)
        return {word: counts[word] / counts.total() for word in sorted(counts)}

    covered = {
        name: [o.covered[name] for o in outcomes if name in o.covered]
        for name in {n for o in outcomes for n in o.covered}
    }
    regimes = [o.regime_right for o in outcomes if o.regime_right is not None]
    return Tally(
        case,
        len(outcomes),
        shares(o.verdict for o in outcomes),
        {name: shares(o.words[name] for o in outcomes) for name in outcomes[0].words},
        shares(grade for o in outcomes for grade in o.grades),
        {name: (sum(hits), len(hits)) for name, hits in sorted(covered.items())},
        {name: float(np.mean([o.errors[name] for o in outcomes if name in o.errors])) for name in sorted(covered)},
        float(np.mean(regimes)) if regimes else None,
    )


def run_case(case: Case, replications: int, stream: int, margin: float = MARGIN) -> Tally:
    """Judge `replications` independent draws of a case; `stream` keys its random numbers."""
    return tally(case, [judge_draw(case, stream, k, margin) for k in range(replications)])


def stream_of(name: str) -> int:
    """The key of a case's random numbers: it stays when cases are added, or run in another order."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Draws:
    """Replications of a case for a worker. A case cannot be sent (its law is a closure), so the worker finds it."""

    find: Callable[[], Case]
    replications: int
    stream: int

    def judged(self) -> list[Outcome]:
        case = self.find()
        return [judge_draw(case, self.stream, k) for k in range(self.replications)]


def _named(name: str) -> Case:
    return next(case for case in all_cases() if case.name == name)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Workers started in this context leave their cores to each other; matrices of side 200 gain nothing by threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def judged(jobs: Sequence[Draws], workers: int | None) -> Iterator[tuple[int, list[Outcome]]]:
    """The outcomes of each job and its place, as they are ready.

    Args:
        workers: processes; None: one for each core that this process may use. With one, all is done here.
    """
    if workers is None:
        # A job of a cluster, or a container, may use fewer cores than the machine has.
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(workers, len(jobs)) <= 1:
        yield from ((k, job.judged()) for k, job in enumerate(jobs))
        return
    # Spawned, not forked: numerical libraries and progress bars have threads.
    with _single_threaded(), ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        places = {pool.submit(job.judged): k for k, job in enumerate(jobs)}
        try:
            for ready in as_completed(places):
                yield places[ready], ready.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_cases(
    cases: Sequence[Case],
    replications: int,
    progress: Callable[[str], None] = lambda _: None,
    *,
    workers: int | None = None,
) -> list[Tally]:
    """Judge draws of many cases of `all_cases`.

    Args:
        replications: draws per case; MANY times as many at the margin and where coverage in T is measured.
        progress: told after every case how far it got. workers: processes, by default one per core; the outcome does
            not depend on their number.
    """
    draws = {c.name: replications * (MANY if _needs_many(c) else 1) for c in cases}
    # Neighbours in the zoo cost alike. In the order of their keys cheap and dear cases mix, and the time left is known.
    order = sorted(draws, key=stream_of)
    start, total, finished = time.monotonic(), sum(draws.values()), 0
    outcomes: dict[str, list[Outcome]] = {}
    jobs = [Draws(partial(_named, name), draws[name], stream_of(name)) for name in order]
    for k, outcome in judged(jobs, workers):
        name = order[k]
        outcomes[name] = outcome
        finished += draws[name]
        left = (time.monotonic() - start) * (total - finished) / finished
        progress(f"{finished} of {total} draws, about {left / 60:.0f} min left: {name}")
    return [tally(case, outcomes[case.name]) for case in cases]


def _needs_many(case: Case) -> bool:
    return case.family == MARGINS or "steps" in case.exponents


@dataclass(frozen=True)
class Family:
    """Shares over the cases of a family, each case counting alike.

    Attributes:
        right, harmful, undecided: shares of the words that count. coverage95: of all intervals with a known truth,
            or None. worst: the case with the largest harmful share.
    """

    name: str
    cases: int
    right: float
    harmful: float
    undecided: float
    coverage95: float | None
    worst: Tally

    def to_dict(self) -> dict[str, Any]:
        return {
            "family": self.name,
            "cases": self.cases,
            RIGHT: self.right,
            HARMFUL: self.harmful,
            UNDECIDED: self.undecided,
            "coverage95": self.coverage95,
            "worst": {"case": self.worst.case.name, HARMFUL: self.worst.grade(HARMFUL)},
        }


def families(tallies: Sequence[Tally]) -> list[Family]:
    """The tallies by family, in the order of the cases."""
    rows = []
    for name in dict.fromkeys(t.case.family for t in tallies):
        members = [t for t in tallies if t.case.family == name]
        right, harmful, undecided = (
            float(np.mean([t.grade(grade) for t in members])) for grade in (RIGHT, HARMFUL, UNDECIDED)
        )
        coverage = _coverage(members) if any(t.covered for t in members) else None
        worst = max(members, key=lambda t: t.grade(HARMFUL))
        rows.append(Family(name, len(members), right, harmful, undecided, coverage, worst))
    return rows


def _coverage(tallies: Iterable[Tally], coordinate: str | None = None) -> float:
    """Share of the 95 % intervals that hold the truth (0 if there is none), of one coordinate or of all."""
    counts = [pair for t in tallies for name, pair in t.covered.items() if coordinate in (None, name)]
    hits, n = np.sum(counts, axis=0) if counts else (0, 0)
    return float(hits / n) if n else 0.0


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
    """All tallies, their families, and the requirements drawn from them."""

    replications: int
    tallies: Sequence[Tally]
    families: Sequence[Family]
    requirements: Sequence[Requirement]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 2,
            "replications": self.replications,
            "families": [f.to_dict() for f in self.families],
            "cases": [t.to_dict() for t in self.tallies],
            "requirements": [r.to_dict() for r in self.requirements],
        }


def requirements(tallies: Sequence[Tally]) -> list[Requirement]:
    """The must-haves, from the tallies of all cases."""
    by_family = {family.name: family for family in families(tallies)}

    def of(*names: str) -> list[Tally]:
        return [t for t in tallies if t.case.family in names]

    powers = of(*COVERAGE_FAMILIES)
    truth = next(t for t in tallies if t.case.name == "gap r^1 N^-0.5")
    plainly_wrong = [t for t in tallies if t.case.expected == (REFUTED,)]
    regimes = [t.regime_right for t in of(LINEAR) if t.regime_right is not None]
    return [
        *(
            Requirement(f"{name}: harmful words", family.harmful, 0.0, 0.05)
            for name, family in by_family.items()
            if name != HIDDEN
        ),
        Requirement(f"{PURE}: right words", by_family[PURE].right, 0.95, 1.0),
        Requirement(f"{BENT}: right words", by_family[BENT].right, 0.75, 1.0),
        Requirement(f"{CONCAVE}: right words", by_family[CONCAVE].right, 0.90, 1.0),
        Requirement("coverage of 95 % intervals, exponent in N", _coverage(powers, "samples"), 0.93, 0.98),
        Requirement("coverage of 95 % intervals, exponent in r", _coverage(powers, "rank"), 0.93, 0.98),
        Requirement("coverage of 95 % intervals, exponent in T", _coverage(powers, "steps"), 0.93, 0.98),
        Requirement("coverage, exponent of r* in the window, finite matrices", _coverage(of(FINITE)), 0.90, 1.0),
        Requirement("coverage, exponent of r* in the window, surfaces", _coverage(of(SURFACES)), 0.90, 1.0),
        Requirement("the abstract's law at 5 seeds and 20 % noise called CONSISTENT", truth.as_expected, 0.90, 1.0),
        Requirement("plainly wrong and REFUTED, smallest share", min(t.as_expected for t in plainly_wrong), 0.95, 1.0),
        Requirement("E4 verdict as constructed, smallest share", min(t.as_expected for t in of(LINEAR)), 0.95, 1.0),
        Requirement("E4 regime named as constructed, smallest share", min(regimes), 0.95, 1.0),
        Requirement("null called CONSISTENT, largest share", 1 - min(t.as_expected for t in of(NULLS)), 0.0, 0.05),
        *(Requirement(f"{name}: right words", by_family[name].right, 0.95, 1.0) for name in (EFFICIENCY, COMPRESSION)),
        Requirement("coverage of 95 % intervals of F", _coverage(of(EFFICIENCY, EFFICIENCY_MARGINS)), 0.93, 0.98),
        Requirement(f"{OWN}: right words", by_family[OWN].right, 0.95, 1.0),
        Requirement(f"{OWN}: coverage of 95 % intervals", _coverage(of(OWN)), 0.93, 0.98),
        Requirement(f"{RATIOS} as planted, smallest share", min(t.as_expected for t in of(RATIOS)), 0.95, 1.0),
    ]


def validate(
    replications: int, progress: Callable[[str], None] = lambda _: None, *, workers: int | None = None
) -> Validation:
    """Run every case and draw the requirements (see `run_cases` for the arguments)."""
    tallies = run_cases(all_cases(), replications, progress, workers=workers)
    return Validation(replications, tallies, families(tallies), requirements(tallies))
