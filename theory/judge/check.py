"""Judging a table against the claims: the entry points behind `theory check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from theory.errors import OptionError
from theory.judge.ledger import Claim, all_claims
from theory.judge.verdicts import MARGIN
from theory.report import Report
from theory.tables import InputError, Table, load_table, primary_frame, primary_rows, table_from_frame

#: The column of every claim: it speaks for none.
SHARED = "seed"


def check_file(
    path: str | Path,
    *,
    claims: Sequence[str] = (),
    margin: float = MARGIN,
    columns: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    scale: Sequence[str] = (),
) -> Report:
    """Judge a file or study folder.

    Args:
        claims: names of claims; empty for every claim whose columns are present.
        margin: exponents closer than this to the claimed one count as equal.
        columns, where: new names and conditions that select rows, see `load_table`.
        scale: `column=factor` changes: an error planted on purpose, to see that the judge notices.

    Raises:
        InputError: the input cannot be used.
    """
    table = load_table(path, columns=columns, where=where).known().scaled(scale)
    report = check(table, claims=claims, margin=margin)
    planted = tuple(f"column changed on request, this judges no measurement: {item}" for item in scale)
    return dataclasses.replace(report, remarks=(*planted, *report.remarks))


def check_table(frame: pd.DataFrame, *, claims: Sequence[str] = (), margin: float = MARGIN) -> Report:
    """Judge a data frame; the same as `check_file`, for figures and simulations."""
    return check(table_from_frame(frame), claims=claims, margin=margin)


def check(table: Table, *, claims: Sequence[str] = (), margin: float = MARGIN) -> Report:
    """Judge a table whose columns are known (`Table.known`). See `check_file`."""
    if not 0.0 < margin < 0.5:
        raise OptionError("margin", f"{margin:g}: must lie between 0 and 0.5")
    remarks = table.remarks
    table, arms = primary_rows(table)
    selected, skipped = _select(table, claims)
    # Numbers beyond floating point become NaN or infinite and end in UNTESTABLE or INCONCLUSIVE, never in a warning.
    with np.errstate(all="ignore"):
        reports = {claim.name: claim.judge(table, margin) for claim in selected}
    remarks = (*remarks, *arms, *skipped)
    return Report(table.path, table.sha256, len(table.frame), margin, reports, remarks, table.frame)


def rows_of(name: str, frame: pd.DataFrame, *, arms: bool = False) -> pd.DataFrame:
    """The rows that speak about a claim: of its primary design, with `arms` of its controls too."""
    measured = all_claims()[name].measured
    if "claim" in frame:
        mine = frame["claim"] == name
        frame = frame[mine | (frame["claim"].isna() & (frame["arm"].isna() if "arm" in frame else True))]
    frame = frame if arms else primary_frame(frame)
    return frame[frame[measured].notna()] if measured in frame else frame.iloc[:0]


def _select(table: Table, names: Sequence[str]) -> tuple[list[Claim], list[str]]:
    """The claims to judge, and sentences on those whose measurement is there but a column is missing."""
    ledger = all_claims()
    unknown = [n for n in names if n not in ledger]
    if unknown:
        raise OptionError("claim", f"{unknown[0]}: no such claim; choose from {', '.join(ledger)}")
    candidates = [c for c in ledger.values() if not names or c.name in names]
    if "claim" in table.frame:
        marked = set(table.frame["claim"].dropna().astype(str))
        unmarked = bool(table.frame["claim"].isna().any())
        candidates = [c for c in candidates if unmarked or c.name in marked]
        if not candidates:
            raise InputError(
                f"{table.path}: column claim names {', '.join(sorted(marked)[:5])} and none of the claims selected; "
                f"use {', '.join(ledger)} or leave it empty"
            )
    missing = {c.name: _missing(table, c) for c in candidates}
    usable = [c for c in candidates if not missing[c.name]]
    if not usable:
        needs = "; ".join(f"{name} lacks {table.lacking(columns)}" for name, columns in missing.items())
        advice = "add or rename these columns, or test a claim about others with theory test"
        raise InputError(f"{table.path}: no claim can be judged: {needs}; {advice}")
    partly = [
        f"{c.name} is not judged: it lacks {table.lacking(missing[c.name])}"
        for c in candidates
        if missing[c.name] and (names or _is_partly_there(table, c, missing[c.name]))
    ]
    return usable, partly


def _is_partly_there(table: Table, claim: Claim, missing: Sequence[str]) -> bool:
    """Is any column of a claim there, or one that is similar? `seed` is a column of every table."""
    own = claim.marks or [c for c in claim.columns if c != SHARED]
    return any(c not in missing for c in own) or any(table.names.similar(c) for c in own)


def _missing(table: Table, claim: Claim) -> list[str]:
    """Columns that the claim lacks among the rows that may speak about it."""
    if "claim" in table.frame:
        mark = table.frame["claim"]
        table = dataclasses.replace(table, frame=table.frame[mark.isna() | (mark.astype(str) == claim.name)])
    return table.missing(claim.columns)
