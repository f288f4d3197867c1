"""Right sides of the SGD bounds (Ghadimi & Lan 2013), of smoothness L, variance sigma^2 and f(x_1) - f_low."""

from __future__ import annotations

import math


def horizon_bound(steps: int, step_size: float, smoothness: float, grad_variance: float, loss_decrease: float) -> float:
    """Right side for a constant step eta < 2/L: [2 Delta / (eta T) + L eta sigma^2] / (2 - L eta), where eta <= 1/L
    allows the two-term form without the denominator (Ghadimi & Lan 2013). Infinite at eta >= 2/L: no theorem there.

    The judge has the same formula for tables, `theory.claims.convergence.right_hand_side`; a test compares the two."""
    numerator = 2 * loss_decrease / (step_size * steps) + smoothness * step_size * grad_variance
    if step_size * smoothness <= 1:
        return numerator
    return numerator / (2 - step_size * smoothness) if step_size * smoothness < 2 else math.inf


def decaying_bound(
    steps: int, step_size: float, smoothness: float, grad_variance: float, loss_decrease: float
) -> float:
    """Right side for eta_t = step_size / sqrt(t), step_size <= 1/L, on the eta-weighted average:
    [2 Delta + L sigma^2 eta_0^2 (1 + ln T)] / [2 eta_0 (sqrt(T+1) - 1)]."""
    numerator = 2 * loss_decrease + smoothness * grad_variance * step_size**2 * (1 + math.log(steps))
    return numerator / (2 * step_size * (math.sqrt(steps + 1) - 1))


def horizon_step(steps: int, smoothness: float, grad_variance: float, loss_decrease: float) -> float:
    """The step that minimises the bound: min(1/L, sqrt(2 Delta / (L sigma^2 T)))."""
    if grad_variance <= 0:
        return 1 / smoothness
    return min(1 / smoothness, math.sqrt(2 * loss_decrease / (smoothness * grad_variance * steps)))
