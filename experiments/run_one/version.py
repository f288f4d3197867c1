"""The code version of the method: a hash of the program text that can change a run's numbers.

METHOD declares the modules that make numbers, CARRIERS those that the former use and that only carry them. Comments and
docstrings do not count. So editing a sentence, a progress bar or the export leaves a study as it is, and editing a loss
does not. A test holds the declaration complete: whatever the pipeline reaches is in one of the two lists.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path
from typing import Any

from experiments.common.paths import ROOT

PACKAGES = ("lrc_jax", "experiments")
# Where a run is trained: by itself, or together with others.
ENTRIES = ("experiments.run_one.pipeline", "lrc_jax.training.together")
# Modules and packages (with all that is in them) that make numbers.
METHOD = (
    "experiments.run_one.columns",
    "experiments.run_one.pipeline",
    "experiments.run_one.run",
    "experiments.run_one.setup",
    "lrc_jax.clone",
    "lrc_jax.compute",
    "lrc_jax.data",
    "lrc_jax.inference.cloze",
    "lrc_jax.inference.decode",
    "lrc_jax.inference.evaluate",
    "lrc_jax.inference.score",
    "lrc_jax.losses",
    "lrc_jax.measure",
    "lrc_jax.model",
    "lrc_jax.objective",
    "lrc_jax.recipes",
    "lrc_jax.seeds",
    "lrc_jax.students",
    "lrc_jax.teachers",
    "lrc_jax.training.activation_cache",
    "lrc_jax.training.together",
    "lrc_jax.training.train",
)
# Storage, schema, clocks and progress.
CARRIERS = (
    "experiments.common",
    "experiments.run_one.cache",
    "experiments.run_one.config",
    "experiments.run_one.tensorboard",
    "experiments.run_one.version",
    "lrc_jax.clock",
    "lrc_jax.errors",
    "lrc_jax.owners",
    "lrc_jax.sealed",
)
FACE = "lrc_jax"  # the package's own file: names for users


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


def _is_in(module: str, declared: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in declared)


def _members(name: str) -> list[tuple[str, Path]]:
    """A module, or every module of a package, with its file."""
    folder = ROOT.joinpath(*name.split("."))
    if not folder.is_dir():
        return [(name, folder.with_suffix(".py"))]
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def method_modules() -> dict[str, str]:
    """Module name -> its text as a syntax tree without docstrings, for every module that makes numbers."""
    return {
        module: _without_docstrings(ast.parse(path.read_text())) for name in METHOD for module, path in _members(name)
    }


def undeclared() -> list[str]:
    """Modules that the pipeline reaches, directly or through others, and that neither list declares."""
    todo, seen, missing = list(ENTRIES), set(), []
    while todo:
        module = todo.pop()
        path = _file(module)
        if module in seen or module == FACE or path is None or _is_in(module, CARRIERS):
            continue
        seen.add(module)
        tree = ast.parse(path.read_text())
        todo += sorted(_imports(tree))
        # A package's own file is read wherever one of its modules is; an empty one says nothing.
        if not _is_in(module, METHOD) and _without_docstrings(tree) != "Module()":
            missing.append(module)
    return sorted(missing)


@functools.cache
def code_version() -> str:
    """16 hexadecimal digits."""
    modules = method_modules()
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\n{modules[name]}\n".encode())
    return digest.hexdigest()[:16]
