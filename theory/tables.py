"""Reading a measurement table and turning it into cells (design point x seed).

The table is the interface between whoever ran the experiments and the judge: CSV or parquet, one row per run
(or a run x site). Everything that can be wrong with it ends in an `InputError` whose single line names the
file, the column, the row and what to do; nothing else in this package has to think about bad input.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from theory.errors import InputError as InputError

#: Columns that are counts of something: strictly positive wherever a claim uses them.
POSITIVE = frozenset({"rank", "samples", "steps", "d_in", "d_out", "params"})

#: Measured quantities that cannot be negative by definition. `gap` is signed and is not one of them.
POSITIVE_MEASURED = frozenset({"step_size", "smoothness", "mi_ceiling", "dynamics_baseline"})
NON_NEGATIVE = frozenset({"seed", "clone_weight", "grad_variance", "loss_decrease", "dynamics_divergence"})

#: Every numeric column of the measurement table, and `teacher_loss`, the best loss that a student can reach.
NUMERIC = (
    POSITIVE
    | POSITIVE_MEASURED
    | NON_NEGATIVE
    | {
        "train_loss",
        "test_loss",
        "gap",
        "grad_norm_sq",
        "approx_loss",
        "teacher_loss",
        "mutual_information",
        "mi_floor",
    }
)

#: What else the coordinates are called, in lower case.
ALIASES = {
    "rank": ("r", "width", "config.rank"),
    "samples": ("n", "n_train", "n_samples", "num_samples", "sample_size", "config.samples"),
    "steps": ("t", "step", "n_steps", "num_steps", "iterations", "config.steps"),
    "seed": ("replicate", "run", "trial", "config.seed"),
    "gap": ("generalization_gap", "generalisation_gap", "gen_gap"),
    "test_loss": ("val_loss", "eval_loss", "loss_test", "test/loss", "eval/loss"),
    "grad_norm_sq": ("grad_norm_squared", "squared_grad_norm"),
}

#: Magnitudes beyond this, or below its inverse, are a wrong unit or an overflow (their squares would leave float64).
LARGEST = 1e100


@dataclass(frozen=True)
class Table:
    """A measurement table in memory.

    Attributes:
        frame: the rows; the index is the row number counted from 1 (the header is not counted).
        path: the file as it was named by the user.
        sha256: digest of the file's bytes ("" for a table that was never a file).
    """

    frame: pd.DataFrame
    path: str = "<memory>"
    sha256: str = ""

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Columns that are absent, or present without a single value."""
        return [c for c in columns if c not in self.frame or self.frame[c].isna().all()]

    def nearest(self, name: str) -> str | None:
        """A column that was probably meant by a name that is none: equal up to case and spaces, a usual alias, or one
        edit away."""
        plain = {str(c).strip().lower().replace(" ", "_").replace("-", "_"): str(c) for c in self.frame}
        known = [p for p in (name, *ALIASES.get(name, ())) if p in plain and plain[p] != name]
        close = known or [p for p in difflib.get_close_matches(name, plain, 1, 0.85) if plain[p] != name]
        return plain[close[0]] if close else None

    def where(self, conditions: Sequence[str]) -> Table:
        """Keep the rows that satisfy every `column=value` condition.

        Raises:
            InputError: a condition is malformed, names no column, or leaves no row.
        """
        frame = self.frame
        for condition in conditions:
            name, sign, value = condition.partition("=")
            if not sign or name not in frame:
                raise InputError(
                    f"{self.path}: --where {condition!r}: write COLUMN=VALUE with one of "
                    f"{', '.join(map(str, self.frame.columns))}"
                )
            column = frame[name]
            if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                try:
                    keep = column == float(value)
                except ValueError:
                    raise InputError(f"{self.path}: --where {condition!r}: column {name} holds numbers") from None
            else:
                keep = column.astype(str) == value
            frame = frame[keep]
            if frame.empty:
                raise InputError(f"{self.path}: --where {condition!r}: no row is left; check the value")
        return Table(frame, self.path, self.sha256)

    def scaled(self, changes: Sequence[str]) -> Table:
        """The table with numeric columns multiplied: `column=factor`.

        Raises:
            InputError: a change is malformed or names no numeric column.
        """
        frame = self.frame.copy() if changes else self.frame
        for change in changes:
            name, sign, factor = change.partition("=")
            if not sign or name not in frame or not pd.api.types.is_float_dtype(frame[name]):
                raise InputError(f"{self.path}: --scale {change!r}: write COLUMN=FACTOR with a column of numbers")
            try:
                frame[name] = frame[name] * float(factor)
            except ValueError:
                raise InputError(f"{self.path}: --scale {change!r}: {factor!r} is not a number") from None
        return Table(frame, self.path, self.sha256)


