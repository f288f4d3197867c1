"""`python -m lrc_jax`: the method as a tool. Bad input is one line on standard error and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrc_jax.errors import DivergedError, InputError, file_error
from lrc_jax.recipes import DEFAULT

PROG = "python -m lrc_jax"
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """argparse with its errors in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def _export(args: argparse.Namespace) -> int:
    from lrc_jax.projections import read_flags, read_projections
    from lrc_jax.students import Frozen
    from lrc_jax.teachers.load import load_teacher
    from lrc_jax.training.export import DTYPES, export_student

    assert args.dtype in DTYPES
    flags = None if args.config is None else read_flags(args.config)
    teacher = load_teacher(args.teacher)
    student, params = read_projections(args.projections, teacher.config, flags)
    export_student(
        args.out,
        student,
        params,
        Frozen(teacher.weights),
        tokenizer=teacher.tokenizer,
        dtype=args.dtype,
        provenance={"teacher": teacher.digest},
        overwrite=args.overwrite,
    )
    config = student.config
    without = "" if teacher.tokenizer else "; the teacher has no tokenizer.json, none was written"
    print(
        f"{args.out}: {config.num_layers} layers of width {config.hidden_size}, "
        f"RMSNorm eps {config.rms_norm_eps:g}{without}"
    )
    return 0


