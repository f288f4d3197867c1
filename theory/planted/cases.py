"""The zoo: planted truths on which the judge is validated, each with the words that are right about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from theory.judge.user_claim import LawClaim
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.laws.surface import Surface
from theory.planted.denoising import curve_optimum, curve_table, denoising_table, population_optimum
from theory.planted.linear_loss import REGIMES, SIDE, finite_size_slope, linear_loss_tables
from theory.planted.optimisation import quadratic_table
from theory.planted.own_laws import PLANTED, Planted, claim_of, scaling_table
from theory.planted.rates import (
    Law,
    Slopes,
    broken,
    broken_rank,
    counted,
    logarithmic,
    power,
    saturating,
    slopes,
    two_terms,
    with_offset,
)
from theory.planted.surfaces import (
    Design,
    dynamics_table,
    gap_table,
    gradient_table,
    information_table,
    law_table,
    noise_gap_table,
    risk_table,
)
from theory.planted.worth import Curve, WorthDesign, budget_table, front_table, true_factor
from theory.tables import InputError

Draw = Callable[[np.random.Generator], pd.DataFrame]

#: Families: what the shares of `theory validate` are about.
PURE = "pure powers"
MARGINS = "exponents at the margin"
BEYOND = "just beyond the margin"
BENT = "bent, both ways"
PLATEAUS = "plateaus of both signs"
HIDDEN = "plateau inside the margin"
CONCAVE = "concave in the rank"
RANK_LAWS = "powers and bends in the rank"
WEAK = "weak designs"
SEED_SLOPES = "exponents that differ between seeds"
FINITE = "optima in finite matrices"
SURFACES = "optima of surfaces"
LINEAR = "E4 regimes"
NULLS = "nulls"
RATIOS = "information and dynamics"
OWN = "claims of one's own"
EFFICIENCY = "budgets of two methods"
EFFICIENCY_MARGINS = "budgets at the margins"
COMPRESSION = "rivals at equal cost"
COMPRESSION_MARGINS = "rivals at the margin"

DESIGN = Design()
#: Ranks and samples for r*: two decades of N with r* between 4 and d/8.
RANK_DESIGN = Design(
    ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    samples=tuple(1000 * 2**k for k in range(8)),
    noise=0.05,
)
RANK_DIMENSION = 4096
#: E4: small ranks of a large matrix, so that finite-size exponents are near their limits.
LINEAR_DESIGN = replace(DESIGN, ranks=(1, 2, 4, 8, 16, 32))

#: Changes of the design, by the words that name them.
VARIANTS: dict[str, Design] = {
    "": DESIGN,
    "3 seeds": replace(DESIGN, seeds=3),
    "8 seeds": replace(DESIGN, seeds=8),
    "noise .6": replace(DESIGN, noise=0.6),
    "seed slopes .05": replace(DESIGN, slope_sd=0.05),
    "seed slopes .3": replace(DESIGN, slope_sd=0.3),
    "1.8 decades": replace(DESIGN, samples=tuple(round(64 * 10 ** (0.45 * k)) for k in range(5))),
    "2 decades": replace(DESIGN, samples=tuple(round(100 * 10 ** (0.5 * k)) for k in range(5))),
}

#: Grids of ranks and samples for E2. The first three are those of the kept studies spectrum_0.75, _1 and _1.5; on the
#: fourth r* jumps to full rank; the judge's limits were chosen without the last two.
E2_DESIGNS: dict[str, Design] = {
    "kept .75": Design(
        ranks=(2, 3, 4, 6, 8, 11, 15, 20, 28, 40, 64), samples=tuple(8192 * 2**k for k in range(8)), noise=0.05
    ),
    "kept 1": Design(
        ranks=(2, 3, 4, 6, 8, 10, 13, 16, 22, 30, 48), samples=tuple(8192 * 2**k for k in range(8)), noise=0.05
    ),
    "kept 1.5": Design(
        ranks=(2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 26), samples=tuple(4096 * 2**k for k in range(8)), noise=0.05
    ),
    "jump": Design(ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96), samples=tuple(2000 * 2**k for k in range(8))),
    "fresh 1": Design(
        ranks=(2, 3, 4, 5, 7, 9, 12, 16, 21, 28, 38, 50, 80), samples=tuple(3000 * 2**k for k in range(8)), seeds=6
    ),
    "fresh 2": Design(
        ranks=(2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100), samples=tuple(int(6000 * 1.8**k) for k in range(9))
    ),
}


@dataclass(frozen=True)
class Case:
    """One planted truth.

    Attributes:
        name: unique; it keys the random numbers. family: which share it enters. claim: which claim judges it.
        draw: makes a table.
        slopes: exact slopes of the planted mean by coordinate, for the coordinates whose words count in the family.
        exponents: planted exponents by coordinate where the mean is a pure power; intervals must cover them.
        expected: the claim's verdicts that count as right; None where it must only not be CONSISTENT. The family counts
            them where no slopes are given.
        misleading: verdicts that would mislead, where they are not those that follow from `expected`.
        factor_at: the exact F of claim 6 at target losses: the intervals of F in tokens must cover it.
        regime: the regime of the gap that has to be named, if any.
        own: the claim of one's own that is judged; None for a claim of the ledger.
        log_rank_of: ln of the exact population r* at given N, for optima: the interval of the exponent in the window
            must cover its slope over the N that the judge used.
    """

    name: str
    family: str
    claim: str
    draw: Draw
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    exponents: Mapping[str, float] = field(default_factory=dict)
    expected: tuple[str, ...] | None = None
    misleading: tuple[str, ...] = ()
    factor_at: Callable[[np.ndarray], np.ndarray] | None = None
    regime: str | None = None
    log_rank_of: Callable[[np.ndarray], np.ndarray] | None = None
    own: LawClaim | None = None

    def allowed(self, coordinate: str | None, claimed: float, margin: float) -> frozenset[str]:
        """The words that are right about a coordinate (None: about the claim)."""
        if coordinate is not None:
            return self.slopes[coordinate].allowed(claimed, margin)
        return frozenset(self.expected or (LOOSE, HOLDS, REFUTED, INCONCLUSIVE, UNTESTABLE))

    def harmful(self, coordinate: str | None, claimed: float, margin: float) -> frozenset[str]:
        """The words that would mislead about a coordinate (None: about the claim)."""
        if coordinate is not None:
            return self.slopes[coordinate].harmful(claimed, margin)
        if self.misleading or self.expected is None:
            return frozenset(self.misleading or {CONSISTENT})
        return frozenset({LOOSE, HOLDS, CONSISTENT} if REFUTED in self.expected else {REFUTED})


@lru_cache(maxsize=1)
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the printed tables."""
    cases = (
        *_power_cases(), *_gap_cases(), *_gradient_cases(), *_surface_cases(), *_finite_cases(), *_linear_cases(),
        *_null_cases(), *_ratio_cases(), *_own_cases(), *_efficiency_cases(), *_compression_cases(),
    )  # fmt: skip
    assert len({case.name for case in cases}) == len(cases)
    return cases


