"""Planted tables for claims 6 and 7: methods with known losses at every budget and size.

A run's loss is its method's law, plus an effect of its seed that all methods share, plus noise of its own. Learning
rates are scanned with one seed; the best one lies inside the scan unless a table is made to be unfair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

#: Rates of a scan, and what a factor of two away from the best one costs in nats.
RATES = (0.001, 0.002, 0.004, 0.008)
RATE_COST = 0.03
#: Parameters of the clones, 4 bytes each, and the decoding of one token at a size of a million.
BYTES_EACH, MS_PER_MILLION = 4.0, 2.0


@dataclass(frozen=True)
class WorthDesign:
    """Runs that compare methods, and their noise.

    Attributes:
        tokens: budgets. sizes: parameters. seeds: of every method.
        noise: standard deviation of the loss of one run, in nats. seed_noise: of what all runs of a seed share.
        rates: learning rates that each method was given.
    """

    tokens: tuple[int, ...] = tuple(round(1e5 * 10 ** (0.4 * k)) for k in range(6))
    sizes: tuple[int, ...] = (250_000, 500_000, 1_000_000, 2_000_000)
    seeds: int = 5
    noise: float = 0.01
    seed_noise: float = 0.02
    rates: tuple[float, ...] = RATES


@dataclass(frozen=True)
class Curve:
    """Loss of a method over budgets: floor + scale (T speed / 10^5)^-decay.

    Attributes:
        speed: how many tokens of direct training one token is worth, as long as the other constants agree.
    """

    speed: float = 1.0
    floor: float = 2.0
    scale: float = 1.6
    decay: float = 0.3

    def loss(self, tokens: np.ndarray | float) -> np.ndarray:
        return self.floor + self.scale * (np.asarray(tokens) * self.speed / 1e5) ** -self.decay

    def budget(self, loss: np.ndarray) -> np.ndarray:
        """Tokens at which the curve has a loss (its inverse)."""
        return 1e5 / self.speed * ((loss - self.floor) / self.scale) ** (-1 / self.decay)


DIRECT_CURVE = Curve()


def true_factor(clone: Curve, losses: np.ndarray, direct: Curve = DIRECT_CURVE) -> np.ndarray:
    """The exact F at target losses."""
    return direct.budget(losses) / clone.budget(losses)


def budget_table(
    clone: Curve,
    design: WorthDesign,
    rng: np.random.Generator,
    *,
    direct: Curve = DIRECT_CURVE,
    flops: float = 1.0,
    best: Mapping[str, float] | None = None,
    one_run: bool = False,
) -> pd.DataFrame:
    """Losses of the clone, of direct training and of a student from scratch over budgets.

    Args:
        flops: training FLOPs of a token of the clone in units of one of direct training.
        best: the learning rate that suits a method, by method; 0.002 or 0.004 by default.
        one_run: write the budgets of a seed as points along one run.
    """
    curves = {"clone": clone, "direct": direct, "scratch": Curve(speed=0.2)}
    shared = design.seed_noise * rng.standard_normal(design.seeds)
    rows: list[dict[str, Any]] = []
    for k, (method, curve) in enumerate(curves.items()):
        suits = (best or {}).get(method, design.rates[min(1 + k % 2, len(design.rates) - 1)])
        for tokens in design.tokens:
            for seed in range(design.seeds):
                noise = shared[seed] + design.noise * rng.standard_normal()
                for rate in design.rates if seed == 0 else (suits,):
                    cost = RATE_COST * np.log2(rate / suits) ** 2
                    loss = float(curve.loss(tokens)) + noise + cost
                    rows.append(
                        {
                            "method": method, "tokens": float(tokens), "seed": float(seed), "learning_rate": rate,
                            "training_flops": 6e6 * tokens * (flops if method == "clone" else 1.0),
                            "valid_loss": loss + 0.001 * rng.standard_normal(), "test_loss": loss,
                            "run_id": f"{method}-{seed}-{rate}" + ("" if one_run else f"-{tokens}"),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def front_table(
    ahead: float | Sequence[float],
    design: WorthDesign,
    rng: np.random.Generator,
    *,
    rivals: Sequence[str] = ("whitened_svd:tuned", "factorized", "scratch"),
    untrained: Sequence[str] = ("whitened_svd", "quantised"),
    distance: float = 0.1,
    latency: float = 1.0,
    best: float | None = None,
) -> pd.DataFrame:
    """Losses of the clone and of rivals over sizes, all with the same tokens of training.

    Args:
        ahead: nats by which the first rival is worse than the clone, at every size or by size; below 0 it is better.
        rivals: trained ones; each further one is worse than the one before by `distance`.
        untrained: with one row per size, no seed's noise, and worse than all others.
        latency: decoding time of a clone in units of a rival of the same size.
        best: the learning rate that suits every method, the second of those tried by default.
    """
    lead = np.broadcast_to(np.asarray(ahead, dtype=np.float64), (len(design.sizes),))
    shared = design.seed_noise * rng.standard_normal(design.seeds)
    names = ["clone", *rivals, *untrained]
    suits = design.rates[min(1, len(design.rates) - 1)] if best is None else best
    rows: list[dict[str, Any]] = []
    for method in names:
        for size, first in zip(design.sizes, lead, strict=True):
            place = names.index(method) - 1
            behind = 0.0 if method == "clone" else first + distance * place
            law = 2.0 + 0.5 * (size / 1e6) ** -0.3 + behind
            for seed in range(1 if method in untrained else design.seeds):
                run = {
                    "method": method, "tokens": 1e7, "seed": float(seed), "learning_rate": suits,
                    "weight_bytes": BYTES_EACH * size, "flops_per_token": 2.0 * size,
                    "decode_ms_per_token": MS_PER_MILLION * size / 1e6 * (latency if method == "clone" else 1.0),
                    "valid_loss": law, "test_loss": law,
                }  # fmt: skip
                if method in untrained:
                    rows.append(run | {"tokens": 0.0, "learning_rate": np.nan})
                    continue
                noise = shared[seed] + design.noise * rng.standard_normal()
                for rate in design.rates if seed == 0 else (suits,):
                    loss = law + noise + RATE_COST * np.log2(rate / suits) ** 2
                    valid = loss + 0.001 * rng.standard_normal()
                    rows.append(run | {"learning_rate": rate, "valid_loss": valid, "test_loss": loss})
    return pd.DataFrame(rows)
