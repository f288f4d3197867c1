"""The schema of a run: every key with its type, range and meaning, checked before anything is computed.

Hydra composes conf/*.yaml against these classes; unknown keys and wrong types are errors there, ranges here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.common.paths import study_name
from experiments.run_one import tensorboard
from lrc_jax.errors import InputError
from lrc_jax.recipes import DEFAULT


@dataclass
class SyntheticData:
    """A language with known conditionals (lrc_jax.data.synthetic)."""

    name: str = "synthetic"
    kind: str = "markov"  # markov | hmm
    vocabulary: int = 32  # number of tokens
    order: int = 2  # of the Markov chain: 1 or 2
    spectrum: float = 1.0  # markov: s of the logit matrices' singular values k^-s
    sharpness: float = 1.5  # spread of the logits; the larger, the closer to deterministic
    unigram: float = 0.7  # markov: how unequally frequent tokens are; 0 is equally
    states: int = 24  # hmm: number of hidden states
    seed: int = 0  # makes the language, not the samples


@dataclass
class TextData:
    """Text in disjoint pools (lrc_jax.data.text); name wikitext2 without a path asks the hub."""

    name: str = "text"
    path: str | None = None  # a file, a folder of shards, or a folder of train, test and optional valid files
    field: str | None = None  # JSON lines, parquet: the field with the text; null is "text"
    tokenizer_size: int = 512  # vocabulary of the byte-level BPE trained here; ignored if the teacher has a tokenizer
    teacher_share: float = 0.5  # share of the training documents for a teacher trained here
    reference_share: float = 0.15  # share of the training documents for reference students


@dataclass
class TinyTeacher:
    """A teacher trained here and cached (lrc_jax.teachers.tiny)."""

    name: str = "tiny"
    hidden_size: int = 32  # width
    intermediate_size: int = 64  # width of the feed-forward layers
    layers: int = 1  # number of layers
    heads: int = 2  # attention heads
    kv_heads: int = 2  # heads of keys and values
    tied: bool = False  # one matrix for embedding and unembedding
    pool: int = 65536  # sequences of the teacher's own pool (fewer where the text has fewer)
    steps: int = 1500  # training steps, at most
    batch_size: int = 64  # sequences per step
    learning_rate: float = 4e-3  # peak rate of AdamW, decaying to 0 over the steps
    weight_decay: float = 0.0  # weight decay of AdamW
    check_every: int = 100  # steps between looks at the held-out loss
    patience: int = 5  # looks without a new best loss after which training stops
    seed: int = 0  # seed of the teacher's start and of the order of its data
    # Above 0: after training, every matrix gets the singular values k^-planted_spectrum (Frobenius norm kept). The
    # teacher then no longer predicts the language, so labels have to be sampled from it.
    planted_spectrum: float = 0.0


@dataclass
class PretrainedTeacher:
    """A folder in Hugging Face layout, or a .gguf file."""

    name: str = "huggingface"
    path: str = MISSING  # the folder or file


@dataclass
class LanguageTeacher:
    """No network: the synthetic language's own conditionals (for student=bilinear)."""

    name: str = "language"


@dataclass
class Student:
    """Which student (lrc_jax.students), and Low-Rank Clone's switches under the reference's names."""

    name: str = "lrc"  # lrc | direct | scratch | svd | factorized | quantised | bilinear
    # random (the authors' N(0, 0.02^2)) | fan_in (N(0, 1/D)) | pca | channels; factorized: random, pca (each matrix's
    # truncated SVD) or whitened (the activation-aware one)
    init: str = DEFAULT.init
    matrices: str = "all"  # factorized: all | head (the unembedding alone)
    # factorized: none (rank is that of every matrix) | uniform (as many numbers as a clone of this rank, one rank for
    # all matrices) | by_loss (the same size, each matrix at its own rank; needs init=whitened)
    allocation: str = "none"
    bits: int = 8  # quantised: 8 (a scale for each output channel) | 4 (one for every 32 inputs of it)
    whiten: bool = True  # factorized head: SVD in the metric of the teacher's features
    use_all_attn: bool = True  # a projection each for q, k and v; false: one for all three
    use_in_out_mlp: bool = False  # one projection for gate and up; false: one each
    tie_word_emb_proj: bool = False  # embedding and unembedding share their projection
    use_additional_align: bool = False  # layer outputs are compared through projections of their own
    del_layers: list[int] = field(default_factory=list)  # teacher layers that the student leaves out
    target_rms_norm_eps: float | None = None  # eps of the student's norms; null: the teacher's
    unit_embedding: bool = False  # rescale the embedding projection so that embedded tokens start with rms 1
    unit_norm: bool = False  # every trained tensor of the clone keeps its norm, so that smoothness stays bounded


