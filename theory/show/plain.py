"""Text of tables and files for a terminal: what would steer it is shown instead of obeyed."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and line end, and marks that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with characters that steer a terminal spelled out, such as \\x1b for escape."""
    return _STEERING.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def escape(text: str) -> str:
    """The text for rich: visible, and no markup."""
    from rich.markup import escape as without_markup

    return without_markup(visible(text))
