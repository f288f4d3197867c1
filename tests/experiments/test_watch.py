"""The time left is that of a sweep's own pace."""

from collections import Counter

import pytest

from experiments import watch
from experiments.sweep.store import Study


def test_a_sweep_that_waited_its_turn_is_not_slow(tmp_path, monkeypatch):
    now, counts = [0.0], Counter(done=0, running=0, missing=10)
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch.Look, "summary", lambda look: ([("sweep", counts.copy())], []))
    looking = watch.Watch([Study(tmp_path)])
    looking.look()
    now[0] = 1000.0  # another sweep has had the cores; this one starts
    counts.update(running=1, missing=-1)
    looking.look()
    now[0] = 1020.0
    counts.update(done=2, missing=-2)
    (line,) = looking.look()
    assert line.eta == pytest.approx(80)  # two in 20 seconds, eight left
