"""What a teacher loses when its matrices become products of two: at shares of its parameters, by four ways, untrained.

    python -m experiments.bench.truncated --teacher FILE.gguf --text FOLDER --keep 0.8 0.6 --out table.csv

The ways are the truncated SVD of every matrix at one rank, the activation-aware SVD at one rank, the same with a rank
for each matrix by what its truncation costs, and rounding to 8 and 4 bits. Losses are on held-out text. Moments and
costs are measured on training text. --export writes the last share's allocated model in Hugging Face layout.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.common.command import guarded, prepare_jax
from experiments.common.files import write_text
from experiments.common.progress import duration
from experiments.run_one.config import RunConfig
from lrc_jax.errors import InputError


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the teacher, for each rounding, and for each share and way."""
    import numpy as np

    from lrc_jax.data.pools import Pool
    from lrc_jax.measure.flops import parameter_count
    from lrc_jax.students.factorized import FactorizedStudent, factored_size, matrix, matrix_shapes, uniform_ranks
    from lrc_jax.students.factorized import with_matrix as replaced
    from lrc_jax.students.quantised import quantised_bytes, rounded
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
    whole = parameter_count(config)
    rest = whole - sum(math.prod(shape) for shape in shapes.values())

    def row(method: str, numbers: float, stored: float, other: Any) -> dict[str, Any]:
        loss = held_out_loss(config, other, pools.test)
        say(f"{method} at {numbers / whole:.2f} of the parameters: {loss:.4f} nats per token")
        return {
            "method": method, "share": round(numbers / whole, 4), "inference_params": int(numbers),
            "weight_bytes": stored, "tokens": 0, "seed": 0, "test_loss": loss, "perplexity": math.exp(loss),
        }  # fmt: skip

    yield row("teacher", whole, 4.0 * whole, weights)
    for bits in (8, 4):
        other = weights
        for name in shapes:
            turned = matrix(weights, name).T if name == "embed" else matrix(weights, name)
            made = rounded(turned, bits)
            other = replaced(other, name, made.T if name == "embed" else made)
        yield row(f"quantised:int{bits}", whole, 4.0 * rest + quantised_bytes(config, bits), other)

    def few(count: int) -> Pool:
        return Pool(np.asarray(pools.train.tokens_NT[:count]), np.asarray(pools.train.labels_NT[:count]))

    began = time.monotonic()
    found = spectra(config, weights, input_moments(config, weights, few(MOMENT_SEQUENCES)))
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

    costs = measured_losses(config, weights, found, few(args.allocation_sequences), progress)
    for share in args.keep:
        budget = round(share * whole) - rest
        if budget < sum(factored_size(m, n, 1) for m, n in shapes.values()):
            raise InputError(f"--keep: {share} leaves the matrices less than rank 1; give more")
        one_rank = FactorizedStudent(config, 1, ranks=uniform_ranks(list(shapes.values()), budget))
        by_cost = dataclasses.replace(
            one_rank, ranks=allocate([costs[name] for name in shapes], list(shapes.values()), budget)
        )
        ways = {
            "factorized:svd": (one_rank, plain),
            "whitened_svd": (one_rank, found),
            "whitened_svd:allocated": (by_cost, found),
        }
        for method, (student, taken) in ways.items():
            numbers = rest + sum(factored_size(*shapes[n], r) for n, r in student.rank_by_matrix().items())
            other = truncated(student, weights, taken)
            yield row(method, numbers, 4.0 * numbers, other)
    if args.export is not None:
        with atomic_folder(args.export, overwrite=args.overwrite) as folder:
            write_model(folder, config, other, teacher.tokenizer)
        say(f"{args.export}: {method} at {args.keep[-1]:g} of the parameters")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.truncated", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--teacher", type=Path, required=True, help="folder, .gguf file or name on the hub")
    parser.add_argument("--text", type=Path, required=True, help="as for lrc distill")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6], metavar="SHARE", help="of the parameters")
    parser.add_argument("--out", type=Path, required=True, help="the table, CSV")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=32, help="most sequences of the test text")
    parser.add_argument(
        "--allocation-sequences", type=int, default=16, help="on which the cost of a truncation is measured"
    )
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the last model there")
    parser.add_argument("--overwrite", action="store_true", help="replace --export where it exists")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    return parser


def main() -> int:
    args = parser().parse_args()
    for share in args.keep:
        if not 0 < share < 1:
            raise InputError(f"--keep: {share} is no share of the parameters; give numbers between 0 and 1")
    prepare_jax(RunConfig(platform=args.platform, threads=args.threads))
    found = list(rows(args))
    text = io.StringIO()
    table = csv.DictWriter(text, found[0], lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    write_text(args.out, text.getvalue())
    print(f"{args.out}: {len(found)} models")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
