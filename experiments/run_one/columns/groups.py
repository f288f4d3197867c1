"""What is measured on a run, as columns of its row. One function a group of columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run_one.cache import cached_tree, fingerprint
from experiments.run_one.config import RunConfig, identity
from experiments.run_one.run import Columns, Run, learning_rate, only_kl, optimizer
from experiments.run_one.setup import Setup, at_most
from lrc_jax import clock
from lrc_jax.data.pools import Pool
from lrc_jax.data.text import TextSource
from lrc_jax.errors import InputError
from lrc_jax.inference.cloze import Item, accuracy, build_items, choices_made
from lrc_jax.inference.evaluate import SequenceLosses
from lrc_jax.measure.certificate import Compression, Fit, certificate_table
from lrc_jax.measure.complexity import factor_norm, matrix_norms
from lrc_jax.measure.cost import inference_columns
from lrc_jax.measure.dynamics import divergence, dynamics_columns, matched_step, same_start, whiten_teacher
from lrc_jax.measure.flops import inference_cost, weight_bytes
from lrc_jax.measure.gap import control_variate_gap, mean, raw_gap
from lrc_jax.measure.sites import information_rows
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.seeds import key_for, rng_for
from lrc_jax.students import Student
from lrc_jax.teachers.tokenizer import Tokenizer
from lrc_jax.training.train import TrainState

OTHER_ORDER = 1_000_003  # added to the seed for the second direct student's order of data


def describe(config: RunConfig, setup: Setup, student: Student | None) -> Columns:
    """What a row says about its run before anything is measured."""
    width = setup.source.vocab_size if student is None else student.config.hidden_size
    teacher_width = width if setup.teacher is None else setup.teacher.config.hidden_size
    head = config.student.name == "bilinear" or config.student.matrices == "head"
    return {
        "claim": config.claim,
        "arm": config.arm,
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
        "d_out": setup.source.vocab_size if head else teacher_width,
    }


def risk_columns(config: RunConfig, setup: Setup, on_train: SequenceLosses, on_test: SequenceLosses) -> Columns:
    """Losses in nats per token. With labels from the teacher the test loss is taken in expectation over labels."""
    test = on_test.entropy + on_test.kl if config.labels == "teacher" else on_test.student
    excess = mean(on_test.kl)
    bayes = setup.source.bayes_loss()
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
    run: Run, on_train: SequenceLosses, on_test: SequenceLosses, train_pool: Pool, test_pool: Pool
) -> Columns:
    """The signed generalisation gap, with the control variate asked for."""
    config = run.config
    from_teacher = config.labels == "teacher"
    reference_test = reference_train = None
    if config.measure.reference == "student" and run.student.trained:
        params, name = reference_student(run)
        reference_train = run.losses(params, train_pool)
        # The same for every sample size and seed of a sweep.
        reference_test = run.setup.once(
            f"{name} on {test_pool.size} {config.labels}", lambda: run.losses(params, test_pool)
        )
    gap = control_variate_gap(on_test, on_train, reference_test, reference_train, labels_from_teacher=from_teacher)
    raw = raw_gap(on_test, on_train)
    return {
        "gap": gap.value,
        "gap_se": gap.se,
        "gap_raw": raw.value,
        "gap_reference": config.measure.reference if reference_test is not None else "teacher",
    }


def reference_student(run: Run) -> tuple[Any, str]:
    """A student of the same kind and rank, distilled by KL alone on the reference pool: fixed before any sample of
    the study is seen, and as close to the trained students as such a model can be. Returns it with its name."""
    config, setup, measure = run.config, run.setup, run.config.measure
    samples = at_most(setup.source, "reference", measure.reference_samples)
    steps = measure.reference_steps or config.steps
    plain = only_kl(config)
    like = jax.eval_shape(run.student.init, key_for(0), run.frozen)
    made_of = identity(plain) | {"samples": samples, "steps": steps, "seed": 0, "digest": setup.data_digest}
    for not_of_the_reference in ("claim", "arm", "measure", "labels", "epochs"):
        del made_of[not_of_the_reference]

    def make() -> tuple[Any, dict[str, Any]]:
        pool = setup.with_features("reference", samples, "data")
        state, _ = run.configured(plain).fit(pool, steps, seed=0)
        return state.params, {"steps": steps, "samples": samples}

    name = fingerprint("reference", made_of)
    return setup.once(name, lambda: cached_tree(run.cache, "references", made_of, like, make)[0]), name


def approximation_columns(run: Run, test_pool: Pool) -> Columns:
    """Loss of the best student of this rank at unlimited samples: distilled by KL on the reference pool, which is as
    far from its own limit as the pool is large; both numbers are in the row."""
    params, _ = reference_student(run)
    on_test = run.losses(params, test_pool)
    return {
        "approx_loss": mean(on_test.entropy + on_test.kl).value,
        "approx_excess": mean(on_test.kl).value,
        "approx_samples": at_most(run.setup.source, "reference", run.config.measure.reference_samples),
    }


def norm_columns(run: Run, params: Any) -> Columns:
    """Norms at the solution, summed over the student's matrices: what norm-based bounds say the gap grows with."""
    norms = matrix_norms(run.student.weights(params, run.frozen)).values()
    return {
        "nuclear_norm": sum(n.nuclear for n in norms),
        "frobenius_norm": float(np.sqrt(sum(n.frobenius**2 for n in norms))),
        "spectral_norm": max(n.spectral for n in norms),
        "phi": factor_norm(params),
    }


