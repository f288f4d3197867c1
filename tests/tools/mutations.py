"""Small wrong changes to Python source: the mutants that `mutants.py` runs.

A change replaces a few characters, so that all the rest of the file stays as it was written. Left alone are decorators,
annotations, `__all__`, blocks for type checkers and f-strings (the text of messages).
"""

from __future__ import annotations

import ast
import re
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

OPERATORS: dict[type[ast.AST], list[tuple[str, str]]] = {
    ast.Lt: [("<", "<="), ("<", ">")],
    ast.LtE: [("<=", "<"), ("<=", ">=")],
    ast.Gt: [(">", ">="), (">", "<")],
    ast.GtE: [(">=", ">"), (">=", "<=")],
    ast.Eq: [("==", "!=")],
    ast.NotEq: [("!=", "==")],
    ast.Is: [("is", "is not")],
    ast.IsNot: [("is not", "is")],
    ast.In: [("in", "not in")],
    ast.NotIn: [("not in", "in")],
    ast.And: [("and", "or")],
    ast.Or: [("or", "and")],
    ast.Add: [("+", "-")],
    ast.Sub: [("-", "+")],
    ast.Mult: [("*", "/")],
    ast.Div: [("/", "*")],
    ast.Pow: [("**", "*")],
    ast.FloorDiv: [("//", "*")],
    ast.Mod: [("%", "*")],
    ast.BitAnd: [("&", "|")],
    ast.BitOr: [("|", "&")],
}
_PAIRS = [("min", "max"), ("any", "all"), ("minimum", "maximum"), ("nanmin", "nanmax"), ("argmin", "argmax")]
_PAIRS += [("floor", "ceil"), ("mean", "median")]
NAMES = dict(_PAIRS) | {b: a for a, b in _PAIRS}
ATTRIBUTES = NAMES | {"low": "high", "high": "low"}  # the ends of an interval
#: The words of verdicts, each with a wrong one.
WORDS = {
    "REFUTED": "LOOSE",
    "LOOSE": "CONSISTENT",
    "CONSISTENT": "INCONCLUSIVE",
    "INCONCLUSIVE": "UNTESTABLE",
    "UNTESTABLE": "INCONCLUSIVE",
    "HOLDS": "VIOLATED",
    "VIOLATED": "HOLDS",
    "VACUOUS": "HOLDS",
    "NOT_EVALUATED": "VACUOUS",
}
LEFT_ALONE = {"decorator_list", "annotation", "returns"}
BLOCKS = {"body", "orelse", "finalbody", "handlers", "cases"}


@dataclass(frozen=True)
class Mutant:
    """One changed file.

    Attributes:
        path: The file, relative to the root.
        line: The first line that changes.
        change: Old and new characters.
        old: The lines that change, as they were.
        new: The lines that change, as they are now.
        statement: The lines whose run means that a test reaches the change; empty if they are run at import.
        source: The whole file after the change.
    """

    path: str
    line: int
    change: str
    old: str
    new: str
    statement: range
    source: str


@dataclass(frozen=True)
class Edit:
    """Put `text` in place of the bytes from `start` to `end`."""

    start: int
    end: int
    text: str


