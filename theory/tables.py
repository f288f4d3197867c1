"""The measurement table: read, renamed, reduced to some rows, and turned into the columns that claims know.

The table is the interface between whoever ran the experiments and the judge: one row per run (or a run x site).
Everything that can be wrong with it ends in an `InputError` whose single line names the file, the column, the row and
what to do; nothing else in this package has to think about bad input. `theory.formats` reads the bytes,
`theory.names` matches names of columns, `theory.conditions` selects rows.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from theory.conditions import satisfied
from theory.errors import InputError as InputError
from theory.errors import OptionError
from theory.formats import frame_of, plain_frame
from theory.names import Names, either, listed, quoted, repeated

#: Columns that are counts of something: strictly positive wherever a claim uses them.
POSITIVE = frozenset({"rank", "samples", "steps", "d_in", "d_out", "params"})

#: Measured quantities that cannot be negative by definition. `gap` is signed and is not one of them.
POSITIVE_MEASURED = frozenset(
    {
        "step_size",
        "smoothness",
        "mi_ceiling",
        "dynamics_baseline",
        "weight_bytes",
        "flops_per_token",
        "decode_ms_per_token",
    }
)
NON_NEGATIVE = frozenset(
    {
        "seed",
        "clone_weight",
        "grad_variance",
        "loss_decrease",
        "dynamics_divergence",
        "tokens",
        "training_flops",
        "training_seconds",
    }
)

#: Every numeric column of the measurement table, and `teacher_loss`, the best loss that a student can reach.
NUMERIC = (
    POSITIVE
    | POSITIVE_MEASURED
    | NON_NEGATIVE
    | {
        "train_loss",
        "test_loss",
        "valid_loss",
        "gap",
        "grad_norm_sq",
        "approx_loss",
        "teacher_loss",
        "mutual_information",
        "mi_floor",
    }
)

#: Columns of text that change what is judged: where rows belong.
LABELS = ("arm", "claim", "site", "teacher", "labels", "student", "method")

KNOWN = NUMERIC | frozenset(LABELS)

#: Magnitudes beyond this, or below its inverse, are a wrong unit or an overflow (their squares would leave float64).
LARGEST = 1e100


@dataclass(frozen=True)
class Table:
    """A measurement table in memory.

    Attributes:
        frame: the rows; the index is the row number counted from 1 (the header is not counted).
        path: the file as it was named by the user.
        sha256: digest of the file's bytes ("" for a table that was never a file).
        remarks: what was read in another way than it was written.
    """

    frame: pd.DataFrame
    path: str = "<memory>"
    sha256: str = ""
    remarks: tuple[str, ...] = ()

    @cached_property
    def names(self) -> Names:
        """The columns, found by names that are only similar."""
        return Names([str(column) for column in self.frame.columns])

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Columns that are absent, or present without a single value."""
        return [c for c in columns if c not in self.frame or self.frame[c].isna().all()]

    def require(self, name: str | None, option: str) -> None:
        """Raise OptionError unless an option's column is there (None: it was not given)."""
        if name is None or name in self.names.columns:
            return
        near = self.names.similar(name)
        hint = f"did you mean {either(near)}?" if near else f"the columns are {listed(self.names.columns)}"
        raise OptionError(option, f"{name}: no such column in {self.path}; {hint}")

    def numbers(self, columns: Sequence[str]) -> pd.DataFrame:
        """These columns as numbers, without gaps.

        Raises:
            InputError: text or a gap in one of them.
        """
        found = {c: numeric_column(self.frame[c], c, self.path) for c in columns}
        for name, values in found.items():
            empty = values.isna().to_numpy()
            if empty.any():
                row = self.frame.index[empty][0]
                raise InputError(f"{self.path}: column {name}, row {row}: empty; fill the cell or remove the row")
        return pd.DataFrame(found, index=self.frame.index)

    def lacking(self, columns: Iterable[str]) -> str:
        """Missing columns in words, each with the columns that were probably meant."""
        words = []
        for name in columns:
            near = self.names.similar(name)
            if near:
                hint = f" (did you mean column {either(near)}? say --columns {name}={quoted(near[0])})"
            else:
                hint = " (the column is empty)" if name in self.frame else ""
            words.append(name + hint)
        return ", ".join(words)

    def renamed(self, columns: Mapping[str, str]) -> Table:
        """The table with columns under new names.

        Args:
            columns: new name -> name in the table.

        Raises:
            InputError: a column is absent, or two columns would have one name.
        """
        if not columns:
            return self
        new: dict[str, str] = {}
        for name, old in columns.items():
            try:
                found = self.names.one_of(old)
            except InputError as error:
                raise InputError(f"{self.path}: --columns {name}={old}: {error}") from None
            if found in new:
                raise InputError(
                    f"{self.path}: --columns: {found} is to be both {new[found]} and {name}; give one name"
                )
            new[found] = name
        twice = repeated(new.get(str(c), str(c)) for c in self.frame.columns)
        if twice is not None:
            raise InputError(
                f"{self.path}: --columns {twice}={columns.get(twice, twice)}: there is a column {twice} already; give "
                f"that one another name too, such as {twice}_old={twice}"
            )
        return replace(self, frame=self.frame.rename(columns=new))

    def where(self, conditions: Sequence[str]) -> Table:
        """The rows that satisfy every condition, see `theory.conditions`.

        Raises:
            InputError: a condition is malformed, names no column, or leaves no row.
        """
        table = self
        for condition in (conditions,) if isinstance(conditions, str) else conditions:
            try:
                keep = satisfied(table.frame, table.names, condition)
            except InputError as error:
                raise InputError(f"{self.path}: --where {condition!r}: {error}") from None
            if not keep.any():
                raise InputError(f"{self.path}: --where {condition!r}: no row is left; check the value")
            table = replace(table, frame=table.frame[keep])
        return table

    def known(self) -> Table:
        """The table with the columns that claims use: under the judge's names, as numbers.

        A known column that is absent is read from the one column whose name differs in case, blanks, punctuation, a
        tracker's prefix, or is a usual other name; a remark says so. Text in `seed` numbers the runs.

        Raises:
            InputError: text or an infinity in a column of numbers; the first such cell is named.
        """
        new: dict[str, str] = {}
        for name in sorted(NUMERIC) + list(LABELS):
            if name in self.frame:
                continue
            found = self.names.spelled(name)
            if not found and name in NUMERIC:
                found = [c for c in self.names.alias(name) if pd.api.types.is_numeric_dtype(self.frame[c])]
            if len(found) == 1 and found[0] not in KNOWN:
                new[found[0]] = name
        remarks = (
            [f"columns read under other names: {', '.join(f'{o!r} as {n}' for o, n in new.items())}"] if new else []
        )
        numbers = {}
        for column in self.frame.columns:
            name = new.get(column, column)
            if name == "seed" and not pd.api.types.is_numeric_dtype(self.frame[column]):
                continue
            if name in NUMERIC:
                numbers[column] = numeric_column(self.frame[column], str(column), self.path)
        frame = self.frame.assign(**numbers) if numbers else self.frame
        frame = frame.rename(columns=new) if new else frame
        if "seed" in frame and not pd.api.types.is_numeric_dtype(frame["seed"]):
            # Sorted, so that the order of the rows does not change which number a label gets.
            labels = frame["seed"].astype(str).str.strip().where(frame["seed"].notna())
            order = {label: float(number) for number, label in enumerate(sorted(labels.dropna().unique()))}
            if pd.to_numeric(pd.Series(list(order), dtype=str), errors="coerce").isna().any():
                coded = {"seed": labels.map(order).astype(np.float64)}
                if "pilot_seed" in frame:
                    coded["pilot_seed"] = frame["pilot_seed"].astype(str).str.strip().map(order).astype(np.float64)
                frame = frame.assign(**coded)
                remarks.append(f"seed holds text: its {len(order)} labels are numbered from 0")
            else:
                frame = frame.assign(seed=numeric_column(frame["seed"], "seed", self.path))
        return replace(self, frame=frame, remarks=(*self.remarks, *remarks))

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
        return replace(self, frame=frame)


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
        return replace(table, frame=primary), (remark,)
    if len(names) > 1:
        raise InputError(
            f"{table.path}: column arm: every row belongs to one of the arms {', '.join(names)}; choose one with "
            f"--where arm={names[0]}"
        )
    return table, ()


