"""A worker of the bench: one of the ways to compute our training step, or a large product (see experiments/bench.py).

python -m experiments.bench.step --preset small --variant ours|plain|naive|together|run|matmul|count
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench import presets
from experiments.bench.presets import PRECISIONS, PRESETS, Preset
from experiments.bench.timing import pin, serve
from experiments.common.command import prepare_jax
from experiments.run_one.config import RunConfig

if TYPE_CHECKING:
    from lrc_jax.training.train import TrainState

VARIANTS = ("ours", "plain", "naive", "together", "run", "matmul", "count")
MATMUL = {"cpu": 2048, "cuda": 8192}  # rows, columns and depth of the large product
MATMULS = 4  # products in a "step" of that worker


@dataclasses.dataclass(frozen=True)
class Setup:
    """A preset as the arguments of `lrc_jax.training.train`."""

    preset: Preset
    student: Any
    objective: Any
    optimizer: Any
    config: Any
    frozen: Any
    hyper: Any
    params: Any
    pool: Any

    def state(self) -> TrainState:
        import jax
        import jax.numpy as jnp

        from lrc_jax.training.train import TrainState

        opt_state = jax.jit(self.optimizer.direction().init)(self.params)
        return TrainState(jax.tree.map(jnp.array, self.params), opt_state, jnp.zeros((), jnp.int32))


def set_up(preset: Preset) -> Setup:
    """Teacher, clone and batches of a preset."""
    import jax.numpy as jnp
    import numpy as np

    from lrc_jax.clone import CloneFlags
    from lrc_jax.data.pools import Pool
    from lrc_jax.losses import IGNORE
    from lrc_jax.model import DecoderConfig
    from lrc_jax.objective import LossWeights, Objective
    from lrc_jax.students import Frozen, StudentOptions, make_student
    from lrc_jax.teachers.huggingface import build_weights
    from lrc_jax.training.train import CHUNK, Hyper, OptimizerSpec

    config = DecoderConfig(
        preset.vocabulary,
        preset.hidden_size,
        preset.intermediate_size,
        preset.layers,
        preset.heads,
        preset.kv_heads or preset.heads,
        preset.hidden_size // preset.heads,
        presets.RMS_NORM_EPS,
        presets.ROPE_THETA,
    )
    teacher = build_weights(config, presets.teacher_tensors(preset).__getitem__)
    weights = LossWeights(*(jnp.float32(x) for x in (presets.CLONE_WEIGHT, 1, 1, presets.TEMPERATURE)))
    tokens_CBT = np.stack([presets.batch(preset, i) for i in range(CHUNK)])
    labels_CBT = np.concatenate([tokens_CBT[..., 1:], np.full_like(tokens_CBT[..., :1], IGNORE)], axis=-1)
    return Setup(
        preset,
        make_student("lrc", config, CloneFlags(preset.rank), StudentOptions()),
        Objective(),
        OptimizerSpec(schedule="constant", b1=presets.BETAS[0], b2=presets.BETAS[1], eps=presets.ADAM_EPS),
        config,
        Frozen(teacher),
        Hyper(jnp.float32(presets.LEARNING_RATE), jnp.int32(10**6), jnp.int32(preset.batch_size), weights),
        {name: jnp.asarray(x) for name, x in presets.projection_tensors(preset).items()},
        Pool(tokens_CBT, labels_CBT),
    )


def trainer(setup: Setup, bf16: bool = False) -> Callable[[int], dict[str, float]]:
    """Our step, many in one compiled program, as `lrc_jax.training.train.train` runs it."""
    import jax
    import numpy as np

    from lrc_jax.training.train import CHUNK, StepOptions, train_chunk

    state, pool, frozen = setup.state(), jax.device_put(setup.pool), jax.device_put(setup.frozen)

    def run(steps: int) -> dict[str, float]:
        nonlocal state
        while steps > 0:
            count = min(steps, CHUNK)
            state, terms, _ = train_chunk(
                setup.student, setup.objective, setup.optimizer, setup.config, state, frozen, pool,
                setup.hyper, np.int32(count), StepOptions(bf16=bf16),
            )  # fmt: skip
            steps -= count
        return {name: float(getattr(terms, name)[count - 1]) for name in ("total", "clone", "kl", "ce")}

    return run


def whole_run(setup: Setup) -> Callable[[int], dict[str, float]]:
    """Whole runs on labels alone, from the student's start to its end."""
    import jax
    import numpy as np

    from lrc_jax.objective import Objective
    from lrc_jax.training.train import train

    # The batches' sequences as one pool; labels everywhere, as the studies sample them from the teacher.
    tokens_NT = setup.pool.tokens_NT.reshape(-1, setup.preset.length)
    pool = dataclasses.replace(setup.pool, tokens_NT=tokens_NT, labels_NT=np.roll(tokens_NT, -1, axis=1))
    objective, keys = Objective(clone=False, kl=False), jax.random.split(jax.random.key(0))

    def run(steps: int) -> dict[str, float]:
        hyper = dataclasses.replace(setup.hyper, steps=np.int32(steps), samples=np.int32(pool.size))
        _, history = train(
            setup.student, objective, setup.optimizer, setup.config, setup.frozen, pool, hyper,
            batch_size=setup.preset.batch_size, init_key=keys[0], order_key=keys[1], progress=lambda *_: None,
        )  # fmt: skip
        return history.row(-1)

    return run


