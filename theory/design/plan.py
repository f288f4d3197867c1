"""Before the runs: does a design pass the gates, what will it be able to decide, and what does it cost?

The gates are those of the judge. Where they pass, the design is simulated on planted laws, straight, bent and with
plateaus, and the tables are judged; where they fail nothing is simulated, since every verdict would be UNTESTABLE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from theory.claims import compression, convergence, efficiency, generalization, optimal_rank
from theory.design.cost import Price
from theory.errors import OptionError
from theory.judge import gates
from theory.judge.methods import MIN_RATES
from theory.judge.optimum import LARGEST_SHARE, SMALLEST_RANK
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, MARGIN, REFUTED
from theory.planted.cases import Case, planted_surface
from theory.planted.rates import Law, Slopes, broken, power, slopes, with_offset
from theory.planted.surfaces import Design, gradient_table, law_table, risk_table
from theory.planted.validate import Draws, judged, tally
from theory.planted.worth import BYTES_EACH, Curve, WorthDesign, budget_table, front_table
from theory.settings import PLAN_REPLICATIONS
from theory.tables import InputError

COORDINATES = {
    "generalization": ("rank", "samples"), "optimal_rank": ("rank", "samples"), "convergence": ("steps",),
    "efficiency": ("tokens",), "compression": ("weight_bytes",),
}  # fmt: skip
#: Claims that compare methods, and how many methods a table needs at least.
METHODS = {"efficiency": 2, "compression": 1 + len(compression.RIVALS)}


@dataclass(frozen=True, repr=False)
class Plan:
    """The outcome.

    Attributes:
        gates: by claim, why it would be UNTESTABLE (empty if it would not). weak: by claim, why only the second tier
            of the rules would apply. needed: by claim, the missing runs as data.
        power: verdict shares on planted truths, each with the words that would be right; none where gates fail.
        runs: by claim, how many runs the design has. seconds: by claim, what they cost, where a cost was given.
    """

    gates: dict[str, list[str]]
    weak: dict[str, list[str]]
    needed: dict[str, list[dict[str, float]]]
    power: list[dict[str, Any]]
    runs: dict[str, int]
    seconds: dict[str, float]

    def __repr__(self) -> str:
        said = (f"{claim} {'fails its gates' if failed else 'can be judged'}" for claim, failed in self.gates.items())
        return f"Plan({'; '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 2,
            "gates": self.gates,
            "second_tier": self.weak,
            "needed": self.needed,
            "power": self.power,
            "runs": self.runs,
            "seconds": self.seconds,
        }


def plan(
    design: Design,
    *,
    claims: Sequence[str],
    dimension: float = np.inf,
    replications: int = PLAN_REPLICATIONS,
    cost: str | None = None,
    worth: WorthDesign | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    workers: int | None = 1,
) -> Plan:
    """Check the gates of a design and simulate what it would decide.

    Args:
        claims: of generalization, optimal_rank (ranks and samples), convergence (steps), efficiency (budgets of tokens)
            and compression (sizes).
        dimension: smaller side of the weight matrix, which limits r* to d/4.
        replications: simulated studies per planted law.
        cost: seconds per run, a number or an expression in the claim's coordinates.
        worth: budgets, sizes and noise of the claims that compare methods.
        progress: called at the start and after each planted law with (laws judged, laws, the law's name).
        workers: processes that judge the planted laws, None for one per core; the outcome does not depend on their
            number. More than one needs a main module that can be imported again (`if __name__ == "__main__":`).

    Raises:
        InputError: the cost cannot be read.
    """
    outcome = Plan({}, {}, {}, [], {}, {})
    worth = worth or WorthDesign()
    for claim in claims:
        found = worth_gates(claim, worth) if claim in METHODS else design_gates(claim, design, dimension)
        outcome.gates[claim] = [g.reason for g in found if g.tier == gates.FAILED]
        outcome.weak[claim] = [g.reason for g in found if g.tier == gates.SECOND]
        outcome.needed[claim] = [dict(run) for g in found for run in g.needed]
        outcome.runs[claim], seconds = _price(claim, design, worth, cost)
        if seconds is not None:
            outcome.seconds[claim] = seconds
    simulated = [
        (claim, k)
        for claim in claims
        if not outcome.gates[claim]
        for k in range(len(_cases(claim, design, dimension, worth)))
    ]
    finds = [partial(_case, *which, design, dimension, worth) for which in simulated]
    jobs = [Draws(find, replications, 1000 + k) for k, find in enumerate(finds)]
    power: dict[int, dict[str, Any]] = {}
    if jobs:
        progress(0, len(jobs), finds[0]().name)
    for k, outcomes in judged(jobs, workers):
        case = finds[k]()
        right = sorted(case.expected or ())
        if case.slopes:
            (name, planted), *_ = case.slopes.items()
            right = sorted(planted.allowed(_claimed(case.claim, name), MARGIN))
        verdicts = dict(tally(case, outcomes).verdicts)
        power[k] = {"claim": case.claim, "planted": case.name, "right": right, "verdicts": verdicts}
        progress(len(power), len(jobs), case.name)
    outcome.power.extend(power[k] for k in range(len(jobs)))
    return outcome


def claims_of(
    rank: Sequence[int] = (),
    samples: Sequence[int] = (),
    steps: Sequence[int] = (),
    tokens: Sequence[int] = (),
    weight_bytes: Sequence[int] = (),
) -> list[str]:
    """The claims that a grid can speak about."""
    claims = ["generalization", "optimal_rank"] * bool(rank and samples) + ["convergence"] * bool(steps)
    return claims + ["efficiency"] * bool(tokens) + ["compression"] * bool(weight_bytes)


def _claimed(claim: str, coordinate: str) -> float:
    if claim == "generalization":
        return generalization.CLAIMED[coordinate]
    return convergence.CLAIMED if claim == "convergence" else optimal_rank.CLAIMED


def design_gates(claim: str, design: Design, dimension: float = np.inf) -> list[gates.Gate]:
    """The judge's gates on a design: grid, seeds, and the signal that its noise leaves."""
    error = np.array([max(design.noise, 1e-12) / np.sqrt(design.seeds)])
    common = [
        gates.seeds_gate(np.array([float(design.seeds)])),
        gates.signal_gate("the measurement", [{}], np.ones(1), error),
    ]
    if claim == "convergence":
        return [*gates.size_gates("steps", np.array(design.steps, dtype=float)), *common]
    ranks, samples = np.array(design.ranks, dtype=float), np.array(design.samples, dtype=float)
    if claim == "generalization":
        return [*gates.rank_gates(ranks), *gates.size_gates("samples", samples), *common]
    levels = gates.levels_gate("rank", ranks, gates.MIN_RANKS)
    window = [] if levels.tier == gates.FAILED else [optimal_rank.window_gate(ranks, samples, dimension)]
    return [levels, *window, *common]


def worth_gates(claim: str, worth: WorthDesign) -> list[gates.Gate]:
    """The judge's gates on a design of methods, seeds and learning rates."""
    rates = gates.Gate("rates")
    if len(worth.rates) < MIN_RATES:
        said = f"{len(worth.rates)} learning rates per method and {MIN_RATES} are needed"
        rates = gates.Gate("rates", gates.FAILED, said)
    if claim == "efficiency":
        return [*efficiency.budget_gates(np.array(worth.tokens, dtype=np.float64), worth.seeds), rates]
    sizes = BYTES_EACH * np.array(worth.sizes, dtype=np.float64)
    return [compression.size_gate(sizes), gates.seeds_gate(np.array([float(worth.seeds)])), rates]


def _worth_cases(claim: str, worth: WorthDesign) -> list[Case]:
    """What a design of methods has to decide: clones that are plainly worth it, hardly, and not."""
    if claim == "efficiency":
        # Curves start at the smallest budget of the design, whatever its scale.
        unit, decay = min(worth.tokens) / 1e5, 0.3
        curves: list[tuple[str, Curve, tuple[str, ...]]] = [
            (f"F = {f:g}", Curve(speed=f / unit, decay=decay), words)
            for f, words in (
                (4.0, (CONSISTENT, HOLDS)), (2.5, (CONSISTENT, HOLDS)), (1.5, (HOLDS,)), (1.0, (INCONCLUSIVE,)),
                (0.67, (REFUTED,)),
            )
        ]  # fmt: skip
        direct = Curve(speed=1 / unit, decay=decay)
        return [
            Case(name, "plan", claim, partial(budget_table, curve, worth, direct=direct), expected=words)
            for name, curve, words in curves
        ]
    return [
        Case(
            f"{abs(lead):g} nats {'ahead of' if lead > 0 else 'behind'} the best rival", "plan", claim,
            partial(front_table, lead, worth), expected=words,
        )
        for lead, words in (
            (0.1, (CONSISTENT,)), (0.03, (CONSISTENT,)), (0.0, (CONSISTENT, INCONCLUSIVE)), (-0.05, (REFUTED,)),
            (-0.1, (REFUTED,)),
        )
    ]  # fmt: skip


def _price(claim: str, design: Design, worth: WorthDesign, cost: str | None) -> tuple[int, float | None]:
    """Number of runs, and their seconds. Claims that compare methods add the scans of learning rates, with one seed."""
    grids = {
        "rank": design.ranks, "samples": design.samples, "steps": design.steps, "tokens": worth.tokens,
        "weight_bytes": tuple(round(BYTES_EACH * size) for size in worth.sizes),
    }  # fmt: skip
    repeats = METHODS[claim] * (worth.seeds + len(worth.rates) - 1) if claim in METHODS else design.seeds
    names = COORDINATES[claim]
    mesh = np.meshgrid(*(np.array(grids[n], dtype=np.float64) for n in names), indexing="ij")
    points = {n: m.ravel() for n, m in zip(names, mesh, strict=True)}
    runs = repeats * len(next(iter(points.values())))
    if cost is None:
        return runs, None
    return runs, float(np.sum(Price.of(pd.DataFrame(), names, cost).each(pd.DataFrame(points))) * repeats)


def _case(claim: str, k: int, design: Design, dimension: float, worth: WorthDesign) -> Case:
    return _cases(claim, design, dimension, worth)[k]


def _cases(claim: str, design: Design, dimension: float, worth: WorthDesign) -> list[Case]:
    """The planted laws on which a claim's design is tried."""
    if claim in METHODS:
        return _worth_cases(claim, worth)
    if claim == "optimal_rank":
        return _optimum_cases(design, dimension)
    in_steps = claim == "convergence"
    grid = replace(design, samples=design.steps) if in_steps else design
    b = 0.0 if in_steps else 1.0
    laws: dict[str, Law] = {
        **{f"-{c:g}": power(c, b) for c in (0.5, 0.25, 1.0)},
        "-1, then -0.75": broken(1.0, 0.75, grid),
        "-0.75, then -0.25": broken(0.75, 0.25, grid),
        "-1 with a plateau of a third of its end": with_offset(power(1.0, b), 0.3, grid, per_rank=not in_steps),
        "-1 with a plateau of three times its end": with_offset(power(1.0, b), 3.0, grid, per_rank=not in_steps),
    }
    name, letter = ("steps", "T") if in_steps else ("samples", "N")
    cases = []
    for words, law in laws.items():
        draw = partial(_gradients, law, grid) if in_steps else partial(law_table, law, grid)
        cases.append(Case(f"exponent in {letter} {words}", "plan", claim, draw, {name: slopes(law, grid, "samples")}))
    if not in_steps:
        for exponent in (1.25, 0.5):
            law = power(0.5, exponent)
            cases.append(
                Case(
                    f"exponent in r {exponent:g}",
                    "plan",
                    claim,
                    partial(law_table, law, grid),
                    {"rank": slopes(law, grid, "rank")},
                )
            )
    return cases


def _gradients(law: Law, grid: Design, rng: np.random.Generator) -> Any:
    """A law of N read as one of T, with the design's noise."""
    plain = gradient_table(0.0, grid, rng)
    return plain.assign(grad_norm_sq=plain["grad_norm_sq"] * law(1.0, plain["steps"].to_numpy()))


def _optimum_cases(design: Design, dimension: float) -> list[Case]:
    low, high = max(SMALLEST_RANK, min(design.ranks)), min(max(design.ranks), dimension / LARGEST_SHARE)
    middle, centre = float(np.sqrt(low * max(high, low))), float(np.exp(np.mean(np.log(design.samples))))
    cases = []
    for alpha, beta, gamma in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.5)):
        surface = planted_surface(alpha, beta, gamma, middle, centre)
        cases.append(
            Case(
                f"r* ~ N^{surface.rank_exponent:.2f} through {middle:.3g} at N = {centre:.3g}",
                "plan",
                "optimal_rank",
                partial(risk_table, surface, design, dimension=dimension if np.isfinite(dimension) else 1e9),
                {"samples": Slopes.constant(surface.rank_exponent)},
            )
        )
    return cases


