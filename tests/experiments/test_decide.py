"""A claim decided run by run: whatever kills it, no look is lost or repeated, and it says why it stops."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pandas as pd
import pytest

from experiments import decide
from experiments.common.files import write_json
from experiments.common.progress import duration
from experiments.run_one import config
from experiments.show.looks import looks
from experiments.sweep import decision as deciding
from experiments.sweep import provenance
from experiments.sweep.decision import Decision
from experiments.sweep.provenance import note_of, write_note
from experiments.sweep.store import Study
from theory.design import next as planning
from theory.design.next import Next, Proposal, next_runs
from theory.judge.check import check_table

GRID = ["student=bilinear", "teacher=language", "data.order=1", "rank=2,4,8,15,26", "samples=164,512,1600,5120,16400",
        "seed=0,1,2,3,4"]  # fmt: skip
SECONDS_PER_SAMPLE = 1e-3
KILLED = 9


class Killed(BaseException):
    """The process is gone."""


def gap_of(run, exponent=-1.0, noise=0.15):
    rng = np.random.default_rng([run.seed, run.rank, run.samples])
    return 0.1 * run.rank * run.samples**exponent * np.exp(noise * rng.standard_normal())


def finished(decision, gap=gap_of):
    """Finish the last block's runs: rows as a sweep writes them, with a planted gap and a cost of N / 1000 seconds."""
    kept = note_of(decision.study)["decide"][decision.claim]["blocks"][-1]  # written down before it is bought
    assert (kept["lines"], kept["look"]) == (decision.blocks[-1].lines, None)
    for identity, run in decision.configs(decision.blocks[-1].lines).items():
        name = f"{abs(hash(identity)):x}"
        columns = {"rank": run.rank, "samples": run.samples, "steps": run.steps, "seed": run.seed, "gap": gap(run)}
        machine = {"seconds": SECONDS_PER_SAMPLE * run.samples}
        row = {"schema": 1, "run_id": name, "config": config.identity(run), "data_digest": "d", "code_version": "c"}
        write_json(decision.study.path / "runs" / name / "row.json", row | {"columns": columns, "machine": machine})


def whole_grid(table, claim, *, budget, **_):
    """What `next_runs` would advise, without its simulations: what the grid has besides."""
    names = ["rank", "samples", "seed"]
    grid = product((2.0, 4.0, 8.0, 15.0, 26.0), (164.0, 512.0, 1600.0, 5120.0, 16400.0), range(5))
    done = set(table.frame[names].astype(float).itertuples(index=False, name=None))
    runs = pd.DataFrame([run for run in grid if run not in done], columns=names).astype(float)
    cost = SECONDS_PER_SAMPLE * float(runs["samples"].sum())
    proposal = Proposal("the rest of the grid", runs, cost, cost <= budget, {"LOOSE": 1.0}, 1)
    word = "INCONCLUSIVE" if runs.empty else "UNTESTABLE"
    return Next("", claim, word, () if runs.empty else (proposal,), "s", budget, (f"the rest costs {cost:g} s",))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `lrc decide`, with runs that are planted and a plan that is given; returns (exit code, its record)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "next_runs", whole_grid)

    def run(*words, gap=gap_of, study="mine", claim="generalization", grid=GRID):
        monkeypatch.setattr(decide, "buy", lambda decision, launch, view: finished(decision, gap))
        given = {"budget": "10m"} | dict(w.split("=") for w in words)
        options = [f"{key}={value}" for key, value in given.items()]
        monkeypatch.setattr(sys, "argv", ["lrc decide", f"study={study}", f"claim={claim}", *options, *grid])
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = decide.guarded(decide.main)
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, note_of(Study(tmp_path / "results" / study)).get("decide", {}).get(claim)

    return run


def test_a_claim_is_decided_from_nothing(command, capsys):
    code, record = command()
    pilot, block = record["blocks"]
    assert code == 0
    assert record["outcome"] == {"reason": "decided", "verdict": "LOOSE", "words": ""}
    assert pilot["lines"] == ["rank=2,4,8,15,26 samples=164,512,1600 seed=0,1,2"]
    assert (pilot["look"]["verdict"], pilot["look"]["number"], pilot["look"]["runs"]) == ("", 0, 45)
    assert (block["look"]["verdict"], block["look"]["number"], block["look"]["runs"]) == ("LOOSE", 1, 125)
    assert block["look"]["level"] == pytest.approx(1 - 0.05 * np.log1p((np.e - 1) / 4))
    whole = SECONDS_PER_SAMPLE * 25 * (164 + 512 + 1600 + 5120 + 16400)
    assert block["look"]["spent_s"] == pytest.approx(whole)
    said = capsys.readouterr().out
    assert "generalization: LOOSE (1 look, 125 runs, " in said
    assert f"the whole grid: 125 runs, about {duration(whole)}" in said
    assert command() == (0, record)  # it is decided: nothing is bought or judged again
    words, table = looks(Study.of("results", "mine"), "generalization")
    assert words.endswith("at most 4 looks, error spent over them by the rule pocock.") and list(table["look"]) == [
        "pilot",
        "1",
    ]


