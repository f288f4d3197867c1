"""Sphinx configuration of the documentation site: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from experiments.archive import fill_pages  # noqa: E402
from experiments.sweep.store import REFERENCE, Study  # noqa: E402
from theory.judge.ledger import all_claims  # noqa: E402
from theory.show.page import theory_markdown  # noqa: E402

project = "lrc-scaling-suite"
author = "the authors of lrc-scaling-suite"
html_title = "lrc-scaling-suite"
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]
if tags.has("quick"):  # without the API reference, which takes most of the time
    exclude_patterns.append("api")
    suppress_warnings = ["toc.not_readable"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
python_use_unqualified_type_names = True
default_role = "code"


def write_pages(app: Sphinx) -> None:
    """What is read off the program and the kept studies, written anew at every build so that it cannot differ."""
    fill_pages(Study.of(str(HERE.parent / "results"), REFERENCE), HERE)
    page, text = HERE / "theory.md", theory_markdown(all_claims().values())
    if page.read_text() != text:
        page.write_text(text)


def draw_for_phones(app: Sphinx, doctree: nodes.document) -> None:
    """Beside a picture that has a narrow form, NAME_narrow.png, that form: the style sheet shows one of the two."""
    for image in list(doctree.findall(nodes.image)):
        uri = image["uri"].replace(".png", "_narrow.png")
        if uri != image["uri"] and (Path(app.srcdir) / app.env.docname / ".." / uri).resolve().is_file():
            narrow = image.deepcopy()
            narrow["uri"] = uri
            narrow["classes"].append("for-phones")
            image["classes"].append("for-pages")
            image.parent.insert(image.parent.index(image) + 1, narrow)


def as_plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text with `code`: bars, trailing underscores and globs are no markup, and code may
    have an ending (`vmap`ped)."""
    parts = "\n".join(lines).split("`")
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"((?<=\w)_(?=\W|$)|\||(?<=/)\*(?=[\w.])|(?<=\w)\*(?=\w))", r"\\\1", parts[k])
        if k and parts[k][:1].isalnum():
            parts[k] = "\\ " + parts[k]
    lines[:] = "`".join(parts).split("\n")


def name_errors(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Each package has an InputError of its own; a docstring means that of its package."""
    own = "theory.tables" if name.startswith("theory") else "lrc_jax.errors"
    lines[:] = [line.replace(":raises InputError:", f":raises {own}.InputError:") for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_pages)
    app.connect("doctree-read", draw_for_phones, priority=100)  # before pictures are collected
    app.connect("autodoc-process-docstring", as_plain_text, priority=100)
    app.connect("autodoc-process-docstring", name_errors, priority=900)  # after napoleon