def _own_cases() -> list[Case]:
    return [
        Case(
            f"own: {p.name}, {p.bound}", OWN, "test", partial(scaling_table, p.mean, params=p.params),
            exponents={} if p.truth is None else {_spelled(p): p.truth}, expected=p.right, own=claim_of(p),
        )
        for p in PLANTED
    ]  # fmt: skip


def _spelled(planted: Planted) -> str:
    """What the report calls the claim's quantity."""
    ((text, value),) = planted.claimed.items()
    return f"{text} - {value}" if isinstance(value, str) else text


def planted_case(claim: str, *, wrong: bool) -> Case:
    """The first case that makes a claim plainly true, or plainly false.

    Raises:
        InputError: there is no such claim, or no such case of it.
    """
    expected = (REFUTED,) if wrong else (CONSISTENT,)
    found = {case.claim: case for case in reversed(all_cases()) if case.expected == expected}
    if claim not in found:
        raise InputError(f"{claim}: no planted case of such a claim; choose from {', '.join(sorted(found))}")
    return found[claim]


def planted_surface(
    alpha: float, beta: float, gamma: float, rank: float, samples: float = RANK_DESIGN.samples[0]
) -> Surface:
    """The surface with E = 0, A = 1 whose optimum at N = `samples` is `rank`."""
    scale = alpha * rank ** -(alpha + beta) * samples**gamma / beta
    return Surface(0.0, 1.0, alpha, scale, beta, gamma)


