"""Measurements grouped into design points (cells) and seeds (clusters)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from theory.judge.intervals import cluster_weights, mean_interval, t_interval

if TYPE_CHECKING:
    from pandas.api.typing import SeriesGroupBy

#: Beyond this many seeds they are pooled at random into this many groups: the bootstrap stays exact for the
#: groups (each is an independent cluster) and memory stays bounded for tables of millions of rows.
MAX_CLUSTERS = 400


@dataclass(frozen=True)
class Cells:
    """Measurements grouped into design points (cells) and clusters (seeds).

    Attributes:
        levels: one row per cell with the design columns.
        sums, counts: [S, C] sum and number of the measurements of cluster s in cell c.
        mean, sd, replicates: [C] over all rows of the cell; sd is NaN with one replicate.
        seeds: number of distinct seeds (S is smaller only where seeds were pooled, see `MAX_CLUSTERS`).
    """

    levels: pd.DataFrame
    sums: np.ndarray
    counts: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    replicates: np.ndarray
    seeds: int

    @property
    def clusters(self) -> int:
        return self.sums.shape[0]

    @property
    def size(self) -> int:
        return self.sums.shape[1]

    @property
    def standard_error(self) -> np.ndarray:
        """[C] sd / sqrt(replicates)."""
        return self.sd / np.sqrt(self.replicates)

    def groups(self, names: Sequence[str]) -> np.ndarray:
        """[C] a number for each combination of some design columns; zeros without columns."""
        if not names:
            return np.zeros(self.size, dtype=np.int64)
        return self.levels.groupby(list(names), dropna=False, sort=True).ngroup().to_numpy()

    def effective_clusters(self, weight: np.ndarray | None = None) -> float:
        """(sum_s a_s)^2 / sum_s a_s^2, where a_s is seed s's share in the variance of a weighted sum of cell means.

        A balanced design gives the number of seeds. A seed that occurs in one cell of many hardly counts, so that a
        hundred more of them do not narrow an interval.

        Args:
            weight: [C] weight of each cell mean times the standard deviation of its rows; ones by default.

        References:
            Carter, Schnepel & Steigerwald 2017, Review of Economics and Statistics 99(4).
        """
        per_row = np.square((np.ones(self.size) if weight is None else weight) / self.replicates)
        share = self.counts @ per_row
        total = float(np.sum(share))
        return total**2 / float(np.sum(np.square(share))) if total > 0 else float(self.clusters)

    def keep(self, which: np.ndarray) -> Cells:
        """Some of the cells [C], with the seeds that occur in them."""
        present = self.counts[:, which].sum(axis=1) > 0
        seeds = int(present.sum()) if self.seeds == self.clusters else self.seeds
        return Cells(
            self.levels[which].reset_index(drop=True), self.sums[present][:, which], self.counts[present][:, which],
            self.mean[which], self.sd[which], self.replicates[which], seeds,
        )  # fmt: skip

    def half_widths(self, level: float = 0.95) -> np.ndarray:
        """[C] half of each cell mean's t interval over its rows; NaN with one replicate."""
        rows = zip(self.standard_error, self.replicates, strict=True)
        return np.array([t_interval(0.0, error, int(n), level).high for error, n in rows])

    def draw_seeds(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """[draws, S] how often each seed counts in each bootstrap draw; no draws of a single seed."""
        return cluster_weights(self.clusters, draws if self.clusters >= 2 else 0, rng)

    def distinct_means(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[D, C] bootstrap means of the distinct draws (five seeds allow 126), and [B] which draw is which."""
        distinct, which = np.unique(weights, axis=0, return_inverse=True)
        return self.bootstrap_means(distinct), np.ravel(which)

    def filled(self, means: np.ndarray) -> np.ndarray:
        """[B, C] bootstrap means; a draw without some cell (unbalanced seeds) uses the full mean there."""
        return np.where(np.isfinite(means), means, self.mean)

    def bootstrap_means(self, weights: np.ndarray) -> np.ndarray:
        """[B, C] cell means when cluster s counts weights[b, s] times; NaN where a draw has no row of the cell."""
        total = weights @ self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ self.sums) / total

    def cluster_means(self) -> np.ndarray:
        """[S, C] the mean of each cluster in each cell, NaN where it has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums / self.counts


def mean_points(groups: SeriesGroupBy) -> pd.DataFrame:
    """Means of groups of runs with their 95 % t intervals (columns mean, low, high), for a figure."""
    intervals = [mean_interval(values.to_numpy(dtype=np.float64), 0.95) for _, values in groups]
    means = groups.mean().rename("mean").to_frame()
    return means.assign(low=[i.low for i in intervals], high=[i.high for i in intervals])


def build_cells(frame: pd.DataFrame, design: Sequence[str], value: str) -> Cells:
    """Group rows into cells (unique design points, sorted) and clusters (unique seeds, sorted)."""
    design = list(design)
    groups = frame.groupby(design, sort=True, dropna=False)
    cell = groups.ngroup().to_numpy()
    levels = groups.size().index.to_frame(index=False)
    seeds, cluster = np.unique(frame["seed"].to_numpy(), return_inverse=True)
    clusters = len(seeds)
    if clusters > MAX_CLUSTERS:
        cluster = np.random.default_rng(0).permutation(clusters)[cluster] % MAX_CLUSTERS
        clusters = MAX_CLUSTERS
    y = frame[value].to_numpy(dtype=np.float64)
    shape = (clusters, len(levels))
    flat = cluster * len(levels) + cell
    sums = np.bincount(flat, weights=y, minlength=clusters * len(levels)).reshape(shape)
    counts = np.bincount(flat, minlength=clusters * len(levels)).reshape(shape).astype(np.float64)
    replicates = counts.sum(axis=0)
    mean = sums.sum(axis=0) / replicates
    squares = np.bincount(cell, weights=(y - mean[cell]) ** 2, minlength=len(levels))
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = np.sqrt(squares / (replicates - 1))
    sd[replicates < 2] = np.nan
    return Cells(levels, sums, counts, mean, sd, replicates, len(seeds))
