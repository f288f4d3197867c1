"""How often do the intervals of `theory fit` and `theory predict` hold the truth? Planted laws, many replications.

    python tests/tools/coverage_of_fits.py --replications 400

Prints, per law, the share of 95 % intervals that hold each parameter, and the share of new runs inside the fitted range
that the prediction intervals hold. The fast tests run a small version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from theory.laws.user_law import fit_law

NEW_RUNS = 20


@dataclass(frozen=True)
class Planted:
    """A law with its truth, the number of rows, and the relative noise of one run."""

    text: str
    truth: dict[str, float]
    rows: int
    noise: float
    mean: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def draw(self, rng: np.random.Generator, rows: int | None = None) -> pd.DataFrame:
        x, y = (10 ** rng.uniform(2.0, 4.5, rows or self.rows) for _ in range(2))
        run = self.mean(x, y) * np.exp(self.noise * rng.standard_normal(len(x)))
        return pd.DataFrame({"x": x, "y": y, "loss": run})


LAWS = {
    "two parameters": Planted("A*x**-a", {"A": 3.0, "a": 0.5}, 60, 0.1, lambda x, y: 3.0 * x**-0.5),
    "five parameters": Planted(
        "E + A*x**-a + B*y**-b", {"E": 1.7, "A": 40.0, "a": 0.5, "B": 60.0, "b": 0.45}, 250, 0.01,
        lambda x, y: 1.7 + 40.0 * x**-0.5 + 60.0 * y**-0.45,
    ),
}  # fmt: skip


def coverage(law: Planted, replications: int, bootstraps: int, first_seed: int = 0) -> dict[str, float]:
    """Share of intervals that hold the truth: per parameter, and `new run` for predictions inside the range."""
    held = dict.fromkeys([*law.truth, "new run"], 0.0)
    for k in range(first_seed, first_seed + replications):
        rng = np.random.default_rng(k)
        fit = fit_law(law.draw(rng), law.text, "loss", bootstraps=bootstraps)
        assert all(fit.determined.values()), (k, fit.notes)
        for name, value in law.truth.items():
            held[name] += fit.intervals[name].low <= value <= fit.intervals[name].high
        new = law.draw(rng, NEW_RUNS)
        made = fit.predict(new).frame
        inside = ~made["outside"].to_numpy()
        hit = (made["low"] <= new["loss"]) & (new["loss"] <= made["high"])
        held["new run"] += float(hit[inside].mean())
    return {name: count / replications for name, count in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument("--bootstraps", type=int, default=200)
    options = parser.parse_args()
    for name, law in LAWS.items():
        print(f"{name}: {law.text}, {law.rows} rows ... ", end="", flush=True)
        found = coverage(law, options.replications, options.bootstraps)
        print(", ".join(f"{k} {v:.3f}" for k, v in found.items()), f"({options.replications} replications)")


if __name__ == "__main__":
    sys.exit(main())