def _named(law: str, variant: str) -> str:
    return f"{law}, {variant}" if variant else law


# Pure powers: (b, c, family, coordinates whose words count, the claim's word where it is plain, variants).
_BOTH = ("rank", "samples")
_POWERS: list[tuple[float, float, str, Sequence[str], str | None, Sequence[str]]] = [
    (1, 1, PURE, _BOTH, LOOSE, [""]),
    (0.5, 0.5, RANK_LAWS, ["rank"], LOOSE, [""]),
    (1, 0.5, PURE, _BOTH, CONSISTENT, [""]),
    (0.75, 0.75, RANK_LAWS, ["rank"], LOOSE, [""]),
    (1.4, 0.5, RANK_LAWS, ["rank"], REFUTED, [""]),
    (1, 0.25, PURE, _BOTH, REFUTED, [""]),
    (1, 0.75, PURE, _BOTH, None, [""]),
    (1, 0.35, PURE, _BOTH, None, [""]),
    (1.15, 0.5, BEYOND, ["rank"], None, [""]),
    (1.25, 0.5, RANK_LAWS, ["rank"], REFUTED, [""]),
    (1.1, 0.5, MARGINS, ["rank"], None, [""]),
    (0.9, 0.5, MARGINS, ["rank"], None, [""]),
    (1, 0.4, MARGINS, ["samples"], None, ["", "3 seeds", "8 seeds", "seed slopes .05", "noise .6"]),
    (1, 0.6, MARGINS, ["samples"], None, ["", "3 seeds", "8 seeds", "noise .6"]),
    (1, 1, SEED_SLOPES, ["samples"], None, ["seed slopes .3"]),
    (1, 0.5, SEED_SLOPES, ["samples"], None, ["seed slopes .05", "seed slopes .3"]),
    (1, 1, WEAK, ["samples"], None, ["3 seeds", "noise .6", "1.8 decades"]),
    (1, 0.5, WEAK, ["samples"], None, ["noise .6", "2 decades"]),
]


def _power_cases() -> list[Case]:
    cases = []
    for b, c, family, about, word, variants in _POWERS:
        exponents = {"rank": float(b), "samples": -float(c)}
        for variant in variants:
            cases.append(
                Case(
                    _named(f"gap r^{b:g} N^-{c:g}", variant),
                    family,
                    "generalization",
                    partial(gap_table, b, c, VARIANTS[variant]),
                    {name: Slopes.constant(exponents[name]) for name in about},
                    exponents,
                    None if word is None else (word,),
                )
            )
    return cases


def _laws(design: Design) -> dict[str, Law]:
    """The laws that are no pure power in both coordinates; their parts are in units of the design's grid."""
    blow_up = counted(64, 4.0)
    bends = [(0.25, 0.75), (0.75, 0.25), (1, 0.5), (0.5, 1), (1.4, 1), (0.9, 0.7), (0.75, 0.4), (1, 0.4), (1, 0.6)]
    bends += [(0.4, 0.75)]
    offsets = [(1, 0.1), (1, 0.3), (1, 1), (1, 3), (1, 10), (1, -0.3), (0.75, 0.3), (0.5, 0.1), (0.5, 0.3), (0.5, 1)]
    offsets += [(0.5, -0.3), (0.35, -0.3), (0.35, -0.6)]
    return {
        **{f"N^-{a:g} then N^-{b:g}": broken(a, b, design) for a, b in bends},
        **{f"N^-{c:g} {k:+g} offset": with_offset(power(c), k, design) for c, k in offsets},
        "N^-1 +1 offset, the same at every r": with_offset(power(1), 1.0, design, per_rank=False),
        "p/N blow-up": blow_up,
        **{f"p/N blow-up {k:+g} offset": with_offset(blow_up, k, design) for k in (0.3, 1, 3)},
        "N^-1 + N^-0.5": two_terms(design),
        "N^-0.5 ln N": logarithmic(0.5),
        "N^-1 ln N": logarithmic(1.0),
        "r(128-r) N^-1": counted(64),
        "r(80-r) N^-1": counted(40),
        "(1-exp(-r/8)) N^-1": saturating(8.0),
        "r^1.5 then r^0.5": broken_rank(1.5, 0.5, design),
        "r^0.5 then r^1.5": broken_rank(0.5, 1.5, design),
    }


