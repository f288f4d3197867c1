"""What is measured on a run, as columns of its row. One function a group of columns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run_one.build import Columns, build, evaluator, fit, learning_rate, optimizer, start
from experiments.run_one.cache import cached_tree, fingerprint
from experiments.run_one.config import RunConfig, identity
from experiments.run_one.setup import Materials, at_most
from lrc_jax import clock
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import SequenceLosses
from lrc_jax.measure.certificate import Compression, Fit, certificate_table
from lrc_jax.measure.complexity import factor_norm, matrix_norms
from lrc_jax.measure.cost import inference_columns
from lrc_jax.measure.dynamics import divergence, dynamics_columns, matched_step, same_start, whiten_teacher
from lrc_jax.measure.gap import control_variate_gap, mean, raw_gap
from lrc_jax.measure.sites import information_rows
from lrc_jax.seeds import key_for, rng_for
from lrc_jax.students import Frozen, Student
from lrc_jax.training.train import TrainState

OTHER_ORDER = 1_000_003  # added to the seed for the second direct student's order of data


def describe(config: RunConfig, materials: Materials, student: Student | None) -> Columns:
    """What a row says about its run before anything is measured."""
    width = materials.source.vocab_size if student is None else student.config.hidden_size
    teacher_width = width if materials.teacher is None else materials.teacher.config.hidden_size
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
        params, name = reference_student(config, materials, student, frozen)
        losses = evaluator(materials, student, frozen)
        reference_train = losses(params, train_pool)
        # The same for every sample size and seed of a sweep.
        reference_test = materials.once(
            f"{name} on {test_pool.size} {config.labels}", lambda: losses(params, test_pool)
        )
    gap = control_variate_gap(on_test, on_train, reference_test, reference_train, labels_from_teacher=from_teacher)
    raw = raw_gap(on_test, on_train)
    return {
        "gap": gap.value,
        "gap_se": gap.se,
        "gap_raw": raw.value,
        "gap_reference": config.measure.reference if reference_test is not None else "teacher",
    }


def reference_student(config: RunConfig, materials: Materials, student: Student, frozen: Frozen) -> tuple[Any, str]:
    """A student of the same kind and rank, distilled by KL alone on the reference pool: fixed before any sample of
    the study is seen, and as close to the trained students as such a model can be. Returns it with its name."""
    measure = config.measure
    samples = at_most(materials.source, "reference", measure.reference_samples)
    steps = measure.reference_steps or config.steps
    plain = dataclasses.replace(
        config, clone_weight=0.0, temperature=1.0, loss=dataclasses.replace(config.loss, kl_weight=1.0, ce_weight=0.0)
    )
    like = jax.eval_shape(student.init, key_for(0), frozen)
    made_of = identity(plain) | {"samples": samples, "steps": steps, "seed": 0, "digest": materials.data_digest}
    for not_of_the_reference in ("claim", "arm", "measure", "labels", "epochs"):
        del made_of[not_of_the_reference]

    def make() -> tuple[Any, dict[str, Any]]:
        pool = materials.with_features("reference", samples, "data")
        state, _ = fit(plain, materials, student, frozen, pool, steps, seed=0)
        return state.params, {"steps": steps, "samples": samples}

    name = fingerprint("reference", made_of)
    cache = Path(config.cache_dir)
    return materials.once(name, lambda: cached_tree(cache, "references", made_of, like, make)[0]), name


def approximation_columns(
    config: RunConfig, materials: Materials, student: Student, frozen: Frozen, test_pool: Pool
) -> Columns:
    """Loss of the best student of this rank at unlimited samples: distilled by KL on the reference pool, which is as
    far from its own limit as the pool is large; both numbers are in the row."""
    params, _ = reference_student(config, materials, student, frozen)
    on_test = evaluator(materials, student, frozen)(params, test_pool)
    return {
        "approx_loss": mean(on_test.entropy + on_test.kl).value,
        "approx_excess": mean(on_test.kl).value,
        "approx_samples": at_most(materials.source, "reference", config.measure.reference_samples),
    }


def norm_columns(student: Student, frozen: Frozen, params: Any) -> Columns:
    """Norms at the solution, summed over the student's matrices: what norm-based bounds say the gap grows with."""
    norms = matrix_norms(student.weights(params, frozen)).values()
    return {
        "nuclear_norm": sum(n.nuclear for n in norms),
        "frobenius_norm": float(np.sqrt(sum(n.frobenius**2 for n in norms))),
        "spectral_norm": max(n.spectral for n in norms),
        "phi": factor_norm(params),
    }


def information_columns(
    config: RunConfig, materials: Materials, student: Student, frozen: Frozen, params: Any
) -> Columns:
    """Information between teacher and student activations, a line a site; other noise levels beside the first."""
    teacher, measure = materials.network(), config.measure
    n = at_most(materials.source, "probe", measure.information_samples)
    pool = materials.pool("probe", n, "data")
    documents = materials.source.documents("probe", n)
    rows: list[dict[str, Any]] = []
    for i, tau in enumerate(measure.information_noise):
        key = key_for(config.seed, "information", i)
        found = information_rows(student, teacher.config, params, frozen, pool, documents, key, tau=tau)
        if i == 0:
            rows = found
        for row, other in zip(rows, found, strict=True):
            kept = ("mutual_information", "mi_ceiling", "mi_pca_reference")
            row |= {} if i == 0 else {f"{name}@{tau:g}": other[name] for name in kept}
    return {"lines": rows}


