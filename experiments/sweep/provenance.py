"""Where a study's numbers come from: data, code, machines, time, commands.

Read off the runs' folders where they are there; a compact copy under results/reference/ carries the same as
`environment.json`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from experiments.common.files import write_json
from experiments.sweep.rows import load_rows
from experiments.sweep.store import Study, read_object

ENVIRONMENT = "environment.json"
STUDY = "study.json"


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
    note = note_of(study)
    if isinstance(kept := note.get("decide"), dict):  # without overrides, which may name this machine's paths
        note["decide"] = {
            claim: {key: value for key, value in record.items() if key != "overrides"}
            for claim, record in kept.items()
            if isinstance(record, dict)
        }
    return found | note


def note_of(study: Study) -> dict[str, Any]:
    """What commands wrote down about a study as a whole: its description, its commands, its decisions."""
    return read_object(study.path / STUDY, lambda note: True) or {}


def write_note(study: Study, **entries: Any) -> None:
    """Write some entries down; the others stay as they are."""
    write_json(study.path / STUDY, {**note_of(study), "schema": 1, **entries})