@dataclass
class Optimizer:
    """How a student is trained (lrc_jax.training.train)."""

    name: str = "adamw"  # adamw | sgd
    learning_rate: float = 1e-2  # peak rate; multiplied by steps^-horizon_power
    horizon_power: float = 0.0  # 0.5 is the horizon-tuned step of claim 1
    schedule: str = "cosine"  # cosine | constant | linear | inverse_sqrt
    warmup: float = 0.0  # share of the steps with a linear rise from 0
    clip: float | None = None  # global gradient norm to clip at; null does not clip
    weight_decay: float = 0.0  # decoupled; multiplied by the learning rate
    b1: float = 0.9  # adamw: decay of the mean gradient
    b2: float = 0.999  # adamw: decay of the mean squared gradient
    eps: float = 1e-8  # adamw: added to the denominator


@dataclass
class Loss:
    """Weights of the output losses, and how clone losses are computed. clone_weight and temperature are top-level."""

    kl_weight: float = 1.0  # weight of KL(teacher || student)
    ce_weight: float = 1.0  # weight of the cross-entropy with the labels
    kl_per_token: bool = True  # KL is a mean over tokens; false: summed over positions, as the reference does
    clone_distance: str = DEFAULT.clone_distance  # mseloss | l1loss | mseloss_v2 | l1loss_v2 | normalised
    clone_sites: list[str] = field(default_factory=list)  # names of the clone losses that count; empty: all
    clone_target: str = "teacher"  # teacher | rotated | shuffled: controls of the information claim


@dataclass
class Measure:
    """What is measured on a run besides its losses."""

    test_samples: int = 4096  # test sequences, at most
    # Control variate of the gap: the teacher (free), or a student of the same kind and rank trained by KL on a disjoint
    # pool (trained once, cached; cuts the gap's noise by up to 3).
    reference: str = "teacher"  # teacher | student
    reference_samples: int = 32768  # reference=student: sequences that it is trained on
    reference_steps: int = 0  # reference=student: its steps; 0: as many as the run
    approximation: bool = False  # loss at unlimited samples for this rank (student=bilinear, factorized head)
    clone_fvu: bool = True  # share of the teacher's variance that the clone leaves unexplained, by site
    norms: bool = False  # nuclear and Frobenius norms at the solution, Phi
    information: bool = False  # information between teacher and student activations, by site
    information_samples: int = 2048  # probe sequences
    information_noise: list[float] = field(default_factory=lambda: [0.1])  # noise levels; the claim uses the first
    dynamics: bool = False  # divergence from a direct student, and between two direct ones; angles; kernels
    whiten: list[str] = field(default_factory=list)  # dynamics: classes of teacher matrices to whiten: q, k, v, o, ...
    certificate: bool = False  # a train-only guarantee for quantised students on exactly `samples` sequences
    certificate_dimensions: list[int] = field(default_factory=lambda: [0, 100, 200, 400])  # -1: all projections
    certificate_levels: int = 3  # number of levels to which coefficients are rounded: 3, 5, 7, 11 or 17
    # Failure probability of this run's certificates together; share 0.05 over the sample sizes that are printed.
    certificate_delta: float = 0.025
    ablation: bool = False  # for comparing methods: the method's name, validation loss, intervals over documents
    cloze: int = 0  # number of items of a cloze task on the held-out text (lrc_jax.inference.cloze)
    cost: bool = False  # throughput and latency of inference, and memory (FLOPs and bytes are in every row)
    convergence: bool = False  # squared gradient norm, smoothness, variance along plain SGD
    # Seeds of the pilot runs that give the constants of claim 1's bound; run `seed` uses pilot (seed mod their number).
    pilot_seeds: list[int] = field(default_factory=lambda: [77, 78, 79])
    hessian: bool = False  # the pilot's top Hessian eigenvalue at its end too, by Lanczos
    smoothness_batch: int = 256  # sequences on which the pilot's smoothness along the path is measured
    pool: int = 65536  # f of claim 1 is the mean loss over this finite pool
    spacing: str = "mixed"  # strata of a run of claim 1: mixed | linear (then the plateau of its last half is measured)
    full_batch: bool = False  # control of claim 1: the whole pool at every step, so that the gradient has no noise