def naive_step(setup: Setup) -> Callable[..., Any]:
    """The step as one would first write it in JAX: activations [B, T, D], a scan over stacked layers, a merged
    embedding table, everything differentiated by JAX. The mathematics is that of `setup`."""
    import jax
    import jax.numpy as jnp

    from lrc_jax import model
    from lrc_jax.objective import evaluate_objective
    from lrc_jax.training.train import train_step

    def attention(config: Any, q_BTQ: Any, k_BTK: Any, v_BTK: Any, batch: int) -> Any:
        q_NQ, k_NK, v_NK = (x.reshape(-1, x.shape[-1]) for x in (q_BTQ, k_BTK, v_BTK))
        return model.causal_attention(config, q_NQ, k_NK, v_NK, batch).reshape(q_BTQ.shape)

    operations = model.PLAIN._replace(attention=attention)

    def forward(config: Any, weights: model.Weights, tokens_BT: Any) -> model.Activations:
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *weights.layers)

        def layer(x_BTD: Any, w: Any) -> Any:
            return model.decoder_layer(config, w, x_BTD, len(tokens_BT), operations)

        x_BTD, acts = jax.lax.scan(layer, weights.embed_VD[tokens_BT], stacked)
        final_BTD = model.rms_norm(x_BTD, weights.final_norm_D, config.rms_norm_eps)
        logits_BTV = final_BTD @ weights.unembedding_DV()
        layers = tuple(
            jax.tree.map(lambda x, i=i: x[i].reshape(-1, x.shape[-1]), acts) for i in range(config.num_layers)
        )
        flat = logits_BTV.reshape(-1, logits_BTV.shape[-1])
        return model.Activations(flat, embedded_ND=x_BTD, layers=layers, hidden_ND=(), final_ND=final_BTD)

    def loss(params: Any, frozen: Any, weights: Any, batch: Any, _: Any) -> Any:
        teacher = forward(setup.config, frozen.teacher, batch.tokens_NT)
        student = forward(setup.student.config, setup.student.weights(params, frozen), batch.tokens_NT)
        pairs = setup.student.clone_pairs(params, frozen, teacher, student)
        terms = evaluate_objective(setup.objective, weights, pairs, teacher, student, batch.labels_NT)
        return terms.total, terms

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        return train_step(loss, setup.optimizer, state, frozen, setup.hyper, batch, None)

    return jax.jit(step, donate_argnums=0)


def naive_trainer(setup: Setup) -> Callable[[int], dict[str, float]]:
    import jax

    state, step = setup.state(), naive_step(setup)

    def run(steps: int) -> dict[str, float]:
        nonlocal state
        for i in range(steps):
            state, row = step(state, setup.frozen, jax.tree.map(lambda x, i=i: x[i], setup.pool))
        return dict(zip(("total", "clone", "kl", "ce"), map(float, row), strict=False))

    return run


