"""Sweeps: jobs that differ in plain values are composed once, and what a sweeper hands out is what status counts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from experiments.common.paths import CONF, ROOT
from experiments.run_one import config
from experiments.run_one.keys import groups
from experiments.status import Look
from experiments.sweep import known
from experiments.sweep.compose import Composer
from experiments.sweep.plan import jobs_of
from experiments.sweep.planned import Sweep, key_of, planned
from experiments.sweep.record import Recorder
from experiments.sweep.store import Study
from lrc_jax.errors import InputError

EXPERIMENTS = groups()["experiment"]
GROUPS = ("+ablation", "ablation", "student", "data", "teacher", "measure", "preset", "optimizer")
TINY = [
    "student=bilinear", "teacher=language", "data.order=1", "data.vocabulary=8", "samples=64", "steps=10",
    "measure.test_samples=64",
]  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_here():
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def by_hydra(job):
    return config.typed(compose("config", overrides=list(job)))


def outcome(make):
    try:
        return make()
    except Exception as wrong:
        return type(wrong).__name__, str(wrong)


class Counting:
    """Hydra's composition, counted."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        self.jobs.append(job)
        return compose("config", overrides=job)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_jobs_of_every_experiment_are_as_hydra_composes_them(experiment):
    data = ["data=text", "data.path=some.txt"] if "text" in experiment else []
    data += ["data.path=some.txt", "teacher.path=some"] if "stories" in experiment else []
    words = [*data, f"+experiment={experiment}"]
    whole = compose("config", overrides=words, return_hydra_config=True)
    jobs = jobs_of(words, whole.hydra.sweeper.get("params"))
    counting = Counting()
    composer = Composer(counting)
    for job in jobs:
        composer.check(job)
    chosen = random.Random(experiment).sample(jobs, min(5, len(jobs)))
    for job in chosen:
        assert outcome(lambda j=job: composer.typed(j)) == outcome(lambda j=job: by_hydra(j)), job
    shared = {tuple(word for word in job if word.partition("=")[0] in GROUPS) for job in jobs}
    assert len(counting.jobs) <= len(shared)


# Overrides of every kind. Several of one key: the last one counts, as for Hydra.
PLAIN = [
    "rank=4", "rank=8", "samples=512", "samples=64", "steps=10", "seed=3", "clone_weight=1", "clone_weight=0.5",
    "optimizer.learning_rate=1", "optimizer.learning_rate=1e-3", "optimizer.clip=null", "optimizer.clip=2", "bf16=yes",
    "bf16=true", "claim=rate", "claim=null", "claim='a b'", "claim=12", "study=x", "epochs=2", "epochs=0",
    "student.del_layers=[]", "student.tie_word_emb_proj=true", "measure.information_noise=[0.1,1]", "teacher.layers=2",
    "teacher.tied=true", "measure.pilot_seeds=[1,2]", "loss.clone_sites=[q,k]", "mesh.data=1", "data.seed=5",
    "temperature=2",
]  # fmt: skip
OTHERS = [
    "student=direct", "optimizer=sgd", "optimizer=adamw", "student=scratch", "+experiment=small/cost", "data=synthetic",
    "loss={kl_weight:2}", "++rank=16", "++seed=9", "samples=${rank}0", "study=s${seed}", "claim=${arm}",
    "steps=${batch_size}", "~claim", "+engine_of_mine=3", "hydra.verbose=false", "hydra.job.num=7",
    "seed=${hydra:job.num}",
]  # fmt: skip
WRONG = ["rank=four", "rank=1.5", "seed=null", "nosuch=1", "optimizer.nosuch=1", "rank=[1]", "mesh=3", "bf16=maybe",
         "teacher.path=x"]  # fmt: skip


