"""Configurations of a sweep's jobs, without composing each.

Hydra needs a tenth of a second for a composition. Jobs of a sweep mostly differ in plain values (`rank=8`), which Hydra
too sets on the composed configuration, once groups are chosen. So one composition serves all jobs that differ in plain
values alone, and each value is set and checked against the schema once. Whatever else an override does (a group's
choice, `+key`, `~key`, a key of Hydra's, an interpolation) takes Hydra's own composition.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.run_one import config
from experiments.run_one.keys import groups

PLAIN_KEY = re.compile(r"\w+(\.\w+)*")


@functools.lru_cache(maxsize=2**16)
def parsed(word: str) -> Override:
    """One override as Hydra reads it."""
    return _parser().parse_override(word)


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


class NotPlain(Exception):
    """A value cannot be set by itself; Hydra's composition says what is wrong with it, if anything is."""


@dataclass
class Base:
    """A composed configuration in which plain values are set.

    Attributes:
      raw: as Hydra composed it. Values are set in place: what is read is only ever what was set last.
      typed: the same as a RunConfig that is not checked yet; never changed.
      values: override -> where its value belongs, and the value as the schema converts it.
    """

    raw: DictConfig
    typed: config.RunConfig
    values: dict[str, tuple[list[str], Any]] = field(default_factory=dict)

    def value(self, word: str) -> tuple[list[str], Any]:
        if word not in self.values:
            override = parsed(word)
            key = override.key_or_group
            *parents, last = key.split(".")
            owner: Any = self.typed
            for name in parents:
                owner = getattr(owner, name, None)
            if not dataclasses.is_dataclass(owner) or last not in {f.name for f in dataclasses.fields(owner)}:
                raise NotPlain
            try:
                OmegaConf.update(self.raw, key, override.value(), merge=True)
                found = OmegaConf.select(self.raw, key, throw_on_missing=True)
            except Exception as wrong:
                raise NotPlain from wrong
            self.values[word] = [*parents, last], OmegaConf.to_object(found) if OmegaConf.is_config(found) else found
        return self.values[word]

    def with_values(self, words: Sequence[str]) -> config.RunConfig:
        """The run with these overrides, checked."""
        run = copy.deepcopy(self.typed)
        for word in words:
            (*parents, last), value = self.value(word)
            owner: Any = run
            for name in parents:
                owner = getattr(owner, name)
            setattr(owner, last, copy.copy(value))
        return config.checked(run)


class Composer:
    """Configurations of jobs, each given by its overrides.

    Args:
      compose: Hydra's composition of a job.
      as_job: context in which `${hydra:...}` of a composed configuration resolves as in the job of this number.
    """

    def __init__(
        self,
        compose: Callable[[list[str]], DictConfig],
        as_job: Callable[[DictConfig, int], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._compose, self._as_job = compose, as_job
        self._bases: dict[tuple[str, ...], Base | None] = {}
        self._groups = set(groups())

    def check(self, job: Sequence[str]) -> None:
        """Raises what Hydra raises where the job cannot be composed. Ranges are looked at when it is run."""
        base, plain = self._base(job)
        try:
            for word in plain if base is not None else ():
                base.value(word)  # type: ignore[union-attr]
        except NotPlain:
            self._compose(list(job))

    def typed(self, job: Sequence[str], number: int = 0) -> config.RunConfig:
        """The checked configuration of a job.

        Args:
          number: of the job in its sweep.

        Raises:
          InputError: a value is out of range, or values do not go together.
        """
        base, plain = self._base(job)
        if base is not None:
            try:
                return base.with_values(plain)
            except NotPlain:
                pass
        raw = self._compose(list(job))
        if self._as_job is None:
            return config.typed(_without_hydra(raw))
        with self._as_job(raw, number):
            return config.typed(_without_hydra(raw))

    def _base(self, job: Sequence[str]) -> tuple[Base | None, list[str]]:
        """What a job shares with others, and its plain overrides; None where a value is taken from another."""
        words = {word: parsed(word) for word in job}
        plain = {word: override.key_or_group for word, override in words.items() if self._is_plain(override)}
        # What comes later counts: a value that something else sets too keeps its place among the others.
        rivals = [o.key_or_group for word, o in words.items() if word not in plain and not self._is_choice(o)]
        plain = {word: key for word, key in plain.items() if not any(_overlap(key, rival) for rival in rivals)}
        shared = tuple(plain.get(word, word) for word in job)
        if shared not in self._bases:
            raw = _without_hydra(self._compose(list(job)))
            follows = "${" in str(OmegaConf.to_container(raw, resolve=False))
            self._bases[shared] = None if follows else Base(raw, OmegaConf.to_object(raw))  # type: ignore[arg-type]
        return self._bases[shared], list(plain)

    def _is_plain(self, override: Override) -> bool:
        """Whether it sets one value: no group's choice, no addition or deletion, no key of Hydra's own, no reference to
        another key."""
        key, line = override.key_or_group, override.input_line or ""
        if override.type is not OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
            return False
        if key in self._groups or override.is_hydra_override() or not PLAIN_KEY.fullmatch(key):
            return False
        return "${" not in line and not isinstance(override.value(), dict)

    def _is_choice(self, override: Override) -> bool:
        """Whether it chooses among a group's files, which come before all values."""
        return override.key_or_group in self._groups and isinstance(override.value(), str)


def _overlap(one: str, other: str) -> bool:
    """Whether two keys are the same or one is within the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _without_hydra(raw: DictConfig) -> DictConfig:
    with open_dict(raw):
        raw.pop("hydra", None)
    return raw


_composers: WeakKeyDictionary[ConfigLoader, Composer] = WeakKeyDictionary()


def composer_of(context: HydraContext, whole: DictConfig) -> Composer:
    """The composer of a multirun in this process: its sweeper and its launcher share one.

    Args:
      whole: the multirun's own configuration.
    """
    loader = context.config_loader
    if loader not in _composers:
        _composers[loader] = Composer(lambda job: loader.load_sweep_config(whole, job), _as_job)
    return _composers[loader]


@contextmanager
def _as_job(raw: DictConfig, number: int) -> Any:
    """Let ${hydra:...} resolve as in Hydra's own job."""
    instance = HydraConfig.instance()
    before = instance.cfg
    kept = raw.copy()
    with open_dict(kept):
        kept.hydra.job.num, kept.hydra.job.id = number, os.environ.get("SLURM_JOB_ID") or number
    try:
        instance.set_config(kept)
        yield
    finally:
        instance.cfg = before
