"""Printing verdicts and the ledger to a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as Grid

from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, MEANING, NOT_EVALUATED, REFUTED, UNTESTABLE
from theory.show.palette import QUANTITY, RATIOS, TERMINAL
from theory.show.plain import escape

if TYPE_CHECKING:  # they bring SciPy, and commands that only print a table start without it
    import pandas as pd

    from theory.design.advise import Advice
    from theory.design.choose_runs import Choice
    from theory.design.next import Next
    from theory.design.plan import Plan
    from theory.judge.compare import Comparison
    from theory.judge.ledger import Claim
    from theory.laws.predict import Prediction
    from theory.laws.user_law import FitResult
    from theory.planted.validate import Validation
    from theory.report import Exponent, Report


#: Sets of runs that are printed; a file has all of them.
MOST_PROPOSALS = 8
#: Predictions that are printed; a file has all of them.
MOST_POINTS = 40


def console(width: int = 160) -> Console:
    """A console on standard output, so many columns wide where that is no terminal (so that output is reproducible)."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval in words, or that there is none."""
    if not any(end is not None and math.isfinite(end) for end in (low, high)):
        return "no interval"
    return f"95 % interval {number(low, digits)} to {number(high, digits)}"


def significant(value: float) -> str:
    """Five significant digits; a dash where the number is undefined."""
    return f"{value:.5g}" if math.isfinite(value) else "-"


