"""Claim 7: at equal inference cost no other compression of the teacher is better than the clone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from theory.judge import gates
from theory.judge.cells import mean_points
from theory.judge.gates import Gate
from theory.judge.intervals import Interval, at_least, mean_interval
from theory.judge.ledger import Claim
from theory.judge.methods import CLONE, Tuning, best_rates, kind_of, paired_seeds, unfair, weakest
from theory.judge.rules import Rule
from theory.judge.scrutiny import far_runs, refuse_copies, refuse_mixtures
from theory.judge.verdicts import (
    CONSISTENT,
    INCONCLUSIVE,
    NOT_EVALUATED,
    PRECEDENCE,
    REFUTED,
    TIE,
    UNTESTABLE,
    combine,
)
from theory.report import Bound, ClaimReport, interval_list
from theory.tables import InputError, Table, claim_rows, describe, resolve_duplicates

ALLOWED = 0.02  # nats per token by which a rival may be better and still count as no better
EQUAL = 0.02  # costs that differ by less than this share are equal
MIN_SIZES = 3  # sizes of the clone in the first tier
#: Kinds of rivals without which "no rival is better" is not said: activation-aware SVD, trained factors, no teacher
#: weights at all. A quantised teacher is compared with where it is in the table.
RIVALS = ("whitened_svd", "factorized", "scratch")

#: Costs of inference, and what they are called.
COSTS = {"weight_bytes": "bytes", "flops_per_token": "FLOPs", "decode_ms_per_token": "latency"}
ARMS = ("data", "sequence_length")
#: A method and its weight bytes.
CELL = ["method", "weight_bytes"]
Cell = tuple[str, float]


# --- evidence --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Duel:
    """A clone of one size against a rival at the same cost.

    Attributes:
        clone, rival: names of the methods. cost: of the clone. differences: [S] loss of the clone minus that of the
            rival, by seed, in nats per token.
        clone_tuned, rival_tuned: learning rates chosen fairly (`theory.judge.methods.unfair`); a rival that was not
            trained has none. trained: the rival was.
        how: `equal` cost, `interpolated` between two sizes of the rival, or `cheaper`: the rival's largest size costs
            less. cells: the rival's cells, by which duels of several costs are known as one.
    """

    clone: str
    rival: str
    cost: float
    differences: np.ndarray
    how: str
    cells: tuple[Cell, ...]
    clone_tuned: bool
    rival_tuned: bool
    trained: bool

    @property
    def mean(self) -> float:
        return float(self.differences.mean())

    def interval(self, level: float) -> Interval:
        return mean_interval(self.differences, level)


@dataclass(frozen=True)
class Evidence:
    """All duels of one measure of cost."""

    duels: tuple[Duel, ...]


@dataclass(frozen=True)
class Standard:
    """What the evidence is held to.

    Attributes:
        refute_level: two-sided level of the intervals that refute: 95 % of all duels together.
        tier: 1, 2 for a design that passes only the weaker gates, 0 for one that fails them.
    """

    refute_level: float
    tier: int


# --- rules -----------------------------------------------------------------------------------------------------------


def a_rival_is_better(e: Evidence, standard: Standard) -> bool:
    """At some size the lower limit of the clone's loss minus a rival's lies above .02 nats, at equal or lower cost of
    the rival; the level is 95 % over all sizes and rivals together. Asks for three seeds and a fairly chosen learning
    rate of the clone at that size, and for no other size."""
    return any(_refutes(d, standard.refute_level) for d in e.duels)


def _refutes(d: Duel, level: float) -> bool:
    return d.clone_tuned and d.interval(level).low > ALLOWED


def no_rival_is_better(e: Evidence, standard: Standard) -> bool:
    """At every size the upper 95 % limit of the clone's loss minus that of every rival at equal cost is .02 nats or
    less. First tier only; the learning rate of every rival was chosen fairly."""
    met = [d for d in e.duels if d.how != "cheaper"]
    return standard.tier == 1 and all(d.rival_tuned and bool(at_least(ALLOWED, d.interval(0.95).high)) for d in met)


#: Every duel has to pass for CONSISTENT: an intersection-union test, which needs no correction.
RULES = (Rule(REFUTED, a_rival_is_better), Rule(CONSISTENT, no_rival_is_better))


def decide(evidence: Evidence, standard: Standard) -> str:
    """The word for one measure of cost: the first rule that applies; UNTESTABLE if a gate fails, or in no duel either
    side was tuned fairly, and no rival is better. For that one size is enough."""
    if a_rival_is_better(evidence, standard):
        return REFUTED
    if standard.tier == 0 or not any(d.clone_tuned or d.rival_tuned for d in evidence.duels):
        return UNTESTABLE
    return next((r.word for r in RULES if r.condition(evidence, standard)), INCONCLUSIVE)


# --- gates -----------------------------------------------------------------------------------------------------------


def size_gate(sizes: np.ndarray) -> Gate:
    """Three sizes of the clone; one or two are enough for the second tier. sizes: [K] weight bytes."""
    sizes = np.unique(sizes)
    if len(sizes) >= MIN_SIZES:
        return Gate("sizes")
    new = gates.between(sizes, MIN_SIZES - len(sizes))
    reason = (
        f"the clone has {len(sizes)} size{'s' * (len(sizes) != 1)} and {MIN_SIZES} are needed: add weight_bytes = "
        f"{', '.join(f'{v:g}' for v in new)}"
    )
    needed: tuple[dict[str, Any], ...] = tuple(
        {"method": CLONE, "weight_bytes": v, "seeds": gates.MIN_SEEDS} for v in new
    )
    return Gate("sizes", gates.SECOND, reason, needed)


def rivals_gate(clones: Mapping[str, Sequence[float]], duels: Sequence[Duel], cost: str) -> Gate:
    """Every size of every clone needs a trained rival of each kind of RIVALS at its cost; any rival is enough for the
    second tier.

    Args:
        clones: costs of the sizes, by clone. duels: of this cost.
    """
    met = {(d.clone, d.cost, kind_of(d.rival)) for d in duels if d.how != "cheaper" and d.trained}
    points = [(clone, size) for clone, sizes in clones.items() for size in sizes]
    lacking = [(c, s, kind) for c, s in points for kind in RIVALS if (c, s, kind) not in met]
    if not lacking:
        return Gate("rivals")
    kinds = [kind for kind in RIVALS if any(kind == k for *_, k in lacking)]
    bare = [(c, s) for c, s in points if not any((c, s) == (d.clone, d.cost) for d in duels)]
    clone, size, _ = lacking[0]
    reason = (
        f"no trained {' or '.join(kinds)} costs as much as {clone} at {cost} = {size:g}"
        + f" (and {len(lacking) - 1} more gaps)" * (len(lacking) > 1)
        + ": without them it is not said that no rival is better"
    )
    tier = gates.FAILED if len(bare) == len(points) else gates.SECOND
    return Gate(
        "rivals", tier, reason, tuple({"method": k, cost: float(s), "seeds": gates.MIN_SEEDS} for _, s, k in lacking)
    )


# --- from the table to the evidence ----------------------------------------------------------------------------------


def judge(table: Table, margin: float) -> ClaimReport:
    """Judge clones against every rival at the same cost of inference. The margin on exponents is not used.

    Raises:
        InputError: unusable rows (see `theory.tables`), or no clone among the methods.
    """
    frame, remarks = claim_rows(table, CLAIM.name, CLAIM.columns, CLAIM.measured, CLAIM.optional)
    frame = frame.assign(method=frame["method"].astype(str).str.strip())
    refuse_mixtures(frame.drop(columns="student", errors="ignore"), table.path, CLAIM.name)
    if not (frame["method"].map(kind_of) == CLONE).any():
        found = ", ".join(sorted(frame["method"].unique())[:6])
        raise InputError(
            f"{table.path}: column method: none of {found} is a clone; name it {CLONE}, or {CLONE}:START, and every "
            "rival by its own name"
        )
    arms = [c for c in ARMS if c in frame and frame[c].nunique(dropna=False) > 1]
    if "tokens" in frame and frame["tokens"].notna().any():
        frame, said = _equal_tokens(frame)
        remarks += said
        both = frame.groupby("method")["tokens"].transform("nunique") > 1
        frame["method"] = frame["method"].where(~(both & _untrained(frame)), frame["method"] + ":untrained")
    cell = [*arms, "method", "weight_bytes"]
    extra = ["learning_rate"] if "learning_rate" in frame else []
    frame, _ = resolve_duplicates(frame, table.path, CLAIM.name, [*cell, "seed", *extra], ["test_loss"], [])
    frame, tuning = best_rates(frame, table.path, cell)
    refuse_copies(frame[~_untrained(frame)], table.path, cell, "test_loss")
    remarks += far_runs(frame, cell, "test_loss")
    results = []
    groups = list(frame.groupby(arms, dropna=False)) if arms else [((), frame)]
    for key, rows in groups:
        trained = set(rows.loc[~_untrained(rows), "method"])
        tuned = {k[-1]: t for k, t in tuning.items() if k[:-1] == tuple(key) and k[-1] in trained}
        results += _judge_arm(dict(zip(arms, key, strict=True)), rows, tuned, len(groups))
    results.sort(key=lambda r: (PRECEDENCE.index(r["verdict"]), -np.nan_to_num(r["estimate"])))
    return ClaimReport(
        CLAIM.name,
        combine([r["verdict"] for r in results]),
        (*(r["reason"] for r in results), *dict.fromkeys(remarks)),
        {},
        Bound(NOT_EVALUATED),
        int(frame.groupby(cell, dropna=False).ngroups),
        int(frame["seed"].nunique()),
        {
            "rival_difference": results[0],
            "comparisons": results,
            "needed": gates.missing_runs(n for r in results for n in r["needed"]),
            "tier": weakest([r["tier"] for r in results]),
        },
        _points(frame, cell),
    )


def _untrained(frame: pd.DataFrame) -> pd.Series:
    """Rows that were not trained: no seed changes them."""
    return frame["tokens"] == 0 if "tokens" in frame else pd.Series(data=False, index=frame.index)


def _equal_tokens(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows trained on as many tokens as the clone's longest training, and those not trained at all."""
    of_clone = frame.loc[frame["method"].map(kind_of) == CLONE, "tokens"]
    most = float(of_clone.max())
    keep = (frame["tokens"] == most) | (_untrained(frame) & (frame["method"].map(kind_of) != CLONE))
    dropped = sorted(set(frame["method"]) - set(frame.loc[keep, "method"]))
    said = [f"rows trained on {most:g} tokens, the most of the clone, and untrained ones were judged"]
    if dropped:
        said.append(f"not compared, since they were trained on other budgets: {', '.join(dropped)}")
    return frame[keep].copy(), said if not keep.all() else []