# Laws by family, the coordinate whose word counts, and the variant of the design.
_ONE_WAY = ("N^-0.25 then N^-0.75", "N^-0.75 then N^-0.25", "N^-1 then N^-0.5", "N^-0.5 then N^-1")
_OFFSETS = ("+0.1", "+0.3", "+1", "+3", "+10", "-0.3")
_GAP_LAWS: list[tuple[str, str, str, Sequence[str]]] = [
    (PURE, "samples", "", ("r(128-r) N^-1", "(1-exp(-r/8)) N^-1")),
    (MARGINS, "samples", "", ("N^-0.75 then N^-0.4", "N^-1 then N^-0.4", "N^-1 then N^-0.6", "N^-0.4 then N^-0.75")),
    (BENT, "samples", "", (*_ONE_WAY, "N^-1.4 then N^-1", "N^-0.9 then N^-0.7")),
    (BENT, "samples", "", ("p/N blow-up", "N^-1 + N^-0.5", "N^-0.5 ln N", "N^-1 ln N")),
    (BENT, "samples", "8 seeds", ("p/N blow-up",)),
    (BENT, "samples", "2 decades", ("p/N blow-up",)),
    (PLATEAUS, "samples", "", tuple(f"N^-1 {k} offset" for k in _OFFSETS)),
    (PLATEAUS, "samples", "", ("N^-1 +1 offset, the same at every r", "N^-0.5 +0.1 offset", "N^-0.5 +1 offset")),
    (PLATEAUS, "samples", "", ("N^-0.5 -0.3 offset", "N^-0.35 -0.3 offset", "N^-0.35 -0.6 offset")),
    (PLATEAUS, "samples", "", tuple(f"p/N blow-up {k} offset" for k in ("+0.3", "+1", "+3"))),
    # Within 2.5 decades the slopes of these two lie inside the margin: no test of this range can see the plateau.
    (HIDDEN, "samples", "", ("N^-0.5 +0.3 offset", "N^-0.75 +0.3 offset")),
    (CONCAVE, "rank", "", ("r(128-r) N^-1", "r(80-r) N^-1", "(1-exp(-r/8)) N^-1")),
    (RANK_LAWS, "rank", "", ("r^1.5 then r^0.5", "r^0.5 then r^1.5")),
    (WEAK, "samples", "3 seeds", ("N^-1 +1 offset", "p/N blow-up", "N^-0.75 then N^-0.25")),
    (WEAK, "samples", "8 seeds", ("N^-1 +1 offset",)),
    (WEAK, "samples", "noise .6", ("N^-1 +1 offset",)),
    (WEAK, "samples", "2 decades", ("N^-1 +0.3 offset", "N^-1 +1 offset")),
]


def _gap_cases() -> list[Case]:
    cases = []
    for family, about, variant, names in _GAP_LAWS:
        design = VARIANTS[variant]
        laws = _laws(design)
        for name in names:
            cases.append(
                Case(
                    f"gap {_named(name, variant)}{', in r' if about == 'rank' else ''}",
                    family,
                    "generalization",
                    partial(law_table, laws[name], design),
                    {about: slopes(laws[name], design, about)},
                )
            )
    return cases


