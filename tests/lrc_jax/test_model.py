"""Properties of the decoder and of the students that hold whatever the weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import some_slow

from lrc_jax.clone import CloneFlags, LowRankClone
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.losses import ClonePair, clone_distance, fraction_unexplained, kl_per_token
from lrc_jax.model import DecoderConfig, RopeScaling, count_parameters, forward, init_weights, rope_tables
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.students import STUDENT_KINDS, Frozen, StudentOptions, make_student
from lrc_jax.training.train import student_loss

BASE = DecoderConfig(
    vocab_size=29,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)
VARIANTS = {
    "llama": BASE,
    "tied": dataclasses.replace(BASE, tie_word_embeddings=True),
    "qwen2": dataclasses.replace(BASE, qkv_bias=True),
    "qwen3": dataclasses.replace(BASE, qk_norm=True, head_dim=10),
    "llama3": dataclasses.replace(BASE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
    "linear": dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 2.0)),
}


def teacher_of(config: DecoderConfig, seed: int = 0):
    weights = jax.jit(init_weights, static_argnums=0)(config, jax.random.key(seed))
    # Norm gains and biases away from their start, so that forgetting one shows.
    keys = iter(jax.random.split(jax.random.key(seed + 1), 1000))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape) if x.ndim == 1 else x, weights)


def tokens_of(config: DecoderConfig, batch: int = 3, length: int = 9, seed: int = 2):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, config.vocab_size)


@pytest.mark.parametrize("name", some_slow(VARIANTS, fast=("tied", "qwen3")))
def test_causality_by_gradient(name):
    """No logit at position i may depend on the embedding of a later token."""
    config = VARIANTS[name]
    weights, tokens = teacher_of(config), tokens_of(config, batch=1)
    length = tokens.shape[1]
    embedded = weights.embed_VD[tokens.reshape(-1)]
    probe = jax.random.normal(jax.random.key(5), (config.vocab_size,))

    def logits_seen(embedded):
        return forward(config, weights, tokens, embedded).logits_NV @ probe

    jacobian = jnp.abs(jax.jacrev(logits_seen)(embedded)).sum(axis=-1)  # [position, token]
    assert float(jnp.abs(jnp.triu(jacobian, 1)).max()) == 0.0
    assert float(jnp.diag(jacobian).min()) > 0.0
    assert float(jacobian[length - 1, 0]) > 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_invariance(name):
    """Whatever follows a sequence changes nothing before it, and neighbours in the batch change nothing."""
    config = VARIANTS[name]
    weights, tokens = teacher_of(config), tokens_of(config)
    alone = forward(config, weights, tokens[:1, :5]).logits_NV
    together = forward(config, weights, tokens).logits_NV.reshape(*tokens.shape, -1)[0, :5]
    np.testing.assert_allclose(alone, together, rtol=0, atol=2e-6)


def test_rope_depends_on_distance_only():
    cos, sin = rope_tables(BASE, 12)
    shifted_cos, shifted_sin = rope_tables(BASE, 6, offset=4)
    np.testing.assert_allclose(cos[4:10], shifted_cos)
    np.testing.assert_allclose(sin[4:10], shifted_sin)
    assert rope_tables(VARIANTS["linear"], 3)[0][2, 0] == pytest.approx(rope_tables(BASE, 3)[0][1, 0])


def test_float64_agrees_with_float32():
    config = VARIANTS["qwen3"]
    weights, tokens = teacher_of(config), tokens_of(config)
    single = forward(config, weights, tokens).logits_NV
    with jax.enable_x64(True):
        double = forward(
            config, jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), weights), tokens
        ).logits_NV
        assert double.dtype == jnp.float64
    np.testing.assert_allclose(single, np.asarray(double), rtol=0, atol=1e-5)


def student_of(kind: str, config: DecoderConfig, rank: int = 6, **options):
    student = make_student(kind, config, CloneFlags(rank), StudentOptions(**options))
    whitener = jnp.eye(config.hidden_size) * 0.5
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(config.hidden_size, rank)))[0], jnp.float32)
    return student, Frozen(teacher_of(config), basis if options.get("init") == "pca" else None, whitener)


STUDENTS = [(kind, {}) for kind in STUDENT_KINDS] + [
    ("lrc", {"init": "pca"}),
    ("lrc", {"init": "fan_in", "unit_embedding": True}),
    ("lrc", {"init": "fan_in", "unit_norm": True}),
    ("factorized", {"init": "pca"}),
    ("factorized", {"matrices": "head"}),
    ("factorized", {"matrices": "head", "init": "pca"}),
]


@pytest.mark.parametrize(
    ("kind", "options"), STUDENTS, ids=[f"{k}-{'-'.join(map(str, o.values()))}" for k, o in STUDENTS]
)
@pytest.mark.parametrize("variant", some_slow(["tied", "qwen2"], fast=["tied"]))
def test_a_student_is_the_decoder_that_it_says_it_is(kind, options, variant):
    """forward() of the student equals an ordinary decoder run on its merged weights; and its loss has gradients."""
    config = VARIANTS[variant]
    student, frozen = student_of(kind, config, **options)
    params = student.init(jax.random.key(3), frozen)
    tokens = tokens_of(config)
    teacher_acts = forward(config, frozen.teacher, tokens)
    ours = student.forward(params, frozen, tokens, teacher_acts).logits_NV
    merged = student.weights(params, frozen)
    plain = forward(student.config, merged, tokens).logits_NV
    np.testing.assert_allclose(ours, plain, rtol=0, atol=5e-6 * max(1.0, float(jnp.abs(plain).max())))

    objective = Objective(clone=kind not in ("svd", "quantised") and options.get("matrices") != "head")
    batch = Pool(tokens, jnp.roll(tokens, -1, axis=1))

    def loss(params):
        return student_loss(student, objective, config, params, frozen, LossWeights(), batch)[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert float(jnp.abs(leaf).max()) > 0.0


def test_fixed_norms_leave_a_loss_of_directions_alone():
    """What the student computes does not change with the scale of a tensor, so that no gradient has a part along it;
    an ordinary clone's does. Its embedded tokens have rms 1 and its matrices the norm of a random start."""
    batch = Pool(tokens_of(BASE), jnp.roll(tokens_of(BASE), -1, axis=1))
    for unit_norm in (True, False):
        student, frozen = student_of("lrc", BASE, init="fan_in", unit_norm=unit_norm)
        params = student.init(jax.random.key(3), frozen)

        def loss(params, student=student, frozen=frozen):
            return student_loss(student, Objective(), BASE, params, frozen, LossWeights(), batch)[0]

        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        scaled = jax.jit(loss)(jax.tree.map(lambda x: 3 * x, params))
        along = {k: float(jnp.vdot(params[k], g) / (jnp.linalg.norm(params[k]) * jnp.linalg.norm(g)))
                 for k, g in grads.items()}  # fmt: skip
        assert (max(map(abs, along.values())) < 1e-4) == unit_norm
        assert (abs(float(scaled / value) - 1) < 1e-5) == unit_norm
    student, frozen = student_of("lrc", BASE, init="fan_in", unit_norm=True)
    normed = student.lrc.normed(jax.tree.map(lambda x: 3 * x, student.init(jax.random.key(3), frozen)), frozen.teacher)
    embedded = frozen.teacher.embed_VD @ normed.pop("model.zoom.weight").T
    assert float(jnp.sqrt(jnp.mean(embedded**2))) == pytest.approx(1, rel=1e-5)
    for name, x in normed.items():
        wanted = BASE.hidden_size**-0.5 if x.ndim == 2 else 1.0
        assert float(jnp.sqrt(jnp.mean(x * x))) == pytest.approx(wanted, rel=1e-5), name
    with pytest.raises(InputError, match="unit_norm"):
        student_of("direct", BASE, unit_norm=True)


