"""The exponent of a mean in one coordinate, with a free constant per group, for many response vectors at once.

    mean(y_c) = A_group(c) * x_c ^ slope,   A >= 0

The groups are the levels of the other coordinates, so that N is judged without assuming a power law in r, and r
without one in N. The constants are linear and are eliminated (variable projection); what remains is one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRID = np.linspace(-4.0, 4.0, 33)  # slopes from which the fit to all data starts
ITERATIONS = 60
MAX_STEP = 1.0
LARGEST_SLOPE = 50.0  # beyond any physical exponent: the fit ran away
SAME_LEVEL = 1e-9  # in ln x: levels closer than this are one
BATCH_NUMBERS = 20_000_000  # numbers held per array while draws are fitted
START_NUMBERS = 200_000  # the same while their starts are tried: small arrays stay in the processor's cache


@dataclass(frozen=True)
class PowerLaw:
    """Cells prepared for fitting: sorted by group, weighted.

    Attributes:
        cells: [n] positions of the cells used, sorted by group.
        x: [n] ln of the coordinate, centred within its group; centre: [G] the centres.
        starts: [G] first position of each group; sizes: [G] their cells; groups: [G] their numbers.
        weight: [n] 1/variance up to a factor.
    """

    cells: np.ndarray
    x: np.ndarray
    centre: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    groups: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, log_x: np.ndarray, group: np.ndarray, sd: np.ndarray, use: np.ndarray | None = None) -> PowerLaw:
        """Prepare the cells.

        Args:
            log_x: [C] ln of the coordinate. group: [C] number of each cell's group.
            sd: [C] standard deviations of the cell means up to a common factor. use: [C] cells to fit; all by default.
        """
        cells = np.arange(len(log_x)) if use is None else np.flatnonzero(use)
        cells = cells[np.argsort(group[cells], kind="stable")]
        starts = np.flatnonzero(np.diff(group[cells], prepend=-1))
        sizes = np.diff(starts, append=len(cells))
        centre = np.add.reduceat(log_x[cells], starts) / sizes if len(cells) else np.empty(0)
        # In units of the largest deviation, whose square may lie beyond floating point; 1e-9 of it is as good as zero.
        scaled = sd[cells] / np.max(sd[cells], initial=0.0) if len(cells) else sd[cells]
        x, weight = log_x[cells] - np.repeat(centre, sizes), 1.0 / np.square(np.maximum(scaled, 1e-9))
        return cls(cells, x, centre, starts, sizes, group[cells][starts], weight)

    @property
    def determined(self) -> bool:
        """Some group has two levels of the coordinate."""
        return len(self.x) > 0 and bool(self._tells(np.ones((1, len(self.x)), dtype=bool))[0])

    def fit(self, y: np.ndarray, start: float | None = None) -> np.ndarray:
        """Slopes of many response vectors.

        Args:
            y: [B, C] cell means of any sign, NaN where a cell is missing. start: a slope near the answers.

        Returns:
            [B] slopes; NaN where no group has two levels left, or its means are not positive enough for a power law.
        """
        if not self.determined:
            return np.full(len(y), np.nan)
        size = max(1, BATCH_NUMBERS // len(self.cells))
        parts = [self._fit(y[i : i + size][:, self.cells], start) for i in range(0, len(y), size)]
        return np.concatenate(parts) if parts else np.empty(0)

    def predict(self, y: np.ndarray, slope: float, log_x: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Means under the fitted law at any cells.

        Args:
            y: [C] the response vector that was fitted, and its slope. log_x, group: [K] where to predict.

        Returns:
            [K] means; NaN in groups without a fitted cell.
        """
        mean, *_ = self._project(np.nan_to_num(y[None, self.cells]), self.weight[None], np.array([slope]))
        with np.errstate(divide="ignore"):
            constant = np.log(mean[0, self.starts]) - slope * self.x[self.starts]
        place = np.clip(np.searchsorted(self.groups, group), 0, len(self.groups) - 1)
        value = np.exp(constant[place] + slope * (log_x - self.centre[place]))
        return np.where(self.groups[place] == group, value, np.nan)

    def influence(self, y: np.ndarray, slope: float) -> np.ndarray:
        """[C] derivative of the slope in each cell's mean, at the fit; 0 for cells that were not used."""
        _, jacobian, _, _ = self._project(np.nan_to_num(y[None, self.cells]), self.weight[None], np.array([slope]))
        total = float(np.sum(self.weight * jacobian[0] ** 2))
        influence = np.zeros(len(y))
        if total > 0:
            influence[self.cells] = self.weight * jacobian[0] / total
        return influence

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """[B, G] sums over groups."""
        return np.add.reduceat(values, self.starts, axis=1)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """[B, n] each group's value at its cells."""
        return np.repeat(values, self.sizes, axis=1)

    def _project(
        self, y: np.ndarray, weight: np.ndarray, slope: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Best constants at given slopes [B]: means, derivatives in the slope (constants following), residuals, and the
        weighted squared error [B]."""
        shape = np.exp(np.clip(slope[:, None] * self.x, -300.0, 300.0))
        square = weight * shape * shape
        total = np.maximum(self._sum(square), 1e-300)
        # A group whose best constant is negative has none: its means say nothing about a decaying law.
        constant = np.maximum(self._sum(weight * y * shape) / total, 0.0)
        mean = self._spread(constant) * shape
        centre = self._spread(self._sum(square * self.x) / total)
        residual = y - mean
        return mean, mean * (self.x - centre), residual, np.sum(weight * residual * residual, axis=1)

    def _start(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """[B] the slope of GRID with the least squared error."""
        size, count = max(1, START_NUMBERS // (len(GRID) * y.shape[1])), len(GRID)
        slopes = []
        for i in range(0, len(y), size):
            part = slice(i, i + size)
            tried = np.tile(GRID, len(y[part]))
            *_, error = self._project(np.repeat(y[part], count, axis=0), np.repeat(weight[part], count, axis=0), tried)
            slopes.append(GRID[np.argmin(error.reshape(-1, count), axis=1)])
        return np.concatenate(slopes)

    def _fit(self, y: np.ndarray, start: float | None) -> np.ndarray:
        valid = np.isfinite(y)
        y = np.where(valid, y, 0.0)
        weight = valid * self.weight
        known = start is not None and np.isfinite(start)
        slope = np.full(len(y), start) if known else self._start(y, weight)
        _, jacobian, residual, error = self._project(y, weight, slope)
        damping = np.zeros(len(y))
        for _ in range(ITERATIONS):
            curvature = np.sum(weight * jacobian**2, axis=1)
            step = np.sum(weight * residual * jacobian, axis=1) / np.maximum(curvature * (1 + damping), 1e-300)
            step = np.clip(step, -MAX_STEP, MAX_STEP)
            trial = slope + step
            _, trial_jacobian, trial_residual, trial_error = self._project(y, weight, trial)
            better = trial_error <= error
            slope = np.where(better, trial, slope)
            jacobian = np.where(better[:, None], trial_jacobian, jacobian)
            residual = np.where(better[:, None], trial_residual, residual)
            error = np.where(better, trial_error, error)
            damping = np.where(better, damping * 0.2, np.minimum(damping * 5.0 + 1.0, 1e12))
            if np.all(np.abs(step) < 1e-9):
                break
        lost = np.abs(slope) > LARGEST_SLOPE
        # Where every cell is there and positive, every constant is, and what holds for the whole law holds here.
        some = np.flatnonzero((y <= 0).any(axis=1))
        mean, *_ = self._project(y[some], weight[some], slope[some])
        lost[some] |= ~self._tells(valid[some] & (mean > 0))
        return np.where(lost, np.nan, slope)

    def _tells(self, present: np.ndarray) -> np.ndarray:
        """[B] whether some group has two levels among the cells that are present [B, n]: without, the curvature in the
        slope is not zero but rounding, and the fit ends anywhere."""
        high = np.maximum.reduceat(np.where(present, self.x, -np.inf), self.starts, axis=1)
        low = np.minimum.reduceat(np.where(present, self.x, np.inf), self.starts, axis=1)
        return np.any(high - low > SAME_LEVEL, axis=1)