def _gradient_cases() -> list[Case]:
    cases = []
    over_steps = replace(DESIGN, samples=DESIGN.steps)
    rows: list[tuple[float, float, str, str | None]] = [
        (0.5, 0, PURE, CONSISTENT),
        (1, 0, PURE, LOOSE),
        (0.25, 0, PURE, REFUTED),
        (0.35, 0, BEYOND, None),
        (0.4, 0, MARGINS, None),
        (0.6, 0, MARGINS, None),
        (1, 0.3, PLATEAUS, None),
        (1, 8, PLATEAUS, None),
        (0.5, 1, PLATEAUS, None),
    ]
    for c, plateau, family, word in rows:
        law = with_offset(power(c, 0.0), plateau, over_steps)
        cases.append(
            Case(
                f"gradient T^-{c:g}" + (f" {plateau:+g} offset" if plateau else ""),
                family,
                "convergence",
                partial(gradient_table, -c, DESIGN, plateau=plateau),
                {"steps": slopes(law, over_steps, "samples")},
                {} if plateau else {"steps": -c},
                None if word is None else (word,),
            )
        )
    return cases


def _log_best_ranks(surface: Surface, samples: np.ndarray) -> np.ndarray:
    return np.log([surface.best_rank(n) for n in samples])


def _surface_cases() -> list[Case]:
    rows: list[tuple[tuple[float, float, float], float, str, str | None]] = [
        ((1, 1, 1), 5, SURFACES, CONSISTENT),
        ((2, 1, 1), 6, SURFACES, LOOSE),
        ((1, 1, 0.5), 7, SURFACES, LOOSE),
        ((1, 1, 1.6), 4.5, SURFACES, REFUTED),
        ((1, 1, 1.2), 4.5, MARGINS, None),
    ]
    cases = []
    for exponents, first, family, word in rows:
        surface = planted_surface(*exponents, first)
        cases.append(
            Case(
                f"r* ~ N^{surface.rank_exponent:.3f} (alpha, beta, gamma = {', '.join(f'{e:g}' for e in exponents)})",
                family,
                "optimal_rank",
                partial(risk_table, surface, RANK_DESIGN, dimension=RANK_DIMENSION),
                {"samples": Slopes.constant(surface.rank_exponent)},
                expected=None if word is None else (word,),
                log_rank_of=partial(_log_best_ranks, surface),
            )
        )
    return cases


def _denoising_table(s: float, d: int, grid: str, told: bool, rng: np.random.Generator) -> pd.DataFrame:
    frame = denoising_table(s, d, E2_DESIGNS[grid], rng).drop(columns="gap")
    return frame if told else frame.drop(columns=["d_in", "d_out"])


def _log_population_ranks(s: float, d: int, samples: np.ndarray) -> np.ndarray:
    return np.log(population_optimum(samples, d, s))


def _log_curve_ranks(s: float, d: int, blow_up: float, samples: np.ndarray) -> np.ndarray:
    return np.log(curve_optimum(samples, d, s, blow_up=blow_up))


def _finite_cases() -> list[Case]:
    def case(name: str, s: float, draw: Draw, log_rank_of: Callable[[np.ndarray], np.ndarray]) -> Case:
        # The words are about the asymptotic exponent, which for the spectrum k^-s is 1/(2s).
        truth = {"samples": Slopes.constant(1 / (2 * s))}
        return Case(name, FINITE, "optimal_rank", draw, truth, log_rank_of=log_rank_of)

    drawn: list[tuple[float, int, str, bool]] = [
        (0.75, 160, "kept .75", True),
        (1, 96, "kept 1", True),
        (1.5, 64, "kept 1.5", True),
        (0.75, 96, "jump", True),
        (0.75, 96, "jump", False),
        (1, 96, "jump", True),
        (1, 96, "jump", False),
        *((s, 128, "fresh 1", True) for s in (0.75, 5 / 6, 1, 1.25, 1.5)),
        *((s, 200, "fresh 2", True) for s in (0.75, 5 / 6, 0.9)),
    ]
    curves: list[tuple[float, int, str, float, float]] = [
        (0.75, 160, "kept .75", 0.05, 0),
        (1, 96, "kept 1", 0.05, 0),
        (1.5, 64, "kept 1.5", 0.05, 0),
        (1, 96, "kept 1", 0.2, 0),
        (1, 96, "kept 1", 0.05, 2),
    ]
    cases = [
        case(
            f"r* of E2, s = {s:.3g}, d = {d}, {grid} grid{'' if told else ', size not told'}",
            s,
            partial(_denoising_table, s, d, grid, told),
            partial(_log_population_ranks, s, d),
        )
        for s, d, grid, told in drawn
    ]
    for s, d, grid, noise, blow_up in curves:
        cases.append(
            case(
                f"r* of a curve, s = {s:.3g}, d = {d}, noise {noise:g}{', blow-up' if blow_up else ''}",
                s,
                partial(curve_table, s, d, replace(E2_DESIGNS[grid], noise=noise), blow_up=blow_up),
                partial(_log_curve_ranks, s, d, blow_up),
            )
        )
    return cases