def dynamics_group(
    config: RunConfig, materials: Materials, clone: Student, frozen: Frozen, pool: Pool, test_pool: Pool
) -> Columns:
    """D = KL(direct student || clone) and D_0 = KL(direct, direct with other data order), at matched training loss.

    All start from the same student weights and are distilled by KL alone, the one loss that depends on nothing but
    those weights. With measure.whiten the clone's teacher matrices of these classes are replaced by their polar
    factors (and its start moved so that the student's weights are the same); the predictions that are distilled stay
    the teacher's.
    """
    teacher = materials.network()
    plain = dataclasses.replace(
        config, clone_weight=0.0, temperature=1.0, loss=dataclasses.replace(config.loss, kl_weight=1.0, ce_weight=0.0)
    )
    direct, _ = build(dataclasses.replace(plain, student=dataclasses.replace(config.student, name="direct")), materials)
    first = start(plain, clone, frozen)
    clone_frozen, clone_first = frozen, first
    if config.measure.whiten:
        try:
            whitened = whiten_teacher(teacher.weights, tuple(config.measure.whiten))
            clone_first = same_start(first, teacher.weights, whitened)
        except ValueError as wrong:
            raise InputError(f"measure.whiten: {wrong}") from None
        clone_frozen = dataclasses.replace(frozen, teacher=whitened, distilled=teacher.weights)

    spec = optimizer(plain)

    def trained(student: Student, fz: Frozen, params: Any, order_seed: int, until: int | None) -> tuple[Any, Any]:
        state = TrainState(params, spec.direction().init(params), jnp.zeros((), jnp.int32))
        state = jax.tree.map(jnp.array, state)  # training donates its state; the start is used again
        state, history = fit(
            plain, materials, student, fz, pool, config.steps, order_seed=order_seed, until=until, state=state
        )
        return state.params, history.terms.total

    direct_first = {"weights": clone.weights(first, frozen)}
    other_order = config.seed + OTHER_ORDER
    arms = {
        "clone": (clone, clone_frozen, clone_first, config.seed),
        "direct": (direct, frozen, direct_first, config.seed),
        "again": (direct, frozen, direct_first, other_order),
    }
    finals = {name: trained(*arm, None) for name, arm in arms.items()}
    window = min(50, max(1, config.steps // 4))
    target = max(float(losses[-window:].mean()) for _, losses in finals.values())
    matched, steps = {}, {}
    with clock.phase("measuring"):
        for name, (params, losses) in finals.items():
            steps[name] = matched_step(losses, target * (1 + 1e-6), window) or config.steps
            if steps[name] < config.steps:
                params, _ = trained(*arms[name], steps[name])
            student, fz = arms[name][:2]
            matched[name] = (student.config, student.weights(params, fz))
        tokens = test_pool.tokens_NT
        d, d0 = (
            divergence(matched["direct"], matched["clone"], tokens),
            divergence(matched["direct"], matched["again"], tokens),
        )
        angles = dynamics_columns(
            clone,
            teacher.config,
            clone_frozen,
            clone_first,
            pool.tokens_NT,
            key_for(config.seed, "dynamics"),
            distilled=teacher.weights,
        )
    return (
        {
            "dynamics_divergence": d.value,
            "dynamics_divergence_se": d.standard_error,
            "dynamics_baseline": d0.value,
            "dynamics_baseline_se": d0.standard_error,
            "matched_loss": target,
            "whitened": ",".join(config.measure.whiten) or None,
        }
        | {f"matched_steps.{name}": value for name, value in steps.items()}
        | angles
    )


def cost_columns(config: RunConfig, materials: Materials, student: Student, frozen: Frozen, params: Any) -> Columns:
    """What inference costs, of the student and of its teacher (columns teacher.*), measured on this machine."""
    teacher = materials.network()
    prompt = min(config.sequence_length, teacher.config.max_position_embeddings // 2)
    new = min(32, teacher.config.max_position_embeddings - prompt)
    sizes = {"prompt": prompt, "new_tokens": new}
    own = inference_columns(student.config, student.weights(params, frozen), rng_for(config.seed, "cost"), **sizes)
    whole = inference_columns(teacher.config, teacher.weights, rng_for(config.seed, "cost"), **sizes)
    return own | {f"teacher.{name}": value for name, value in whole.items()}


def certificate_columns(
    config: RunConfig, materials: Materials, student: Student, frozen: Frozen, pool: Pool, test_pool: Pool
) -> Columns:
    """A line a configuration: bits, empirical loss, bound, held-out loss, baselines."""
    measure = config.measure
    prior = [Compression(None if d < 0 else d, measure.certificate_levels) for d in measure.certificate_dimensions]
    lines = certificate_table(
        student,
        materials.network().config,
        frozen,
        # P_0 is fixed before any sample: by seed 0, whatever the sample's seed.
        start(config, student, frozen, seed=0),
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