class Module:
    """A file and the changes that can be made to it.

    Args:
        path: Where it is, relative to the root.
        source: Its text.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.bytes = source.encode()
        self.tree = ast.parse(source)
        self.code = _essence(compile(source, path, "exec"))
        self.starts = [0]  # the first byte of every line: ast counts columns in bytes
        for line in self.bytes.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def edits(self) -> list[tuple[Edit, range]]:
        """Every change, with the lines of the statement that it stands in."""
        sites = _sites(self.tree, range(0), False)
        return [(edit, lines) for node, lines in sites for edit in self._at(node)]

    def where(self, edit: Edit) -> str:
        """`file:line` of the first line that an edit changes."""
        return f"{self.path}:{self._line(edit.start)}"

    def mutant(self, edit: Edit, statement: range) -> Mutant | None:
        """The changed file, or None where Python makes the same of it as before (or nothing at all)."""
        changed = self.bytes[: edit.start] + edit.text.encode() + self.bytes[edit.end :]
        try:
            with warnings.catch_warnings(action="ignore"):
                if _essence(compile(changed, self.path, "exec")) == self.code:
                    return None
        except SyntaxError:
            return None
        line, last = self._line(edit.start), self._line(edit.end)
        before = self.bytes[self.starts[line - 1] : self.starts[last]].decode()
        after = changed[self.starts[line - 1] : len(changed) - len(self.bytes) + self.starts[last]].decode()
        change = f"{_short(self.bytes[edit.start : edit.end].decode())} -> {_short(edit.text) or 'nothing'}"
        return Mutant(self.path, line, change, before.rstrip(), after.rstrip(), statement, changed.decode())

    def _line(self, place: int) -> int:
        return self.bytes.count(b"\n", 0, place) + 1

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _replace(self, node: ast.AST, text: str) -> Edit:
        return Edit(*self._span(node), text)

    def _between(self, left: ast.AST, operator: ast.AST, right: ast.AST, suffix: str = "") -> Iterator[Edit]:
        """Other operators between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        text = re.sub(rb"#.*", lambda comment: b" " * len(comment[0]), self.bytes[start:end])
        for old, new in OPERATORS.get(type(operator), []):
            pattern = re.escape(old + suffix).replace(r"\ ", r"\s+")
            if found := re.search(pattern.encode(), text):
                yield Edit(start + found.start(), start + found.end(), new + suffix)

    def _at(self, node: ast.AST) -> Iterator[Edit]:
        """The changes at one node."""
        match node:
            case ast.Compare():
                for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                    yield from self._between(left, operator, right)
            case ast.BoolOp():
                for left, right in pairwise(node.values):
                    yield from self._between(left, node.op, right)
            case ast.BinOp():
                yield from self._between(node.left, node.op, node.right)
            case ast.AugAssign():
                yield from self._between(node.target, node.op, node.value, "=")
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                start = self._span(node)[0]
                yield Edit(start, start + (3 if isinstance(node.op, ast.Not) else 1), "")
            case ast.Constant(value=bool() | int() | float() as value):
                yield from (self._replace(node, repr(other)) for other in _others(value))
            case ast.Constant(value=str()) if node.value in WORDS:
                yield self._replace(node, repr(WORDS[node.value]))
            case ast.Name(ctx=ast.Load()) if node.id in NAMES:
                yield self._replace(node, NAMES[node.id])
            case ast.Name(ctx=ast.Load()) if node.id in WORDS:
                yield self._replace(node, repr(WORDS[node.id]))  # the module may not have the other name
            case ast.Attribute(ctx=ast.Load()) if other := (ATTRIBUTES | WORDS).get(node.attr):
                end = self._span(node)[1]
                yield Edit(end - len(node.attr), end, other)
            case ast.keyword(arg="key"):
                yield self._replace(node.value, "None")
            case ast.If() | ast.IfExp():
                yield from (self._replace(node.test, word) for word in ("True", "False"))
            case ast.While():
                yield self._replace(node.test, "False")
            case ast.comprehension():
                yield from (self._replace(test, "True") for test in node.ifs)
            case ast.Return(value=ast.expr() as value):
                yield self._replace(value, "None")
            case ast.Expr(value=ast.Call()) | ast.Raise():
                yield self._replace(node, "pass")
            case ast.Continue():
                yield self._replace(node, "break")


def _sites(node: ast.AST, lines: range, in_function: bool) -> Iterator[tuple[ast.AST, range]]:
    """The node and those below it that may change, each with the lines of its statement."""
    match node:
        case ast.JoinedStr() | ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return
        case ast.If(test=ast.Compare(left=ast.Name("__name__"))) | ast.Assign(targets=[ast.Name("__all__")]):
            return
        case ast.keyword(arg="strict"):
            return
        case ast.stmt() if in_function:
            lines = _lines(node)
    yield node, lines
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for name, value in ast.iter_fields(node):
        if name not in LEFT_ALONE:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _sites(child, lines, inside if name in BLOCKS else in_function)


def _lines(statement: ast.stmt) -> range:
    """The lines of a statement; of one with a block, those before the block."""
    body = getattr(statement, "body", None)
    end = body[0].lineno if isinstance(body, list) else (statement.end_lineno or statement.lineno) + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _others(value: bool | int | float) -> list[bool | int | float]:
    """Wrong numbers near the right one: a threshold needs a test on both sides."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if value == 0:
        return [1.0]
    if abs(value) <= 1e-3:
        return [_round(value * 1000)]  # a tolerance: nobody minds one that is twice as large
    return [value * 2, _round(value - 0.05 if 0.5 <= value < 1 else value * 0.9)]


def _round(value: float) -> float:
    return float(f"{value:.12g}")


def _essence(code: types.CodeType) -> tuple[object, ...]:
    """What a code object does, without where it stands."""
    constants = [_essence(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 50 else text[:47] + "..."
