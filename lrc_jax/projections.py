"""Low-Rank Clone checkpoints in the reference's layout: `projections.safetensors` and flags in JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lrc_jax.clone import CloneFlags, LowRankClone, Projections, infer_flags
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig
from lrc_jax.students.projected import ProjectedStudent

PROJECTIONS_FILE = "projections.safetensors"
TRAINABLE = ("zoom", "target_")  # one of these is in every trainable tensor's name and in no tensor of the teacher
STRUCTURE_FLAGS = ("use_all_attn", "use_in_out_mlp", "tie_word_emb_proj", "use_additional_align")
# Variants of the reference that change what the student computes and that are not implemented here.
UNSUPPORTED_FLAGS = ("student_attn_from_scratch", "use_std_like_attn")
# Flags of the reference that say how a clone is trained and do not matter for what it is: an export checks them and
# a training takes them over (`reference_losses`).
LOSS_SWITCHES = {"use_aux_loss": "clone_weight", "use_logits_loss": "kl_weight", "use_ntp_loss": "ce_weight"}
LOSS_NUMBERS = {"aux_loss_scale_factor": "clone_weight", "kl_temperature": "kl_temperature"}
REFERENCE_DISTANCES = ("mseloss", "l1loss", "mseloss_v2", "l1loss_v2")
# Losses of the reference that are not implemented here.
UNSUPPORTED_LOSSES = ("use_attn_map", "check_data_cls_loss")


def reference_flags(lrc: LowRankClone) -> dict[str, Any]:
    """The clone's flags under the reference's names, as `--config` reads them."""
    flags = dataclasses.asdict(lrc.flags)
    rank = flags.pop("rank")
    return {
        "target_hidden_size": rank,
        **flags,
        "del_layers": list(lrc.flags.del_layers),
        "target_rms_norm_eps": lrc.config.rms_norm_eps,
    }


def read_flags(path: Path) -> dict[str, Any]:
    """The reference's flags from a JSON file: flat, or under `flags`.

    Raises:
      InputError: no JSON object is there, a flag is misspelt, of the wrong type, or of a variant not implemented.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as wrong:
        raise InputError(f"{path}: cannot be read ({wrong.strerror}); give a JSON file with the flags") from None
    except (ValueError, RecursionError) as wrong:
        raise InputError(f"{path}: not valid JSON ({str(wrong)[:200]})") from None
    if isinstance(raw, dict) and "flags" in raw:
        raw = raw["flags"]
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a JSON object with the reference's flags is expected, flat or under 'flags'")
    known = [*STRUCTURE_FLAGS, "del_layers", "target_rms_norm_eps", "target_hidden_size"]
    known += [*UNSUPPORTED_FLAGS, *UNSUPPORTED_LOSSES, *LOSS_SWITCHES, *LOSS_NUMBERS, "aux_loss_type"]
    for key, value in raw.items():
        if key in UNSUPPORTED_FLAGS and value:
            raise InputError(f"{path}: {key} is not supported; export checkpoints trained without it")
        if key not in known:
            # Other keys are let through, so that a whole config.json of the reference can be given.
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if near and near[0] not in raw:
                raise InputError(f"{path}: {key} is unknown; did you mean {near[0]}?")
    for key in (*STRUCTURE_FLAGS, *UNSUPPORTED_LOSSES, *LOSS_SWITCHES):
        if not isinstance(raw.get(key, False), bool):
            raise InputError(f"{path}: {key} is {raw[key]!r}; true or false is expected")
    for key in LOSS_NUMBERS:
        value = raw.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{path}: {key} is {value!r}; a number above 0 is expected")
    if raw.get("aux_loss_type", "mseloss") not in REFERENCE_DISTANCES:
        known_types = ", ".join(REFERENCE_DISTANCES)
        raise InputError(f"{path}: aux_loss_type is {raw['aux_loss_type']!r}; choose one of {known_types}")
    rank = raw.get("target_hidden_size", 1)
    if type(rank) is not int or rank < 1:
        raise InputError(f"{path}: target_hidden_size is {rank!r}; a whole number from 1 on is expected")
    deleted = raw.get("del_layers") or []
    if not isinstance(deleted, list) or not all(type(i) is int for i in deleted):
        raise InputError(f"{path}: del_layers is {deleted!r}; a list of layer numbers is expected")
    eps = raw.get("target_rms_norm_eps")
    if eps is not None and not (isinstance(eps, int | float) and 0 < eps < 1):
        raise InputError(f"{path}: target_rms_norm_eps is {eps!r}; a number between 0 and 1 is expected")
    return raw