@dataclass
class Mesh:
    """Devices of this machine that share a run; data 0 takes all that are left."""

    data: int = 1  # devices that split the batch; 0 takes all that are left
    model: int = 1  # devices that split the teacher's matrices


@dataclass
class RunConfig:
    """One run."""

    rank: int = 8  # width of the student (factorized: rank of its matrices)
    samples: int = 1024  # training sequences N
    steps: int = 500  # optimiser steps T
    seed: int = 0  # seed of the run: its sample, start and order of data
    batch_size: int = 64  # sequences per step
    epochs: float = 0.0  # above 0: steps is epochs * samples / batch_size, and the key steps is ignored
    sequence_length: int = 16  # tokens per sequence
    clone_weight: float = DEFAULT.clone_weight  # weight of the clone losses; 0 leaves them out
    temperature: float = 1.0  # temperature of the distillation loss
    labels: str = "data"  # data: the text's next token; teacher: sampled from the teacher at every position
    bf16: bool = False  # compute in bfloat16; parameters, optimiser and losses stay float32
    # The teacher's activations on the training sequences are computed once for all students that read them, and kept in
    # the cache in this precision: none | float16 | bfloat16 (rounding changes the run's id).
    teacher_cache: str = "none"
    # tokens: exactly `steps`; time: as many steps as fit into the time of `steps` steps of the plain clone
    match: str = "tokens"
    step: str = "fast"  # fast (lrc_jax.compute.fast) | reference (the plain one; equal to rounding)
    claim: str | None = None  # the claim that this run is evidence for; null: any
    arm: str | None = None  # a variant: an ablation, a control, another protocol; null: the claim's primary design
    study: str = "default"  # folder under results_dir that the run belongs to
    teacher: Any = MISSING
    data: Any = MISSING
    student: Student = field(default_factory=Student)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    measure: Measure = field(default_factory=Measure)
    # Keys of the machine, not of the run: they do not enter the run's id.

    results_dir: str = "results"  # where studies lie
    cache_dir: str = ".cache"  # where teachers, reference students and compiled programs are kept
    threads: int = 1  # CPU threads; with one, a run repeats bit by bit
    platform: str = "cpu"  # cpu | cuda | tpu: where JAX computes
    mesh: Mesh = field(default_factory=Mesh)
    accumulate: int = 1  # number of parts of a batch that are computed one after another
    remat: bool = False  # recompute the student's activations in the backward pass
    matmul_precision: str = "highest"  # on GPU: highest (no TF32) | tensorfloat32 | bfloat16; CPU is always float32
    allocator: bool = False  # keep freed memory instead of returning it (Linux/glibc): faster, holds the peak RSS
    force: bool = False  # run finished runs again
    tensorboard: bool = False  # training curves for TensorBoard too (experiments.run_one.tensorboard)


