"""Numbers are checked where they enter: the message names the key, and nothing is trained or drawn first."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hydra import compose, initialize_config_dir

from experiments.common.paths import CONF, study_name
from experiments.run_one import config, keys
from lrc_jax.errors import InputError

BILINEAR = "student=bilinear teacher=language data.order=1"


def made(words: str) -> config.RunConfig:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="run"):
        return config.typed(compose("config", overrides=words.split()))


def test_every_number_of_the_schema_has_a_range():
    kinds = {"teacher": config.TinyTeacher, "data": config.SyntheticData}
    parts = [config.TextData(), config.PretrainedTeacher("", "x")]
    named = [(f"{'data' if isinstance(p, config.TextData) else 'teacher'}.", p) for p in parts]
    whole = config.RunConfig(**{name: kind() for name, kind in kinds.items()})
    found = dict(
        config._numbers("", whole) + [pair for prefix, part in named for pair in config._numbers(prefix, part)]
    )
    listed = {
        "measure.certificate_dimensions",
        "measure.pilot_seeds",
        "measure.information_noise",
    }  # by rules of theirs
    assert set(found) - set(config.RANGES) - set(config.CHOICES) <= listed
    assert len(found) > 50
    for key, value in found.items():  # the defaults are within, and no range is for a key that is not there
        low, high = config.RANGES.get(key, (-math.inf, math.inf))
        assert low <= value <= high, key
    optional = {"optimizer.clip", "student.target_rms_norm_eps"}
    assert set(config.RANGES) - set(found) == optional


@pytest.mark.parametrize("key", config.RANGES)
def test_a_number_out_of_range_is_named(key):
    low, high = config.RANGES[key]
    whole = config.RunConfig(teacher=config.TinyTeacher(), data=config.SyntheticData())
    if key in ("data.tokenizer_size", "data.teacher_share", "data.reference_share"):
        whole.data = config.TextData(path="x")
    *parents, name = key.split(".")
    for value in (low - 1, high * 2 + 1):
        node = dataclasses.replace(getattr(whole, parents[0]), **{name: value}) if parents else value
        with pytest.raises(InputError, match=rf"^{key}: {value}".replace("+", r"\+")):
            config.check(dataclasses.replace(whole, **{parents[0] if parents else name: node}))


@pytest.mark.timeout(60)  # before anything of that size is made
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temperature=1e-40", "temperature: 1e-40 is too small; give at least 0.001"),
        ("clone_weight=1e38", "clone_weight: 1e\\+38 is too large"),
        ("data.spectrum=-1000", "data.spectrum: -1000.0 is too small; give at least -10"),
        ("teacher.learning_rate=-1", "teacher.learning_rate: -1.0 must be above 0"),
        ("steps=100000000000000", "steps: 100000000000000 is too large"),
        (f"{BILINEAR} samples=10000000000", "samples: 10000000000 is too large"),
        (f"{BILINEAR} samples=100000000", "samples: 100000000 sequences of 16 tokens do not fit in memory; ask for at"),
        ("teacher.pool=99999999", "teacher.pool: 99999999 sequences of 16 tokens do not fit"),
        ("measure.information_noise=[0.1,inf]", "measure.information_noise: inf is not finite"),
        ("study=../x", "study: '../x' is no folder"),
    ],
)
def test_the_key_is_blamed_at_once(words, message):
    made("rank=2")  # Hydra's own start
    with pytest.raises(InputError, match=message):
        made(words)


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "", ".", "..", "a/../../b", "a//b", "a/", "a\\b", " ", "a\nb", "a/./b"]
)
def test_a_study_stays_in_its_folder(name):
    with pytest.raises(InputError, match=r"^study: .* is no folder of its own under results_dir"):
        study_name(name)
    if "\n" not in name:
        with pytest.raises(InputError, match=r"^study: "):
            keys.check_words([f"study={name}"], many=False)


def test_names_of_studies_that_are_right():
    for name in ("demo", "full/synthetic", "reference/full/synthetic", "a.b", "über"):
        assert study_name(name) == name
        keys.check_words([f"study={name}"], many=False)
    keys.check_words(["study=a,b"], many=True)
    with pytest.raises(InputError, match=r"'\.\./b'"):
        keys.check_words(["study=a,../b"], many=True)