def _judge_arm(
    arm: dict[str, Any], rows: pd.DataFrame, tuning: Mapping[str, Tuning], arms: int
) -> list[dict[str, Any]]:
    """A result per measure of cost. tuning: of the trained methods."""
    untuned = unfair(tuning)
    cells: dict[Cell, pd.DataFrame] = {(str(m), float(b)): part for (m, b), part in rows.groupby(CELL)}  # type: ignore[arg-type]
    losses = {cell: part.set_index("seed")["test_loss"] for cell, part in cells.items()}
    fixed = {cell for cell, part in cells.items() if _untrained(part).all()}
    clones = sorted({m for m, _ in losses if kind_of(m) == CLONE})
    seeds, _ = paired_seeds([frozenset(s.index) for key, s in losses.items() if key[0] in clones])
    general = [
        size_gate(np.array([size for m, size in losses if m in clones])),
        gates.seeds_gate(np.array([float(len(seeds))])),
    ]
    measured: dict[str, tuple[list[Duel], Gate]] = {}
    for cost in COSTS:
        if cost not in rows or rows[cost].isna().all():
            continue
        # A run's latency is noisy: the typical one is the method's.
        costs = {cell: float(part[cost].median()) for cell, part in cells.items() if part[cost].notna().any()}
        duels = _duels(clones, costs, losses, fixed, tuning)
        sizes = {m: [c for (name, _), c in costs.items() if name == m] for m in clones}
        measured[cost] = (duels, rivals_gate(sizes, duels, cost))
    distinct = {(d.clone, d.cells) for duels, _ in measured.values() for d in duels}
    level = 1 - 0.05 / max(1, arms * len(distinct))
    results = []
    for cost, (duels, rivals) in measured.items():
        found = [*general, rivals]
        found += [Gate("tuning", gates.SECOND, f"{why} ({m})", tuning[m].needed) for m, why in untuned.items()]
        standard = Standard(level, gates.tier_of([*general, rivals]))
        results.append(_result(arm, cost, Evidence(tuple(duels)), standard, found))
    return results