@pytest.mark.slow
def test_the_advice_decides_with_a_part_of_the_grid(command, monkeypatch):
    monkeypatch.setattr(planning, "next_runs", functools.partial(next_runs, simulations=12))
    code, record = command()
    assert (code, record["outcome"]["verdict"]) == (0, "LOOSE")
    last = record["blocks"][-1]["look"]
    assert last["runs"] < 125
    assert last["spent_s"] < 0.7 * SECONDS_PER_SAMPLE * 25 * (164 + 512 + 1600 + 5120 + 16400)


def test_an_early_look_refutes_less_than_theory_check_and_a_later_one_ends_with_1(command):
    code, record = command("spending=obrien_fleming", gap=functools.partial(gap_of, exponent=-0.32))
    frame = Decision.read(Study.of("results", "mine"), "generalization")
    usual = check_table(frame.frame(frame.rows()), claims=["generalization"])["generalization"]
    assert usual.verdict == "REFUTED"
    seen = [(block["look"]["number"], block["look"]["verdict"]) for block in record["blocks"]]
    assert seen[:2] == [(0, ""), (1, "INCONCLUSIVE")]
    assert seen[2:] == [*((k, "INCONCLUSIVE") for k in range(2, len(seen) - 1)), (len(seen) - 1, "REFUTED")]
    assert (code, record["outcome"]["verdict"]) == (1, "REFUTED")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_kill_at_any_write_neither_loses_nor_repeats_a_look(command, monkeypatch, before):
    """Each process dies just before or just after its second write of the record, which is the first new one; so
    every step is made by a process of its own."""
    _, whole = command()
    write, made, judged = write_note, [], []
    monkeypatch.setattr(deciding.looking, "look", lambda *a, judge=deciding.looking.look: judged.append(0) or judge(*a))

    def dying(study, **entries):
        if "decide" in entries:
            made.append(0)
        if before and len(made) == 3:
            raise Killed
        write(study, **entries)
        if not before and len(made) == 2:
            raise Killed

    monkeypatch.setattr(deciding, "write_note", dying)
    processes, code, record = 0, None, None
    while code is None:
        processes += 1
        made.clear()
        with contextlib.suppress(Killed):
            code, record = command(study="killed")
    assert (code, record) == (0, whole)
    assert processes >= (3 if before else 4)
    assert len(judged) <= 2  # a verdict that was written is not taken again


def test_what_was_declared_stays_and_a_larger_budget_goes_on(command, capsys):
    code, record = command("budget=40s", "looks=3")
    assert (code, record["outcome"]["reason"]) == (3, "budget")
    assert len(record["blocks"]) == 1
    out = capsys.readouterr().out
    assert "not decided: the budget is spent, or too small" in out and "the rest costs 560." in out
    for changed, words in (
        ("looks=5", "looks: results/mine/study.json declares 3, pocock"),
        ("margin=0.2", "margin: "),
    ):
        given = ["looks=3", changed] if changed.startswith("margin") else [changed]
        assert command(*given)[0] == 2
        assert words in capsys.readouterr().err
    assert command("looks=3", grid=[*GRID, "steps=77"])[0] == 2
    assert "steps=77" in capsys.readouterr().err
    code, more = command("looks=3", grid=[*GRID, "threads=1"])  # with the usual budget; a machine's key may change
    assert code == 0 and more["blocks"][0] == record["blocks"][0]


def test_no_more_looks_than_declared(command, capsys):
    noisy = functools.partial(gap_of, exponent=-0.42, noise=0.8)
    code, record = command("looks=1", gap=noisy)
    assert (code, record["outcome"]["reason"]) == (3, "looks")
    assert "chance of a verdict 1.00, for the last look" in capsys.readouterr().out
    assert record["outcome"]["verdict"] in ("INCONCLUSIVE", "UNTESTABLE")
    assert len(record["blocks"]) == 2
    old = {k: v for k, v in record["blocks"][1].items() if k not in ("share", "ending")}  # of an older version
    older = {**record, "blocks": [record["blocks"][0], old], "outcome": None}
    write_note(Study.of("results", "mine"), decide={"generalization": older})
    assert command("looks=1", gap=noisy)[1]["outcome"] == record["outcome"]


