"""Mutual information between a teacher's and a student's activations, in nats.

Between deterministic networks the information itself is infinite or constant, so what is measured is the noise-smoothed

    I_tau = I(H_t; H_s + tau n),   H_s scaled to unit average power per coordinate, n standard normal

(Goldfeld et al. 2019, arXiv 1810.05728). Without the scaling a student could raise it by growing its activations. It is
finite, and at most (r/2) ln(1 + 1/tau^2) for r coordinates. Estimators, each with its own failing:

    gaussian_information   exact for Gaussian pairs; for others the value of the Gaussian pair of equal covariance
    barber_agakov          held-out lower bound, given the entropy of the target
    ksg                    non-parametric, few dimensions only, underestimates above about ln n - 3 nats
    contrastive.infonce    held-out lower bound whatever the distribution, at most ln K

Tokens of a document depend on each other, so that all splitting and resampling is by document.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from scipy.special import digamma

Documents = Int[np.ndarray, "N"]


class GaussianInformation(NamedTuple):
    """Result of `gaussian_information` (nats).

    Attributes:
      value: bias-corrected estimate.
      standard_error: by the jackknife over groups of documents.
      plug_in: the estimate before correction; too large by about d_x d_y / 2n for independent tokens.
      canonical_correlations: plug-in, descending.
    """

    value: float
    standard_error: float
    plug_in: float
    canonical_correlations: np.ndarray


def principal_components(x_ND: Float[np.ndarray, "N D"], count: int, tolerance: float = 1e-4) -> np.ndarray:
    """Scores [N, k] on the leading k <= count principal components, in descending order of variance; components with
    less than `tolerance` of the largest standard deviation are left out (they are rounding)."""
    x_ND = np.asarray(x_ND, np.float64)
    x_ND = x_ND - x_ND.mean(axis=0)
    variances, vectors = np.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    order = np.argsort(variances)[::-1][:count]
    keep = order[variances[order] > tolerance**2 * variances[order[0]]]
    return x_ND @ vectors[:, keep]


def unit_power(y_ND: Float[np.ndarray, "N D"], dimensions: int | None = None) -> np.ndarray:
    """Centred, and scaled by one number so that the mean square over `dimensions` coordinates is 1 (all of them, or
    more where coordinates that carry nothing were dropped)."""
    y_ND = np.asarray(y_ND, np.float64)
    y_ND = y_ND - y_ND.mean(axis=0)
    dimensions = y_ND.shape[1] if dimensions is None else dimensions
    power = np.sum(y_ND**2) / (len(y_ND) * dimensions)
    if not power > 0:
        raise ValueError("the student's activations are constant; there is nothing to normalise")
    return y_ND / math.sqrt(power)


def _groups(documents: Documents, count: int) -> np.ndarray:
    """Group index 0..G-1 of every token; whole documents, G <= count."""
    _, index = np.unique(documents, return_inverse=True)
    n_documents = int(index.max()) + 1
    groups = min(count, n_documents)
    if groups < 2:
        raise ValueError("one document cannot be split; give at least two")
    return index * groups // n_documents


def _gaussian_value(covariance: np.ndarray, d_x: int) -> np.ndarray | np.float64:
    """-1/2 ln det(S) / (det S_x det S_y) of covariances [..., D, D] whose first d_x coordinates are x."""
    joint, x, y = (
        np.linalg.slogdet(c)[1] for c in (covariance, covariance[..., :d_x, :d_x], covariance[..., d_x:, d_x:])
    )
    return 0.5 * (x + y - joint)


def canonical_correlations(covariance: Float[np.ndarray, "D D"], d_x: int) -> np.ndarray:
    """Singular values of S_x^-1/2 S_xy S_y^-1/2, descending."""
    l_x = np.linalg.cholesky(covariance[:d_x, :d_x])
    l_y = np.linalg.cholesky(covariance[d_x:, d_x:])
    whitened = np.linalg.solve(l_y, np.linalg.solve(l_x, covariance[:d_x, d_x:]).T)
    return np.minimum(np.linalg.svd(whitened, compute_uv=False), 1.0)


def gaussian_information(
    x_NX: Float[np.ndarray, "N X"],
    y_NY: Float[np.ndarray, "N Y"],
    documents_N: Documents,
    noise: float = 0.0,
    groups: int = 40,
) -> GaussianInformation:
    """I(x; y + noise n) of the Gaussian pair with the sample's covariance: -1/2 sum ln(1 - rho_k^2).

    The noise enters the covariance in closed form (S_y + noise^2 I), no noise is drawn. Bias and standard error come
    from a jackknife that deletes groups of whole documents: unlike d_x d_y / 2n it stays right where tokens depend on
    each other and where the noise is exact. (A bootstrap of information is biased upwards: repeated documents look
    like agreement.) Reduce x and y to n >= 50 q^2 first.

    Args:
      x_NX: teacher side, any scale.
      y_NY: student side, already of unit power where noise > 0.
      documents_N: document of each token.
      noise: tau.
      groups: jackknife groups.
    """
    joint = np.concatenate([x_NX, y_NY], axis=1).astype(np.float64)
    joint = joint - joint.mean(axis=0)  # for the moments' accuracy only; each covariance below has its own mean
    d_x, width = x_NX.shape[1], joint.shape[1]
    group_N = _groups(documents_N, groups)
    n_groups = int(group_N.max()) + 1
    counts, sums, squares = np.zeros(n_groups), np.zeros((n_groups, width)), np.zeros((n_groups, width, width))
    for g in range(n_groups):
        part = joint[group_N == g]
        counts[g], sums[g], squares[g] = len(part), part.sum(axis=0), part.T @ part

    noise_block = np.zeros((width, width))
    noise_block[d_x:, d_x:] = noise**2 * np.eye(width - d_x)

    def covariance(count: np.ndarray, total: np.ndarray, square: np.ndarray) -> np.ndarray:
        mean = total / count[..., None]
        return square / count[..., None, None] - mean[..., :, None] * mean[..., None, :] + noise_block

    whole = covariance(np.asarray(counts.sum()), sums.sum(axis=0), squares.sum(axis=0))
    without = covariance(counts.sum() - counts, sums.sum(axis=0) - sums, squares.sum(axis=0) - squares)
    plug_in, replicates = float(_gaussian_value(whole, d_x)), _gaussian_value(without, d_x)
    value = n_groups * plug_in - (n_groups - 1) * float(replicates.mean())
    standard_error = math.sqrt((n_groups - 1) * float(np.var(replicates)))
    return GaussianInformation(value, standard_error, plug_in, canonical_correlations(whole, d_x))


class Bottleneck(NamedTuple):
    """Largest possible I_tau of a student with r coordinates at unit average power (nats)."""

    ceiling: float
    pca_reference: float


def bottleneck_ceiling(teacher_variances: Float[np.ndarray, "D"], rank: int, noise: float) -> Bottleneck:
    """The most that `rank` coordinates of unit average power can tell through noise of standard deviation `noise`.

    I(H_t; H_s + tau n) <= 1/2 ln det(1 + Cov(H_s)/tau^2) <= (r/2) ln(1 + 1/tau^2) for any distribution (maximum
    entropy, then concavity), attained by a whitened linear image of a Gaussian teacher. The PCA reference is what the
    leading r principal components give, at their own variances scaled to unit average power: 1/2 sum_k ln(1 +
    r lambda_k / (tau^2 sum_j lambda_j)).
    """
    lam = np.sort(np.asarray(teacher_variances, np.float64))[::-1][:rank]
    return Bottleneck(
        ceiling=0.5 * rank * math.log1p(1 / noise**2),
        pca_reference=float(0.5 * np.sum(np.log1p(rank * lam / lam.sum() / noise**2))),
    )


class Decoder(NamedTuple):
    """A linear-Gaussian decoder z = y M + c + e, e ~ N(0, error)."""

    matrix_YX: np.ndarray
    offset_X: np.ndarray
    error_XX: np.ndarray


def fit_decoder(z_NX: Float[np.ndarray, "N X"], y_NY: Float[np.ndarray, "N Y"], ridge: float = 1e-9) -> Decoder:
    """Least squares for z given y, with the residual covariance (degrees of freedom taken off)."""
    z_NX, y_NY = np.asarray(z_NX, np.float64), np.asarray(y_NY, np.float64)
    z_mean, y_mean = z_NX.mean(axis=0), y_NY.mean(axis=0)
    z_c, y_c = z_NX - z_mean, y_NY - y_mean
    gram = y_c.T @ y_c
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    matrix = np.linalg.solve(gram, y_c.T @ z_c)
    residual = z_c - y_c @ matrix
    error = residual.T @ residual / max(len(z_c) - y_c.shape[1] - 1, 1)
    return Decoder(matrix, z_mean - y_mean @ matrix, error)


class HeldOut(NamedTuple):
    """Barber-Agakov on held-out documents (nats, and the explained share).

    Attributes:
      bound: E ln N(z; M y + c, error) + h(z), with h(z) that of a Gaussian of z's covariance. I >= bound - J(z), J the
        negentropy of z, which is the same number for every student of a teacher: differences need no h(z).
      standard_error: over documents.
      mse_form: h(z) - (d/2) ln(2 pi e MSE / d): the same with an isotropic error. Falls short wherever errors are
        uneven, and can rise while the information falls.
      fvu: fraction of z's variance unexplained.
    """

    bound: float
    standard_error: float
    mse_form: float
    fvu: float


def barber_agakov(z_NX: np.ndarray, y_NY: np.ndarray, documents_N: Documents, train_share: float = 0.5) -> HeldOut:
    """Held-out lower bound on I(z; y) from a linear-Gaussian decoder (Barber & Agakov 2003).

    The decoder is fitted on one part of the documents and scored on the rest. For the noise-smoothed information add
    the noise to y beforehand.
    """
    train = split_documents(documents_N, train_share)
    decoder = fit_decoder(z_NX[train], y_NY[train])
    z, y, documents = np.asarray(z_NX[~train], np.float64), y_NY[~train], documents_N[~train]
    residual = z - (y @ decoder.matrix_YX + decoder.offset_X)
    dimension = z.shape[1]
    covariance = np.cov(z, rowvar=False, bias=True).reshape(dimension, dimension)
    entropy = 0.5 * (dimension * math.log(2 * math.pi * math.e) + np.linalg.slogdet(covariance)[1])
    quadratic = np.sum(residual * np.linalg.solve(decoder.error_XX, residual.T).T, axis=1)
    log_density = -0.5 * (dimension * math.log(2 * math.pi) + np.linalg.slogdet(decoder.error_XX)[1] + quadratic)
    mse = float(np.mean(np.sum(residual**2, axis=1)))
    return HeldOut(
        bound=float(log_density.mean() + entropy),
        standard_error=clustered_error(log_density, documents),
        mse_form=float(entropy - 0.5 * dimension * math.log(2 * math.pi * math.e * mse / dimension)),
        fvu=mse / float(np.trace(covariance)),
    )


def split_documents(documents_N: Documents, train_share: float) -> np.ndarray:
    """True for tokens of the training documents: the first share of them in order of appearance of their ids."""
    _, index = np.unique(documents_N, return_inverse=True)
    train = index < round(train_share * (int(index.max()) + 1))
    if train.all() or not train.any():
        raise ValueError("documents: too few to hold some out")
    return train


def clustered_error(values_N: np.ndarray, documents_N: Documents) -> float:
    """Standard error of a mean whose terms are dependent within documents."""
    _, index = np.unique(documents_N, return_inverse=True)
    deviations = np.bincount(index, weights=values_N - values_N.mean())
    count = len(deviations)
    return float(math.sqrt(np.sum(deviations**2) * count / max(count - 1, 1)) / len(values_N))


def one_token_a_document(documents_N: Documents, rng: np.random.Generator, limit: int | None = None) -> np.ndarray:
    """Indices of one random token of each document: independent samples, for estimators that need them."""
    order = rng.permutation(len(documents_N))
    _, first = np.unique(documents_N[order], return_index=True)
    return rng.permutation(order[first])[:limit]


def ksg(x_NX: np.ndarray, y_NY: np.ndarray, neighbours: int = 4) -> float:
    """Kraskov-Stoegbauer-Grassberger estimate, algorithm 1 (Phys. Rev. E 69, 066138), in nats.

    For independent samples (`one_token_a_document`) of at most 6 dimensions a side; coordinates are standardised.
    """
    if max(x_NX.shape[1], y_NY.shape[1]) > 6:
        raise ValueError(f"KSG: {x_NX.shape[1]} and {y_NY.shape[1]} dimensions; reduce both to at most 6")
    x, y = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (np.asarray(x_NX, float), np.asarray(y_NY, float)))
    distance = cKDTree(np.concatenate([x, y], axis=1)).query(np.concatenate([x, y], axis=1), neighbours + 1, p=np.inf)[
        0
    ]
    radius = np.nextafter(distance[:, -1], 0)  # strictly nearer than the k-th neighbour
    # the ball holds the point itself, which turns n_x + 1 into the count
    n_x, n_y = (cKDTree(v).query_ball_point(v, radius, p=np.inf, return_length=True) for v in (x, y))
    return float(digamma(neighbours) + digamma(len(x)) - np.mean(digamma(n_x) + digamma(n_y)))


class Calibration(NamedTuple):
    """Mean error of an estimator on Gaussian pairs of the same dimensions, sample size and information (nats)."""

    truth: float
    error: float
    standard_error: float


def gaussian_pair(
    correlations: np.ndarray, d_x: int, d_y: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal x [n, d_x] and y [n, d_y] whose k-th coordinates correlate by correlations[k]."""
    x, y = rng.standard_normal((count, d_x)), rng.standard_normal((count, d_y))
    k = len(correlations)
    y[:, :k] = correlations * x[:, :k] + np.sqrt(1 - correlations**2) * y[:, :k]
    return x, y


def calibrate_gaussian(
    correlations: np.ndarray,
    d_x: int,
    d_y: int,
    count: int,
    rng: np.random.Generator,
    groups: int = 40,
    draws: int = 4,
) -> Calibration:
    """The in-place check of `gaussian_information`: its mean error over `draws` Gaussian pairs whose canonical
    correlations are the measured ones, of the same dimensions and number of tokens."""
    rho = np.minimum(np.asarray(correlations, np.float64), 1 - 1e-12)
    truth = float(-0.5 * np.sum(np.log1p(-(rho**2))))
    errors = np.empty(draws)
    for i in range(draws):
        x, y = gaussian_pair(rho, d_x, d_y, count, rng)
        errors[i] = gaussian_information(x, y, np.arange(count), groups=groups).value - truth
    return Calibration(truth, float(errors.mean()), float(errors.std(ddof=1) / math.sqrt(draws)))