def test_random_overrides_are_as_hydra_composes_them():
    """The same run or the same error, in one composer that has seen the jobs before."""
    draw, counting = random.Random(0), Counting()
    composer, same = Composer(counting), 0
    for _ in range(64):
        job = draw.sample(PLAIN, draw.randint(1, 5))
        job += draw.sample(OTHERS, draw.choice([0, 0, 0, 1, 2])) + draw.sample(WRONG, draw.choice([0, 0, 0, 1]))
        draw.shuffle(job)
        ours, hydras = outcome(lambda j=job: composer.typed(j)), outcome(lambda j=job: by_hydra(j))
        assert ours == hydras, job
        same += isinstance(hydras, config.RunConfig)
    assert same > 20
    before = len(counting.jobs)
    for rank in range(1, 17):  # plain values alone need no composition more
        assert composer.typed(["rank=4", f"seed={rank}"]).seed == rank
    assert len(counting.jobs) <= before + 1


def test_a_run_keeps_nothing_of_the_one_before():
    composer = Composer(Counting())
    first = composer.typed(["measure.information_noise=[0.1]", "rank=4"])
    first.measure.information_noise.append(3.0)
    first.student.del_layers.append(1)
    again = composer.typed(["measure.information_noise=[0.1]", "rank=4"])
    assert again.measure.information_noise == [0.1]
    assert again.student.del_layers == []


