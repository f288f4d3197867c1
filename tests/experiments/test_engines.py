"""Engine configurations compose, and groups of a fused sweep are cut where they share least."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from experiments import config
from hydra_plugins.fused_launcher.launcher import cut

CONF = Path(__file__).parents[2] / "conf"
CARRIES = {
    "fused": ("fused", "joblib"),
    "fused_slurm": ("fused", "submitit_slurm"),
    "joblib": ("joblib", None),
    "slurm": ("submitit_slurm", None),
    "ray": ("ray", None),
    "ray_cluster": ("ray", None),
}


@pytest.fixture
def launchers(monkeypatch):
    """Every launcher's name is known to Hydra; one whose plugin is not installed by its name alone."""
    Plugins.instance()  # stores what is installed
    config.register()
    store = ConfigStore.instance()
    known = set(store.list("hydra/launcher"))
    before = dict(store.repo["hydra"]["launcher"])
    for name in ("joblib", "submitit_slurm", "ray"):
        if f"{name}.yaml" not in known:
            store.store(group="hydra/launcher", name=name, node={"_target_": f"plugin.{name}"})
    yield
    store.repo["hydra"]["launcher"] = before


@pytest.mark.parametrize("engine", [path.stem for path in sorted((CONF / "engine").glob("*.yaml"))])
def test_an_engine_composes(engine, launchers):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [f"+engine={engine}"], return_hydra_config=True)
    outer, inner = CARRIES[engine]
    assert outer.split("_")[0] in composed.hydra.launcher._target_.lower()
    assert composed.threads == 1
    if inner is not None:
        assert inner.split("_")[0] in composed.hydra.launcher.inner._target_.lower()


@pytest.mark.parametrize(
    ("size", "groups"),
    [
        (10, ["aaabbb", "ccccc"]),  # a and b fit together; c would not fit with them
        (5, ["aaa", "bbb", "ccccc"]),
        (4, ["aaa", "bbb", "cccc", "c"]),  # c is larger than a group
        (99, ["aaabbbccccc"]),
    ],
)
def test_groups_are_cut_between_streams(size, groups):
    ordered = [(letter, (i, [letter])) for i, letter in enumerate("aaabbbccccc")]
    found = cut(ordered, size)
    assert ["".join(overrides[0] for _, overrides in group) for group in found] == groups
    assert [number for group in found for number, _ in group] == list(range(11))
