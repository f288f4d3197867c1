"""The package's error: it loads nothing, so that the command line starts at once."""

from __future__ import annotations


class InputError(ValueError):
    """The input cannot be used; the message is one line that says where and what to do."""
