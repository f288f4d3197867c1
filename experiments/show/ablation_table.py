"""The table and the figure of an ablation.

Writes results/<study>/ablation.csv and figures/ablation.pdf, .png and .csv, from the study's runs alone; with `keep`
also the table as results/reference/ablation/TEACHER.csv, from which the documentation and `make figures` show it.
An arm's learning rate is the one with the lowest mean validation loss among those swept; the test loss is then
reported with two intervals: over test documents (bootstrap, mean over seeds of its ends) and over seeds (range).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.show.figures import save
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.show.axes import plain_decades
from theory.show.claims import Drawn
from theory.show.markdown import markdown_table
from theory.show.theme import COLUMN, series_style, theme, words

KEPT = "ablation"  # the folder under results/reference
SHOWN = ["match", "arm", "seeds", "learning_rate", "tokens", "perplexity", "low", "high", "least", "most", "params"]


def arm_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and kind of match, best first.

    Raises:
      InputError: the table has no arms, or was not measured with measure.ablation.
    """
    missing = [c for c in ("arm", "match", "valid_loss", "test_low") if c not in frame]
    if missing:
        raise InputError(f"column {missing[0]}: missing; the study has no runs of +experiment=ablation")
    out = []
    for (match, arm), runs in frame.groupby(["match", "arm"]):
        validation = {
            rate: float(runs.loc[runs["learning_rate"] == rate, "valid_loss"].mean())
            for rate in map(float, np.unique(runs["learning_rate"]))
        }
        best = min(validation, key=validation.__getitem__)
        chosen = runs[runs["learning_rate"] == best]
        row, losses = chosen.iloc[0], chosen["test_loss"]
        out.append(
            {
                "match": match,
                "arm": arm,
                "seeds": len(chosen),
                "learning_rate": best,
                "rates": len(validation),
                "steps": int(row["steps"]),
                "tokens": int(row["steps"] * row["batch_size"] * row["sequence_length"]),
                "perplexity": math.exp(losses.mean()),
                "low": math.exp(chosen["test_low"].mean()),
                "high": math.exp(chosen["test_high"].mean()),
                "least": math.exp(losses.min()),
                "most": math.exp(losses.max()),
                "valid_loss": float(chosen["valid_loss"].mean()),
                "test_loss": float(losses.mean()),
                "kl": float(chosen["excess"].mean()),
                "documents": int(row["documents"]),
                "params": int(row["params"]),
                "inference_params": int(row["inference_params"]),
                "flops_per_token": float(row["flops_per_token"]),
                "teacher_flops_per_token": float(row["teacher.flops_per_token"]),
                "teacher_perplexity": math.exp(chosen["teacher_loss"].mean()),
            }
        )
    return pd.DataFrame(out).sort_values(["match", "test_loss"], ascending=[False, True], ignore_index=True)


def arms_figure(table: pd.DataFrame) -> Drawn:
    """Perplexity of every arm with its interval over documents, equal tokens and equal time side by side."""
    # Each arm at its better match: not every arm need have been run at both.
    arms = table.groupby("arm")["test_loss"].min().sort_values(ascending=False).index
    place = {arm: i for i, arm in enumerate(arms)}
    figure = Figure(figsize=(COLUMN, 0.9 + 0.2 * len(place)))
    axes = figure.add_subplot()
    for i, (match, part) in enumerate(table.groupby("match", sort=False)):
        y = part["arm"].map(place).to_numpy() + 0.22 * i
        spread = np.array([part["perplexity"] - part["low"], part["high"] - part["perplexity"]])
        axes.errorbar(
            part["perplexity"], y, xerr=np.maximum(spread, 0), linestyle="none", elinewidth=0.8,
            label=f"equal {match}", **series_style(i),
        )  # fmt: skip
    teacher = float(table["teacher_perplexity"].iloc[0])
    axes.axvline(teacher, color="#444444", linewidth=0.8, linestyle=":", label=f"teacher ({teacher:.1f})")
    axes.set(xscale="log", xlabel="test perplexity (95 % over documents)")
    plain_decades(axes.xaxis)
    axes.set_yticks(list(place.values()), [words(arm) for arm in place])
    figure.legend(*axes.get_legend_handles_labels(), ncols=3, loc="outside upper center", fontsize=6)
    caption = (
        f"Test perplexity of {len(place)} arms of the ablation, each at the learning rate with the best validation "
        f"loss; mean over {table['seeds'].max()} seeds, intervals over {table['documents'].iloc[0]} test documents."
    )
    return Drawn("ablation", caption, figure, table)


def arms_markdown(table: pd.DataFrame) -> str:
    """The table for the documentation: one for each kind of match, best arm first."""
    parts = []
    for match, part in table.groupby("match", sort=False):
        rows = []
        for _, row in part.iterrows():
            cells = [
                str(row["arm"]).replace("_", " "),
                f"{row['perplexity']:.1f}",
                f"{row['low']:.1f} - {row['high']:.1f}",
                f"{row['least']:.1f} - {row['most']:.1f}" if row["seeds"] > 1 else "one",
                f"{row['learning_rate']:g}",
                f"{row['steps']:,}",
                f"{row['params']:,}",
                f"{row['flops_per_token'] / 1e3:,.0f}",
            ]
            rows.append(cells)
        names = ("arm", "perplexity", "95 %, documents", "seeds", "rate", "steps", "trained", "kFLOP per token")
        equal = "trained tokens" if match == "tokens" else "wall-clock"
        parts.append(f"At equal {equal}:\n\n{markdown_table(names, rows)}")
    first = table.iloc[0]
    note = (
        f"The teacher's perplexity is {first['teacher_perplexity']:.1f} at "
        f"{first['teacher_flops_per_token'] / 1e3:,.0f} kFLOP per token; intervals over {first['documents']} documents."
    )
    return "\n\n".join([*parts, note]) + "\n"


def kept_tables(reference: Study) -> dict[str, pd.DataFrame]:
    """Teacher -> table, of the ablations that are kept in results/reference/ablation."""
    return {path.stem: pd.read_csv(path) for path in sorted((reference.path / KEPT).glob("*.csv"))}


def draw_kept(reference: Study) -> None:
    """Figure of every ablation that is kept, from its table alone."""
    for name, table in kept_tables(reference).items():
        with theme():
            drawn = arms_figure(table)
        save(dataclasses.replace(drawn, name=name), reference.path / KEPT, points=False)