#: Keys that came after studies were run, and their defaults: there they are no part of a run's id.
NEWER: dict[str, dict[str, Any]] = {
    "student": {"allocation": "none", "bits": 8, "unit_norm": False}, "measure": {"cloze": 0},
}  # fmt: skip
MACHINE_KEYS = (
    "results_dir", "cache_dir", "threads", "platform", "matmul_precision", "mesh", "accumulate", "remat",
    "allocator", "force", "tensorboard", "study",
)  # fmt: skip
CHOICES = {
    "labels": ("data", "teacher"),
    "match": ("tokens", "time"),
    "teacher_cache": ("none", "float16", "bfloat16"),
    "step": ("fast", "reference"),
    "matmul_precision": ("highest", "tensorfloat32", "bfloat16"),
    "measure.reference": ("teacher", "student"),
    "measure.spacing": ("mixed", "linear"),
    "student.name": ("lrc", "direct", "scratch", "svd", "factorized", "quantised", "bilinear"),
    "student.bits": (8, 4),
    "student.init": ("random", "fan_in", "pca", "channels", "whitened"),
    "student.allocation": ("none", "uniform", "by_loss"),
    "student.matrices": ("all", "head"),
    "measure.certificate_levels": (3, 5, 7, 11, 17),
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.schedule": ("cosine", "constant", "linear", "inverse_sqrt"),
    "loss.clone_target": ("teacher", "rotated", "shuffled"),
    "loss.clone_distance": ("mseloss", "l1loss", "mseloss_v2", "l1loss_v2", "normalised"),
    "claim": (
        None,
        "convergence",
        "generalization",
        "optimal_rank",
        "information",
        "dynamics",
        "efficiency",
        "compression",
    ),
}
COUNT = 10**8  # steps, sequences and the like: their products with small numbers stay below 2**31
SEED = 2**63 - 1
WIDTH = 2**17
WEIGHT = 1e6  # of a loss, and other factors: their products stay within float32
BELOW_1 = 1 - 1e-7
TINY = 1e-30  # above what float32 rounds to 0
# Every number's range, both ends included. What only some teachers and data have is looked at where it is there.
RANGES: dict[str, tuple[float, float]] = {
    "rank": (1, WIDTH),
    "samples": (1, COUNT),
    "steps": (0, COUNT),
    "seed": (0, SEED),
    "batch_size": (1, COUNT),
    "epochs": (0.0, WEIGHT),
    "sequence_length": (2, WIDTH),
    "clone_weight": (0.0, WEIGHT),
    "temperature": (1e-3, 1e3),
    "threads": (1, 4096),
    "accumulate": (1, COUNT),
    "loss.kl_weight": (0.0, WEIGHT),
    "loss.ce_weight": (0.0, WEIGHT),
    "optimizer.learning_rate": (TINY, WEIGHT),
    "optimizer.horizon_power": (-2.0, 2.0),
    "optimizer.warmup": (0.0, 1.0),  # a share of the steps
    "optimizer.clip": (TINY, 1 / TINY),
    "optimizer.weight_decay": (0.0, WEIGHT),
    "optimizer.b1": (0.0, BELOW_1),
    "optimizer.b2": (0.0, BELOW_1),
    "optimizer.eps": (TINY, WEIGHT),
    "student.target_rms_norm_eps": (0.0, 1.0),
    "measure.test_samples": (1, COUNT),
    "measure.reference_samples": (1, COUNT),
    "measure.reference_steps": (0, COUNT),
    "measure.information_samples": (64, COUNT),
    "measure.certificate_delta": (0.0, 1.0),
    "measure.smoothness_batch": (1, COUNT),
    "measure.cloze": (0, COUNT),
    "measure.pool": (1, COUNT),
    "mesh.data": (0, 4096),
    "mesh.model": (1, 4096),
    "teacher.hidden_size": (1, WIDTH),
    "teacher.intermediate_size": (1, WIDTH),
    "teacher.layers": (1, 1024),
    "teacher.heads": (1, WIDTH),
    "teacher.kv_heads": (1, WIDTH),
    "teacher.pool": (1, COUNT),
    "teacher.steps": (1, COUNT),
    "teacher.batch_size": (1, COUNT),
    "teacher.learning_rate": (TINY, WEIGHT),
    "teacher.weight_decay": (0.0, WEIGHT),
    "teacher.check_every": (1, COUNT),
    "teacher.patience": (1, COUNT),
    "teacher.seed": (0, SEED),
    "teacher.planted_spectrum": (0.0, 10.0),
    "data.vocabulary": (2, 10**6),
    "data.order": (1, 2),
    "data.spectrum": (-10.0, 10.0),
    "data.sharpness": (TINY, 20.0),  # beyond, the rarest of the conditionals round to 0
    "data.unigram": (-20.0, 20.0),
    "data.states": (1, 4096),
    "data.seed": (0, SEED),
    "data.tokenizer_size": (1, 10**7),
    "data.teacher_share": (0.0, 1.0),
    "data.reference_share": (0.0, 1.0),
}
# Sequences that are drawn where the data are a language: their tokens lie in memory.
DRAWN = ("samples", "batch_size", "measure.test_samples", "measure.reference_samples", "measure.information_samples",
         "measure.pool", "measure.smoothness_batch", "teacher.pool", "teacher.batch_size")  # fmt: skip