def information_columns(run: Run, params: Any) -> Columns:
    """Information between teacher and student activations, a line per site; other noise levels beside the first."""
    setup, measure = run.setup, run.config.measure
    n = at_most(setup.source, "probe", measure.information_samples)
    pool = setup.pool("probe", n, "data")
    documents = setup.source.documents("probe", n)
    rows: list[dict[str, Any]] = []
    for i, tau in enumerate(measure.information_noise):
        key = key_for(run.config.seed, "information", i)
        found = information_rows(run.student, setup.network().config, params, run.frozen, pool, documents, key, tau=tau)
        if i == 0:
            rows = found
        for row, other in zip(rows, found, strict=True):
            kept = ("mutual_information", "mi_ceiling", "mi_pca_reference")
            row |= {} if i == 0 else {f"{name}@{tau:g}": other[name] for name in kept}
    return {"lines": rows}


def dynamics_group(run: Run, pool: Pool, test_pool: Pool) -> Columns:
    """D = KL(direct student || clone) and D_0 = KL(direct, direct with other data order), at matched training loss.

    All start from the same student weights and are distilled by KL alone. With measure.whiten the clone's teacher
    matrices of these classes are replaced by their polar factors (and its start moved so that the student's weights
    are the same); the predictions that are distilled stay the teacher's.
    """
    config, teacher = run.config, run.setup.network()
    plain = run.configured(only_kl(config))
    first = plain.start()
    clone, clone_first = _whitened(plain, first)
    as_direct = dataclasses.replace(plain.config, student=dataclasses.replace(config.student, name="direct"))
    direct = dataclasses.replace(Run.of(as_direct, run.setup), config=plain.config, frozen=run.frozen)
    direct_first = {"weights": run.student.weights(first, run.frozen)}
    starts = {
        "clone": (clone, clone_first, config.seed),
        "direct": (direct, direct_first, config.seed),
        "again": (direct, direct_first, config.seed + OTHER_ORDER),
    }
    trained, steps, target = _at_equal_loss(starts, pool)
    with clock.phase("measuring"):
        models = {
            name: (starts[name][0].student.config, starts[name][0].student.weights(params, starts[name][0].frozen))
            for name, params in trained.items()
        }
        d = divergence(models["direct"], models["clone"], test_pool.tokens_NT)
        d0 = divergence(models["direct"], models["again"], test_pool.tokens_NT)
        key = key_for(config.seed, "dynamics")
        angles = dynamics_columns(
            clone.student, teacher.config, clone.frozen, clone_first, pool.tokens_NT, key, distilled=teacher.weights
        )
    divergences = {
        "dynamics_divergence": d.value,
        "dynamics_divergence_se": d.standard_error,
        "dynamics_baseline": d0.value,
        "dynamics_baseline_se": d0.standard_error,
        "matched_loss": target,
        "whitened": ",".join(config.measure.whiten) or None,
    }
    return divergences | {f"matched_steps.{name}": value for name, value in steps.items()} | angles


def _whitened(run: Run, first: Any) -> tuple[Run, Any]:
    """The run and its start on a teacher whose matrices named by measure.whiten are polar factors."""
    if not run.config.measure.whiten:
        return run, first
    weights = run.setup.network().weights
    try:
        whitened = whiten_teacher(weights, tuple(run.config.measure.whiten))
        start = same_start(first, weights, whitened)
    except ValueError as wrong:
        raise InputError(f"measure.whiten: {wrong}") from None
    return dataclasses.replace(run, frozen=dataclasses.replace(run.frozen, teacher=whitened, distilled=weights)), start


