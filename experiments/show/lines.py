"""Verdicts line by line: one measured quantity of a claim, with its own verdict and what a reader has to know of it.

The table in README, the report page, the table of arms and the forest all show these lines, so that they cannot differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from theory.claims.compression import ALLOWED
from theory.claims.dynamics import PRESERVED
from theory.claims.efficiency import DRASTIC, SIMILAR
from theory.claims.information import REACHES
from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, MEANING, REFUTED, UNTESTABLE
from theory.report import Report, to_json
from theory.show.axes import interval_words
from theory.show.palette import LETTER, QUANTITY, RATIOS

UNDECIDED = (INCONCLUSIVE, UNTESTABLE)
#: A verdict within a sentence.
OUTCOME = {
    REFUTED: "worse than claimed",
    LOOSE: "better than claimed",
    HOLDS: "not worse than claimed",
    CONSISTENT: "as claimed",
    INCONCLUSIVE: "undecided",
    UNTESTABLE: "not testable with these runs",
}
BOUND = {"HOLDS": "bound holds", "VIOLATED": "bound violated", "INCONCLUSIVE": "bound undecided",
         "VACUOUS": "bound vacuous"}  # fmt: skip
CAUSE = {
    "premise": "the theorem's premise fails, not the theorem: L and σ² grow with T",
    "rate": "slower than the bound with measured constants",
    "unclear": "cause unclear",
}


@dataclass(frozen=True)
class Line:
    """One quantity of a claim.

    Attributes:
      claim, quantity: names, the latter a key of `theory.show.palette.QUANTITY`. verdict: of this quantity alone.
      estimate, low, high: measured value with its 95 % interval; NaN where it is not known.
      claimed: as a number; target: in words. band: values that count as claimed.
      second: a second estimate that the verdict rests on (what it is, value, low, high): the upper half of a bent
        range, or the exponent corrected for the finite matrix.
      missing: why an undecided line is undecided, in a few words. remarks: what else belongs to it.
      of_claim: what belongs to the claim as a whole; the claim's last line has it.
    """

    claim: str
    quantity: str
    verdict: str
    estimate: float
    low: float
    high: float
    claimed: float
    target: str
    band: tuple[float, float]
    second: tuple[str, float, float, float] | None = None
    missing: str = ""
    remarks: tuple[str, ...] = ()
    of_claim: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return QUANTITY.get(self.quantity, self.quantity)

    @property
    def measured(self) -> str:
        return interval_words(self.estimate, self.low, self.high)

    @property
    def note(self) -> str:
        return "; ".join(filter(None, (self.missing, *self.remarks, *self.of_claim)))


def claims_of(report: Report) -> dict[str, Any]:
    """The claims of a report as its JSON has them, rounding included."""
    found: dict[str, Any] = json.loads(to_json(report.to_dict()))["claims"]
    return found


def lines_of(claims: Mapping[str, Any], margin: float) -> list[Line]:
    """The lines of a verdict's JSON, claim by claim."""
    return [line for name, claim in claims.items() for line in _lines(name, claim, margin)]


def _lines(name: str, claim: Mapping[str, Any], margin: float) -> list[Line]:
    shared = []
    if claim.get("cause") is not None:
        shared.append(CAUSE[claim["cause"]])
    bound, ratio = claim["bound"]["verdict"], claim["bound"]["worst_ratio"]
    if bound in BOUND:
        largest = "" if ratio is None else f" (largest measured value: {100 * ratio:.0f} % of the bound)"
        shared.append(BOUND[bound] + largest)
    quantities = list(claim["exponents"].items())
    quantities += [(key, claim[key]) for key in RATIOS if claim.get(key) is not None]
    lines = []
    for k, (quantity, found) in enumerate(quantities):
        target, band = _claimed(quantity, found["claimed"], margin)
        low, high = map(_number, found["ci95"])
        lines.append(
            Line(
                name, quantity, found["verdict"], _number(found["estimate"]), low, high, found["claimed"], target, band,
                _second(found),
                _missing(name, claim, quantity, found, margin) if found["verdict"] in UNDECIDED else "",
                _remarks(found), tuple(shared) if k == len(quantities) - 1 else (),
            )
        )  # fmt: skip
    return lines


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _claimed(quantity: str, claimed: float, margin: float) -> tuple[str, tuple[float, float]]:
    """What is claimed in words, and the values that count as that."""
    known = {
        "clone_weight": ("rising", (0.0, 1.0)),
        "ceiling_ratio": (f"at least {REACHES:g}", (REACHES, 1.0)),
        "divergence_ratio": (f"at most {PRESERVED:g}", (0.0, PRESERVED)),
        "budget_factor": (f"at least {DRASTIC:g}", (DRASTIC, math.inf)),
        "rival_difference": (f"at most {ALLOWED:g}", (-math.inf, ALLOWED)),
    }
    return known.get(quantity, (f"{claimed:g}", (claimed - margin, claimed + margin)))


