"""Fit published scaling laws and score them on runs at larger scale (ScaleBench, Li et al. 2026, arXiv 2604.22753).

    python tests/tools/scalebench.py FOLDER [--bootstraps 100]
    python tests/tools/scalebench.py FOLDER --choose [--seeds 5] [--jobs 2] [--leave-out] [--csv OUT]
    python tests/tools/scalebench.py FOLDER --csv OUT --page docs/howto/law.md

FOLDER holds laws.csv and, per task, TASK_train.csv and TASK_test.csv. Every law is fitted to the training rows of each
group; R^2 is over the test rows of all groups, clipped to [-1, 1]. A law that is refused or fails counts -1. The mean
of a task is over all its laws. Tasks without a test table are skipped.

With --choose the rows are chosen first, under 1, 5 and 10 % (sparsity: 20, 35, 50 %) of the cost of all rows: by
`theory choose` round by round, by its machinery made D-optimal, at random, and the cheapest first. Which of several
runs of equal columns is taken depends on their order: every seed but 0 shuffles the rows. Only chosen rows' losses are
handed over. All rows are then fitted as above; where no more rows than parameters could be bought, which
`theory fit` refuses, the prediction is that of `theory choose`. From its own rows that prediction is scored beside the
fit everywhere. Without a row a group counts as not predicted (-1).
With --csv a run that was stopped goes on where it stopped; --page writes the table of its scores into a page.
With --leave-out nothing of the test tables is read: the largest training runs stand for them (`left_out`).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd

from theory import InputError
from theory.design.choose_runs import INFORMATION, TARGET, Choice, choose_runs
from theory.laws.user_law import fit_law
from theory.report import write_text
from theory.show.markdown import markdown_table
from theory.tables import Table

TARGETS = {
    "moe": "loss_validation",
    "data_constrained": "loss",
    "parallel": "loss",
    "farseer": "loss",
    "sparsity": "loss",
    "vocab": "unigram_normalized_loss",
}
COSTS = {
    "moe": "num_experts * dense_parameter_count",
    "data_constrained": "6 * params * tokens",
    "parallel": "num_params",
    "farseer": "6 * N * D",
    "sparsity": "6 * N_dense * D1 + 6 * N_active * D2",
    "vocab": "non_vocab_parameters * num_characters",
}
#: The published means of the selection by Li et al. (their README, table 2), by the share of the cost; a task with few
#: rows has shares of its own.
PUBLISHED = {
    "moe": {0.01: 0.59, 0.05: 0.65, 0.1: 0.83},
    "data_constrained": {0.01: 0.73, 0.05: 0.85, 0.1: 0.86},
    "parallel": {0.01: -1.00, 0.05: 0.77, 0.1: 0.99},
    "farseer": {0.01: 0.60, 0.05: 0.88, 0.1: 0.93},
    "sparsity": {0.2: 0.31, 0.35: 0.44, 0.5: 0.53},
    "vocab": {0.01: 0.96, 0.05: 0.98, 0.1: 0.98},
}
KEYS, MEASURED = ("task", "law", "how", "share", "seed"), ("r2", "rows", "seconds")
#: The prediction that `theory choose` makes itself from the rows that it chose; the others are by `theory fit`.
OWN = "prediction"
STRATEGIES = {
    "choose": "`theory choose`",
    OWN: "its own prediction",
    "d_optimal": "D-optimal",
    "cheapest": "cheapest first",
    "random": "random",
}
#: What the tool writes into a page lies between these.
BEGIN, END = "<!-- scalebench: begin -->", "<!-- scalebench: end -->"
FAILED = (InputError, ArithmeticError, ValueError, Warning, np.linalg.LinAlgError)


def r_squared(true: np.ndarray, predicted: np.ndarray) -> float:
    """Clipped to [-1, 1]; -1 where a prediction is missing."""
    r2 = 1.0 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2)
    return float(np.clip(r2, -1.0, 1.0)) if np.isfinite(r2) else -1.0


def fitted(
    rows: pd.DataFrame, test: pd.DataFrame, formula: str, signed: list[str], target: str, draws: int
) -> np.ndarray:
    """What the law, fitted to rows, predicts at the test rows."""
    fit = fit_law(rows, formula, target, signed=signed, bootstraps=draws, beside=True)
    data = {c: test[c].to_numpy(dtype=np.float64) for c in fit.law.columns}
    return fit.law.value(np.array(list(fit.estimates.values())), data)


def score(
    train: pd.DataFrame, test: pd.DataFrame, predict: Callable[[pd.DataFrame, pd.DataFrame], np.ndarray], target: str
) -> float:
    """R^2 of predictions made group by group."""
    predicted = np.full(len(test), np.nan)
    for group, rows in train.groupby("group"):
        here = (test["group"] == group).to_numpy()
        predicted[here] = predict(rows.reset_index(drop=True), test[here])
    return r_squared(test[target].to_numpy(), predicted)


def left_out(task: str, train: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training rows parted like the published tables: smaller runs, and the largest ones as the test."""
    large = {
        "moe": lambda: train["dense_parameter_count"] > 3e8,
        "data_constrained": lambda: train["params"] > 1.4e9,
        "parallel": lambda: train["parallel_size"] == 4,
        "farseer": lambda: train["N"] * train["D"] > (train["N"] * train["D"]).quantile(0.95),
    }[task]()
    return train[~large].reset_index(drop=True), train[large].reset_index(drop=True)