def _at_equal_loss(starts: dict[str, tuple[Run, Any, int]], pool: Pool) -> tuple[dict[str, Any], dict[str, int], float]:
    """Parameters of each run at the first step where its training loss is that of the slowest one's end.

    Args:
      starts: by name a run, its start parameters and the seed of its data order.

    Returns:
      Parameters, their steps, and the loss in nats per token.
    """

    def trained(name: str, until: int | None) -> tuple[Any, Any]:
        run, params, order_seed = starts[name]
        state = TrainState(params, optimizer(run.config).direction().init(params), jnp.zeros((), jnp.int32))
        state = jax.tree.map(jnp.array, state)  # training donates its state; the start is used again
        state, history = run.fit(pool, run.config.steps, order_seed=order_seed, until=until, state=state)
        return state.params, history.terms.total

    finals = {name: trained(name, None) for name in starts}
    horizon = next(iter(starts.values()))[0].config.steps
    window = min(50, max(1, horizon // 4))
    target = max(float(losses[-window:].mean()) for _, losses in finals.values())
    matched, steps = {}, {}
    for name, (params, losses) in finals.items():
        steps[name] = matched_step(losses, target * (1 + 1e-6), window) or horizon
        matched[name] = params if steps[name] == horizon else trained(name, steps[name])[0]
    return matched, steps, target


def cloze_columns(run: Run, params: Any) -> Columns:
    """Share of true continuations chosen, of the student and of its teacher, with 95 % intervals over items."""
    source, teacher = run.setup.source, run.setup.network()
    assert isinstance(source, TextSource)
    tokenizer, count = source.tokenizer, run.config.measure.cloze
    items = run.setup.once(f"cloze {count}", lambda: build_items(source.splits.test, count))

    merged = jax.jit(run.student.weights)(params, run.frozen)
    own = cloze_answers(run.student.config, merged, tokenizer, items)
    whole = run.setup.once(
        f"cloze {count} teacher", lambda: cloze_answers(teacher.config, teacher.weights, tokenizer, items)
    )
    return own | {"teacher.cloze_accuracy": whole["cloze_accuracy"]}


def cloze_answers(config: DecoderConfig, weights: Weights, tokenizer: Tokenizer, items: Sequence[Item]) -> Columns:
    """Share of a cloze task's items that a model answers, with its 95 % interval over items."""
    found = accuracy(choices_made(config, weights, tokenizer, items), items)
    low, high = found["ci95"]
    return {
        "cloze_accuracy": found["accuracy"], "cloze_low": low, "cloze_high": high, "cloze_items": found["items"],
    }  # fmt: skip


def cost_columns(run: Run, params: Any) -> Columns:
    """What inference costs, of the student and of its teacher (columns teacher.*), measured on this machine.

    Factors and rounded weights are computed with as whole matrices of float32, whose time and memory are not theirs:
    for such students nothing is measured.
    """
    config, teacher = run.config, run.setup.network()
    prompt = min(config.sequence_length, teacher.config.max_position_embeddings // 2)
    new = min(32, teacher.config.max_position_embeddings - prompt)
    sizes = {"prompt": prompt, "new_tokens": new, "length": config.sequence_length}
    own, student = {}, run.student
    if inference_cost(student, prompt).weight_bytes == weight_bytes(student.config):
        own = inference_columns(
            student.config, student.weights(params, run.frozen), rng_for(config.seed, "cost"), **sizes
        )
    whole = inference_columns(teacher.config, teacher.weights, rng_for(config.seed, "cost"), **sizes)
    return own | {f"teacher.{name}": value for name, value in whole.items()}


def certificate_columns(run: Run, pool: Pool, test_pool: Pool) -> Columns:
    """A line a configuration: bits, empirical loss, bound, held-out loss, baselines."""
    config, measure = run.config, run.config.measure
    prior = [Compression(None if d < 0 else d, measure.certificate_levels) for d in measure.certificate_dimensions]
    lines = certificate_table(
        run.student,
        run.setup.network().config,
        run.frozen,
        # P_0 is fixed before any sample: by seed 0, whatever the sample's seed.
        run.start(seed=0),
        pool,
        test_pool,
        key_for(config.seed, "certificate"),
        prior=prior,
        samples=(config.samples,),
        fit=Fit(float_steps=config.steps, quantised_steps=config.steps),
        delta=measure.certificate_delta,
        labels_from_teacher=config.labels == "teacher",
    )
    # These losses are in bits: under names of their own, since the table's losses are in nats.
    named = {
        "train_loss": "train_bits",
        "test_loss": "test_bits",
        "test_se": "test_bits_se",
        "teacher_loss": "teacher_bits",
    }
    return {"lines": [{named.get(k, k): v for k, v in line.items() if k != "samples"} for line in lines]}
