"""Printing verdicts and the ledger to a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from theory.ledger import Claim
from theory.report import Exponent, Report
from theory.verdicts import CONSISTENT, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE

COLOURS = {CONSISTENT: "green", LOOSE: "cyan", REFUTED: "red", INCONCLUSIVE: "yellow", UNTESTABLE: "magenta"}


def console() -> Console:
    """A console on standard output, 120 columns wide where that is not a terminal (so that output is reproducible)."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def grid(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Grid:
    """A table whose cells are plain text."""
    table = Grid(title=title, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def print_report(report: Report, out: Console) -> None:
    """Per claim: the verdict, exponents against the claimed ones, the bound's tightness, and the reasons."""
    out.print(f"{escape(report.path)}: {report.rows} rows, margin {report.margin:g}", soft_wrap=True)
    for name, claim in report.claims.items():
        colour = COLOURS.get(claim.verdict, "white")
        out.print(
            f"\n[bold]{name}[/bold]: [{colour}]{claim.verdict}[/{colour}]  ({claim.cells} cells, {claim.seeds} seeds)"
        )
        for quantity, exponent in claim.exponents.items():
            out.print("  " + escape(_exponent_line(quantity, exponent)), soft_wrap=True)
        for key, label in (("ceiling_ratio", "I/I* at the best weight"), ("divergence_ratio", "D/D_0")):
            if key in claim.fields:
                field = claim.fields[key]
                low, high = field["ci95"]
                out.print(
                    f"  {label} {number(field['estimate'])}, 95 % interval {number(low)} to {number(high)}: "
                    f"{field['verdict']}",
                    soft_wrap=True,
                )
        ratio = claim.bound.worst_ratio
        tightness = f", largest LHS/RHS {ratio:.3g}" if math.isfinite(ratio) else ""
        out.print(f"  bound: {claim.bound.verdict}{tightness}")
        for reason in claim.reasons:
            out.print(f"  - {escape(reason)}", soft_wrap=True)


def _exponent_line(quantity: str, exponent: Exponent) -> str:
    if not math.isfinite(exponent.estimate):
        return f"{quantity}: claimed {exponent.claimed:g}, not estimable: {exponent.verdict}"
    return (
        f"{quantity}: estimate {exponent.estimate:.3f}, 95 % interval {number(exponent.ci95.low)} to "
        f"{number(exponent.ci95.high)}, "
        f"claimed {exponent.claimed:g}: {exponent.verdict} (as an equality: {exponent.rate})"
    )


def print_claims(claims: Iterable[Claim], out: Console) -> None:
    """The ledger: statement, symbols, assumptions, columns, rule, problems, sources."""
    for claim in claims:
        out.print(f"\n[bold]{claim.name}[/bold]: {escape(claim.title)}", soft_wrap=True)
        out.print(f"  statement    {escape(claim.statement)}", soft_wrap=True)
        for symbol, meaning in claim.symbols.items():
            out.print(f"    {escape(symbol)}: {escape(meaning)}", soft_wrap=True)
        for label, lines in (
            ("assumptions", claim.assumptions),
            ("problems", claim.problems),
            ("sources", claim.sources),
        ):
            out.print(f"  {label}", soft_wrap=True)
            for line in lines:
                out.print(f"    - {escape(line)}", soft_wrap=True)
        optional = ", ".join(claim.optional) or "none"
        out.print(f"  columns      {', '.join(claim.columns)} (used if present: {optional})", soft_wrap=True)
        out.print(f"  claimed      {', '.join(f'{k}: {v:g}' for k, v in claim.exponents.items()) or 'no exponent'}")
        out.print(f"  bound        {escape(claim.bound)}", soft_wrap=True)
        out.print(f"  rule         {escape(claim.rule)}", soft_wrap=True)