def affordable(order: Iterable[int], cost: np.ndarray, budget: float) -> list[int]:
    """Rows that are bought in this order, each where what is left of the budget allows it."""
    taken = []
    for row in order:
        if cost[row] <= budget * (1 + 1e-9):
            taken.append(int(row))
            budget -= cost[row]
    return taken


def followed(
    known: pd.DataFrame, truth: pd.Series, cost: np.ndarray, budget: float, ask: Callable[[float], Choice]
) -> list[int]:
    """Rows that are bought when the advice of `ask`, given what is left, is followed to the end; `known` is filled."""
    chosen, target = list[int](), str(truth.name)
    while budget > 0 and known[target].isna().any():
        choice = ask(budget)
        now = choice.rows.index[choice.now].to_numpy()
        if not len(now):
            break
        chosen.extend(now)
        budget -= cost[now].sum()
        known.loc[now, target] = truth[now]
    return chosen


def bought(
    rows: pd.DataFrame, test: pd.DataFrame, law: pd.Series, how: str, share: float, seed: int
) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
    """Indices of the rows that a strategy buys, and the prediction of `theory choose` from them at the test rows."""
    task, target = str(law["task"]), TARGETS[str(law["task"])]
    cost = rows.eval(COSTS[task]).to_numpy(dtype=np.float64)
    budget = share * cost.sum()
    known = rows.assign(**{target: np.nan})  # only the losses of rows that were bought
    at = Table(test.drop(columns=target))
    laws, signed = [str(law["formula"])], law["signed"].split()

    def ask(criterion: str = TARGET, left: float = 1e-30):
        return choose_runs(
            Table(known), laws, target, cost=COSTS[task], budget=left, at=at, signed=signed, criterion=criterion
        )

    if how == "all":
        chosen = list(range(len(rows)))
    elif how in ("random", "cheapest"):
        order = (
            np.random.default_rng(seed).permutation(len(rows)) if how == "random" else np.argsort(cost, kind="stable")
        )
        chosen = affordable(order, cost, budget)
    else:
        criterion = TARGET if how == "choose" else INFORMATION
        chosen = followed(known, rows[target], cost, budget, lambda left: ask(criterion, left))
    known.loc[chosen, target] = rows.loc[chosen, target]
    return np.array(chosen, dtype=int), functools.cache(lambda: ask().targets["prediction"].to_numpy())


