"""Where a study's numbers come from: data, code, machines, time, commands.

Read off the runs' folders where they are there; a compact copy under results/reference/ carries the same as
`environment.json`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.sweep.rows import load_rows
from experiments.sweep.store import Study, read_object

ENVIRONMENT = "environment.json"


def environment(study: Study) -> dict[str, Any]:
    """Counts of data digests, code versions and machines over the study's runs, time spent, and the commands."""
    if not study.runs():
        return read_object(study.path / ENVIRONMENT, lambda note: True) or {}
    rows, _ = load_rows(study)

    def counts(values: list[str]) -> dict[str, int]:
        return dict(Counter(values).most_common())

    machines = [row["machine"] for row in rows]
    found: dict[str, Any] = {
        "runs": len(rows),
        "minutes": round(sum(s for m in machines if isinstance(s := m.get("seconds"), int | float)) / 60, 1),
        "data_digest": counts([row["data_digest"] for row in rows]),
        "code_version": counts([row["code_version"] for row in rows]),
        "machine": counts([f"{m.get('device')}, {m.get('platform')}" for m in machines]),
        "software": counts(
            [f"Python {m.get('python')}, jax {m.get('jax')}, jaxlib {m.get('jaxlib')}" for m in machines]
        ),
    }
    return found | (read_object(study.path / "study.json", lambda note: True) or {})