def _duels(
    clones: Sequence[str],
    costs: Mapping[Cell, float],
    losses: Mapping[Cell, pd.Series],
    fixed: set[Cell],
    tuning: Mapping[str, Tuning],
) -> list[Duel]:
    """Every clone and size against every rival that has a size of that cost, sizes on both sides, or only cheaper
    ones."""
    duels = []
    used: tuple[Cell, ...]
    for mine, cost in costs.items():
        if mine[0] not in clones:
            continue
        order = losses[mine].index

        def by_seed(cell: Cell, order: pd.Index = order) -> pd.Series:
            """Loss of a rival by the clone's seeds; one that was not trained has no other for another seed."""
            own = losses[cell]
            return pd.Series(float(own.mean()), index=order) if cell in fixed else own.reindex(order)

        for rival in sorted({m for m, _ in costs if m not in clones}):
            cells = sorted((c, cell) for cell, c in costs.items() if cell[0] == rival)
            prices = np.log([c for c, _ in cells])
            x = np.log(cost)
            near = int(np.argmin(np.abs(prices - x)))
            above = int(np.searchsorted(prices, x))
            if abs(prices[near] - x) <= np.log1p(EQUAL) + 1e-9:
                used, how, theirs = (cells[near][1],), "equal", by_seed(cells[near][1])
            elif 0 < above < len(cells):
                a, b = cells[above - 1][1], cells[above][1]
                w = (x - prices[above - 1]) / (prices[above] - prices[above - 1])
                used, how, theirs = (a, b), "interpolated", (1 - w) * by_seed(a) + w * by_seed(b)
            elif above == len(cells):
                used, how, theirs = (cells[-1][1],), "cheaper", by_seed(cells[-1][1])
            else:
                continue  # every size of it costs more
            difference = (losses[mine] - theirs).dropna().to_numpy()
            if len(difference) >= gates.SECOND_TIER_SEEDS:
                own_scan = {mine[0]: tuning[mine[0]].at(mine[1])}
                scans = [{rival: tuning[rival].at(size)} for _, size in used] if rival in tuning else [{}]
                untuned = {name for scan in scans for name in unfair(own_scan | scan)}
                flags = (mine[0] not in untuned, rival not in untuned, not fixed.issuperset(used))
                duels.append(Duel(mine[0], rival, float(cost), difference, how, (mine, *used), *flags))
    return duels


