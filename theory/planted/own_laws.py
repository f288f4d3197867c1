"""Tables drawn from laws of one's own: what `theory test` is validated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from theory.judge.user_claim import EQUAL, LOWER, UPPER, LawClaim
from theory.judge.verdicts import CONSISTENT, LOOSE, REFUTED, UNTESTABLE

#: Three decades of tokens, and two and a half of parameters where the law has them.
TOKENS = tuple(np.geomspace(1e7, 1e10, 10).tolist())
PARAMS = tuple(np.geomspace(1e6, 3e8, 5).tolist())
SEEDS = 5
NOISE = 0.02

Mean = Callable[[np.ndarray, np.ndarray], np.ndarray]


def scaling_table(
    mean: Mean, rng: np.random.Generator, *, params: Sequence[float] = (1.0,), noise: float = NOISE, seeds: int = SEEDS
) -> pd.DataFrame:
    """Losses with log-normal noise.

    Args:
        mean: of tokens [n] and params [n], the expected loss [n].
        params: values of the second column. noise: standard deviation of one run's logarithm.
    """
    grid = pd.MultiIndex.from_product([range(seeds), params, TOKENS], names=["seed", "params", "tokens"])
    frame = grid.to_frame(index=False).astype({"seed": float})
    loss = mean(frame["tokens"].to_numpy(), frame["params"].to_numpy())
    return frame.assign(loss=loss * np.exp(noise * rng.standard_normal(len(frame))))


def power(exponent: float) -> Mean:
    """(tokens / 10^7)^-exponent."""
    return lambda tokens, _: (tokens / TOKENS[0]) ** -exponent


def power_with_floor(exponent: float, floor: float) -> Mean:
    """floor + (tokens / 10^7)^-exponent."""
    return lambda tokens, _: floor + (tokens / TOKENS[0]) ** -exponent


def broken(first: float, last: float) -> Mean:
    """One exponent below the middle of the range, and another above it."""

    def mean(tokens: np.ndarray, _: np.ndarray) -> np.ndarray:
        x = tokens / np.sqrt(TOKENS[0] * TOKENS[-1])
        return x ** -np.where(x < 1, first, last)

    return mean


def two_terms(a: float, b: float) -> Mean:
    """0.5 + (params / 10^6)^-a + (tokens / 10^7)^-b."""
    return lambda tokens, params: 0.5 + (params / PARAMS[0]) ** -a + (tokens / TOKENS[0]) ** -b


FLOORED = power_with_floor(0.5, 0.1)
POWER, FLOOR = "A*tokens**-b", "E + A*tokens**-b"
PRODUCT = "A*(tokens**b)**-c"
TWO = "E + A*params**-a + B*tokens**-b"


class Planted(NamedTuple):
    """A law, and a claim about it.

    Attributes:
        mean: the law. params: values of the second column.
        law, claimed, bound, cluster: of the claim, see `LawClaim`.
        right: the words that are right; None for any but CONSISTENT.
        truth: of what the claim is about; None where there is no single number.
    """

    name: str
    mean: Mean
    params: Sequence[float]
    law: str
    claimed: dict[str, float | str]
    bound: str
    cluster: str | None
    right: tuple[str, ...] | None
    truth: float | None


ONE = (1.0,)
PLANTED = tuple(
    Planted(*entry)
    for entry in (
        ("D^-0.5, claimed 0.5", power(0.5), ONE, POWER, {"b": 0.5}, UPPER, "seed", (CONSISTENT,), 0.5),
        ("D^-0.5, claimed 0.75", power(0.5), ONE, POWER, {"b": 0.75}, UPPER, "seed", (REFUTED,), 0.5),
        ("D^-0.5, claimed 0.25", power(0.5), ONE, POWER, {"b": 0.25}, UPPER, "seed", (LOOSE,), 0.5),
        ("D^-0.5, claimed 0.25", power(0.5), ONE, POWER, {"b": 0.25}, LOWER, "seed", (REFUTED,), 0.5),
        ("D^-0.5, claimed 0.75", power(0.5), ONE, POWER, {"b": 0.75}, LOWER, "seed", (LOOSE,), 0.5),
        ("D^-0.5, claimed 0.5, rows", power(0.5), ONE, POWER, {"b": 0.5}, EQUAL, None, (CONSISTENT,), 0.5),
        ("D^-0.5, claimed 0.4, rows", power(0.5), ONE, POWER, {"b": 0.4}, EQUAL, None, (REFUTED,), 0.5),
        ("0.1 + D^-0.5, claimed 0.5", FLOORED, ONE, FLOOR, {"b": 0.5}, EQUAL, "seed", (CONSISTENT,), 0.5),
        ("0.1 + D^-0.5, claimed 0.35", FLOORED, ONE, FLOOR, {"b": 0.35}, EQUAL, "seed", (REFUTED,), 0.5),
        ("0.1 + D^-0.5, claimed 0.35", FLOORED, ONE, FLOOR, {"b": 0.35}, UPPER, "seed", (LOOSE,), 0.5),
        ("0.1 + D^-0.5, claimed 0.7", FLOORED, ONE, FLOOR, {"b": 0.7}, UPPER, "seed", (REFUTED,), 0.5),
        ("0.1 + D^-0.5, claimed 0.5, rows", FLOORED, ONE, FLOOR, {"b": 0.5}, EQUAL, None, (CONSISTENT,), 0.5),
        ("a = b, and it is", two_terms(0.4, 0.4), PARAMS, TWO, {"a": "b"}, EQUAL, "seed", (CONSISTENT,), 0.0),
        ("a = b, and it is not", two_terms(0.6, 0.4), PARAMS, TWO, {"a": "b"}, EQUAL, "seed", (REFUTED,), 0.2),
        ("a/(a+b), 0.5 for 0.6", two_terms(0.6, 0.4), PARAMS, TWO, {"a/(a+b)": 0.5}, EQUAL, "seed", (REFUTED,), 0.6),
        ("D^-0.3 then D^-0.7, claimed 0.5", broken(0.3, 0.7), ONE, POWER, {"b": 0.5}, EQUAL, "seed", None, None),
        ("D^-0.3 then D^-0.7, claimed 0.5, rows", broken(0.3, 0.7), ONE, POWER, {"b": 0.5}, EQUAL, None, None, None),
        ("0.1 + D^-0.5 without its floor", FLOORED, ONE, POWER, {"b": 0.5}, EQUAL, None, None, None),
        ("only a product is seen", power(0.5), ONE, PRODUCT, {"b": 0.5}, EQUAL, "seed", (UNTESTABLE,), None),
        ("D^-0.58, claimed 0.5", power(0.58), ONE, POWER, {"b": 0.5}, EQUAL, "seed", (REFUTED,), 0.58),
    )
)  # fmt: skip


def claim_of(planted: Planted) -> LawClaim:
    """The claim that is judged on a planted table."""
    return LawClaim("test", "loss", planted.law, planted.claimed, planted.bound, cluster=planted.cluster)
