"""After some runs: which ones to add next, so that the claim is decided for the least cost.

The table is judged. Where it is undecided, sets of runs are thought of: what the gates ask for, more seeds, the next
level beyond an end, levels between, and for the optimal rank the ranks and N that bring optima into the window. Laws
are drawn from what the table lets one believe (`beliefs`), the table is completed with simulated runs and judged, and
the shares of the words are counted. Most sets are simulated a few times only; the best are simulated more often.

Looking again after adding runs is repeated testing. Nothing here corrects for it (docs/howto/next.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from theory.claims import convergence, dynamics, generalization, information, optimal_rank
from theory.design.beliefs import Law, Laws, Noise, RateLaws, SurfaceLaws
from theory.design.cost import Price
from theory.errors import InputError, OptionError
from theory.judge import check as judging
from theory.judge import gates
from theory.judge.cells import Cells, build_cells
from theory.judge.intervals import spending
from theory.judge.looks import Looks
from theory.judge.optimum import LARGEST_SHARE, MIN_DECADES, MIN_OPTIMA, SMALLEST_RANK, RankCost
from theory.judge.rates import Coordinate, words_of
from theory.judge.verdicts import DECIDED, MARGIN, UNTESTABLE, combine
from theory.planted.surfaces import Design
from theory.settings import NEXT_SIMULATIONS, NOISE
from theory.tables import Table, claim_rows, describe

#: Sets of runs with a smaller chance of a verdict are not advised.
MIN_CHANCE = 0.3
BLOCK = 2  # seeds are added in blocks
#: Where runs are cheap, so many seeds more than where they are dear. With more the judge suspects that runs of the dear
#: end were dropped for their outcome (`judge.scrutiny.survivors`).
MORE_WHERE_CHEAP = 5
MORE_SEEDS = f"seeds, and up to {MORE_WHERE_CHEAP} more where runs are cheap"
MOST_SEEDS_MORE = 6  # than usual, in one block
#: Of the simulations of a finalist: shares after which the field is cut, and to how many sets.
RACE = ((1 / 12, 8), (1 / 6, 5), (1 / 4, 3), (1 / 2, 0))
#: Columns that are top-level keys of `lrc run`.
KEYS = ("rank", "samples", "steps", "clone_weight")
#: At how many levels of the other coordinate new levels are run: all, the ends and the middle, the ends.
FEW = (None, 3, 2)
FEWEST = 4  # simulations of every set
BRACKET = 2.5  # ranks around r*, as a factor on both sides
SAME = np.log(1.2)  # N closer than this factor are not both run
PILOT_RANKS = 5  # of a grid, at its ends and between
LEAST = 1e-9  # a budget that nothing can be bought for


@dataclass(frozen=True, repr=False)
class Proposal:
    """Runs to add.

    Attributes:
        why: in words. runs: one row per run, with the design's columns and `seed`.
        cost: of all of them, in the unit of `Next.unit`; affordable: within the budget.
        verdicts: shares of the words among the simulated tables. simulations: their number.
    """

    why: str
    runs: pd.DataFrame
    cost: float
    affordable: bool = True
    verdicts: Mapping[str, float] = field(default_factory=dict)
    simulations: int = 0

    def __repr__(self) -> str:
        return f"Proposal({self.why}: {len(self.runs)} runs, chance of a verdict {self.chance:.2f})"

    @property
    def chance(self) -> float:
        """Share of the simulated tables that were decided."""
        return float(sum(self.verdicts.get(word, 0.0) for word in DECIDED))

    @property
    def needed(self) -> list[dict[str, Any]]:
        """The runs as data: one entry per design point, `seeds` being how many to add there."""
        columns = [c for c in self.runs if c != "seed"]
        if not columns:
            return [{"seeds": len(self.runs)}]
        counted = self.runs.groupby(columns, dropna=False, sort=True).size().rename("seeds").reset_index()
        return [{str(k): _whole(v) for k, v in point.items()} for point in counted.to_dict("records")]

    @property
    def overrides(self) -> list[str]:
        """Arguments of `lrc run -m`, one line per full grid of runs; they name what is a key there (`KEYS`)."""
        columns = [c for c in KEYS if c in self.runs]
        blocks: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        runs = self.runs[[*columns, "seed"]].drop_duplicates()
        for point, seeds in runs.groupby(columns, dropna=False)["seed"] if columns else [((), runs["seed"])]:
            key = tuple(sorted(seeds.tolist()))
            blocks.setdefault((key,), []).append(point)
        lines = []
        for (seeds,), points in blocks.items():
            for grid in _grids(points):
                named = [f"{c}={_values(v)}" for c, v in zip(columns, grid, strict=True)]
                lines.append(" ".join([*named, f"seed={_values(seeds)}"]))
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "why": self.why, "needed": self.needed, "runs": len(self.runs), "cost": self.cost,
            "affordable": self.affordable, "chance": self.chance, "verdicts": dict(self.verdicts),
            "simulations": self.simulations, "overrides": self.overrides,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Next:
    """The outcome.

    Attributes:
        path: of the table. claim, verdict: what is asked, and the table's word about it now ("" without a table).
        proposals: sets of runs, the best first. unit: of every cost. budget: the most that may be spent, or None.
        notes: what else a reader should know.
    """

    path: str
    claim: str
    verdict: str
    proposals: tuple[Proposal, ...]
    unit: str
    budget: float | None
    notes: tuple[str, ...]

    @property
    def decided(self) -> bool:
        return self.verdict in DECIDED

    @property
    def best(self) -> Proposal | None:
        """The proposal to follow: affordable and with a fair chance; None where there is none."""
        first = self.first_step
        return first if first is not None and first.chance >= MIN_CHANCE else None

    @property
    def first_step(self) -> Proposal | None:
        """`best`, or the affordable runs that come nearest to it: with some chance, or that make the claim testable."""
        first = next((p for p in self.proposals if p.affordable), None)
        gain = self.verdict in ("", UNTESTABLE) and first is not None and first.verdicts.get(UNTESTABLE, 0.0) < 1
        return first if first is not None and (first.chance > 0 or gain) else None

    def __repr__(self) -> str:
        said = "decided" if self.decided else repr(self.best) if self.best else "nothing affordable decides"
        return f"Next({self.claim} {self.verdict or 'not run'}: {said})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": 2, "input": self.path, "claim": self.claim, "verdict": self.verdict or None,
            "decided": self.decided, "unit": self.unit, "budget": self.budget,
            "best": None if self.best is None else self.best.to_dict(),
            "proposals": [p.to_dict() for p in self.proposals], "notes": list(self.notes),
        }  # fmt: skip


def next_runs(
    table: Table | None,
    claim: str,
    *,
    design: Design | None = None,
    dimension: float = np.inf,
    budget: float | None = None,
    cost: str | None = None,
    margin: float = MARGIN,
    simulations: int = NEXT_SIMULATIONS,
    seed: int = 0,
    last: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Next:
    """The runs that most raise the chance of a verdict per cost.

    Args:
        table: the measurements (`Table.known`); None for an empty design.
        claim: generalization, optimal_rank, convergence; dynamics and information, for which only seeds are added.
        design: the grid and the noise of an empty design; with a table only its noise is used, where a table has none.
        dimension: smaller side of the weight matrix, for an empty design.
        budget: the most that the runs may cost, in the unit of the cost.
        cost: of a run: a column of the table, or a formula of its columns or of the design's coordinates; None:
            `seconds`, `training_seconds`, steps x batch size, or equal costs.
        margin: exponents closer than this to the claimed one count as equal.
        simulations: of each set of runs that stays in the race. seed: of the simulations.
        last: no look follows the next one, so that what is saved has no other use: chance counts, not chance per cost.
        progress: told what is simulated.

    Raises:
        InputError: the table or the design says nothing about the claim, or an option cannot be used.
    """
    if claim not in CLAIMS:
        raise OptionError("claim", f"{claim}: no runs can be proposed for it; choose from {', '.join(CLAIMS)}")
    if budget is not None and not budget > 0:
        raise OptionError("budget", f"{budget:g}: must be positive")
    path, verdict, notes, needed, asked = "", "", list[str](), list[Mapping[str, Any]](), table
    if table is not None:
        report = judging.check(table, claims=[claim], margin=margin)
        if claim not in report.claims:
            raise InputError(f"{table.path}: {report.remarks[-1]}")
        found = report.claims[claim]
        path, verdict, needed = table.path, found.verdict, list(found.fields.get("needed", ()))
        notes = [*report.remarks, *found.reasons[:4]]
        if verdict in DECIDED:
            return Next(path, claim, verdict, (), "", budget, tuple(notes))
        from theory.tables import primary_rows

        asked, _ = primary_rows(table)
    noise = NOISE if design is None else design.noise
    if claim in (information.CLAIM.name, dynamics.CLAIM.name):
        study: _Study | _Seeds = _Seeds(_required(asked, claim), claim, margin, noise)
    else:
        study = STUDIES[claim](asked, design, dimension, margin, noise)
    price = Price.of(study.frame, study.design, cost)
    sets = [Proposal(why, runs, float(price.each(runs).sum())) for why, runs in study.sets(needed, price, budget)]
    sets = [replace(p, affordable=budget is None or p.cost <= budget * (1 + 1e-9)) for p in sets]
    with np.errstate(all="ignore"):
        raced = _race(study, sets, simulations, seed, partial(_order, last=last), progress)
    notes += _advice(raced, study.notes, price.unit, budget)
    return Next(path, claim, verdict, tuple(raced), price.unit, budget, tuple(notes))


@dataclass(frozen=True)
class Step:
    """What to do before the next of several looks.

    Attributes:
        found: what was planned. runs: those to add; None: none, the table is looked at as it is.
        share: of the error, for the look; None: no look would tell anything. last: no look follows.
    """

    found: Next
    runs: Proposal | None
    share: float | None
    last: bool


def next_step(
    table: Table, claim: str, looks: Looks, made: int, budget: float,
    possible: Callable[[Proposal], bool] = lambda _: True, **options: Any,
) -> Step:  # fmt: skip
    """Choose runs for the next of several looks, at the level that it may spend.

    Where none have a fair chance of a verdict, the next look is made the last one: it spends the error of all that were
    planned. Where none could decide at that level either, the table as it is gets what is left: its look is made again,
    at the level of `Looks.rest`. As long as runs make an untestable claim testable, looks are not used up like that.

    Args:
        table, claim, options: as of `next_runs`. made: looks so far. possible: can these runs be made at all?
        budget: what is left. One that is spent buys nothing, but what a verdict would take can still be said.
    """
    number, planned = made + 1, looks.planned

    def plan(share: float, last: bool) -> Next:
        with spending(share):
            found = next_runs(table, claim, budget=max(budget, LEAST), last=last, **options)
        while (step := found.first_step) is not None and not possible(step):
            found = replace(found, proposals=tuple(p for p in found.proposals if p is not step))
        return found

    found = plan(looks.share(number), number == planned)
    if found.decided or found.best is not None:
        return Step(found, found.best, looks.share(number), number == planned)
    searching = found.first_step is not None and (not made or found.verdict == UNTESTABLE)
    if number < planned:
        final = plan(looks.rest(number), True)
        step = final.best if searching else final.first_step
        if step is not None and step.chance > 0:
            return Step(final, step, looks.rest(number), True)
    if searching:
        return Step(found, found.first_step, looks.share(number), number == planned)
    worth = found.verdict != UNTESTABLE and made > 0
    return Step(found, None, looks.rest(made) if worth else None, True)


def pilot(levels: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """A thin part of a grid, to plan the rest by: five ranks, the lower half of N or T, three seeds.

    Args:
        levels: of the grid by coordinate, ascending; `seed` among them.
    """
    chosen = {}
    for name, values in levels.items():
        if name == "seed":
            more = range(values[-1] + 1, values[-1] + 1 + gates.SECOND_TIER_SEEDS - len(values))
            chosen[name] = [*values[: gates.SECOND_TIER_SEEDS], *more]
        elif name == "rank":
            at = np.unique(np.linspace(0, len(values) - 1, min(PILOT_RANKS, len(values))).round().astype(int))
            chosen[name] = [values[i] for i in at]
        else:
            chosen[name] = list(values[: max(2, (len(values) + 1) // 2)])
    return chosen


def _required(table: Table | None, claim: str) -> Table:
    if table is None:
        raise InputError(f"{claim}: an empty design says nothing about it; give a table")
    return table


def _race(
    study: _Study | _Seeds,
    sets: Sequence[Proposal],
    simulations: int,
    seed: int,
    order: Callable[[Proposal], tuple[Any, ...]],
    progress: Callable[[str], None],
) -> list[Proposal]:
    """Simulate all sets a little and the best of them more, and order them."""
    laws = study.laws_drawn(simulations, seed)
    tallies = {k: Counter[str]() for k in range(len(sets))}
    running = list(tallies)

    def tallied(k: int) -> Proposal:
        count = max(tallies[k].total(), 1)
        return replace(sets[k], verdicts={w: n / count for w, n in tallies[k].most_common()}, simulations=count)

    start = 0
    for share, left in RACE:
        end = min(simulations, start + max(FEWEST, round(share * simulations)))
        for done, k in enumerate(running):
            progress(f"{done} of {len(running)} sets of runs simulated: {sets[k].why}")
            simulate = study.simulator(sets[k].runs)
            for i in range(start, end):
                tallies[k][simulate(laws[i], np.random.default_rng([seed, i]))] += 1
                if tallies[k] == {UNTESTABLE: 2}:  # a gate of the design fails, whatever the law
                    break
        start = end
        alive = [k for k in running if set(tallies[k]) != {UNTESTABLE}]
        running = sorted(alive, key=lambda k: order(tallied(k)))[:left]
    return sorted((tallied(k) for k in tallies), key=order)


def _order(p: Proposal, last: bool) -> tuple[Any, ...]:
    """Affordable ones first; those with a fair chance by chance per cost, the others by chance, then by how often the
    claim can be tested at all. Before the last look the fair ones by chance too, counted with one failure and one
    success more: four of four simulations do not beat 46 of 48."""
    untestable = p.verdicts.get(UNTESTABLE, 0.0)
    if p.chance < MIN_CHANCE:
        return (not p.affordable, True, -p.chance, untestable, p.cost)
    worth = (p.chance * p.simulations + 1) / (p.simulations + 2) if last else p.chance / max(p.cost, 1e-12)
    return (not p.affordable, False, -worth, untestable, p.cost)


def _advice(raced: Sequence[Proposal], notes: Sequence[str], unit: str, budget: float | None) -> list[str]:
    """What the race says where nothing affordable decides."""
    found = list(notes)
    if not raced:
        return [*found, "no runs can be proposed: see the reasons"]
    fair = [p for p in raced if p.chance >= MIN_CHANCE]
    if any(p.affordable for p in fair):
        return found
    if budget is not None and not any(p.affordable for p in raced):
        found.append(f"no set of runs costs at most {budget:g} {unit}")
    if fair:
        least = min(fair, key=lambda p: p.cost)
        found.append(
            f"no affordable set of runs has a chance of {MIN_CHANCE:g} of a verdict; the cheapest that has one costs "
            f"{least.cost:.4g} {unit}: {least.why} ({len(least.runs)} runs, chance {least.chance:.2f})"
        )
    else:
        best = max(raced, key=lambda p: p.chance)
        untestable = min(p.verdicts.get(UNTESTABLE, 0.0) for p in raced) > 0.5
        why = (
            "the table stays untestable, and the reasons above say which gate fails"
            if untestable
            else "the exponent may lie at the margin, or the noise of a run has to be reduced (a control variate, a "
            "larger test set)"
        )
        found.append(
            f"no set of runs here has a chance of {MIN_CHANCE:g} of a verdict (the largest: {best.chance:.2f}, "
            f"{best.why}): {why}"
        )
    return found


# --- claims about means on a grid ------------------------------------------------------------------------------------


@dataclass
class _Study:
    """A table, or none yet, of a claim about means on a grid.

    Attributes:
        claim: its name. quantity: the measured column. design: columns of a cell (strata first), coordinates: those of
            the claim, leading: N or T. frame: the rows, none for an empty design.
        levels: of the grid by coordinate. word: the verdict on cells. laws, noise: what is believed of other runs.
        notes: caveats. points: the cells that exist, or for an empty design those of its grid. planned: seeds per cell.
    """

    claim: str
    quantity: str
    strata: list[str]
    coordinates: list[str]
    leading: str
    frame: pd.DataFrame
    levels: dict[str, np.ndarray]
    word: Callable[[Cells], str]
    laws: Laws
    noise: Noise
    planned: int
    cost: RankCost = field(default_factory=RankCost)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.design = [*self.strata, *self.coordinates]
        self.run_at: dict[tuple[Any, ...], set[float]] = {}
        for row in self.frame[[*self.design, "seed"]].itertuples(index=False) if len(self.frame) else ():
            self.run_at.setdefault(tuple(row[:-1]), set()).add(float(row[-1]))
        self.points = pd.DataFrame(list(self.run_at), columns=self.design)

    # Sets of runs .....................................................................................................

    def sets(
        self, needed: Sequence[Mapping[str, Any]], price: Price, budget: float | None = None
    ) -> list[tuple[str, pd.DataFrame]]:
        """Every set that is worth a thought: why, and its runs."""
        found = self._for_a_design(price) if self.points.empty else self._for_a_table(needed, price, budget)
        kept, seen = [], set()
        for why, runs in found:
            key = frozenset(runs.itertuples(index=False, name=None))
            if key and key not in seen:
                seen.add(key)
                kept.append((why, runs))
        return kept

    def _for_a_design(self, price: Price) -> Iterable[tuple[str, pd.DataFrame]]:
        few = {
            c: _upper(v, gates.MIN_LEVELS_SIZE) if c == self.leading else _thinned(v, gates.MIN_RANKS)
            for c, v in self.levels.items()
        }
        for words, levels in (
            ("the whole grid", self.levels),
            *((f"the grid with fewer {c}", {**self.levels, c: few[c]}) for c in self.coordinates),
            ("a grid as small as the gates allow", few),
        ):
            points = self._grid(levels)
            for seeds in dict.fromkeys((self.planned, gates.MIN_SEEDS, gates.SECOND_TIER_SEEDS)):
                yield f"{words}, {seeds} seeds", self._up_to(points, seeds)
            if not isinstance(self.laws, SurfaceLaws):
                counts = _seeds_by_cost(price.each(points), gates.MIN_SEEDS)
                yield f"{words}, {gates.MIN_SEEDS} {MORE_SEEDS}", self._up_to(points, counts)

    def _for_a_table(
        self, needed: Sequence[Mapping[str, Any]], price: Price, budget: float | None
    ) -> Iterable[tuple[str, pd.DataFrame]]:
        usual = max(gates.MIN_SEEDS, self.planned)
        growth = isinstance(self.laws, SurfaceLaws)
        fewest = self.planned if gates.SECOND_TIER_SEEDS <= self.planned < gates.MIN_SEEDS else usual
        for few in (None,) if growth else FEW:
            at = f", new levels at {few} others" if few else ""
            runs = self._asked(needed, few, usual)
            yield f"what the gates ask for{at}", runs
            yield (
                f"what the gates ask for{at}, and {BLOCK} more seeds",
                self._joined(runs, self._more(self.points, BLOCK)),
            )
            if not growth:
                for least, more in self._by_cost(runs, usual, price, budget):
                    yield f"what the gates ask for{at}, {least} {MORE_SEEDS}", more
            if fewest < usual and not growth:
                yield f"the levels that the gates ask for{at}, {fewest} seeds", self._asked(needed, few, fewest)
        yield from self._seeds()
        for c in self.coordinates:
            new = {"above": self._beyond(c, 1), "between": gates.between(self.levels[c], 1)}
            # A rate is claimed for large N and T. Smaller ones are cheap, and what they decide is not what is asked.
            if growth or c != self.leading:
                new["below"] = self._beyond(c, -1)
                new["below and above"] = [*new["below"], *new["above"]]
            for where, values in new.items():
                if not values:
                    continue
                for few in (None,) if growth else FEW:
                    points = self._at(c, values, few)
                    words = f"{c} = {_listed(values)} ({where}{f', at {few} others' if few else ''})"
                    yield words, self._up_to(points, usual)
                    if where == "above" and not few:
                        both = self._joined(self._up_to(points, usual), self._more(self.points, BLOCK))
                        yield f"{words}, and {BLOCK} more seeds", both
        if growth:
            yield from self._optima(usual)

    def _seeds(self) -> Iterable[tuple[str, pd.DataFrame]]:
        """More seeds: in all cells, at the ends, at the largest level; and as many again, and three times as many."""
        yield f"{BLOCK} more seeds in every cell", self._more(self.points, BLOCK)
        for c in self.coordinates:
            ends = self.levels[c][[0, -1]]
            there = self.points[self.points[c].isin(ends)]
            yield f"{2 * BLOCK} more seeds at {c} = {_listed(ends)}", self._more(there, 2 * BLOCK)
        last = self.levels[self.leading][-1]
        there = self.points[self.points[self.leading] == last]
        yield f"{2 * BLOCK} more seeds at {self.leading} = {last:g}", self._more(there, 2 * BLOCK)
        for words, times in (("as many seeds again", 1), ("three times as many seeds again", 3)):
            yield f"{words} in every cell", self._more(self.points, times * max(self.planned, BLOCK))

    def _optima(self, usual: int) -> Iterable[tuple[str, pd.DataFrame]]:
        """Ranks around r*(N), and N whose r* lies inside the window."""
        samples = self.levels["samples"]
        optima = _BelievedOptima(self, samples)
        here = self._bracketed(optima, samples)
        yield "the ranks around r* at every N", self._up_to(here, usual)
        yield "the bracket of the best rank halved at every N", self._up_to(self._halved(), usual)
        ratio = _ratio(self.levels["rank"])
        beyond = [float(np.round(self.levels["rank"][-1] * ratio**k)) for k in (1, 2)]
        beyond = [r for r in beyond if r <= self.cost.dimension]
        if beyond:
            yield f"rank = {_listed(beyond)}", self._up_to(self._at("rank", beyond), usual)
        window, words = optima.window_values()
        self.notes += words
        if not len(window):
            return
        points = self._bracketed(optima, window)
        for seeds in (usual, usual + BLOCK, 2 * usual):
            said = f"the ranks around r* at samples = {_listed(window)}, {seeds} seeds"
            yield said, self._up_to(points, seeds)

    def _bracketed(self, optima: _BelievedOptima, samples: np.ndarray) -> pd.DataFrame:
        pairs = [(float(r), float(n)) for n in samples for r in optima.bracket(float(n))]
        return pd.DataFrame(pairs, columns=["rank", "samples"])

    def _halved(self) -> pd.DataFrame:
        """At every N the best rank, its neighbours, and the ranks halfway (in the logarithm) between: a step of a
        search for the minimum. Where the best rank is the first or last one, the next rank beyond it."""
        risk = self.frame.groupby(["samples", "rank"])[self.quantity].mean()
        pairs = []
        for n in self.levels["samples"].tolist():
            ranks = risk[n].index.to_numpy(dtype=np.float64)
            best, ratio = int(np.argmin(risk[n].to_numpy())), _ratio(ranks)
            low = ranks[best - 1] if best else max(1.0, np.floor(ranks[0] / ratio))
            high = ranks[best + 1] if best + 1 < len(ranks) else min(self.cost.dimension, np.ceil(ranks[-1] * ratio))
            halfway = np.round(np.sqrt(ranks[best] * np.array([low, high])))
            pairs += [(float(r), n) for r in np.unique([low, ranks[best], high, *halfway])]
        return pd.DataFrame(pairs, columns=["rank", "samples"])

    def _asked(self, needed: Sequence[Mapping[str, Any]], few: int | None, seeds: int) -> pd.DataFrame:
        """The runs that the gates ask for. New levels of several coordinates are crossed with each other.

        Args:
            few: how many levels of the other coordinate the new levels of one are run at; None: all of them.
            seeds: per new cell. Where they are fewer than the first tier of the gates wants, no other seeds are added.
        """
        new: dict[str, list[float]] = {c: [] for c in self.coordinates}
        needed = [*needed, *self._asked_then(needed)]
        parts = [self.points.iloc[:0].assign(seed=[])]
        more = 0
        for run in needed:
            columns = [c for c in run if c != "seeds"]
            if not columns:
                more = max(more, int(run["seeds"]))
            elif len(columns) == 1 and columns[0] in new:
                new[columns[0]].append(float(run[columns[0]]))
            elif set(columns) == set(self.design):
                point = pd.DataFrame([{c: float(run[c]) for c in self.design}])
                parts.append(self._more(point, int(run["seeds"])))
        if more and seeds >= gates.MIN_SEEDS:
            parts.append(self._more(self.points, more))
        for c, values in new.items():
            if values:
                parts.append(self._up_to(self._at(c, values, few), seeds))
        if len(self.coordinates) == 2 and all(new.values()):
            a, b = self.coordinates
            points = pd.DataFrame(list(product(new[a], new[b])), columns=[a, b])
            parts.append(self._up_to(self._with_strata(points), seeds))
        return self._joined(*parts)

    def _asked_then(self, needed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the gates on levels ask for once those that they ask for are there, until they pass."""
        added = []
        for c in self.coordinates:
            levels = self.levels[c]
            asked = [float(run[c]) for run in needed if set(run) == {c, "seeds"}]
            for _ in range(4):
                levels = np.unique([*levels, *asked])
                found = gates.size_gates(c, levels) if c == self.leading else gates.rank_gates(levels)
                asked = [float(run[c]) for gate in found for run in gate.needed]
                if isinstance(self.laws, SurfaceLaws) or not asked:
                    break
                added += [{c: v, "seeds": gates.MIN_SEEDS} for v in asked]
        return added

    def _by_cost(
        self, runs: pd.DataFrame, usual: int, price: Price, budget: float | None
    ) -> Iterable[tuple[int, pd.DataFrame]]:
        """Runs, and at their points and all others seeds by what they cost: the usual number where they are dearest, a
        block more, or as many as the budget affords."""
        points = self._joined(self.points, runs[self.design])
        cost = price.each(points)
        found = {
            least: self._joined(runs, self._up_to(points, _seeds_by_cost(cost, least)))
            for least in range(usual, usual + MOST_SEEDS_MORE + 1)
        }
        affordable = [k for k, more in found.items() if budget is None or price.each(more).sum() <= budget]
        return [(k, found[k]) for k in sorted({usual, usual + BLOCK, *affordable[-1:]})]

    def _joined(self, *parts: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([p for p in parts if len(p)] or [parts[0]]).drop_duplicates().reset_index(drop=True)

    def _with_strata(self, points: pd.DataFrame) -> pd.DataFrame:
        if not self.strata:
            return points[self.design]
        return self.points[self.strata].drop_duplicates().merge(points, how="cross")[self.design]

    def _grid(self, levels: Mapping[str, np.ndarray]) -> pd.DataFrame:
        return pd.DataFrame(list(product(*(levels[c] for c in self.coordinates))), columns=self.coordinates)

    def _at(self, coordinate: str, values: Sequence[float], few: int | None = None) -> pd.DataFrame:
        """The points with new values of a coordinate, at all (or a few) levels of the other that exist."""
        others = [c for c in self.design if c != coordinate]
        points = self.points[others].drop_duplicates() if others else pd.DataFrame({"_": [0]})
        for c in self.coordinates:
            if few and c != coordinate:
                points = points[points[c].isin(_thinned(self.levels[c], few))]
        return points.merge(pd.DataFrame({coordinate: values}), how="cross")[self.design]

    def _beyond(self, coordinate: str, side: int) -> list[float]:
        """The next level beyond an end, by the ratio of the grid; none below 1 or beyond the matrix."""
        levels = self.levels[coordinate]
        value = float(np.round(levels[-1] * _ratio(levels) if side > 0 else levels[0] / _ratio(levels)))
        top = self.cost.dimension if coordinate == "rank" else np.inf
        return [value] if 1 <= value <= top and value not in levels else []

    def _more(self, points: pd.DataFrame, count: int) -> pd.DataFrame:
        """So many more seeds at points."""
        return self._seeded(points, np.full(len(points), count))

    def _up_to(self, points: pd.DataFrame, counts: int | np.ndarray) -> pd.DataFrame:
        """Seeds at points until they have so many, or so many each [n]."""
        there = [len(self.run_at.get(p, ())) for p in points[self.design].itertuples(index=False, name=None)]
        return self._seeded(points, np.maximum(0, counts - np.array(there, dtype=int)))

    def _seeded(self, points: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
        """One row per run, [n] of them at each point. Seeds that exist elsewhere come first: runs of one seed are
        paired."""
        known = sorted(set().union(*self.run_at.values())) if self.run_at else []
        rows = []
        for point, count in zip(points[self.design].itertuples(index=False, name=None), counts.tolist(), strict=True):
            there = self.run_at.get(point, set())
            start = int(max(known)) + 1 if known else 0
            pool = [s for s in known if s not in there] + [float(start + k) for k in range(count)]
            rows += [(*point, s) for s in pool[:count]]
        return pd.DataFrame(rows, columns=[*self.design, "seed"])

    # Simulation .......................................................................................................

    def laws_drawn(self, count: int, seed: int) -> list[Law]:
        rng = np.random.default_rng([seed, 1])
        return [self.laws.draw(rng) for _ in range(count)]

    def simulator(self, runs: pd.DataFrame) -> Callable[[Law, np.random.Generator], str]:
        """Completes the table with simulated runs and says the word about it."""
        old = self.frame[[*self.design, "seed", self.quantity]] if len(self.frame) else runs.iloc[:0]
        both = pd.concat([old, runs]) if len(self.frame) else runs
        measured = old[self.quantity].to_numpy(dtype=np.float64) if len(self.frame) else np.zeros(0)

        def simulate(law: Law, rng: np.random.Generator) -> str:
            values = np.concatenate([measured, self.noise.draw(runs, law(runs), rng)])
            return self.word(build_cells(both.assign(**{self.quantity: values}), self.design, self.quantity))

        return simulate


class _BelievedOptima:
    """r*(N) by the drawn surfaces."""

    def __init__(self, study: _Study, samples: np.ndarray) -> None:
        self.ranks = study.levels["rank"]
        self.samples, self.dimension = samples, study.cost.dimension
        top = min(4 * self.ranks[-1], self.dimension)
        self.fine = np.geomspace(max(1.0, self.ranks[0] / 4), top, 120)
        self.laws = study.laws_drawn(40, 7)
        self.pool = self._pool()

    def _pool(self) -> np.ndarray:
        """Ranks to choose from: those of the grid, continued by its ratio on both sides."""
        ratio = max(_ratio(self.ranks), 1.15)
        above = self.ranks[-1] * ratio ** np.arange(1, 6)
        below = self.ranks[0] / ratio ** np.arange(1, 6)
        every = np.unique(np.round(np.concatenate([below, self.ranks, above])))
        return every[(every >= 1) & (every <= self.dimension)]

    def log_rank(self, samples: np.ndarray) -> np.ndarray:
        """[laws, K] ln r*."""
        grid = pd.DataFrame({"rank": np.tile(self.fine, len(samples)), "samples": np.repeat(samples, len(self.fine))})
        risks = np.array([law(grid).reshape(len(samples), -1) for law in self.laws])
        return np.log(self.fine)[np.argmin(risks, axis=2)]

    def bracket(self, samples: float) -> np.ndarray:
        """Ranks around r*(N): at least five, and two beyond it on both sides where the matrix allows."""
        low, high = np.quantile(self.log_rank(np.array([samples])), (0.15, 0.85))
        chosen = (np.log(self.pool) >= low - np.log(BRACKET)) & (np.log(self.pool) <= high + np.log(BRACKET))
        centre = int(np.argmin(np.abs(np.log(self.pool) - 0.5 * (low + high))))
        first = max(0, min(centre - 2, len(self.pool) - 5))
        chosen[first : first + 5] = True
        return self.pool[chosen]

    def window_values(self) -> tuple[np.ndarray, list[str]]:
        """Five N whose r* lies inside the window, over a decade where the window has one; and what to say about it."""
        low = np.log(1.1 * max(SMALLEST_RANK, self.pool[1]))
        high = np.log(min(self.dimension / LARGEST_SHARE, self.pool[-2]) / 1.1)
        fine = np.geomspace(self.samples[0] / 100, self.samples[-1] * 100, 81)
        fine = fine[fine >= 1]
        middle = np.median(self.log_rank(fine), axis=0)
        inside = fine[(middle >= low) & (middle <= high)]
        if len(inside) < 2:
            return np.zeros(0), ["r* is not believed to lie inside the trusted window at any N near these"]
        here = self.samples[(self.samples >= inside[0]) & (self.samples <= inside[-1])]
        span = 10 ** (MIN_DECADES + 0.1)
        # A decade that contains what is there; else the cheapest, at the smallest N.
        end = min(inside[-1], max(here[-1] if len(here) else 0.0, inside[0] * span))
        start = max(inside[0], min(end / span, here[0] if len(here) else np.inf))
        notes = []
        if np.log10(end / start) < MIN_DECADES:
            notes.append(
                f"r* is believed to cross the trusted window within a factor of {end / start:.3g} in N, and "
                f"{10**MIN_DECADES:.3g} is needed: a larger matrix, or a steeper spectrum, widens it"
            )
        kept = list(here[(here >= start / 1.01) & (here <= end * 1.01)])
        for v in np.round(np.geomspace(start, end, MIN_OPTIMA + 1)):
            if not kept or np.min(np.abs(np.log(v / np.array(kept)))) > SAME:
                kept.append(float(v))
        return np.array(sorted(kept)), notes


def _seeds_by_cost(cost: np.ndarray, least: int) -> np.ndarray:
    """[n] seeds of design points whose runs cost so much: `least` where they are dearest, more where they are cheap.

    For a given cost a sum of means is known best if runs are as many as one over the square root of their cost (Neyman
    1934, On the two different aspects of the representative method).
    """
    return np.minimum(np.round(least * np.sqrt(cost.max() / cost)), least + MORE_WHERE_CHEAP).astype(int)


def _ratio(levels: np.ndarray) -> float:
    """The usual ratio of neighbouring levels."""
    return float(np.exp(np.median(np.diff(np.log(levels))))) if len(levels) > 1 else 4.0


def _thinned(levels: np.ndarray, count: int) -> np.ndarray:
    """So many of the levels, evenly chosen, with both ends."""
    if len(levels) <= count:
        return levels
    return levels[np.unique(np.linspace(0, len(levels) - 1, count).round().astype(int))]


def _upper(levels: np.ndarray, count: int) -> np.ndarray:
    """So many of the levels: the first, and the others from the upper half, where a gate asks for three."""
    if len(levels) <= count:
        return levels
    half = len(levels) // 2
    upper = levels[half:]
    return np.array([levels[0], *(_thinned(upper, count - 1) if len(upper) >= count - 1 else levels[1 - count :])])


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _values(values: Iterable[Any]) -> str:
    return ",".join(f"{v:g}" if not float(v).is_integer() else f"{int(v)}" for v in values)


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _grids(points: Sequence[Any]) -> list[list[list[Any]]]:
    """Full grids that make up a set of points: points that agree but for the first column are put together."""
    points = [p if isinstance(p, tuple) else (p,) for p in points]
    if not points[0]:
        return [[]]
    by_rest: dict[tuple[Any, ...], list[Any]] = {}
    for first, *rest in points:
        by_rest.setdefault(tuple(rest), []).append(first)
    by_firsts: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for rest, firsts in by_rest.items():
        by_firsts.setdefault(tuple(sorted(firsts)), []).append(rest)
    return [[list(firsts), *grid] for firsts, rests in by_firsts.items() for grid in _grids(rests)]


# --- claims of which only seeds are added ----------------------------------------------------------------------------


class _Seeds:
    """A table whose claim compares runs of a seed: only whole new seeds are thought of.

    A new seed deviates from the means as the known seeds do (Gaussian, with their covariance over rows), and the means
    are as uncertain as their number says.
    """

    def __init__(self, table: Table, claim: str, margin: float, noise: float) -> None:
        ledger = {"information": information.CLAIM, "dynamics": dynamics.CLAIM}[claim]
        frame, _ = claim_rows(table, claim, ledger.columns, ledger.measured, ledger.optional)
        self.claim, self.margin, self.table = claim, margin, replace(table, frame=frame)
        self.frame, self.relative = frame, noise
        self.quantities = {
            "information": ["mutual_information"],
            "dynamics": ["dynamics_divergence", "dynamics_baseline"],
        }[claim]
        self.design = [
            c for c in ("site", "rank", "samples", "steps", "clone_weight") if c in frame and frame[c].notna().any()
        ]
        self.notes = [f"for {claim} only seeds are proposed: other runs would change what is compared"]
        self.cells = frame.groupby(self.design, dropna=False).ngroup() if self.design else frame["seed"] * 0
        self.known = np.unique(frame["seed"].to_numpy(dtype=np.float64))

    def sets(
        self, needed: Sequence[Mapping[str, Any]], price: Price, budget: float | None = None
    ) -> list[tuple[str, pd.DataFrame]]:
        count, start = len(self.known), int(self.known.max()) + 1
        missing = max(gates.MIN_SEEDS - count, 0)
        columns = [c for c in self.design if c != "site"]
        points = self.frame[columns].drop_duplicates() if columns else pd.DataFrame(index=[0])
        numbers = {missing, missing + BLOCK, missing + 5, missing + 2 * count, missing + 4 * count} - {0}
        return [
            (
                f"{k} more seeds",
                points.merge(pd.DataFrame({"seed": [float(start + i) for i in range(k)]}), how="cross"),
            )
            for k in sorted(numbers)
        ]

    def laws_drawn(self, count: int, seed: int) -> list[Any]:
        return [None] * count

    def simulator(self, runs: pd.DataFrame) -> Callable[[Any, np.random.Generator], str]:
        """Completes the table with simulated seeds and judges it whole."""
        seeds = runs["seed"].unique()
        wide = self.frame.assign(_cell=self.cells).pivot_table(index="seed", columns="_cell", values=self.quantities)
        positive = bool((wide.to_numpy() > 0).all())
        value = np.log(wide.to_numpy()) if positive else wide.to_numpy(dtype=np.float64)
        mean = np.nanmean(value, axis=0)
        count = len(value)
        residual = np.nan_to_num(value - mean) / np.sqrt(max(count - 1, 1))
        template = self.frame.assign(_cell=self.cells).drop_duplicates("_cell").set_index("_cell")
        size = self.relative if positive else self.relative * np.abs(mean)

        def simulate(_: Any, rng: np.random.Generator) -> str:
            # The spread of few seeds is itself uncertain: the predictive distribution is a Student one.
            scale = np.sqrt((count - 1) / rng.chisquare(count - 1)) if count > 1 else 1.0
            draws = rng.standard_normal((len(seeds) + 1, count)) @ residual * scale
            if count < 2:
                draws = size * rng.standard_normal((len(seeds) + 1, len(mean)))
            drawn = pd.DataFrame(mean + draws[0] / np.sqrt(count) + draws[1:], columns=wide.columns)
            rows = [self.frame]
            for k, seed in enumerate(seeds):
                values = {q: drawn[q].iloc[k].reindex(template.index) for q in self.quantities}
                rows.append(template.assign(seed=seed, **{q: np.exp(v) if positive else v for q, v in values.items()}))
            frame = pd.concat(rows, ignore_index=True)
            report = judging.check(replace(self.table, frame=frame), claims=[self.claim], margin=self.margin)
            return report[self.claim].verdict

        return simulate


# --- what is judged, by claim ----------------------------------------------------------------------------------------


def _rate_study(
    claim: str, quantity: str, coordinates: Sequence[Coordinate], frame: pd.DataFrame, strata: list[str],
    design: Design | None, margin: float, relative: float,
) -> _Study:  # fmt: skip
    names = [c.name for c in coordinates]
    leading = next(c.name for c in coordinates if c.leading)
    rank = next((c.name for c in coordinates if not c.leading), None)
    levels = _levels(frame, names, design)
    noise = Noise.of(frame, [*strata, *names], quantity, relative, leading if rank else None)
    cells = build_cells(frame, [*strata, *names], quantity) if len(frame) else None
    laws = RateLaws(cells, leading, rank, strata, noise, levels)

    def word(every: Cells) -> str:
        return combine(list(words_of(every, quantity, coordinates, margin, strata).values()))

    planned = _planned(cells, design, leading)
    return _Study(claim, quantity, strata, names, leading, frame, levels, word, laws, noise, planned)


def _levels(frame: pd.DataFrame, names: Sequence[str], design: Design | None) -> dict[str, np.ndarray]:
    """The grid's levels by coordinate: those of the table, else of the design."""
    if len(frame):
        return {c: np.unique(frame[c].to_numpy(dtype=np.float64)) for c in names}
    assert design is not None
    grids = {"rank": design.ranks, "samples": design.samples, "steps": design.steps}
    return {c: np.array(grids[c], dtype=np.float64) for c in names}


def _planned(cells: Cells | None, design: Design | None, leading: str) -> int:
    """Seeds per cell: the usual number in the table, or at its largest N or T if that is less; else of the design."""
    if cells is not None:
        largest = (cells.levels[leading] == cells.levels[leading].max()).to_numpy()
        return int(min(np.median(cells.replicates), np.median(cells.replicates[largest])))
    assert design is not None
    return design.seeds


def _generalization(
    table: Table | None, design: Design | None, dimension: float, margin: float, relative: float
) -> _Study:
    frame, strata = (pd.DataFrame(), list[str]()) if table is None else generalization.gap_rows(table)[:2]
    return _rate_study("generalization", "gap", generalization.COORDINATES, frame, strata, design, margin, relative)


def _convergence(
    table: Table | None, design: Design | None, dimension: float, margin: float, relative: float
) -> _Study:
    frame, strata = pd.DataFrame(), list[str]()
    if table is not None:
        frame, strata, _ = convergence.horizon_rows(table)
        frame = convergence.usable_rows(frame, strata)
        if frame.empty:
            raise InputError(f"{table.path}: no horizon is long enough for the 1/sqrt(T) term; run longer horizons")
        if convergence.fixed_step(frame, strata):
            raise InputError(
                f"{table.path}: column step_size: the same at every horizon, and no further runs can help: run each "
                "horizon with its own step proportional to 1/sqrt(T)"
            )
    coordinates = convergence.COORDINATES
    return _rate_study("convergence", "grad_norm_sq", coordinates, frame, strata, design, margin, relative)


def _optimal_rank(
    table: Table | None, design: Design | None, dimension: float, margin: float, relative: float
) -> _Study:
    names = ["rank", "samples"]
    frame, cells, cost = pd.DataFrame(), None, RankCost(dimension)
    if table is not None:
        frame, cells, _ = optimal_rank.risk_cells(table)
        cost = optimal_rank.rank_cost(frame)
    levels = _levels(frame, names, design)
    noise = Noise.of(frame, names, "test_loss", relative, "samples")
    laws = SurfaceLaws(cells, noise, cost, levels)
    return _Study(
        "optimal_rank", "test_loss", [], names, "samples", frame, levels,
        lambda every: optimal_rank.word_of(every, cost, margin), laws, noise, _planned(cells, design, "samples"), cost,
    )  # fmt: skip


STUDIES: Mapping[str, Callable[..., _Study]] = {
    "generalization": _generalization, "optimal_rank": _optimal_rank, "convergence": _convergence,
}  # fmt: skip
CLAIMS = (*STUDIES, "information", "dynamics")


def point_words(proposal: Proposal) -> str:
    """The runs in a few words for a table: `rank = 2, 3; samples = 64; seeds = 5, 6`, or how many points."""
    columns = [str(c) for c in proposal.runs if c != "seed"]
    grids = len(proposal.overrides)
    if grids > 1:
        return f"{len(proposal.needed)} design points in {grids} grids"
    return describe(columns, ["|".join(_values([v]) for v in sorted(proposal.runs[c].unique())) for c in columns])