def _linear_table(regime: str, rng: np.random.Generator) -> pd.DataFrame:
    return linear_loss_tables(LINEAR_DESIGN, rng)[regime]


def _linear_cases() -> list[Case]:
    expected = {"slow": LOOSE, "abstract": CONSISTENT, "fast": LOOSE}
    decay = {"slow": -0.5, "abstract": -0.5, "fast": -1.0}
    return [
        Case(
            f"E4 {regime}, side {SIDE}",
            LINEAR,
            "generalization",
            partial(_linear_table, regime),
            # In r this is the chord of a curve that is slightly bent.
            exponents={"rank": finite_size_slope(regime, LINEAR_DESIGN.ranks), "samples": decay[regime]},
            expected=(expected[regime],),
            regime=regime,
        )
        for regime in REGIMES
    ]


def _run_average(columns: tuple[str, ...], rng: np.random.Generator) -> pd.DataFrame:
    """The running average of one run at a constant step, with only these columns."""
    return quadratic_table(DESIGN, rng, step=0.05)[list(columns)]


def _null_cases() -> list[Case]:
    gap, gradient, rank = "generalization", "convergence", "optimal_rank"
    run = ("steps", "seed", "grad_norm_sq")
    monotone = Surface(0.0, 1.0, 1.0, 0.0, 1.0, 1.0)
    draws: list[tuple[str, str, Draw]] = [
        ("|gap| of single runs, no rank in it", gap, partial(noise_gap_table, DESIGN, absolute=True)),
        ("signed gap of mean zero", gap, partial(noise_gap_table, DESIGN, absolute=False)),
        ("two noisy seeds", gap, partial(gap_table, 1, 0.5, replace(DESIGN, seeds=2, noise=0.5))),
        ("one decade of N", gap, partial(gap_table, 1, 0.5, replace(DESIGN, samples=(64, 128, 256, 640)))),
        ("average along one run", gradient, partial(_run_average, run)),
        ("the same with its step size", gradient, partial(_run_average, (*run, "step_size"))),
        ("risk monotone in rank", rank, partial(risk_table, monotone, DESIGN)),
        ("I/I* = .925", "information", partial(information_table, 0.925, DESIGN)),
        ("D/D_0 = 1.75", "dynamics", partial(dynamics_table, 1.75, replace(DESIGN, noise=0.1))),
    ]
    return [Case(f"null: {name}", NULLS, claim, draw) for name, claim, draw in draws]


def _ratio_cases() -> list[Case]:
    quiet = replace(DESIGN, noise=0.1)
    draws: list[tuple[str, str, Draw, str]] = [
        ("I/I* = .98, rising", "information", partial(information_table, 0.98, DESIGN), CONSISTENT),
        ("I/I* = .85, rising", "information", partial(information_table, 0.85, DESIGN), REFUTED),
        ("I/I* = .98, falling", "information", partial(information_table, 0.98, DESIGN, rising=False), REFUTED),
        ("D/D_0 = 1", "dynamics", partial(dynamics_table, 1.0, quiet), CONSISTENT),
        ("D/D_0 = 3", "dynamics", partial(dynamics_table, 3.0, quiet), REFUTED),
    ]
    return [Case(name, RATIOS, claim, draw, expected=(expected,)) for name, claim, draw, expected in draws]


