"""Printing verdicts and the ledger to a terminal."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from theory.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, MEANING, NOT_EVALUATED, REFUTED, UNTESTABLE

if TYPE_CHECKING:  # they bring SciPy, and commands that only print a table start without it
    from theory.advise import Advice
    from theory.fit import FitResult
    from theory.ledger import Claim
    from theory.plan import Plan
    from theory.report import Exponent, Report
    from theory.validate import Validation

COLOURS = {
    CONSISTENT: "green", LOOSE: "cyan", HOLDS: "blue", REFUTED: "red", INCONCLUSIVE: "yellow", UNTESTABLE: "magenta",
}  # fmt: skip


def console(width: int = 160) -> Console:
    """A console on standard output, so many columns wide where that is no terminal (so that output is reproducible)."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def grid(title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Grid:
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
    for remark in report.remarks:
        out.print(f"  {escape(remark)}", soft_wrap=True)
    for name, claim in report.claims.items():
        colour = COLOURS.get(claim.verdict, "white")
        out.print(
            f"\n[bold]{name}[/bold]: [{colour}]{claim.verdict}[/{colour}], {MEANING[claim.verdict]}  "
            f"({claim.cells} cells, {claim.seeds} seeds)",
            soft_wrap=True,
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
        tightness = f", largest measured/bound {ratio:.3g}" if math.isfinite(ratio) else ""
        if (run := claim.bound.details.get("worst_run")) is not None:
            tightness += (
                f" (a horizon's mean), {run['ratio']:.3g} (one run: T = {run['steps']:g}, seed {run['seed']:g})"
            )
        if claim.bound.verdict != NOT_EVALUATED:
            out.print(f"  bound: {claim.bound.verdict}{tightness}")
        for reason in claim.reasons:
            out.print(f"  - {escape(reason)}", soft_wrap=True)


def _exponent_line(quantity: str, exponent: Exponent) -> str:
    if not math.isfinite(exponent.estimate):
        return f"{quantity}: claimed {exponent.claimed:g}, not estimable: {exponent.verdict}"
    line = (
        f"{quantity}: estimate {exponent.estimate:.3f}, 95 % interval {number(exponent.ci95.low)} to "
        f"{number(exponent.ci95.high)}, claimed {exponent.claimed:g}: {exponent.verdict}"
    )
    corrected = exponent.details.get("corrected", {})
    if corrected.get("estimate") is not None:
        low, high = corrected["ci95"]
        line += f"; corrected for the finite matrix {number(corrected['estimate'])}, {number(low)} to {number(high)}"
    notes = [word for word, said in (("bent", "bent"), ("second tier", "tier")) if _noted(exponent, said)]
    return f"{line} ({', '.join([*notes, f'as an equality: {exponent.rate}'])})"


def _noted(exponent: Exponent, key: str) -> bool:
    value = exponent.details.get(key)
    return value is True or (key == "tier" and value == 2)


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


def claims_markdown(claims: Iterable[Claim]) -> str:
    """The ledger as a page: the register of problems with the wording, then each claim."""
    claims = list(claims)
    register: dict[str, dict[str, str]] = {}  # label -> claim -> the problem in that claim's words
    for claim in claims:
        for problem in claim.problems:
            label, _, text = problem.partition(": ")
            register.setdefault(label, {})[claim.name] = text
    lines = [
        "# The claims, and what is wrong with their wording",
        "",
        "Made from the ledger (`python -m theory claims` prints the same). The claims are those of the abstract of "
        "arXiv 2603.22355; only the abstract was at hand, so a theorem in the paper may say more than is tested here. "
        "The statements below are the closest ones that can be tested.",
        "",
        "Letters: N is the number of samples, T the number of optimiser steps, r the rank; matrix shapes are d_in and "
        "d_out.",
        "",
        "## Register of problems with the abstract as worded",
        "",
        "| | problem | claims |",
        "|---|---|---|",
    ]
    for label, problems in sorted(register.items(), key=lambda item: int(item[0][1:])):
        texts = "; ".join(_markdown(text) for text in dict.fromkeys(problems.values()))
        lines.append(f"| {label} | {texts} | {', '.join(problems)} |")
    for claim in claims:
        exponents = ", ".join(f"`{name}` {value:g}" for name, value in claim.exponents.items()) or "none"
        labels = ", ".join(problem.partition(": ")[0] for problem in claim.problems)
        columns = [", ".join(f"`{c}`" for c in names) or "none" for names in (claim.columns, claim.optional)]
        lines += ["", f"## {claim.name}: {_markdown(claim.title)}", "", _markdown(claim.statement), ""]
        lines += ["| symbol | meaning |", "|---|---|"]
        lines += [f"| {_markdown(symbol)} | {_markdown(meaning)} |" for symbol, meaning in claim.symbols.items()]
        lines += ["", "**Assumptions**", "", *(f"* {_markdown(text)}" for text in claim.assumptions)]
        lines += ["", f"**Columns** {columns[0]}; used if present: {columns[1]}"]
        lines += ["", f"**Claimed exponents** {exponents}", "", f"**Bound** {_markdown(claim.bound)}"]
        lines += ["", f"**Rule** {_markdown(claim.rule)}", "", f"**Problems** {labels} of the register"]
        lines += ["", "**Sources**", "", *(f"* {_markdown(text)}" for text in claim.sources)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Plain text with its signs kept: none of them is markup."""
    return re.sub(r"([\\`*_|<>\[\]^$~])", r"\\\1", text)


def print_fit(result: FitResult, out: Console) -> None:
    """Parameters with intervals, agreement of starts, and the held-out error."""
    rows = [
        (
            name,
            f"{result.estimates[name]:.5g}",
            f"{result.intervals[name].low:.5g}",
            f"{result.intervals[name].high:.5g}",
        )
        for name in result.law.parameters
    ]
    header = ("parameter", "estimate", "95 % low", "high")
    # Above the table and not its title, which would wrap at the table's width.
    out.print(escape(f"{result.target} = {result.law.text}  ({result.rows} rows)"), soft_wrap=True, highlight=False)
    out.print(grid(None, header, rows))
    out.print(
        f"objective {result.objective:.6g}, {result.starts_agreeing} starts agree, "
        f"log error on the held-out half-decade {number(result.holdout_log_rmse, 4)}"
    )
    for note in result.notes:
        out.print(f"  - {escape(note)}", soft_wrap=True)


def print_plan(outcome: Plan, out: Console) -> None:
    """Failed gates, and what the design would say about planted truths."""
    for claim, reasons in outcome.gates.items():
        out.print(f"[bold]{claim}[/bold]: {'the gates fail' if reasons else 'every gate is passed'}")
        for reason in reasons:
            out.print(f"  - {escape(reason)}", soft_wrap=True)
    rows = [(p["claim"], p["planted"], *_shares(p["verdicts"])) for p in outcome.power]
    out.print(grid("Verdicts on planted truths (share of simulated studies)", ("claim", "planted", *WORDS), rows))


def print_advice(advice: Advice, out: Console) -> None:
    """The rank, its interval, the expected risk and the prices."""
    out.print(
        f"[bold]rank {advice.rank}[/bold] for {advice.samples:g} samples ({advice.basis}): r* = {advice.optimum:.3g}, "
        f"95 % interval {number(advice.ci95.low)} to {number(advice.ci95.high)}{', capped' if advice.capped else ''}"
    )
    if advice.best is not None:
        out.print(
            f"best measured rank {advice.best}; within noise of it: {', '.join(str(r) for r in advice.within_noise)}"
        )
    if math.isfinite(advice.risk):
        low, high = advice.risk_ci95.low, advice.risk_ci95.high
        out.print(f"expected risk {advice.risk:.4g}, 95 % interval {number(low, 4)} to {number(high, 4)}")
    for name, price in advice.prices.items():
        out.print(
            f"{name.replace('_', ' ')} (rank {price.rank}): risk {price.risk:.4g}, {price.extra:+.4g} "
            f"(95 % interval {price.extra_ci95.low:+.4g} to {price.extra_ci95.high:+.4g})"
        )
    for note in advice.notes:
        out.print(f"  - {escape(note)}", soft_wrap=True)


def print_validation(outcome: Validation, out: Console) -> None:
    """Confusion, errors at the margin and power, coverage, and the requirements."""
    near = ("margin", "power at .15")
    far = [t for t in outcome.tallies if t.case.group not in near]
    confusion = [
        (t.case.name, str(t.replications), *_shares(t.verdicts), ", ".join(t.case.expected or ("not CONSISTENT",)))
        for t in far
    ]
    out.print(grid("Verdicts on planted truths (share)", ("planted", "draws", *WORDS, "right"), confusion))
    close = [
        (t.case.name, str(t.replications), *_shares(t.verdicts), _pairs(t.refuted))
        for t in outcome.tallies
        if t.case.group in near
    ]
    header = ("planted", "draws", *WORDS, "coordinate refuted")
    out.print(grid("At the margin (errors) and at distance .15 (power)", header, close))
    intervals = [
        (
            *(t.case.name, quantity, f"{truth:.3f}", f"{t.bias[quantity]:+.4f}"),
            *(f"{t.coverage90[quantity]:.3f}", f"{t.coverage95[quantity]:.3f}", _pairs(t.rates[quantity])),
        )
        for t in outcome.tallies
        for quantity, truth in t.case.truth.items()
    ]
    columns = ("planted", "exponent", "truth", "bias", "coverage 90 %", "95 %", "equal to the claimed one?")
    out.print(grid("Intervals (E4: against the chord of a bent curve, see bias)", columns, intervals))
    met = [
        (r.name, f"{r.value:.3f}", f"{r.low:g} to {r.high:g}", "yes" if r.met else "NO") for r in outcome.requirements
    ]
    out.print(grid("Requirements", ("requirement", "value", "limits", "met"), met))


#: Verdicts as columns of a confusion table.
WORDS = (CONSISTENT, HOLDS, LOOSE, REFUTED, INCONCLUSIVE, UNTESTABLE)


def _shares(verdicts: Mapping[str, float]) -> list[str]:
    return [f"{verdicts[word]:.3f}" if word in verdicts else "" for word in WORDS]


def _pairs(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{word.lower()} {share:.3f}" for word, share in shares.items())
