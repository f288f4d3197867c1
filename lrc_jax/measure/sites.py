"""Information between a teacher and a student at the sites of their layers: rows of the measurement table.

At each site the teacher's activations are reduced to their leading principal components and the student's to as many
coordinates as its rank lets vary, at unit average power. What is reported is the noise-smoothed I_tau of
`measure.information`, its ceiling for that many coordinates, and how far the estimator is off on a Gaussian pair of the
same dimensions, sample size and information.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import Pool
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import batches
from lrc_jax.measure.contrastive import infonce
from lrc_jax.measure.information import (
    barber_agakov,
    bottleneck_ceiling,
    calibrate_gaussian,
    gaussian_information,
    ksg,
    one_token_a_document,
    principal_components,
    unit_power,
)
from lrc_jax.model import DecoderConfig
from lrc_jax.students.base import Frozen, Params, Student

SITES = {"q": "q_NQ", "gate": "gate_NF", "mlp_out": "mlp_out_ND", "attn_out": "attn_out_ND"}
FEW = 3  # dimensions a side for the nearest-neighbour estimate
FEW_TOKENS = 4096  # tokens for it


@functools.partial(jax.jit, static_argnames=("student", "teacher_config", "sites"))
def _activations(
    student: Student,
    teacher_config: DecoderConfig,
    params: Params,
    frozen: Frozen,
    tokens_BT: Array,
    sites: tuple[tuple[int, int, str], ...],
) -> list[tuple[Array, Array]]:
    teacher = forward(teacher_config, frozen.teacher, tokens_BT)
    mine = student.forward(params, frozen, tokens_BT, teacher)
    return [(getattr(teacher.layers[i], f), getattr(mine.layers[j], f)) for i, j, f in sites]


def site_activations(
    student: Student,
    teacher_config: DecoderConfig,
    params: Params,
    frozen: Frozen,
    pool: Pool,
    sites: tuple[str, ...],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Teacher's and student's activations [N, X], [N, Y] by site, N = sequences x positions, row by row.

    Sites of a student with one layer are called `q`, `gate`, ...; with more, `layers.3.q` by the teacher's layer.
    """
    unknown = [site for site in sites if site not in SITES]
    if unknown:
        raise ValueError(f"sites: {', '.join(unknown)} unknown; known: {', '.join(SITES)}")
    kept = student.lrc.kept_layers if hasattr(student, "lrc") else range(teacher_config.num_layers)
    single = len(kept) == 1
    names = [site if single else f"layers.{i}.{site}" for i in kept for site in sites]
    wanted = tuple((i, j, SITES[site]) for j, i in enumerate(kept) for site in sites)
    parts, n = batches(dataclasses.replace(pool, final_NTD=None), teacher_config.vocab_size)
    tokens = n * pool.tokens_NT.shape[1]
    chunks: list[list[Any]] = [
        jax.device_get(_activations(student, teacher_config, params, frozen, part.tokens_NT, wanted)) for part in parts
    ]

    def joined(index: int, side: int) -> np.ndarray:
        return np.concatenate([chunk[index][side] for chunk in chunks])[:tokens].astype(np.float64)

    return {name: (joined(index, 0), joined(index, 1)) for index, name in enumerate(names)}


