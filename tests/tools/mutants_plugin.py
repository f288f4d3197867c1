"""The side of `mutants.py` that pytest loads: which test runs which line, and which tests are run in which order.

`MUTANTS_RECORD` names the folder for what is recorded, `MUTANTS_CHOICE` a file with the tests to run, one a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

#: Stands for every test: what is run at import, or for a fixture that several tests share.
EVERY = ""


class Recorder:
    """Notes the tests that run each line below the working directory, and how long each test takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = os.getcwd() + os.sep
        self.test = EVERY
        self.importing = 0
        self.lines: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = defaultdict(float)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """For `sys.settrace`: called at every call of a function."""
        if not (frame.f_code.co_filename or "").startswith(self.root):
            return None
        if frame.f_code.co_name == "<module>":
            self.importing += 1
            return self._in_module
        return self._in_function

    def _in_module(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return":
            self.importing -= 1
        return self._in_module

    def _in_function(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines[frame.f_code.co_filename, frame.f_lineno].add(EVERY if self.importing else self.test)
        return self._in_function

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._forget()
        self.test = item.nodeid
        try:
            return (yield)
        finally:
            self.test = EVERY

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        test = self.test
        if fixturedef.scope != "function":
            self.test = EVERY
        try:
            return (yield)
        finally:
            self.test = test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        lines = {f"{name.removeprefix(self.root)}:{line}": sorted(t) for (name, line), t in self.lines.items()}
        found = {"lines": lines, "seconds": self.seconds}
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(found))  # one of each process of pytest-xdist

    def _forget(self) -> None:
        """Empty the caches of functions: a test that finds a kept result depends on the lines that made it."""
        for module in list(sys.modules.values()):
            if (getattr(module, "__file__", None) or "").startswith(self.root):
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()


class Choice:
    """Keeps the chosen tests, in the order given."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


plugin: Recorder | Choice | None = None
if folder := os.environ.get("MUTANTS_RECORD"):
    plugin = Recorder(Path(folder))
    sys.settrace(plugin.trace)  # now, because conftest files are imported before pytest_configure
elif chosen := os.environ.get("MUTANTS_CHOICE"):
    plugin = Choice(Path(chosen).read_text().splitlines())


def pytest_configure(config: pytest.Config) -> None:
    if plugin:
        config.pluginmanager.register(plugin)