def one(
    folder: Path, law: pd.Series, how: str, share: float, seed: int, leave_out: bool
) -> tuple[dict[str, float], int, float]:
    """R^2 of one law with rows chosen in one way by how it was predicted, the number of rows, and the seconds."""
    task, begin = str(law["task"]), time.monotonic()
    target, signed = TARGETS[task], law["signed"].split()
    train = pd.read_csv(folder / f"{task}_train.csv")
    if seed and how != "random":
        train = train.sample(frac=1.0, random_state=seed, ignore_index=True)
    train, test = left_out(task, train) if leave_out else (train, pd.read_csv(folder / f"{task}_test.csv"))
    made: dict[str, tuple[np.ndarray, Callable[[], np.ndarray]]] = {}

    def choice(rows: pd.DataFrame, points: pd.DataFrame) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        group = str(rows["group"].iloc[0])
        if group not in made:
            made[group] = bought(rows, points, law, how, share, seed)
        return made[group]

    def own(rows: pd.DataFrame, points: pd.DataFrame) -> np.ndarray:
        return choice(rows, points)[1]()

    def by_fit(rows: pd.DataFrame, points: pd.DataFrame) -> np.ndarray:
        chosen, predict = choice(rows, points)
        if len(chosen) <= len(law["parameters"].split()):
            return predict()
        return fitted(rows.iloc[chosen], points, law["formula"], signed, target, 1)

    found = {}
    for name, predict in ({how: by_fit} | ({OWN: own} if how == "choose" else {})).items():
        try:
            found[name] = score(train, test, predict, target)
        except FAILED as error:
            print(f"{task} {law['law']} {name} {share:g}: {type(error).__name__}: {error}", flush=True)
            found[name] = -1.0
    return found, sum(len(chosen) for chosen, _ in made.values()), time.monotonic() - begin


