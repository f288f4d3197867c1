"""Claims of one's own as a file: `theory check TABLE --claims MINE.yaml`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from theory.judge.user_claim import LawClaim, claimed_of
from theory.tables import InputError

#: What an entry of the file is called, where that is not the name of `LawClaim`'s field.
NAMES = {"claim": "claimed"}
REQUIRED = ("name", "target", "law", "claim")


def read_claims(path: str | Path) -> list[LawClaim]:
    """Read the claims of a YAML (or JSON) file.

        claims:
          - name: equal_scaling
            target: loss
            law: "E + A*params**-a + B*tokens**-b"
            claim: {a: b}
            bound: equal
            cluster: seed

    Raises:
        InputError: the file cannot be read, or an entry is not such a claim; the message names entry and key.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: no YAML: {getattr(error, 'problem', error)}") from None
    entries = found.get("claims") if isinstance(found, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InputError(f"{path}: no list of claims; begin the file with `claims:` and one `- name: ...` per claim")
    claims = [_claim(path, k, entry) for k, entry in enumerate(entries, 1)]
    names = [c.name for c in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two claims are called {name}; give each a name of its own")
    return claims


def _claim(path: str | Path, number: int, entry: Any) -> LawClaim:
    where = f"{path}, claim {number}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: not a mapping of keys such as name, target, law, claim")
    fields = {f.name for f in dataclasses.fields(LawClaim)} - set(NAMES.values()) | set(NAMES)
    for key in entry:
        if key not in fields:
            raise InputError(f"{where}: key {key} is unknown; choose from {', '.join(sorted(fields))}")
    for key in REQUIRED:
        if key not in entry:
            raise InputError(f"{where}: key {key} is missing")
    given: dict[str, Any] = {NAMES.get(str(key), str(key)): value for key, value in entry.items()}
    where = f"{path}, claim {given['name']}"
    claimed = given["claimed"]
    if isinstance(claimed, str):
        claimed = dict([claimed_of(claimed)])
    if not isinstance(claimed, Mapping):
        raise InputError(f"{where}: key claim: write {{b: 0.34}} or b=0.34")
    given["claimed"] = {str(k): v if isinstance(v, (int, float)) else str(v) for k, v in claimed.items()}
    for key in ("signed", "where"):
        if isinstance(given.get(key), str):
            given[key] = [given[key]]
    for key in ("name", "target", "law", "bound", "cluster", "statement", "source"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise InputError(f"{where}: key {key}: {given[key]!r} is not text; put it in quotes")
    if not isinstance(given.get("margin", 0.1), (int, float)):
        raise InputError(f"{where}: key margin: {given['margin']!r} is not a number")
    try:
        return LawClaim(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
