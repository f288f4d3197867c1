"""Controls beside the primary design: each arm gets the verdict that its planted law deserves."""

import numpy as np
import pandas as pd
import pytest

from experiments.show.controls import arm_table
from experiments.show.table_figures import convergence_arms, generalization_arms
from theory.planted.surfaces import Design, gap_table, gradient_table

DESIGN = Design(ranks=(8,), samples=(64, 256, 1024, 8192), steps=(256, 1024, 4096, 16384, 65536))


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    primary = gradient_table(-0.5, DESIGN, rng).assign(arm=None)
    slow = gradient_table(-0.1, DESIGN, rng).assign(arm="direct")
    # Better than the primary step at the three long horizons only.
    double = primary.assign(arm="step_double")
    double["grad_norm_sq"] *= np.where(double["steps"] > 2000, 0.5, 2.0)
    decaying = primary.assign(arm="decaying", decay=0.5, bound=primary["grad_norm_sq"] / 0.8, own_grad_variance=1.0)
    long = pd.DataFrame(
        [
            {"arm": "plateau", "steps": 4096, "seed": s, "step_size": eta, "grad_norm_sq": eta, "smoothness": 2.0,
             "grad_variance": 1.0, "plateau": 0.5 * eta * rng.lognormal(0, 0.05)}
            for s in range(3) for eta in (0.01, 0.02, 0.04)
        ]
    )  # fmt: skip
    convergence = pd.concat([primary, slow, double, decaying, long]).assign(claim="convergence")
    gaps = [gap_table(1, power, DESIGN, rng).assign(arm=arm) for power, arm in ((1, None), (0.5, "25_epochs"))]
    gaps = pd.concat(gaps).assign(claim="generalization", sequence_length=16, params=800)
    return pd.concat([convergence, gaps], ignore_index=True)


def test_each_arm_is_judged_by_itself(frame):
    table = arm_table(frame)
    lines = table[table["claim"] == "convergence"].set_index("arm")
    assert lines.loc["primary", "estimate"] == pytest.approx(-0.5, abs=0.1)
    assert lines.loc["direct", "verdict"] == "REFUTED"
    assert lines.loc["best_step", "estimate"] < lines.loc["primary", "estimate"] - 0.1
    assert lines.loc["decaying", "worst_ratio"] == pytest.approx(0.8)
    plateau = lines.loc["plateau"]
    assert plateau["low"] < 1 < plateau["high"] and plateau["worst_ratio"] < 0.5
    gaps = table[(table["claim"] == "generalization") & (table["coordinate"] == "samples")].set_index("arm")
    assert gaps.loc["primary", "estimate"] < -0.8 < gaps.loc["25_epochs", "estimate"]


def test_a_study_without_arms_has_no_table(frame):
    assert arm_table(frame[frame["arm"].isna()]).empty
    assert arm_table(frame.drop(columns="arm")).empty


def test_the_figures_of_arms(frame):
    curves = convergence_arms(frame).points
    assert set(curves["arm"]) == {"primary", "direct", "step_double", "decaying"}  # a plateau has one horizon
    gaps = generalization_arms(frame).points
    assert set(gaps["arm"]) == {"primary", "25_epochs"}
    tokens = frame["samples"] * frame["sequence_length"]
    one = frame["claim"].eq("generalization") & frame["arm"].isna() & frame["samples"].eq(256)
    expected = (frame["gap"] * tokens / frame["params"])[one].mean()
    assert gaps.query("arm == 'primary' and samples == 256")["mean"].item() == pytest.approx(expected)
