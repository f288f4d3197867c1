"""The ledger of claims: each claim of the abstract as one declared object.

A claim lives in one file of `theory/claims/` that defines `CLAIM`; nothing else has to be edited to add another.
The command `theory claims`, the report and the documentation are generated from these objects.

Letters: N is the number of samples, T the number of optimiser steps, r the rank; matrix shapes are d_in and d_out and
never share a letter with N.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from theory.report import ClaimReport
from theory.tables import Table


@dataclass(frozen=True)
class Claim:
    """A claim, what would decide it, and the function that judges it.

    Attributes:
        name: the name used on the command line and in the JSON; order: position in listings.
        statement: the claim as tested, every symbol of which is in `symbols`.
        assumptions: what has to hold for the statement to be a theorem.
        columns: required columns of the measurement table; `measured` is the one that marks a row as the claim's.
        optional: columns used where present.
        exponents: quantity -> claimed exponent; bound: the inequality with explicit constants, or why there is none.
        rule: how the verdict is reached; problems: what is wrong with the wording; sources: where statements come from.
        judge: (table, margin) -> ClaimReport.
        marks: columns any of which says that a table is meant for this claim; empty for all of `columns` but the seed.
    """

    name: str
    order: int
    title: str
    statement: str
    symbols: Mapping[str, str]
    assumptions: tuple[str, ...]
    columns: tuple[str, ...]
    measured: str
    optional: tuple[str, ...]
    exponents: Mapping[str, float]
    bound: str
    rule: str
    problems: tuple[str, ...]
    sources: tuple[str, ...]
    judge: Callable[[Table, float], ClaimReport]
    marks: tuple[str, ...] = ()


def all_claims() -> dict[str, Claim]:
    """Every claim found in `theory.claims`, in order."""
    package = importlib.import_module("theory.claims")
    modules = [importlib.import_module(f"theory.claims.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    claims = sorted((m.CLAIM for m in modules), key=lambda c: (c.order, c.name))
    return {c.name: c for c in claims}
