"""The fast step is the reference step: losses and gradients agree to rounding, whatever the student."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax import losses, model
from lrc_jax.clone import CloneFlags
from lrc_jax.compute import fast
from lrc_jax.data.pools import Pool
from lrc_jax.losses import IGNORE
from lrc_jax.measure.smoothness import hessian_vector
from lrc_jax.model import DecoderConfig, init_weights
from lrc_jax.objective import LossWeights, Objective, Terms
from lrc_jax.students import STUDENT_KINDS, Frozen, StudentOptions, make_student
from lrc_jax.training.train import student_loss

LLAMA = DecoderConfig(23, 24, 40, 2, 4, 4, 6)
VARIANTS = {
    "llama": LLAMA,
    "gqa": dataclasses.replace(LLAMA, num_kv_heads=2, tie_word_embeddings=True),
    "qwen2": dataclasses.replace(LLAMA, num_kv_heads=1, qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, num_kv_heads=2, qk_norm=True, head_dim=10),
    "smollm3": dataclasses.replace(LLAMA, num_kv_heads=2, no_rope_layers=(0,)),
}
IN_OUT = {"use_all_attn": False, "use_in_out_mlp": True, "tie_word_emb_proj": True}
CASES = [
    *(("llama", kind, {}, {}) for kind in STUDENT_KINDS),
    *(("gqa", kind, {}, {}) for kind in ("lrc", "direct", "factorized")),
    ("gqa", "factorized", {"matrices": "head"}, {}),
    ("qwen2", "lrc", {}, {}),
    ("qwen2", "scratch", {}, {}),
    ("qwen3", "lrc", {}, {}),
    ("smollm3", "lrc", {}, {}),
    ("qwen3", "factorized", {}, {}),
    ("llama", "lrc", {}, IN_OUT),
    ("qwen2", "lrc", {}, {"use_additional_align": True, "del_layers": (0,)}),
]


def away_from_start(tree, seed, dtype):
    """Norm gains and biases moved off 1 and 0, everything in one precision."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape) if x.ndim == 1 else np.asarray(x), dtype), tree
    )


def both_paths(variant, kind, options, flags, *, length, dtype=np.float32, temperature=2.0, **objective):
    """Loss terms and gradients by the fast and by the reference path."""
    config = VARIANTS[variant]
    teacher = away_from_start(jax.jit(init_weights, static_argnums=0)(config, jax.random.key(0)), 1, dtype)
    frozen = Frozen(teacher, None, jnp.eye(config.hidden_size, dtype=dtype) * 0.5)
    rng = np.random.default_rng(2)
    tokens, labels = (jnp.asarray(rng.integers(0, config.vocab_size, (3, length)), jnp.int32) for _ in range(2))
    batch = Pool(tokens, labels.at[:, -1].set(IGNORE))
    settings = Objective(clone=options.get("matrices") != "head", **objective)
    weights = jax.tree.map(lambda x: jnp.asarray(x, dtype), LossWeights(temperature=temperature))
    out = []
    for step in fast.STEPS:
        student = make_student(kind, config, CloneFlags(6, **flags), StudentOptions(init="fan_in", **options))
        params = away_from_start(student.init(jax.random.key(3), frozen), 4, dtype)

        def loss(params, student=student):
            return student_loss(student, settings, config, params, frozen, weights, batch)

        with fast.computed(step):
            (_, terms), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        out.append((terms, grads))
    return out


def is_terms(x):
    return isinstance(x, Terms)


def agree(fast_path, reference_path, rounding):
    """Loss terms relative to the total (a small KL is a difference of large numbers on the reference path), everything
    else relative to its tensor's largest entry."""
    total = [float(x.total) for x in jax.tree.leaves(reference_path, is_leaf=is_terms) if is_terms(x)]
    for got, wanted in zip(jax.tree.leaves(fast_path), jax.tree.leaves(reference_path), strict=True):
        scale = max(float(np.abs(wanted).max()), 1e-30, *(total if wanted.ndim == 0 else []))
        np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(wanted) / scale, rtol=0, atol=rounding)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "kind", "options", "flags"), CASES, ids=["-".join([v, k, *o.values(), *f]) for v, k, o, f in CASES]
)
def test_paths_agree(variant, kind, options, flags):
    """In float32 to the rounding of whatever machine this is; what is sharp is float64."""
    agree(*both_paths(variant, kind, options, flags, length=9), rounding=5e-6)
    with jax.enable_x64(True):
        agree(*both_paths(variant, kind, options, flags, length=8, dtype=np.float64), rounding=1e-13)