def _second(found: Mapping[str, Any]) -> tuple[str, float, float, float] | None:
    name = "corrected" if "corrected" in found else "top" if found.get("bent") else ""
    if not name or found[name]["estimate"] is None:
        return None
    low, high = found[name]["ci95"]
    what = "corrected for the finite matrix" if name == "corrected" else "upper half of the range"
    return what, _number(found[name]["estimate"]), _number(low), _number(high)


def _remarks(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Of one quantity: where it bends, what the correction makes of it, rules that were weaker, and the difference in
    loss where there are too few budgets to read F from."""
    remarks = []
    if found.get("performance") and not found["targets"]:
        difference = interval_words(found["performance"]["estimate"], *found["performance"]["ci95"])
        remarks.append(f"loss at equal tokens, clone - direct: {difference}, at most {SIMILAR:g}")
    if found["verdict"] != UNTESTABLE and found.get("bent"):
        halves = [interval_words(found[part]["estimate"], *found[part]["ci95"]) for part in ("low", "top")]
        remarks.append(f"bent: {halves[0]} in the lower half, {halves[1]} in the upper")
    if found.get("corrected", {}).get("estimate") is not None:
        corrected = interval_words(found["corrected"]["estimate"], *found["corrected"]["ci95"])
        remarks.append(f"corrected for the finite matrix: {corrected}")
    if found.get("tier") == 2:
        remarks.append("weaker design: second tier of the rules")
    return tuple(remarks)


def _missing(name: str, claim: Mapping[str, Any], quantity: str, found: Mapping[str, Any], margin: float) -> str:
    """What an undecided quantity lacks, in a few words: the missing runs, else the first clause of the reason."""
    if quantity in ("budget_factor", "rival_difference"):
        return str(found["lacks"]).partition(": ")[0] or MEANING[INCONCLUSIVE]
    if quantity == "divergence_ratio":  # its reason ends with what decided, or did not
        return str(claim["reasons"][0]).rpartition("; ")[2].partition(": ")[0]
    if found["verdict"] == UNTESTABLE:
        reason = _reason(claim["reasons"], quantity, " untestable: ")
        runs = _needed(claim.get("needed") or [], quantity)
        # The runs that would show an optimum depend on where it turns out to be: there the reason says more.
        use_runs = runs and "needed" in reason and name != "optimal_rank"
        return runs if use_runs else _clause(reason) or OUTCOME[UNTESTABLE]
    limit = found["claimed"] + margin
    if found.get("n_dagger") is not None:
        reach = found["reach"]["estimate"]
        if reach > limit:
            return f"flattens: a plateau would slow it to {round(reach, 2) + 0.0:.2f} over the next half-decade"
        where = f"{LETTER.get(quantity, quantity)} = {_round(found['n_dagger'])}"
        return f"flattens: a plateau would slow it to {limit:g} at {where}"
    confounded = _clause(_reason(claim["reasons"], quantity, " is confounded with "))
    return f"confounded with {confounded}" if confounded else MEANING[INCONCLUSIVE]


def _needed(runs: list[dict[str, float]], quantity: str) -> str:
    """The missing runs of one coordinate: its own values, and seeds for every cell."""
    values = [run[quantity] for run in runs if quantity in run and len(run) <= 2]
    parts = [f"{LETTER.get(quantity, quantity)} = {', '.join(f'{v:,.10g}' for v in sorted(values))}"] if values else []
    parts += [f"{run['seeds']:g} more seeds per cell" for run in runs if set(run) == {"seeds"}]
    return f"needs {'; '.join(parts)}" if parts else ""


def _reason(reasons: list[str], quantity: str, mark: str) -> str:
    """What the judge says about a quantity behind the mark; quantities of a site are named by the site."""
    for reason in reasons:
        names, found, text = reason.partition(mark)
        if found and (quantity in names.split(" and ") or quantity in ("clone_weight", "ceiling_ratio")):
            return text
    return ""


def _clause(reason: str) -> str:
    """The first clause of a sentence."""
    return reason.partition(": ")[0].partition("; ")[0].partition(", which ")[0]


def _round(value: float) -> str:
    """Three digits, with thousands separated."""
    return f"{float(f'{value:.3g}'):,.10g}"
