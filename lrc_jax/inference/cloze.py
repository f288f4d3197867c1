"""A cloze task made of any text: which of four continuations is the true one?

The true one follows its context in a held-out document; the others begin sentences of other documents and have as many
words. Chance is one in four. A folder holds the items and a task file for lm-eval that reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrc_jax.errors import InputError
from lrc_jax.inference.score import continuation_scores, encode_pair
from lrc_jax.model import DecoderConfig, Weights
from lrc_jax.seeds import rng_for
from lrc_jax.teachers.tokenizer import Tokenizer

ITEMS_FILE = "items.jsonl"
CHOICES = 4
ENDS = (".", "!", "?", '."', '!"', '?"')  # of a sentence's last word


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
      context: what precedes. choices: continuations, without the space before them. answer: number of the true one.
      document: number of its document.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    document: int


def build_items(
    documents: Iterable[str], count: int, *, seed: int = 0, context_words: int = 40, words: int = 10
) -> list[Item]:
    """Make items; equal arguments give equal items, and fewer are a part of more.

    Args:
      documents: held-out text.
      count: items, at most as many as there are sentences that can be asked for.
      context_words: at most; at least half of them. words: of a continuation.

    Raises:
      InputError: fewer than four documents have a sentence of that many words, or too few can be asked for.
    """
    split = [text.split() for text in documents]
    starts = [[i for i in range(1, len(d) - words + 1) if d[i - 1].endswith(ENDS) and d[i].strip('"=')] for d in split]
    some = [k for k, s in enumerate(starts) if s]
    if len(some) < CHOICES:
        raise InputError(
            f"--text: {len(some)} held-out documents have a sentence to continue by {words} words and {CHOICES} are "
            "needed; give more text, or fewer --words"
        )
    asked = [(k, i) for k in some for i in starts[k] if i >= context_words // 2]
    if count > len(asked):
        raise InputError(f"--items: {count} asked, the held-out text has {len(asked)}; ask for fewer or give more text")
    rng = rng_for(seed, "cloze")
    items = []
    for at in rng.permutation(len(asked))[:count]:
        k, i = asked[at]
        others = rng.choice([o for o in some if o != k], CHOICES - 1, replace=False)
        begins = [(k, i), *((int(o), int(rng.choice(starts[o]))) for o in others)]
        order = rng.permutation(CHOICES)
        choices = tuple(" ".join(split[begins[j][0]][begins[j][1] : begins[j][1] + words]) for j in order)
        context = " ".join(split[k][max(0, i - context_words) : i])
        items.append(Item(context, choices, int(np.flatnonzero(order == 0)[0]), k))
    return items


def write_task(folder: Path, name: str, items: Sequence[Item]) -> None:
    """Write items and lm-eval's task file into an existing folder."""
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in items)
    (folder / ITEMS_FILE).write_text("".join(lines), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"""# For lm-eval: run it in this folder, lm_eval --include_path . --tasks {name} ...
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {ITEMS_FILE}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
""",
        encoding="utf-8",
    )


def read_items(folder: Path) -> list[Item]:
    """Items of a folder.

    Raises:
      InputError: there are none, or a line is no item.
    """
    path = folder / ITEMS_FILE
    if not path.is_file():
        raise InputError(f"{path}: does not exist; `lrc cloze --text FILE --out {folder}` makes one")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            raw = json.loads(line)
            item = Item(raw["context"], tuple(raw["choices"]), raw["answer"], raw["document"])
            if not item.context.strip() or not 0 <= item.answer < len(item.choices):
                raise ValueError("the context is empty, or the answer is no choice")
        except (ValueError, KeyError, TypeError) as wrong:
            raise InputError(f"{path}, line {number}: no item ({wrong}); make the task again") from None
        items.append(item)
    if not items:
        raise InputError(f"{path}: has no item; make the task again")
    return items


def choices_made(config: DecoderConfig, weights: Weights, tokenizer: Tokenizer, items: Sequence[Item]) -> np.ndarray:
    """The continuation [items] of the largest log probability, one number for each item.

    Contexts that are too long for the model lose their beginning.
    """
    pairs = [encode_pair(tokenizer, item.context, f" {choice}") for item in items for choice in item.choices]
    logs = iter(log for log, _ in continuation_scores(config, weights, pairs))
    return np.array([np.argmax([next(logs) for _ in item.choices]) for item in items])


def accuracy(made: np.ndarray, items: Sequence[Item]) -> dict[str, Any]:
    """Share of true choices with its 95 % interval over items (Wilson 1927)."""
    from scipy.stats import binomtest  # here, since it takes a third of a second to load

    right = int(np.sum(made == np.array([item.answer for item in items])))
    interval = binomtest(right, len(items)).proportion_ci(method="wilson")
    return {"accuracy": right / len(items), "ci95": [float(interval.low), float(interval.high)], "items": len(items)}
