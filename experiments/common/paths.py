"""Where the suite's own files lie: in a checkout, or in an installed wheel, which has conf/ in experiments/."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent  # the packages' folder: a checkout, or site-packages
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else ROOT / "conf"
TEMPLATES = PACKAGE / "show" / "templates"
