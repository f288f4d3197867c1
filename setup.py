"""One build step: conf/ goes into the wheel as experiments/conf, where an installed suite looks for it (experiments/
common/paths.py). Everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """An editable install reads the checkout's own conf/ and copies nothing."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "experiments", "conf")
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
            shutil.copytree("conf", target)


setup(cmdclass={"build_py": BuildWithConf})
