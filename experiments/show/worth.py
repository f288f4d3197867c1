"""What a clone is worth, across kept tables: the best method for a budget, and whether loss stands for capability."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.artist import Artist
from scipy.stats import spearmanr

from theory.judge.methods import CLONE, best_rates, kind_of
from theory.show.axes import column
from theory.show.claims import Drawn
from theory.show.markdown import markdown_table
from theory.show.methods import method_colours
from theory.show.theme import CLAIMED

STUDY, TRUNCATED = "worth", Path("bench/smollm2_truncated.csv")
PARTS = {
    "wikitext2_64": "teacher of width 64, WikiText-2",
    "wikitext2_128": "teacher of width 128, WikiText-2",
    "stories260k": "stories260k, TinyStories",
    "smollm2": "SmolLM2-135M, WikiText-2",
}
CELL = ["weight_bytes", "method", "tokens"]
TIE = 0.02  # nats per token: methods closer than this to the best are named with it
SAME_SIZE = 0.02  # relative
RESAMPLED = 2000
CHANCE = 0.25  # of a cloze task with four choices


@dataclasses.dataclass(frozen=True)
class Best:
    """Who is best for one budget of tokens and one size."""

    setting: str
    tokens: int
    weight_bytes: float
    rank: int
    method: str
    loss: float
    ties: tuple[str, ...]
    clone_loss: float
    training_flops: float


def read_kept(reference: Path) -> dict[str, pd.DataFrame]:
    """Words for a setting -> the kept table of its part of the study; settings that are not kept are left out."""
    tables = {words: reference / STUDY / part / "measurements.csv" for part, words in PARTS.items()}
    return {words: pd.read_csv(path, low_memory=False) for words, path in tables.items() if path.is_file()}


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Trained rows at each cell's learning rate with the lowest validation loss."""
    trained = frame[(frame["tokens"] > 0) & frame["method"].notna()]
    return best_rates(trained, "measurements.csv", CELL)[0]


def guideline(setting: str, frame: pd.DataFrame) -> Iterator[Best]:
    """The best trained method at every size and budget at which the clone was compared, by mean test loss."""
    rows = chosen(frame)
    cells = rows.groupby(CELL).agg(
        loss=("test_loss", "mean"), rank=("rank", "first"), flops=("training_flops", "first")
    )
    cells = cells.reset_index()
    for _, clone in cells[cells["method"].map(kind_of) == CLONE].iterrows():
        near = cells[
            (cells["tokens"] == clone["tokens"])
            & (np.abs(np.log(cells["weight_bytes"] / clone["weight_bytes"])) < 0.02)
        ]
        if len(near) < 2:
            continue
        best = near.loc[near["loss"].idxmin()]
        ties = near[(near["loss"] <= best["loss"] + TIE) & (near["method"] != best["method"])]
        yield Best(
            setting, int(clone["tokens"]), float(clone["weight_bytes"]), int(clone["rank"]), str(best["method"]),
            float(best["loss"]), tuple(sorted(ties["method"])), float(clone["loss"]),
            float(best["flops"]),
        )  # fmt: skip


def guideline_markdown(tables: Mapping[str, pd.DataFrame]) -> str:
    """The guideline as a Markdown table: settings, then sizes, then budgets."""
    names = ("teacher and text", "rank of the clone, size", "training tokens", "best method", "its loss",
             "within 0.02 nats of it", "the clone's loss", "training FLOPs of the best")  # fmt: skip
    rows = []
    for setting, frame in tables.items():
        for b in sorted(guideline(setting, frame), key=lambda b: (b.weight_bytes, b.tokens)):
            ties = ", ".join(f"`{name}`" for name in b.ties) or "none"
            losses = f"{b.loss:.3f}", ties, f"{b.clone_loss:.3f}"
            size = f"{b.rank}, {size_words(b.weight_bytes)}"
            rows.append((setting, size, f"{b.tokens:,}", f"`{b.method}`", *losses, f"{b.training_flops:.2g}"))
    return markdown_table(names, rows)


