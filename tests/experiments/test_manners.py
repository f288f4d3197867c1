"""How the commands speak: what they say of keys, of mistakes, before a run, while it compiles, and at Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error

import jax
import jax.numpy as jnp
import pytest
import yaml

from experiments import cli, watch
from experiments.common import progress
from experiments.run_one import config, keys
from experiments.run_one.version import code_version
from experiments.sweep.plan import plan
from experiments.sweep.planned import Sweep
from experiments.sweep.store import Study
from lrc_jax.data import text
from lrc_jax.errors import InputError

SMALL = ["teacher.hidden_size=16", "teacher.steps=40", "teacher.pool=512", "data.vocabulary=8", "sequence_length=6"]


def lrc(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def start(*words, cwd):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=cwd, text=True, **pipes)


def interrupt(process):
    """Press Ctrl-C; returns the exit code and what was printed since."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait(until, seconds=100):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_list_of_commands_needs_no_extra_and_no_time(tmp_path):
    heavy = "import sys; from experiments import cli; cli.main(['--help']); print(set(sys.modules) & {%s})"
    code = heavy % "'jax', 'hydra', 'numpy', 'pandas', 'rich', 'filelock'"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n")
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_commands_that_are_none(tmp_path, capsys):
    assert cli.main(["rnu"]) == 2
    assert capsys.readouterr().err == "lrc: rnu is no command; did you mean run? lrc --help lists them\n"
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("lrc-scaling-suite")


