"""E3: low-rank softmax regression on labels drawn from itself, where the gap is p/N and the excess p/(2N)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize


def parameters(rank: int, inputs: int, classes: int) -> int:
    """p = r (d + V - 1 - r): free entries of a rank-r d x V matrix up to the softmax's gauge (one column)."""
    return rank * (inputs + classes - 1 - rank)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] stable logarithm of the softmax."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax_gap(
    rank: int, samples: int, rng: np.random.Generator, *, inputs: int = 8, classes: int = 8, scale: float = 1.0
) -> tuple[float, float]:
    """Excess risk and control-variate gap of one maximum-likelihood fit.

    The control variate is the planted model: gap = [L_test(fit) - L_test(truth)] - [L_train(fit) - L_train(truth)],
    with the population losses exact in the labels (teacher probabilities on 20,000 fresh contexts).
    """
    left, right = rng.standard_normal((inputs, rank)), rng.standard_normal((rank, classes))
    truth = scale * left @ right / np.sqrt(rank * inputs)
    x, fresh = rng.standard_normal((samples, inputs)), rng.standard_normal((20_000, inputs))
    log_p = log_softmax(x @ truth)
    # Gumbel's trick draws one label per context.
    labels = np.argmax(log_p + rng.gumbel(size=log_p.shape), axis=1)
    target = np.eye(classes)[labels]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        u, v = np.split(theta, [inputs * rank])
        u, v = u.reshape(inputs, rank), v.reshape(rank, classes)
        log_q = log_softmax(x @ u @ v)
        slope = x.T @ (np.exp(log_q) - target) / samples
        gradient = np.concatenate([(slope @ v.T).ravel(), (u.T @ slope).ravel()])
        return -float(np.sum(target * log_q)) / samples, gradient

    # The truth lies in the basin of the maximum-likelihood fit at these sample sizes.
    root = np.sqrt(scale / np.sqrt(rank * inputs))
    start = np.concatenate([(root * left).ravel(), (root * right).ravel()])
    fit = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-9})
    u, v = np.split(fit.x, [inputs * rank])
    student = u.reshape(inputs, rank) @ v.reshape(rank, classes)
    teacher, reached = log_softmax(fresh @ truth), log_softmax(fresh @ student)
    excess = float(np.mean(np.sum(np.exp(teacher) * (teacher - reached), axis=1)))
    train = float(fit.fun) + float(np.sum(target * log_p)) / samples
    return excess, excess - train