WORTH = WorthDesign()
ONE_RATE = replace(WORTH, rates=(0.002,))
SUPPORT = (CONSISTENT, HOLDS)
EVERY_WORD = (CONSISTENT, HOLDS, REFUTED)


def _efficiency_cases() -> list[Case]:
    four, half = Curve(speed=4.0), Curve(speed=0.5)
    quiet, few, fewer = replace(WORTH, noise=0.005), replace(WORTH, seeds=3), replace(WORTH, seeds=2)
    ahead_then_behind = Curve(scale=1.4, decay=0.25)
    # Name, clone, what else the table has, the words that are right, and those that mislead where they do not follow.
    plain: list[tuple[str, Curve, dict[str, Any], str, tuple[str, ...]]] = [
        ("F = 4", four, {}, CONSISTENT, ()),
        ("F = 1.5", Curve(speed=1.5), {"design": quiet}, HOLDS, (CONSISTENT, REFUTED)),
        ("F = 1/2", half, {}, REFUTED, ()),
        ("F = 4 in tokens and 1/2 in FLOPs", four, {"flops": 8.0}, REFUTED, ()),
        ("fast at first, then a plateau 0.2 nats higher", Curve(floor=2.2, scale=1.2), {}, REFUTED, ()),
        ("ahead at first, behind at the end", ahead_then_behind, {"design": quiet}, REFUTED, ()),
        ("F = 1", Curve(), {}, INCONCLUSIVE, EVERY_WORD),
        ("F = 4, 3 seeds", four, {"design": few}, HOLDS, (CONSISTENT, REFUTED)),
        ("F = 4, 2 seeds", four, {"design": fewer}, UNTESTABLE, EVERY_WORD),
        ("F = 4, 2 budgets", four, {"design": replace(WORTH, tokens=(100_000, 1_000_000))}, UNTESTABLE, EVERY_WORD),
        ("F = 1/4, 2 budgets", Curve(speed=0.25), {"design": replace(WORTH, tokens=(100_000, 1_000_000))}, REFUTED, ()),
        ("F = 1/4, 2 seeds", Curve(speed=0.25), {"design": fewer}, UNTESTABLE, EVERY_WORD),
        ("F = 4, points along one run", four, {"one_run": True}, UNTESTABLE, EVERY_WORD),
        ("F = 4, one learning rate", four, {"design": ONE_RATE}, UNTESTABLE, EVERY_WORD),
        ("F = 4, direct training at an edge of its rates", four, {"best": {"direct": 0.008}}, INCONCLUSIVE, SUPPORT),
        ("F = 1/2, the clone at an edge of its rates", half, {"best": {"clone": 0.001}}, INCONCLUSIVE, EVERY_WORD),
    ]
    margins: list[tuple[str, Curve, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
        ("F = 1, to be refuted or not", Curve(), {"design": replace(WORTH, noise=0.02)}, (INCONCLUSIVE,), EVERY_WORD),
        ("F = 2", Curve(speed=2.0), {}, (*SUPPORT, INCONCLUSIVE), (REFUTED,)),
        ("F just below 2", Curve(speed=1.95), {}, (HOLDS, INCONCLUSIVE), (CONSISTENT, REFUTED)),
        ("F = 2, in FLOPs just below", Curve(speed=2.5), {"flops": 1.3}, (HOLDS, INCONCLUSIVE), (CONSISTENT, REFUTED)),
        ("0.05 nats behind at the largest budget", _behind(0.05), {}, (INCONCLUSIVE, REFUTED), SUPPORT),
    ]
    cases = _worth_cases("budgets", "efficiency", (EFFICIENCY, EFFICIENCY_MARGINS), _budgets, plain, margins)
    clones = [clone for _, clone, *_ in [*plain, *margins]]
    return [replace(c, factor_at=partial(true_factor, clone)) for c, clone in zip(cases, clones, strict=True)]


def _worth_cases(
    prefix: str, claim: str, families: tuple[str, str], draw: Callable[..., pd.DataFrame],
    plain: Sequence[tuple[Any, ...]], margins: Sequence[tuple[Any, ...]],
) -> list[Case]:  # fmt: skip
    """Cases from rows of name, what is planted, options of the draw, the right word or words, and the misleading ones;
    the plain ones in the first family."""
    rows = [*((families[0], n, p, o, (word,), wrong) for n, p, o, word, wrong in plain)]
    rows += [(families[1], *row) for row in margins]
    return [
        Case(
            f"{prefix}: {name}", family, claim, partial(draw, planted, **({"design": WORTH} | options)), expected=words,
            misleading=wrong,
        )
        for family, name, planted, options, words, wrong in rows
    ]  # fmt: skip


def _behind(nats: float) -> Curve:
    """As direct training at the smallest budget, and so much worse at the largest."""
    direct = Curve()
    span = (max(WORTH.tokens) / min(WORTH.tokens)) ** -direct.decay
    return replace(direct, floor=direct.floor + nats / (1 - span), scale=direct.scale - nats / (1 - span))


def _budgets(clone: Curve, rng: np.random.Generator, design: WorthDesign, **options: Any) -> pd.DataFrame:
    return budget_table(clone, design, rng, **options)


def _compression_cases() -> list[Case]:
    few, fewer = replace(WORTH, seeds=3), replace(WORTH, seeds=2)
    weak = {"rivals": ("pca",), "untrained": ("svd",)}
    plain: list[tuple[str, float | tuple[float, ...], dict[str, Any], str, tuple[str, ...]]] = [
        ("0.1 nats ahead", 0.1, {}, CONSISTENT, ()),
        ("0.1 nats behind", -0.1, {}, REFUTED, ()),
        ("0.1 nats behind at one size", (0.1, 0.1, -0.1, 0.1), {}, REFUTED, ()),
        ("0.1 nats ahead, three times as slow", 0.1, {"latency": 3.0}, REFUTED, ()),
        ("ahead of weak rivals alone", 0.1, weak, INCONCLUSIVE, (CONSISTENT, REFUTED)),
        ("0.1 nats ahead, 3 seeds", 0.1, {"design": few}, INCONCLUSIVE, (CONSISTENT, REFUTED)),
        ("0.1 nats ahead, 2 seeds", 0.1, {"design": fewer}, UNTESTABLE, (CONSISTENT, REFUTED)),
        ("0.1 nats behind, 2 seeds", -0.1, {"design": fewer}, UNTESTABLE, (CONSISTENT, REFUTED)),
        ("0.1 nats behind, rates at an edge", -0.1, {"best": 0.008}, INCONCLUSIVE, (CONSISTENT, REFUTED)),
        ("0.1 nats ahead, rates at an edge", 0.1, {"best": 0.008}, INCONCLUSIVE, (CONSISTENT, REFUTED)),
    ]
    noisy = replace(WORTH, noise=0.03)
    margins: list[tuple[str, float | tuple[float, ...], dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
        ("0.02 nats behind one rival", -0.02, {}, (CONSISTENT, INCONCLUSIVE), (REFUTED,)),
        ("0.02 nats behind every rival", -0.02, {"distance": 0.0}, (CONSISTENT, INCONCLUSIVE), (REFUTED,)),
        ("the same, noise .03", -0.02, {"distance": 0.0, "design": noisy}, (CONSISTENT, INCONCLUSIVE), (REFUTED,)),
        ("just beyond .02 behind one rival at one size", (0.1, 0.1, -0.021, 0.1), {}, (REFUTED, INCONCLUSIVE),
         (CONSISTENT,)),
        ("just beyond .02 behind every rival", -0.021, {"distance": 0.0}, (REFUTED, INCONCLUSIVE), (CONSISTENT,)),
    ]  # fmt: skip
    return _worth_cases("front", "compression", (COMPRESSION, COMPRESSION_MARGINS), _front, plain, margins)


def _front(
    lead: float | tuple[float, ...], rng: np.random.Generator, design: WorthDesign, **options: Any
) -> pd.DataFrame:
    return front_table(lead, design, rng, **options)