@pytest.mark.parametrize(
    ("variant", "kind", "options", "flags"),
    [
        ("llama", "lrc", {}, {}),
        ("gqa", "lrc", {}, {}),  # untied student of a tied teacher
        ("gqa", "lrc", {}, IN_OUT),  # both tied
        pytest.param("gqa", "direct", {}, {}, marks=pytest.mark.slow),
        ("llama", "factorized", {"matrices": "head"}, {}),
    ],
)
def test_students_agree_where_losses_are_of_some_tokens_at_a_time(variant, kind, options, flags, monkeypatch):
    monkeypatch.setattr(fast, "MOST_LOGITS", 100)
    with jax.enable_x64(True):
        agree(*both_paths(variant, kind, options, flags, length=9, dtype=np.float64), rounding=1e-13)


def test_no_array_of_tokens_by_vocabulary_outlives_a_part(monkeypatch):
    """The temporaries do not grow with the tokens, and whole logits are not among them."""
    monkeypatch.setattr(fast, "MOST_LOGITS", 2**16)

    def temporaries(tokens):
        shapes = jax.eval_shape(
            lambda: tuple(activations(np.float32, tokens, width, 2048, 0, True) for width in (4, 6))
        )

        def loss(student, teacher, labels):
            settings = Objective(clone=False)
            return fast.evaluate_objective(settings, LossWeights(), [], teacher, student, labels).total

        grad = jax.jit(jax.grad(loss))
        labels = jax.ShapeDtypeStruct((1, tokens), np.int32)
        return grad.lower(*shapes, labels).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 1.5 * temporaries(256) < 256 * 2048 * 4


@pytest.mark.slow
def test_paths_agree_in_float32():
    agree(*both_paths("gqa", "lrc", {}, {}, length=9), rounding=5e-6)


def attention_and_gradients(attention, config, length, dtype):
    rng = np.random.default_rng(5)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2 * length, n)), dtype)
        for n in (config.q_size, config.kv_size, config.kv_size)
    )
    probe = jnp.asarray(rng.standard_normal((2 * length, config.q_size)), dtype)

    @jax.jit
    def both(q, k, v, probe):
        context, pull = jax.vjp(lambda q, k, v: attention(config, q, k, v, 2), q, k, v)
        return context, pull(probe)

    return jax.device_get(both(q, k, v, probe))


@pytest.mark.parametrize("variant", ["llama", "gqa"])
@pytest.mark.parametrize("name", ["block_attention", "tile_attention", "library_attention"])
def test_attentions_agree_in_float64(variant, name, monkeypatch):
    """Blocks, tiles and the library's, at a length that neither blocks nor tiles divide."""
    monkeypatch.setattr(fast, "TILE", 4)
    with jax.enable_x64(True):
        got = attention_and_gradients(getattr(fast, name), VARIANTS[variant], 11, np.float64)
        wanted = attention_and_gradients(model.causal_attention, VARIANTS[variant], 11, np.float64)
        agree(got, wanted, rounding=1e-6 if name == "library_attention" else 1e-13)  # it sums in float32


def test_one_token_attends_to_itself():
    got = attention_and_gradients(fast.block_attention, LLAMA, 1, np.float32)
    agree(got, attention_and_gradients(model.causal_attention, LLAMA, 1, np.float32), rounding=1e-6)


