"""What a teacher loses when its matrices become products of two: at shares of its parameters, by four ways, untrained.

    python -m experiments.bench.truncated --teacher FILE.gguf --text FOLDER --keep 0.8 0.6 --out table.csv

The ways are the truncated SVD of every matrix at one rank, the activation-aware SVD at one rank, the same with a rank
for each matrix by what its truncation costs, and rounding to 8 and 4 bits. Losses are on held-out text. Moments and
costs are measured on training text. --export writes the last share's allocated model in Hugging Face layout.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.bench.pretrained import parser_of
from experiments.common.command import guarded, prepare_jax
from experiments.common.files import write_csv
from experiments.common.progress import duration
from experiments.run_one.config import RunConfig
from lrc_jax.errors import InputError

if TYPE_CHECKING:  # they load JAX, whose environment main sets first
    from lrc_jax.model import Weights
    from lrc_jax.students import Student


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the teacher, for each rounding, and for each share and way."""
    import numpy as np

    from lrc_jax.measure.flops import inference_cost, parameter_count
    from lrc_jax.students import Frozen
    from lrc_jax.students.factorized import FactorizedStudent, factored_size, matrix_shapes, uniform_ranks
    from lrc_jax.students.quantised import GROUP, QuantisedTeacher
    from lrc_jax.students.statistics import input_moments
    from lrc_jax.students.whitened import Spectrum, allocate, measured_losses, spectra, truncated
    from lrc_jax.teachers.load import load_teacher
    from lrc_jax.training.distill import MOMENT_SEQUENCES, held_out_loss
    from lrc_jax.training.export import atomic_folder, write_model
    from lrc_jax.training.text_pools import read_pools

    teacher = load_teacher(str(args.teacher))
    config, weights = teacher.config, teacher.weights
    pools = read_pools(str(args.text), teacher, args.sequence_length, evaluated=args.held_out)
    shapes = matrix_shapes(config)
    sizes = list(shapes.values())
    whole = parameter_count(config)

    def row(method: str, numbers: float, weight_bytes: float, other: Weights) -> dict[str, Any]:
        loss = held_out_loss(config, other, pools.test)
        say(f"{method} at {numbers / whole:.2f} of the parameters: {loss:.4f} nats per token")
        return {
            "method": method, "share": round(numbers / whole, 4), "inference_params": int(numbers),
            "weight_bytes": weight_bytes, "tokens": 0, "seed": 0, "test_loss": loss, "perplexity": math.exp(loss),
        }  # fmt: skip

    def row_of(method: str, student: Student, other: Weights) -> dict[str, Any]:
        cost = inference_cost(student, args.sequence_length)
        return row(method, cost.numbers, cost.weight_bytes, other)

    yield row("teacher", whole, 4.0 * whole, weights)
    for bits in sorted(GROUP, reverse=True):
        rounded = QuantisedTeacher(config, bits)
        yield row_of(f"quantised:int{bits}", rounded, rounded.weights({}, Frozen(weights)))

    began = time.monotonic()
    found = spectra(config, weights, input_moments(config, weights, pools.train.first(MOMENT_SEQUENCES)))
    plain = {
        name: Spectrum.of(one.matrix, np.ones(len(one.matrix)), transposed=one.transposed)
        for name, one in found.items()
    }
    say(f"{len(found)} matrices decomposed twice in {duration(time.monotonic() - began)}")
    began = time.monotonic()

    def progress(done: int, of: int) -> None:
        if done % 10 == 0 or done == of:
            left = (time.monotonic() - began) * (of - done) / done
            say(f"costs of {done} of {of} matrices measured, {duration(left)} left")

    costs = measured_losses(config, weights, found, pools.train.first(args.allocation_sequences), progress)
    matrices = sum(math.prod(shape) for shape in sizes)
    for share in args.keep:
        budget = round(share * whole) - (whole - matrices)
        if budget < sum(factored_size(m, n, 1) for m, n in sizes):
            raise InputError(f"--keep: {share} leaves the matrices less than rank 1; give more")
        one_rank = FactorizedStudent(config, 1, ranks=uniform_ranks(sizes, budget))
        by_cost = FactorizedStudent(config, 1, ranks=allocate([costs[name] for name in shapes], sizes, budget))
        yield row_of("factorized:svd", one_rank, truncated(one_rank, weights, plain))
        yield row_of("whitened_svd", one_rank, truncated(one_rank, weights, found))
        allocated = truncated(by_cost, weights, found)
        yield row_of("whitened_svd:allocated", by_cost, allocated)
    if args.export is not None:
        with atomic_folder(args.export, overwrite=args.overwrite) as folder:
            write_model(folder, config, allocated, teacher.tokenizer)
        say(f"{args.export}: whitened_svd:allocated at {args.keep[-1]:g} of the parameters")


def parser() -> argparse.ArgumentParser:
    parser = parser_of("experiments.bench.truncated", __doc__, held_out=32)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6], metavar="SHARE", help="of the parameters")
    parser.add_argument(
        "--allocation-sequences", type=int, default=16, help="on which the cost of a truncation is measured"
    )
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the last model there")
    parser.add_argument("--overwrite", action="store_true", help="replace --export where it exists")
    return parser


def main() -> int:
    args = parser().parse_args()
    for share in args.keep:
        if not 0 < share < 1:
            raise InputError(f"--keep: {share} is no share of the parameters; give numbers between 0 and 1")
    prepare_jax(RunConfig(platform=args.platform, threads=args.threads))
    found = list(rows(args))
    write_csv(args.out, pd.DataFrame(found))
    print(f"{args.out}: {len(found)} models")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