def _result(
    arm: dict[str, Any],
    cost: str,
    evidence: Evidence,
    standard: Standard,
    found: Sequence[Gate],
) -> dict[str, Any]:
    """The entry of the JSON: the duel in which the clone does worst, and all of them."""
    word = decide(evidence, standard)
    unknown: Any = [float("nan"), float("nan")]
    entry: dict[str, Any] = {
        "claimed": 0.0, "margin": ALLOWED, "estimate": float("nan"), "ci90": unknown, "ci95": unknown, "verdict": word,
        "arm": arm, "cost": cost, "tier": standard.tier, "refute_level": standard.refute_level,
        "needed": [dict(run) for g in found for run in g.needed],
        "lacks": "; ".join(g.reason for g in found if g.reason),
    }  # fmt: skip
    label = ", ".join(filter(None, (describe(list(arm), arm.values()), COSTS[cost])))
    parts = [g.reason for g in found if g.reason]
    if evidence.duels:
        # Where it is refuted the duel that refutes, else the largest upper limit among those that count.
        refuting = [d for d in evidence.duels if _refutes(d, standard.refute_level)]
        met = [d for d in evidence.duels if d.how != "cheaper"] or list(evidence.duels)
        worst = max(refuting or met, key=lambda d: round(d.mean if refuting else d.interval(0.95).high, TIE))
        entry |= {
            "estimate": worst.mean,
            "ci90": interval_list(worst.interval(0.90)),
            "ci95": interval_list(worst.interval(0.95)),
            "clone": worst.clone,
            "rival": worst.rival,
            "at": worst.cost,
        }
        low, high = entry["ci95"]
        parts.insert(
            0,
            f"{worst.clone} at {cost} = {worst.cost:g} has {worst.mean:+.4f} nats of loss against {worst.rival} "
            f"({worst.how} cost, 95 % interval {low:+.4f} to {high:+.4f}; {ALLOWED:g} are allowed), the worst of "
            f"{len(met)} comparisons",
        )
        if word == REFUTED and len(refuting) > 1:
            parts.append("also better: " + ", ".join(f"{d.rival} at {d.cost:g}" for d in refuting if d is not worst))
    entry["duels"] = [
        {"clone": d.clone, "rival": d.rival, "at": d.cost, "cost": d.how, "estimate": d.mean,
         "ci95": interval_list(d.interval(0.95)), "seeds": len(d.differences)}
        for d in evidence.duels
    ]  # fmt: skip
    return entry | {"reason": f"{label}: {word}: {'; '.join(parts)}"}