def test_direct_starts_where_the_clone_starts():
    clone, frozen = student_of("lrc", BASE)
    direct, _ = student_of("direct", BASE)
    key, tokens = jax.random.key(11), tokens_of(BASE)
    a = clone.forward(clone.init(key, frozen), frozen, tokens, None).logits_NV
    b = direct.forward(direct.init(key, frozen), frozen, tokens, None).logits_NV
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_full_rank_starts_reproduce_the_teacher():
    """A basis of full width, and factors of full rank, lose nothing."""
    tokens = tokens_of(BASE)
    wanted = forward(BASE, teacher_of(BASE), tokens).logits_NV
    for kind, options in (("lrc", {"init": "pca"}), ("factorized", {"init": "pca"})):
        student, frozen = student_of(kind, BASE, rank=BASE.hidden_size, **options)
        got = student.forward(student.init(jax.random.key(0), frozen), frozen, tokens, None).logits_NV
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4)


def test_count_of_trainable_numbers():
    """t s (L (A + M + 2 align) + 1 + [untied]) + s (2 L + 1), whatever the vocabulary."""
    t, s, layers = BASE.hidden_size, 6, BASE.num_layers
    for all_attn in (True, False):
        for in_out in (True, False):
            for align in (True, False):
                for tied in (True, False):
                    flags = CloneFlags(s, all_attn, in_out, tied, align)
                    shapes = LowRankClone(BASE, flags).shapes().values()
                    a, m = (4 if all_attn else 2), (2 if in_out else 3)
                    wanted = t * s * (layers * (a + m + 2 * align) + 1 + (not tied)) + s * (2 * layers + 1)
                    assert sum(int(np.prod(shape)) for shape in shapes) == wanted