def grid(title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Grid:
    """A table whose cells are plain text, without columns that are empty in every row."""
    table = Grid(title=title, title_justify="left", header_style="bold")
    rows = list(rows)
    shown = [k for k in range(len(header)) if not rows or any(row[k] for row in rows)]
    for k in shown:
        table.add_column(header[k])
    for row in rows:
        table.add_row(*(escape(row[k]) for k in shown))
    return table


def print_report(report: Report, out: Console) -> None:
    """Per claim: the verdict, exponents against the claimed ones, the bound's tightness, and the reasons."""
    margin = f", margin {report.margin:g}" if math.isfinite(report.margin) else ""
    out.print(f"{escape(report.path)}: {report.rows} rows{margin}", soft_wrap=True)
    for remark in report.remarks:
        out.print(f"  {escape(remark)}", soft_wrap=True)
    for name, claim in report.claims.items():
        colour = TERMINAL.get(claim.verdict, "white")
        meaning = MEANING[claim.verdict]
        if claim.fields.get("bound_kind") == "lower":
            meaning = meaning.replace("an upper", "a lower")
        out.print(
            f"\n[bold]{escape(name)}[/bold]: [{colour}]{claim.verdict}[/{colour}], {meaning}  "
            f"({claim.cells} cells, {claim.seeds} {claim.fields.get('unit', 'seeds')})",
            soft_wrap=True,
        )
        for quantity, exponent in claim.exponents.items():
            line = _exponent_line(quantity, exponent, claim.fields.get("bound_kind") == "equal")
            out.print("  " + escape(line), soft_wrap=True)
        for key in RATIOS:
            if key in claim.fields:
                field = claim.fields[key]
                out.print(
                    f"  {QUANTITY[key]}: estimate {number(field['estimate'])}, {interval(*field['ci95'])}: "
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


def _exponent_line(quantity: str, exponent: Exponent, equality: bool) -> str:
    quantity = QUANTITY.get(quantity, quantity)
    if not math.isfinite(exponent.estimate):
        return f"{quantity}: claimed {exponent.claimed:g}, not estimable: {exponent.verdict}"
    line = (
        f"{quantity}: estimate {exponent.estimate:.3f}, {interval(exponent.ci95.low, exponent.ci95.high)}, "
        f"claimed {exponent.claimed:g}: {exponent.verdict}"
    )
    corrected = exponent.details.get("corrected", {})
    if corrected.get("estimate") is not None:
        low, high = corrected["ci95"]
        line += f"; corrected for the finite matrix {number(corrected['estimate'])}, {number(low)} to {number(high)}"
    notes = [word for word, said in (("bent", "bent"), ("second tier", "tier")) if _noted(exponent, said)]
    if not equality:
        notes.append(f"as an equality: {exponent.rate}")
    return f"{line} ({', '.join(notes)})" if notes else line


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


def print_fit(result: FitResult, out: Console) -> None:
    """Parameters with intervals, agreement of starts, and the held-out error."""
    rows = [
        (
            name,
            f"{result.estimates[name]:.5g}",
            *(significant(end) for end in (result.intervals[name].low, result.intervals[name].high)),
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


def print_prediction(made: Prediction, out: Console) -> None:
    """One line per point: its columns, the prediction, both intervals and the distance from the data."""
    frame, target = made.frame, made.target
    given = list(frame.columns[: frame.columns.get_loc(target)])
    level = f"{100 * made.interval:g} %"
    header = (*given, target, f"mean, {level} low", "high", f"new run, {level} low", "high", "decades outside")
    ends = ("mean_low", "mean_high", "low", "high")
    rows = [
        (
            *(f"{point[c]:.6g}" for c in given),
            significant(point[target]),
            *(significant(point[end]) for end in ends),
            f"{point['decades']:.2g}" if point["outside"] else "inside",
        )
        for _, point in frame.head(MOST_POINTS).iterrows()
    ]
    out.print(escape(f"{target} = {made.law}"), soft_wrap=True, highlight=False)
    out.print(grid(None, header, rows))
    if len(frame) > MOST_POINTS:
        out.print(f"  - {len(frame) - MOST_POINTS} more points: --json OUT has all", soft_wrap=True)
    for remark in made.remarks:
        out.print(f"  - {escape(remark)}", soft_wrap=True)


def print_comparison(made: Comparison, out: Console) -> None:
    """Differences over all cells, then in each."""
    first, second = made.groups
    out.print(escape(f"{made.path}: {made.by} = {second} less {made.by} = {first}"), soft_wrap=True, highlight=False)
    rows = [
        (
            d.quantity,
            ", ".join(f"{c}={v}" for c, v in d.cell.items()) or "all cells",
            *(significant(x) for x in (d.first, d.second, d.difference, d.ci95.low, d.ci95.high)),
            str(d.seeds),
        )
        for d in made.differences
    ]
    header = ("quantity", "cell", first, second, "difference", "95 % low", "high", "seeds")
    out.print(grid(None, header, rows))
    for remark in made.remarks:
        out.print(f"  - {escape(remark)}", soft_wrap=True)


def print_plan(outcome: Plan, out: Console) -> None:
    """Failed gates, runs and cost, and what the design would say about planted truths."""
    for claim, reasons in outcome.gates.items():
        state = "the gates fail: every verdict would be UNTESTABLE" if reasons else "every gate is passed"
        cost = f", about {duration(outcome.seconds[claim])} in all" if claim in outcome.seconds else ""
        out.print(f"[bold]{claim}[/bold]: {state} ({outcome.runs[claim]} runs{cost})", soft_wrap=True)
        for reason in reasons:
            out.print(f"  - {escape(reason)}", soft_wrap=True)
        for reason in outcome.weak[claim]:
            out.print(f"  - second tier, never CONSISTENT: {escape(reason)}", soft_wrap=True)
    if not outcome.power:
        return
    rows = [(p["claim"], p["planted"], *_shares(p["verdicts"]), ", ".join(p["right"])) for p in outcome.power]
    header = ("claim", "planted", *WORDS, "right")
    out.print(grid("Verdicts on planted truths (share of simulated studies)", header, rows))


def print_next(outcome: Next, out: Console) -> None:
    """The verdict now, the sets of runs with their expected verdicts and cost, and how to start the best."""
    now = outcome.verdict or "not run"
    colour = TERMINAL.get(now, "white")
    out.print(
        f"{escape(outcome.path or 'an empty design')}: [bold]{outcome.claim}[/bold] is [{colour}]{now}[/{colour}]"
        f"{', which is a verdict: no runs are proposed' if outcome.decided else ''}",
        soft_wrap=True,
    )
    shown = [p for p in outcome.proposals if p.chance > 0 or p is outcome.best][:MOST_PROPOSALS]
    rows = [
        (
            p.why, str(len(p.runs)), _priced(p.cost, outcome.unit), f"{p.chance:.2f}", *_shares(p.verdicts),
            "" if p.affordable else "over the budget",
        )
        for p in shown
    ]  # fmt: skip
    if rows:
        header = ("runs to add", "runs", "cost", "chance of a verdict", *WORDS, "")
        out.print(grid("Expected verdicts (share of simulated tables), the best first", header, rows))
    if outcome.best is not None:
        out.print(f"[bold]next[/bold]: {escape(outcome.best.why)}", soft_wrap=True)
        for line in outcome.best.overrides:
            out.print(f"  lrc run -m {escape(line)}", soft_wrap=True)
    for note in outcome.notes:
        out.print(f"  - {escape(note)}", soft_wrap=True)


def print_choice(choice: Choice, out: Console) -> None:
    """The runs of this round, how many are planned after them, and what the law is expected to predict."""
    now = choice.rows[choice.now]
    rows = [
        (str(row), *(f"{value:.6g}" for value in values), f"{cost:.4g}")
        for row, values, cost in zip(now.index, now.to_numpy(), choice.cost[choice.now], strict=True)
    ]
    if rows:
        header = ("row", *map(str, now.columns), "cost")
        # Above the table and not its title, which would wrap at the table's width.
        out.print("Train these now, fill in their results, and ask again:")
        out.print(grid(None, header, rows))
    later, runs = ~choice.now, "run" if len(rows) == 1 else "runs"
    out.print(
        f"{len(rows)} {runs} now for {choice.cost[choice.now].sum():.4g}, {int(later.sum())} planned after them for "
        f"{choice.cost[later].sum():.4g}; budget {choice.budget:.4g}, spent before {choice.spent:.4g}",
        soft_wrap=True,
    )
    sd, planned = (_root_mean_square(choice.targets[name]) for name in ("sd", "sd_planned"))
    if math.isfinite(sd):
        out.print(
            f"sd of the predicted {escape(choice.target)} at {len(choice.targets)} points: {significant(sd)} now, "
            f"{significant(planned)} expected with all these runs",
            soft_wrap=True,
        )
    for note in choice.notes:
        out.print(f"  - {escape(note)}", soft_wrap=True)


def _root_mean_square(values: pd.Series) -> float:
    return float((values**2).mean() ** 0.5)


def _priced(cost: float, unit: str) -> str:
    return duration(cost) if unit == "s" else f"{cost:.4g} {unit}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`: seconds in words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def print_advice(advice: Advice, out: Console) -> None:
    """The rank, its interval, the expected test loss and the prices."""
    out.print(
        f"[bold]rank {advice.rank}[/bold] for {advice.samples:g} samples ({advice.basis}): r* = {advice.optimum:.3g}, "
        f"{interval(advice.ci95.low, advice.ci95.high)}{', capped' if advice.capped else ''}"
    )
    if advice.best is not None:
        out.print(
            f"best measured rank {advice.best}; within noise of it: {', '.join(str(r) for r in advice.within_noise)}"
        )
    if math.isfinite(advice.risk):
        low, high = advice.risk_ci95.low, advice.risk_ci95.high
        out.print(f"expected test loss {advice.risk:.4g}, {interval(low, high, 4)}")
    for name, price in advice.prices.items():
        out.print(
            f"{name.replace('_', ' ')} (rank {price.rank}): test loss {price.risk:.4g}, {price.extra:+.4g} "
            f"(95 % interval {price.extra_ci95.low:+.4g} to {price.extra_ci95.high:+.4g})"
        )
    for note in advice.notes:
        out.print(f"  - {escape(note)}", soft_wrap=True)


def print_validation(outcome: Validation, out: Console) -> None:
    """Shares by family, verdicts and coverage by case, and the requirements."""
    rows = [
        (
            *(f.name, str(f.cases), *(f"{share:.3f}" for share in (f.right, f.harmful, f.undecided))),
            "" if f.coverage95 is None else f"{f.coverage95:.3f}",
            f"{f.worst.case.name} ({f.worst.grade('harmful'):.2f})" if f.worst.grade("harmful") else "",
        )
        for f in outcome.families
    ]
    header = ("family", "cases", "right", "harmful", "undecided", "95 % intervals cover", "most harmful (share)")
    out.print(grid("Words by family (share of draws, every case counting alike)", header, rows))
    cases = [
        (
            *(t.case.name, str(t.replications), *_shares(t.verdicts)),
            *(f"{t.grade(name):.2f}" for name in ("right", "harmful", "undecided")),
            _pairs({name: hits / n for name, (hits, n) in t.covered.items()}),
        )
        for t in outcome.tallies
    ]
    columns = ("planted", "draws", *WORDS, "right", "harmful", "undecided", "95 % intervals cover")
    out.print(grid("Verdicts on the claim, and grades of the words that count", columns, cases))
    met = [
        (r.name, f"{r.value:.3f}", f"{r.low:g} to {r.high:g}", "yes" if r.met else "NO") for r in outcome.requirements
    ]
    out.print(grid("Requirements", ("requirement", "value", "limits", "met"), met))


#: Verdicts as columns of a confusion table.
WORDS = (CONSISTENT, HOLDS, LOOSE, REFUTED, INCONCLUSIVE, UNTESTABLE)


def _shares(verdicts: Mapping[str, float]) -> list[str]:
    return [f"{verdicts[word]:.2f}" if word in verdicts else "" for word in WORDS]


def _pairs(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{word.lower()} {share:.2f}" for word, share in shares.items())
