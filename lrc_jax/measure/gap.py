"""The generalisation gap, the excess and the total risk, each with its standard error.

A single run's |gap| is dominated by the fluctuation of the training sample's own difficulty, which is of order
sd(loss)/sqrt(N) whatever the rank: fitting it "confirms" 1/sqrt(N) for any model. The signed gap with a control
variate removes it. With a model h0 fixed before the sample was seen,

    gap_cv = [L_test(h) - L_test(h0)] - [L_train(h) - L_train(h0)],      E gap_cv = E gap,

since E L_train(h0) = L(h0).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from lrc_jax.inference.evaluate import SequenceLosses

Losses = Float[np.ndarray, "N"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over independent sequences and its standard error, nats per token."""

    value: float
    se: float


def mean(losses_N: Losses) -> Estimate:
    """Mean of per-sequence losses."""
    n = len(losses_N)
    return Estimate(float(losses_N.mean()), float(losses_N.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of independent estimates."""
    return Estimate(a.value - b.value, float(np.hypot(a.se, b.se)))


def raw_gap(test: SequenceLosses, train: SequenceLosses) -> Estimate:
    """L_test(h) - L_train(h): unbiased for the gap, dominated by the sample's difficulty."""
    return difference(mean(test.student), mean(train.student))


def control_variate_gap(
    test: SequenceLosses,
    train: SequenceLosses,
    reference_test: SequenceLosses | None = None,
    reference_train: SequenceLosses | None = None,
    *,
    labels_from_teacher: bool,
) -> Estimate:
    """Signed gap of cross-entropies with a control variate.

    Args:
      reference_test, reference_train: losses of a model trained on disjoint data; None uses the teacher, which is
        there anyway.
      labels_from_teacher: labels were sampled from the teacher, so that E[L_test(h)] - L_test(teacher) is the KL,
        which has no label noise: the test side then uses KLs.

    The standard error treats the test and the training sample as independent and the models as given: the spread
    between replicates is what a verdict rests on.
    """
    if (reference_test is None) != (reference_train is None):
        raise ValueError("control_variate_gap: give the reference's losses on both samples or on neither")
    anchor_train = train.teacher if reference_train is None else reference_train.student
    if labels_from_teacher:
        test_excess = test.kl if reference_test is None else test.kl - reference_test.kl
    else:
        test_excess = test.student - (test.teacher if reference_test is None else reference_test.student)
    return difference(mean(test_excess), mean(train.student - anchor_train))


def excess(test: SequenceLosses, best: SequenceLosses, *, labels_from_teacher: bool) -> Estimate:
    """L_test(h) - inf L over the class, with the class's best member (trained at unlimited samples) for the infimum:
    paired on the same test sequences, so that their difficulty cancels."""
    return mean(test.kl - best.kl if labels_from_teacher else test.student - best.student)


def total(test: SequenceLosses, *, labels_from_teacher: bool) -> Estimate:
    """L_test(h) - L_test(teacher), paired: the KL where labels were drawn from the teacher (no label noise)."""
    return mean(test.kl if labels_from_teacher else test.student - test.teacher)
