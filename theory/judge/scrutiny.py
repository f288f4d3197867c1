"""What must be noticed about a table before its numbers are believed.

Some tables cannot be used and end in an `InputError` that names the rows: copies passed off as replicates, several
teachers in one law, a rank that no matrix of that shape has. Others can, with a remark and without the words that the
remark casts doubt on: a design column that changes along N, runs missing at one end of N, one run far off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from theory.judge.verdicts import CONSISTENT, HOLDS, INCONCLUSIVE, LOOSE, REFUTED, UNTESTABLE
from theory.laws.least_squares import smooth_deviation
from theory.tables import InputError, describe

#: Columns of which a law has one value: rows with two of them are two experiments.
ONE_PER_LAW = ("teacher", "labels", "student")
#: What is measured: where these change along a coordinate, the coordinate's effect cannot be told from theirs.
POPULATION = ("data", "dataset")
#: How it is measured: where these change along a coordinate, "at the claimed rate" is not said.
PROTOCOL = (
    "optimizer", "schedule", "learning_rate", "lr", "batch_size", "sequence_length", "temperature", "steps",
    "code_version",
)  # fmt: skip
COPIES = 4  # significant digits: values that need more are not equal by rounding
FEWER_LEVEL = 0.01
FEWER_SHARE = 0.1
FAR_SPREADS = 8.0
FAR_FACTOR = 2.0
CLEAR = 3.0


@dataclass(frozen=True)
class Doubt:
    """A remark, and the words that it rules out for one coordinate."""

    remark: str
    instead: dict[str, str]

    def applied(self, word: str) -> str:
        return self.instead.get(word, word)


def refuse_mixtures(frame: pd.DataFrame, path: str, claim: str) -> None:
    """Raise InputError where rows of several teachers, kinds of labels or students would enter one law."""
    for name in ONE_PER_LAW:
        if name not in frame or frame[name].nunique() < 2:
            continue
        counts = frame[name].value_counts()
        values = ", ".join(f"{value} ({n} rows)" for value, n in counts.head(4).items())
        raise InputError(
            f"{path}: column {name}: the rows of {claim} have several values, {values}, and are different "
            f"experiments; choose one with --where {name}={counts.index[0]}"
        )


def refuse_impossible_shapes(frame: pd.DataFrame, path: str) -> None:
    """Raise InputError for a rank that exceeds min(d_in, d_out), and for a cell whose runs differ in shape."""
    shape = [c for c in ("d_in", "d_out") if c in frame and frame[c].notna().any()]
    if not shape or "rank" not in frame:
        return
    smaller = frame[shape].min(axis=1)
    above = (frame["rank"] > smaller).to_numpy()
    if above.any():
        k = int(np.argmax(above))
        raise InputError(
            f"{path}: column rank, row {frame.index[k]}: rank {frame['rank'].iloc[k]:g} exceeds min(d_in, d_out) = "
            f"{smaller.iloc[k]:g}; no matrix of that shape has it: correct the rank or the shape"
        )
    # A shape may follow the rank, and several shapes may be a design; a seed or two that differ are a slip.
    point = [c for c in ("rank", "samples", "steps", "site") if c in frame]
    for name in shape:
        cell = frame.groupby(point, dropna=False)[name]
        mixed = (cell.transform("nunique") > 1).to_numpy()
        if not mixed.any() or frame.loc[mixed, [*point, "seed"]].duplicated().any():
            continue
        count = frame.groupby([*point, name], dropna=False)[name].transform("size").to_numpy()
        odd = np.flatnonzero(mixed & (count < 3))
        if len(odd):
            k = int(odd[np.argmin(count[odd])])
            raise InputError(
                f"{path}: column {name}, row {frame.index[k]}: {frame[name].iloc[k]:g}, unlike the other seeds of its "
                f"cell ({describe(point, frame[point].iloc[k])}); seeds are replicates of one shape: correct it"
            )


def refuse_copies(frame: pd.DataFrame, path: str, design: Sequence[str], value: str) -> None:
    """Raise InputError where seeds of a cell hold equal measured values: copies are no replicates.

    Values that are equal after rounding to few digits do not count, nor does a single coincidence.
    """
    numbers = frame[value].to_numpy(dtype=np.float64)
    with np.errstate(all="ignore"):
        digits = np.floor(np.log10(np.abs(numbers)))
        rounded = np.round(numbers / 10.0 ** (digits - COPIES + 1)) * 10.0 ** (digits - COPIES + 1)
    long = np.isfinite(rounded) & (np.abs(rounded - numbers) > 1e-9 * np.abs(numbers))
    key = [*design, value]
    repeated = frame[key].duplicated(keep=False).to_numpy() & long
    if repeated.sum() < 4 or repeated.sum() < 0.1 * len(frame):
        return
    rows = frame[repeated]
    same = rows.groupby(key, dropna=False, sort=False).ngroup().to_numpy() == 0
    first, twin = rows.iloc[0], rows[same].iloc[1]
    raise InputError(
        f"{path}: column {value}, rows {first.name} and {twin.name}: seeds {first['seed']:g} and {twin['seed']:g} "
        f"hold the same value, as do {int(repeated.sum())} of {len(frame)} rows; copies are no replicates: remove them"
    )


def confounded(frame: pd.DataFrame, coordinate: str, ignore: Sequence[str] = ()) -> list[Doubt]:
    """Design columns that change along a coordinate, so that its effect cannot be told from theirs."""
    found = []
    for name in (*POPULATION, *PROTOCOL):
        if name not in frame or name == coordinate or name in ignore or frame[name].nunique() < 2:
            continue
        by_level = frame.groupby(coordinate)[name]
        usual = by_level.agg(lambda v: v.mode().iloc[0] if v.notna().any() else np.nan)
        share = frame[name].eq(frame[coordinate].map(usual)).mean()
        if usual.nunique() < 2 or share < 0.9:
            continue
        values = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in usual.drop_duplicates().head(3))
        remark = f"{coordinate} is confounded with {name}, which changes along it ({values})"
        if name in POPULATION:
            remark += f": no verdict on {coordinate} is given; judge each with --where {name}=..."
            instead = dict.fromkeys((REFUTED, LOOSE, HOLDS, CONSISTENT), INCONCLUSIVE)
        else:
            # A protocol that scales with the coordinate (steps per epoch) has a value per level; few values are two
            # studies put together.
            instead = {CONSISTENT: INCONCLUSIVE} if usual.nunique() < len(usual) else {}
        found.append(Doubt(remark, instead))
    return found


def survivors(levels: np.ndarray, replicates: np.ndarray, coordinate: str) -> list[Doubt]:
    """Fewer runs at one end of a coordinate: if they were dropped for their outcome, the slope is distorted.

    Dropping the worst runs lowers the mean. At the low end that makes the law look slower, at the high end faster, so
    that only there the weaker word is unsafe too.

    Args:
        levels: [C] the coordinate of each cell. replicates: [C] its number of runs.
    """
    ends = np.unique(levels)
    usual = max(float(np.median(replicates[levels == v])) for v in ends)
    present = [float(np.minimum(replicates[levels == v], usual).sum()) for v in (ends[0], ends[-1])]
    planned = [usual * float(np.sum(levels == v)) for v in (ends[0], ends[-1])]
    counts = [[round(p), round(n - p)] for p, n in zip(present, planned, strict=True)]
    shares = [p / n for p, n in zip(present, planned, strict=True)]
    if len(ends) < 2 or abs(shares[0] - shares[1]) < FEWER_SHARE:
        return []
    from scipy import stats  # here, since it takes a third of a second to load and is rarely needed

    if stats.fisher_exact(counts).pvalue >= FEWER_LEVEL:
        return []
    low = shares[0] < shares[1]
    end, other = (0, 1) if low else (1, 0)
    remark = (
        f"fewer runs at {coordinate} = {ends[-end]:g} ({present[end]:g} of {planned[end]:g}) than at "
        f"{ends[-other]:g} ({present[other]:g} of {planned[other]:g}): if runs were dropped for their outcome, the "
        "slope is distorted; CONSISTENT is not given"
    )
    instead = {CONSISTENT: HOLDS} if low else {CONSISTENT: INCONCLUSIVE, HOLDS: INCONCLUSIVE}
    return [Doubt(remark, instead)]


def far_runs(frame: pd.DataFrame, design: Sequence[str], value: str) -> list[str]:
    """Name runs that lie far from the median of their cell."""
    groups = frame.groupby(list(design), dropna=False)[value]
    median, size = groups.transform("median").to_numpy(), groups.transform("size").to_numpy()
    y, usable = frame[value].to_numpy(dtype=np.float64), size >= 3
    deviation = np.abs(y - median)
    cells = frame.assign(**{value: deviation})[usable].groupby(list(design), dropna=False, sort=False)
    if not usable.any():
        return []
    points, mad = cells[list(design)].first(), cells[value].median().to_numpy()
    logs = [np.log(v) for c in design if (v := points[c].to_numpy()).dtype.kind == "f" and (v > 0).all()]
    smooth = smooth_deviation(np.column_stack([np.ones(len(mad)), *logs]), mad, 1.4826 * mad)
    scale = np.full(len(frame), np.inf)
    scale[usable] = np.maximum(smooth, 1.4826 * mad)[cells.ngroup().to_numpy()]
    with np.errstate(all="ignore"):
        ratio = np.abs(np.log(np.where(y > 0, y, np.nan) / median))
    # Where the signal is clear the noise is a factor; elsewhere, and for negative values, it is a difference.
    factor = (median > CLEAR * scale) & (y > 0)
    distance = np.where(factor, ratio * median, deviation) / scale
    far = (distance > FAR_SPREADS) & ~(ratio < np.log(FAR_FACTOR))
    if not far.any():
        return []
    worst = np.flatnonzero(far)[np.argsort(-distance[far], kind="stable")]
    names = [
        f"row {frame.index[k]} ({describe([*design, 'seed'], frame[[*design, 'seed']].iloc[k])}: {value} = "
        f"{frame[value].iloc[k]:.3g}, the cell's median is {median[k]:.3g})"
        for k in worst[:3]
    ]
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return [f"far off: {'; '.join(names)}{more}; look at these runs, they weigh on every number here"]


def apply(word: str, doubts: Sequence[Doubt]) -> str:
    """The word that is left after every doubt."""
    if word == UNTESTABLE:
        return word
    for doubt in doubts:
        word = doubt.applied(word)
    return word
