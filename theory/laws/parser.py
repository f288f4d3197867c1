"""Laws written as text, parsed safely, with exact derivatives.

    law = parse_law("E + A*params**-alpha + B*tokens**-beta", columns={"params", "tokens"})

The text is read with `ast` and only +, -, *, /, **, parentheses, numbers, names, log and exp are accepted; nothing
is ever evaluated as Python. Names that are columns of the table are data, every other name is a parameter. The
value and its derivatives by every parameter come from one forward pass over the tree (forward-mode
differentiation), for many parameter vectors at once.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_LENGTH = 2000
MAX_DEPTH = 60
FUNCTIONS = ("log", "exp")


class LawError(ValueError):
    """The text is not a law; the message is one line that says what to change."""


class Dual(NamedTuple):
    """A value [B, n] (broadcastable) and its non-zero derivatives by parameter index."""

    value: np.ndarray
    slopes: dict[int, np.ndarray]


@dataclass(frozen=True)
class Law:
    """A parsed law.

    Attributes:
        text: as written.
        parameters: names that are not columns, in order of appearance.
        columns: column names used, in order of appearance.
        exponents: the parameters that occur inside an exponent, an exp or a log (the non-linear ones).
    """

    text: str
    parameters: tuple[str, ...]
    columns: tuple[str, ...]
    exponents: frozenset[str]
    tree: ast.expr

    def evaluate(self, theta: np.ndarray, data: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Values [B, n] and derivatives [B, n, p] for parameter vectors theta [B, p].

        Overflow gives infinities, never an exception; the optimiser rejects such steps.
        """
        batch, n = theta.shape[0], len(next(iter(data.values()))) if data else 1
        with np.errstate(all="ignore"):
            dual = self._walk(self.tree, theta, data)
        value = np.broadcast_to(dual.value, (batch, n))
        slopes = np.zeros((batch, n, len(self.parameters)))
        for index, slope in dual.slopes.items():
            slopes[:, :, index] = slope
        return value, slopes

    def value(self, theta: np.ndarray, data: Mapping[str, np.ndarray]) -> np.ndarray:
        """Values [n] at one parameter vector [p]."""
        return self.evaluate(theta[None, :], data)[0][0]

    def _walk(self, node: ast.expr, theta: np.ndarray, data: Mapping[str, np.ndarray]) -> Dual:
        if isinstance(node, ast.Constant):
            return Dual(np.array([[float(node.value)]]), {})  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            if node.id in data:
                return Dual(data[node.id][None, :], {})
            index = self.parameters.index(node.id)
            return Dual(theta[:, index, None], {index: np.ones((1, 1))})
        if isinstance(node, ast.UnaryOp):
            inner = self._walk(node.operand, theta, data)
            if isinstance(node.op, ast.UAdd):
                return inner
            return Dual(-inner.value, {k: -s for k, s in inner.slopes.items()})
        if isinstance(node, ast.Call):
            inner = self._walk(node.args[0], theta, data)
            if node.func.id == "exp":  # type: ignore[attr-defined]
                value = np.exp(inner.value)
                return Dual(value, {k: value * s for k, s in inner.slopes.items()})
            return Dual(np.log(inner.value), {k: s / inner.value for k, s in inner.slopes.items()})
        assert isinstance(node, ast.BinOp)
        return _binary(node.op, self._walk(node.left, theta, data), self._walk(node.right, theta, data))


def _binary(operator: ast.operator, left: Dual, right: Dual) -> Dual:
    x, y = left.value, right.value
    if isinstance(operator, ast.Add):
        return Dual(x + y, _add(left.slopes, right.slopes))
    if isinstance(operator, ast.Sub):
        return Dual(x - y, _add(left.slopes, {k: -s for k, s in right.slopes.items()}))
    if isinstance(operator, ast.Mult):
        return Dual(
            x * y, _add({k: s * y for k, s in left.slopes.items()}, {k: x * s for k, s in right.slopes.items()})
        )
    if isinstance(operator, ast.Div):
        value = x / y
        return Dual(
            value,
            _add({k: s / y for k, s in left.slopes.items()}, {k: -value / y * s for k, s in right.slopes.items()}),
        )
    value = x**y
    base = {k: y * x ** (y - 1.0) * s for k, s in left.slopes.items()}
    exponent = {k: value * np.log(x) * s for k, s in right.slopes.items()} if right.slopes else {}
    return Dual(value, _add(base, exponent))


def _add(left: dict[int, np.ndarray], right: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    total = dict(left)
    for key, slope in right.items():
        total[key] = total[key] + slope if key in total else slope
    return total


def parse_law(text: str, columns: Collection[str]) -> Law:
    """Parse a law against the columns of a table.

    Args:

    Raises:
        LawError: anything outside the grammar, no parameter, or no column.
    """
    if len(text) > MAX_LENGTH:
        raise LawError(f"the law is longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LawError(f"law {text!r}: not an expression; write for example 'E + A*samples**-alpha'") from None
    names: dict[str, None] = {}
    exponents: set[str] = set()
    _check(tree, text, names, exponents, inside=False, depth=0)
    parameters = tuple(n for n in names if n not in columns)
    used = tuple(n for n in names if n in columns)
    if not parameters:
        raise LawError(f"law {text!r}: no parameter; every name in it is a column")
    if not used:
        raise LawError(f"law {text!r}: no column of the table occurs in it; columns are {', '.join(sorted(columns))}")
    return Law(text, parameters, used, frozenset(exponents) - set(columns), tree)


def _check(node: ast.AST, text: str, names: dict[str, None], exponents: set[str], inside: bool, depth: int) -> None:
    def refuse(what: str) -> LawError:
        return LawError(f"law {text!r}: {what} is not allowed; use + - * / ** ( ) log exp, numbers and names")

    if depth > MAX_DEPTH:
        raise refuse(f"nesting deeper than {MAX_DEPTH}")
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            raise refuse(repr(node.value))
        if not np.isfinite(float(node.value) if abs(node.value) < 1e300 else np.inf):
            raise refuse("a number this large")
    elif isinstance(node, ast.Name):
        if node.id in FUNCTIONS:
            raise refuse(f"{node.id} without an argument")
        names.setdefault(node.id)
        if inside:
            exponents.add(node.id)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        _check(node.operand, text, names, exponents, inside, depth + 1)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
        _check(node.left, text, names, exponents, inside, depth + 1)
        _check(node.right, text, names, exponents, inside or isinstance(node.op, ast.Pow), depth + 1)
    elif isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
            raise refuse(f"the call {ast.unparse(node)[:40]!r}")
        if len(node.args) != 1 or node.keywords:
            raise refuse(f"{node.func.id} with other than one argument")
        _check(node.args[0], text, names, exponents, True, depth + 1)
    else:
        raise refuse(f"{ast.unparse(node)[:40]!r}" if isinstance(node, ast.expr) else type(node).__name__)
