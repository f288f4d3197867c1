"""Claim 4: activation cloning maximises the mutual information between teacher and student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from theory.judge import gates
from theory.judge.cells import mean_points
from theory.judge.intervals import Interval, generator, mean_interval
from theory.judge.ledger import Claim
from theory.judge.verdicts import (
    CONSISTENT,
    HOLDS,
    INCONCLUSIVE,
    PRECEDENCE,
    REFUTED,
    UNTESTABLE,
    VIOLATED,
)
from theory.report import Bound, ClaimReport, Exponent, interval_list
from theory.tables import Table, claim_rows, describe, longest_training, resolve_duplicates

CLAIMED = 1.0
REACHES = 0.95  # "maximises" is supported if the lower limit of I/I* reaches this
FAILS = 0.90  # and refuted if the upper limit stays below this
TREND_LEVEL = 0.01
PERMUTATIONS = 20_000
PERMUTED_SEEDS = 50  # up to here the trend is tested by permutation, beyond by its normal limit
MIN_WEIGHTS = 3


@dataclass(frozen=True)
class SiteResult:
    """One layer site: Spearman's rho of I against lambda by seed, its p values, and I/I* at the best lambda."""

    site: str
    spearman: np.ndarray
    p_rising: float
    p_falling: float
    best_weight: float
    ratio: float
    ratio90: Interval
    ratio95: Interval
    ceiling_violated: bool
    floor_violated: bool
    worst_bound_ratio: float
    gate: str
    verdict: str

    @property
    def bound(self) -> str:
        if self.ceiling_violated or self.floor_violated:
            return VIOLATED
        return HOLDS if self.ratio95.high <= 1.0 else INCONCLUSIVE


def trend_test(spearman: np.ndarray, ranks: list[np.ndarray]) -> tuple[float, float]:
    """One-sided p values (rising, falling) of the mean of Spearman's rho over seeds.

    Under the null the order of lambda is random within each seed, independently. Up to 50 seeds by permutation
    (add-one p value), beyond by the normal limit with the exact variance 1/(k-1) per seed.

    Args:
        spearman: [S] observed. ranks: per seed the (mid)ranks of I by increasing lambda.
    """
    observed = float(spearman.mean())
    if len(spearman) > PERMUTED_SEEDS:
        variance = np.sum([1.0 / (len(r) - 1) for r in ranks]) / len(ranks) ** 2
        z = observed / np.sqrt(variance)
        return float(special.ndtr(-z)), float(special.ndtr(z))
    rng = generator(4)
    null = np.zeros(PERMUTATIONS)
    for r in ranks:
        order = np.argsort(rng.random((PERMUTATIONS, len(r))), axis=1)
        null += _correlation(r[order], np.arange(len(r)))
    null /= len(ranks)
    return tuple(
        float((1 + np.sum(tail)) / (1 + PERMUTATIONS)) for tail in (null >= observed - 1e-12, null <= observed + 1e-12)
    )  # type: ignore[return-value]