MOST_TOKENS = 2**30


def register() -> None:
    """Make the schema known to Hydra's composition."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(group="data", name="synthetic_schema", node=SyntheticData)
    store.store(group="data", name="text_schema", node=TextData)
    store.store(group="teacher", name="tiny_schema", node=TinyTeacher)
    store.store(group="teacher", name="pretrained_schema", node=PretrainedTeacher)
    store.store(group="teacher", name="language_schema", node=LanguageTeacher)
    store.store(group="student", name="student_schema", node=Student)
    store.store(group="optimizer", name="optimizer_schema", node=Optimizer)
    store.store(group="measure", name="measure_schema", node=Measure)


def _numbers(prefix: str, node: Any) -> list[tuple[str, float]]:
    """Every number in a dataclass, and in its lists, with its dotted name."""
    found: list[tuple[str, float]] = []
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        name = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            found += _numbers(f"{name}.", value)
        else:
            numbers = value if isinstance(value, list) else [value]
            found += [(name, n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)]
    return found


def _get(config: RunConfig, dotted: str) -> Any:
    """A key's value; None where this kind of teacher or data has no such key."""
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part, None)
    return value


def _out_of(low: float, high: float, value: float) -> str:
    """What is wrong with a number outside its range."""
    if value < low:
        return "must be above 0" if value <= 0 < low < 1 else f"is too small; give at least {low:g}"
    return "must be below 1" if high == BELOW_1 else f"is too large; give at most {high:g}"