def primary_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without an arm, if there are any, else all. A column `arm` names controls and other protocols, which
    would not be replicates of the primary rows (those where it is empty)."""
    return frame[frame["arm"].isna()] if "arm" in frame and frame["arm"].isna().any() else frame


def primary_rows(table: Table) -> tuple[Table, tuple[str, ...]]:
    """The rows of the primary design, and remarks on the arms that were set aside.

    Raises:
        InputError: every row belongs to an arm, and there are several.
    """
    if "arm" not in table.frame or table.frame["arm"].isna().all():
        return table, ()
    primary, arm = primary_frame(table.frame), table.frame["arm"]
    names = sorted(arm.dropna().astype(str).unique())
    if len(primary) < len(arm):
        remark = f"{int(arm.notna().sum())} rows of other arms are set aside; judge each with " + ", ".join(
            f"--where arm={name}" for name in names
        )
        return Table(primary, table.path, table.sha256), (remark,)
    if len(names) > 1:
        raise InputError(
            f"{table.path}: column arm: every row belongs to one of the arms {', '.join(names)}; choose one with "
            f"--where arm={names[0]}"
        )
    return table, ()


def read_table(path: str | Path) -> Table:
    """Read a CSV or parquet file, or the `measurements.csv` / `.parquet` of a study folder.

    Raises:
        InputError: the file is missing, empty, binary, ragged, has a duplicate column, text or an infinity in a
            numeric column.
    """
    given = str(path)
    file = _locate(Path(path))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{given}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if not data.strip():
        raise InputError(f"{given}: the file is empty; write a header line and one row per run")
    digest = hashlib.sha256(data).hexdigest()
    is_parquet = data[:4] == b"PAR1"
    del data
    frame = _read_parquet(file, given) if is_parquet else _read_csv(file, given)
    if frame.empty:
        raise InputError(f"{given}: there is a header but no row; write one row per run")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    for name in frame.columns:
        if name in NUMERIC:
            frame[name] = numeric_column(frame[name], name, given)
    return Table(frame.copy(), given, digest)  # a copy is in one block again


def table_from_frame(frame: pd.DataFrame, path: str = "<memory>") -> Table:
    """Wrap a data frame (for figures and simulations), with the checks of `read_table`."""
    if frame.empty:
        raise InputError(f"{path}: the table has no row")
    frame = frame.copy()
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    for name in frame.columns:
        if name in NUMERIC:
            frame[name] = numeric_column(frame[name], str(name), path)
    return Table(frame, path)


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("measurements.csv", "measurements.parquet"):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: the folder holds no measurements.csv or measurements.parquet; collect the study first")


def _read_parquet(file: Path, given: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except Exception as error:  # pyarrow raises many types; each means the file is damaged
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{given}: a damaged parquet file ({first}); write it again") from None


def _read_csv(file: Path, given: str) -> pd.DataFrame:
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            header = next(csv.reader(handle), [])
        if "\x00" in "".join(header):
            raise UnicodeError
        if len(header) == 1 and header[0].count(";") > 1:
            raise InputError(f"{given}: the fields are separated by ';'; export the table with commas")
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise InputError(f"{given}: column {repeated[0]!r} occurs twice in the header; rename or remove one")
        with warnings.catch_warnings():
            # A row with too many fields is an error here, neither a shifted index nor a warning and lost data.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(file, encoding="utf-8-sig", index_col=False, low_memory=False, skipinitialspace=True)
    except InputError:
        raise
    except (UnicodeError, csv.Error):
        raise InputError(f"{given}: neither text (UTF-8 CSV) nor parquet; export the table as CSV") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, ValueError) as error:
        first = " ".join(str(error).split())
        raise InputError(f"{given}: not a readable CSV ({first}); every row needs the header's fields") from None


def numeric_column(column: pd.Series, name: str, path: str) -> pd.Series:
    """The column as float64; missing values stay NaN.

    Raises:
        InputError: a cell is text or infinite; the first one is named.
    """
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
        bad = numbers.isna() & column.notna()
        if pd.api.types.is_bool_dtype(column):
            bad = column.notna()
        if bad.any():
            row, value = _first(bad, column)
            raise InputError(
                f"{path}: column {name}, row {row}: {str(value)[:40]!r} is not a number; correct it or "
                "leave the cell empty"
            )
        column = numbers
    column = column.astype(np.float64)
    infinite = column.abs() == np.inf
    if infinite.any():
        row, _ = _first(infinite, column)
        raise InputError(
            f"{path}: column {name}, row {row}: the value is infinite; leave the cell empty if the run diverged"
        )
    size = column.abs()
    absurd = (size > LARGEST) | ((size > 0) & (size < 1 / LARGEST))
    if absurd.any():
        row, value = _first(absurd, column)
        raise InputError(f"{path}: column {name}, row {row}: {value:g} lies outside 1e-100 to 1e100; check the unit")
    return column


def _first(mask: pd.Series, column: pd.Series) -> tuple[int, Any]:
    """Row number and value of the first row where the mask is True."""
    position = int(np.flatnonzero(mask.to_numpy())[0])
    return int(column.index[position]), column.iloc[position]


def claim_rows(
    table: Table, claim: str, required: Sequence[str], measured: str, optional: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """The rows that speak about one claim, and remarks on those left out.

    A row speaks about the claim if its measured column is not empty and, where the table has a column `claim`,
    if that names this claim (or nothing). Ranges are checked on these rows only, so that a table may carry
    several experiments.

    Raises:
        InputError: a required cell is empty or out of range.
    """
    frame, remarks = table.frame, []
    if "claim" in frame:
        frame = frame[frame["claim"].isna() | (frame["claim"].astype(str) == claim)]
    empty = frame[measured].isna()
    if empty.any():
        complete = frame[[c for c in required if c != measured]].notna().all(axis=1)
        # A row that names no claim and lacks the column belongs to another experiment of the same table.
        if "claim" in frame:
            complete &= frame["claim"].notna()
        left_out = int((empty & complete).sum())
        if left_out:
            remarks.append(
                f"{left_out} of {len(frame)} rows have no {measured} and were left out: if those runs diverged, the "
                "verdict holds for the surviving runs only"
            )
        frame = frame[~empty]
    for name in (*required, *(c for c in optional if c in frame)):
        column = frame[name]
        if name in required and column.isna().any():
            row, _ = _first(column.isna(), column)
            raise InputError(f"{table.path}: column {name}, row {row}: empty, but {claim} needs it; fill the cell in")
        limit, word = (0.0, "positive") if name in POSITIVE | POSITIVE_MEASURED else (-np.inf, "")
        bad = column <= limit
        if name in NON_NEGATIVE:
            bad, word = column < 0, "zero or positive"
        if bad.any():
            row, value = _first(bad, column)
            raise InputError(
                f"{table.path}: column {name}, row {row}: {value:g} must be {word}; correct or remove the row"
            )
    return frame, remarks


def resolve_duplicates(
    frame: pd.DataFrame, path: str, claim: str, key: Sequence[str], values: Sequence[str], splitters: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Drop repeated rows; find the columns that tell apart rows of the same design point and seed.

    Args:
        key: the columns that name one run (rank, samples, steps, seed, ...), those present in the table.
        values: measured columns; rows that agree in key and values are one row written twice.
        splitters: columns allowed to distinguish rows with the same key.

    Returns:
        the frame and the splitters that were needed.

    Raises:
        InputError: two rows of the same run hold different values.
    """
    key = [c for c in key if c in frame]
    values = [c for c in values if c in frame]
    present = [c for c in splitters if c in frame]
    frame = frame.loc[~frame.duplicated([*key, *values])] if not _is_unique(frame, key) else frame
    if _is_unique(frame, key):
        return frame, []
    if present and _is_unique(frame, [*key, *present]):
        return frame, present
    full_key = [*key, *present]
    group = frame.groupby(full_key, dropna=False, sort=False).ngroup().to_numpy()
    later = int(np.flatnonzero(frame.duplicated(full_key).to_numpy())[0])
    earlier = int(np.flatnonzero(group == group[later])[0])
    first, second = frame.iloc[earlier], frame.iloc[later]
    differing = [
        c for c in frame.columns if c not in {*key, *values} and c not in NUMERIC and str(first[c]) != str(second[c])
    ]
    point = describe(key, [second[c] for c in key])
    remedy = (
        f"choose one arm with --where {differing[0]}={first[differing[0]]}"
        if differing
        else "remove one, or give the runs different seeds"
    )
    raise InputError(
        f"{path}: column {values[0]}, rows {frame.index[earlier]} and {frame.index[later]}: two values for the same "
        f"{claim} cell ({point}); {remedy}"
    )


def describe(names: Sequence[str], values: Iterable[Any]) -> str:
    """`rank=8, site=q`: a design point in words."""
    return ", ".join(f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in zip(names, values, strict=True))


def _is_unique(frame: pd.DataFrame, columns: Sequence[str]) -> bool:
    return not frame.duplicated(list(columns)).any()


def longest_training(frame: pd.DataFrame, run: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Where a run has rows at several `steps`, keep the longest training of its rank and samples.

    Args:
        run: the columns that name a run apart from `steps`.
    """
    if "steps" not in frame or not frame.duplicated(list(run)).any():
        return frame, []
    point = [c for c in run if c != "seed"]
    longest = frame.groupby(point, dropna=False)["steps"].transform("max")
    kept = frame[(frame["steps"] == longest) | longest.isna()]  # where no row says its steps there is no choice
    return kept, [f"rows at several steps per run: the {len(kept)} rows of the longest training were judged"]
