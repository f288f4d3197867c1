"""Errors that a user can mend: one line that names what is at fault and says what to do."""

from __future__ import annotations

import re

# What commands and configurations call an argument of the library, where that is not the flag of its name.
_KEYS = {
    "--overwrite": "overwrite=True",
    "student:": "kind:",
    "--config": "flags",
    "data.path": "text",
    "student.init": "init",
    "student.matrices": "matrices",
    "student.del_layers": "del_layers",
    "top-p": "top_p",
}
_KEY = re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, _KEYS))}|--[a-z]+(?:-[a-z]+)*)(?![\w/-])")


class InputError(Exception):
    """Bad input (a file, a key, a value). Commands print it as one line and exit with code 2.

    A check that commands and library share names the command's flags; `in_python` respells them for the library.
    """


class DivergedError(Exception):
    """Training produced a number that is not finite. The run is marked failed; a sweep goes on."""


def in_python(message: str) -> str:
    """A command's message with its flags spelt as the library's arguments: `--batch-size` is `batch_size`."""
    return _KEY.sub(lambda key: _KEYS.get(key[0]) or key[0].removeprefix("--").replace("-", "_"), message)


def file_error(wrong: OSError) -> str:
    """One line for an error of the operating system: which file, and what is wrong with it."""
    reason = wrong.strerror or str(wrong)
    return reason if wrong.filename is None else f"{wrong.filename}: {reason}"
