"""Run one configuration, or a sweep of them.

    python -m experiments.run rank=8 samples=1024 steps=500
    python -m experiments.run -m rank=4,8,16 samples=64,256,1024 steps=500 seed=0,1,2,3,4
    python -m experiments.run -m +experiment=generalization
    python -m experiments.run --plan -m +experiment=generalization

`--plan` says how many runs there would be, how many of them are done and about how long the others take, and runs
nothing. Several values of a key, separated by commas without spaces, are a sweep and need -m. A run whose row is there
is skipped; a failed one is tried again. Exit code 0: all done; 1: a run failed; 2: bad input; 130: stopped by Ctrl-C,
after which the same command goes on with what is missing.
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.common import command
from experiments.common.paths import CONF
from experiments.run_one import config, keys
from experiments.sweep import record
from experiments.sweep.local import execute, outcome
from experiments.sweep.plan import plan
from lrc_jax.errors import InputError

SHOW = ("-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")  # Hydra's options that run nothing


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(raw: DictConfig) -> float | None:
    """Hydra's entry point: one job. Returns the test loss, for sweepers that minimise it."""
    return outcome(execute(config.typed(raw), HydraConfig.get().overrides.task))


def main() -> int:
    words = sys.argv[1:]
    if any(a in ("-h", "--help") for a in words):
        print(command.help_of(__doc__), keys.help_text(), sep="\n\n")
        return 0
    many = any(a in ("-m", "--multirun", "hydra.mode=MULTIRUN") for a in words)
    keys.check_words(words, many=many)
    shown = next((word for word in words if word.partition("=")[0] in SHOW), None)
    if many and shown:
        raise InputError(f"{shown}: shows one run's configuration, -m starts a sweep; leave one of them out")
    if "--plan" in words:
        return command.hydra_main(lambda: print(plan([a for a in words if "=" in a], many=many)))
    config.register()
    try:
        return command.hydra_main(task)
    finally:
        record.close_all()


if __name__ == "__main__":
    raise SystemExit(command.guarded(main))