def trainer_together(setup: Setup, students: int) -> Callable[[int], dict[str, float]]:
    """Steps of `students` equal clones on the same batches with one forward pass of the teacher."""
    import jax
    import numpy as np

    from lrc_jax.training.together import Shape, fused_chunk

    def stacked(tree: Any) -> Any:  # one stream of `students` members
        return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (1, students, *x.shape)).copy(), tree)

    states: Any = (stacked(setup.state()),)
    hypers, pool = (stacked(setup.hyper),), jax.tree.map(lambda x: x[None], setup.pool)
    shapes = (Shape(setup.student, setup.objective, setup.optimizer),)

    def run(steps: int) -> dict[str, float]:
        nonlocal states
        states, logs = fused_chunk(
            shapes, setup.config, False, False, states, (setup.frozen,), hypers, (None,), pool, np.int32(steps)
        )
        return dict(zip(("total", "clone", "kl", "ce"), map(float, logs[0][0, -1, steps - 1]), strict=False))

    return run


def large_products(width: int, bf16: bool = False) -> Callable[[int], dict[str, float]]:
    """MATMULS products of random matrices of a width, a step."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (width, width), jnp.bfloat16 if bf16 else jnp.float32) / width**0.5

    @jax.jit
    def products(x: Any) -> Any:
        for _ in range(MATMULS):
            x = x @ a
        return x

    def run(steps: int) -> dict[str, float]:
        for _ in range(steps):
            product = products(a)
        product.block_until_ready()
        return {}

    return run


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of all matrix products that a traced function does (a multiply-add is two)."""
    import jax

    def inside(jaxpr: Any) -> float:
        total = 0.0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
                total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            subs = [s for v in equation.params.values() for s in (v if isinstance(v, tuple | list) else (v,))]
            total += sum(inside(getattr(s, "jaxpr", s)) for s in subs if hasattr(getattr(s, "jaxpr", s), "eqns"))
        return total

    return inside(jax.make_jaxpr(function)(*arguments).jaxpr)


def arithmetic(setup: Setup) -> dict[str, float]:
    """FLOPs of the matrix products of our step, and of the teacher's share of it."""
    import jax

    from lrc_jax.compute import fast
    from lrc_jax.training.train import loss_and_grads

    batch = jax.tree.map(lambda x: jax.device_put(x[0]), setup.pool)

    def step(params: Any) -> Any:
        from lrc_jax.training.train import StepOptions

        return loss_and_grads(
            setup.student, setup.objective, setup.config, StepOptions(), params, setup.frozen, setup.hyper.loss, batch
        )

    def teacher(tokens_BT: Any) -> Any:
        return fast.forward(setup.config, setup.frozen.teacher, tokens_BT)

    return {
        "step_flops": product_flops(step, setup.params),
        "teacher_flops": product_flops(teacher, batch.tokens_NT),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.step", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--variant", choices=VARIANTS, default="ours")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--allocator", action="store_true")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the compilation cache")
    args = parser.parse_args()
    if args.platform == "cpu":
        pin(args.threads)
    prepare_jax(
        RunConfig(
            threads=args.threads,
            allocator=args.allocator,
            cache_dir=str(args.cache),
            platform=args.platform,
            matmul_precision="tensorfloat32" if args.precision == "tensorfloat32" else "highest",
        )
    )
    import jax

    from lrc_jax import clock
    from lrc_jax.compute.fast import computed

    clock.start()
    bf16 = args.precision == "bfloat16"
    preset = PRESETS[args.preset]

    def facts() -> dict[str, float]:
        return {"compile_s": clock.stop()["compiling"]}

    def peak_mb() -> float:
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6

    memory = None if args.platform == "cpu" else peak_mb
    if args.variant == "matmul":
        width = MATMUL[args.platform]
        flops = {"products_flops": 2.0 * width**3 * MATMULS}
        if args.platform == "cpu":
            flops |= arithmetic(set_up(preset))
        serve(large_products(width, bf16), lambda: flops)
        return 0
    setup = set_up(preset)
    with computed("fast" if args.variant in ("ours", "together", "count") else "reference"):
        if args.variant == "count":
            serve(trainer(setup), lambda: arithmetic(setup))
            return 0
        if args.variant == "naive":
            run = naive_trainer(setup)
        elif args.variant == "run":
            run = whole_run(setup)
        elif args.variant == "together":
            run = trainer_together(setup, args.students)
        else:
            run = trainer(setup, bf16)
        serve(run, facts, memory)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
