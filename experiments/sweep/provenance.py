"""Where a study's numbers come from: data, code, machines, time, commands.

Read off the runs' folders where they are there; a compact copy under results/reference/ carries the same as
`environment.json`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.common.files import read_json
from experiments.sweep.rows import load_rows
from experiments.sweep.store import Study

ENVIRONMENT = "environment.json"


def environment(study: Study) -> dict[str, Any]:
    """Counts of data digests, code versions and machines over the study's runs, time spent, and the commands."""
    if not study.runs():
        kept = study.path / ENVIRONMENT
        return read_json(kept) if kept.is_file() else {}
    rows, _ = load_rows(study)

    def counts(values: list[str]) -> dict[str, int]:
        return dict(Counter(values).most_common())

    machines = [row["machine"] for row in rows]
    found: dict[str, Any] = {
        "runs": len(rows),
        "minutes": round(sum(m["seconds"] for m in machines) / 60, 1),
        "data_digest": counts([row["data_digest"] for row in rows]),
        "code_version": counts([row["code_version"] for row in rows]),
        "machine": counts([f"{m['device']}, {m['platform']}" for m in machines]),
        "software": counts([f"Python {m['python']}, jax {m['jax']}, jaxlib {m['jaxlib']}" for m in machines]),
    }
    note = study.path / "study.json"
    return found | (read_json(note) if note.is_file() else {})
