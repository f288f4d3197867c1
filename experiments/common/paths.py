"""Where the suite's own files lie: in a checkout, or in an installed wheel, which has conf/ in experiments/."""

from __future__ import annotations

from pathlib import Path

from lrc_jax.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent  # the packages' folder: a checkout, or site-packages
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else ROOT / "conf"
TEMPLATES = PACKAGE / "show" / "templates"


def study_name(name: str) -> str:
    """The name of a study, which is a folder under results/ or in one of its folders (full/synthetic).

    Raises:
      InputError: it leads elsewhere.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or not all(part == part.strip() and part.strip(".") for part in parts):
        raise InputError(f"study: {name!r} is no folder of its own under results_dir; give a name, such as study=mine")
    return name
