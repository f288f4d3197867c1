"""Command line of the judge: `python -m theory COMMAND`.

Exit codes: 0 done, 1 (`check` only) something is REFUTED or VIOLATED, 2 the input cannot be used. Every error is one
line on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from theory.check import check_file
from theory.ledger import all_claims
from theory.render import console, print_claims, print_report
from theory.report import to_json, write_text
from theory.tables import InputError
from theory.verdicts import MARGIN


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
    except OSError as error:
        print(f"{error.filename}: cannot be written ({error.strerror}); choose another path", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m theory",
        description="Judge scaling-law claims about low-rank distillation on a table of measurements.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    claims = commands.add_parser("claims", help="print the ledger of claims")
    claims.set_defaults(run=_claims)

    check = commands.add_parser(
        "check",
        help="judge a table",
        description="Judge the claims whose columns are present. Exit code 1 if anything is REFUTED or VIOLATED.",
    )
    _add_input(check)
    check.add_argument("--claim", nargs="+", action="extend", default=[], metavar="NAME", help="only these claims")
    check.add_argument("--margin", type=float, default=MARGIN, help="margin on exponents (default %(default)s)")
    check.add_argument("--json", metavar="OUT", help="write the verdicts as JSON")
    check.set_defaults(run=_check)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE|FOLDER", help="CSV or parquet, or a study folder with measurements.csv")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="use only these rows (repeatable)"
    )


def _claims(_: argparse.Namespace) -> int:
    print_claims(all_claims().values(), console())
    return 0


def _check(options: argparse.Namespace) -> int:
    report = check_file(options.file, claims=options.claim, margin=options.margin, where=options.where)
    if options.json:
        write_text(options.json, to_json(report.to_dict()))
    print_report(report, console())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