def test_untied_teacher_with_shared_projection_has_an_untied_student():
    assert not LowRankClone(BASE, CloneFlags(6, tie_word_emb_proj=True)).config.tie_word_embeddings
    assert LowRankClone(VARIANTS["tied"], CloneFlags(6, tie_word_emb_proj=True)).config.tie_word_embeddings
    assert not LowRankClone(VARIANTS["tied"], CloneFlags(6)).config.tie_word_embeddings


@pytest.mark.parametrize("rank", [0, 25])
def test_rank_outside_the_teacher_is_refused(rank):
    with pytest.raises(InputError, match=r"rank: .* outside 1\.\.24"):
        make_student("lrc", BASE, CloneFlags(rank), StudentOptions())


def test_raw_clone_loss_is_won_by_shrinking_and_the_normalised_one_is_not():
    """Scale collapse of the MLP-output loss: both sides scaled by c scale the raw loss by c^2."""
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(50, 7)), jnp.float32) for _ in range(2))
    full, shrunk = ClonePair(0, "x", s, t), ClonePair(0, "x", 0.01 * s, 0.01 * t)
    assert float(clone_distance(shrunk, "mseloss")) == pytest.approx(
        1e-4 * float(clone_distance(full, "mseloss")), rel=1e-4
    )
    assert float(clone_distance(shrunk, "normalised")) == pytest.approx(
        float(clone_distance(full, "normalised")), rel=1e-3
    )


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_comparing_through_a_matrix(shape):
    """The Gram form and the wide product are the same number."""
    rng = np.random.default_rng(1)
    s, t = (jnp.asarray(rng.normal(size=(20, shape[0])), jnp.float32) for _ in range(2))
    through = jnp.asarray(rng.normal(size=shape), jnp.float32)
    a, b = ClonePair(0, "x", s, t, through), ClonePair(0, "x", s @ through, t @ through)
    for kind in ("mseloss", "l1loss", "mseloss_v2", "l1loss_v2"):
        assert float(clone_distance(a, kind)) == pytest.approx(float(clone_distance(b, kind)), rel=1e-5)
    assert float(fraction_unexplained(a)) == pytest.approx(float(fraction_unexplained(b)), rel=1e-4)


def test_kl_is_zero_only_for_equal_predictions():
    logits = jax.random.normal(jax.random.key(0), (10, 7))
    assert float(jnp.abs(kl_per_token(logits, logits + 3.0, 2.0)).max()) < 1e-6
    assert float(kl_per_token(logits, -logits, 1.0).min()) > 0.0


def test_count_parameters():
    assert count_parameters({"a": jnp.zeros((3, 4)), "b": jnp.zeros(5)}) == 17