# --- for figures -----------------------------------------------------------------------------------------------------


def _points(frame: pd.DataFrame, cell: Sequence[str]) -> pd.DataFrame:
    """Mean loss by method and size with its 95 % interval over seeds, and the costs."""
    groups = frame.groupby(list(cell), dropna=False)
    points = groups[[c for c in COSTS if c in frame and c not in cell]].median()
    return points.join(mean_points(groups["test_loss"])).reset_index()


CLAIM = Claim(
    name="compression",
    order=7,
    title="At equal inference cost no rival is better than the clone",
    statement="loss of the clone - loss of every rival at the same cost of inference <= .02 nats, at every size",
    symbols={
        "loss": "nats per token on held-out text (column test_loss)",
        "cost": (
            "weight bytes (column weight_bytes), FLOPs per token (flops_per_token), or measured decoding time "
            "(decode_ms_per_token)"
        ),
        "clone": "the low-rank clone (column method: clone, or clone:START)",
        "rival": (
            "every other method: whitened_svd (activation-aware, untrained or trained on the same tokens, with or "
            "without ranks allocated by layer), factorized, scratch, quantised; variants after a colon"
        ),
    },
    assumptions=(
        "trained methods saw the same tokens (column tokens; 0 for methods that were not trained)",
        "each trained method's learning rate is the best of 4 or more on validation text (learning_rate, valid_loss), "
        "not at the edge of those tried, and all methods had as many",
        "costs are those of the model as it is run",
    ),
    columns=("method", "weight_bytes", "seed", "test_loss"),
    measured="test_loss",
    optional=("flops_per_token", "decode_ms_per_token", "tokens", "learning_rate", "valid_loss", *ARMS),
    exponents={},
    bound="none: no theorem compares methods of compression",
    rule=(
        "per measure of cost, differences paired by seed with Student intervals: CONSISTENT if the upper 95 % limit is "
        ".02 nats or less against every rival at every size, REFUTED if the lower limit exceeds .02 against any (95 % "
        "over all sizes and rivals together), else INCONCLUSIVE. A rival between two of whose sizes the clone lies is "
        "interpolated in ln cost; one that is only cheaper can refute, and one that only costs more says nothing. A "
        "method that was not tuned fairly cannot lose by it. One size refutes without the others: it needs three seeds "
        "and the clone's scan of rates there. The worst measure of cost decides"
    ),
    problems=(
        "G12: the abstract compares with full-parameter distillation alone; the question of a user is which "
        "compression to take at a given cost, and at equal cost plain baselines flatter any method",
    ),
    sources=(
        "arXiv 2403.07378 (SVD-LLM: whitening by the input's second moments)",
        "arXiv 2603.22355, abstract (the claim)",
    ),
    judge=judge,
    marks=("method",),
)