def test_half_precision_keeps_its_type_and_sums_in_float32():
    context, grads = attention_and_gradients(fast.block_attention, VARIANTS["gqa"], 9, jnp.bfloat16)
    exact, _ = attention_and_gradients(model.causal_attention, VARIANTS["gqa"], 9, np.float32)
    assert {x.dtype for x in (context, *grads)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(np.asarray(context, np.float32), exact, rtol=0, atol=0.05)


def test_which_attention_a_backend_runs():
    choose = fast.choose_attention
    assert choose("cpu", np.float32, 512) is fast.block_attention
    assert choose("cpu", np.float32, 513) is fast.tile_attention
    assert choose("cuda", np.float32, 512) is choose("gpu", np.float32, 16) is fast.library_attention
    assert choose("gpu", np.float32, 513) is fast.tile_attention
    assert choose("gpu", np.float64, 512) is fast.block_attention  # JAX's own computes scores in float32
    half = choose("gpu", jnp.bfloat16, 4096)
    assert half.func is fast.library_attention and half.keywords == {"implementation": "cudnn"}


def test_memory_of_long_sequences_grows_with_the_length(monkeypatch):
    monkeypatch.setattr(fast, "TILE", 32)

    def temporaries(length):
        q = jax.ShapeDtypeStruct((length, LLAMA.q_size), np.float32)

        def loss(q, k, v):
            return jnp.sum(fast.tile_attention(LLAMA, q, k, v, 1) ** 2)

        return jax.jit(jax.grad(loss)).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 2.5 * temporaries(512)


@pytest.mark.parametrize("temperature", [1.0, 40.0])
def test_output_losses_agree(temperature):
    rng = np.random.default_rng(6)
    student, teacher = (np.float32(3 * rng.standard_normal((7, 50))) for _ in range(2))
    labels = jnp.asarray([3, IGNORE, 49, 0, 5, IGNORE, 7], jnp.int32)
    with jax.enable_x64(True):
        values = []
        for dtype, function in ((np.float64, losses.output_losses), (np.float64, fast.output_losses),
                                (np.float32, fast.output_losses)):  # fmt: skip
            s, t = jnp.asarray(student, dtype), jnp.asarray(teacher, dtype)

            @jax.jit
            def both(s, t, f=function, dtype=dtype):
                sums, pull = jax.vjp(lambda s: f(s, t, labels, temperature), s)
                kl, ce, none = (jnp.asarray(x, dtype) for x in (0.3, 1.7, 0))
                return sums, pull((kl, ce)), pull((kl, none))

            values.append(jax.device_get(both(s, t)))
    agree(values[1], values[0], rounding=1e-13)
    agree(values[2], values[0], rounding=5e-4)  # float32 cancellation in a KL at a high temperature


def activations(dtype, tokens, width, vocabulary, seed, tied, known=True):
    """Features, an unembedding (or, where it is not known, only logits) of a model."""
    rng = np.random.default_rng(seed)
    final = jnp.asarray(rng.standard_normal((tokens, width)), dtype)
    matrix = jnp.asarray(rng.standard_normal((vocabulary, width) if tied else (width, vocabulary)), dtype)
    unembedding = model.Unembedding(matrix, tied)
    logits = final @ unembedding.matrix_DV
    return model.Activations(logits, final, (), (), final, unembedding if known else None)


@pytest.mark.parametrize(
    ("tokens", "tied", "temperature", "known", "terms"),
    [
        (12, False, 1.0, True, {}),  # in equal parts
        (11, True, 3.0, True, {"kl_per_token": True}),  # filled up
        (11, False, 3.0, True, {"ce": False}),
        (11, True, 1.0, True, {"kl": False}),
        (11, True, 3.0, False, {}),  # only the teacher's logits are known
    ],
)
def test_losses_of_some_tokens_at_a_time_agree(tokens, tied, temperature, known, terms, monkeypatch):
    """With those of whole logits: terms, and the gradients of features and unembedding."""
    settings = Objective(clone=False, **terms)
    labels = jnp.asarray(np.random.default_rng(8).integers(0, 50, (1, tokens)), jnp.int32)
    labels = labels.at[0, [2, tokens - 1]].set(IGNORE)
    out = {}
    with jax.enable_x64(True):
        for dtype, many in ((np.float64, 100), (np.float32, 100), (np.float64, 2**22)):
            monkeypatch.setattr(fast, "MOST_LOGITS", many)
            teacher = activations(dtype, tokens, 7, 50, 9, not tied, known)
            student = activations(dtype, tokens, 4, 50, 10, tied)
            weights = jax.tree.map(lambda x, d=dtype: jnp.asarray(x, d), LossWeights(1.0, 0.3, 1.7, temperature))

            def loss(final, unembedding, teacher=teacher, weights=weights):
                logits = final @ unembedding.matrix_DV
                acts = model.Activations(logits, final, (), (), final, unembedding)
                terms = fast.evaluate_objective(settings, weights, [], teacher, acts, labels)
                return 2 * terms.total, terms

            assert fast.has_many_logits(student) == (many == 100)
            grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            (_, found), gradients = grad(student.final_ND, student.unembedding)
            out[dtype, many] = jax.device_get((found, gradients))
    whole = out[np.float64, 2**22]
    agree(out[np.float64, 100], whole, rounding=1e-13)
    agree(out[np.float32, 100], whole, rounding=5e-6)


def test_clone_loss_through_a_matrix_and_gated_and_narrow_products():
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        a, b = (jnp.asarray(rng.standard_normal((6, 5))) for _ in range(2))
        through, narrow = jnp.asarray(rng.standard_normal((5, 8))), jnp.asarray(rng.standard_normal((5, 2)))

        def all_of(squared_error, gated_product, product):
            def value(a, b, narrow):
                pair = losses.ClonePair(0, "", a, b, through)
                hidden, out = gated_product(a, b, narrow)
                return squared_error(pair) + jnp.sum(hidden**2) + jnp.sum(out**3) + jnp.sum(product(a, narrow) ** 3)

            return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(a, b, narrow)

        fast_way = all_of(fast.squared_error, fast.gated_product, fast.product)
        agree(fast_way, all_of(losses.squared_error, model.gated_product, jnp.matmul), rounding=1e-13)


@pytest.mark.slow
def test_hessians_pass_through():
    """Forward over reverse: what measure/smoothness.py does."""
    config, out = VARIANTS["gqa"], []
    weights = jax.jit(init_weights, static_argnums=0)(config, jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab_size, (2, 9)), jnp.int32)

    @jax.jit
    def hessian(w):
        return hessian_vector(lambda w, tokens: jnp.mean(fast.forward(config, w, tokens).logits_NV ** 2), w, tokens, w)

    for step in fast.STEPS:
        with fast.computed(step):
            out.append(hessian(weights))
    agree(*out, rounding=1e-5)
