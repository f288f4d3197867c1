"""The theory page of the documentation: decision rules and the ledger of claims, made from the code that applies them.

`python -m theory claims --markdown` prints it; docs/theory.md is its output, and a test compares the two. The text of
the rules is in rules.md beside this file; its numbers are fields, filled in from the modules that use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from theory.claims import compression, convergence, dynamics, efficiency, information
from theory.judge import gates, intervals, methods, model_selection, optimum, scrutiny, verdicts, window
from theory.judge.ledger import Claim
from theory.judge.rules import BENT, GROWTH, STRAIGHT, Rule
from theory.show.markdown import markdown_table

TEXT = Path(__file__).parent / "rules.md"


def theory_markdown(claims: Iterable[Claim]) -> str:
    """The whole page."""
    return rules_markdown() + claims_markdown(claims)


def rules_markdown() -> str:
    """How a table becomes a verdict; every number is read from the code."""
    modules = (
        model_selection, compression, convergence, dynamics, efficiency, gates, information, intervals, methods,
        optimum, verdicts, window,
    )  # fmt: skip
    return TEXT.read_text(encoding="utf-8").format(
        **{module.__name__.rpartition(".")[2]: module for module in modules},
        words=markdown_table(("word", "meaning"), verdicts.MEANING.items()),
        straight=_rules(STRAIGHT),
        bent=_rules(BENT),
        growth=_rules(GROWTH),
        budgets=_rules(efficiency.RULES),
        rivals=_rules(compression.RULES),
        kinds=_listed(compression.RIVALS),
        one_per_law=_listed(scrutiny.ONE_PER_LAW),
        population=_listed(scrutiny.POPULATION),
        protocol=_listed(scrutiny.PROTOCOL),
        precedence=", ".join(verdicts.PRECEDENCE[1:]),
    )


def _rules(rules: Sequence[Rule]) -> str:
    """A table of rules in the order in which they are asked."""
    asked = [(rule.word, _markdown(rule.text)) for rule in rules]
    return markdown_table(("word, in this order", "condition"), [*asked, ("INCONCLUSIVE", "otherwise")])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def claims_markdown(claims: Iterable[Claim]) -> str:
    """The ledger as a page: the register of problems with the wording, then each claim."""
    claims = list(claims)
    register: dict[str, dict[str, str]] = {}  # label -> claim -> the problem in that claim's words
    for claim in claims:
        for problem in claim.problems:
            label, _, text = problem.partition(": ")
            register.setdefault(label, {})[claim.name] = text
    lines = [
        "## The claims, and what is wrong with their wording",
        "",
        "Made from the ledger (`python -m theory claims` prints the same). The claims are those of the abstract of "
        "arXiv 2603.22355; only the abstract was at hand, so a theorem in the paper may say more than is tested here. "
        "The statements below are the closest ones that can be tested.",
        "",
        "Letters: N is the number of samples, T the number of optimiser steps, r the rank; matrix shapes are d_in and "
        "d_out.",
        "",
        "### Register of problems with the abstract as worded",
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
        lines += ["", f"### {claim.name}: {_markdown(claim.title)}", "", _markdown(claim.statement), ""]
        symbols = [(_markdown(symbol), _markdown(meaning)) for symbol, meaning in claim.symbols.items()]
        lines.append(markdown_table(("symbol", "meaning"), symbols))
        lines += ["", "**Assumptions**", "", *(f"* {_markdown(text)}" for text in claim.assumptions)]
        lines += ["", f"**Columns** {columns[0]}; used if present: {columns[1]}"]
        lines += ["", f"**Claimed exponents** {exponents}", "", f"**Bound** {_markdown(claim.bound)}"]
        lines += ["", f"**Rule** {_markdown(claim.rule)}", "", f"**Problems** {labels} of the register"]
        lines += ["", "**Sources**", "", *(f"* {_markdown(text)}" for text in claim.sources)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Plain text with its signs kept: none of them is markup."""
    return re.sub(r"([\\`*_|<>\[\]^$~])", r"\\\1", text)