def _correlation(ranks: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[...] Pearson correlation of ranks with increasing positions; 0 where all ranks are equal."""
    a = ranks - ranks.mean(axis=-1, keepdims=True)
    b = position - position.mean()
    norm = np.sqrt(np.sum(a * a, axis=-1) * np.sum(b * b))
    return np.divide(np.sum(a * b, axis=-1), norm, out=np.zeros(np.shape(norm)), where=norm > 0)


def judge_site(site: str, frame: pd.DataFrame, sites: int = 1) -> SiteResult:
    """Judge one site: trend over lambda, and I/I* at the lambda with the largest mean ratio.

    A bound is violated at the level .05 over the number of intervals that could say so: of this claim's `sites`, and
    of all lambda among which the largest mean was picked. Without that the largest of many noisy means would refute a
    claim that is exactly true.
    """
    frame = frame.assign(ratio=frame["mutual_information"] / frame["mi_ceiling"])
    by_run = frame.groupby(["seed", "clone_weight"])[["mutual_information", "ratio"]].mean()
    information = by_run["mutual_information"].unstack()
    ranks = [
        pd.Series(row[np.isfinite(row)]).rank().to_numpy()
        for row in information.to_numpy(dtype=np.float64)
        if np.isfinite(row).sum() >= MIN_WEIGHTS
    ]
    ratios = by_run["ratio"].unstack()
    position = int(np.nanargmax(ratios.mean().to_numpy()))
    best = ratios.columns.to_numpy(dtype=np.float64)[position]
    at_best = ratios.iloc[:, position].dropna().to_numpy()
    weights, seeds = information.shape[1], len(at_best)
    failed = [g.reason for g in (gates.levels_gate("clone_weight", information.columns.to_numpy(), MIN_WEIGHTS),
                                 gates.seeds_gate(np.array([seeds]))) if g.tier != gates.FIRST]  # fmt: skip
    if weights >= MIN_WEIGHTS and not ranks:
        failed.append(f"no seed was run at {MIN_WEIGHTS} clone weights: repeat each seed over all of them")
    spearman = np.array([_correlation(r, np.arange(len(r))) for r in ranks], dtype=np.float64)
    rising, falling = trend_test(spearman, ranks) if ranks else (1.0, 1.0)
    ci90, ci95 = mean_interval(at_best, 0.90), mean_interval(at_best, 0.95)
    strict = 1 - 0.05 / (sites * weights)
    floor_violated, floor_ratio = _floor(frame, strict)
    verdict = INCONCLUSIVE
    if failed:
        verdict = UNTESTABLE
    elif ci95.high < FAILS or falling < TREND_LEVEL:
        verdict = REFUTED
    elif ci95.low >= REACHES and rising < TREND_LEVEL:
        verdict = CONSISTENT
    return SiteResult(
        site, spearman, rising, falling, float(best), float(at_best.mean()), ci90, ci95,
        mean_interval(at_best, strict).low > 1.0, floor_violated,
        max(float(at_best.mean()), floor_ratio), "; ".join(failed), verdict,
    )  # fmt: skip


def _floor(frame: pd.DataFrame, level: float) -> tuple[bool, float]:
    """Whether I lies below its proven lower bound at some lambda (interval over seeds), and the worst floor/I."""
    if "mi_floor" not in frame or frame["mi_floor"].isna().all():
        return False, 0.0
    rows = frame.dropna(subset=["mi_floor"])
    runs = rows.groupby(["clone_weight", "seed"])[["mutual_information", "mi_floor"]].mean()
    excess = (runs["mutual_information"] - runs["mi_floor"]).unstack().to_numpy(dtype=np.float64)
    violated = any(mean_interval(row[np.isfinite(row)], level).high < 0 for row in excess)
    means = runs.groupby(level=0).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (means["mi_floor"] / means["mutual_information"]).to_numpy(dtype=np.float64)
    return violated, float(np.nanmax(np.where(np.isfinite(ratio), ratio, 0.0)))


def judge(table: Table, margin: float) -> ClaimReport:
    """Judge the ordering of I in lambda and the ratio I/I*, per site; the worst site decides. The margin is not used.

    Raises:
        InputError: unusable rows (see `theory.tables`).
    """
    frame, remarks = claim_rows(table, CLAIM.name, CLAIM.columns, CLAIM.measured, CLAIM.optional)
    run = [c for c in ("site", "rank", "samples", "clone_weight", "seed") if c in frame]
    frame, shortened = longest_training(frame, run)  # the claim is about the end of a training
    remarks += shortened
    arms = [c for c in ("site", "rank", "samples", "steps") if c in frame and frame[c].notna().any()]
    key = [*arms, "clone_weight", "seed"]
    frame, _ = resolve_duplicates(frame, table.path, CLAIM.name, key, ["mutual_information", "mi_ceiling"], [])
    varying = [c for c in arms if frame[c].nunique(dropna=False) > 1]
    if varying:
        points = frame.groupby(varying, dropna=False)
        groups = [(describe(varying, point), rows) for point, rows in points]
    else:
        groups = [(f"site={frame['site'].iloc[0]}" if "site" in arms else "all rows", frame)]
    sites = [judge_site(name, rows, len(groups)) for name, rows in groups]
    sites = sorted(sites, key=lambda s: (PRECEDENCE.index(s.verdict), s.ratio))  # the reason that decides comes first
    worst = sites[0]
    bounds = [s.bound for s in sites]
    bound = next(word for word in (VIOLATED, INCONCLUSIVE, HOLDS) if word in bounds)
    ci90, ci95 = mean_interval(worst.spearman, 0.90), mean_interval(worst.spearman, 0.95)
    mean_rho = float(worst.spearman.mean()) if len(worst.spearman) else float("nan")
    trend = Exponent(
        CLAIMED, mean_rho, ci90, ci95, _trend_verdict(worst), _trend_verdict(worst),
        {"site": worst.site, "p_rising": worst.p_rising, "p_falling": worst.p_falling},
    )  # fmt: skip
    verdict = REFUTED if bound == VIOLATED else worst.verdict
    return ClaimReport(
        CLAIM.name,
        verdict,
        (*_reasons(sites), *remarks),
        {"clone_weight": trend},
        Bound(bound, max(s.worst_bound_ratio for s in sites)),
        int(frame.groupby([*varying, "clone_weight"], dropna=False).ngroups),
        int(frame["seed"].nunique()),
        {"ceiling_ratio": _ratio_field(worst), "sites": [_site_field(s) for s in sites]},
        _points(frame, varying),
    )


def _trend_verdict(site: SiteResult) -> str:
    if site.gate:
        return UNTESTABLE
    if site.p_falling < TREND_LEVEL:
        return REFUTED
    return CONSISTENT if site.p_rising < TREND_LEVEL else INCONCLUSIVE


def _ratio_verdict(site: SiteResult) -> str:
    if site.gate:
        return UNTESTABLE
    if site.ratio95.high < FAILS:
        return REFUTED
    return CONSISTENT if site.ratio95.low >= REACHES else INCONCLUSIVE


def _ratio_field(site: SiteResult) -> dict[str, Any]:
    return {
        "claimed": 1.0,
        "estimate": site.ratio,
        "ci90": interval_list(site.ratio90),
        "ci95": interval_list(site.ratio95),
        "verdict": _ratio_verdict(site),
        "site": site.site,
        "clone_weight": site.best_weight,
    }


def _site_field(site: SiteResult) -> dict[str, Any]:
    mean_rho = float(site.spearman.mean()) if len(site.spearman) else float("nan")
    return {**_ratio_field(site), "verdict": site.verdict, "trend": mean_rho, "p_rising": site.p_rising}


def _reasons(sites: list[SiteResult]) -> list[str]:
    reasons = []
    for s in sorted(sites, key=lambda s: PRECEDENCE.index(s.verdict)):
        if s.gate:
            reasons.append(f"{s.site}: untestable: {s.gate}")
            continue
        direction = (
            "rises" if s.p_rising < TREND_LEVEL else "falls" if s.p_falling < TREND_LEVEL else "has no clear trend"
        )
        reasons.append(
            f"{s.site}: {s.verdict}: I {direction} with lambda (mean Spearman {s.spearman.mean():+.2f}, one-sided p "
            f"{min(s.p_rising, s.p_falling):.2g}); I/I* = {s.ratio:.3f} at lambda = {s.best_weight:g}, 95 % interval "
            f"{s.ratio95.low:.3f} to {s.ratio95.high:.3f} (maximised needs a lower limit of {REACHES:g}, refuted "
            f"below {FAILS:g})"
        )
        if s.ceiling_violated:
            reasons.append(f"{s.site}: I exceeds the best possible I*: the estimator or the ceiling is wrong")
        if s.floor_violated:
            reasons.append(f"{s.site}: I lies below its proven lower bound: the estimator or the bound is wrong")
    return reasons


def _points(frame: pd.DataFrame, varying: list[str]) -> pd.DataFrame:
    """Mean I/I* with 95 % t interval by site and lambda."""
    by_run = frame.assign(ratio=frame["mutual_information"] / frame["mi_ceiling"])
    groups = by_run.groupby([*varying, "clone_weight"], dropna=False)
    points = groups[["mutual_information", "mi_ceiling"]].mean()
    return points.join(mean_points(groups["ratio"])).reset_index()


CLAIM = Claim(
    name="information",
    order=4,
    title="Activation cloning maximises mutual information",
    statement=(
        "I(H_t; H_s + tau n) rises with the clone weight lambda and reaches I*, the best any rank-r map of H_t attains"
    ),
    symbols={
        "H_t, H_s": "teacher and student activations at one layer site (column site)",
        "tau n": "Gaussian noise of fixed size on student activations of unit power (else I is infinite or constant)",
        "I": "noise-smoothed mutual information in nats (column mutual_information)",
        "I*": (
            "(r/2) ln(1 + 1/tau^2), the most that r activations of unit power can carry (column mi_ceiling); the "
            "formula of the top r principal components, (1/2) sum_{k<=r} ln(1 + lambda_k/tau^2), is mi_pca_reference"
        ),
        "lambda": "weight of the clone loss (column clone_weight)",
        "r": "rank of the student's bottleneck",
    },
    assumptions=(
        "activations are close to Gaussian, or the estimator is a proven lower bound (column mi_floor)",
        "every row is the end of a training run whose loss has plateaued",
    ),
    columns=("clone_weight", "seed", "mutual_information", "mi_ceiling"),
    measured="mutual_information",
    optional=("rank", "samples", "steps"),
    exponents={"clone_weight": CLAIMED},
    bound=(
        "mi_floor <= I <= I*; violated only if the interval of I/I* lies above 1 (or of I below its floor) at the "
        "level .05 over the number of sites and lambda"
    ),
    rule=(
        "per site, the worst site decides: CONSISTENT if I rises with lambda (mean over seeds of Spearman's rho, "
        "one-sided "
        "p < .01) and the 95 % interval of I/I* at the best lambda starts at .95 or more; REFUTED if that interval "
        "ends below .9 "
        "or I falls with lambda; else INCONCLUSIVE. 5 seeds and 3 clone weights are needed; LOOSE is not used"
    ),
    problems=(
        "G9: minimising the clone error maximises a lower bound on I, not I: errors of variance (.80, .02) -> "
        "(.40, .40) lower the "
        "squared error while I falls from 2.07 to .92 nats; between deterministic networks I is infinite or "
        "constant; a "
        "projection trained on both sides of the loss lets the error vanish by shrinking",
    ),
    sources=(
        "Barber & Agakov 2003 (variational lower bound)",
        "Goldfeld et al. 2019, arXiv 1810.05728 (noise smoothing)",
        "McAllester & Stratos 2020, arXiv 1811.04251 (limits of estimation)",
        "arXiv 2603.22355, abstract (the claim)",
    ),
    judge=judge,
)
