"""A claim that is decided run by run: what was declared, bought, looked at. Kept in results/<study>/study.json::

    "decide": {CLAIM: {"looks": 4, "spending": "pocock", "margin": 0.1,     declared before the first run
                       "overrides": [...], "grid": {"rank": [...], ..., "runs": 225},
                       "budget_s": 300.0,
                       "blocks": [{"why": ..., "lines": ["rank=2,4 seed=0,1"], "runs": 4, "cost_s": ..., "chance": ...,
                                   "share": 0.36, "ending": null | {"reason": ..., "words": ...},
                                   "look": null | {"number", "level", "verdict", "runs", "spent_s", "measured"}}],
                       "outcome": null | {"reason": ..., "verdict": ..., "words": ...}}}

A block is written down before its first run starts, and its look in the same write as what it says, so that a kill at
any moment leaves either the block to be finished or its look made. The first block is a pilot: its look has number 0,
plans the next block and says no verdict. A look sees the rows of its own blocks alone, whatever else the study has.

The runs' own seconds are what a budget counts: they are in the rows, and no kill loses them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from experiments.common.files import read_json
from experiments.run_one import config
from experiments.show.lines import claims_of, lines_of
from experiments.sweep.plan import configs_of, identity_of, text_of
from experiments.sweep.provenance import STUDY, note_of, write_note
from experiments.sweep.rows import load_rows, table
from experiments.sweep.store import Study
from lrc_jax.errors import InputError
from theory.claims import convergence, generalization, optimal_rank
from theory.design.cost import Price
from theory.design.next import CLAIMS, Proposal, next_step, pilot
from theory.judge import looks as looking
from theory.judge.check import check
from theory.judge.looks import Looks
from theory.judge.verdicts import DECIDED
from theory.tables import table_from_frame

#: Coordinates of a claim that are keys of a run, N or T last; of the others only seeds are added.
COORDINATES = {
    claim.CLAIM.name: tuple(c.name for c in claim.COORDINATES) for claim in (generalization, convergence)
} | {optimal_rank.CLAIM.name: ("rank", "samples")}
#: Why it ended, in words.
OUTCOMES = {
    "decided": "decided",
    "looks": "not decided: the error of the looks that were declared is spent",
    "budget": "not decided: the budget is spent, or too small for runs that could decide",
    "nothing": "not decided: no runs that can be proposed would decide",
}


@dataclass
class Block:
    """Runs that are bought together.

    Attributes:
      why: in words. lines: overrides of multiruns that make them up. runs: their number.
      cost_s: what they were expected to cost, chance: of a verdict; None of the pilot. look: made after them.
      share: of the error, for that look. ending: of the decision if that look does not decide; None: others follow.
    """

    why: str
    lines: list[str]
    runs: int
    cost_s: float | None = None
    chance: float | None = None
    share: float | None = None
    ending: dict[str, str] | None = None
    look: dict[str, Any] | None = None


@dataclass
class Decision:
    """The record of one claim. What is declared cannot be changed once the record is there."""

    study: Study
    claim: str
    looks: Looks
    margin: float
    overrides: list[str]
    grid: dict[str, Any]
    budget_s: float
    blocks: list[Block] = field(default_factory=list)
    outcome: dict[str, Any] | None = None

    @classmethod
    def declared(
        cls, study: Study, claim: str, looks: Looks, margin: float, overrides: Sequence[str], budget: float
    ) -> Decision:
        """A new one, with its pilot.

        Raises:
          InputError: the claim cannot be decided run by run, or the sweep of the overrides is no grid for it.
        """
        if claim not in CLAIMS:
            raise InputError(f"claim: {claim!r} cannot be decided run by run; choose from {', '.join(CLAIMS)}")
        if not 0 < margin < 0.5:
            raise InputError(f"margin: {margin:g} must lie between 0 and 0.5")
        jobs = _jobs(tuple(composable(overrides)))
        if any(run.claim not in (None, claim) for _, _, run in jobs):  # its runs speak for both
            return cls.declared(study, claim, looks, margin, [*overrides, "claim=null"], budget)
        if not all(getattr(run.measure, claim, True) for _, _, run in jobs):
            raise InputError(
                f"measure.{claim}: false, so that the runs would measure nothing that {claim} can be judged by; "
                f"add +experiment={claim}"
            )
        coordinates = COORDINATES.get(claim, ())
        levels = {key: sorted({getattr(run, key) for _, _, run in jobs}) for key in (*coordinates, "seed")}
        values: dict[str, set[str]] = {}
        for word in (word for job, *_ in jobs for word in job):
            values.setdefault(word.partition("=")[0], set()).add(word)
        varied = [key for key, words in values.items() if len(words) > 1 and key not in levels]
        if coordinates and varied:
            raise InputError(f"{varied[0]}: several values; {claim} is decided over {', '.join(levels)} alone")
        for key in coordinates:
            if len(levels[key]) < 2:
                raise InputError(f"{key}: one value; name the grid to start from, as {key}=4,8,16,32")
        found = cls(study, claim, looks, margin, list(overrides), {**levels, "runs": len(jobs)}, budget)
        line = found._pilot(levels)
        found.blocks = [Block("a pilot, to plan the rest by; it is not judged", [line], len(found.configs([line])))]
        return found

    def _pilot(self, levels: Mapping[str, list[Any]]) -> str:
        """The runs of `pilot`; of claims without coordinates the whole design."""
        chosen = pilot({key: levels[key] for key in (*COORDINATES.get(self.claim, ()), "seed")})
        return " ".join(f"{key}={','.join(map(str, values))}" for key, values in chosen.items())

    # The record ......................................................................................................

    @classmethod
    def read(cls, study: Study, claim: str) -> Decision | None:
        """The record of a claim; None where there is none.

        Raises:
          InputError: the file is damaged. It is not made anew: looks that were made would be forgotten.
        """
        if not (study.path / STUDY).exists():
            return None
        path = study.path / STUDY
        note = read_json(path)
        if not isinstance(note, dict) or claim not in (records := note.get("decide", {})):
            return None
        try:
            found = dict(records[claim])
            looks = Looks(found.pop("looks"), found.pop("spending"))
            blocks = [Block(**block) for block in found.pop("blocks")]
            return cls(study, claim, looks, blocks=blocks, **found)
        except (TypeError, KeyError, ValueError) as wrong:
            raise InputError(
                f"{path}: key decide.{claim}: damaged ({wrong}); restore the file, or start anew under another study="
            ) from None

    def write(self) -> None:
        """Atomically, beside what else the file has."""
        entry = {name: value for name, value in vars(self).items() if name not in ("study", "claim", "looks", "blocks")}
        entry |= {"looks": self.looks.planned, "spending": self.looks.rule}
        entry["blocks"] = [dataclasses.asdict(block) for block in self.blocks]
        kept = note_of(self.study).get("decide", {})
        write_note(self.study, decide={**kept, self.claim: entry})

    def resumed(self, asked: Decision) -> Decision:
        """This record, to go on with what a command asks for now: its budget may be another.

        Raises:
          InputError: something else was declared.
        """
        for name, was, now in (
            ("looks", f"{self.looks.planned}, {self.looks.rule}", f"{asked.looks.planned}, {asked.looks.rule}"),
            ("margin", f"{self.margin:g}", f"{asked.margin:g}"),
            ("overrides", " ".join(said(self.overrides)), " ".join(said(asked.overrides))),
        ):
            if was != now:
                raise InputError(
                    f"{name}: {self.study.path / STUDY} declares {was} for {self.claim}, not {now}; give it again, or "
                    "decide under another study="
                )
        stopped = self.outcome is not None and self.outcome["reason"] in ("budget", "nothing")
        if stopped and asked.budget_s > self.budget_s:
            self.outcome = None
        self.budget_s, self.overrides = asked.budget_s, asked.overrides
        return self

    # Runs ............................................................................................................

    def configs(self, lines: Iterable[str]) -> dict[str, config.RunConfig]:
        """Identity of each run of some lines -> its configuration.

        Raises:
          InputError: a run's configuration is wrong.
        """
        common = composable(self.overrides)
        return {identity: run for line in lines for _, identity, run in _jobs((*common, *line.split()))}

    def rows(self) -> list[dict[str, Any]]:
        """The finished rows of all blocks."""
        wanted = self.configs(line for block in self.blocks for line in block.lines)
        return [row for row in load_rows(self.study)[0] if text_of(row["config"]) in wanted]

    def missing(self, line: str) -> int:
        """How many runs of a line are not done."""
        done = {text_of(row["config"]) for row in load_rows(self.study)[0]}
        return len(self.configs([line]).keys() - done)

    @staticmethod
    def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """The measurements of some rows with the seconds that each run took."""
        seconds = {row["run_id"]: spent([row]) for row in rows}
        frame = table([dict(row) for row in rows])
        return frame.assign(seconds=frame["run_id"].map(seconds))

    # Looks ...........................................................................................................

    @property
    def made(self) -> int:
        """Looks so far; the pilot's is none."""
        return sum(block.look is not None and block.look["number"] > 0 for block in self.blocks)

    @property
    def closed(self) -> bool:
        """Has the last look spent all of the error? Then no run can be added to this test, whatever the budget."""
        return self.blocks[-1].ending is not None and self.blocks[-1].look is not None

    def look(self) -> dict[str, Any]:
        """Judge what is there after the last block, and write it down; a pilot is measured, not judged."""
        rows, block = self.rows(), self.blocks[-1]
        number = len(self.blocks) - 1
        share = block.share or (self.looks.share(number) if number else 1.0)
        judged = table_from_frame(self.frame(rows), str(self.study.path))
        if number:
            word, report = looking.look(judged, self.claim, share, self.margin)
        else:
            word, report = "", check(judged, claims=[self.claim], margin=self.margin)
        measured = [
            {"quantity": line.name, "measured": line.measured, "verdict": line.verdict if number else ""}
            for line in lines_of(claims_of(report), self.margin)
        ]
        block.look = {
            "number": number, "level": looking.level(share), "verdict": word, "runs": len(rows),
            "spent_s": round(spent(rows), 3), "measured": measured,
        }  # fmt: skip
        if word in DECIDED:
            self.end("decided", word)
        else:
            self.write()
        return block.look

    def plan(self, progress: Any) -> None:
        """Choose the next block and write it down, or the outcome where there is none."""
        block = self.blocks[-1]
        assert block.look is not None
        word = block.look["verdict"]
        if self.made == self.looks.planned or block.ending is not None:
            ending = block.ending or {"reason": "looks", "words": ""}  # a record of an older version has none
            self.end(ending["reason"], word, ending["words"])
            return
        left = self.budget_s - block.look["spent_s"]
        judged = table_from_frame(self.frame(self.rows()), str(self.study.path))
        step = next_step(
            judged, self.claim, self.looks, self.made, left, self._possible, cost="seconds", margin=self.margin,
            seed=self.made + 1, progress=progress,
        )  # fmt: skip
        found, chosen = step.found, step.runs
        affordable = any(p.affordable for p in found.proposals)
        short = any(not p.affordable and p.chance > 0 for p in found.proposals)
        reason, words = "budget" if short or not affordable else "nothing", "".join(found.notes[-1:])
        if step.share is None:
            self.end(reason, word or found.verdict, words)
            return
        if chosen is not None:
            new = Block(chosen.why, chosen.overrides, len(chosen.runs), chosen.cost, chosen.chance)
            reason, words = "looks", ""
        elif found.decided:
            new = Block("the runs that are there decide at the level of this look", [], 0, 0.0, 1.0)
        else:
            new = Block(
                "no runs that can be bought have a fair chance of a verdict: the error that is left is spent on those "
                "that are there", [], 0,
            )  # fmt: skip
        new.share, new.ending = step.share, {"reason": reason, "words": words} if step.last else None
        self.blocks.append(new)
        self.write()

    def _possible(self, proposal: Proposal) -> bool:
        """Are all its configurations in order? A rank may be none of this student."""
        try:
            self.configs(proposal.overrides)
        except InputError:
            return False
        return True

    def end(self, reason: str, verdict: str, words: str = "") -> None:
        """Write the outcome down."""
        self.outcome = {"reason": reason, "verdict": verdict, "words": words}
        self.write()

    def whole_grid_s(self) -> float | None:
        """About what the whole grid that was named would have cost, judging by the runs that were made."""
        coordinates = list(COORDINATES.get(self.claim, ()))
        frame = self.frame(self.rows())
        if not coordinates or frame.empty:
            return None
        levels = pd.MultiIndex.from_product([self.grid[c] for c in coordinates], names=coordinates)
        price = Price.of(frame, coordinates, "seconds")
        return float(price.each(levels.to_frame(index=False)).sum()) * self.grid["runs"] / len(levels)


def spent(rows: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of some runs, where their rows say them."""
    return float(sum(s for row in rows if isinstance(s := row["machine"].get("seconds"), int | float)))


@functools.lru_cache(maxsize=512)
def _jobs(words: tuple[str, ...]) -> list[tuple[list[str], str, config.RunConfig]]:
    """A multirun's jobs, composed once: overrides, identity and configuration."""
    return [(job, identity_of(run), run) for job, run in configs_of(words, many=True)]


def composable(overrides: Iterable[str]) -> list[str]:
    """Overrides without those that say how a sweep is carried out: they make no other runs."""
    return [word for word in overrides if not word.lstrip("+").startswith(("hydra", "engine="))]


def said(overrides: Iterable[str]) -> list[str]:
    """Overrides that make an experiment, without those of the machine and its paths: they may change on the way."""
    keyed = [(word.partition("=")[0], word) for word in composable(overrides)]
    return [word for key, word in keyed if key not in config.MACHINE_KEYS and not key.endswith(".path")]
