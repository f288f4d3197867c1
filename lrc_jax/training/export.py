"""From a student to a Hugging Face folder that stock transformers loads with the same logits.

The reference's own export has three faults that this one must not have: it ties the head of a student whose head is
not its embedding, does not write the student's RMSNorm eps, and leaves deleted layers in the config. Here the config
is written from the student's own architecture, and the tensors are those that the architecture names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.owners import clear_parts, discard, exchange, part_of
from lrc_jax.projections import PROJECTIONS_FILE, reference_flags
from lrc_jax.students.base import Frozen, Params, Student
from lrc_jax.students.projected import ProjectedStudent
from lrc_jax.teachers.families import FAMILIES, GRANITE
from lrc_jax.teachers.huggingface import flatten_weights
from lrc_jax.teachers.tokenizer import Tokenizer

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
MODEL_FILE, PROVENANCE_FILE = "model.safetensors", "lrc.json"


def check_out(out: Path, overwrite: bool) -> None:
    """Raise InputError where a folder cannot be written as `out`, or may not."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder as --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: exists and is not empty; choose another --out or give --overwrite")


@contextlib.contextmanager
def atomic_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
      InputError: `out` exists and is not an empty folder (without `overwrite`), or cannot be made.
    """
    check_out(out, overwrite)
    # Resolved: "." and ".." have no name of their own to write beside.
    target = out.resolve()
    partial = part_of(target)
    clear_parts(target.parent)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as wrong:
        raise InputError(f"{out}: cannot be made ({wrong.strerror}); choose another --out") from None
    try:
        yield partial
        if not (target.is_dir() and any(target.iterdir())):
            partial.rename(target)
        elif not exchange(partial, target):
            # A kill between the two leaves the old folder under a name that nobody clears.
            old = target.with_name(f"{target.name}.old-{os.getpid()}")
            target.rename(old)
            partial.rename(target)
            discard(old)
    finally:  # what is there now: half a folder, or the old one
        shutil.rmtree(partial, ignore_errors=True)


def huggingface_config(config: DecoderConfig, dtype: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """config.json of a decoder.

    It names the decoder's own family, with one exception. Stock transformers refuses a LlamaConfig whose width cannot
    be divided by the number of heads. Such a Llama is written as a Mistral without sliding window, which computes the
    same.
    """
    model_type = config.model_type
    if model_type == "llama" and config.hidden_size % config.num_heads:
        model_type = "mistral"
    out: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": tokenizer.bos_id if tokenizer else None,
        "eos_token_id": tokenizer.eos_id if tokenizer else None,
        "pad_token_id": None,  # stock's default may lie beyond a small vocabulary
    }
    if model_type in ("llama", "granite", "smollm3"):
        out |= {"attention_bias": False, "mlp_bias": False}
    windowed = FAMILIES[model_type].windowed
    if windowed is not None:
        out |= {"sliding_window": None} if windowed == "always" else {windowed: False}
    if model_type == "smollm3":
        out["no_rope_layers"] = [int(i not in config.no_rope_layers) for i in range(config.num_layers)]
    if model_type == "granite":
        # They are in the weights (`families.granite_factors`).
        out |= dict.fromkeys(GRANITE.values(), 1.0) | {GRANITE["attention"]: config.head_dim**-0.5}
    scaling = config.rope_scaling
    if scaling is not None:
        out["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            out["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position_embeddings,
            }
    return out


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read


def write_model(
    folder: Path, config: DecoderConfig, weights: Weights, tokenizer: Tokenizer | None = None, dtype: str = "float32"
) -> None:
    """Write a decoder into an existing folder: config.json, model.safetensors, generation_config.json, tokenizer."""
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    tensors = {name: x.astype(DTYPES[dtype]) for name, x in flatten_weights(config, weights).items()}
    _write_tensors(folder / MODEL_FILE, tensors)
    written = huggingface_config(config, dtype, tokenizer)
    _write_json(folder / "config.json", written)
    ends = list(tokenizer.eos_ids) if tokenizer else []
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": written["bos_token_id"], "eos_token_id": ends if len(ends) > 1 else written["eos_token_id"]},
    )
    if tokenizer is not None:
        tokenizer.save(folder)


def export_student(
    out: Path,
    student: Student,
    params: Params,
    frozen: Frozen,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a student of any kind as a Hugging Face folder, all or nothing.

    Args:
      out: the folder; beside the model it gets `projections.safetensors` (the trained parameters under the
        reference's names) where the student is a projection of its teacher, and `lrc.json`.
      tokenizer: the teacher's; copied with its companion files.
      dtype: of the written weights; merging is done in the parameters' own.
      provenance: what to say in `lrc.json` about the student's origin.
      extra: texts of further files, by name.

    Raises:
      InputError: `out` is taken or cannot be made, or the dtype is unknown.
    """
    with jax.default_matmul_precision("highest"):
        weights = jax.jit(student.weights)(params, frozen)
    with atomic_folder(out, overwrite=overwrite) as folder:
        write_model(folder, student.config, weights, tokenizer, dtype)
        description = {"kind": student.kind, **(provenance or {})}
        if isinstance(student, ProjectedStudent):
            _write_tensors(folder / PROJECTIONS_FILE, {name: np.asarray(x) for name, x in params.items()})
            # What stock tools would not know: how to merge these projections again, or go on training them.
            description["flags"] = reference_flags(student.lrc)
        _write_json(folder / PROVENANCE_FILE, description)
        for name, text in (extra or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
