"""Students of a study side by side.

One line per kind of student and rank: test loss with its standard error (over seeds where there are several, else over
test sequences), the loss that it started from, perplexity, trained numbers, tokens trained on.
"""

from __future__ import annotations

import math

import pandas as pd

from lrc_jax.errors import InputError

KEYS = [
    "claim", "arm", "match", "labels", "student", "matrices", "init", "clone_weight", "kl_weight", "learning_rate",
    "rank", "samples", "steps",
]  # fmt: skip


def side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of student; means over seeds.

    Raises:
      InputError: no run of the study has a test loss.
    """
    if "test_loss" not in frame or frame["test_loss"].isna().all():
        raise InputError("study: none of its runs has a test loss; there is nothing to compare")
    # Some runs have several rows (a site, a configuration, each), some measure no loss.
    frame = frame.dropna(subset=["test_loss"])
    if "run_id" in frame:  # a stranger's table has none: a row is a run there
        frame = frame.drop_duplicates("run_id")
    keys = [k for k in KEYS if k in frame and frame[k].notna().any()]
    out = []
    for values, part in frame.groupby(keys, dropna=False):
        several = len(part) > 1
        se = part["test_loss"].std(ddof=1) / math.sqrt(len(part)) if several else part["test_loss_se"].iloc[0]
        out.append(
            dict(zip(keys, values, strict=True))
            | {
                "seeds": len(part),
                "start": part["start_test_loss"].mean() if "start_test_loss" in part else math.nan,
                "test_loss": part["test_loss"].mean(),
                "se": se,
                "perplexity": math.exp(part["test_loss"].mean()),
                "params": int(part["params"].iloc[0]),
                "tokens": int((part["steps"] * part["batch_size"] * part["sequence_length"]).iloc[0]),
                "teacher_loss": part["teacher_loss"].mean(),
            }
        )
    return pd.DataFrame(out).sort_values("test_loss", ignore_index=True)
