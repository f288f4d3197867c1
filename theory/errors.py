"""Errors that name what the user can change."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used. The message names the file, column, row or option and what to do."""


class OptionError(InputError):
    """An argument that cannot be used: named as in Python here, and as an option by the command line.

    Attributes:
        name: of the argument. rest: the message after the name.
    """

    def __init__(self, name: str, rest: str) -> None:
        super().__init__(f"{name} {rest}")
        self.name, self.rest = name, rest

    @property
    def on_the_command_line(self) -> str:
        return f"--{self.name.replace('_', '-')} {self.rest}"
