"""From a name to a student. A new kind is one entry here and one class beside it."""

from __future__ import annotations

import dataclasses

from lrc_jax.clone import CloneFlags, LowRankClone
from lrc_jax.errors import InputError
from lrc_jax.model import DecoderConfig
from lrc_jax.students.base import Student, StudentOptions
from lrc_jax.students.dense import DenseStudent
from lrc_jax.students.factorized import FactorizedHead, FactorizedStudent, matrix_budget, uniform_ranks
from lrc_jax.students.projected import ProjectedStudent
from lrc_jax.students.quantised import GROUP, QuantisedTeacher

STUDENT_KINDS = ("lrc", "direct", "scratch", "svd", "factorized", "quantised")
INITS = ("random", "fan_in", "pca", "channels", "whitened")
ALLOCATIONS = ("none", "uniform", "by_loss")


def make_student(kind: str, teacher: DecoderConfig, flags: CloneFlags, options: StudentOptions) -> Student:
    """Build a student of a teacher.

    Raises:
      InputError: the kind or an option is unknown, or the flags do not fit the teacher.
    """
    flags.check(teacher)
    if options.init not in INITS:
        raise InputError(f"student.init: {options.init!r} is unknown; choose one of {', '.join(INITS)}")
    if options.allocation not in ALLOCATIONS:
        raise InputError(
            f"student.allocation: {options.allocation!r} is unknown; choose one of {', '.join(ALLOCATIONS)}"
        )
    all_matrices = kind == "factorized" and options.matrices == "all"
    if options.init == "whitened" and not all_matrices:
        raise InputError("student.init: whitened needs student=factorized student.matrices=all; choose pca")
    if options.allocation != "none" and not all_matrices:
        raise InputError(
            f"student.allocation: {options.allocation} needs student=factorized student.matrices=all; choose none"
        )
    if options.allocation == "by_loss" and options.init != "whitened":
        raise InputError("student.allocation: by_loss needs student.init=whitened, by whose losses ranks are allocated")
    std = teacher.hidden_size**-0.5 if options.init == "fan_in" else None
    if options.unit_norm and kind != "lrc":
        raise InputError(f"student.unit_norm: the norms of a {kind} student are not fixed; use student=lrc")
    lrc = LowRankClone(teacher, flags, std, options.unit_embedding, options.unit_norm)
    if kind in ("lrc", "svd"):
        return ProjectedStudent(kind, lrc)
    if kind in ("direct", "scratch"):
        # The aligners are the projections of the default MLP loss, whatever the clone's own flags.
        plain = dataclasses.replace(lrc, flags=dataclasses.replace(flags, use_additional_align=False))
        return DenseStudent(kind, plain, aligned=options.clone)
    if kind == "factorized":
        if options.matrices == "head":
            return FactorizedHead(teacher, flags.rank, from_svd=options.init == "pca")
        if options.matrices == "all":
            student = FactorizedStudent(teacher, flags.rank, from_svd=options.init == "pca")
            if options.allocation == "none":
                return student
            # Allocated ranks are computed from data (lrc_jax.students.whitened), which keeps to the same budget.
            budget = matrix_budget(teacher, lrc.config)
            return dataclasses.replace(student, ranks=uniform_ranks(list(student.shapes().values()), budget))
        raise InputError(f"student.matrices: {options.matrices!r} is unknown; choose all or head")
    if kind == "quantised":
        if options.bits not in GROUP:
            raise InputError(f"student.bits: {options.bits} is unknown; choose 8 or 4")
        return QuantisedTeacher(teacher, options.bits)
    raise InputError(f"student: {kind!r} is unknown; choose one of {', '.join(STUDENT_KINDS)}")
