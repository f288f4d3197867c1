"""One run: its configuration, what it works with, and a training of it.

What follows from the configuration alone are functions of it; what needs the data, the teacher or the student is a
method of `Run`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.run_one.config import RunConfig
from experiments.run_one.setup import Setup, at_most
from lrc_jax import clock
from lrc_jax.clone import CloneFlags
from lrc_jax.compute.sharding import MeshSpec, beside, mesh_for
from lrc_jax.data.pools import Pool
from lrc_jax.inference.evaluate import SequenceLosses, sequence_losses
from lrc_jax.objective import LossWeights, Objective
from lrc_jax.seeds import key_for
from lrc_jax.students import Frozen, Student, StudentOptions, make_student
from lrc_jax.students.factorized import FactorizedStudent
from lrc_jax.students.padding import widened, without_start
from lrc_jax.students.statistics import inverse_square_root, residual_basis
from lrc_jax.students.whitened import whitened_start
from lrc_jax.training.activation_cache import with_teacher_pass
from lrc_jax.training.train import History, Hyper, OptimizerSpec, StepOptions, TrainState, init_state, train

Columns = dict[str, Any]
Log = Callable[[dict[str, Any]], None]
Tick = Callable[[int, int, float | None], None]


class Keeper(Protocol):
    """Checkpoints of one run's training (experiments.sweep.interrupt)."""

    def resume(self, like: TrainState) -> TrainState | None:
        """The state to resume from, or None; `like` has its structure and shapes."""

    def chunk(self, step: int, steps: int, state: Callable[[], TrainState]) -> None:
        """Called after each chunk of training; may save the state, may end the process."""


def objective(config: RunConfig) -> Objective:
    loss = config.loss
    return Objective(
        clone=config.clone_weight > 0 and config.student.matrices != "head",
        kl=loss.kl_weight > 0,
        ce=loss.ce_weight > 0,
        distance=loss.clone_distance,
        kl_per_token=loss.kl_per_token,
        sites=tuple(loss.clone_sites),
        target=loss.clone_target,
    )


def loss_weights(config: RunConfig) -> LossWeights:
    values = (config.clone_weight, config.loss.kl_weight, config.loss.ce_weight, config.temperature)
    return LossWeights(*(jnp.asarray(v, jnp.float32) for v in values))


def learning_rate(config: RunConfig, steps: int | None = None) -> float:
    """Of a training of so many steps; the configuration's by default."""
    horizon = max(config.steps if steps is None else steps, 1)
    return config.optimizer.learning_rate * horizon**-config.optimizer.horizon_power


def optimizer(config: RunConfig) -> OptimizerSpec:
    names = {f.name for f in dataclasses.fields(OptimizerSpec)}
    return OptimizerSpec(**{k: v for k, v in dataclasses.asdict(config.optimizer).items() if k in names})


def hyper(config: RunConfig, steps: int, samples: int) -> Hyper:
    """The numbers of a training that are arguments of the compiled program."""
    return Hyper(
        learning_rate=jnp.asarray(learning_rate(config, steps), jnp.float32),
        steps=jnp.asarray(steps, jnp.int32),
        samples=jnp.asarray(samples, jnp.int32),
        loss=loss_weights(config),
    )


def init_key_of(seed: int) -> Array:
    return key_for(seed, "student", "init")


def order_key_of(seed: int) -> Array:
    return key_for(seed, "student", "order")


def metrics_line(step: int, history: History) -> dict[str, float]:
    """A line of metrics.jsonl: means over a chunk of training that ended at `step`."""
    return {"step": step} | history.row()