def check(config: RunConfig) -> None:
    """Ranges and combinations that need no data. Raises InputError naming the key."""
    study_name(config.study)
    for key, value in _numbers("", config):
        if not math.isfinite(value):
            raise InputError(f"{key}: {value} is not finite; give a number")
    for key, (low, high) in RANGES.items():
        value = _get(config, key)
        if value is not None and not low <= value <= high:
            raise InputError(f"{key}: {value} {_out_of(low, high, value)}")
    for key in DRAWN if isinstance(config.data, SyntheticData) else ():
        count = _get(config, key)
        if count is not None and count * (config.sequence_length + 1) > MOST_TOKENS:
            most = MOST_TOKENS // (config.sequence_length + 1)
            words = f"{count} sequences of {config.sequence_length} tokens do not fit in memory"
            raise InputError(f"{key}: {words}; ask for at most {most}")
    for key, choices in CHOICES.items():
        if _get(config, key) not in choices:
            known = ", ".join(str(c) for c in choices if c is not None)
            raise InputError(f"{key}: {_get(config, key)!r} is unknown; choose one of {known}")
    if config.tensorboard:
        tensorboard.require()
    if config.clone_weight == config.loss.kl_weight == config.loss.ce_weight == 0:
        raise InputError("clone_weight: every loss weight is 0, nothing would be trained; raise one of them")
    if config.measure.convergence and config.optimizer.name != "sgd":
        raise InputError("optimizer: the theorem of measure.convergence is about plain SGD; use optimizer=sgd")
    optimizer = config.optimizer
    if config.measure.convergence and (
        optimizer.schedule not in ("constant", "inverse_sqrt")
        or optimizer.warmup
        or optimizer.weight_decay
        or optimizer.clip is not None
    ):
        raise InputError(
            "optimizer: measure.convergence takes plain steps; use schedule=constant or inverse_sqrt and no warmup, "
            "weight_decay or clip"
        )
    if config.measure.convergence + config.measure.certificate + config.measure.dynamics > 1:
        raise InputError("measure: convergence, certificate and dynamics train in ways of their own; choose one")
    if config.student.matrices == "head" and config.student.name != "factorized":
        raise InputError(f"student.matrices: head needs student=factorized, not {config.student.name}")
    if config.measure.convergence and config.batch_size % 2:
        raise InputError(f"batch_size: {config.batch_size} is odd; measure.convergence splits each batch in halves")
    pilots = config.measure.pilot_seeds
    if config.measure.convergence and (not pilots or config.seed in pilots or min(pilots) < 0):
        raise InputError(
            f"measure.pilot_seeds: {pilots} must hold a seed, none below 0, and not seed = {config.seed}: a run judged "
            "with its own constants proves nothing"
        )
    if config.measure.full_batch and config.labels == "teacher":
        raise InputError("labels: measure.full_batch needs labels=data; labels drawn at each visit are noise")
    if (
        isinstance(config.teacher, TinyTeacher)
        and config.teacher.planted_spectrum
        and config.labels != "teacher"
        and config.loss.ce_weight
    ):
        raise InputError("labels: a teacher with a planted spectrum does not predict the text; use labels=teacher")
    if config.measure.certificate and (config.student.name != "lrc" or not 0 < config.measure.certificate_delta < 1):
        raise InputError("measure.certificate: needs student=lrc and certificate_delta between 0 and 1")
    if config.measure.dynamics and config.student.name != "lrc":
        raise InputError("student: measure.dynamics compares a clone with direct students; use student=lrc")
    if config.measure.information and (
        not config.measure.information_noise or min(config.measure.information_noise) <= 0
    ):
        raise InputError("measure.information_noise: give at least one noise level above 0")
    if isinstance(config.teacher, TinyTeacher) and config.rank > config.teacher.hidden_size:
        width = config.teacher.hidden_size
        raise InputError(f"rank: {config.rank} is outside 1..{width} (the teacher's width); choose a rank within it")
    bilinear, language = config.student.name == "bilinear", isinstance(config.teacher, LanguageTeacher)
    if bilinear != language:
        raise InputError("student: bilinear and teacher=language belong together; set both or neither")
    if bilinear and not (
        isinstance(config.data, SyntheticData) and config.data.kind == "markov" and config.data.order == 1
    ):
        raise InputError("data: student=bilinear needs data=synthetic data.kind=markov data.order=1")
    if isinstance(config.data, TextData) and config.data.name == "text" and not config.data.path:
        raise InputError("data.path: data=text needs a file or folder; give data.path=PATH")
    if config.measure.cloze and isinstance(config.data, SyntheticData):
        raise InputError("measure.cloze: asks for continuations of a text; use data=text or data=wikitext2")
    if isinstance(config.data, SyntheticData) and isinstance(config.teacher, PretrainedTeacher):
        raise InputError("data: a pretrained teacher reads text; use data=text data.path=PATH or data=wikitext2")


def typed(raw: DictConfig) -> RunConfig:
    """Hydra's composed config as a checked RunConfig."""
    config = OmegaConf.to_object(raw)
    assert isinstance(config, RunConfig), type(config)
    return checked(config)


def checked(config: RunConfig) -> RunConfig:
    """The same with steps that follow from epochs. Raises InputError naming a key that is out of range."""
    if config.epochs > 0:
        config.steps = max(1, round(config.epochs * config.samples / config.batch_size))
    check(config)
    return config


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes two runs the same experiment: the resolved config less the machine's keys and paths (files are
    identified by their digests instead)."""
    plain = dataclasses.asdict(config)
    for key in MACHINE_KEYS:
        del plain[key]
    if config.accumulate > 1 and (config.loss.clone_distance == "normalised" or config.loss.clone_target == "shuffled"):
        plain["accumulate"] = config.accumulate  # these losses are of each part: a whole batch has another
    for group in ("data", "teacher"):
        plain[group].pop("path", None)
    plain["data"].pop("field", None)
    for group, defaults in NEWER.items():
        for key, default in defaults.items():
            if plain[group][key] == default:
                del plain[group][key]
    return plain
