"""What a table lets one believe about runs that were not made: plausible laws of the mean, and the noise of one run.

Laws of a rate are log-linear in the coordinates, in three families: straight, bent at the middle of the range, and
with a plateau under the decay. Each family is a Gaussian linear model whose posterior and marginal likelihood are
exact; a draw picks a family by its posterior probability, then a law. Laws of the risk are surfaces, drawn by adaptive
importance sampling. Wide priors stand in where the table says nothing, so that an empty design can be asked about too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from theory.judge.cells import Cells, build_cells
from theory.judge.optimum import RankCost
from theory.laws.surface import nonnegative_least_squares

#: Prior of an exponent of the leading coordinate (N or T), of the rank's, and of their change at the middle.
LEADING_PRIOR, RANK_PRIOR, HINGE_SD = (-0.6, 0.4), (0.8, 0.5), 0.3
LEVEL_SD = 30.0  # of ln of a constant: not known
#: Plateau: exponents of the decay, and the plateau's share of the mean at the largest measured level. Around each pair
#: the law is linear in both (standard deviations of the exponent and of the share's log odds).
DECAYS, SHARES = (0.3, 0.45, 0.65, 0.85, 1.05, 1.3, 1.7), (0.1, 0.25, 0.5, 0.75, 0.9)
AROUND = (0.1, 0.4)
MISFIT = 0.01  # relative distance of a mean from the nearest law of a family
FAMILIES = {"straight": 0.4, "bent": 0.3, "plateau": 0.3}
LARGEST_ERROR = 0.7  # relative error of a cell mean beyond which its logarithm says nothing
DEFAULT_LEVEL = 1.0

#: Surfaces: prior of ln(alpha, beta, gamma) and of the change of gamma at the middle of N.
SURFACE_CENTRE = np.array([np.log(1.0), np.log(1.0), np.log(0.9), 0.0])
SURFACE_SD = np.array([0.6, 0.4, 0.35, 0.1])
PARTICLES, ROUNDS, FEWEST = 1200, 6, 60


class Laws(Protocol):
    """Laws of a mean, drawn from what is believed."""

    def draw(self, rng: np.random.Generator) -> Law:
        """One of them."""
        ...


class Law(Protocol):
    """The mean as a function of the design."""

    def __call__(self, points: pd.DataFrame) -> np.ndarray:
        """[n] means at design points [n rows]."""
        ...


@dataclass(frozen=True)
class Noise:
    """The deviation of a run from the mean of its cell.

    Attributes:
        coordinates: the columns on which its size depends. coefficients: of ln(standard deviation) in [1, ln
            coordinates]; None where the table has no replicates: then `relative` times the mean.
        seed, block: shares of the variance that all runs of a seed have in common, and those of a seed at one value of
            the block's column; the rest is each run's own. block_name: that column, None without one.
        seeds: the deviation of each known seed, in standard deviations. factor: the measurement is positive, and noise
            multiplies it.
    """

    coordinates: tuple[str, ...]
    coefficients: np.ndarray | None
    relative: float
    seed: float
    block: float
    block_name: str | None
    seeds: dict[float, float]
    factor: bool

    @classmethod
    def of(cls, frame: pd.DataFrame, design: Sequence[str], quantity: str, relative: float, block: str | None) -> Noise:
        """Measure it on a table.

        Args:
            frame: rows with the design's columns, `seed` and the quantity; it may be empty.
            relative: standard deviation of a run, as a share of the mean, where the table has no replicates.
        """
        coordinates = tuple(c for c in design if len(frame) and frame[c].dtype.kind in "fi" and (frame[c] > 0).all())
        factor = bool((frame[quantity] > 0).all()) if len(frame) else True
        if not len(frame):
            return cls((), None, relative, 0.2, 0.0, block, {}, factor)
        cells = build_cells(frame, design, quantity)
        usable = np.isfinite(cells.sd) & (cells.sd > 0)
        varying = tuple(c for c in coordinates if cells.levels[c][usable].nunique() > 1)
        if usable.sum() <= len(varying) + 1:
            return cls((), None, relative, 0.2, 0.0, block, {}, factor)
        # Degrees of freedom as weights; a standard deviation of few runs is low on average by half their inverse.
        freedom = cells.replicates[usable] - 1
        columns = _log_columns(cells.levels[usable], varying)
        log_sd = np.log(cells.sd[usable]) + 0.5 / freedom
        root = np.sqrt(freedom)[:, None]
        coefficients = np.linalg.lstsq(columns * root, log_sd * root[:, 0], rcond=None)[0]
        sd = np.exp(_log_columns(cells.levels, varying) @ coefficients)
        replicated = cells.replicates >= 2
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.sqrt(cells.replicates / (cells.replicates - 1)) / sd
            residual = np.where((cells.counts > 0) & replicated, (cells.cluster_means() - cells.mean) * scale, np.nan)
        group = cells.levels.groupby(block).ngroup().to_numpy() if block else np.arange(cells.size)
        seed, within = _shares(residual, group)
        count = np.isfinite(residual).sum(axis=1)
        mean = np.nansum(residual, axis=1) / np.maximum(count, 1)
        shrunk = mean * seed / (seed + (1 - seed) / np.maximum(count, 1))
        names = np.unique(frame["seed"].to_numpy())
        known = dict(zip(names.tolist(), shrunk.tolist(), strict=True)) if len(names) == len(shrunk) else {}
        return cls(varying, coefficients, relative, seed, within, block, known, factor)

    def sd(self, points: pd.DataFrame, mean: np.ndarray) -> np.ndarray:
        """[n] standard deviations of one run."""
        if self.coefficients is None:
            return self.relative * np.abs(mean)
        return np.exp(_log_columns(points, self.coordinates) @ self.coefficients)

    def draw(self, runs: pd.DataFrame, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[n] measurements of runs [n rows, with a column seed], given their means."""
        names, which = np.unique(runs["seed"].to_numpy(dtype=np.float64), return_inverse=True)
        common = np.array([self.seeds.get(s, np.nan) for s in names.tolist()])
        fresh = np.sqrt(self.seed) * rng.standard_normal(len(names))
        z = np.where(np.isfinite(common), common, fresh)[which]
        if self.block_name is not None:
            blocks = runs.groupby(["seed", self.block_name]).ngroup().to_numpy()
            z = z + np.sqrt(self.block) * rng.standard_normal(blocks.max(initial=0) + 1)[blocks]
        z = z + np.sqrt(max(1.0 - self.seed - self.block, 0.0)) * rng.standard_normal(len(runs))
        sd = self.sd(runs, mean)
        if not self.factor:
            return mean + sd * z
        log_sd = np.sqrt(np.log1p(np.square(sd / mean)))
        return mean * np.exp(log_sd * z - 0.5 * log_sd**2)

    def covariance(self, cells: Cells, sd: np.ndarray) -> np.ndarray:
        """[C, C] covariance of the cell means, given the standard deviation of one run in each [C]."""
        shared = cells.counts.T @ cells.counts / np.outer(cells.replicates, cells.replicates)
        part = self.seed * shared + np.diag((1.0 - self.seed - self.block) / cells.replicates)
        if self.block_name is not None:
            block = cells.levels[self.block_name].to_numpy()
            part += self.block * shared * (block[:, None] == block[None, :])
        return part * np.outer(sd, sd)


