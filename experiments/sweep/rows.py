"""Gather a study's rows into one table.

Writes results/<study>/measurements.csv and .parquet, one row per run. The same rows give byte-identical files, whatever
order they were computed in; times and machines stay in the rows' own files, but for the seconds of training where
methods are compared.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from typing import Any

import pandas as pd

from experiments.common.files import write_bytes, write_csv
from experiments.sweep.store import Study, without_collection
from lrc_jax.errors import InputError

ORDER = ["claim", "arm", "student", "matrices", "init", "teacher", "data", "labels", "rank", "samples", "steps", "seed"]
PROVENANCE = ["run_id", "data_digest", "code_version"]


def load_rows(study: Study) -> tuple[list[dict[str, Any]], int]:
    """Rows of finished runs, and how many were left out.

    A configuration computed by several versions of the code counts once: with the version that has the most rows of
    the study, so that a table never mixes two methods where it need not.
    """
    with without_collection():
        rows = [row for folder in study.runs() if (row := folder.row()) is not None]
    versions = Counter(row["code_version"] for row in rows)
    chosen: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (versions[r["code_version"]], r["code_version"], r["run_id"])):
        chosen[json.dumps([row["config"], row["data_digest"]], sort_keys=True)] = row
    return list(chosen.values()), len(rows) - len(chosen)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One line per run, or several where a run measured several sites; known order of rows and columns."""
    lines = []
    for row in rows:
        columns = dict(row["columns"])
        provenance = {key: row[key] for key in PROVENANCE}
        if columns.get("method") and "training_seconds" in row["machine"]:
            columns["training_seconds"] = row["machine"]["training_seconds"]
        for line in columns.pop("lines", None) or [{}]:
            lines.append(columns | line | provenance)
    frame = pd.DataFrame(lines)
    first = [c for c in ORDER if c in frame]
    rest = sorted(str(c) for c in frame if c not in first and c not in PROVENANCE)
    keys = [*first, *(c for c in ("site", "intrinsic_dimension") if c in frame), "run_id"]
    frame = frame[first + rest + PROVENANCE].dropna(axis=1, how="all").apply(_of_one_kind)
    return frame.sort_values([k for k in keys if k in frame], na_position="first", kind="stable", ignore_index=True)


def _of_one_kind(values: pd.Series) -> pd.Series:
    """A column as CSV and parquet both have it: one that mixes numbers with text, or holds neither, as text."""
    if values.dtype != object:
        return values
    kinds = {type(value) for value in values if value is not None and value == value}
    if kinds <= {str} or kinds == {bool}:
        return values
    return values.map(lambda v: v if v is None or v != v or isinstance(v, str) else json.dumps(v))


def collect(study: Study) -> pd.DataFrame:
    """Write the study's table and return it.

    Raises:
      InputError: the study has no finished run, or the folder cannot be written to.
    """
    rows, left_out = load_rows(study.require())
    if not rows:
        raise InputError(f"study: {study.path} has no finished run; run its sweep first")
    frame = table(rows)
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)  # before anything is written: the two files agree
    write_csv(study.path / "measurements.csv", frame)
    write_bytes(study.path / "measurements.parquet", parquet.getvalue())
    if left_out:
        print(f"{left_out} runs of other code versions are superseded and left out", file=sys.stderr)
    return frame
