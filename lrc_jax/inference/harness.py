"""A model of ours behind lm-eval's interface: its tasks run in JAX (extra `lm_eval`).

from lm_eval import simple_evaluate
simple_evaluate(model=HarnessModel(load_teacher("student/")), tasks=["piqa"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from lrc_jax.errors import InputError
from lrc_jax.inference.generate import generate
from lrc_jax.inference.score import continuation_scores
from lrc_jax.teachers.load import Teacher

MOST_NEW = 256  # tokens of a generated answer where the task names no number


class HarnessModel(TemplateLM):
    """A teacher, or an exported student, as lm-eval's causal model."""

    def __init__(self, model: Teacher) -> None:
        super().__init__()
        self.model = model
        self.tokens = model.require_tokenizer()

    @property
    def eot_token_id(self) -> int:
        """What precedes a text that has no context."""
        start = self.tokens.bos_id if self.tokens.bos_id is not None else self.tokens.eos_id
        if start is None:
            raise InputError("tokenizer: has neither a start nor an end token, and the task asks for an empty context")
        return start

    @property
    def max_length(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.source)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        del kwargs
        return self.tokens.encode(string, add_bos=add_special_tokens is not False).tolist()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        del kwargs
        pairs = [(context, continuation) for _, context, continuation in requests]
        return continuation_scores(self.model.config, self.model.weights, pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability of whole texts, in windows of the model's length without overlap."""
        del disable_tqdm
        totals = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            pairs = [utils.make_disjoint_window(window) for window in windows]
            scores = continuation_scores(self.model.config, self.model.weights, pairs)
            totals.append(float(np.sum([log for log, _ in scores])))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, or drawn ones where the task asks for a temperature."""
        del disable_tqdm
        answers = []
        for request in requests:
            prompt, how = request.args
            ends = how.get("until") or []
            count = min(int(how.get("max_gen_toks", MOST_NEW)), self.max_length - 1)
            ids = self.tok_encode(prompt)[-(self.max_length - count) :]
            warm = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
            answer = generate(
                self.model.config, self.model.weights, self.tokens, self.tokens.decode(ids), count=count,
                temperature=warm, top_p=float(how.get("top_p", 1.0)),
            )  # fmt: skip
            for end in [ends] if isinstance(ends, str) else ends:
                answer = answer.split(end)[0] if end else answer
            answers.append(answer)
        return answers


def evaluate_tasks(
    model: Teacher, names: Sequence[str], *, limit: int | None = None, folder: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Run lm-eval's tasks.

    Args:
      names: of tasks that lm-eval knows, or that a task file of `folder` defines.
      limit: items of each task; None takes all.

    Returns:
      Task -> its metrics, `NAME` and `NAME_stderr`; None where one is not defined.

    Raises:
      InputError: a task is unknown.
    """
    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise InputError(f"--tasks: {unknown[0]} is no folder of a cloze task and no task of lm-eval")
    found = simple_evaluate(
        model=HarnessModel(model), tasks=list(names), limit=limit, task_manager=manager, bootstrap_iters=1000
    )
    results: dict[str, dict[str, Any]] = {}
    for name, metrics in found["results"].items():
        numbers = {key.removesuffix(",none"): value for key, value in metrics.items() if key.endswith(",none")}
        results[name] = {key: float(v) if isinstance(v, int | float) else None for key, v in numbers.items()}
    return results
