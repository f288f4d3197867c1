"""Laws written as text, parsed safely, with exact derivatives.

    law = parse_law("E + A*params**-alpha + B*`Model Size`^-beta", columns={"params", "Model Size"})

The text is read with `ast` and only + - * / ** ^, parentheses, numbers, names, log, exp, sqrt, min and max are
accepted; nothing is ever evaluated as Python. Names that are columns of the table are data, every other name is a
parameter. A column whose name is no plain name is written in backticks. The value and its derivatives by every
parameter come from one forward pass (forward-mode differentiation), for many parameter vectors at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

MAX_LENGTH = 10_000
LONGEST_SHOWN = 60  # of a text that is longer
MAX_DEPTH = 60
#: Functions and whether they take two or more arguments instead of one.
FUNCTIONS = {"log": False, "exp": False, "sqrt": False, "min": True, "max": True}
GRAMMAR = "+ - * / ** ^ ( ) log exp sqrt min max, numbers and names, column names in backticks"
#: Names this short differ by one edit from too much: for them only the case may be mistaken.
SHORT = 4

_TOKEN = re.compile(
    r"`(?P<quoted>[^`]*)`|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<power>\^)"
)
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


class LawError(ValueError):
    """The text is not a law; the message is one line that says what to change.

    Attributes:
        rest: the message without the text of the law.
    """

    def __init__(self, text: str, rest: str) -> None:
        super().__init__(f"law {text!r}: {rest}")
        self.rest = rest


class Dual(NamedTuple):
    """A value [B, n] (broadcastable) and its non-zero derivatives by parameter index."""

    value: np.ndarray
    slopes: dict[int, np.ndarray]


class Step(NamedTuple):
    """One instruction on a stack: a number, a column, a parameter (by index), a function or an operator."""

    kind: str
    what: float | str | int
    arguments: int = 0


@dataclass(frozen=True)
class Law:
    """A parsed law.

    Attributes:
        text: as written.
        parameters: names that are not columns, in order of appearance.
        columns: column names used, in order of appearance.
        exponents: the parameters that occur inside an exponent, an exp or a log.
        steps: the law in postfix order.
    """

    text: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    exponents: frozenset[str]
    steps: tuple[Step, ...]

    def evaluate(self, theta: np.ndarray, data: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Values [B, n] and derivatives [B, n, p] for parameter vectors theta [B, p].

        Overflow gives infinities, never an exception; the optimiser rejects such steps.
        """
        batch, n = theta.shape[0], len(next(iter(data.values()))) if data else 1
        index = {name: k for k, name in enumerate(self.parameters)}

        def leaf(kind: str, what: float | str) -> Dual:
            if kind == "number":
                return Dual(np.array([[what]], dtype=np.float64), {})
            if kind == "column":
                return Dual(data[str(what)][None, :], {})
            k = index[str(what)]
            return Dual(theta[:, k, None], {k: np.ones((1, 1))})

        with np.errstate(all="ignore"):
            whole = self.fold(leaf, _apply)
        value = np.broadcast_to(whole.value, (batch, n))
        slopes = np.zeros((batch, n, len(self.parameters)))
        for k, slope in whole.slopes.items():
            slopes[:, :, k] = slope
        return value, slopes

    def fold(self, leaf: Callable[[str, float | str], T], join: Callable[[str, list[T]], T]) -> T:
        """What becomes of the law when its leaves and then its operations are replaced, from the inside out.

        Args:
            leaf: of a kind (number, column, parameter) and the number or name.
            join: of an operator's or function's name and what its arguments became.
        """
        stack: list[T] = []
        for kind, what, arguments in self.steps:
            if kind == "apply":
                taken = stack[-arguments:]
                del stack[-arguments:]
                stack.append(join(str(what), taken))
            else:
                name = self.parameters[int(what)] if kind == "parameter" else what
                stack.append(leaf(kind, name))
        return stack[0]

    def value(self, theta: np.ndarray, data: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values [n] at one parameter vector [p]."""
        return self.evaluate(theta[None, :], data)[0][0]


def _apply(what: str, taken: list[Dual]) -> Dual:
    """The value and slopes of one operator or function of its arguments."""
    if what in ("min", "max"):
        best = taken[0]
        for other in taken[1:]:
            first = best.value <= other.value if what == "min" else best.value >= other.value
            keys = best.slopes.keys() | other.slopes.keys()
            value = np.minimum(best.value, other.value) if what == "min" else np.maximum(best.value, other.value)
            slopes = {k: np.where(first, best.slopes.get(k, 0.0), other.slopes.get(k, 0.0)) for k in keys}
            best = Dual(value, slopes)
        return best
    left = taken[0]
    x = left.value
    if len(taken) == 1:
        if what == "-":
            return Dual(-x, {k: -s for k, s in left.slopes.items()})
        if what == "exp":
            value = np.exp(x)
            return Dual(value, {k: value * s for k, s in left.slopes.items()})
        if what == "sqrt":
            value = np.sqrt(x)
            return Dual(value, {k: _times(0.5 / value, s) for k, s in left.slopes.items()})
        return Dual(np.log(x), {k: s / x for k, s in left.slopes.items()})
    right = taken[1]
    y = right.value
    if what == "+":
        return Dual(x + y, _add(left.slopes, right.slopes))
    if what == "-":
        return Dual(x - y, _add(left.slopes, {k: -s for k, s in right.slopes.items()}))
    if what == "*":
        return Dual(
            x * y, _add({k: s * y for k, s in left.slopes.items()}, {k: x * s for k, s in right.slopes.items()})
        )
    if what == "/":
        value = x / y
        down = {k: -value / y * s for k, s in right.slopes.items()}
        return Dual(value, _add({k: s / y for k, s in left.slopes.items()}, down))
    value = x**y
    base = {k: _times(y * x ** (y - 1.0), s) for k, s in left.slopes.items()}
    # 0**c is 0 for every c > 0: its slope by c is 0, not 0 * log 0.
    log = np.where((x == 0) & (y > 0), 0.0, np.log(x)) if right.slopes else x
    return Dual(value, _add(base, {k: value * log * s for k, s in right.slopes.items()}))


def apply_to(what: str, values: Sequence[np.ndarray]) -> np.ndarray:
    """The value of one operator or function of numbers."""
    with np.errstate(all="ignore"):
        return _apply(what, [Dual(value, {}) for value in values]).value


def _times(outer: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """outer * slope, zero where nothing moves: an infinite slope of 0**c matters only where its base depends on a
    parameter."""
    return np.where(slope == 0, 0.0, outer * slope)


def _add(left: dict[int, np.ndarray], right: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    total = dict(left)
    for key, slope in right.items():
        total[key] = total[key] + slope if key in total else slope
    return total


def parse_formula(text: str, names: Collection[str], kind: str = "column") -> Law:
    """Parse a formula of known names alone, such as "6*params*tokens" or "5": a law without parameters.

    Args:
        text: the formula. names: that may occur in it, the law's columns. kind: what they are, for errors.

    Raises:
        LawError: it is no formula, or uses another name.
    """
    read = _read(text, names)
    for name in read.names:
        if name not in names:
            meant = _meant(name, names, read.names)
            said = "" if meant is None else f"; {meant!r} is one, write {written(meant)}"
            raise LawError(read.text, f"{name} is no {kind}{said}")
    return _law(read, names)


def parse_law(text: str, columns: Collection[str], *, target: str | None = None, constant: Collection[str] = ()) -> Law:
    """Parse a law against the columns of a table.

    A name that is no column is a parameter, unless a column was probably meant. It is refused where

    * the text spells the name of a column that is no plain name (`a/b`, `Model Size`) and is not in backticks;
    * it equals a column up to case, blanks, `_` and `-`, and the law does not use that column itself
      (a law of N may have a parameter n);
    * it has at least four characters and is one edit from a column. An edit of a digit does not count
      (`beta` beside `beta1`).

    Args:
        text: the law.
        columns: names of the table's columns.
        target: the column that is explained; it may not occur in the law.
        constant: columns that take one value; nobody means them by a similar name.

    Raises:
        LawError: anything outside the grammar, no parameter, no column, or a name as above.
    """
    read = _read(text, columns)
    for name in read.names:
        if name == target:
            raise LawError(read.text, f"{name} is the target itself; a law explains it by other columns")
        if name in read.quoted and name not in columns:
            raise LawError(read.text, f"`{name}`: no such column; columns are {', '.join(sorted(columns))}")
    law = _law(read, columns)
    for name in law.parameters:
        meant = _meant(name, [c for c in columns if c not in constant], law.columns)
        if meant is not None:
            raise LawError(
                read.text,
                f"{name} is no column, but there is a column {meant!r}: write {written(meant)} for the column, or "
                "give the parameter a name that is less like it",
            )
    if not law.parameters:
        raise LawError(read.text, "no parameter; every name in it is a column")
    if not law.columns:
        raise LawError(read.text, f"no column of the table occurs in it; columns are {', '.join(sorted(columns))}")
    return law


class _Read(NamedTuple):
    """A text in the grammar: its names in order of appearance, those that were in backticks, those inside an exponent,
    and its steps in postfix order."""

    text: str
    names: list[str]
    quoted: set[str]
    exponents: set[str]
    steps: list[Step]


def _read(text: str, columns: Collection[str]) -> _Read:
    if len(text) > MAX_LENGTH:
        raise LawError(text[:LONGEST_SHOWN] + "...", f"it is longer than {MAX_LENGTH} characters")
    _refuse_spelled(text, columns)
    names: list[str] = []
    quoted: set[str] = set()

    def stand_in(found: re.Match[str]) -> str:
        if found["number"]:
            return found["number"]
        if found["power"]:
            return "**"
        name = found["name"] if found["quoted"] is None else found["quoted"]
        if found["quoted"] is not None:
            quoted.add(name)
        elif name in FUNCTIONS:
            return f" {name} "
        if name not in names:
            names.append(name)
        return f" v{names.index(name)} "  # the blanks keep it apart from a number before it

    text = " ".join(text.split())
    foreign = re.search(r"[^-+*/(),\s]", _TOKEN.sub("", text))
    if foreign:
        raise LawError(text, f"{foreign[0]!r} is not allowed; use {GRAMMAR}")
    try:
        tree = ast.parse(_TOKEN.sub(stand_in, text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LawError(text, "not an expression; write for example 'E + A*samples**-alpha'") from None
    read = _Read(text, names, quoted, set(), [])
    _compile(tree, read, inside=False, depth=0)
    return read


def _law(read: _Read, columns: Collection[str]) -> Law:
    """Names are columns, or else parameters."""
    used = tuple(n for n in read.names if n in columns)
    parameters = tuple(n for n in read.names if n not in columns)
    index = {name: Step("column", name) for name in used}
    index |= {name: Step("parameter", k) for k, name in enumerate(parameters)}
    resolved = tuple(index[str(s.what)] if s.kind == "name" else s for s in read.steps)
    return Law(read.text, parameters, used, frozenset(read.exponents) - set(columns), resolved)


def _compile(node: ast.AST, out: _Read, inside: bool, depth: int) -> None:
    """Append a tree in postfix order. Chains such as a + b + c nest on the left only, and are followed in a loop."""

    def refuse(what: str) -> LawError:
        return LawError(out.text, f"{what} is not allowed; use {GRAMMAR}")

    def shown(tree: ast.AST) -> str:
        known = dict(enumerate(out.names))
        return re.sub(r"\bv(\d+)\b", lambda m: known.get(int(m[1]), m[0]), ast.unparse(tree))[:40]

    if depth > MAX_DEPTH:
        raise refuse(f"nesting deeper than {MAX_DEPTH}")
    chain: list[tuple[str, ast.expr]] = []
    while isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not isinstance(node.op, ast.Pow):
        chain.append((_OPERATORS[type(node.op)], node.right))
        node = node.left
    if isinstance(node, ast.Constant):
        number = node.value
        assert isinstance(number, (int, float))  # no quotes and no letters but stand-ins reach here
        if not abs(number) < 1e300:
            raise refuse("a number this large")
        out.steps.append(Step("number", float(number)))
    elif isinstance(node, ast.Name):
        if node.id in FUNCTIONS:
            raise refuse(f"{node.id} without an argument")
        name = out.names[int(node.id[1:])]
        out.steps.append(Step("name", name))
        if inside:
            out.exponents.add(name)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        _compile(node.operand, out, inside, depth + 1)
        if isinstance(node.op, ast.USub):
            out.steps.append(Step("apply", "-", 1))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        _compile(node.left, out, inside, depth + 1)
        _compile(node.right, out, True, depth + 1)
        out.steps.append(Step("apply", "**", 2))
    elif isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
            raise refuse(f"the call {shown(node)!r}")
        several = FUNCTIONS[node.func.id]
        if node.keywords or len(node.args) < 2 if several else len(node.args) != 1 or node.keywords:
            raise refuse(f"{node.func.id} with {'fewer than two arguments' if several else 'other than one argument'}")
        for argument in node.args:
            _compile(argument, out, inside or node.func.id in ("log", "exp"), depth + 1)
        out.steps.append(Step("apply", node.func.id, len(node.args)))
    else:
        raise refuse(repr(shown(node)))
    for operator, operand in reversed(chain):
        _compile(operand, out, inside, depth + 1)
        out.steps.append(Step("apply", operator, 2))


def is_plain(column: str) -> bool:
    """Can the column be written in a law as it is?"""
    return re.fullmatch(r"[^\W\d]\w*", column) is not None and column not in FUNCTIONS


def written(column: str) -> str:
    """The column as a law writes it."""
    return column if is_plain(column) else f"`{column}`"


def _refuse_spelled(text: str, columns: Collection[str]) -> None:
    """Refuse text that spells the name of a column which has to be in backticks.

    Not where every name in it is a column too: x/y of the columns x and y means their ratio.
    """
    bare = re.sub(r"`[^`]*`", "`", text)
    for column in sorted(columns, key=len, reverse=True):
        pieces = re.findall(r"\w+|[^\w\s]", column)
        names = [p for p in pieces if is_plain(p)]
        if is_plain(column) or not names or (all(n in columns for n in names) and len(pieces) > len(names)):
            continue
        pattern = r"\s*".join(re.escape(p) for p in pieces)
        if re.search(rf"(?<!\w){pattern}(?!\w)" if pieces[-1][-1].isalnum() else rf"(?<!\w){pattern}", bare):
            raise LawError(
                text,
                f"{column!r} is one column of the table; write `{column}` in backticks (if you mean other things, "
                "rename the parameters in it)",
            )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _meant(name: str, columns: Collection[str], used: Collection[str]) -> str | None:
    """The column that was probably meant by a name that is none (rule in `parse_law`)."""
    for column in columns:
        if _plain(column) == _plain(name) and column not in used:
            return column
    for column in columns:
        if min(len(name), len(column)) >= SHORT and _one_edit(_plain(name), _plain(column)):
            return column
    return None


def _one_edit(a: str, b: str) -> bool:
    """One character changed, added, removed, or two neighbours swapped; digits do not count."""
    if len(a) > len(b):
        a, b = b, a
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) + 1 == len(b):
        return a[start:] == b[start + 1 :] and not b[start].isdigit()
    if len(a) != len(b) or start == len(a):
        return False
    if a[start + 1 :] == b[start + 1 :]:
        return not (a[start].isdigit() or b[start].isdigit())
    return a[start : start + 2] == b[start : start + 2][::-1] and a[start + 2 :] == b[start + 2 :]
