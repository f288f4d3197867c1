"""Errors that a user can mend: one line that names what is at fault and says what to do."""

from __future__ import annotations


class InputError(Exception):
    """Bad input (a file, a key, a value). Commands print it as one line and exit with code 2."""


class DivergedError(Exception):
    """Training produced a number that is not finite. The run is marked failed; a sweep goes on."""


def file_error(wrong: OSError) -> str:
    """One line for an error of the operating system: which file, and what is wrong with it."""
    reason = wrong.strerror or str(wrong)
    return reason if wrong.filename is None else f"{wrong.filename}: {reason}"