def design_of(ranks: Sequence[int], samples: Sequence[int], steps: Sequence[int], seeds: int, noise: float) -> Design:
    """A design with sorted grids; a grid that is not given keeps its default and is not used.

    Raises:
        InputError: a value is out of range.
    """
    for name, values in (("--rank", ranks), ("--samples", samples), ("--steps", steps)):
        if len(set(values)) != len(values) or any(v <= 0 for v in values):
            raise InputError(f"{name}: values must be positive and different")
    if not 0 <= noise < 5:
        raise OptionError("noise", f"{noise:g}: the relative noise of one run, between 0 and 5")
    given = {name: tuple(sorted(v)) for name, v in (("ranks", ranks), ("samples", samples), ("steps", steps)) if v}
    return Design(seeds=seeds, noise=noise, **given)  # type: ignore[arg-type]


def worth_of(tokens: Sequence[int], weight_bytes: Sequence[int], seeds: int, noise: float, rates: int) -> WorthDesign:
    """A design that compares methods; a grid that is not given keeps its default and is not used.

    Args:
        tokens: budgets. weight_bytes: sizes of the clone. noise: standard deviation of one run's loss, nats per token.
        rates: learning rates that each method is given.

    Raises:
        InputError: a value is out of range.
    """
    for name, values in (("--tokens", tokens), ("--bytes", weight_bytes)):
        if len(set(values)) != len(values) or any(v <= 0 for v in values):
            raise InputError(f"{name}: values must be positive and different")
    if not 0 <= noise < 1:
        raise OptionError("loss_noise", f"{noise:g}: nats per token of one run, between 0 and 1")
    if rates < 1:
        raise OptionError("rates", f"{rates}: must be at least 1")
    given: dict[str, Any] = {"tokens": tuple(sorted(tokens))} if tokens else {}
    given |= {"sizes": tuple(sorted(round(v / BYTES_EACH) for v in weight_bytes))} if weight_bytes else {}
    return WorthDesign(seeds=seeds, noise=noise, rates=tuple(0.001 * 2**k for k in range(rates)), **given)
