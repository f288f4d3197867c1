"""What an ablation adds to a run: its method, validation loss, intervals over documents, and steps for equal time."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from experiments.run_one.cache import cached_numbers
from experiments.run_one.columns.method import method_of
from experiments.run_one.config import Loss, identity
from experiments.run_one.run import Columns, Run
from experiments.run_one.setup import at_most
from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import SequenceLosses
from lrc_jax.measure.flops import forward_flops
from lrc_jax.seeds import rng_for

VALIDATION = 1024  # most sequences of the probe pool that settings are chosen on; no more than test sequences
RESAMPLES = 2000
PACE_STEPS, PACE_SECONDS, PACE_ROUNDS = 40, 2.0, 4  # steps timed at once (fewer where a step is slow), times over


def document_interval(losses_N: np.ndarray, documents_N: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of a mean loss, documents resampled whole (a token-weighted mean)."""
    _, index = np.unique(documents_N, return_inverse=True)
    sums_D, counts_D = np.bincount(index, losses_N), np.bincount(index)
    draws = rng.integers(0, len(sums_D), (RESAMPLES, len(sums_D)))
    low, high = np.quantile(sums_D[draws].sum(1) / counts_D[draws].sum(1), (0.025, 0.975))
    return float(low), float(high)


def ablation_columns(run: Run, params: Any, on_test: SequenceLosses) -> Columns:
    """Columns by which arms are compared. Settings are to be chosen by `valid_loss`, never by `test_loss`."""
    config, setup = run.config, run.setup
    size = at_most(setup.source, "probe", min(VALIDATION, config.measure.test_samples))
    probe = setup.pool("probe", size, config.labels)
    documents = setup.source.documents("test", len(on_test.student))
    rng = rng_for(0, "ablation", "bootstrap")  # the same documents for every run: arms are compared on equal terms
    low, high = document_interval(on_test.student, documents, rng)
    return {
        "method": method_of(config),
        "match": config.match,
        "valid_loss": float(np.mean(run.losses(params, probe).student)),
        "test_low": low,
        "test_high": high,
        "documents": len(np.unique(documents)),
        "teacher.flops_per_token": forward_flops(setup.network().config, config.sequence_length).total,
    }


def matched_steps(run: Run, pool: Pool) -> int:
    """Steps that take the time of `config.steps` steps of the plain Low-Rank Clone with all its losses.

    Both are timed here in alternating rounds, and the ratio of medians is kept in the cache: a table then has one
    number of steps per arm, and a machine whose speed drifts changes both sides alike.
    """
    config = run.config
    if not run.student.trained:
        return config.steps
    losses = dataclasses.replace(config, clone_weight=0.2, temperature=1.0, loss=Loss())
    init = "pca" if config.student.init == "whitened" else config.student.init
    student = dataclasses.replace(config.student, name="lrc", init=init, matrices="all", allocation="none")
    plain = dataclasses.replace(losses, student=student)
    made_of = identity(config) | {"data": run.setup.data_digest}
    for key in ("seed", "steps", "measure", "arm", "optimizer"):
        del made_of[key]

    def make() -> dict[str, Any]:
        # The plain clone reads the teacher's layers: an arm's pool may carry the features that its own losses need.
        layers = dataclasses.replace(pool, final_NTD=None)
        arms = {"this": (run, pool), "plain": (Run.of(plain, run.setup), layers)}
        states: dict[str, Any] = dict.fromkeys(arms)
        done = 0

        def advance(name: str, steps: int) -> float:
            """Seconds a step of an arm's next steps."""
            one, own = arms[name]
            start = time.perf_counter()
            horizon = 20 * PACE_STEPS
            states[name], _ = one.fit(own, horizon, until=done + steps, state=states[name])
            return (time.perf_counter() - start) / steps

        slowest = 0.0
        for _ in range(2):  # the first compiles
            slowest = max([advance(name, 1) for name in arms])
            done += 1
        steps = min(PACE_STEPS, max(1, round(PACE_SECONDS / slowest)))
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(PACE_ROUNDS):
            for name in arms:
                seconds[name].append(advance(name, steps))
            done += steps
        return {name: float(np.median(times)) for name, times in seconds.items()}

    pace = cached_numbers(run.cache, "pace", made_of, make)
    return max(1, round(config.steps * pace["plain"] / pace["this"]))