def site_information(
    teacher_NX: np.ndarray,
    student_NY: np.ndarray,
    documents_N: np.ndarray,
    rank: int,
    rng: np.random.Generator,
    *,
    tau: float = 0.1,
    teacher_components: int | None = None,
    negatives: int = 4096,
) -> dict[str, Any]:
    """Everything about the information between two activations, nats.

    Args:
      teacher_NX, student_NY: activations token by token.
      documents_N: document of each token.
      rank: coordinates that the student's side can vary in.
      rng: of the smoothing noise, the negatives and the calibration.
      tau: standard deviation of the noise, against unit power.
      teacher_components: principal components of the teacher that are kept; None: twice the rank, at least 16. A
        function of the teacher tells no more about the student than the teacher: the estimate errs downwards.
      negatives: K of InfoNCE.

    Raises:
      InputError: fewer than 20 tokens a dimension.

    Returns:
      mutual_information  Gaussian/CCA with bias correction; exact for Gaussian activations, no bound for others
      mi_se               of it, by a jackknife over documents
      mi_ceiling          (r/2) ln(1 + 1/tau^2): no r coordinates of unit power can tell more
      mi_pca_reference    what the teacher's r leading components tell: sum over their own variances
      mi_floor, mi_floor_se   InfoNCE on held-out documents: a lower bound (in expectation) whatever the distribution
      mi_floor_limit, mi_floor_saturated   ln K, beyond which it cannot see, and whether it came within 1 nat of that
      mi_barber_agakov, mi_barber_agakov_se   held-out; I >= it - (negentropy of the teacher's side)
      mi_mse              the bound from the mean squared error alone: what cloning optimises
      mi_plug_in          before bias correction
      mi_ksg, mi_gaussian_few   nearest neighbours, and the Gaussian value, on 3 components a side: a large
                          difference says that the pair is not Gaussian
      calibration_error, calibration_se   mean error of `mutual_information` on Gaussian pairs of the same
                          dimensions, tokens and information
      fvu                 share of the teacher side's variance that no linear map of the student's side predicts,
                          on held-out documents
      tau, mi_tokens, mi_documents
    """
    components = max(16, 2 * rank) if teacher_components is None else teacher_components
    x_NX = principal_components(teacher_NX, min(components, teacher_NX.shape[1]))
    clean_NY = unit_power(principal_components(student_NY, rank), rank)
    (count, d_x), d_y = x_NX.shape, clean_NY.shape[1]
    if count < 20 * (d_x + d_y):
        least = 20 * (d_x + d_y)
        raise InputError(
            f"measure.information_samples: {count} tokens are too few for {d_x} + {d_y} dimensions; "
            f"give samples of at least {least} tokens in all"
        )
    noisy_NY = clean_NY + tau * rng.standard_normal(clean_NY.shape)
    gaussian = gaussian_information(x_NX, clean_NY, documents_N, tau)
    calibration = calibrate_gaussian(gaussian.canonical_correlations, d_x, d_y, count, rng)
    variances = np.linalg.eigvalsh(np.cov(teacher_NX, rowvar=False).reshape(teacher_NX.shape[1], -1))
    limits = bottleneck_ceiling(variances, rank, tau)
    held_out = barber_agakov(x_NX, noisy_NY, documents_N)
    floor = infonce(x_NX, noisy_NY, documents_N, rng, negatives=negatives)
    few = one_token_a_document(documents_N, rng, FEW_TOKENS)
    x_few, y_few = x_NX[few, :FEW], noisy_NY[few, :FEW]
    return {
        "mutual_information": gaussian.value,
        "mi_se": gaussian.standard_error,
        "mi_ceiling": limits.ceiling,
        "mi_pca_reference": limits.pca_reference,
        "mi_floor": floor.value,
        "mi_floor_se": floor.standard_error,
        "mi_floor_limit": floor.ceiling,
        "mi_floor_saturated": floor.saturated,
        "mi_barber_agakov": held_out.bound,
        "mi_barber_agakov_se": held_out.standard_error,
        "mi_mse": held_out.mse_form,
        "mi_plug_in": gaussian.plug_in,
        "mi_ksg": ksg(x_few, y_few),
        "mi_gaussian_few": gaussian_information(x_few, y_few, np.arange(len(few))).value,
        "calibration_error": calibration.error,
        "calibration_se": calibration.standard_error,
        "fvu": held_out.fvu,
        "tau": tau,
        "mi_tokens": count,
        "mi_documents": len(np.unique(documents_N)),
    }


def information_rows(
    student: Student,
    teacher_config: DecoderConfig,
    params: Params,
    frozen: Frozen,
    pool: Pool,
    documents: Int[np.ndarray, "S"],
    key: Array,
    *,
    sites: tuple[str, ...] = tuple(SITES),
    tau: float = 0.1,
    teacher_components: int | None = None,
    negatives: int = 4096,
) -> list[dict[str, Any]]:
    """One row per site: `site` and the columns of `site_information`.

    Args:
      student, params: any student with activations of its own (not a head on the teacher's trunk).
      pool: probe sequences that trained neither teacher nor student; 1,024 and more.
      documents: document of each *sequence* of the pool.
      key: seeds noise, negatives and calibration.
      sites: of q, gate, mlp_out, attn_out.
    """
    if student.reads_only_final:
        raise ValueError("this student shares the teacher's trunk: its activations are the teacher's")
    if len(documents) != pool.size:
        raise ValueError(f"{len(documents)} document numbers for {pool.size} sequences")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    documents_N = np.repeat(np.asarray(documents), pool.tokens_NT.shape[1])
    rank = getattr(student, "rank", student.config.hidden_size)
    rows = []
    for site, (teacher_NX, student_NY) in site_activations(
        student, teacher_config, params, frozen, pool, sites
    ).items():
        columns = site_information(
            teacher_NX,
            student_NY,
            documents_N,
            min(rank, student_NY.shape[1]),
            rng,
            tau=tau,
            teacher_components=teacher_components,
            negatives=negatives,
        )
        rows.append({"site": site} | columns)
    return rows
