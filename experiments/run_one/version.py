"""The code version of the method: a hash of the program text that can change a run's numbers.

It covers the modules that the pipeline imports, directly or through others, without comments and docstrings: editing
a sentence or the export does not invalidate a study, editing a loss does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

from experiments.common.paths import ROOT

ENTRY = "experiments.run_one.pipeline"
PACKAGES = ("lrc_jax", "experiments")
# Storage and schema: they carry numbers, they do not make them.
NOT_METHOD = (
    "experiments.common.files",
    "experiments.sweep.store",
    "experiments.run_one.config",
    "experiments.run_one.version",
)


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def _without_docstrings(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:]  # type: ignore[attr-defined]
    return _dump(tree)


def _dump(node: Any) -> str:
    """A syntax tree as text that is the same in every Python we support (`ast.dump` is not: new versions add fields,
    or leave empty ones out)."""
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (f"{name}={_dump(value)}" for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"{type(node).__name__}({', '.join(fields)})"


def method_modules() -> dict[str, str]:
    """Module name -> its text as a syntax tree without docstrings, for every module that makes numbers."""
    todo, seen = [ENTRY], {}
    while todo:
        module = todo.pop()
        path = _file(module)
        if module in seen or module in NOT_METHOD or path is None:
            continue
        tree = ast.parse(path.read_text())
        todo += sorted(_imports(tree))
        seen[module] = _without_docstrings(tree)
    return seen


@functools.cache
def code_version() -> str:
    """16 hexadecimal digits."""
    modules = method_modules()
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\n{modules[name]}\n".encode())
    return digest.hexdigest()[:16]
