"""Looking at a growing table several times without erring more often than by looking once.

A table that is looked at, enlarged and looked at again is tested at every look. How many looks there may be is said
beforehand, and by which function of the share of looks made the error is spent over them (Lan & DeMets 1983). A look
may err with what that function grows by at it, relative to the error of one look: every interval of the judge is
widened to it (`intervals.spending`).

The errors of all looks then add up to that of one look at most, however the looks depend on each other. The boundaries
of group-sequential designs, which are less strict, hold for looks whose information was planned; here each look's
results choose the runs of the next one.

A look that no other follows spends what is left (`Looks.rest`). On every path the errors still add up to that of one
look; since the results say which look is the last, that is no proof for all paths together, and it is checked by
simulation (tests/tools/follow_next.py --at-margin).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy import special

from theory.errors import OptionError
from theory.judge.check import check
from theory.judge.intervals import spending
from theory.judge.verdicts import DECIDED, HOLDS, INCONCLUSIVE, MARGIN, REFUTED
from theory.report import Report
from theory.tables import InputError, Table

ERROR = 0.05  # of one look, two-sided
LOOKS, RULE = 4, "pocock"


def _pocock(t: float) -> float:
    """About the same level at every look."""
    return ERROR * math.log1p((math.e - 1) * t)


def _obrien_fleming(t: float) -> float:
    """Next to nothing at the first looks, and most at the last."""
    return float(2 * special.ndtr(special.ndtri(ERROR / 2) / math.sqrt(t))) if t > 0 else 0.0


#: Error spent when a share t of the looks has been made, 0 <= t <= 1 (Lan & DeMets 1983, Biometrika 70, section 3).
RULES: Mapping[str, Callable[[float], float]] = {"pocock": _pocock, "obrien_fleming": _obrien_fleming}


@dataclass(frozen=True)
class Looks:
    """What is declared before the first look.

    Attributes:
        planned: the most looks. rule: of `RULES`.
    """

    planned: int = LOOKS
    rule: str = RULE

    def __post_init__(self) -> None:
        if self.planned < 1:
            raise OptionError("looks", f"{self.planned}: must be at least 1")
        if self.rule not in RULES:
            raise OptionError("spending", f"{self.rule}: no such rule; choose from {', '.join(RULES)}")

    def share(self, look: int) -> float:
        """The share of one look's error that look number 1, 2, ... may spend; the shares add up to 1."""
        if not 1 <= look <= self.planned:
            raise ValueError(f"look {look} of {self.planned}")
        spent = RULES[self.rule]
        return (spent(look / self.planned) - spent((look - 1) / self.planned)) / ERROR

    def rest(self, look: int) -> float:
        """The share that look number `look` may spend where no other follows it, whatever was planned."""
        return sum(self.share(k) for k in range(look, self.planned + 1))


def level(share: float) -> float:
    """The level of a look's intervals that are 95 % intervals where one look is made."""
    return 1 - ERROR * share


def look(table: Table, claim: str, share: float, margin: float = MARGIN) -> tuple[str, Report]:
    """Judge a claim at the level of one look.

    Args:
        table: the measurements (`Table.known`). share: of the error, see `Looks.share`.

    Returns:
        The look's word, and the table judged with the look's intervals: its `ci95` are intervals of `level(share)`.

    Raises:
        InputError: the table cannot be judged.
    """
    usual = check(table, claims=[claim], margin=margin)
    if claim not in usual.claims:
        raise InputError(f"{table.path}: {usual.remarks[-1]}")
    with spending(share):
        strict = check(table, claims=[claim], margin=margin)
    return agreed(strict[claim].verdict, usual[claim].verdict), strict


def agreed(strict: str, usual: str) -> str:
    """The word of a look: never more than what `theory check` says of the same table.

    Wider intervals do not only make rules harder to satisfy: some rules ask that an interval does *not* exclude a
    value, and those they make easier.
    """
    if usual not in DECIDED:
        return usual
    if strict not in DECIDED or strict == usual:
        return strict
    return INCONCLUSIVE if REFUTED in (strict, usual) else HOLDS
