"""Agreement with the authors' implementation, case by case.

Tolerances are those of float32 noise: losses 1e-5 relative, logits 2e-5 absolute, gradients 1e-5 of the tensor's
largest entry; KL at temperature 40 only 5e-4 relative (the reference's own cancellation).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from lrc_jax.clone import LowRankClone, infer_flags
from lrc_jax.compute.fast import STEPS, computed, evaluate_objective, forward
from lrc_jax.losses import IGNORE, clone_distance
from lrc_jax.model import count_parameters
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.projections import read_flags, reference_losses
from lrc_jax.students import Frozen
from lrc_jax.students.projected import ProjectedStudent
from lrc_jax.teachers.huggingface import load_model
from lrc_jax.training.train import OptimizerSpec

LOSS, LOGIT, GRAD, KL = 1e-5, 2e-5, 1e-5, 5e-4


def shifted_labels(tokens_BT):
    """Next-token labels within the same window: the last position has none (the reference's convention)."""
    return jnp.concatenate([tokens_BT[:, 1:], jnp.full_like(tokens_BT[:, :1], IGNORE)], axis=1)


def load_case(folder: Path, dtype=np.float32) -> SimpleNamespace:
    expected = json.loads((folder / "expected.json").read_text())
    raw_flags = expected["flags"]
    teacher_config, teacher, _ = load_model(folder / "teacher", dtype)
    params = {name: jnp.asarray(x.astype(dtype)) for name, x in load_file(folder / "projections.safetensors").items()}
    flags = infer_flags(teacher_config, {name: x.shape for name, x in params.items()})
    flags = dataclasses.replace(flags, target_rms_norm_eps=raw_flags["target_rms_norm_eps"])
    student = ProjectedStudent("lrc", LowRankClone(teacher_config, flags))
    losses = reference_losses(read_flags(folder / "expected.json"))
    objective = Objective(
        **{name: losses.get(f"{name}_weight", 1.0) > 0 for name in ("clone", "kl", "ce")},
        distance=losses.get("clone_distance", "mseloss"),
    )
    weights = LossWeights(clone=expected["aux_loss_scale_factor"], temperature=losses["kl_temperature"])
    tokens = jnp.asarray(np.load(folder / "input_ids.npy"), jnp.int32)

    def loss(params):
        teacher_acts = forward(teacher_config, teacher, tokens)
        student_acts = student.forward(params, Frozen(teacher), tokens, teacher_acts)
        pairs = student.clone_pairs(params, Frozen(teacher), teacher_acts, student_acts)
        terms = evaluate_objective(objective, weights, pairs, teacher_acts, student_acts, shifted_labels(tokens))
        named = {f"{p.layer}/{p.name}": clone_distance(p, objective.distance) for p in pairs}
        return terms.total, (terms, named, teacher_acts, student_acts)

    return SimpleNamespace(
        expected=expected,
        arrays=load_file(folder / "expected.safetensors"),
        teacher_config=teacher_config,
        teacher=teacher,
        params=params,
        student=student,
        objective=objective,
        tokens=tokens,
        loss=loss,
    )


def close_to_largest(actual, expected, share):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("step", STEPS)
def test_losses_logits_hidden_states_and_gradients(case_folder, step):
    case = load_case(case_folder)
    expected, arrays = case.expected, case.arrays
    with computed(step):
        out, grads = jax.jit(jax.value_and_grad(case.loss, has_aux=True))(case.params)
    total, (terms, named, teacher_acts, student_acts) = out
    wanted = {f"{i}/{name}": x for i, layer in expected["layer_losses"].items() for name, x in layer.items()}
    assert named.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(named[name]) == pytest.approx(value, rel=LOSS), name
    assert float(terms.clone) == pytest.approx(expected["aux_sum_unscaled"], rel=LOSS)
    if case.objective.ce:
        assert float(terms.ce) == pytest.approx(expected["ntp_loss"], rel=LOSS)
    if expected["kl_loss"] is not None:
        assert float(terms.kl) == pytest.approx(expected["kl_loss"], rel=KL)
    assert float(total) == pytest.approx(expected["total_loss"], rel=LOSS)

    shape = (*case.tokens.shape, -1)
    np.testing.assert_allclose(student_acts.logits_NV.reshape(shape), arrays["student.logits"], rtol=0, atol=LOGIT)
    np.testing.assert_allclose(teacher_acts.logits_NV.reshape(shape), arrays["teacher.logits"], rtol=0, atol=LOGIT)
    hidden = {"student.embed": student_acts.embedded_ND, "student.final_norm": student_acts.final_ND}
    hidden["teacher.final_norm"] = teacher_acts.final_ND
    hidden |= {f"teacher.after_layer.{i}": x for i, x in enumerate(teacher_acts.hidden_ND)}
    kept = case.student.lrc.kept_layers
    hidden |= {f"student.after_layer.{i}": x for i, x in zip(kept, student_acts.hidden_ND, strict=True)}
    assert {n for n in arrays if n.split(".")[0] in ("student", "teacher")} - hidden.keys() == {
        "student.logits",
        "teacher.logits",
    }
    for name, value in hidden.items():
        np.testing.assert_allclose(value.reshape(shape), arrays[name], rtol=0, atol=LOGIT, err_msg=name)

    assert {f"grad.{n}" for n in grads} == {n for n in arrays if n.startswith("grad.")}
    for name, grad in grads.items():
        close_to_largest(grad, arrays[f"grad.{name}"], GRAD)


@pytest.mark.parametrize(
    ("flag", "part"), [("use_ntp_loss", "ntp_loss"), ("use_logits_loss", "kl_loss"), ("use_aux_loss", "aux_sum_scaled")]
)
def test_a_case_without_a_loss(flag: str, part: str, tmp_path: Path) -> None:
    """The reference's switches: the total of a case is what is left without that term."""
    folder = shutil.copytree(Path(__file__).parents[1] / "reference" / "tied_tieproj_T40", tmp_path / "case")
    expected = json.loads((folder / "expected.json").read_text())
    assert expected[part] > 5e-4 * expected["total_loss"]
    expected["flags"][flag] = False
    (folder / "expected.json").write_text(json.dumps(expected))
    case = load_case(folder)
    total, _ = case.loss(case.params)
    assert float(total) == pytest.approx(expected["total_loss"] - expected[part], rel=1e-5)


def test_shapes_and_count(case_folder):
    case = load_case(case_folder)
    assert case.student.lrc.shapes() == {name: x.shape for name, x in case.params.items()}
    assert count_parameters(case.params) == case.expected["n_trainable"]
    start = case.student.init(jax.random.key(0), Frozen(case.teacher))
    assert {n: x.shape for n, x in start.items()} == case.student.lrc.shapes()
    projections = np.concatenate([np.ravel(x) for x in start.values() if x.ndim == 2])
    assert projections.std() == pytest.approx(0.02, rel=0.05)


def test_merged_weights_are_the_exported_ones(case_folder):
    """Merged by us, run as an ordinary decoder: the training logits of the reference."""
    case = load_case(case_folder)
    merged = case.student.weights(case.params, Frozen(case.teacher))
    logits = forward(case.student.config, merged, case.tokens).logits_NV.reshape(*case.tokens.shape, -1)
    np.testing.assert_allclose(logits, case.arrays["student.logits"], rtol=0, atol=LOGIT)
    exported = case_folder / "merged" / "model.safetensors"
    if exported.is_file() and not case.student.lrc.flags.del_layers:
        tensors = load_file(exported)
        np.testing.assert_allclose(merged.embed_VD, tensors["model.embed_tokens.weight"], rtol=0, atol=1e-6)
        for i, layer in enumerate(merged.layers):
            prefix = f"model.layers.{i}."
            np.testing.assert_allclose(layer.q_DQ.T, tensors[prefix + "self_attn.q_proj.weight"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(layer.down_FD.T, tensors[prefix + "mlp.down_proj.weight"], rtol=0, atol=1e-6)


def test_ten_steps_of_adamw(case_folder):
    path = case_folder / "trajectory.json"
    if not path.is_file():
        pytest.skip("this case has no trajectory")
    case, wanted = load_case(case_folder), json.loads(path.read_text())
    spec = OptimizerSpec(
        schedule="constant", clip=wanted["clip"], eps=wanted["eps"], weight_decay=wanted["weight_decay"]
    )
    direction = spec.direction()
    params, state = case.params, direction.init(case.params)

    @jax.jit
    def step(params, state):
        (total, _), grads = jax.value_and_grad(case.loss, has_aux=True)(params)
        updates, state = direction.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - wanted["lr"] * u, params, updates), state, total, optax.tree.norm(grads)

    for i, (loss, norm) in enumerate(zip(wanted["total_loss"], wanted["grad_norm_before_clip"], strict=True)):
        params, state, total, grad_norm = step(params, state)
        assert float(total) == pytest.approx(loss, rel=2e-5), f"step {i}"
        assert float(grad_norm) == pytest.approx(norm, rel=1e-4), f"step {i}"


@pytest.mark.parametrize("step", STEPS)
def test_float64_agreement(case_folder, step):
    """In double precision the losses are those of an independent float64 implementation, to 1e-9."""
    with jax.enable_x64(True), computed(step):
        case = load_case(case_folder, np.float64)
        _, (terms, *_) = jax.jit(case.loss)(case.params)
        wanted = case.expected["float64_check"]
        assert float(terms.total) == pytest.approx(wanted["total_loss"], rel=1e-9)
        if case.objective.ce:
            assert float(terms.ce) == pytest.approx(wanted["ntp_loss"], rel=1e-9)
        if case.expected["kl_loss"] is not None:
            assert float(terms.kl) == pytest.approx(wanted["kl_loss"], rel=1e-7)