def test_what_no_runs_can_decide_gets_all_the_error_that_is_left(command, capsys):
    """One look of four is made on the whole grid and does not decide; nothing is left to buy. The same runs are then
    looked at once more with the error of all looks, which is that of `theory check`, and the test is over."""
    noisy = functools.partial(gap_of, exponent=-0.42, noise=0.8)
    code, record = command(gap=noisy)
    assert code == 3
    _, bought, closing = record["blocks"]
    assert (bought["look"]["verdict"], bought["ending"], bought["share"]) == (
        "INCONCLUSIVE", None, pytest.approx(0.357, abs=1e-3)
    )  # fmt: skip
    assert (closing["runs"], closing["lines"], closing["share"]) == (0, [], pytest.approx(1.0))
    assert (closing["look"]["number"], closing["look"]["runs"]) == (2, bought["look"]["runs"])
    assert closing["look"]["level"] == pytest.approx(0.95)
    found = Decision.read(Study.of("results", "mine"), "generalization")
    usual = check_table(found.frame(found.rows()), claims=["generalization"])["generalization"]
    assert record["outcome"]["verdict"] == closing["look"]["verdict"] == usual.verdict
    assert record["outcome"]["reason"] == "budget"  # no set of runs, whatever it costs
    out = capsys.readouterr().out
    assert "the error that is left is spent on those that are there" in out and "buying 0 runs" not in out
    assert "more runs would be another test, under another study=" in out
    assert command("budget=5h", gap=noisy) == (3, {**record, "budget_s": 18000.0})
    words, table = looks(Study.of("results", "mine"), "generalization")
    assert words.endswith("so it spent the error of those that were not made too.")
    assert list(table["look"]) == ["pilot", "1", "2"] and table["intervals"].iloc[-1] == "95.0 %"


def test_a_damaged_record_is_not_begun_anew(command, capsys):
    _, record = command()
    path = Study.of("results", "mine").path / "study.json"
    write_note(Study.of("results", "mine"), decide={"generalization": {**record, "blocks": [{"runs": 1}]}})
    assert command()[0] == 2
    assert "key decide.generalization: damaged" in capsys.readouterr().err
    assert looks(Study.of("results", "mine"), "generalization") is None
    path.write_text("{")
    assert command()[0] == 2
    assert "study.json: not valid JSON" in capsys.readouterr().err


def test_a_look_sees_its_own_rows_only(command):
    _, record = command()
    study = Study.of("results", "mine")
    strange = json.loads(next(study.path.glob("runs/*/row.json")).read_text())
    strange["config"]["samples"], strange["columns"]["gap"] = 999_999, 1e9
    write_json(study.path / "runs" / "strange" / "row.json", strange)
    write_note(study, decide={})
    assert command()[1] == record


def test_two_claims_and_the_design_share_a_note(command):
    write_note(Study.of("results", "mine"), description="both", commands={"a": "lrc run"})
    steep = ["+experiment=optimal_rank_head", "+experiment/size=steep_language"]
    _, record = command(grid=[*steep, *GRID[3:]])
    assert record["overrides"][-1] == "claim=null"  # else the runs would speak for the optimal rank alone
    note = note_of(Study.of("results", "mine"))
    assert note["description"] == "both" and set(note["commands"]) == {"a", "decide generalization"}
    assert note["commands"]["decide generalization"].startswith(
        "lrc decide study=mine claim=generalization budget=10m00s"
    )
    kept = provenance.environment(Study.of("results", "mine"))["decide"]["generalization"]
    assert "overrides" not in kept and kept["blocks"] == note["decide"]["generalization"]["blocks"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=5x"], "budget: '5x' is no time"),
        (["looks=0"], "looks 0: must be at least 1"),
        (["looks=many"], "looks: 'many' is no whole number"),
        (["margin=wide"], "margin: 'wide' is no number"),
        (["launcher=balloon"], "Could not find 'hydra/launcher/balloon'"),
        (["spending=all"], "spending all: no such rule; choose from pocock, obrien_fleming"),
        (["margin=0.7"], "margin: 0.7 must lie between 0 and 0.5"),
    ],
)
def test_what_cannot_be_declared_is_one_line(command, capsys, words, message):
    assert command(*words) == (2, None)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("claim", "grid", "message"),
    [
        ("efficiency", GRID, "claim: 'efficiency' cannot be decided run by run; choose from generalization"),
        ("generalization", GRID[:-2], "samples: one value; name the grid to start from"),
        (
            "generalization",
            [*GRID, "steps=10,20"],
            "steps: several values; generalization is decided over rank, samples",
        ),
        *(
            (claim, ["seed=0,1"], f"measure.{claim}: false, so that the runs would measure nothing that {claim} can be")
            for claim in ("information", "dynamics", "convergence")
        ),
        ("generalization", [*GRID, "colour=red"], "colour: unknown key"),
        ("generalization", [*GRID, "steps=ten"], "configuration: Value 'ten' of type 'str' could not be converted"),
        ("generalization", [*GRID, "steps=[10"], "configuration: no viable alternative at input '[10'"),
        ("generalization", [*GRID, "+experiment=mine"], "configuration: In 'config': Could not find 'experiment/mine'"),
        ("generalization", [*GRID, "-m"], "-m: decide starts the sweeps itself"),
    ],
)
def test_what_is_no_grid_is_one_line(command, capsys, claim, grid, message):
    assert command(claim=claim, grid=grid) == (2, None)
    assert message in capsys.readouterr().err


