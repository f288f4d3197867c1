"""How verdicts look and what measured quantities are called, in the terminal, on pages and in figures alike."""

from __future__ import annotations

from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE

#: Colour names for a terminal, which has its own shades of them.
TERMINAL = {
    CONSISTENT: "green", LOOSE: "cyan", HOLDS: "blue", REFUTED: "red", INCONCLUSIVE: "yellow", UNTESTABLE: "magenta",
}  # fmt: skip
#: The same hues for figures and pages. Each is dark enough to be read as text on white and on its own light tint (WCAG
#: 2.1, AA). No colour stands alone: the word is always beside it.
INK = {
    CONSISTENT: "#1a7431", LOOSE: "#0b6f85", HOLDS: "#2450c8", REFUTED: "#b3141f", INCONCLUSIVE: "#855800",
    UNTESTABLE: "#9a2a9a",
}  # fmt: skip

#: What is measured, by its key in the JSON of a verdict.
QUANTITY = {
    "steps": "exponent in T",
    "samples": "exponent in N",
    "rank": "exponent in r",
    "clone_weight": "trend in λ",
    "ceiling_ratio": "I/I*",
    "divergence_ratio": "D/D₀",
    "budget_factor": "F, budget of direct training / of the clone",
    "rival_difference": "loss of the clone - of the rival",
}
#: Those that are no exponents: each is a field of its claim's JSON under this key.
RATIOS = ("ceiling_ratio", "divergence_ratio", "budget_factor", "rival_difference")
#: The letter of a coordinate, as the claims use it.
LETTER = {"steps": "T", "samples": "N", "rank": "r", "clone_weight": "λ"}
