"""Command line of the judge: `python -m theory COMMAND`.

Exit codes: 0 done; 1 something is REFUTED or VIOLATED (`check`), or a requirement is not met (`validate`); 2 the input
cannot be used or advice is refused. Every error is one line on standard error.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from theory.errors import InputError, OptionError
from theory.judge.verdicts import MARGIN
from theory.settings import (
    BOOTSTRAPS,
    FULL_REPLICATIONS,
    LOSS_NOISE,
    NEXT_SIMULATIONS,
    NOISE,
    OWN_MARGIN,
    PLAN_REPLICATIONS,
    QUICK_REPLICATIONS,
    RATES,
)
from theory.show.plain import visible

DISTRIBUTION = "lrc-scaling-suite"
INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _check_outputs(options)
        code = options.run(options)
        sys.stdout.flush()
        return code
    except InputError as error:
        said = error.on_the_command_line if isinstance(error, OptionError) else str(error)
        print(visible(" ".join(said.split())), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing may be written at interpreter exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


class _Version(argparse.Action):
    """Name and version of the installed distribution; asked for seldom, so that it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> NoReturn:
        from importlib import metadata

        try:
            found = metadata.version(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            found = "of a checkout that is not installed"
        print(DISTRIBUTION, found)
        parser.exit()


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse before the work, not after it."""
    target = getattr(options, "json", None)
    if target and target != "-" and (Path(target).is_dir() or not Path(target).absolute().parent.is_dir()):
        raise InputError(f"--json {target}: not a file in an existing folder; choose another path")
    out = getattr(options, "out", None)
    if out and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise InputError(f"--out {out}: not a file in an existing folder; choose another path")
    figures = getattr(options, "figures", None)
    if figures and Path(figures).exists() and not Path(figures).is_dir():
        raise InputError(f"--figures {figures}: exists and is not a folder; choose another path")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m theory",
        description="Judge scaling-law claims about low-rank distillation on a table of measurements.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    claims = commands.add_parser(
        "claims",
        help="print the ledger of claims",
        description="Print every claim: statement, symbols, assumptions, columns, rule, known problems, sources.",
    )
    claims.add_argument("--markdown", action="store_true", help="as a page, as in the documentation")
    claims.set_defaults(run=_claims)

    check = commands.add_parser(
        "check",
        help="judge a table",
        description="Judge the claims whose columns are present. Exit code 1 if anything is REFUTED or VIOLATED.",
    )
    _add_input(check)
    check.add_argument("--claim", nargs="+", action="extend", default=[], metavar="NAME", help="only these claims")
    check.add_argument("--claims", metavar="YAML", help="judge the claims of this file instead (docs/howto/claim.md)")
    check.add_argument("--margin", type=float, default=MARGIN, help="margin on exponents (default %(default)s)")
    check.add_argument(
        "--scale", action="append", default=[], metavar="COLUMN=FACTOR",
        help="multiply a column first: an error planted on purpose, to see that the judge notices (repeatable)",
    )  # fmt: skip
    check.add_argument(
        "--json", metavar="OUT", help="write the verdicts as JSON (- for standard output, and nothing else there)"
    )
    check.add_argument("--figures", metavar="DIR", help="write one figure per claim (PDF, PNG, CSV of its points)")
    check.set_defaults(run=_check)

    test = commands.add_parser(
        "test",
        help="judge a claim of your own",
        description="Judge what is claimed of a law's parameters: an exponent, or a relation such as a=b or "
        "a/(a+b)=0.5. Exit code 1 if it is REFUTED.",
    )
    _add_input(test)
    _add_law(test)
    test.add_argument(
        "--claim", nargs="+", action="extend", required=True, metavar="EXPRESSION=VALUE",
        help="what is claimed: b=0.34, a=b (repeatable; each is judged, and all have to hold)",
    )  # fmt: skip
    test.add_argument(
        "--bound", default="equal", choices=("upper", "lower", "equal"),
        help="upper: the target falls as claimed or faster; lower: not faster; equal: both (default %(default)s)",
    )  # fmt: skip
    test.add_argument("--margin", type=float, default=OWN_MARGIN, help="closer values are equal (default %(default)s)")
    test.add_argument(
        "--json", metavar="OUT", help="write the verdict as JSON (- for standard output, and nothing else there)"
    )
    test.add_argument("--figures", metavar="DIR", help="write the figure (PDF, PNG, CSV of its points)")
    test.set_defaults(run=_test)

    fit = commands.add_parser(
        "fit",
        help="fit a law of your own",
        description="Fit a law: + - * / ** ^, parentheses, log, exp, sqrt, min, max, numbers, columns (in backticks "
        "where they are no plain names); every other name is a parameter.",
    )
    _add_input(fit)
    _add_law(fit)
    fit.add_argument(
        "--json", metavar="OUT", help="write the fit as JSON (- for standard output, and nothing else there)"
    )
    fit.set_defaults(run=_fit)

    prediction = commands.add_parser(
        "predict",
        help="predict new points from a saved fit",
        description="Predict the target at the rows of a table, with intervals for the mean and for a new run, and the "
        "distance from the fitted range.",
    )
    prediction.add_argument("fit", metavar="FIT.json", help="what fit --json wrote")
    _add_input(prediction)
    prediction.add_argument(
        "--interval", type=float, default=0.95, metavar="P", help="level of the intervals (default %(default)s)"
    )
    _add_json(prediction, "the predictions")
    prediction.set_defaults(run=_predict)

    comparison = commands.add_parser(
        "compare",
        help="compare two groups of runs, paired by seed",
        description="Differences between the two groups that a column makes, paired by seed, with 95 % intervals: over "
        "all cells of the design and in each.",
    )
    _add_input(comparison)
    comparison.add_argument("--by", required=True, metavar="COLUMN", help="the column with two values")
    comparison.add_argument(
        "--quantity", nargs="+", action="extend", default=[], metavar="COLUMN", help="measured columns (all known ones)"
    )
    comparison.add_argument(
        "--cell", nargs="+", action="extend", metavar="COLUMN",
        help="columns of the design (rank, samples, steps, clone_weight, site where they are there)",
    )  # fmt: skip
    comparison.add_argument("--seed", default="seed", metavar="COLUMN", help="pairs the runs (default %(default)s)")
    _add_json(comparison, "the differences")
    comparison.set_defaults(run=_compare)

    planned = commands.add_parser(
        "plan",
        help="gates and power of a design, before it is run",
        description="Check a design against the gates, and simulate what it would decide. Give --rank and --samples "
        "(generalization, optimal_rank), --steps (convergence), --tokens (efficiency), --bytes (compression), or more.",
    )
    planned.add_argument("--rank", type=_numbers, default=(), metavar="R,R,...", help="ranks")
    planned.add_argument("--samples", type=_numbers, default=(), metavar="N,N,...", help="numbers of samples")
    planned.add_argument("--steps", type=_numbers, default=(), metavar="T,T,...", help="horizons")
    planned.add_argument("--tokens", type=_numbers, default=(), metavar="T,T,...", help="training budgets")
    planned.add_argument(
        "--bytes", type=_numbers, default=(), metavar="B,B,...", help="sizes of the clone: bytes of weights"
    )
    planned.add_argument("--seeds", type=_positive, default=5, help="seeds per cell (default %(default)s)")
    planned.add_argument("--noise", type=float, default=NOISE, help="relative noise of one run (default %(default)s)")
    planned.add_argument(
        "--loss-noise", type=float, default=LOSS_NOISE,
        help="noise of one run's loss where methods are compared, nats per token (default %(default)s)",
    )  # fmt: skip
    planned.add_argument(
        "--rates", type=_positive, default=RATES, help="learning rates per method (default %(default)s)"
    )
    planned.add_argument("--dimension", type=float, default=math.inf, metavar="D", help="smaller side of the matrix")
    planned.add_argument(
        "--replications", type=_positive, default=PLAN_REPLICATIONS, help="simulated studies (default %(default)s)"
    )
    planned.add_argument("--cost", metavar="FORMULA", help="seconds per run: a number, or such as 2+0.001*samples*rank")
    planned.add_argument(
        "--json", metavar="OUT", help="write the outcome as JSON (- for standard output, and nothing else there)"
    )
    planned.set_defaults(run=_plan)

    advice = commands.add_parser(
        "advise",
        help="which rank for N samples",
        description="The rank for N samples with its interval, the expected test loss, and the price of half and "
        "double that rank. Refused (exit code 2) where the measurements do not support it.",
    )
    _add_input(advice)
    advice.add_argument("--samples", type=float, required=True, metavar="N", help="training samples available")
    advice.add_argument("--max-rank", type=_positive, metavar="R", help="the largest rank that can be afforded")
    advice.add_argument(
        "--json", metavar="OUT", help="write the advice as JSON (- for standard output, and nothing else there)"
    )
    advice.set_defaults(run=_advise)

    following = commands.add_parser(
        "next",
        help="which runs to add next",
        description="The runs that most raise the chance of a verdict per cost, from a table, or from an empty design "
        "(--rank and --samples, or --steps): expected verdicts by simulation, cost, and the overrides of lrc run -m. "
        "Every look at a growing table is one more test: see docs/howto/next.md.",
    )
    _add_input(following, required=False)
    following.add_argument("--claim", required=True, metavar="NAME", help="the claim that has to be decided")
    following.add_argument("--budget", type=float, metavar="COST", help="the most that the runs may cost together")
    following.add_argument(
        "--cost", metavar="FORMULA",
        help="cost of one run: a column, or such as rank*samples (default: seconds, steps, or equal costs)",
    )  # fmt: skip
    following.add_argument("--margin", type=float, default=MARGIN, help="margin on exponents (default %(default)s)")
    following.add_argument("--rank", type=_numbers, default=(), metavar="R,R,...", help="ranks of an empty design")
    following.add_argument("--samples", type=_numbers, default=(), metavar="N,N,...", help="its numbers of samples")
    following.add_argument("--steps", type=_numbers, default=(), metavar="T,T,...", help="its horizons")
    following.add_argument("--seeds", type=_positive, default=5, help="its seeds per cell (default %(default)s)")
    following.add_argument("--dimension", type=float, default=math.inf, metavar="D", help="smaller side of its matrix")
    following.add_argument(
        "--noise", type=float, default=NOISE,
        help="relative noise of one run, where no table has replicates (default %(default)s)",
    )  # fmt: skip
    following.add_argument(
        "--simulations", type=_positive, default=NEXT_SIMULATIONS,
        help="simulated tables for each of the best sets of runs (default %(default)s)",
    )  # fmt: skip
    _add_json(following, "the proposals")
    following.set_defaults(run=_next)

    choosing = commands.add_parser(
        "choose",
        help="which candidate runs to train for a law",
        description="From a table of runs whose target is empty where a run is not done yet: the candidates to train "
        "within a budget, so that a law predicts best at the points of --at. Train those of this round, fill in their "
        "results, and ask again with what is left of the budget.",
    )
    _add_input(choosing)
    choosing.add_argument(
        "--law", action="append", required=True, help="as for fit; repeat it for rival laws, which are weighed"
    )
    choosing.add_argument("--target", required=True, metavar="COLUMN", help="the column that the law describes")
    choosing.add_argument(
        "--cost", required=True, metavar="FORMULA", help='cost of one run: a column, or such as "6*params*tokens"'
    )
    choosing.add_argument(
        "--budget", type=float, required=True, metavar="COST", help="the most that the chosen runs may cost together"
    )
    choosing.add_argument(
        "--at", metavar="FILE", help="where the law has to predict (default: the most expensive tenth of the table)"
    )
    choosing.add_argument(
        "--signed", nargs="+", action="extend", default=[], metavar="NAME", help="parameters that may be negative"
    )
    _add_json(choosing, "the choice")
    choosing.set_defaults(run=_choose)

    planting = commands.add_parser(
        "plant",
        help="write a table whose truth is known",
        description="Write a table drawn from a planted law, on which `check` has to say CONSISTENT, or with --wrong "
        "REFUTED: one of the cases of `validate`.",
    )
    planting.add_argument("claim", metavar="CLAIM", help="the claim that the table is about")
    planting.add_argument("--wrong", action="store_true", help="plant a law against which the claim is false")
    planting.add_argument("--seed", type=int, default=1, help="of the noise (default %(default)s)")
    planting.add_argument("--out", required=True, metavar="CSV", help="the file to write")
    planting.set_defaults(run=_plant)

    validation = commands.add_parser(
        "validate",
        help="validate the judge on planted truths",
        description="Judge planted truths and null injections: confusion, coverage, errors at the margin, power. "
        "Exit code 1 if a requirement is not met (not judged with --quick).",
    )
    validation.add_argument("--quick", action="store_true", help=f"{QUICK_REPLICATIONS} replications, under a minute")
    validation.add_argument(
        "--replications", type=_positive, metavar="K", help=f"replications per case (default {FULL_REPLICATIONS})"
    )
    validation.add_argument(
        "--json", metavar="OUT", help="write all shares as JSON (- for standard output, and nothing else there)"
    )
    validation.set_defaults(run=_validate)
    return parser


def _add_law(parser: argparse.ArgumentParser) -> None:
    """The options of a law and its fit."""
    parser.add_argument(
        "--law", required=True, help='for example "E + A*params**-a"; names that are no columns are free'
    )
    parser.add_argument("--target", required=True, metavar="COLUMN", help="the column that the law describes")
    parser.add_argument("--cluster", metavar="COLUMN", help="rows with one value share a run (seed); rows without it")
    parser.add_argument(
        "--signed", nargs="+", action="extend", default=[], metavar="NAME", help="parameters that may be negative"
    )
    parser.add_argument(
        "--bootstraps", type=_positive, default=BOOTSTRAPS, help="bootstrap draws (default %(default)s)"
    )


def _add_input(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The arguments of every command that reads a table."""
    parser.add_argument(
        "file", metavar="FILE|FOLDER", nargs=None if required else "?",
        help="CSV, TSV, JSON lines or parquet, also packed; - for standard input; or a study folder",
    )  # fmt: skip
    parser.add_argument(
        "--columns", action="append", default=[], metavar="NEW=OLD,...",
        help="names of columns: rank=r,samples=n_train reads column r as rank (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar='"COLUMN OP VALUE"',
        help='use only these rows: = != < <= > >=, or "COLUMN empty", "COLUMN not empty" (repeatable)',
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--json", metavar="OUT", help=f"write {what} as JSON; - for standard output, with no report there"
    )


def _input(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `_add_input` say, as the library's functions take it."""
    from theory.names import parse_columns

    return {"columns": parse_columns(",".join(options.columns)) if options.columns else {}, "where": options.where}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 4,8,16") from None


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


# Each command loads what it needs: SciPy, pandas and matplotlib take seconds together.


def _claims(options: argparse.Namespace) -> int:
    from theory.judge.ledger import all_claims
    from theory.show import render
    from theory.show.page import theory_markdown

    if options.markdown:
        print(theory_markdown(all_claims().values()), end="")
    else:
        render.print_claims(all_claims().values(), render.console())
    return 0


def _check(options: argparse.Namespace) -> int:
    if options.claims:
        from theory.judge.claim_file import read_claims
        from theory.judge.user_claim import check_claims
        from theory.tables import load_table

        claims = read_claims(options.claims)
        table = load_table(options.file, **_input(options)).scaled(options.scale)
        return _handed_over(options, check_claims(table, _named(claims, options.claim)))
    from theory.judge.check import check_file

    return _handed_over(
        options,
        check_file(options.file, claims=options.claim, margin=options.margin, scale=options.scale, **_input(options)),
    )


def _law(options: argparse.Namespace) -> dict[str, Any]:
    """What `_add_law` asks for, as arguments."""
    return {
        "target": options.target,
        "cluster": options.cluster,
        "signed": options.signed,
        "bootstraps": options.bootstraps,
    }


def _named(claims: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Of the claims of a file, those asked for."""
    known = [c.name for c in claims]
    for name in names:
        if name not in known:
            raise InputError(f"--claim {name}: the file has no such claim; choose from {', '.join(known)}")
    return [c for c in claims if not names or c.name in names]


def _test(options: argparse.Namespace) -> int:
    from theory import api

    report = api.test(
        options.file,
        options.law,
        claimed=options.claim,
        bound=options.bound,
        margin=options.margin,
        **_law(options),
        **_input(options),
    )
    return _handed_over(options, report)


def _handed_over(options: argparse.Namespace, report: Any) -> int:
    """Figures, JSON and text of a report, and its exit code."""
    from theory.show import render

    if options.figures:
        from theory.show.figures import write_figures

        write_figures(report, options.figures)
    _hand_over(options, report, render.print_report)
    return report.exit_code


def _fit(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    result = api.fit(options.file, options.law, **_law(options), **_input(options))
    _hand_over(options, result, render.print_fit, digits=None)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    made = api.predict(options.fit, options.file, interval=options.interval, **_input(options))
    _hand_over(options, made, render.print_prediction, digits=None)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    made = api.compare(
        options.file,
        by=options.by,
        quantities=options.quantity,
        cells=options.cell,
        seed=options.seed,
        **_input(options),
    )
    _hand_over(options, made, render.print_comparison)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from theory import api
    from theory.design.plan import claims_of
    from theory.show import render

    if not claims_of(options.rank, options.samples, options.steps, options.tokens, options.bytes):
        raise InputError("plan: give --rank and --samples, --steps, --tokens, or --bytes")
    with render.console().status("") as status:
        outcome = api.plan(
            rank=options.rank,
            samples=options.samples,
            steps=options.steps,
            tokens=options.tokens,
            weight_bytes=options.bytes,
            seeds=options.seeds,
            noise=options.noise,
            loss_noise=options.loss_noise,
            rates=options.rates,
            dimension=options.dimension,
            replications=options.replications,
            cost=options.cost,
            progress=status.update,
            workers=None,
        )
    _hand_over(options, outcome, render.print_plan)
    return 0


def _advise(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    advice = api.advise(options.file, samples=options.samples, max_rank=options.max_rank, **_input(options))
    _hand_over(options, advice, render.print_advice)
    return 0


def _next(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    with render.console().status("") as status:
        outcome = api.next(
            options.file,
            claim=options.claim,
            budget=options.budget,
            cost=options.cost,
            margin=options.margin,
            rank=options.rank,
            samples=options.samples,
            steps=options.steps,
            seeds=options.seeds,
            noise=options.noise,
            dimension=options.dimension,
            simulations=options.simulations,
            progress=status.update,
            **_input(options),
        )
    _hand_over(options, outcome, render.print_next)
    return 0


def _choose(options: argparse.Namespace) -> int:
    from theory import api
    from theory.show import render

    with render.console().status("") as status:
        choice = api.choose(
            options.file,
            options.law,
            target=options.target,
            cost=options.cost,
            budget=options.budget,
            at=options.at,
            signed=options.signed,
            progress=status.update,
            **_input(options),
        )
    _hand_over(options, choice, render.print_choice, digits=None)
    return 0


def _plant(options: argparse.Namespace) -> int:
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: must be at least 0")
    import numpy as np

    from theory.planted.cases import planted_case
    from theory.report import write_text

    case = planted_case(options.claim, wrong=options.wrong)
    frame = case.draw(np.random.default_rng(options.seed))
    write_text(options.out, frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    (verdict,) = case.expected or ("",)
    print(f"{options.out}: {len(frame)} rows, planted: {case.name}; {case.claim} should be {verdict}")
    return 0


def _validate(options: argparse.Namespace) -> int:
    if options.quick and options.replications:
        raise InputError("validate: --quick and --replications exclude each other")
    from theory.planted.validate import validate
    from theory.show import render

    replications = options.replications or (QUICK_REPLICATIONS if options.quick else FULL_REPLICATIONS)
    with render.console().status("") as status:
        outcome = validate(replications, status.update)
    _hand_over(options, outcome, render.print_validation)
    return 0 if options.quick or all(r.met for r in outcome.requirements) else 1


def _hand_over(
    options: argparse.Namespace, outcome: Any, show: Callable[[Any, Any], None], digits: int | None = 6
) -> None:
    """The outcome of a command for a reader, and as JSON where --json asks for it: `--json -` prints the JSON alone."""
    if options.json:
        from theory.report import to_json, write_text

        text = to_json(outcome.to_dict(), digits)
        if options.json == "-":
            sys.stdout.write(text)
            return
        write_text(options.json, text)
    from theory.show.render import console

    show(outcome, console())


if __name__ == "__main__":
    sys.exit(main())
