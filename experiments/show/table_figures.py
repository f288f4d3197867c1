"""Figures of a whole table: claims beside their controls, what compression costs, certificates.

One function per figure; each takes rows and gives a `Drawn`, or None where the table has nothing to show. The figures
of claims are in theory.show.claims. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from theory.judge.check import rows_of
from theory.report import ClaimReport
from theory.show import claims
from theory.show.axes import AXIS, cell_means, errorbars, legend_above, plain_decades, plain_log, power_text
from theory.show.claims import Drawn
from theory.show.figures import draw as draw_claim
from theory.show.theme import CLAIMED, COLUMN, series_style, words


def convergence_arms(frame: pd.DataFrame) -> Drawn | None:
    """Mean squared gradient norm against T for claim 1's primary design and its controls."""
    rows = rows_of("convergence", frame, arms=True)
    if rows.empty or "arm" not in rows or rows["arm"].isna().all():
        return None
    rows = rows.assign(arm=rows["arm"].fillna("primary"))
    rows = rows[rows.groupby("arm")["steps"].transform("nunique") > 1]
    points = cell_means(rows, ["arm", "steps"], "grad_norm_sq")
    figure = Figure(figsize=(COLUMN, 2.9))
    axes = figure.add_subplot()
    names = sorted(points["arm"].unique(), key=lambda name: name != "primary")
    for i, name in enumerate(names):
        part = points[points["arm"] == name]
        style = series_style(i)
        axes.plot(part["steps"], part["mean"], color=style["color"], linewidth=0.8)
        errorbars(axes, part["steps"].to_numpy() * (1 + 0.02 * i), part, words(name), i)
    first = points[points["arm"] == names[0]].sort_values("steps")
    claimed = first["mean"].iloc[0] * (first["steps"] / first["steps"].iloc[0]) ** -0.5
    axes.plot(first["steps"], claimed, label=f"claimed: {power_text('steps', -0.5)}", **CLAIMED)
    axes.set(xscale="log", yscale="log", xlabel=AXIS["steps"], ylabel="mean squared gradient norm")
    plain_log(axes.xaxis, points["steps"].to_numpy())
    plain_decades(axes.yaxis)
    legend_above(figure, axes, 3)
    caption = (
        "Claim 1 and its controls: the primary design, other step sizes, a decaying step, the whole pool at every "
        "step (no gradient noise, a constant step) and a student trained directly; means with 95 % intervals."
    )
    return Drawn("convergence_arms", caption, figure, points)


def generalization_arms(frame: pd.DataFrame) -> Drawn | None:
    """Gap times tokens over parameters against N, for claim 2's primary design and its other protocols."""
    rows = rows_of("generalization", frame, arms=True)
    if rows.empty or not {"arm", "sequence_length", "params"} <= set(rows):
        return None
    rows = rows[rows[["sequence_length", "params"]].notna().all(axis=1)]
    others = rows[rows["arm"].notna()]
    if others.empty:
        return None
    primary = rows[rows["arm"].isna() & rows["rank"].isin(others["rank"].unique())]
    rows = pd.concat([primary.assign(arm="primary"), others])
    per_parameter = rows["gap"] * rows["samples"] * rows["sequence_length"] / rows["params"]
    by = ["arm", "samples"]
    points = cell_means(rows.assign(scaled=per_parameter), by, "scaled")
    points = points.merge(rows.groupby(by)["gap"].mean().reset_index(), on=by)
    figure = Figure(figsize=(COLUMN, 2.9))
    axes = figure.add_subplot()
    names = sorted(points["arm"].unique(), key=lambda name: name != "primary")
    for i, name in enumerate(names):
        part = points[points["arm"] == name]
        axes.plot(part["samples"], part["mean"], color=series_style(i)["color"], linewidth=0.8)
        errorbars(axes, part["samples"].to_numpy() * (1 + 0.02 * i), part, words(name), i)
    axes.axhline(1, label="gap = parameters / tokens", **CLAIMED)
    axes.set(xscale="log", xlabel="training sequences N", ylabel="gap x tokens / parameters")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    plain_log(axes.xaxis, points["samples"].to_numpy())
    legend_above(figure, axes, 3)
    caption = (
        f"Gap in units of trained parameters over training tokens at rank "
        f"{', '.join(f'{r:g}' for r in sorted(others['rank'].unique()))}, by protocol (95 % over seeds). A law p/N is "
        "flat here; 1/sqrt(N) rises by a factor of ten over two decades."
    )
    return Drawn("generalization_arms", caption, figure, points)


