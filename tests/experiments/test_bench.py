"""The bench compares equals: every way to compute the step gives the same losses from the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import against, gpu, timing
from experiments.bench.presets import PRESETS
from experiments.bench.step import arithmetic, product_flops, set_up
from experiments.bench.timing import ROOT, workers
from lrc_jax.compute.fast import computed
from lrc_jax.errors import InputError
from lrc_jax.training.train import student_loss

TINY = PRESETS["test"]


def peer_python() -> str:
    """An interpreter with PyTorch: this one, or the one that LRC_TEST_PEER_PYTHON names."""
    named = os.environ.get("LRC_TEST_PEER_PYTHON")
    found = bench.peer_interpreter(None if named is None else Path(named))
    if found is None:
        pytest.skip("no PyTorch here, and LRC_TEST_PEER_PYTHON is not set")
    return found


def test_the_peer_computes_our_losses():
    command = [peer_python(), "-m", "experiments.bench.baseline", "--preset", "test", "--losses"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    setup = set_up(TINY)
    first = jax.tree.map(lambda x: jax.device_put(x[0]), setup.pool)

    @jax.jit
    def terms(params):
        return student_loss(
            setup.student, setup.objective, setup.config, params, setup.frozen, setup.hyper.loss, first
        )[1]

    with computed("reference"):
        ours = terms(setup.params)
    for name, value in json.loads(done.stdout).items():
        assert float(getattr(ours, name)) == pytest.approx(value, rel=1e-5), name


def test_products_are_counted_inside_loops_of_functions():
    def f(a, b):
        inner = jax.jit(lambda x: x @ b)
        return jnp.einsum("zij,zjk->zik", jnp.stack([inner(a)] * 3), jnp.ones((3, 5, 7)))

    assert product_flops(f, jnp.ones((2, 4)), jnp.ones((4, 5))) == 2 * (2 * 4 * 5 + 3 * 2 * 5 * 7)


def test_arithmetic_of_a_step_is_that_of_its_parts():
    """The teacher's forward pass by hand: projections, two blocks of causal scores, head."""
    counted, p = arithmetic(set_up(TINY)), TINY
    D, F, T, half = p.hidden_size, p.intermediate_size, p.length, p.length // 2
    products = p.layers * (4 * D * D + 3 * D * F) * p.tokens + D * p.vocabulary * p.tokens
    scores = p.layers * p.batch_size * 2 * D * (half * half + (T - half) * T)
    assert counted["teacher_flops"] == 2 * (products + scores)
    assert 1.5 * counted["teacher_flops"] < counted["step_flops"] < 6 * counted["teacher_flops"]


def test_a_worker_that_dies_is_named():
    with workers() as start, pytest.raises(InputError, match=r"-m experiments.bench.step --variant no.* exit code 2"):
        start("experiments.bench.step", "--variant", "no")


def test_an_interpreter_without_pytorch_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot import torch"):
        bench.peer_interpreter(tmp_path / "python")


def test_losses_that_differ_end_the_bench():
    class Way:
        def __init__(self, ce: float) -> None:
            self.losses = {"ce": ce}

    bench.check_losses({"ours": Way(1.0), "plain": Way(1.00001)})
    with pytest.raises(InputError, match="plain has ce"):
        bench.check_losses({"ours": Way(1.0), "plain": Way(1.001)})


