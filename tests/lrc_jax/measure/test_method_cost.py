"""What a student of every kind costs to train and to run, against the compiler and against counted arrays."""

import functools

import jax
import jax.numpy as jnp
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.compute.fast import computed
from lrc_jax.data.pools import Pool
from lrc_jax.measure import flops
from lrc_jax.model import DecoderConfig, count_parameters, init_weights
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.training.train import student_loss

UNTIED = DecoderConfig(256, 64, 172, 2, 4, 4, 16)
TIED = DecoderConfig(96, 48, 96, 1, 6, 3, 8, tie_word_embeddings=True)
BATCH, LENGTH = 8, 32


def weights_of(config):
    return jax.eval_shape(functools.partial(init_weights, config), jax.random.key(0))


KINDS = {
    "lrc": ("lrc", {}, Objective(ce=False)),
    "direct": ("direct", {}, Objective()),
    "scratch with KL": ("scratch", {"clone": False}, Objective(clone=False)),
    "scratch": ("scratch", {"clone": False}, Objective(clone=False, kl=False)),
    "factorized": ("factorized", {}, Objective()),
    "head": ("factorized", {"matrices": "head"}, Objective(clone=False)),
}
FAST = ("direct", "factorized tied", "head")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for k in KINDS for c in (k, f"{k} tied")],
)
def test_training_formula_of_every_kind_agrees_with_the_compiler(case):
    kind, options, objective = KINDS[case.removesuffix(" tied")]
    config = TIED if case.endswith("tied") else UNTIED
    student = make_student(kind, config, CloneFlags(rank=12), StudentOptions(**options))
    frozen = Frozen(weights_of(config))
    params = jax.eval_shape(student.init, jax.random.key(0), frozen)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)

    def step(params, frozen, tokens):
        def loss(p):
            return student_loss(student, objective, config, p, frozen, LossWeights(), Pool(tokens, tokens))[0]

        return jax.value_and_grad(loss)(params)

    with computed("reference"):  # the fast step skips scores above the diagonal, which the formula counts
        compiled = flops.compiled_cost(step, params, frozen, tokens)
    found = flops.training_flops(student, objective, BATCH * LENGTH, LENGTH)
    assert found.total == pytest.approx(compiled.flops, rel=0.08)


@pytest.mark.parametrize("config", [UNTIED, TIED])
def test_a_student_costs_what_it_is_run_as(config):
    flags, options, frozen = CloneFlags(rank=12), StudentOptions(), Frozen(weights_of(config))
    for kind in ("lrc", "direct", "scratch"):
        student = make_student(kind, config, flags, options)
        weights = jax.eval_shape(lambda f, s=student: s.weights(s.init(jax.random.key(0), f), f), frozen)
        found = flops.inference_cost(student, LENGTH)
        assert found.weight_bytes == 4 * found.numbers == 4 * count_parameters(weights)
        assert found.flops_per_token == flops.forward_flops(student.config, LENGTH).total
    # Low enough for factors to be smaller everywhere: what is kept are the trained numbers.
    factorized = make_student("factorized", config, CloneFlags(rank=6), options)
    params = jax.eval_shape(factorized.init, jax.random.key(0), frozen)
    assert flops.inference_cost(factorized, LENGTH).numbers == count_parameters(params)
    # At full rank the matrices themselves are kept, and run.
    whole = make_student("factorized", config, CloneFlags(rank=config.hidden_size), options)
    found = flops.inference_cost(whole, LENGTH)
    assert found.numbers == flops.parameter_count(config)
    assert found.flops_per_token == flops.forward_flops(config, LENGTH).total


def test_a_factorized_forward_pass_takes_the_flops_that_are_said():
    config, rank = UNTIED, 6
    student = make_student("factorized", config, CloneFlags(rank=rank), StudentOptions())
    thin = sum(2 * rank * (m + n) for name, (m, n) in student.shapes().items() if name != "embed")
    exact = flops.forward_flops(config, LENGTH)
    rest = exact.total - exact.attention_projections - exact.mlp - exact.head
    assert flops.inference_cost(student, LENGTH).flops_per_token == thin + 2 * rank * config.hidden_size + rest


@pytest.mark.parametrize(("config", "bits"), [(UNTIED, 8), (UNTIED, 4), (TIED, 8), (TIED, 4)])
def test_a_quantised_teacher_has_the_bytes_of_its_levels_and_scales(config, bits):
    student = make_student("quantised", config, CloneFlags(rank=1), StudentOptions(bits=bits))
    found, norms = flops.inference_cost(student, LENGTH), (2 * config.num_layers + 1) * config.hidden_size
    matrices = flops.parameter_count(config) - norms
    assert found.numbers == matrices + norms
    D, V, F, Q, K = config.hidden_size, config.vocab_size, config.intermediate_size, config.q_size, config.kv_size
    # Scales: of float16, for every output channel and 32 of its inputs, or all of them.
    groups = (lambda n: -(-n // 32)) if bits == 4 else (lambda n: 1)
    layer = groups(D) * (Q + 2 * K + 2 * F) + groups(Q) * D + groups(F) * D
    scales = config.num_layers * layer + groups(D) * V * (1 if config.tie_word_embeddings else 2)
    assert found.weight_bytes == matrices * bits / 8 + 2 * scales + 4 * norms
    assert found.flops_per_token == flops.forward_flops(config, LENGTH).total