def only_kl(config: RunConfig) -> RunConfig:
    """The same run distilled by KL alone, at temperature 1: the one loss that depends on nothing but the student's
    predictions."""
    loss = dataclasses.replace(config.loss, kl_weight=1.0, ce_weight=0.0)
    return dataclasses.replace(config, clone_weight=0.0, temperature=1.0, loss=loss)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      setup: data and teacher.
      frozen: what the student reads and never trains.
      evaluated_at: the rank to which its parameters are padded where losses are evaluated, so that runs of several
        ranks share one compiled program; None evaluates at its own rank.
    """

    config: RunConfig
    setup: Setup
    student: Student
    frozen: Frozen
    evaluated_at: int | None = None

    @classmethod
    def of(cls, config: RunConfig, setup: Setup) -> Run:
        """The run of a configuration on loaded data and teacher."""
        teacher, chosen = setup.network(), config.student
        flags = CloneFlags(
            rank=config.rank,
            use_all_attn=chosen.use_all_attn,
            use_in_out_mlp=chosen.use_in_out_mlp,
            tie_word_emb_proj=chosen.tie_word_emb_proj,
            use_additional_align=chosen.use_additional_align,
            del_layers=tuple(chosen.del_layers),
            target_rms_norm_eps=chosen.target_rms_norm_eps,
        )
        options = StudentOptions(
            init=chosen.init,
            matrices=chosen.matrices,
            allocation=chosen.allocation,
            bits=chosen.bits,
            whiten=chosen.whiten,
            clone=config.clone_weight > 0,
            unit_embedding=chosen.unit_embedding,
            unit_norm=chosen.unit_norm,
        )
        student = make_student(chosen.name, teacher.config, flags, options)
        basis = whitener = None
        if chosen.init in ("pca", "channels") and chosen.name not in ("factorized", "quantised"):
            basis = residual_basis(chosen.init, setup.moments[0], config.rank)
        if chosen.name == "factorized" and chosen.matrices == "head" and chosen.whiten:
            whitener = inverse_square_root(setup.moments[1])
        to_device = lambda x: None if x is None else jnp.asarray(x)  # noqa: E731
        frozen = Frozen(teacher.weights, to_device(basis), to_device(whitener))
        if chosen.init == "whitened":
            assert isinstance(student, FactorizedStudent)
            losses = setup.truncation_losses if options.allocation == "by_loss" else None
            make = functools.partial(whitened_start, student, teacher.weights, setup.spectra, losses, setup.calibration)
            student, factors = setup.once(f"whitened {student} {options.allocation}", make)
            frozen = dataclasses.replace(frozen, factors=factors)
        return cls(config, setup, student, frozen)

    @property
    def cache(self) -> Path:
        return Path(self.config.cache_dir)

    def configured(self, config: RunConfig) -> Run:
        """The same student under another configuration of its training."""
        return dataclasses.replace(self, config=config)

    def abstract_state(self) -> TrainState:
        """Structure and shapes of the training state."""
        start = functools.partial(init_state, self.student, optimizer(self.config))
        return jax.eval_shape(start, init_key_of(0), self.frozen)

    def start(self, seed: int | None = None) -> Any:
        """The parameters that training starts from."""
        key = init_key_of(self.config.seed if seed is None else seed)
        return beside(init_state(self.student, optimizer(self.config), key, self.frozen).params, self.frozen)

    def losses(self, params: Any, pool: Pool) -> SequenceLosses:
        """Of student and teacher on every sequence of a pool."""
        student, frozen = self.student, self.frozen
        if self.evaluated_at is not None:
            frozen = without_start(frozen)
            student, params = widened(student, params, frozen, self.evaluated_at)
        return sequence_losses(student, self.setup.network().config, params, frozen, pool)

    def fit(
        self,
        pool: Pool,
        steps: int,
        *,
        seed: int | None = None,
        order_seed: int | None = None,
        until: int | None = None,
        state: TrainState | None = None,
        log: Log | None = None,
        tick: Tick | None = None,
        keeper: Keeper | None = None,
    ) -> tuple[TrainState, History]:
        """Train the student on a pool; see `lrc_jax.training.train`."""
        config, student, frozen = self.config, self.student, self.frozen
        seed = config.seed if seed is None else seed
        order_seed = seed if order_seed is None else order_seed
        if keeper is not None and state is None:
            state = keeper.resume(self.abstract_state())

        def on_chunk(state: TrainState, history: History) -> None:
            step = int(state.step)
            if log is not None:
                log(metrics_line(step, history))
            if keeper is not None:
                keeper.chunk(step, steps, lambda: state)

        teacher, terms = self.setup.network(), objective(config)
        mesh = mesh_for(MeshSpec(config.mesh.data, config.mesh.model), config.batch_size)
        if config.teacher_cache != "none":
            pool = with_teacher_pass(
                self.cache / "activations", student, terms, teacher.config, frozen, teacher.digest, pool,
                dtype=config.teacher_cache,
            )  # fmt: skip
        with clock.phase("training"):
            return train(
                student,
                terms,
                optimizer(config),
                teacher.config,
                frozen,
                pool,
                hyper(config, steps, pool.size),
                batch_size=config.batch_size,
                init_key=init_key_of(seed),
                order_key=order_key_of(order_seed),
                state=state,
                until=until,
                progress=tick,
                on_chunk=on_chunk,
                options=StepOptions(config.accumulate, config.remat, config.bf16),
                mesh=mesh,
            )


def test_size(config: RunConfig, setup: Setup) -> int:
    return at_most(setup.source, "test", config.measure.test_samples)