def scaling_rows(tables: Mapping[str, pd.DataFrame], method: str = "clone:pca") -> pd.DataFrame:
    """A row per run of a method at its cell's best rate, for a fit of loss against size, tokens and teacher loss.

    Args:
      tables: `read_kept`. The settings count that share text and tokenizer: WikiText-2 with a teacher trained here.
    """
    columns = ["setting", "inference_params", "tokens", "teacher_loss", "seed", "test_loss"]
    parts = []
    for part in ("wikitext2_64", "wikitext2_128"):
        if PARTS[part] in tables:
            rows = chosen(tables[PARTS[part]])
            parts.append(rows[rows["method"] == method].assign(setting=part)[columns])
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts).sort_values(["setting", "inference_params", "tokens", "seed"], ignore_index=True)


# --- the verdicts of the study ---------------------------------------------------------------------------------------

Claims = Mapping[str, Any]  # of a verdict's JSON


def efficiency_markdown(verdicts: Mapping[str, Claims]) -> str:
    """Claim 6: the word of every setting, the difference at the largest budget, and F at the ends of its range.

    Args:
      verdicts: words for a setting -> the claims of its verdict's JSON.
    """
    rows = []
    for setting, claims in verdicts.items():
        for found in of_tokens(claims):
            far = found["performance"]
            targets = found["targets"]
            ends = [f"{factor_words(t)} at {t['loss']:.2f}" for t in (targets[0], targets[-1])] if targets else ["", ""]
            gap = f"{far['estimate']:+.3f} [{far['ci95'][0]:+.3f}, {far['ci95'][1]:+.3f}]"
            rows.append((setting, claims["efficiency"]["verdict"], f"{far['tokens']:,.0f}", gap, *ends))
    names = ("teacher and text", "verdict", "largest budget, tokens", "the clone's loss - direct training's, nats",
             "F at the highest loss that both reach", "F at the lowest")  # fmt: skip
    return markdown_table(names, rows)


def factors_markdown(verdicts: Mapping[str, Claims]) -> str:
    """Claim 6: F in tokens at every target loss."""
    rows = [
        (setting, f"{t['loss']:.3f}", factor_words(t), f"{t['clone_budget']:,.0f}", f"{t['direct_budget']:,.0f}")
        for setting, claims in verdicts.items()
        for found in of_tokens(claims)
        for t in found["targets"]
    ]
    names = "teacher and text", "loss", "F, 95 % interval", "tokens of the clone", "tokens of direct training"
    return markdown_table(names, rows)


def compression_markdown(verdicts: Mapping[str, Claims]) -> str:
    """Claim 7: the clone against every rival that was trained or rounded, at every size and measure of cost."""
    rows = []
    for setting, claims in verdicts.items():
        for found in claims.get("compression", {}).get("comparisons", ()):
            for duel in found["duels"]:
                if duel["rival"].endswith(":untrained"):
                    continue
                low, high = duel["ci95"]
                at = size_words(duel["at"]) if found["cost"] == "weight_bytes" else f"{duel['at']:,.0f} FLOPs per token"
                gap = f"{duel['estimate']:+.3f} [{low:+.3f}, {high:+.3f}]"
                rows.append((setting, found["verdict"], at, f"`{duel['rival']}`", duel["cost"], gap))
    names = (
        "teacher and text",
        "verdict",
        "cost of the clone",
        "rival",
        "its cost",
        "the clone's loss minus the rival's, nats",
    )
    return markdown_table(names, rows)


def of_tokens(claims: Claims) -> Iterator[Mapping[str, Any]]:
    """The comparisons over tokens of claim 6, where losses were compared at all."""
    for found in claims.get("efficiency", {}).get("comparisons", ()):
        if found["budget"] == "tokens" and found["performance"]:
            yield found


def factor_words(target: Mapping[str, Any]) -> str:
    low, high = target["ci95"]
    return f"{target['estimate']:.2f} [{low:.2f}, {high:.2f}]"


def size_words(weight_bytes: float) -> str:
    return f"{weight_bytes / 1e3:,.0f} kB" if weight_bytes < 1e6 else f"{weight_bytes / 1e6:,.0f} MB"


