"""E3: a planted linear softmax of known rank, where the gap is p/N and the excess p/(2N).

Teacher logits x^T W0 with W0 of rank r; contexts x are standard normal and labels are sampled from the teacher. The
student is fitted by maximum likelihood over rank-r factors; p = r (d + V - 1 - r) (the softmax is blind to one direction of the
vocabulary). The population risk is exact given contexts because the teacher's probabilities are known.

Source: theory page, section E3; asymptotics of maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax


@dataclass(frozen=True)
class Fit:
    """Losses in nats: training and population loss of the student and of the teacher on the same data."""

    train: float
    test: float
    teacher_train: float
    teacher_test: float

    @property
    def excess(self) -> float:
        return self.test - self.teacher_test

    @property
    def gap(self) -> float:
        """Gap with the teacher as control variate: same expectation as test - train, far less noise."""
        return self.excess - (self.train - self.teacher_train)


def parameters(rank: int, dimension: int, vocabulary: int) -> int:
    """p = r (d + V - 1 - r)."""
    return rank * (dimension + vocabulary - 1 - rank)


def fit_student(rank: int, dimension: int, vocabulary: int, samples: int, rng: np.random.Generator) -> Fit:
    """Draw a teacher and a sample, fit a student of the teacher's rank, and measure it on 20,000 fresh contexts."""
    u = rng.standard_normal((dimension, rank))
    v = rng.standard_normal((vocabulary, rank)) / np.sqrt(rank)
    x = rng.standard_normal((samples, dimension))
    teacher = log_softmax(x @ u @ v.T / np.sqrt(dimension), axis=1)
    labels = np.argmax(teacher + rng.gumbel(size=teacher.shape), axis=1)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = theta[: dimension * rank].reshape(dimension, rank), theta[dimension * rank :].reshape(vocabulary, rank)
        log_p = log_softmax(x @ a @ b.T, axis=1)
        error = np.exp(log_p)
        error[np.arange(samples), labels] -= 1.0
        error /= samples
        gradient = np.concatenate([(x.T @ (error @ b)).ravel(), (error.T @ (x @ a)).ravel()])
        return -float(np.mean(log_p[np.arange(samples), labels])), gradient

    start = np.concatenate([(u / np.sqrt(dimension)).ravel(), v.ravel()])
    result = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-7})
    a = result.x[: dimension * rank].reshape(dimension, rank)
    b = result.x[dimension * rank :].reshape(vocabulary, rank)
    fresh = rng.standard_normal((20_000, dimension))
    truth = log_softmax(fresh @ u @ v.T / np.sqrt(dimension), axis=1)
    student = log_softmax(fresh @ a @ b.T, axis=1)
    return Fit(
        train=float(result.fun),
        test=-float(np.mean(np.sum(np.exp(truth) * student, axis=1))),
        teacher_train=-float(np.mean(teacher[np.arange(samples), labels])),
        teacher_test=-float(np.mean(np.sum(np.exp(truth) * truth, axis=1))),
    )
