"""Costs: formulas against the compiler and against counted arrays; plans for teachers of any size."""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.clone import CloneFlags
from lrc_jax.compute.fast import computed
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.measure import cost, flops, plan
from lrc_jax.model import DecoderConfig, count_parameters, init_weights
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.students import Frozen, StudentOptions, make_student
from lrc_jax.training.train import student_loss

SMALL = DecoderConfig(256, 64, 172, 2, 4, 4, 16)
LLAMA_7B = DecoderConfig(32_000, 4096, 11_008, 32, 32, 32, 128)
LLAMA_70B = DecoderConfig(128_256, 8192, 28_672, 80, 64, 8, 128)
CONFIGS = {
    "small": SMALL,
    "narrow": DecoderConfig(256, 16, 172, 2, 4, 4, 16),
    "grouped": DecoderConfig(512, 128, 344, 2, 8, 2, 16, tie_word_embeddings=True),
    "qwen2": DecoderConfig(300, 32, 64, 1, 2, 1, 16, qkv_bias=True),
    "qwen3": DecoderConfig(300, 32, 64, 1, 2, 1, 24, qk_norm=True),
}


def shapes_of(config):
    return jax.eval_shape(functools.partial(init_weights, config), jax.random.key(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_formula_agrees_with_the_compiler_within_five_percent(name):
    config, batch, length = CONFIGS[name], 4, 64
    compiled = flops.compiled_forward(config, shapes_of(config), batch, length)
    assert flops.forward_flops(config, length).total == pytest.approx(compiled.flops / (batch * length), rel=0.05)
    assert flops.parameter_count(config) == count_parameters(shapes_of(config))
    assert compiled.peak_bytes >= 4 * flops.parameter_count(config)


@pytest.mark.parametrize(("config", "rank"), [(SMALL, 16), (DecoderConfig(64, 48, 96, 1, 3, 3, 16), 8)])
def test_training_formula_agrees_with_the_compiler_within_five_percent(config, rank):
    # The plain step: the fast one skips scores above the diagonal, which the formula counts.
    student, batch, length = make_student("lrc", config, CloneFlags(rank=rank), StudentOptions()), 16, 64
    frozen = Frozen(shapes_of(config))
    params = jax.eval_shape(student.init, jax.random.key(0), frozen)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def step(params, frozen, tokens):
        def loss(p):
            return student_loss(student, Objective(), config, p, frozen, LossWeights(), Pool(tokens, tokens))[0]

        return jax.value_and_grad(loss)(params)

    with computed("reference"):
        compiled = flops.compiled_cost(step, params, frozen, tokens)
    found = flops.training_flops(student, Objective(), batch * length, length)
    assert found.total == pytest.approx(compiled.flops, rel=0.05)
    assert flops.projection_count(student.lrc) == count_parameters(params)


def test_real_sizes():
    assert flops.parameter_count(LLAMA_7B) == pytest.approx(6.74e9, rel=1e-3)
    assert flops.parameter_count(LLAMA_70B) == pytest.approx(70.55e9, rel=1e-3)
    assert flops.kv_cache_bytes(LLAMA_70B, 2) == 2 * 80 * 8 * 128 * 2
    small = plan.plan_training(LLAMA_7B, 1024, 10e9)
    assert small.teacher_weights_gb == pytest.approx(13.5, rel=0.01)
    assert 2 * 6.7e9 < small.teacher_flops_per_token < 2 * 6.7e9 * 1.35
    assert small.trained_params == pytest.approx(1024 * 4096 * (7 * 32 + 2), rel=0.01)
    # at least the teacher's forward pass on every token, at most that and four forward passes of a full-size model
    assert 10e9 * 2 * 6.7e9 < small.training_flops < 10e9 * 10 * 6.7e9
    teacher_flops = small.teacher_flops_per_token * 10e9
    assert small.teacher_share == pytest.approx(teacher_flops / small.training_flops, rel=1e-3)
    with pytest.raises(InputError, match="recompute"):
        plan.plan_training(LLAMA_70B, 2048, 10e9)
    large = plan.plan_training(LLAMA_70B, 2048, 10e9, plan.Assumptions(recompute=True))
    assert large.devices > small.devices
    assert large.devices * 72 > large.state_gb
    assert large.hours == pytest.approx(large.device_hours / large.devices)
    assert large.student_kv_cache_gb == large.teacher_kv_cache_gb, "the clone keeps the teacher's heads"
    assert large.student_decode_tokens_per_s > large.teacher_decode_tokens_per_s


def test_plan_scales_as_it_must():
    base = plan.plan_training(LLAMA_7B, 512, 1e9)
    assert plan.plan_training(LLAMA_7B, 512, 2e9).training_flops == pytest.approx(2 * base.training_flops)
    wider = plan.plan_training(LLAMA_7B, 1024, 1e9)
    assert wider.student_params > base.student_params and wider.training_flops > base.training_flops
    with pytest.raises(InputError, match="rank"):
        plan.plan_training(LLAMA_7B, 5000, 1e9)
    with pytest.raises(InputError, match="tokens"):
        plan.plan_training(LLAMA_7B, 512, 0)


def parse(arguments):
    parser = argparse.ArgumentParser()
    plan.add_plan_arguments(parser)
    return parser.parse_args(arguments)


def test_plan_command_reads_a_configuration_alone(tmp_path, capsys):
    raw = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for teacher in (tmp_path, tmp_path / "config.json"):
        out = tmp_path / "plan.json"
        options = ["--teacher", str(teacher), "--rank", "1024", "--tokens", "10e9", "--json", str(out)]
        assert plan.run_plan(parse(options)) == 0
        printed = capsys.readouterr().out
        assert "6.74 G" in printed and "assumptions:" in printed and "devices" in printed
        saved = json.loads(out.read_text())
        assert saved["plan"]["teacher_params"] == flops.parameter_count(LLAMA_7B)
        assert saved["assumptions"]["sequence_length"] == 2048
    with pytest.raises(InputError, match="nowhere"):
        plan.run_plan(parse(["--teacher", str(tmp_path / "nowhere"), "--rank", "8", "--tokens", "1e9"]))
    with pytest.raises(InputError, match="above 0"):
        plan.run_plan(parse(["--teacher", str(tmp_path), "--rank", "8", "--tokens", "1e9", "--utilisation", "0"]))


def test_measured_columns_are_complete_and_positive():
    config = CONFIGS["grouped"]
    weights = jax.jit(functools.partial(init_weights, config))(jax.random.key(0))
    row = cost.inference_columns(config, weights, np.random.default_rng(0), prompt=16, new_tokens=8, repeats=3)
    assert all(v > 0 for v in row.values())
    assert row["flops_per_token_compiler"] == pytest.approx(row["flops_per_token"], rel=0.05)
    assert row["weight_bytes"] == 4 * flops.parameter_count(config)
    assert row["process_peak_bytes"] > row["forward_peak_bytes"]
