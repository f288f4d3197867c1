"""The planted truths and null injections on which the judge is validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from theory.laws import Surface
from theory.planted.denoising import denoising_table
from theory.planted.linear_loss import REGIMES, SIDE, finite_size_slope, linear_loss_tables
from theory.planted.optimisation import quadratic_table
from theory.planted.surfaces import (
    Design,
    broken_gap_table,
    dynamics_table,
    gap_table,
    gradient_table,
    information_table,
    noise_gap_table,
    risk_table,
)
from theory.tables import InputError
from theory.verdicts import CONSISTENT, LOOSE, REFUTED

Draw = Callable[[np.random.Generator], pd.DataFrame]

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
JUMP_SIDE = 96
JUMP_DESIGN = Design(ranks=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96), samples=tuple(2000 * 2**k for k in range(8)))


@dataclass(frozen=True)
class Case:
    """One planted truth.

    Attributes:
        name, group: labels; the group says which requirement the case serves. claim: which claim judges it.
        draw: makes a table. truth: planted exponents by quantity.
        expected: the verdicts that count as right; None where the case must only not be CONSISTENT.
        regime: the regime of the gap that has to be named, if any.
    """

    name: str
    group: str
    claim: str
    draw: Draw
    truth: Mapping[str, float] = field(default_factory=dict)
    expected: tuple[str, ...] | None = None
    regime: str | None = None


def planted_surface(alpha: float, beta: float, gamma: float, first: float) -> Surface:
    """The surface with E = 0, A = 1 whose optimum at the smallest N of RANK_DESIGN is `first`."""
    scale = alpha * first ** -(alpha + beta) * RANK_DESIGN.samples[0] ** gamma / beta
    return Surface(0.0, 1.0, alpha, scale, beta, gamma)


def all_cases() -> list[Case]:
    """Every case, in the order of the printed tables."""
    return [*_gap_cases(), *_gradient_cases(), *_rank_cases(), *_linear_cases(), *_null_cases(), *_ratio_cases()]


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


def _gap_cases() -> list[Case]:
    def case(b: float, c: float, group: str, expected: tuple[str, ...] | None = None, design: Design = DESIGN) -> Case:
        suffix = "" if design.slope_sd == DESIGN.slope_sd else f", seed slopes sd {design.slope_sd:g}"
        draw = partial(gap_table, b, c, design)
        return Case(
            f"gap r^{b:g} N^-{c:g}{suffix}", group, "generalization", draw, {"rank": b, "samples": -c}, expected
        )

    return [
        case(1, 1, "surface", (LOOSE,)),
        case(0.5, 0.5, "surface", (LOOSE,)),
        case(1, 0.5, "surface", (CONSISTENT,)),
        case(0.75, 0.75, "surface", (LOOSE,)),
        case(1.4, 0.5, "surface", (REFUTED,)),
        case(1, 0.25, "surface", (REFUTED,)),
        case(1, 0.5, "surface", (CONSISTENT,), replace(DESIGN, slope_sd=0.05)),
        case(1.1, 0.5, "margin"),
        case(1, 0.4, "margin"),
        case(1.15, 0.5, "power at .15"),
        case(1, 0.35, "power at .15"),
        case(1.25, 0.5, "power at .25", (REFUTED,)),
    ]


def _gradient_cases() -> list[Case]:
    def case(exponent: float, group: str, expected: tuple[str, ...] | None = None) -> Case:
        draw = partial(gradient_table, exponent, DESIGN)
        return Case(f"gradient T^{exponent:g}", group, "convergence", draw, {"steps": exponent}, expected)

    return [
        case(-0.5, "surface", (CONSISTENT,)),
        case(-1.0, "surface", (LOOSE,)),
        case(-0.25, "surface", (REFUTED,)),
        case(-0.4, "margin"),
        case(-0.35, "power at .15"),
    ]


def _rank_cases() -> list[Case]:
    def case(exponents: tuple[float, float, float], first: float, group: str, expected: tuple[str, ...] | None) -> Case:
        surface = planted_surface(*exponents, first)
        return Case(
            f"r* ~ N^{surface.rank_exponent:.3f} (alpha, beta, gamma = {', '.join(f'{e:g}' for e in exponents)})",
            group,
            "optimal_rank",
            partial(risk_table, surface, RANK_DESIGN, dimension=RANK_DIMENSION),
            {"samples": surface.rank_exponent},
            expected,
        )

    return [
        case((1, 1, 1), 5, "surface", (CONSISTENT,)),
        case((2, 1, 1), 6, "surface", (LOOSE,)),
        case((1, 1, 0.5), 7, "surface", (LOOSE,)),
        case((1, 1, 1.6), 4.5, "surface", (REFUTED,)),
        case((1, 1, 1.2), 4.5, "margin", None),
    ]


def _linear_table(regime: str, rng: np.random.Generator) -> pd.DataFrame:
    return linear_loss_tables(LINEAR_DESIGN, rng)[regime]


def _linear_cases() -> list[Case]:
    expected = {"slow": LOOSE, "abstract": CONSISTENT, "fast": LOOSE}
    decay = {"slow": -0.5, "abstract": -0.5, "fast": -1.0}
    return [
        Case(
            f"E4 {regime}, side {SIDE}",
            "E4",
            "generalization",
            partial(_linear_table, regime),
            {"rank": finite_size_slope(regime, LINEAR_DESIGN.ranks), "samples": decay[regime]},
            (expected[regime],),
            regime,
        )
        for regime in REGIMES
    ]


def _jump_table(s: float, columns: tuple[str, ...], rng: np.random.Generator) -> pd.DataFrame:
    """E2 in a small matrix, over the N at which r* jumps to full rank; `columns` are left out."""
    return denoising_table(s, JUMP_SIDE, JUMP_DESIGN, rng).drop(columns=list(columns))


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
        ("offset that mimics N^-.5", gap, partial(gap_table, 1, 1, DESIGN, offset=3.0)),
        ("broken power, .25 then .75", gap, partial(broken_gap_table, 1, 0.25, 0.75, DESIGN)),
        ("broken power, .75 then .25", gap, partial(broken_gap_table, 1, 0.75, 0.25, DESIGN)),
        ("two noisy seeds", gap, partial(gap_table, 1, 0.5, replace(DESIGN, seeds=2, noise=0.5))),
        ("one decade of N", gap, partial(gap_table, 1, 0.5, replace(DESIGN, samples=(64, 128, 256, 640)))),
        ("exponents differ between seeds", gap, partial(gap_table, 1, 0.5, replace(DESIGN, slope_sd=0.3))),
        ("average along one run", gradient, partial(_run_average, run)),
        ("the same with its step size", gradient, partial(_run_average, (*run, "step_size"))),
        ("plateau below 1/T", gradient, partial(gradient_table, -1, DESIGN, plateau=8.0)),
        ("r* jumps to full rank, size told", rank, partial(_jump_table, 0.75, ("gap",))),
        ("r* jumps to full rank, size not told", rank, partial(_jump_table, 0.75, ("gap", "d_in", "d_out"))),
        ("the same for a spectrum with rho = 1/2", rank, partial(_jump_table, 1.0, ("gap", "d_in", "d_out"))),
        ("risk monotone in rank", rank, partial(risk_table, monotone, DESIGN)),
        ("I/I* = .925", "information", partial(information_table, 0.925, DESIGN)),
        ("D/D_0 = 1.75", "dynamics", partial(dynamics_table, 1.75, replace(DESIGN, noise=0.1))),
    ]
    return [Case(f"null: {name}", "null", claim, draw) for name, claim, draw in draws]


def _ratio_cases() -> list[Case]:
    quiet = replace(DESIGN, noise=0.1)
    draws: list[tuple[str, str, Draw, str]] = [
        ("I/I* = .98, rising", "information", partial(information_table, 0.98, DESIGN), CONSISTENT),
        ("I/I* = .85, rising", "information", partial(information_table, 0.85, DESIGN), REFUTED),
        ("I/I* = .98, falling", "information", partial(information_table, 0.98, DESIGN, rising=False), REFUTED),
        ("D/D_0 = 1", "dynamics", partial(dynamics_table, 1.0, quiet), CONSISTENT),
        ("D/D_0 = 3", "dynamics", partial(dynamics_table, 3.0, quiet), REFUTED),
    ]
    return [Case(name, "ratio", claim, draw, {}, (expected,)) for name, claim, draw, expected in draws]