def tasks_of(folder: Path, leave_out: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    laws = pd.read_csv(folder / "laws.csv").fillna("")
    for task, group in laws.groupby("task", sort=False):
        if leave_out or (folder / f"{task}_test.csv").is_file():
            yield str(task), group


def compare(options: argparse.Namespace) -> int:
    """One line per task, share and strategy."""
    jobs = []
    for task, laws in tasks_of(options.folder, options.leave_out):
        if options.task and task not in options.task:
            continue
        for _, law in laws.iterrows():
            if options.law and law["law"] not in options.law:
                continue
            for how in options.strategy:
                for share in PUBLISHED[task] if how != "all" else (1.0,):
                    for seed in range(options.seeds if how != "all" else 1):
                        jobs.append((law, how, share, seed))
    begin, done = time.monotonic(), pd.DataFrame(columns=[*KEYS, *MEASURED])
    if options.csv and options.csv.is_file():
        done = pd.read_csv(options.csv)
    known = set(zip(*(done[k] for k in KEYS), strict=True))
    jobs = [job for job in jobs if (job[0]["task"], job[0]["law"], *job[1:]) not in known]
    results = [done] if len(done) else []
    with ProcessPoolExecutor(options.jobs) as pool:
        asked = {
            pool.submit(one, options.folder, law, how, share, seed, options.leave_out): (law, how, share, seed)
            for law, how, share, seed in jobs
        }
        for count, ended in enumerate(as_completed(asked), 1):
            law, how, share, seed = asked[ended]
            values, rows, seconds = ended.result()
            scores = [(law["task"], law["law"], name, share, seed, r2, rows, seconds) for name, r2 in values.items()]
            results.append(pd.DataFrame(scores, columns=[*KEYS, *MEASURED]))
            if options.csv:
                with options.csv.open("a") as file:
                    results[-1].to_csv(file, index=False, header=not file.tell())
            said = ", ".join(f"{name} R^2 {r2:.4f}" for name, r2 in values.items())
            print(
                f"{count}/{len(jobs)}: {law['task']} {law['law']} {share:g} seed {seed}: {said}, {rows} rows, "
                f"{seconds:.1f} s",
                flush=True,
            )
    frame = pd.concat(results, ignore_index=True)
    print("\nmean R^2 +- standard deviation over laws (and seeds), median rows bought")
    for (task, share), part in frame.groupby(["task", "share"], sort=False):
        texts = [
            f"{how} {p['r2'].mean():.2f} +- {p['r2'].std(ddof=0):.2f} ({p['rows'].median():g})"
            for how, p in part.groupby("how", sort=False)
        ]
        published = (
            "" if share not in PUBLISHED[task] or options.leave_out else f"; published {PUBLISHED[task][share]:.2f}"
        )
        print(f"{task} {100 * share:g} %: {', '.join(texts)}{published}")
    print(f"{time.monotonic() - begin:.0f} s in all")
    return 0


def table_of(frame: pd.DataFrame) -> str:
    """A Markdown table of the scores: one line per task and share, a column per strategy; the published means last.

    The deviation is over laws and seeds together; where some laws have no score, the number of those that have follows.
    """
    rows = []
    laws = frame.groupby("task")["law"].nunique()
    for task in dict.fromkeys(t for t in PUBLISHED if t in set(frame["task"])):
        for share, published in PUBLISHED[task].items():
            cells = []
            for how in STRATEGIES:
                part = frame[(frame["task"] == task) & (frame["share"] == share) & (frame["how"] == how)]
                some = "" if part["law"].nunique() == laws[task] else f" ({part['law'].nunique()} of {laws[task]} laws)"
                cells.append(
                    f"{_number(part['r2'].mean())} ± {_number(part['r2'].std(ddof=0))}{some}" if len(part) else ""
                )
            rows.append((f"{task} {100 * share:g} %", *cells, _number(published)))
    return markdown_table(("task, budget", *STRATEGIES.values(), "Li et al."), rows)


def _number(x: float) -> str:
    return f"{0.0 if abs(x) < 0.005 else x:.2f}".replace("0.", ".", 1) if abs(x) < 0.995 else f"{x:.2f}"


def into_page(text: str, page: Path) -> None:
    """Replace what stands between the page's marks."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")


def fit_all(options: argparse.Namespace) -> int:
    """Every law on all training rows."""
    warnings.simplefilter("error")  # a law that warns has failed
    begin, failures = time.monotonic(), 0
    for task, laws in tasks_of(options.folder, leave_out=False):
        train, test = (pd.read_csv(options.folder / f"{task}_{part}.csv") for part in ("train", "test"))
        scores = []
        for _, law in laws.iterrows():
            start, said = time.monotonic(), ""
            formula, signed, target = law["formula"], law["signed"].split(), TARGETS[task]
            try:
                scores.append(
                    score(
                        train, test,
                        lambda rows, points: fitted(rows, points, formula, signed, target, options.bootstraps),  # noqa: B023
                        target,
                    )
                )  # fmt: skip
            except FAILED as error:
                scores.append(-1.0)
                said, failures = f"  {type(error).__name__}: {error}", failures + 1
            print(f"{task} {law['law']}: R^2 {scores[-1]:.4f}, {time.monotonic() - start:.1f} s{said}", flush=True)
        print(f"{task}: mean R^2 {np.mean(scores):.4f} over {len(scores)} laws")
    print(f"{time.monotonic() - begin:.0f} s in all, {failures} failed")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bootstraps", type=int, default=100)
    parser.add_argument("--choose", action="store_true", help="compare strategies of choosing rows")
    parser.add_argument("--strategy", nargs="+", default=["choose", "d_optimal", "cheapest", "random", "all"])
    parser.add_argument("--task", nargs="+", default=[])
    parser.add_argument("--law", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=5, help="orders of the rows, and of the random choice")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--leave-out", action="store_true", help="score on the largest training runs")
    parser.add_argument(
        "--csv", type=Path, help="every score, written as it is known; those already in it are not computed again"
    )
    parser.add_argument("--page", type=Path, help="write the table of the scores in --csv between this page's marks")
    options = parser.parse_args()
    if options.page:
        into_page(table_of(pd.read_csv(options.csv)), options.page)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return compare(options) if options.choose else fit_all(options)


if __name__ == "__main__":
    sys.exit(main())