@pytest.mark.slow
def test_bench_of_a_tiny_step(tmp_path, capsys, monkeypatch):
    """All ways run, agree (check_losses), and the JSON has what users read."""
    monkeypatch.setattr(timing, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(
        sys, "argv", ["bench", "--rounds", "1", "--students", "2", "--json", str(tmp_path / "out.json")]
    )
    real = bench.measure_step
    monkeypatch.setattr(bench, "measure_step", lambda name, **how: real("test", **how))
    assert bench.main() == 0
    result = json.loads((tmp_path / "out.json").read_text())
    keys = "preset threads rounds ours_s plain_s peer_s limit_s ratio_peer ratio_plain share_of_limit peak_rss_mb"
    assert result.keys() >= {*keys.split(), "cold_start_s", "warm_start_s", "together_s", "compile_s"}
    assert result["ratio_plain"] == pytest.approx(result["plain_s"] / result["ours_s"])
    assert 0 < result["share_of_limit"] < 1 and result["warm_start_s"] < result["cold_start_s"]
    assert (result["peer_s"] is None) == (bench.peer_interpreter(None) is None)
    assert "share of limit" in capsys.readouterr().out


def test_what_slows_both_sides_of_a_round_does_not_count():
    """The machine is four times as slow in the second round; this tree takes 1.2 to 1.3 times as long as the other."""
    theirs = np.array([1.0, 4.0, 1.0])
    found = against.compared({"ours": (theirs * [1.2, 1.25, 1.3]).tolist(), "theirs": theirs.tolist()})
    assert (found["ours_s"], found["theirs_s"]) == (1.3, 1.0)
    assert found["ratio"] == pytest.approx((1.2 * 1.25 * 1.3) ** (1 / 3))
    assert 1.1 < found["low"] < found["ratio"] < found["high"] < 1.4


@pytest.mark.slow
def test_this_tree_against_itself(capsys, monkeypatch):
    """The last commit's step is timed beside ours, and its folder is gone afterwards."""
    monkeypatch.setattr(timing, "TURN_SECONDS", 0.01)
    timed = []
    rounds_of = timing.rounds_of
    monkeypatch.setattr(timing, "rounds_of", lambda *given: timed.append(rounds_of(*given)) or timed[-1])
    result = against.measure_against("HEAD", ("test",), rounds=3)
    found = result["presets"]["test"]
    assert found["low"] < found["ratio"] < found["high"]
    (seconds,) = timed
    assert found["ratio"] == pytest.approx(np.prod(np.divide(seconds["ours"], seconds["theirs"])) ** (1 / 3))
    assert [found["ours_s"], found["theirs_s"]] == [sorted(seconds[side])[1] for side in ("ours", "theirs")]
    kept = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert result["commit"] not in [Path(line.split()[0]).name for line in kept.splitlines()]
    against.show_against(result)
    assert f"against {result['commit']}" in capsys.readouterr().out


def test_a_commit_that_is_none_is_named():
    with pytest.raises(InputError, match=r"--against: git rev-parse.*revision"):
        against.measure_against("no-such-commit", ("test",))


@pytest.mark.slow
def test_the_accelerator_s_bench_on_a_cpu(tmp_path, capsys, monkeypatch):
    """Every part runs, agrees with a CPU, and a second call measures nothing again."""
    out = tmp_path / "out.json"
    monkeypatch.setattr(gpu, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(sys, "argv", ["bench", "--gpu", "--tiny", "--rounds", "1", "--json", str(out)])
    assert bench.main() == 0
    result = json.loads(out.read_text())
    rows = {(row["way"], row["precision"]): row for row in result["step"]["test"]["rows"]}
    assert rows["ours", "float32"]["differs_from_cpu"] < 1e-6 < rows["ours", "bfloat16"]["differs_from_cpu"] < 3e-2
    assert rows["plain", "float32"]["to_ours"] == pytest.approx(
        rows["plain", "float32"]["step_s"] / rows["ours", "float32"]["step_s"]
    )
    many = result["many"]["test"]
    assert many["students"] == 8 and many["largest_loss_difference"] < 1e-5
    assert many["ratio"] == pytest.approx(8 * many["run_s"] / many["together_s"])
    assert "8 students" in capsys.readouterr().out
    before = out.read_bytes()
    monkeypatch.setattr(gpu.Bench, "step", None)  # not called
    assert bench.main() == 0 and out.read_bytes() == before

    result["card"] = "another"
    out.write_text(json.dumps(result))
    with pytest.raises(InputError, match="measured with card another"):
        bench.main()


def test_a_worker_that_takes_too_long_is_ended():
    with workers() as start, pytest.raises(InputError, match="exit code -9"):
        start("timeit", "-n", "1", "import time; time.sleep(60)", wait=False).wait(0.2)


def test_a_bench_on_a_machine_without_the_card_says_so():
    with pytest.raises(InputError, match="no device of kind cuda here; --tiny runs on the CPU"):
        gpu.card("cuda")