def read_table(path: str | Path) -> Table:
    """Read a table as it stands: a file of any format of `theory.formats`, the `measurements.csv` or `.parquet` of a
    study folder, or standard input for "-".

    Raises:
        InputError: there is no such file, or it holds no table; the message says what it holds.
    """
    data, given = _bytes_of(path)
    return Table(_numbered(frame_of(data, given), given), given, hashlib.sha256(data).hexdigest())


def wrap_frame(frame: pd.DataFrame, path: str = "<memory>") -> Table:
    """A data frame as a table, as it stands: named levels of its index are columns.

    Raises:
        InputError: it has no row, or two columns have one name.
    """
    return Table(_numbered(plain_frame(frame, path), path), path)


def load_table(
    measurements: pd.DataFrame | str | Path, *, columns: Mapping[str, str] | None = None, where: Sequence[str] = ()
) -> Table:
    """Measurements as a table: read, renamed, and reduced to the rows asked for.

    Args:
        measurements: a DataFrame with one row per run, a file, "-" for standard input, or a study folder.
        columns: new name -> name in the table.
        where: conditions that select rows, with the new names: "rank >= 8", "arm != control", "site empty".

    Raises:
        InputError: they cannot be used.
    """
    table = wrap_frame(measurements) if isinstance(measurements, pd.DataFrame) else read_table(measurements)
    return table.renamed(columns or {}).where(where)


