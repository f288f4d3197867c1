"""Before the runs: does a design pass the gates, and what will it be able to decide?

The gates are those of the judge; the power is found by simulating the design on planted laws and judging the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from theory import gates
from theory.laws import Surface
from theory.optimum import HALF_WINDOW, LARGEST_SHARE, SMALLEST_RANK
from theory.planted.cases import Case
from theory.planted.surfaces import Design, gap_table, gradient_table, risk_table
from theory.tables import InputError
from theory.validate import run_case

REPLICATIONS = 50


@dataclass(frozen=True)
class Plan:
    """The outcome: failed gates by claim and coordinate, and verdict shares on planted truths."""

    gates: dict[str, list[str]]
    power: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": 1, "gates": self.gates, "power": self.power}


def plan(design: Design, *, claims: Sequence[str], dimension: float = np.inf, replications: int = REPLICATIONS) -> Plan:
    """Check the gates of a design and simulate its power.

    Args:
        claims: of generalization, optimal_rank (ranks and samples) and convergence (steps).
        dimension: smaller side of the weight matrix, which limits r* to d/8.
    """
    failed: dict[str, list[str]] = {}
    power: list[dict[str, Any]] = []
    for claim in claims:
        failed[claim] = [g.reason for g in _gates(claim, design, dimension) if not g.passed]
        for stream, case in enumerate(_cases(claim, design, dimension)):
            tally = run_case(case, replications, 1000 + stream)
            power.append({"claim": claim, "planted": case.name, "verdicts": dict(tally.verdicts)})
    return Plan(failed, power)


def _gates(claim: str, design: Design, dimension: float) -> list[gates.Gate]:
    cell_error = np.array([max(design.noise, 1e-12) / np.sqrt(design.seeds)])
    common = [gates.seeds_gate(design.seeds), gates.signal_gate("measurement", np.ones(1), cell_error)]
    if claim == "convergence":
        return [gates.range_gate("steps", np.array(design.steps, dtype=float), gates.MIN_DECADES_SIZE), *common]
    ranks, samples = np.array(design.ranks, dtype=float), np.array(design.samples, dtype=float)
    checks = [
        gates.range_gate("samples", samples, gates.MIN_DECADES_SIZE),
        gates.levels_gate("rank", ranks, gates.MIN_RANKS),
        *common,
    ]
    if claim == "generalization":
        return [*checks, gates.range_gate("rank", ranks, gates.MIN_DECADES_RANK)]
    if len(ranks) >= 3:
        low = max(SMALLEST_RANK, np.sort(ranks)[1])
        high = min(np.sort(ranks)[-2], dimension / LARGEST_SHARE)
        span = np.log10(max(high / low, 1.0))
        needed = 0.5 * gates.MIN_DECADES_SIZE
        checks.append(
            gates.Gate(
                "window",
                bool(span >= needed - gates.TOLERANCE),
                f"r* counts between {low:g} and {high:g} ({span:.2f} decades), and growth as sqrt N over "
                f"{gates.MIN_DECADES_SIZE:g} decades of N needs {needed:g}: add ranks up to "
                f"{low * 10**needed * 1.5:.0f} or more"
                f"{' and a larger matrix' if high < np.sort(ranks)[-2] else ''}",
            )
        )
    if len(ranks) < 2 * HALF_WINDOW + 1:
        checks.append(gates.Gate("window", False, f"{len(ranks)} ranks: the local cubic uses {2 * HALF_WINDOW + 1}"))
    return checks


def _cases(claim: str, design: Design, dimension: float) -> list[Case]:
    if claim == "convergence":
        return [Case(f"T^{e:g}", "plan", claim, partial(gradient_table, e, design)) for e in (-0.5, -0.35, -0.25, -1.0)]
    if claim == "generalization":
        return [
            Case(f"gap r^{b:g} N^-{c:g}", "plan", claim, partial(gap_table, b, c, design))
            for b, c in ((1, 0.5), (1, 0.35), (1, 0.25), (1.25, 0.5), (1, 1))
        ]
    low, high = max(SMALLEST_RANK, min(design.ranks)), min(max(design.ranks), dimension / LARGEST_SHARE)
    middle, centre = float(np.sqrt(low * max(high, low))), float(np.exp(np.mean(np.log(design.samples))))
    result = []
    for alpha, beta, gamma in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.5)):
        scale = alpha * middle ** -(alpha + beta) * centre**gamma / beta
        surface = Surface(0.0, 1.0, alpha, scale, beta, gamma)
        result.append(
            Case(
                f"r* ~ N^{surface.rank_exponent:.2f} through {middle:.3g} at N = {centre:.3g}",
                "plan",
                claim,
                partial(risk_table, surface, design, dimension=dimension if np.isfinite(dimension) else 1e9),
            )
        )
    return result


def design_of(ranks: Sequence[int], samples: Sequence[int], steps: Sequence[int], seeds: int, noise: float) -> Design:
    """A design with sorted grids; a grid that is not given keeps its default and is not used.

    Raises:
        InputError: a value is out of range.
    """
    for name, values in (("--rank", ranks), ("--samples", samples), ("--steps", steps)):
        if len(set(values)) != len(values) or any(v <= 0 for v in values):
            raise InputError(f"{name}: values must be positive and different")
    if not 0 <= noise < 5:
        raise InputError(f"--noise {noise:g}: the relative noise of one run, between 0 and 5")
    given = {name: tuple(sorted(v)) for name, v in (("ranks", ranks), ("samples", samples), ("steps", steps)) if v}
    return Design(seeds=seeds, noise=noise, **given)  # type: ignore[arg-type]