def truncated_markdown(frame: pd.DataFrame) -> str:
    """What a teacher loses untrained, at shares of its parameters: the table of `experiments.bench.truncated`."""
    rows = []
    for row in frame.to_dict("records"):
        loss = f"{row['test_loss']:.3f}", f"{row['perplexity']:,.4g}"
        rows.append((f"`{row['method']}`", f"{row['share']:.2f}", size_words(row["weight_bytes"]), *loss))
    return markdown_table(("way", "share of the parameters", "size", "loss, nats per token", "perplexity"), rows)


def tables_of_study(reference: Path, verdicts: Mapping[Path, Claims]) -> dict[str, str]:
    """Name -> Markdown of everything that the pages show of the study; empty where it is not kept.

    Args:
      verdicts: folder of a kept table, from `reference` -> its claims.
    """
    shown = {}
    if (truncated := reference / TRUNCATED).is_file():
        shown["truncated"] = truncated_markdown(pd.read_csv(truncated))
    if tables := read_kept(reference):
        found = {words: verdicts[Path(STUDY) / part] for part, words in PARTS.items() if Path(STUDY) / part in verdicts}
        shown |= {
            "guideline": guideline_markdown(tables),
            "worth_efficiency": efficiency_markdown(found),
            "worth_factors": factors_markdown(found),
            "worth_compression": compression_markdown(found),
        }
    return {name: table + "\n" for name, table in shown.items()}


# --- capability beside loss ------------------------------------------------------------------------------------------


def answered(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The students that answered a cloze task, of the settings that have some.

    Args:
      tables: `read_kept`.
    """
    columns = ["method", "test_loss", "cloze_accuracy", "teacher_loss", "teacher.cloze_accuracy", "cloze_items"]
    asked = {words: frame for words, frame in tables.items() if "cloze_accuracy" in frame}
    return {words: frame.dropna(subset=["cloze_accuracy", "method"])[columns] for words, frame in asked.items()}


def rank_correlation(loss: np.ndarray, cloze: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation of loss and accuracy over students, with a 95 % bootstrap interval over students."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(loss), (RESAMPLED, len(loss)))
    values = [spearmanr(loss[d], cloze[d]).statistic for d in draws]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(spearmanr(loss, cloze).statistic), float(low), float(high)


def cloze_against_loss(tables: Mapping[str, pd.DataFrame]) -> Drawn | None:
    """Accuracy on a cloze task against held-out loss, a point per student and a panel per setting.

    Args:
      tables: `answered`.
    """
    if not tables:
        return None
    figure = column(2.4 * len(tables) + 0.5)
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    colours = method_colours(m for frame in tables.values() for m in frame["method"])
    points, said = [], []
    handles: dict[str, Artist] = {}
    for axes, (setting, frame) in zip(panels, tables.items(), strict=True):
        for method, part in frame.groupby("method"):
            style = {"ms": 3, "alpha": 0.6, "color": colours[str(method)]}
            handles[str(method)] = axes.plot(part["test_loss"], part["cloze_accuracy"], "o", **style)[0]
        teacher = frame.iloc[0]
        axes.plot(teacher["teacher_loss"], teacher["teacher.cloze_accuracy"], "*", ms=9, color=rcParams["text.color"])
        axes.annotate("teacher", (teacher["teacher_loss"], teacher["teacher.cloze_accuracy"]), xytext=(6, -3),
                      textcoords="offset points", fontsize=7)  # fmt: skip
        axes.axhline(CHANCE, **CLAIMED)
        whole, low, high = rank_correlation(frame["test_loss"].to_numpy(), frame["cloze_accuracy"].to_numpy())
        said.append(f"{setting}: {len(frame)} students, rank correlation {whole:.2f} ({low:.2f} to {high:.2f})")
        axes.set(title=setting, xlabel="held-out loss (nats/token)", ylabel="cloze accuracy")
        points.append(frame.assign(setting=setting))
    figure.legend(handles.values(), handles.keys(), ncols=3, loc="outside upper center", fontsize=6)
    caption = (
        "Does loss stand for capability here? Share of cloze questions answered (four choices; dashed: chance) against "
        f"held-out loss, a point per student, the teacher as a star. {'; '.join(said)}."
    )
    return Drawn("cloze_against_loss", caption, figure, pd.concat(points, ignore_index=True))