@pytest.mark.parametrize(("command", "missing", "extra"), [("status", "filelock", "run"), ("export", "jax", "clone")])
def test_a_missing_extra_is_named(tmp_path, command, missing, extra):
    code = f"import sys; sys.modules['{missing}'] = None; from experiments import cli; sys.exit(cli.main(sys.argv[1:]))"
    words = {"status": ["study=x"], "export": ["--teacher", "x", "--projections", "y", "--out", "z"]}[command]
    done = subprocess.run([sys.executable, "-c", code, command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert missing in line
    assert f"pip install 'lrc-scaling-suite[{extra}]'" in line


def test_help_lists_every_key_with_default_and_meaning():
    listed = {key.name: key for section in keys.keys().values() for key in section}
    plain = yaml.safe_load(yaml.safe_dump(config.dataclasses.asdict(_run())))
    nested = {f"{k}.{n}" for k, v in plain.items() if isinstance(v, dict) for n in v if n != "name"}
    assert nested | {k for k, v in plain.items() if not isinstance(v, dict)} <= set(listed)
    assert [key.name for key in listed.values() if not key.meaning] == []
    said = keys.help_text()
    assert "  seed=0 " in said and "  bf16=false " in said and "student= bilinear | direct" in said
    assert max(map(len, said.splitlines())) <= 120


def _run(**changes):
    return config.RunConfig(teacher=config.TinyTeacher(), data=config.SyntheticData(), **changes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rank=4,8"], "rank=4,8: several values are a sweep; add -m to run one: -m rank=4,8"),
        (["rank=4, 8"], "add -m to run one: -m rank=4,8"),
        (["rank=4,", "8"], "a space after the comma; write the values without: rank=4,8"),
        (["rank", "4"], "rank: not of the form key=value"),
        (["rnk=4"], "rnk: unknown key; did you mean rank?"),
        (["optimiser.learning_rate=1"], "did you mean optimizer.learning_rate?"),
        (["+foo=1"], "foo: unknown key"),
        (["--plam"], "--plam: unknown option"),
    ],
)
def test_words_that_were_meant_otherwise(words, said):
    with pytest.raises(InputError) as wrong:
        keys.check_words(words, many=False)
    assert said in str(wrong.value)


def test_words_that_are_right():
    right = ["-m", "rank=4,8", "student=lrc,svd", "+experiment=small/cost", "hydra/launcher=fused", "+engine=joblib"]
    right += ["measure.whiten=[q,k]", "measure={norms: true}", "-cn", "config", "~optimizer", "hydra.launcher.n_jobs=2"]
    keys.check_words(right, many=True)
    keys.check_words(["measure.information_noise=[0.1,0.2]", "--cfg", "job"], many=False)


def test_hints_are_one_line_and_exit_code_2(tmp_path):
    for words in (["rank=4,8"], ["rnk=4"], ["student=lcr"], ["--plan", "rank=0"]):
        code, out, err = lrc("run", *words, cwd=tmp_path)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["rank=2,4", "optimizer=adamw,sgd", "seed=0,1,2"]
    assert plan(sweep, many=True).startswith("12 runs, 0 done already, 12 to run; how long is not known")
    grid = plan(["+experiment=small/generalization", "seed=0"], many=True)  # its file sweeps the rest
    assert int(grid.split()[0]) > 4
    assert not list(tmp_path.iterdir())

    done = _run(rank=4, steps=100)
    row = {"config": config.identity(done), "code_version": code_version(), "columns": {}}
    folder = Study.of("results", "default").run("a")
    folder.path.mkdir(parents=True)
    folder.finish(row | {"machine": {"seconds": 9.0, "training_seconds": 5.0, "measuring_seconds": 1.0}})
    assert plan(["rank=4", "steps=100"], many=False) == "1 run, 1 done already, 0 to run"
    # Five seconds of training for 100 steps are ten for 200; measuring takes as long as before.
    said = plan(["rank=4", "steps=100,200"], many=True)
    assert said.startswith("2 runs, 1 done already, 1 to run; about 11s one after another")
    assert "1 to run" in plan(["rank=4", "steps=100", "force=true"], many=False)
    folder.finish(row | {"code_version": "other", "machine": {"seconds": 9.0}})
    assert "1 to run; about 9s" in plan(["rank=4", "steps=100"], many=False)


def test_a_compilation_is_shown_while_it_lasts(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    with progress.Progress("a run", 10):
        assert capsys.readouterr().err == ""
        _slow_to_compile()
        assert "a run: compiling\n" in capsys.readouterr().err
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
    assert progress.Progress.shown is None


def _slow_to_compile():
    """Compile what is not in the cache: constants make it new each time."""
    seed = time.time_ns() % 2**20

    def step(x):
        for i in range(60):
            x = jnp.sin(x * (seed + i)) @ x
        return x

    with jax.numpy_rank_promotion("allow"):
        jax.jit(step)(jnp.ones((4, 4)))


def test_watching_waits_for_the_study(tmp_path, monkeypatch, capsys):
    study = Study(tmp_path / "later")
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            Sweep({'["rank=4"]': ["rank=4"]}).write(study.path / "sweeps" / "sweep.json")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.wait_for(study)
    assert len(looks) == 3
    assert capsys.readouterr().out == f"waiting for a sweep in {study.path}\n"
    single = Study(tmp_path / "single")
    (single.path / "runs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no sweep to watch"):
        watch.wait_for(single)


def test_ctrl_c_stops_watching(tmp_path):
    process = start("experiments.watch", "study=none", cwd=tmp_path)
    assert "waiting" in process.stdout.readline()
    assert interrupt(process) == (130, "", "stopped watching; what runs goes on\n")


def test_ctrl_c_stops_a_sweep_which_goes_on_later(tmp_path):
    words = ["experiments.run", "-m", *SMALL, "rank=4", "samples=64", "seed=0,1", "steps=300000"]
    process = start(*words, cwd=tmp_path)
    runs = tmp_path / "results" / "default" / "runs"
    wait(lambda: list(runs.glob("*/claim.json")))
    code, _, err = interrupt(process)
    assert (code, err.splitlines()[-1]) == (130, "interrupted; the same command goes on with what is missing")
    (folder,) = runs.glob("*/")
    assert not (folder / "claim.json").exists()  # free for the next attempt, and no failure
    assert not (folder / "failed.json").exists()


def test_ctrl_c_stops_a_study_and_its_arms(tmp_path):
    process = start("experiments.reproduce", "study=demo", "data=synthetic", "jobs=1", cwd=tmp_path)
    logs = tmp_path / "results" / "demo" / "logs"
    wait(lambda: any(p.stat().st_size for p in logs.glob("*.log")) if logs.is_dir() else False)
    code, _, err = interrupt(process)  # as `kill -INT` does: the arm hears of it from the command alone
    assert (code, err) == (130, "interrupted; the same command goes on with what is missing\n")
    assert len(list(logs.glob("*.log"))) == 1  # no other arm was started
    assert not list((tmp_path / "results").rglob("claim.json"))


@pytest.mark.parametrize("module", ["theory", "lrc_jax"])
def test_ctrl_c_is_one_line(tmp_path, module, monkeypatch, capsys):
    import theory.__main__ as judge
    from lrc_jax import __main__ as method

    def stopped(options):
        raise KeyboardInterrupt

    program, words = (judge, ["claims"]) if module == "theory" else (method, ["generate", "--model=x", "--prompt=y"])
    monkeypatch.setattr(program, "_claims" if module == "theory" else "_generate", stopped)
    assert program.main(words) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_hub_is_asked_once_and_not_for_long(monkeypatch):
    asked, over = [], threading.Event()

    def urlopen(request, timeout):
        asked.append(timeout)
        over.wait()  # for ever, but for the test's end
        raise OSError

    monkeypatch.setattr(text.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(text, "HUB_SECONDS", 0.1)
    text.hub_answers.cache_clear()
    assert not text.hub_answers() and not text.hub_answers()
    assert asked == [0.1]
    over.set()

    def refuses(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 405, "no", None, None)

    monkeypatch.setattr(text.urllib.request, "urlopen", refuses)
    text.hub_answers.cache_clear()
    assert text.hub_answers()
    text.hub_answers.cache_clear()