def cost_against_quality(frame: pd.DataFrame) -> Drawn | None:
    """Loss in excess of the teacher's against weight bytes and decoding speed."""
    if "decode_tokens_per_s" not in frame or frame["decode_tokens_per_s"].isna().all():
        return None
    rows = frame[frame["decode_tokens_per_s"].notna() & (frame["arm"] == "cost")] if "arm" in frame else frame
    if rows.empty or "teacher.weight_bytes" not in rows:
        return None
    rows = rows.assign(
        loss=rows["test_loss"] - rows["teacher_loss"],
        size=rows["weight_bytes"] / rows["teacher.weight_bytes"],
        speed=rows["decode_tokens_per_s"] / rows["teacher.decode_tokens_per_s"],
    )
    points = rows.groupby(["student", "rank"])[["size", "speed", "loss"]].mean().reset_index()
    figure = Figure(figsize=(COLUMN, 2.3))
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("weights / teacher's", "speed / teacher's")
    for axes, cost, label in zip(panels, ("size", "speed"), labels, strict=True):
        for i, (student, part) in enumerate(points.groupby("student")):
            part = part.sort_values("rank")
            axes.plot(part[cost], part["loss"], linewidth=0.8, label=words(student), **series_style(i))
            if i == 0:
                for rank, x, y in part[["rank", cost, "loss"]].to_numpy():
                    axes.annotate(f"{rank:g}", (x, y), fontsize=5.5, xytext=(2, 3), textcoords="offset points")
        axes.axvline(1, **CLAIMED)
        axes.set(xlabel=label)
        axes.set_yscale("symlog", linthresh=0.01)  # a student can be better than its teacher
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlim(left=0)
    panels[0].set_ylabel("loss - teacher's (nats/token)")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=3, loc="outside upper center", fontsize=6)
    caption = (
        "What compression costs: loss in excess of the teacher's against weight bytes and decoding speed relative to "
        "the teacher's (dashed), for students of ranks "
        f"{', '.join(f'{r:g}' for r in sorted(points['rank'].unique()))} (marked on the first curve)."
    )
    return Drawn("cost_against_quality", caption, figure, points)


def certificate_against_bits(frame: pd.DataFrame) -> Drawn | None:
    """Guaranteed and held-out loss against the bits of the compressed student, with what a bound has to beat."""
    needed = {"certificate", "samples", "message_bits", "train_bits", "test_bits", "unigram"}
    if not needed <= set(frame) or frame["certificate"].isna().all():
        return None
    rows = frame[frame["certificate"].notna()].sort_values(["samples", "message_bits"])
    kept = ["samples", "intrinsic_dimension", "message_bits", "train_bits", "certificate", "test_bits", "unigram",
            "uniform", "teacher_bits"]  # fmt: skip
    points = rows[[c for c in kept if c in rows]]
    figure = Figure(figsize=(COLUMN, 2.5))
    axes = figure.add_subplot()
    for i, (samples, part) in enumerate(points.groupby("samples")):
        style = series_style(i + 1)
        axes.plot(part["message_bits"], part["certificate"], label=f"guarantee, N = {samples:g}", **style)
        axes.plot(part["message_bits"], part["test_bits"], color=style["color"], linestyle=":", linewidth=0.9,
                  label=f"held out, N = {samples:g}")  # fmt: skip
    axes.axhline(float(points["unigram"].iloc[0]), label="unigram entropy", **CLAIMED)
    if "uniform" in points:
        axes.axhline(float(points["uniform"].iloc[0]), color="#444444", linewidth=0.6, label="log2 V")
    axes.set(xscale="log", xlabel="bits that describe the compressed student", ylabel="loss (bits/token)")
    plain_log(axes.xaxis, points["message_bits"].to_numpy())
    legend_above(figure, axes, 2)
    best, best_samples = points.sort_values("certificate")[["certificate", "samples"]].to_numpy()[0]
    caption = (
        "Train-only guarantee on the loss of quantised students against the bits that describe them, with the loss on "
        f"held-out sequences. Below the unigram entropy (dashed) a guarantee is non-vacuous; the best is "
        f"{best:.2f} bits at N = {best_samples:g}."
    )
    return Drawn("certificate_against_bits", caption, figure, points)


def efficiency_budgets(claim: ClaimReport, _: pd.DataFrame) -> Drawn:
    """Loss against budget with the factor F, and F against the target loss."""
    found = claim.fields["budget_factor"]
    caption = (
        "Loss against training budget, one run per budget, and F, the budget of direct training in units of that of "
        f"{found['clone']}, at every target loss; 95 % intervals paired by seed. The arrow is F where its lower limit "
        f"is smallest; dotted: the claimed {found['claimed']:g}."
    )
    return Drawn("efficiency_budgets", caption, draw_claim(claim), claim.points)


def compression_front(claim: ClaimReport, _: pd.DataFrame) -> Drawn:
    """Loss against each cost of inference, with the front."""
    caption = (
        "Held-out loss of the clone and of its rivals against the costs of inference, 95 % intervals over seeds. "
        "Dashed: the front, the smallest loss at this cost or less."
    )
    return Drawn("compression_front", caption, draw_claim(claim), claim.points)


CLAIM_FIGURES: dict[str, list[Callable[[ClaimReport, pd.DataFrame], Drawn | None]]] = {
    "generalization": [claims.gap_against_samples, claims.gap_against_rank, claims.gap_local_slopes],
    "optimal_rank": [claims.optimal_rank_against_samples, claims.risk_surface, claims.risk_against_rank],
    "convergence": [claims.gradient_against_steps, claims.gradient_local_slopes],
    "information": [claims.information_against_clone_weight],
    "dynamics": [claims.dynamics_divergence, claims.dynamics_alignment],
    "efficiency": [efficiency_budgets],
    "compression": [compression_front],
}
#: Figures of a whole table; their names begin with the section of the page that they belong to.
TABLE_FIGURES: list[Callable[[pd.DataFrame], Drawn | None]] = [
    generalization_arms, convergence_arms, cost_against_quality, certificate_against_bits,
]  # fmt: skip
