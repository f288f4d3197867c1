"""Reduced-rank regression by scikit-learn alone: rank r, N samples, 16 repetitions. Writes regression.csv."""

import pandas as pd
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import make_regression

WIDTH = 32
rows = []
for seed in range(16):
    x, y, truth = make_regression(
        n_samples=30_000, n_features=WIDTH, n_targets=WIDTH, n_informative=WIDTH, effective_rank=3, noise=1.0,
        coef=True, random_state=seed,
    )  # fmt: skip

    def loss(predicted, part, y=y):
        """Nats a sample, up to a constant: minus the log density of Gaussian noise with unit variance."""
        return ((y[part] - predicted) ** 2).sum(1).mean() / 2

    test = slice(10_000, None)
    for samples in (100, 250, 630, 1600, 4000, 10_000):
        train = slice(samples)
        # The truth fits both samples alike but for chance, the same chance as the model's: taking its gap away
        # leaves the mean as it is and takes most of the noise out.
        chance = loss(x[test] @ truth, test) - loss(x[train] @ truth, train)
        for rank in (3, 4, 6, 8, 12, 16, 24):
            model = PLSRegression(rank, scale=False, tol=1e-3).fit(x[train], y[train])
            gap = loss(model.predict(x[test]), test) - loss(model.predict(x[train]), train)
            rows.append({"rank": rank, "samples": samples, "seed": seed, "gap": round(gap - chance, 6)})
pd.DataFrame(rows).to_csv("regression.csv", index=False)
