"""How a claim was decided run by run (`lrc decide`): every look with what was bought before it."""

from __future__ import annotations

import pandas as pd

from experiments.common.progress import duration
from experiments.sweep.provenance import environment
from experiments.sweep.store import Study


def looks(study: Study, claim: str) -> tuple[str, pd.DataFrame] | None:
    """What was declared and how it ended, in words, and one row per look; None where the claim was not decided so, or
    what is kept of it is damaged."""
    try:
        record = environment(study)["decide"][claim]
        lines = [
            {
                "look": str(look["number"]) if look["number"] else "pilot",
                "bought before it": block["why"],
                "chance of a verdict": "" if block["chance"] is None else f"{100 * block['chance']:.0f} %",
                "runs so far": int(look["runs"]),
                "time so far": duration(look["spent_s"]),
                "intervals": f"{100 * look['level']:.1f} %",
                "verdict": look["verdict"],
                "measured": "; ".join(f"{m['quantity']} {m['measured']}" for m in look["measured"]),
            }
            for block in record["blocks"]
            if (look := block["look"]) is not None
        ]
        declared = f"at most {int(record['looks'])} looks, error spent over them by the rule {record['spending']}."
        last = record["blocks"][-1]
        if last["look"] is not None and last.get("ending") and last["look"]["number"] < record["looks"]:
            declared += (
                " No other look could follow the last one, so it spent the error of those that were not made too."
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return (f"Declared before the first run: {declared}", pd.DataFrame(lines)) if lines else None
