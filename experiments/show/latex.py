"""The verdicts of a table as LaTeX, for a paper: what a page shows as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.show.lines import lines_of

FILE = "verdicts.tex"
#: Letters that LaTeX sets only in mathematics; everything else that it minds is escaped by pandas.
MATHEMATICS = {"λ": r"$\lambda$", "σ²": r"$\sigma^2$", "D/D₀": "$D/D_0$", "I/I*": "$I/I^*$"}


def verdicts_latex(claims: Mapping[str, Any], margin: float) -> str:
    r"""A `tabular` with rules of the package booktabs, one row per measured quantity.

    Args:
      claims: of a verdict's JSON, by name. margin: of the exponents.
    """
    rows = [(line.claim, line.name, line.measured, line.target, line.verdict) for line in lines_of(claims, margin)]
    frame = pd.DataFrame(rows, columns=["claim", "quantity", "measured, 95 % interval", "claimed", "verdict"])
    text = frame.to_latex(index=False, escape=True, column_format="lllll")
    for letter, formula in MATHEMATICS.items():
        text = text.replace(letter, formula)
    return text