def reference_losses(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the reference's loss flags ask of a training, under the names of DistillSettings.

    Args:
      flags: as `read_flags` returns them.

    Returns:
      The settings that the flags decide: a loss switched off has weight 0; `aux_loss_type` is the clone distance.

    Raises:
      InputError: a loss that is not implemented here is switched on (named).
    """
    for key in UNSUPPORTED_LOSSES:
        if flags.get(key):
            raise InputError(f"{key} is not supported; train without this loss, or remove the flag")
    out: dict[str, Any] = {name: float(flags[key]) for key, name in LOSS_NUMBERS.items() if key in flags}
    if "aux_loss_type" in flags:
        out["clone_distance"] = flags["aux_loss_type"]
    return out | {name: 0.0 for key, name in LOSS_SWITCHES.items() if flags.get(key) is False}


def _clone_flags(
    teacher: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], path: Path, given: Mapping[str, Any]
) -> CloneFlags:
    """Flags read off the tensors' names, checked against those given, with the eps that no tensor shows."""
    try:
        found = infer_flags(teacher, shapes)
    except InputError as wrong:
        raise InputError(f"{path}: {wrong}") from None
    for key in STRUCTURE_FLAGS:
        if key in given and given[key] != getattr(found, key):
            raise InputError(f"{path}: its tensors say {key} = {getattr(found, key)}, --config says {given[key]}")
    if "del_layers" in given and sorted(set(given["del_layers"] or [])) != list(found.del_layers):
        raise InputError(
            f"{path}: its tensors lack layers {list(found.del_layers)}, "
            f"--config says del_layers = {given['del_layers']}"
        )
    if given.get("target_hidden_size", found.rank) != found.rank:
        raise InputError(
            f"{path}: its rank is {found.rank}, --config says target_hidden_size = {given['target_hidden_size']}"
        )
    return dataclasses.replace(found, target_rms_norm_eps=given.get("target_rms_norm_eps"))


def read_projections(
    path: Path, teacher: DecoderConfig, flags: Mapping[str, Any] | None = None
) -> tuple[ProjectedStudent, Projections]:
    """A Low-Rank Clone from a reference checkpoint.

    Args:
      path: `projections.safetensors`.
      teacher: the architecture that it was trained against.
      flags: as `read_flags` returns them; where left out, read off the tensors' names. `target_rms_norm_eps` cannot
        be: it is then the teacher's.

    Raises:
      InputError: the file is missing or damaged, does not fit the teacher, or contradicts the flags (named).
    """
    if not path.is_file():
        raise InputError(f"{path}: does not exist; give the projections.safetensors of a Low-Rank Clone")
    try:
        with safe_open(path, framework="numpy") as file:
            # A whole checkpoint of the reference also holds the teacher's weights.
            names = [name for name in file.keys() if any(part in name for part in TRAINABLE)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError) as wrong:
        raise InputError(f"{path}: damaged or truncated ({wrong}); fetch the file again") from None
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    lrc = LowRankClone(teacher, _clone_flags(teacher, shapes, path, flags or {}))
    try:
        lrc.flags.check(teacher)
    except InputError as wrong:
        raise InputError(f"{path}: {wrong}") from None
    expected = lrc.shapes()
    for problem, different in (
        ("missing", expected.keys() - shapes.keys()),
        ("unexpected", shapes.keys() - expected.keys()),
    ):
        if different:
            raise InputError(
                f"{path}: {problem} tensors {', '.join(sorted(different)[:3])} ({len(different)} in all); "
                "is it a checkpoint of this teacher?"
            )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InputError(f"{path}: tensor {name} has shape {list(shapes[name])}, the teacher needs {list(shape)}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise InputError(
                f"{path}: tensor {name} is {tensors[name].dtype}; float32, float16 or bfloat16 is expected"
            )
    params = {name: jnp.asarray(tensors[name].astype(np.float32)) for name in expected}
    return ProjectedStudent("lrc", lrc), params