def table_from_frame(frame: pd.DataFrame, path: str = "<memory>") -> Table:
    """A data frame as a table of the judge's columns (for figures and simulations)."""
    return wrap_frame(frame, path).known()


def _numbered(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    """The rows of a frame of our own that hold anything, numbered as they were written: a spreadsheet ends in rows of
    separators alone."""
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    if len(frame.columns) and frame.iloc[:, 0].isna().any():
        frame = frame.dropna(how="all")
    if frame.empty:
        raise InputError(f"{path}: the table has no row; write one row per run")
    return frame.copy()  # a copy is in one block again


def _bytes_of(path: str | Path) -> tuple[bytes, str]:
    """A file's content and its name in messages."""
    if str(path) == "-":
        return sys.stdin.buffer.read(), "standard input"
    file = _locate(Path(path))
    try:
        return file.read_bytes(), str(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("measurements.csv", "measurements.parquet"):
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: the folder holds no measurements.csv or measurements.parquet; collect the study first")


def numeric_column(column: pd.Series, name: str, path: str) -> pd.Series:
    """The column as float64; missing values stay NaN.

    Raises:
        InputError: a cell is text or infinite; the first one is named.
    """
    kind = column.dtype
    boolean = pd.api.types.is_bool_dtype(kind)
    if boolean or pd.api.types.is_complex_dtype(kind) or not pd.api.types.is_numeric_dtype(kind):
        texts = column.astype(str).where(column.notna())  # also what is nested, a date, or an integer beyond float64
        numbers = pd.to_numeric(texts.str.strip().replace("", None), errors="coerce").astype(np.float64)
        bad = numbers.isna() & texts.notna() & (texts.str.strip() != "") | (column.notna() & boolean)
        if bad.any():
            row, value = _first(bad, column)
            value = str(value)
            comma = "a comma can mean thousands or decimals; " if re.fullmatch(r"\s*[-+]?[\d.,]+\s*", value) else ""
            raise InputError(
                f"{path}: column {name}, row {row}: {value[:40]!r} is not a number; {comma}correct it or "
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
        if name not in NUMERIC:  # a label
            continue
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
    frame = frame.loc[~frame[[*key, *values]].duplicated()] if not _is_unique(frame, key) else frame
    if _is_unique(frame, key):
        return frame, []
    if present and _is_unique(frame, [*key, *present]):
        return frame, present
    full_key = [*key, *present]
    group = frame.groupby(full_key, dropna=False, sort=False).ngroup().to_numpy()
    later = int(np.flatnonzero(frame[full_key].duplicated().to_numpy())[0])
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
    # The columns first: `frame.duplicated(columns)` looks at every column of a wide table.
    return not frame[list(columns)].duplicated().any()


def longest_training(frame: pd.DataFrame, run: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Where a run has rows at several `steps`, keep the longest training of its rank and samples.

    Args:
        run: the columns that name a run apart from `steps`.
    """
    if "steps" not in frame or _is_unique(frame, run):
        return frame, []
    point = [c for c in run if c != "seed"]
    longest = frame.groupby(point, dropna=False)["steps"].transform("max")
    kept = frame[(frame["steps"] == longest) | longest.isna()]  # where no row says its steps there is no choice
    return kept, [f"rows at several steps per run: the {len(kept)} rows of the longest training were judged"]