def _log_columns(points: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """[n, 1 + k] a column of ones and the logarithms of some columns."""
    return np.column_stack([np.ones(len(points)), *(np.log(points[n].to_numpy(dtype=np.float64)) for n in names)])


def _shares(residual: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Shares of the variance common to a seed, and beyond it to a seed in a group of cells: from products of residuals.

    Args:
        residual: [S, C] of unit variance, NaN where a seed was not run. group: [C] number of each cell's group.
    """
    there = np.isfinite(residual)
    value = np.where(there, residual, 0.0)
    total = float(np.sum(value**2) / max(there.sum(), 1))
    by_group = [(value[:, group == g].sum(axis=1), there[:, group == g].sum(axis=1)) for g in np.unique(group)]
    inside = sum(float(np.sum(s**2)) for s, _ in by_group) - float(np.sum(value**2))
    inside_pairs = sum(int(np.sum(n * (n - 1))) for _, n in by_group)
    across = float(np.sum(value.sum(axis=1) ** 2)) - sum(float(np.sum(s**2)) for s, _ in by_group)
    across_pairs = int(np.sum(there.sum(axis=1) ** 2)) - sum(int(np.sum(n**2)) for _, n in by_group)
    if total <= 0:
        return 0.0, 0.0
    seed = float(np.clip(across / across_pairs / total, 0.0, 0.9)) if across_pairs else 0.2
    both = float(np.clip(inside / inside_pairs / total, seed, 0.95)) if inside_pairs else seed
    return seed, both - seed


@dataclass(frozen=True)
class _Family:
    """A log-linear law: names of its columns, prior means and standard deviations, and its plateau (c, share)."""

    weight: float
    hinged: bool
    plateau: tuple[float, float] | None = None


class RateLaws:
    """Laws of a rate in one or two coordinates.

    Args:
        cells: the measured cell means; None for an empty design.
        leading, rank: names of the coordinates; rank is None where there is none.
        strata: columns whose combinations have constants of their own. noise: of one run.
        middle: ln of the leading coordinate and of the rank at which a bend is thought, end: ln of the largest level.
    """

    def __init__(
        self, cells: Cells | None, leading: str, rank: str | None, strata: Sequence[str], noise: Noise,
        levels: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.leading, self.rank, self.strata = leading, rank, list(strata)
        self.middle = {n: 0.5 * (np.log(v.min()) + np.log(v.max())) for n, v in levels.items()}
        self.end = float(np.log(levels[leading].max()))
        self.known = pd.DataFrame({"_": [0]}) if cells is None else self._stratum_table(cells.levels)
        y, points, covariance = np.zeros(0), None, np.zeros((0, 0))
        if cells is not None:
            sd = noise.sd(cells.levels, cells.mean)
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = sd / np.sqrt(cells.replicates) / cells.mean
            keep = (cells.mean > 0) & (relative < LARGEST_ERROR)
            kept = cells.keep(keep) if keep.any() else None
            if kept is not None:
                points, y = kept.levels, np.log(kept.mean)
                covariance = noise.covariance(kept, sd[keep] / kept.mean)
                covariance += np.eye(len(y)) * MISFIT**2
        families = [
            _Family(FAMILIES["straight"], False),
            _Family(FAMILIES["bent"], True),
            *(_Family(FAMILIES["plateau"] / len(DECAYS) / len(SHARES), False, (c, s)) for c in DECAYS for s in SHARES),
        ]
        self.posteriors = []
        logs = []
        for family in families:
            x, offset, mean, prior = self._columns(points, family)
            self.posteriors.append((family, *_posterior(x, y - offset, covariance, mean, prior)[:2]))
            logs.append(np.log(family.weight) + _evidence(x, y - offset, covariance, mean, prior))
        weight = np.exp(np.array(logs) - max(logs))
        self.weight = weight / weight.sum()

    def _stratum_table(self, levels: pd.DataFrame) -> pd.DataFrame:
        return levels[self.strata].drop_duplicates().reset_index(drop=True) if self.strata else pd.DataFrame({"_": [0]})

    def _columns(
        self, points: pd.DataFrame | None, family: _Family
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Design [n, p] and fixed part [n] of a family's ln mean, and the prior's means and deviations [p]."""
        groups = len(self.known)
        if points is None:
            points = pd.DataFrame(columns=[*self.strata, *self.middle], dtype=np.float64)
        n = len(points)
        number = np.zeros(n, dtype=np.int64)
        if n and self.strata:
            numbered = self.known.assign(_number=range(groups))
            number = points.merge(numbered, how="left", on=self.strata)["_number"].to_numpy()
        columns = [(number == g).astype(np.float64) for g in range(groups)]
        mean, prior = [0.0] * groups, [LEVEL_SD] * groups
        offset = np.zeros(n)
        if self.rank is not None:
            z = np.log(points[self.rank].to_numpy(dtype=np.float64)) - self.middle[self.rank]
            columns += [z, np.maximum(z, 0.0)]
            mean, prior = [*mean, RANK_PRIOR[0], 0.0], [*prior, RANK_PRIOR[1], HINGE_SD]
        x = np.log(points[self.leading].to_numpy(dtype=np.float64))
        if family.plateau is not None:
            decay, share = family.plateau
            falling = np.log1p(-share) - decay * (x - self.end)
            offset = np.logaddexp(falling, np.log(share))
            part = np.exp(falling - offset)  # of the mean that decays
            columns += [-(x - self.end) * part, -part]  # up to constants, which every stratum has
            mean, prior = [*mean, 0.0, 0.0], [*prior, *AROUND]
        else:
            x = x - self.middle[self.leading]
            columns.append(x)
            mean, prior = [*mean, LEADING_PRIOR[0]], [*prior, LEADING_PRIOR[1]]
            if family.hinged:
                columns.append(np.maximum(x, 0.0))
                mean, prior = [*mean, 0.0], [*prior, HINGE_SD]
        return np.column_stack(columns), offset, np.array(mean), np.array(prior)

    def draw(self, rng: np.random.Generator) -> Law:
        """A family by its posterior probability, then its parameters."""
        family, centre, root = self.posteriors[rng.choice(len(self.weight), p=self.weight)]
        theta = centre + root @ rng.standard_normal(len(centre))
        if centre[0] == 0.0 and root[0, 0] >= LEVEL_SD * 0.99:  # nothing is measured: any level will do
            theta[: len(self.known)] = np.log(DEFAULT_LEVEL)

        def law(points: pd.DataFrame) -> np.ndarray:
            x, offset, _, _ = self._columns(points, family)
            return np.exp(np.clip(x @ theta + offset, -200.0, 200.0))

        return law

    def shares(self) -> dict[str, float]:
        """Posterior probability of each family."""
        plateau = float(self.weight[2:].sum())
        return {"straight": float(self.weight[0]), "bent": float(self.weight[1]), "plateau": plateau}


def _posterior(
    x: np.ndarray, y: np.ndarray, covariance: np.ndarray, mean: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [p] and a root [p, p] of the covariance of the parameters of a Gaussian linear model."""
    precision = np.diag(1.0 / prior**2)
    right = mean / prior**2
    if len(y):
        weighted = np.linalg.solve(covariance, x)
        precision, right = precision + x.T @ weighted, right + weighted.T @ y
    inverse = np.linalg.inv(precision)
    return inverse @ right, np.linalg.cholesky(0.5 * (inverse + inverse.T))


def _evidence(x: np.ndarray, y: np.ndarray, covariance: np.ndarray, mean: np.ndarray, prior: np.ndarray) -> float:
    """Log marginal likelihood of a Gaussian linear model, up to a constant."""
    if not len(y):
        return 0.0
    root = np.linalg.cholesky(covariance + (x * prior**2) @ x.T)
    z = np.linalg.solve(root, y - x @ mean)
    return float(-0.5 * z @ z - np.log(np.diag(root)).sum())


class SurfaceLaws:
    """Risk surfaces E + A r^-alpha + B c(r)^beta N^-gamma, whose gamma may change at the middle of N.

    c(r) = r, or r (1 - r/(d_in + d_out)) where the parameters of one matrix are counted. The constants E, A, B >= 0
    are eliminated; the four shapes are drawn by adaptive importance sampling (Gaussian proposals).

    Args:
        cells: mean risk by (rank, samples); None for an empty design.
        noise: of one run. cost: what a rank costs. levels: of rank and samples.
    """

    def __init__(self, cells: Cells | None, noise: Noise, cost: RankCost, levels: dict[str, np.ndarray]) -> None:
        self.cost = cost
        rank, samples = np.log(levels["rank"]), np.log(levels["samples"])
        self.middle_rank = float(np.exp(0.5 * (rank.min() + rank.max())))
        self.middle = 0.5 * (samples.min() + samples.max())
        self.cells = cells
        rng = np.random.default_rng(17)
        particles = SURFACE_CENTRE + SURFACE_SD * rng.standard_normal((PARTICLES, 4))
        weight = np.ones(PARTICLES)
        if cells is not None:
            sd = noise.sd(cells.levels, cells.mean)
            covariance = noise.covariance(cells, sd) + np.diag(np.square(1e-4 * sd))
            self.root = np.linalg.cholesky(covariance)
            self.target = np.linalg.solve(self.root, cells.mean)
            particles, weight = self._sample(particles, rng)
        self.particles, self.weight = particles, weight / weight.sum()

    def _sample(self, particles: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Particles [P, 4] and weights [P] of the posterior."""
        centre, root = SURFACE_CENTRE, np.diag(SURFACE_SD)
        weight = np.ones(len(particles))
        for k in range(ROUNDS):
            if k:
                particles = centre + rng.standard_t(5, (len(particles), 4)) @ root.T
            error = self._fit(particles)[1]
            # A surface that does not describe the means to within their noise is believed less exactly.
            misfit = max(1.0, float(error.min()) / max(len(self.target) - 7, 1))
            log = -0.5 * error / misfit - 0.5 * np.sum(np.square((particles - SURFACE_CENTRE) / SURFACE_SD), axis=1)
            z = np.linalg.solve(root, (particles - centre).T)  # less the logarithm of the proposal's density
            log += 3.0 * np.log1p(z**2 / 5).sum(axis=0) if k else 0.5 * np.sum(z**2, axis=0)
            scale, weight = 1.0, np.exp(log - log.max())
            # Rounds but the last are tempered, so that a few particles do not take everything.
            while k < ROUNDS - 1 and weight.sum() ** 2 < FEWEST * np.sum(weight**2) and scale > 1e-6:
                scale *= 0.6
                weight = np.exp(scale * (log - log.max()))
            share = weight / weight.sum()
            centre = share @ particles
            spread = (particles - centre).T @ ((particles - centre) * share[:, None]) + 1e-8 * np.eye(4)
            root = np.linalg.cholesky(spread)
        return particles, weight

    def _fit(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Constants [P, 3] and squared errors [P] of shapes [P, 4], in whitened cells."""
        assert self.cells is not None
        columns = self._columns(shape, self.cells.levels)
        flat = np.linalg.solve(self.root, np.moveaxis(columns, 1, 0).reshape(len(self.target), -1))
        white = np.moveaxis(flat.reshape(len(self.target), len(shape), 3), 0, 1)
        scale = np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-300)
        found, error = nonnegative_least_squares(white / scale, self.target)
        return found / scale[:, 0], error

    def _columns(self, shape: np.ndarray, points: pd.DataFrame) -> np.ndarray:
        """[P, n, 3] the terms of the surface without their constants."""
        alpha, beta, gamma = np.exp(shape[:, :3].T)[:, :, None]
        rank = points["rank"].to_numpy(dtype=np.float64)
        x = np.log(points["samples"].to_numpy(dtype=np.float64)) - self.middle
        count = rank if self.cost.sizes is None else rank * np.maximum(1.0 - rank / self.cost.sizes, 0.05)
        falling = (rank / self.middle_rank) ** -alpha
        decay = np.exp(-gamma * x - shape[:, 3][:, None] * np.maximum(x, 0.0))
        rising = (count / self.middle_rank) ** beta * decay
        return np.stack([np.ones_like(rising), falling * np.ones_like(rising), rising], axis=2)

    def draw(self, rng: np.random.Generator) -> Law:
        """A shape by its weight, then constants from a resampled target."""
        shape = self.particles[rng.choice(len(self.weight), p=self.weight)][None]
        alpha, beta = np.exp(shape[0, :2])
        if self.cells is None:  # the optimum at the middle N lies somewhere in the middle of the ranks
            at = np.exp(0.4 * rng.standard_normal())
            constants = np.array([0.0, 1.0, alpha / beta * at ** -(alpha + beta)])
        else:
            target, columns = (
                self.target + rng.standard_normal(len(self.target)),
                self._columns(shape, self.cells.levels),
            )
            white = np.linalg.solve(self.root, columns[0])
            constants = nonnegative_least_squares(white[None], target)[0][0]

        def law(points: pd.DataFrame) -> np.ndarray:
            return np.maximum(self._columns(shape, points)[0] @ constants, 1e-12)

        return law
