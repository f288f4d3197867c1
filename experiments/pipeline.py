"""One run, from its configuration to the columns of its row. Reads from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.artifacts import cached_numbers, cached_tree
from experiments.config import RunConfig, SyntheticData, identity
from experiments.materials import Materials, labels_from_uniform
from lrc_jax.clone import CloneFlags
from lrc_jax.data.pools import Pool
from lrc_jax.data.synthetic import SyntheticSource, markov_tables
from lrc_jax.errors import InputError
from lrc_jax.evaluate import SequenceLosses, clone_fvu, sequence_losses
from lrc_jax.measure.convergence import SgdMeasurement, SgdPlan, measure_sgd_horizon
from lrc_jax.measure.gap import control_variate_gap, mean, raw_gap
from lrc_jax.model import count_parameters, forward
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.statistics import inverse_square_root, residual_basis
from lrc_jax.students import Frozen, Student, StudentOptions, make_student
from lrc_jax.students.bilinear import BilinearFit, bigram_counts, fit_bilinear, n_parameters
from lrc_jax.train import Hyper, OptimizerSpec, TrainState, init_state, student_loss, train

START_SAMPLES = 1024  # test sequences on which the untrained student is evaluated

Columns = dict[str, Any]
Log = Callable[[dict[str, Any]], None]
Tick = Callable[[int, int, float | None], None]


def run(config: RunConfig, materials: Materials, log: Log, tick: Tick) -> Columns:
    """Train one student, measure it, and return its row.

    Args:
      log: receives one object a chunk of training (a line of metrics.jsonl).
      tick: progress callback (done, total, loss).

    Raises:
      InputError: the configuration does not fit the data or the teacher.
      DivergedError: a loss is not finite.
    """
    if config.student.name == "bilinear":
        return run_bilinear(config, materials, log)
    student, frozen = build(config, materials)
    columns = describe(config, materials, student)
    if config.measure.convergence:
        return columns | convergence_columns(config, materials, student, frozen)

    train_pool = materials.pool("student", config.samples, config.labels, config.seed)
    test_pool = materials.pool("test", test_size(config, materials), config.labels)
    if student.reads_only_final:
        train_pool, test_pool = materials.with_features(train_pool), materials.with_features(test_pool)
    losses = evaluator(materials, student, frozen)
    first_batch = jax.tree.map(lambda x: x[:START_SAMPLES], test_pool)
    columns["start_test_loss"] = mean(losses(start(config, student, frozen), first_batch).student).value
    state = fit(config, materials, student, frozen, train_pool, config.steps, log=log, tick=tick)

    on_train, on_test = losses(state.params, train_pool), losses(state.params, test_pool)
    columns["params"] = count_parameters(state.params)
    columns |= risk_columns(config, materials, on_train, on_test)
    columns |= gap_columns(config, materials, student, frozen, on_train, on_test, train_pool, test_pool)
    if config.measure.approximation:
        columns |= approximation_columns(config, materials, student, frozen, test_pool)
    if config.measure.clone_fvu and not student.reads_only_final:
        teacher = materials.network()
        sites = clone_fvu(student, teacher.config, state.params, frozen, test_pool)
        columns |= {f"fvu.{site}": value for site, value in sites.items()}
    return columns


# ------------------------------------------------------------------------------------------------ building blocks


def build(config: RunConfig, materials: Materials) -> tuple[Student, Frozen]:
    """The student and what it reads but never trains."""
    teacher, chosen = materials.network(), config.student
    flags = CloneFlags(
        rank=config.rank,
        use_all_attn=chosen.use_all_attn,
        use_in_out_mlp=chosen.use_in_out_mlp,
        tie_word_emb_proj=chosen.tie_word_emb_proj,
        use_additional_align=chosen.use_additional_align,
        del_layers=tuple(chosen.del_layers),
        target_rms_norm_eps=chosen.target_rms_norm_eps,
    )
    options = StudentOptions(
        init=chosen.init,
        matrices=chosen.matrices,
        whiten=chosen.whiten,
        clone=config.clone_weight > 0,
        unit_embedding=chosen.unit_embedding,
    )
    student = make_student(chosen.name, teacher.config, flags, options)
    basis = whitener = None
    if chosen.init in ("pca", "channels") and chosen.name != "factorized":
        basis = residual_basis(chosen.init, materials.moments[0], config.rank)
    if chosen.name == "factorized" and chosen.matrices == "head" and chosen.whiten:
        whitener = inverse_square_root(materials.moments[1])
    to_device = lambda x: None if x is None else jnp.asarray(x)  # noqa: E731
    return student, Frozen(teacher.weights, to_device(basis), to_device(whitener))


def objective(config: RunConfig) -> Objective:
    loss = config.loss
    return Objective(
        clone=config.clone_weight > 0 and config.student.matrices != "head",
        kl=loss.kl_weight > 0,
        ce=loss.ce_weight > 0,
        distance=loss.clone_distance,
        kl_per_token=loss.kl_per_token,
        sites=tuple(loss.clone_sites),
    )


def loss_weights(config: RunConfig) -> LossWeights:
    values = (config.clone_weight, config.loss.kl_weight, config.loss.ce_weight, config.temperature)
    return LossWeights(*(jnp.asarray(v, jnp.float32) for v in values))


def learning_rate(config: RunConfig) -> float:
    return config.optimizer.learning_rate * max(config.steps, 1) ** -config.optimizer.horizon_power


def optimizer(config: RunConfig) -> OptimizerSpec:
    names = {f.name for f in dataclasses.fields(OptimizerSpec)}
    return OptimizerSpec(**{k: v for k, v in dataclasses.asdict(config.optimizer).items() if k in names})


def fit(
    config: RunConfig,
    materials: Materials,
    student: Student,
    frozen: Frozen,
    pool: Pool,
    steps: int,
    *,
    samples: int | None = None,
    seed: int | None = None,
    log: Log | None = None,
    tick: Tick | None = None,
) -> TrainState:
    """Train the student on the first `samples` sequences of the pool (all by default)."""
    seed = config.seed if seed is None else seed
    hyper = Hyper(
        learning_rate=jnp.asarray(learning_rate(config), jnp.float32),
        steps=jnp.asarray(steps, jnp.int32),
        samples=jnp.asarray(samples or pool.size, jnp.int32),
        loss=loss_weights(config),
    )

    def on_chunk(state: TrainState, history: Any) -> None:
        if log is not None:
            part = history.terms
            line = {name: float(np.mean(getattr(part, name))) for name in ("total", "clone", "kl", "ce")}
            log({"step": int(state.step)} | line | {"grad_norm": float(np.mean(history.grad_norm))})

    state, _ = train(
        student,
        objective(config),
        optimizer(config),
        materials.network().config,
        frozen,
        pool,
        hyper,
        batch_size=config.batch_size,
        init_key=key_for(seed, "student", "init"),
        order_key=key_for(seed, "student", "order"),
        progress=tick,
        on_chunk=on_chunk,
    )
    return state


def start(config: RunConfig, student: Student, frozen: Frozen, seed: int | None = None) -> Any:
    """The parameters that training starts from."""
    key = key_for(config.seed if seed is None else seed, "student", "init")
    return init_state(student, optimizer(config), key, frozen).params


def evaluator(materials: Materials, student: Student, frozen: Frozen) -> Callable[[Any, Pool], SequenceLosses]:
    teacher = materials.network()
    return lambda params, pool: sequence_losses(student, teacher.config, params, frozen, pool)


def test_size(config: RunConfig, materials: Materials) -> int:
    have = materials.source.available("test")
    return config.measure.test_samples if have is None else min(have, config.measure.test_samples)


# --------------------------------------------------------------------------------------------------------- columns


def describe(config: RunConfig, materials: Materials, student: Student | None) -> Columns:
    """What a row says about its run before anything is measured."""
    width = materials.source.vocab_size if student is None else student.config.hidden_size
    teacher_width = width if materials.teacher is None else materials.teacher.config.hidden_size
    head = config.student.name == "bilinear" or config.student.matrices == "head"
    return {
        "claim": config.claim,
        "student": config.student.name,
        "matrices": config.student.matrices if config.student.name == "factorized" else None,
        "init": config.student.init,
        "teacher": config.teacher.name,
        "data": config.data.name,
        "labels": config.labels,
        "rank": config.rank,
        "samples": config.samples,
        "steps": config.steps,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "clone_weight": config.clone_weight,
        "kl_weight": config.loss.kl_weight,
        "ce_weight": config.loss.ce_weight,
        "kl_per_token": config.loss.kl_per_token,
        "temperature": config.temperature,
        "learning_rate": learning_rate(config),
        # The weight matrix whose rank is in question: the unembedding for one-matrix students, else D x D.
        "d_in": teacher_width,
        "d_out": materials.source.vocab_size if head else teacher_width,
    }


def risk_columns(config: RunConfig, materials: Materials, on_train: SequenceLosses, on_test: SequenceLosses) -> Columns:
    """Losses in nats per token. With labels from the teacher the test loss is taken in expectation over labels."""
    test = on_test.entropy + on_test.kl if config.labels == "teacher" else on_test.student
    excess = mean(on_test.kl)
    bayes = materials.source.bayes_loss()
    return {
        "train_loss": mean(on_train.student).value,
        "test_loss": mean(test).value,
        "test_loss_se": mean(test).se,
        "teacher_loss": mean(on_test.entropy if config.labels == "teacher" else on_test.teacher).value,
        "excess": excess.value,
        "excess_se": excess.se,
        "bayes_loss": None if bayes is None else bayes[0],
        "bayes_loss_se": None if bayes is None else bayes[1],
    }


def gap_columns(
    config: RunConfig,
    materials: Materials,
    student: Student,
    frozen: Frozen,
    on_train: SequenceLosses,
    on_test: SequenceLosses,
    train_pool: Pool,
    test_pool: Pool,
) -> Columns:
    """The signed generalisation gap, with the control variate asked for."""
    from_teacher = config.labels == "teacher"
    reference_test = reference_train = None
    if config.measure.reference == "student" and student.trained:
        params = reference_student(config, materials, student, frozen)
        losses = evaluator(materials, student, frozen)
        reference_train, reference_test = losses(params, train_pool), losses(params, test_pool)
    gap = control_variate_gap(on_test, on_train, reference_test, reference_train, labels_from_teacher=from_teacher)
    raw = raw_gap(on_test, on_train)
    return {
        "gap": gap.value,
        "gap_se": gap.se,
        "gap_raw": raw.value,
        "gap_reference": config.measure.reference if reference_test is not None else "teacher",
    }


def reference_student(config: RunConfig, materials: Materials, student: Student, frozen: Frozen) -> Any:
    """A student of the same kind and rank, distilled by KL alone on the reference pool: fixed before any sample of
    the study is seen, and as close to the trained students as such a model can be."""
    measure = config.measure
    have = materials.source.available("reference")
    samples = measure.reference_samples if have is None else min(have, measure.reference_samples)
    steps = measure.reference_steps or config.steps
    plain = dataclasses.replace(
        config, clone_weight=0.0, temperature=1.0, loss=dataclasses.replace(config.loss, kl_weight=1.0, ce_weight=0.0)
    )
    like = jax.eval_shape(student.init, key_for(0), frozen)
    made_of = identity(plain) | {"samples": samples, "steps": steps, "seed": 0, "digest": materials.data_digest}
    del made_of["claim"], made_of["measure"], made_of["labels"]

    def make() -> tuple[Any, dict[str, Any]]:
        pool = materials.pool("reference", samples, "data")
        if student.reads_only_final:
            pool = materials.with_features(pool)
        state = fit(plain, materials, student, frozen, pool, steps, seed=0)
        return state.params, {"steps": steps, "samples": samples}

    params, _ = cached_tree(Path(config.cache_dir), "references", made_of, like, make)
    return params


def approximation_columns(
    config: RunConfig, materials: Materials, student: Student, frozen: Frozen, test_pool: Pool
) -> Columns:
    """Loss of the best student of this rank at unlimited samples: distilled by KL on the reference pool, which is as
    far from its own limit as the pool is large; both numbers are in the row."""
    params = reference_student(config, materials, student, frozen)
    on_test = evaluator(materials, student, frozen)(params, test_pool)
    return {
        "approx_loss": mean(on_test.entropy + on_test.kl).value,
        "approx_excess": mean(on_test.kl).value,
        "approx_samples": config.measure.reference_samples,
    }


# ------------------------------------------------------------------------------------------------ one-matrix models


def run_bilinear(config: RunConfig, materials: Materials, log: Log) -> Columns:
    """A log-bilinear bigram model of the synthetic language: fitted to counts, judged against the conditionals."""
    source = materials.source
    assert isinstance(source, SyntheticSource) and isinstance(config.data, SyntheticData)
    tables, vocab = markov_tables(source.spec), source.vocab_size
    if config.rank > vocab:
        raise InputError(f"rank: {config.rank} is above the vocabulary {vocab}; choose a rank within it")
    rate = learning_rate(config)

    def fitted(counts: np.ndarray | None, key: jax.Array) -> BilinearFit:
        return fit_bilinear(tables, counts, config.rank, key, steps=config.steps, learning_rate=rate)

    counts = bigram_counts(source.sequences("student", config.samples, config.seed), vocab)
    result = fitted(counts, key_for(config.seed, "student", "init"))
    for i, loss in enumerate(result.losses):
        log({"step": (i + 1) * config.steps // len(result.losses), "ce": float(loss)})
    made_of = {"data": source.digest, "rank": config.rank, "steps": config.steps, "learning_rate": rate}
    population = cached_numbers(
        Path(config.cache_dir), "populations", made_of, lambda: {"excess": fitted(None, key_for(0)).excess}
    )
    entropy = tables.entropy_rate
    return describe(config, materials, None) | {
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


# ----------------------------------------------------------------------------------------------------- convergence


def convergence_columns(config: RunConfig, materials: Materials, student: Student, frozen: Frozen) -> Columns:
    """Both sides of the SGD bound: the run's averaged squared gradient norm, and the constants.

    Smoothness and gradient variance come from the pilot seed's run at the same step size and horizon, are frozen and
    used for all others; a pilot run judged with its own constants would be an identity.
    """
    plan = SgdPlan(
        steps=config.steps,
        step_size=learning_rate(config),
        batch_size=config.batch_size,
        decay=0.5 if config.optimizer.schedule == "inverse_sqrt" else 0.0,
    )
    made_of = identity(config) | {"seed": config.measure.pilot_seed, "digest": materials.data_digest}
    del made_of["claim"]

    def pilot() -> dict[str, Any]:
        measured = _sgd(config, materials, student, frozen, plan, config.measure.pilot_seed)
        return {"smoothness": measured.smoothness, "grad_variance": measured.grad_variance}

    constants = cached_numbers(Path(config.cache_dir), "pilots", made_of, pilot)
    plan = dataclasses.replace(plan, constants=False)
    measured = _sgd(config, materials, student, frozen, plan, config.seed)
    row = measured.row() | {"smoothness": constants["smoothness"], "grad_variance": constants["grad_variance"]}
    params = jax.eval_shape(student.init, key_for(0), frozen)
    return row | {"params": count_parameters(params), "pilot_seed": config.measure.pilot_seed}


def _sgd(
    config: RunConfig, materials: Materials, student: Student, frozen: Frozen, plan: SgdPlan, seed: int
) -> SgdMeasurement:
    """Plain SGD on f, the mean objective over a finite pool of sequences.

    With labels from the teacher, each visit to a sequence draws them afresh: f is then exact in the labels, and
    ce_weight times the teacher's entropy is a lower bound of it. With the text's labels the lower bound is 0.
    """
    have = materials.source.available("student")
    size = config.measure.pool if have is None else min(have, config.measure.pool)
    pool = materials.pool("student", size, "data")
    fresh = config.labels == "teacher"
    loss = jax.tree_util.Partial(
        _PoolLoss(student, objective(config), materials.network().config, fresh), frozen, loss_weights(config)
    )
    sample = jax.tree_util.Partial(_sample_pool, jax.tree.map(jnp.asarray, pool))
    first, f_low = start(config, student, frozen, seed), 0.0
    if fresh and config.loss.ce_weight:
        probe = dataclasses.replace(pool, tokens_NT=pool.tokens_NT[:8192], labels_NT=pool.labels_NT[:8192])
        entropy = mean(evaluator(materials, student, frozen)(first, probe).entropy)
        f_low = config.loss.ce_weight * (entropy.value - 3 * entropy.se)
    measured, _ = measure_sgd_horizon(loss, sample, first, key_for(seed, "student", "order"), plan, f_low)
    return measured


@dataclasses.dataclass(frozen=True)
class _PoolLoss:
    """loss(frozen, weights, params, (batch, u)); hashable, so that runs that share it share its compilation."""

    student: Student
    objective: Objective
    teacher: Any
    fresh_labels: bool

    def __call__(self, frozen: Frozen, weights: LossWeights, params: Any, batch: tuple[Pool, jax.Array]) -> jax.Array:
        pool, u_BT = batch
        if self.fresh_labels:
            logits_NV = forward(self.teacher, frozen.teacher, pool.tokens_NT).logits_NV
            pool = dataclasses.replace(pool, labels_NT=labels_from_uniform(logits_NV, u_BT))
        return student_loss(self.student, self.objective, self.teacher, params, frozen, weights, pool)[0]


def _sample_pool(pool: Pool, key: jax.Array, size: int) -> tuple[Pool, jax.Array]:
    """Sequences drawn uniformly with replacement, and uniform numbers to draw labels with."""
    index_key, label_key = jax.random.split(key)
    index_B = jax.random.randint(index_key, (size,), 0, pool.size)
    batch = jax.tree.map(lambda x: x[index_B], pool)
    return batch, jax.random.uniform(label_key, (size, pool.tokens_NT.shape[1]))
