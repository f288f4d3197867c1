"""Names of columns: renaming on request, and which column was meant by a name that the table lacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from theory.errors import InputError

#: Other names of the same quantity. A column under one of them is read as the quantity, with a remark.
ALIASES: Mapping[str, Sequence[str]] = {
    "rank": ("r", "lora_rank", "lora_r", "low_rank"),
    "samples": ("n_train", "n_samples", "num_samples", "sample_size", "train_samples", "num_train_samples"),
    "steps": ("step", "global_step", "n_steps", "num_steps", "train_steps", "num_train_steps", "iterations"),
    "seed": ("random_seed", "rng_seed", "replicate"),
    "gap": ("generalization_gap", "generalisation_gap", "gen_gap"),
    "test_loss": ("val_loss", "validation_loss", "eval_loss", "loss_test", "heldout_loss"),
    "train_loss": ("training_loss", "loss_train"),
    "grad_norm_sq": ("grad_norm_squared", "squared_grad_norm"),
}

#: Names that can mean the quantity and often mean another (N counts parameters in many tables): only suggested.
SUGGESTED: Mapping[str, Sequence[str]] = {
    "rank": ("width", "dim"),
    "samples": ("n", "size"),
    "steps": ("t", "epoch", "epochs"),
    "seed": ("run", "run_id", "trial"),
}

#: What a tracker's export writes before a name (`config.rank`, `summary/gap`) and after it (`rank.value`).
_TRACKER = re.compile(r"^(?:config|summary|params|metrics|hparams)[./]|\.value$", re.IGNORECASE)

_QUOTED = r"`[^`]*`|\"[^\"]*\"|'[^']*'"
_RENAMING = re.compile(rf"\s*({_QUOTED}|[^=,`\"']+?)\s*=\s*({_QUOTED}|[^=,]+?)\s*(?:,|$)")


def plain(name: str) -> str:
    """A name without case, blanks, punctuation and a tracker's prefix: `config.Test Loss` is `testloss`."""
    return re.sub(r"[\W_]+", "", _TRACKER.sub("", name.strip())).lower()


def unquoted(text: str) -> str:
    """A name or value without the quotes or backticks around it, which may hold blanks and operators."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "`\"'" else text


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


class Names:
    """The columns of one table, found by names that are only similar.

    Args:
        columns: their names, in order.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._by_plain: dict[str, list[str]] = {}
        for name in columns:
            self._by_plain.setdefault(plain(name), []).append(name)
        self._lines = "\n".join(self._by_plain)

    def spelled(self, name: str) -> list[str]:
        """Columns equal to a name up to case, blanks, punctuation and a tracker's prefix."""
        return self._by_plain.get(plain(name), [])

    def alias(self, name: str) -> list[str]:
        """Columns under another name of the same quantity."""
        return [column for other in ALIASES.get(name, ()) for column in self.spelled(other)]

    def similar(self, name: str) -> list[str]:
        """Columns that were probably meant by a name, most probable first; the column of that name is none of them."""
        sought = plain(name)
        found = [*self.spelled(name), *self.alias(name)]
        found += [column for other in SUGGESTED.get(name, ()) for column in self.spelled(other)]
        if len(sought) > 2:
            found += [c for near in _one_edit(sought).findall(self._lines) for c in self._by_plain[near]]
        return [column for column in dict.fromkeys(found) if column != name]

    def one_of(self, name: str) -> str:
        """The column meant by a name that a user wrote: of that name, or the only one that spells it.

        Raises:
            InputError: there is none, or there are several; the message names those that are similar.
        """
        if name in self.columns:
            return name
        found = self.spelled(name)
        if len(found) == 1:
            return found[0]
        near = self.similar(name)
        if near:
            raise InputError(f"no column {name!r}; did you mean {either(near)}?")
        raise InputError(f"no column {name!r}; the columns are {listed(self.columns)}")


def _one_edit(name: str) -> re.Pattern[str]:
    """Matches the lines that differ from a plain name by one letter: another, one more, one less, or two exchanged."""
    places = range(len(name))
    near = {name[:i] + ".?" + name[i + 1 :] for i in places} | {name[:i] + "." + name[i:] for i in (*places, len(name))}
    near |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in places[:-1]}
    return re.compile(f"^(?:{'|'.join(sorted(near))})$", re.MULTILINE)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in quotes, the list cut where it is long."""
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def either(names: Sequence[str]) -> str:
    """`'a', 'b' or 'c'`: the first three names, of which one was probably meant."""
    first = [repr(name[:60]) for name in names[:3]]
    return " or ".join(filter(None, [", ".join(first[:-1]), first[-1]]))


def quoted(name: str) -> str:
    """A name as `--columns` and `--where` take it: in backticks unless it is made of letters, digits and - . /."""
    return name if re.fullmatch(r"[\w./-]+", name) else f"`{name}`"


def parse_columns(text: str) -> dict[str, str]:
    """`rank=r,samples=n_train` as new name -> name in the table. Names may stand in quotes or backticks.

    Raises:
        InputError: the text is malformed or gives one name twice.
    """
    pairs, end = [], 0
    while end < len(text):
        match = _RENAMING.match(text, end)
        if not match:
            raise InputError(
                f"--columns {text!r}: write NEW=OLD,NEW=OLD such as rank=r,samples=n_train; put names with "
                "blanks or signs in quotes or backticks"
            )
        pairs.append((unquoted(match[1]), unquoted(match[2])))
        end = match.end()
    twice = repeated(new for new, _ in pairs)
    if not pairs or twice:
        raise InputError(f"--columns {text!r}: " + (f"{twice} is given twice" if twice else "write NEW=OLD,NEW=OLD"))
    return dict(pairs)
