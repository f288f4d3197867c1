"""What a run is made of: its data source and its teacher, loaded once per process and shared by the runs of a sweep."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run_one.cache import cached_tree
from experiments.run_one.config import LanguageTeacher, PretrainedTeacher, RunConfig, SyntheticData, TinyTeacher
from lrc_jax.compute.fast import forward
from lrc_jax.data.pools import DataSource, Pool, pool_from_sequences
from lrc_jax.data.synthetic import LanguageSpec, SyntheticSource
from lrc_jax.data.text import TextSource, read_splits, train_tokenizer, wikitext2_splits
from lrc_jax.errors import InputError
from lrc_jax.inference.evaluate import batches
from lrc_jax.model import DecoderConfig, Weights, init_weights
from lrc_jax.seeds import key_for
from lrc_jax.students.statistics import input_moments, second_moments
from lrc_jax.students.whitened import Spectrum, measured_losses, spectra
from lrc_jax.teachers.load import load_teacher
from lrc_jax.teachers.tiny import TinyTeacherSpec, plant_spectrum, train_teacher
from lrc_jax.teachers.tokenizer import Tokenizer
from lrc_jax.training.activation_cache import cached_activations

T = TypeVar("T")

HELD_OUT = 1024  # sequences on which a teacher trained here is stopped
POOL_BYTES = 2**29  # of pools kept for a sweep
MOST_KEPT = 128  # pools, and other things that runs share: a process of thousands of runs keeps no more of each
FEATURES_IN_MEMORY = 2**28  # bytes of a pool's precomputed teacher features; beyond this they lie on disk
FEATURES_ON_DISK = 2**33  # beyond this the teacher is run again wherever it is needed
# Of the reference pool, for second moments of the teacher's activations. 2**17 tokens are a hundred or more times a
# teacher's width; at 135M parameters more would take longer than the training.
MOMENT_SEQUENCES, MOMENT_TOKENS = 4096, 2**17


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen teacher on the device.

    Attributes:
      digest: identifies its numbers.
      held_out_loss: nats per token, for teachers trained here.
    """

    config: DecoderConfig
    weights: Weights
    digest: str
    tokenizer: Tokenizer | None = None
    held_out_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class Setup:
    source: DataSource
    teacher: Teacher | None  # None: the synthetic language is its own teacher
    cache: Path = Path(".cache")

    @property
    def data_digest(self) -> str:
        """Of data and teacher together."""
        return self.source.digest + ("" if self.teacher is None else f"+{self.teacher.digest}")

    def network(self) -> Teacher:
        """The teacher, where there has to be one."""
        assert self.teacher is not None
        return self.teacher

    @functools.cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Second moments of the residual stream and of the final features, on the reference pool."""
        return second_moments(self.network().config, self.network().weights, self.calibration)

    @functools.cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """Of every matrix of the teacher, by the second moments of what it reads on the reference pool."""
        teacher = self.network()
        moments = input_moments(teacher.config, teacher.weights, self.calibration)
        return spectra(teacher.config, teacher.weights, moments)

    @functools.cached_property
    def truncation_losses(self) -> dict[str, np.ndarray]:
        """What truncating one matrix of the teacher costs at every rank, on the reference pool."""
        teacher = self.network()
        return measured_losses(teacher.config, teacher.weights, self.spectra, self.calibration)

    @property
    def calibration(self) -> Pool:
        """Sequences of the reference pool on which the teacher's activations are looked at."""
        most = min(MOMENT_SEQUENCES, max(1, MOMENT_TOKENS // self.source.sequence_length))
        return pool_from_sequences(self.source.sequences("reference", at_most(self.source, "reference", most)))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What runs of a sweep share: made at the first call with this name, kept for the others."""
        if name not in self._shared:
            self._shared[name] = make()
            if len(self._shared) > MOST_KEPT:
                del self._shared[next(iter(self._shared))]
        return self._shared[name]

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        return {}

    @functools.cached_property
    def _pools(self) -> dict[tuple[Any, ...], Pool]:
        return {}

    def pool(self, purpose: str, n: int, labels: str, replicate: int = 0, *, features: bool = False) -> Pool:
        """The first n sequences of a stream, with the text's labels or labels sampled from the teacher; with
        `features` also the teacher's final features, for students that read nothing else.

        Kept for the runs of a sweep that use the same pool, the least recently used one is dropped first.
        """
        key = (purpose, n, labels, replicate, features)
        pool = self._pools.pop(key, None) or self._make_pool(*key)
        self._pools[key] = pool
        while len(self._pools) > MOST_KEPT or (
            len(self._pools) > 1 and sum(map(_bytes, self._pools.values())) > POOL_BYTES
        ):
            del self._pools[next(iter(self._pools))]
        return pool

    def _make_pool(self, purpose: str, n: int, labels: str, replicate: int, features: bool) -> Pool:
        if features:
            return self._with_features(self.pool(purpose, n, labels, replicate))
        pool = pool_from_sequences(self.source.sequences(purpose, n, replicate))
        if labels == "data" or self.teacher is None:
            return pool
        key = key_for(0, "labels", self.source.digest, purpose, replicate)
        return sampled_labels(self.teacher.config, self.teacher.weights, pool, key)

    def with_features(self, purpose: str, n: int, labels: str, replicate: int = 0) -> Pool:
        """A pool with the teacher's final features where they are worth keeping: from them, its predictions cost one
        matrix product, for every run and evaluation that uses the pool."""
        size = 4 * n * self.source.sequence_length * self.network().config.hidden_size
        return self.pool(purpose, n, labels, replicate, features=size <= FEATURES_ON_DISK)

    def _with_features(self, pool: Pool) -> Pool:
        teacher = self.network()
        if 4 * pool.tokens_NT.size * teacher.config.hidden_size > FEATURES_IN_MEMORY:
            folder = self.cache / "activations"
            entry = cached_activations(
                folder, teacher.config, teacher.weights, teacher.digest, pool.tokens_NT, ("final",), dtype="float32"
            )
            return dataclasses.replace(pool, final_NTD=entry["final"])
        parts, n = batches(pool, teacher.config.vocab_size)
        out = [np.asarray(_final(teacher.config, teacher.weights, part.tokens_NT)) for part in parts]
        return dataclasses.replace(pool, final_NTD=np.concatenate(out)[:n])


def _bytes(pool: Pool) -> int:
    """In memory: what lies on disk is read as it is used."""
    return sum(x.nbytes for x in jax.tree.leaves(pool) if not isinstance(x, np.memmap))


@functools.partial(jax.jit, static_argnames=("config",))
def _final(config: DecoderConfig, weights: Weights, tokens_BT: jax.Array) -> jax.Array:
    final_ND = forward(config, weights, tokens_BT).final_ND
    return final_ND.reshape(*tokens_BT.shape, -1)


@functools.partial(jax.jit, static_argnames=("config",))
def _sample(
    config: DecoderConfig, weights: Weights, tokens_BT: jax.Array, key: jax.Array, index_B: jax.Array
) -> jax.Array:
    logits_NV = forward(config, weights, tokens_BT).logits_NV
    # A key a sequence: a sequence's labels do not depend on how many others are drawn.
    u_BT = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), tokens_BT.shape[1:]))(index_B)
    return labels_from_uniform(logits_NV, u_BT)


def labels_from_uniform(logits_NV: jax.Array, u_BT: jax.Array) -> jax.Array:
    """Inverse-CDF sampling of a token at every position."""
    cdf_NV = jnp.cumsum(jax.nn.softmax(logits_NV, axis=-1), axis=-1)
    below_N = jnp.sum((cdf_NV[:, :-1] < u_BT.reshape(-1)[:, None]).astype(jnp.int32), axis=-1)
    return below_N.reshape(u_BT.shape)


def sampled_labels(config: DecoderConfig, weights: Weights, pool: Pool, key: jax.Array) -> Pool:
    """The pool with labels drawn from the teacher's prediction at every position: cross-entropy in excess of the
    teacher's is then an estimate of KL(teacher || student) with no offset."""
    parts, n = batches(pool, config.vocab_size)
    size = len(parts[0].tokens_NT)
    drawn = [
        np.asarray(_sample(config, weights, part.tokens_NT, key, np.arange(i * size, (i + 1) * size, dtype=np.int32)))
        for i, part in enumerate(parts)
    ]
    return dataclasses.replace(pool, labels_NT=np.concatenate(drawn)[:n])


def at_most(source: DataSource, purpose: str, n: int) -> int:
    """n, or as many sequences as there are for this purpose.

    Raises:
      InputError: there is none.
    """
    have = source.available(purpose)
    if have == 0:
        raise InputError(
            f"data: no sequence of {source.sequence_length} tokens for the {purpose} pool; give more text or a lower "
            "sequence_length"
        )
    return n if have is None else min(n, have)


_LOADED: collections.OrderedDict[str, Setup] = collections.OrderedDict()
KEPT = 4  # of them, the last used


def load(config: RunConfig) -> Setup:
    """Data and teacher of a run; equal configurations share one copy."""
    made_of = {
        "data": dataclasses.asdict(config.data),
        "teacher": dataclasses.asdict(config.teacher),
        "sequence_length": config.sequence_length,
        "cache_dir": config.cache_dir,
        "step": config.step,  # a setup keeps what the teacher computed on its pools
    }
    key = json.dumps(made_of, sort_keys=True)
    if key not in _LOADED:
        _LOADED[key] = _made(config)
    _LOADED.move_to_end(key)
    while len(_LOADED) > KEPT:
        _LOADED.popitem(last=False)
    return _LOADED[key]


def _made(config: RunConfig) -> Setup:
    cache = Path(config.cache_dir)
    if isinstance(config.data, SyntheticData):
        fields = dataclasses.asdict(config.data)
        del fields["name"]
        source: DataSource = SyntheticSource(LanguageSpec(**fields), config.sequence_length)
        if isinstance(config.teacher, LanguageTeacher):
            return Setup(source, None, cache)
        return Setup(source, _tiny(config.teacher, source, cache), cache)

    data = config.data
    splits = read_splits(Path(data.path), data.field, cache) if data.path else wikitext2_splits(cache)
    if isinstance(config.teacher, PretrainedTeacher):
        loaded = load_teacher(config.teacher.path)
        loaded.check_length(config.sequence_length)
        source = TextSource(
            splits,
            loaded.require_tokenizer(),
            config.sequence_length,
            vocab_size=loaded.config.vocab_size,
            teacher_share=0.0,
            reference_share=data.reference_share,
        )
        return Setup(source, Teacher(loaded.config, loaded.weights, loaded.digest[:16], loaded.tokenizer), cache)
    tokenizer = train_tokenizer(splits, data.tokenizer_size, cache)
    source = TextSource(
        splits,
        tokenizer,
        config.sequence_length,
        teacher_share=data.teacher_share,
        reference_share=data.reference_share,
    )
    source.sequences("student", config.samples)  # too many? say so before a teacher is trained
    return Setup(source, dataclasses.replace(_tiny(config.teacher, source, cache), tokenizer=tokenizer), cache)


def _tiny(teacher: TinyTeacher, source: DataSource, cache: Path) -> Teacher:
    """Train, or fetch from the cache, a teacher of this data."""
    fields = dataclasses.asdict(teacher)
    pool_size = at_most(source, "teacher", fields.pop("pool"))
    del fields["name"]
    power = fields.pop("planted_spectrum")
    if pool_size == 0:
        raise InputError("data.teacher_share: the teacher's pool is empty; raise the share or give more text")
    spec = TinyTeacherSpec(**fields)
    try:
        decoder = spec.config(source.vocab_size, source.sequence_length)
    except ValueError as wrong:
        raise InputError(f"teacher: {wrong}; change teacher.heads, teacher.kv_heads or teacher.hidden_size") from None
    made_of = {"spec": fields, "data": source.digest, "pool": pool_size}

    def make() -> tuple[Weights, dict[str, Any]]:
        from experiments.common.progress import Progress

        pool = pool_from_sequences(source.sequences("teacher", pool_size))
        held_out = pool_from_sequences(source.sequences("probe", at_most(source, "probe", HELD_OUT)))
        init_key, order_key = key_for(spec.seed, "teacher", "init"), key_for(spec.seed, "teacher", "order")
        with Progress("training the teacher", spec.steps) as progress:
            weights, curve = train_teacher(spec, decoder, pool, held_out, init_key, order_key, progress.update)
        return weights, {"curve": dataclasses.asdict(curve), "held_out_loss": min(curve.held_out_loss)}

    like = jax.eval_shape(functools.partial(init_weights, decoder), key_for(0))
    weights, note = cached_tree(cache, "teachers", made_of, like, make)
    if power > 0:
        weights = plant_spectrum(weights, power)
        return Teacher(decoder, weights, _weights_digest(weights))
    return Teacher(decoder, weights, _weights_digest(weights), held_out_loss=note["held_out_loss"])


def _weights_digest(weights: Weights) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
