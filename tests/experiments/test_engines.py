"""Engine configurations compose, and groups of a fused sweep are cut where they share least."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from experiments.run_one import config
from hydra_plugins.fused_launcher.launcher import check_keys, cut, group_key

CONF = Path(__file__).parents[2] / "conf"
CARRIES = {
    "accelerator": ("fused", None),
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


def test_jobs_are_grouped_by_the_overrides_that_cannot_be_batched():
    batchable, together = ["rank", "seed", "optimizer"], ["seed"]

    def key(*overrides):
        return group_key(overrides, batchable, together)

    assert key("rank=4", "seed=1", "data=text")[0] == key("rank=8", "seed=2", "data=text")[0]
    assert key("optimizer.learning_rate=0.1")[0] == key("optimizer=sgd")[0] == key()[0]
    assert key("ranks=4")[0] != key("ranks=8")[0]  # another key that begins alike
    assert key("+measure.norms=true")[0] != key("+measure.norms=false")[0]
    assert key("rank=4", "seed=1")[1] == key("rank=8", "seed=1")[1] != key("rank=4", "seed=2")[1]


def test_a_batchable_key_has_to_exist():
    check_keys(OmegaConf.create({"optimizer": {"clip": 1.0}}), ["optimizer", "optimizer.clip"])
    with pytest.raises(ValueError, match=r"batchable: optimizer\.clop is no key"):
        check_keys(OmegaConf.create({"optimizer": {"clip": 1.0}}), ["optimizer.clop"])
