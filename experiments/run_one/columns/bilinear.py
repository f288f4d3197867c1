"""The log-bilinear bigram model's run: fitted to counts, judged against the language's conditionals."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from experiments.run_one.cache import cached_numbers
from experiments.run_one.columns.groups import describe
from experiments.run_one.config import RunConfig, SyntheticData
from experiments.run_one.run import Columns, Log, learning_rate
from experiments.run_one.setup import Setup
from lrc_jax import clock
from lrc_jax.data.synthetic import SyntheticSource, markov_tables
from lrc_jax.errors import InputError
from lrc_jax.seeds import key_for
from lrc_jax.students.bilinear import BilinearFit, bigram_counts, fit_bilinear, n_parameters


def run_bilinear(config: RunConfig, setup: Setup, log: Log) -> Columns:
    """A log-bilinear bigram model of the synthetic language: fitted to counts, judged against the conditionals."""
    source = setup.source
    assert isinstance(source, SyntheticSource) and isinstance(config.data, SyntheticData)
    tables, vocab = markov_tables(source.spec), source.vocab_size
    if config.rank > vocab:
        raise InputError(f"rank: {config.rank} is above the vocabulary {vocab}; choose a rank within it")
    rate = learning_rate(config)

    def fitted(counts: np.ndarray | None, key: jax.Array) -> BilinearFit:
        return fit_bilinear(tables, counts, config.rank, key, steps=config.steps, learning_rate=rate)

    counts = bigram_counts(source.sequences("student", config.samples, config.seed), vocab)
    with clock.phase("training"):
        result = fitted(counts, key_for(config.seed, "student", "init"))
    for i, loss in enumerate(result.losses):
        log({"step": (i + 1) * config.steps // len(result.losses), "ce": float(loss)})
    made_of = {"data": source.digest, "rank": config.rank, "steps": config.steps, "learning_rate": rate}
    with clock.phase("measuring"):
        population = cached_numbers(
            Path(config.cache_dir), "populations", made_of, lambda: {"excess": fitted(None, key_for(0)).excess}
        )
    entropy = tables.entropy_rate
    return describe(config, setup, None) | {
        "params": n_parameters(config.rank, vocab),
        "train_loss": result.train,
        "test_loss": entropy + result.excess,
        "test_loss_se": 0.0,
        "teacher_loss": entropy,
        "excess": result.excess,
        "excess_se": 0.0,
        "bayes_loss": entropy,
        "bayes_loss_se": 0.0,
        "gap": result.gap,
        "gap_reference": "language",
        "approx_loss": entropy + population["excess"],
        "approx_excess": population["excess"],
        "spectrum": config.data.spectrum,
    }