def test_times_are_read_as_one_writes_them():
    assert [decide.seconds_of(t) for t in ("90", "90s", "1.5m", "2h", "1h30m", "1h0m5s")] == [
        90,
        90,
        90,
        7200,
        5400,
        3605,
    ]


def declared(tmp_path, grid=GRID):
    found = Decision.declared(Study(tmp_path), "generalization", deciding.Looks(), 0.1, grid, 60.0)
    found.write()
    return found


def test_a_sweep_that_gets_nowhere_is_not_started_for_ever(tmp_path, monkeypatch):
    decision, started, popen = declared(tmp_path), [], subprocess.Popen

    def failing(words, **streams):
        started.append(words)
        return popen([sys.executable, "-c", "print('no such launcher'); raise SystemExit(2)"], **streams)

    monkeypatch.setattr(decide.subprocess, "Popen", failing)
    with (
        decide.View(decision) as view,
        pytest.raises(decide.RunsFailed, match=r"^45 of these runs .*: exit code 2: no such launcher"),
    ):
        decide.buy(decision, ["study=x"], view)
    assert len(started) == 1 and started[0][-2:] == ["seed=0,1,2", "study=x"]


def test_runs_that_take_longer_than_the_budget_are_stopped(tmp_path, monkeypatch):
    decision = declared(tmp_path)
    finished(decision)
    decision.budget_s = 1.0
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with decide.View(decision) as view, pytest.raises(decide.BudgetSpent):
        decide.follow(sleeper, decision, view)
    decide.stop(sleeper)
    assert sleeper.returncode == -signal.SIGTERM


def test_the_view_says_what_is_known_bought_and_left(tmp_path):
    decision = declared(tmp_path)
    view = decide.View(decision)
    view.doing = "3 of 45 runs done"
    facts = dict(view.facts(12.0))
    assert facts["known"] == "nothing yet" and facts["buying"].startswith("45 runs: a pilot")
    assert facts["budget"] == "12s of 1m00s spent, 48s left" and facts["now"] == "3 of 45 runs done"
    finished(decision)
    decision.look()
    assert dict(view.facts(12.0))["known"].startswith("exponent in r ")


REAL = [
    "+experiment=optimal_rank_head", "+experiment/size=steep_language", "rank=2,4,8,11,20", "samples=64,256,1024,6400",
    "seed=0,1,2", "steps=60", "measure.reference=student", "measure.test_samples=64",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_runs_killed_in_the_middle_go_on(tmp_path):
    words = ["study=real", "claim=generalization", "budget=20m", "looks=1", "launcher=fused", *REAL]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    start = functools.partial(
        subprocess.Popen, [sys.executable, "-m", "experiments.decide", *words], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    first = start()
    while first.poll() is None and len(list(tmp_path.glob("results/real/runs/*/row.json"))) < 5:
        time.sleep(0.2)
    os.kill(first.pid, KILLED)  # its sweep goes on alone
    first.communicate()
    second = start()
    said = second.communicate()[0]
    assert second.returncode in (0, 1, 3), said
    record = json.loads((tmp_path / "results/real/study.json").read_text())["decide"]["generalization"]
    assert record["outcome"] is not None and all(block["look"] for block in record["blocks"])
    rows = [json.loads(p.read_text()) for p in tmp_path.glob("results/real/runs/*/row.json")]
    assert len(rows) == record["blocks"][-1]["look"]["runs"] == sum(b["runs"] for b in record["blocks"])