def test_a_grid_is_that_of_hydras_sweeper():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [
        "rank=1,2",
        "seed=range(3)",
        "student=lrc,direct",
        "rank=5,6",
        "+arm=a",
        "steps=glob(*)" if False else "steps=7",
    ]
    parsed = OverridesParser.create().parse_overrides(["samples=3,4", *words])
    (hydras,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert jobs_of(words, {"samples": "3,4"}) == [list(job) for job in hydras]
    with pytest.raises(InputError, match="interval"):
        jobs_of(["seed=interval(0,1)"], None)


def run(*arguments, cwd, env=None):
    command = [sys.executable, "-m", *arguments, "results_dir=results"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False, env=env)
    return done.returncode, done.stdout, done.stderr


def states(study):
    ((_, counts),), open_jobs = Look(study).summary()
    return counts, open_jobs


def test_duplicates_count_once_refused_jobs_as_refused_and_nothing_of_hydras_stays(tmp_path):
    sweep = ["experiments.run", "-m", *TINY, "rank=2,2,-3,4", "clone_weight=0,0.0", "study=s"]
    code, out, err = run(*sweep, cwd=tmp_path)
    assert code == 2
    assert err.strip().startswith("rank: -3")
    assert "Traceback" not in err
    counts, open_jobs = states(Study(tmp_path / "results/s"))
    assert counts == Counter(done=2, refused=2)
    assert {job["state"] for job in open_jobs} == {"refused"}
    assert all("rank: -3" in job["reason"] for job in open_jobs)
    assert sorted(p.name for p in (tmp_path / "results/s").iterdir()) == ["runs", "sweeps"]
    code, out, _ = run("experiments.status", "study=s", cwd=tmp_path)
    assert code == 1
    assert "refused: " in out
    code, out, err = run("experiments.watch", "study=s", cwd=tmp_path)
    assert code == 1  # it ends: nothing is running or missing
    assert "2 refused" in out


def test_a_refused_single_run_leaves_nothing(tmp_path):
    code, _, err = run("experiments.run", *TINY, "rank=-3", "study=s", cwd=tmp_path)
    assert code == 2
    assert err.startswith("rank: -3")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_cannot_be_composed_starts_nothing(tmp_path):
    code, _, err = run("experiments.run", "-m", *TINY, "rank=2,four", "study=s", cwd=tmp_path)
    assert code == 2
    assert "four" in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_jobs_of_two_studies_are_recorded_in_each(tmp_path):
    code, _, err = run("experiments.run", "-m", *TINY, "study=a,b", "seed=0,1", cwd=tmp_path)
    assert code == 0, err
    for name in ("a", "b"):
        assert states(Study(tmp_path / "results" / name))[0] == Counter(done=2)


@pytest.mark.parametrize("key", ["--cfg job", "-c hydra", "--info config"])
def test_a_sweep_shows_no_configuration(tmp_path, key):
    code, _, err = run("experiments.run", "-m", *key.split(), "rank=2,4", cwd=tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "-m" in err


def test_without_the_extra_a_module_says_what_brings_it(tmp_path):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra/__init__.py").write_text("raise ModuleNotFoundError('No module named hydra', name='hydra')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, _, err = run("experiments.run", "rank=4", cwd=tmp_path, env=env)
    assert code == 2
    assert err.splitlines() == ["hydra is not installed; pip install 'lrc-scaling-suite[run]' brings it"]


def test_optunas_jobs_are_counted_as_it_thinks_of_them(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    asked = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=7",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=1",
    ]
    code, _, err = run(
        "experiments.run", "-m", *TINY, *asked, "rank=choice(2,4)", "seed=choice(0,1)", "study=s", cwd=tmp_path
    )
    assert code == 0, err
    study = Study(tmp_path / "results/s")
    counts, open_jobs = states(study)
    assert counts == Counter(done=len(study.runs()))
    assert counts["done"] <= 4
    assert open_jobs == []
    assert run("experiments.watch", "study=s", cwd=tmp_path)[0] == 0


def test_jobs_that_a_sweeper_has_still_to_think_of_are_missing(tmp_path):
    whole = OmegaConf.create({
        "results_dir": str(tmp_path), "study": "s",
        "hydra": {"overrides": {"task": ["rank=choice(1,2)"]}, "sweeper": {"n_trials": 5}},
    })  # fmt: skip
    recorder, study = Recorder(whole), Study(tmp_path / "s")
    recorder.plan([["rank=1"], ["rank=2"]])
    assert states(study)[0] == Counter(missing=5)
    recorder.plan([["rank=1"]])  # thought of before
    assert states(study)[0] == Counter(missing=4)
    wrong = JobReturn(overrides=["rank=2"], status=JobStatus.FAILED)
    wrong.return_value = InputError("rank: 2 is odd")
    recorder.ended([wrong])
    assert states(study)[0] == Counter(missing=3, refused=1)
    recorder.close()
    assert states(study)[0] == Counter(missing=1, refused=1)
    (sweep,) = planned(study).values()
    assert sweep.refused == {key_of(["rank=2"]): "rank: 2 is odd"}


def test_records_of_any_content_are_no_crash(tmp_path, capsys):
    study = Study(tmp_path / "s")
    good = Sweep({key_of(["rank=4"]): ["rank=4"]})
    good.write(study.path / "sweeps/good.json")
    for i, text in enumerate(
        ["[]", "{", '{"jobs": 3}', '{"jobs": [], "refused": [3]}', '{"jobs": [], "expected": "x"}']
    ):
        (study.path / f"sweeps/bad{i}.json").write_text(text)
    assert planned(study) == {"good": good}
    assert len(capsys.readouterr().err.splitlines()) == 5
    (study.path / "sweeps/old.json").write_text(json.dumps({"schema": 1, "jobs": [["rank=4"]]}))
    assert planned(study)["old"] == good


def test_a_done_run_is_found_without_jax_until_its_files_change(tmp_path, monkeypatch):
    code, out, err = run("experiments.run", *TINY, "study=s", cwd=tmp_path)
    assert code == 0, err
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("raise RuntimeError('JAX was imported')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code, out, err = run("experiments.run", *TINY, "study=s", cwd=tmp_path, env=env)
    assert (code, err) == (0, "")
    assert "already done" in out
    assert run("experiments.run", *TINY, "study=s", "force=true", cwd=tmp_path, env=env)[0] != 0


def test_a_digest_is_forgotten_with_the_files_that_it_was_taken_of(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one two three")
    cfg = by_hydra(["data=text", f"data.path={text}", f"cache_dir={tmp_path / 'cache'}"])
    assert known.digest_of(cfg) is None
    known.remember(cfg, "abc")
    assert known.digest_of(cfg) == "abc"
    text.write_text("one two four!")
    assert known.digest_of(cfg) is None
    known.remember(cfg, "def")
    (tmp_path / "cache/teachers/new").mkdir(parents=True)  # a teacher was trained again
    assert known.digest_of(cfg) is None


def test_text_from_the_hub_has_no_files_to_look_at(tmp_path):
    cfg = by_hydra(["data=wikitext2", f"cache_dir={tmp_path}"])
    known.remember(cfg, "abc")
    assert known.digest_of(cfg) is None
    assert list(tmp_path.iterdir()) == []
