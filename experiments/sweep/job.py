"""One run and its folder: its identity, its files, its end. Shared by single runs and fused ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from experiments.common import command
from experiments.common.files import write_text, writing
from experiments.run_one import config, tensorboard
from experiments.run_one.cache import fingerprint
from experiments.run_one.version import code_version
from experiments.sweep import known
from experiments.sweep.store import RunFolder, Study
from lrc_jax.errors import DivergedError, InputError
from lrc_jax.owners import clear_parts

if TYPE_CHECKING:  # imports JAX, which a run that is done does without
    from experiments.run_one.setup import Setup

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the one in C is five times as fast; not everywhere


@dataclass(frozen=True)
class Job:
    """A run: what it is made of and where it lives."""

    config: config.RunConfig
    setup: Setup
    run_id: str
    folder: RunFolder

    @property
    def name(self) -> str:
        return name_of(self.config)

    def done_row(self) -> dict[str, Any] | None:
        """The run's row, if it is there and is not to be made again."""
        row = None if self.config.force else self.folder.row()
        if row is not None:
            self.folder.tidy()
        return row

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Work on the run within this: its configuration is written down first, and what goes wrong is kept."""
        with self._recording():
            write_text(self.folder.path / "config.yaml", yaml.dump(dataclasses.asdict(self.config), Dumper=DUMPER))
            yield

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except Exception as wrong:
            self.fail(wrong)
            raise

    def fail(self, wrong: Exception) -> None:
        """Mark the run failed, with the reason."""
        known = isinstance(wrong, InputError | DivergedError)
        self.folder.fail(str(wrong) if known else f"{type(wrong).__name__}: {wrong}")

    @contextlib.contextmanager
    def metrics(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Open metrics.jsonl; a run that resumes from a checkpoint keeps the lines up to it."""
        path = self.folder.path / "metrics.jsonl"
        going_on = self.folder.checkpoints_path.is_dir()
        with writing(path):
            file = path.open("a" if going_on else "w")
        with file, self._tensorboard() as show:

            def write(line: dict[str, Any]) -> None:
                self.folder.check_ours()
                with writing(path):
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                show(line)

            yield write

    def _tensorboard(self) -> contextlib.AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """Where lines of metrics go besides metrics.jsonl: to TensorBoard if the run asks for it, else nowhere."""
        if not self.config.tensorboard:
            return contextlib.nullcontext(lambda line: None)
        name = self.name.replace(" ", "-").replace("=", "")
        return tensorboard.scalars(self.folder.path.parent.parent / "tensorboard" / f"{name}-{self.run_id[:8]}")

    def finish(self, columns: dict[str, Any], seconds: float, phases: dict[str, float]) -> dict[str, Any]:
        """Write the run's row, which makes it done; `phases` are the parts of its seconds (lrc_jax.clock). What is
        undefined, as a standard error of one sample, is null.

        Raises:
          LeaseLost: somebody else has taken the run over.
          DivergedError: a loss of the trained student is not finite.
        """
        times = {"": seconds} | {f"{name}_": value for name, value in phases.items()}
        row = {
            "run_id": self.run_id,
            "config": config.identity(self.config),
            "data_digest": self.setup.data_digest,
            "code_version": code_version(),
            "columns": defined(columns),
            "machine": command.machine_note() | {f"{k}seconds": round(v, 3) for k, v in times.items()},
        }
        with self._recording():
            for name in ("train_loss", "test_loss"):
                if name in columns and row["columns"][name] is None:
                    raise DivergedError(f"{name} is {columns[name]} after the training; lower optimizer.learning_rate")
            self.folder.finish(row)
        return row


def name_of(cfg: config.RunConfig) -> str:
    """What log and progress call a run."""
    return f"{cfg.student.name} rank={cfg.rank} samples={cfg.samples} steps={cfg.steps} seed={cfg.seed}"


def find_done(cfg: config.RunConfig, overrides: list[str]) -> dict[str, Any] | None:
    """The row of a run that is done, where that can be told without data, teacher and JAX; else None."""
    digest = None if cfg.force else known.digest_of(cfg)
    if digest is None:
        return None
    folder = _study(cfg).run(_run_id(cfg, digest))
    row = folder.row()
    if row is not None:
        folder.note_job(overrides)
        folder.tidy()
    return row


def identify(cfg: config.RunConfig, overrides: list[str]) -> Job:
    """Load what a configuration is made of and derive its id; the run's folder then says that these overrides ask for
    it. Needs JAX's environment set."""
    from experiments.run_one.setup import load

    made_of = load(cfg)
    known.remember(cfg, made_of.data_digest)
    run_id = _run_id(cfg, made_of.data_digest)
    folder = _study(cfg).run(run_id)
    folder.note_job(overrides)
    return Job(cfg, made_of, run_id, folder)


def _run_id(cfg: config.RunConfig, data_digest: str) -> str:
    return fingerprint(config.identity(cfg), data_digest, code_version())


def _study(cfg: config.RunConfig) -> Study:
    study = Study.of(cfg.results_dir, cfg.study)
    for place in (study.path, study.path / "sweeps"):
        clear_parts(place)
    return study


def defined(value: Any) -> Any:
    """Columns as JSON has them: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: defined(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(columns: dict[str, Any]) -> str:
    """The numbers of a row that a line of log has room for."""
    shown = {k: columns.get(k) for k in ("start_test_loss", "test_loss", "teacher_loss", "gap", "grad_norm_sq")}
    return " ".join(f"{k}={v:.4f}" for k, v in shown.items() if v is not None)
