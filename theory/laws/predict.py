"""Predictions of a fitted law at new points: intervals for its mean and for a new run, and the distance from the data.

Source: percentile bootstrap for the mean; for a new run the residuals' quantile, corrected for leverage, is added in
quadrature (Stine 1985, section 3). Outside the fitted range the error that the law made on its held-out half-decade is
added per half-decade of distance: the bootstrap knows nothing of a law that bends there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from theory.errors import InputError, OptionError
from theory.judge.intervals import small_sample_factor, t_quantile
from theory.laws.parser import Law, LawError, parse_law
from theory.tables import numeric_column

#: Kept quantiles of the residuals: enough for any level that the rows support.
MOST_RESIDUALS = 2000
#: From so many rows on the residuals' own quantile is used, else Student's.
ENOUGH_ROWS = 40
#: A point whose prediction varies along a null direction by more standard deviations of a residual is undetermined.
LOOSE = 10.0
HALF_DECADE = 0.5
#: A distance below this, in decades, is rounding.
INSIDE = 1e-9


@dataclass(frozen=True)
class Predictor:
    """A fitted law as it is saved.

    Attributes:
        theta: [p] estimates. draws: [B, p] bootstrap draws.
        sizes: sorted absolute residuals on the fit's scale, corrected for leverage. degrees: rows less parameters.
        clusters: independent ones behind the draws. ranges: lowest and highest value by column.
        null: [k, p] what the table does not determine, one standard error long. sigma: robust deviation of residuals.
        deviation: coefficients of ln sd on (1, ln columns) on the linear scale; empty where the scale is logarithmic.
        holdout: root mean square error on the held-out half-decade; NaN if there was none.
    """

    law: Law
    target: str
    log_scale: bool
    theta: np.ndarray
    draws: np.ndarray
    sizes: np.ndarray
    degrees: int
    clusters: int
    ranges: Mapping[str, tuple[float, float]]
    null: np.ndarray
    sigma: float
    deviation: np.ndarray
    holdout: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "columns": list(self.law.columns),
            "log_scale": self.log_scale,
            "draws": self.draws.tolist(),
            "residual_sizes": self.sizes.tolist(),
            "degrees_of_freedom": self.degrees,
            "ranges": {c: list(r) for c, r in self.ranges.items()},
            "null_directions": self.null.tolist(),
            "residual_sd": self.sigma,
            "deviation": self.deviation.tolist(),
        }

    def predict(self, frame: pd.DataFrame, interval: float = 0.95, path: str = "<memory>") -> Prediction:
        """Predict the target for every row of a table with the law's columns.

        Args:
            frame: one row per new point. interval: level of the intervals, between .5 and .999.
            path: of the table, for errors.

        Raises:
            InputError: a column is missing, a cell is empty or no number, or the draws are too few for this level.
        """
        if not 0.5 <= interval <= 0.999:
            raise OptionError("interval", f"{interval:g}: a level between 0.5 and 0.999 is needed, such as 0.95")
        tail = 0.5 - interval / 2
        if len(self.draws) * tail < 1.0 - 1e-9:
            raise OptionError(
                "interval",
                f"{interval:g}: the fit has {len(self.draws)} bootstrap draws and needs {int(np.ceil(1 / tail))}; fit "
                "again with more --bootstraps",
            )
        data = self._data(frame, path)
        n = len(frame)
        with np.errstate(all="ignore"):
            value, slopes = (a[0] for a in self.law.evaluate(self.theta[None, :], data))
            drawn = self.law.evaluate(self.draws, data)[0]
            if self.log_scale:
                centre, drawn, slopes, sd = np.log(value), np.log(drawn), slopes / value[:, None], np.ones(n)
            else:
                design = np.column_stack([np.ones(n), *(np.log(data[c]) for c in self.law.columns)])
                sd = np.exp(design[:, : len(self.deviation)] @ self.deviation)
                centre = value
            stretch = (
                small_sample_factor(self.clusters) * t_quantile(1 - tail, self.clusters - 1) / special.ndtri(1 - tail)
            )
            low, high = np.nanquantile(np.where(np.isfinite(drawn), drawn, np.nan), [tail, 1 - tail], axis=0)
            decades = {c: self._distance(c, data[c]) for c in self.law.columns}
            farthest = np.max(list(decades.values()), axis=0)
            bend = np.where(farthest > INSIDE, np.nan_to_num(self.holdout) * farthest / HALF_DECADE, 0.0) * sd
            below = np.hypot(stretch * np.maximum(centre - low, 0.0), bend)
            above = np.hypot(stretch * np.maximum(high - centre, 0.0), bend)
            noise = self._noise(interval) * sd
            ends = {
                "mean_low": centre - below,
                "mean_high": centre + above,
                "low": centre - np.hypot(below, noise),
                "high": centre + np.hypot(above, noise),
            }
            loose = np.zeros(n, dtype=bool)
            if len(self.null):
                moved = np.abs(slopes @ self.null.T) / sd[:, None]
                loose = (moved > LOOSE * self.sigma).any(axis=1)
        unknown = loose | ~np.isfinite(centre)
        table = pd.DataFrame({c: data[c] for c in self.law.columns})
        table[self.target] = np.where(np.isfinite(value), value, np.nan)
        for name, end in ends.items():
            table[name] = np.where(unknown, np.nan, np.exp(end) if self.log_scale else end)
        table["outside"] = farthest > INSIDE
        table["decades"] = farthest
        for c, distance in decades.items():
            table[f"decades_{c}"] = distance
        table.index = frame.index
        return Prediction(self.law.text, self.target, interval, table, self._remarks(table, loose, decades))

    def _data(self, frame: pd.DataFrame, path: str) -> dict[str, np.ndarray]:
        data = {}
        for c in self.law.columns:
            if c not in frame:
                raise InputError(
                    f"{path}: no column {c!r}, which the law needs; columns are {', '.join(map(str, frame))}"
                )
            column = numeric_column(frame[c], c, path)
            if column.isna().any():
                raise InputError(f"{path}: column {c}, row {column.index[column.isna()][0]}: empty; fill the cell")
            data[c] = column.to_numpy()
        return data

    def _distance(self, column: str, x: np.ndarray) -> np.ndarray:
        """[n] decades beyond the fitted range; where the column is not positive, in widths of the range."""
        low, high = self.ranges[column]
        if low > 0:
            with np.errstate(all="ignore"):
                log = np.where(x > 0, np.log10(np.maximum(x, 1e-300)), -np.inf)
            away = np.maximum(np.log10(low) - log, log - np.log10(high))
        else:
            away = np.maximum(low - x, x - high) / max(high - low, 1e-300)
        return np.where(away > INSIDE, away, 0.0)

    def _noise(self, interval: float) -> float:
        """Half width for one new run about a known mean, in the fit's units.

        The residuals' own quantile, at the rank that covers a new draw with this probability; Student's for few rows.
        """
        n = len(self.sizes)
        if n >= ENOUGH_ROWS and np.ceil((n + 1) * interval) <= n:
            return float(self.sizes[int(np.ceil((n + 1) * interval)) - 1])
        return float(np.sqrt(np.mean(self.sizes**2)) * t_quantile(0.5 + interval / 2, self.degrees))

    def _remarks(self, table: pd.DataFrame, loose: np.ndarray, decades: dict[str, np.ndarray]) -> tuple[str, ...]:
        remarks = []
        outside = int(table["outside"].sum())
        if outside:
            widest = ", ".join(
                f"{c} by up to {d.max():.2g} {'decades' if self.ranges[c][0] > 0 else 'widths of its range'}"
                for c, d in decades.items()
                if d.max() > 0
            )
            how = (
                f"their intervals are widened by the law's held-out error ({self.holdout:.3g} per half-decade)"
                if np.isfinite(self.holdout)
                else "no held-out error is known, so that their intervals trust the law"
            )
            remarks.append(f"{outside} of {len(table)} points lie outside the fitted range ({widest}): {how}")
        if loose.any():
            remarks.append(
                f"{int(loose.sum())} of {len(table)} points depend on parameters that the table does not determine: "
                "no interval"
            )
        undefined = int(table[self.target].isna().sum())
        if undefined:
            remarks.append(f"the law has no value at {undefined} of {len(table)} points")
        return tuple(remarks)


@dataclass(frozen=True, repr=False)
class Prediction:
    """Predictions of a law.

    Attributes:
        frame: one row per point: the law's columns, the target, `mean_low`, `mean_high` (interval of the mean), `low`,
            `high` (of a new run), `outside`, `decades` (distance from the fitted range) and `decades_COLUMN`.
        interval: level. remarks: on points outside the range, and on undetermined ones.
    """

    law: str
    target: str
    interval: float
    frame: pd.DataFrame
    remarks: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Prediction({self.target} = {self.law}; {len(self.frame)} points, level {self.interval:g})"

    def to_frame(self) -> pd.DataFrame:
        return self.frame.copy()

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "target": self.target,
            "interval": self.interval,
            "remarks": list(self.remarks),
            "points": [
                {str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()}
                for row in self.frame.to_dict(orient="records")
            ],
        }


def read_fit(path: str | Path) -> Predictor:
    """Read a fit that `theory fit --json` or `FitResult.save` wrote.

    Raises:
        InputError: the file is missing, no JSON, or not such a fit.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except (UnicodeError, ValueError):
        raise InputError(f"{path}: not JSON; write a fit with theory fit ... --json {path}") from None
    try:
        kept = saved["prediction"]
        law = parse_law(saved["law"], kept["columns"])
        p = len(law.parameters)
        nan = float("nan")
        made = Predictor(
            law=law,
            target=str(saved["target"]),
            log_scale=bool(kept["log_scale"]),
            theta=np.array([saved["parameters"][name]["estimate"] for name in law.parameters], dtype=np.float64),
            draws=np.array(kept["draws"], dtype=np.float64).reshape(-1, p),
            sizes=np.array(kept["residual_sizes"], dtype=np.float64),
            degrees=int(kept["degrees_of_freedom"]),
            clusters=int(saved["clusters"]),
            ranges={c: (float(kept["ranges"][c][0]), float(kept["ranges"][c][1])) for c in law.columns},
            null=np.array(kept["null_directions"], dtype=np.float64).reshape(-1, p),
            sigma=float(kept["residual_sd"]),
            deviation=np.array(kept["deviation"], dtype=np.float64),
            holdout=float(saved["holdout_log_rmse"]) if saved["holdout_log_rmse"] is not None else nan,
        )
    except (KeyError, TypeError, ValueError, IndexError, LawError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a fit of theory fit ({what}); fit again with --json {path}") from None
    if not (np.isfinite(made.theta).all() and made.sizes.size and made.degrees > 0):
        raise InputError(f"{path}: not a whole fit of theory fit; fit again with --json {path}")
    return made