def _named(kind: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are fields of a dataclass."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)}


def _distill(args: argparse.Namespace) -> int:
    from lrc_jax.training.distill import DistillSettings, Machine, distill

    if args.processes > 1:
        if args.coordinator is None:
            raise InputError("--coordinator: missing; several processes meet at HOST:PORT of the first one")
        from lrc_jax.compute.sharding import connect

        connect(args.coordinator, args.processes, args.process)

    settings = DistillSettings(**_named(DistillSettings, args))
    machine = Machine(**_named(Machine, args))
    try:
        report = distill(settings, args.out, machine=machine, dtype=args.dtype, overwrite=args.overwrite)
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes from the last checkpoint in {args.out}.training", file=sys.stderr)
        return INTERRUPTED
    print(
        f"{args.out}: held-out loss {report['loss_before']:.4f} -> {report['loss_after']:.4f} nats/token "
        f"(teacher {report['teacher_loss']:.4f}), {report['tokens_per_second'] or 0:,} tokens/s"
    )
    return 0


def _generate(args: argparse.Namespace) -> int:
    from lrc_jax.inference.generate import generate
    from lrc_jax.teachers.load import load_teacher

    model = load_teacher(args.model)
    options = {"count": args.tokens, "temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
    print(args.prompt + generate(model.config, model.weights, model.require_tokenizer(), args.prompt, **options))
    return 0


def _cloze(args: argparse.Namespace) -> int:
    from lrc_jax.data.text import read_splits
    from lrc_jax.inference.cloze import build_items, write_task
    from lrc_jax.training.export import atomic_folder

    for name in ("items", "words", "context_words"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: {getattr(args, name)} is less than 1")
    held_out = read_splits(Path(args.text), args.text_field).test
    items = build_items(held_out, args.items, seed=args.seed, context_words=args.context_words, words=args.words)
    with atomic_folder(args.out, overwrite=args.overwrite) as folder:
        write_task(folder, args.out.resolve().name, items)
    documents = len({item.document for item in items})
    print(f"{args.out}: {len(items)} items from {documents} of {len(held_out)} held-out documents; chance is 1 in 4")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from lrc_jax.inference.cloze import ITEMS_FILE, accuracy, choices_made, read_items
    from lrc_jax.owners import write_whole
    from lrc_jax.teachers.load import load_teacher

    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: {args.limit} is less than 1")
    named = [name for name in args.tasks.split(",") if name]
    folders = [Path(name) for name in named if (Path(name) / ITEMS_FILE).is_file()]
    others = [name for name in named if Path(name) not in folders]
    if others:
        try:
            from lrc_jax.inference.harness import evaluate_tasks
        except ModuleNotFoundError as missing:
            raise InputError(
                f"--tasks: {others[0]} is no folder of a cloze task, and lm-eval's tasks need {missing.name}; pip "
                "install 'lrc-scaling-suite[lm_eval]' brings it"
            ) from None
    found: dict[str, dict[str, Any]] = {}
    for name in args.model:
        model = load_teacher(name)
        results: dict[str, Any] = {}
        for folder in folders:
            items = read_items(folder)[: args.limit]
            made = choices_made(model.config, model.weights, model.require_tokenizer(), items)
            results[str(folder)] = accuracy(made, items)
        if others:
            results |= evaluate_tasks(model, others, limit=args.limit, folder=args.include)
        found[name] = results
        for task, numbers in results.items():
            print(f"{name}: {task}: {_told(numbers)}", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json is not None:
        text = json.dumps({"schema": 1, "models": found}, indent=2) + "\n"
        if args.json == "-":
            print(text, end="")
        else:
            write_whole(Path(args.json), text)
    return 0


def _told(numbers: dict[str, Any]) -> str:
    """A task's numbers in a line."""
    if "ci95" in numbers:
        low, high = numbers["ci95"]
        return f"{numbers['accuracy']:.3f} of {numbers['items']} items ({low:.3f} to {high:.3f})"
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)


def _plan(args: argparse.Namespace) -> int:
    from lrc_jax.measure.plan import run_plan

    return run_plan(args)


def _parser(prog: str = PROG, command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. `plan` has its options only where it is the command or none is named: they are read
    off what computes it, which loads JAX."""
    parser = _Parser(prog=prog, description="Low-Rank Clone: distil a model, export a clone.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    teacher_help = "Hugging Face folder, .gguf file or name on the hub"
    dtypes = ("float32", "bfloat16", "float16")

    export = commands.add_parser("export", help="a Low-Rank Clone checkpoint -> a Hugging Face folder")
    export.add_argument("--teacher", required=True, help=teacher_help)
    export.add_argument("--projections", required=True, type=Path, help="projections.safetensors of the clone")
    export.add_argument("--out", required=True, type=Path, help="folder to write; it must not exist or be empty")
    export.add_argument("--config", type=Path, help="JSON with the reference's flags; else read off the tensors' names")
    export.add_argument("--dtype", choices=dtypes, default="float32", help="type of the written weights")
    export.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    export.set_defaults(run=_export)

    distill = commands.add_parser(
        "distill",
        help="teacher and text -> a trained student as a Hugging Face folder",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = distill.add_argument
    add("--teacher", required=True, help=teacher_help)
    layouts = "file (plain text, JSON lines, parquet, .gz), or folder of shards or of train and test files"
    add("--text", required=True, help=layouts)
    add("--text-field", metavar="NAME", help="JSON lines, parquet: the field with the text (default: text)")
    add("--rank", required=True, type=int, help="width of the student (factorized: rank of its matrices)")
    add("--steps", required=True, type=int, help="optimiser steps")
    add("--out", required=True, type=Path, help="folder to write; an interrupted run resumes from OUT.training")
    add("--student", choices=("lrc", "direct", "scratch", "svd", "factorized"), default="lrc")
    starts = ("pca", "random", "channels", "fan_in", "whitened")
    said = "start of the projections; factorized: random, pca (truncated SVD) or whitened (activation-aware)"
    add("--init", choices=starts, default=DEFAULT.init, help=said)
    add("--matrices", choices=("all", "head"), default="all", help="factorized: which matrices")
    said = "factorized: as large as a clone of this rank, with one rank for all matrices or ranks chosen by loss"
    add("--allocation", choices=("none", "uniform", "by_loss"), default="none", help=said)
    add("--samples", type=int, default=0, help="training sequences; 0 takes all")
    add("--batch-size", type=int, default=4, help="sequences per step")
    add("--sequence-length", type=int, default=256, help="tokens per sequence")
    add("--learning-rate", type=float, default=2e-4, help="peak rate of AdamW; small teachers tolerate 1e-3 and more")
    said = "weight of the clone losses (the reference: 0.2); 0 leaves them out"
    add("--clone-weight", type=float, default=DEFAULT.clone_weight, help=said)
    said = "normalised, mseloss (the reference), l1loss, or their _v2 forms"
    add("--clone-distance", default=DEFAULT.clone_distance, help=said)
    add("--kl-weight", type=float, default=1.0, help="weight of the distillation loss, a mean over tokens")
    add("--kl-temperature", type=float, default=1.0, help="temperature of the distillation loss")
    add("--ce-weight", type=float, default=1.0, help="weight of the next-token loss")
    add("--bf16", action="store_true", help="compute in bfloat16; parameters and losses stay float32")
    add("--seed", type=int, default=0)
    add("--data", type=int, default=1, help="devices that share a batch; 0 takes all")
    add("--model", type=int, default=1, help="devices that share the teacher")
    add("--accumulate", type=int, default=1, help="parts of a batch that are computed one after another")
    add("--remat", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    add("--activation-cache", type=Path, help="folder: one teacher pass for many students, in half precision")
    add("--processes", type=int, default=1, help="processes that run this command together, each with its --process")
    add("--process", type=int, default=0, help="number of this process, from 0")
    add("--coordinator", help="HOST:PORT of process 0")
    add("--projections", help="a Low-Rank Clone checkpoint to start from")
    add("--config", dest="flags", help="JSON with the reference's flags; its loss flags replace missing options")
    add("--dtype", choices=dtypes, default="float32", help="type of the written weights")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    distill.set_defaults(run=_distill)

    generate = commands.add_parser(
        "generate", help="continue a text", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = generate.add_argument
    add("--model", required=True, help=teacher_help)
    add("--prompt", required=True, help="text to continue")
    add("--tokens", type=int, default=50, help="tokens to write, at most")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest tokens with this share of probability")
    add("--seed", type=int, default=0)
    generate.set_defaults(run=_generate)

    cloze = commands.add_parser(
        "cloze",
        help="make a task from a text: which of four continuations is the true one?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = cloze.add_argument
    add("--text", required=True, help=f"{layouts}; the items come from its test part")
    add("--text-field", metavar="NAME", help="JSON lines, parquet: the field with the text (default: text)")
    add("--out", required=True, type=Path, help="folder to write: items.jsonl, and a task file for lm-eval")
    add("--items", type=int, default=500, help="number of items")
    add("--context-words", type=int, default=40, help="words before the continuation, at most")
    add("--words", type=int, default=10, help="words of a continuation")
    add("--seed", type=int, default=0)
    add("--overwrite", action="store_true", help="replace --out where it exists")
    cloze.set_defaults(run=_cloze)

    evaluate = commands.add_parser("evaluate", help="teachers and students on tasks: cloze folders, or lm-eval's")
    add = evaluate.add_argument
    add("--model", required=True, nargs="+", help=f"one or more: {teacher_help}")
    add("--tasks", required=True, metavar="T1,T2", help="folders that `cloze` made, or names of lm-eval's tasks")
    add("--include", type=Path, metavar="DIR", help="folder with further task files for lm-eval")
    add("--limit", type=int, help="items of each task; left out: all")
    add("--json", metavar="OUT", help="file for the numbers; - is standard output")
    evaluate.set_defaults(run=_evaluate)

    plan = commands.add_parser("plan", help="memory, FLOPs and time of a clone, before anything is run")
    if command in (None, "plan"):
        from lrc_jax.measure.plan import add_plan_arguments

        add_plan_arguments(plan)
    plan.set_defaults(run=_plan)
    return parser


def exact_products() -> None:
    """Products of float32 are exact to float32 on a GPU too, unless JAX_DEFAULT_MATMUL_PRECISION asks for less: by
    default they would be TF32."""
    import jax

    if jax.config.values["jax_default_matmul_precision"] is None:
        jax.config.update("jax_default_matmul_precision", "highest")


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run a command; returns its exit code."""
    try:
        given = sys.argv[1:] if argv is None else argv
        args = _parser(prog, given[0] if given else "").parse_args(argv)
        exact_products()
        return args.run(args)
    except InputError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    except OSError as wrong:
        print(f"error: {file_error(wrong)}", file=sys.stderr)
        return 2
    except DivergedError as wrong:
        print(f"diverged: {wrong}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("lrc_jax"):
            raise
        print(
            f"error: {missing.name} is not installed; pip install 'lrc-scaling-suite[clone]' brings it", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
