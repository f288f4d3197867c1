"""The documentation site builds without a warning, and the code that it shows works as it stands there."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import ROOT

from experiments.archive import TABLE, fill_pages
from experiments.sweep.store import REFERENCE, Study
from theory.judge.ledger import all_claims
from theory.show.page import claims_markdown, theory_markdown
from theory.tables import table_from_frame

DOCS = ROOT / "docs"


def build(target, *options):
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", *options, str(DOCS), str(target)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def test_the_pages_build_without_a_warning_and_ask_no_server(tmp_path):
    site = tmp_path / "site"
    done = build(site, "-t", "quick")
    assert done.returncode == 0, done.stderr
    assert "Register of problems" in (site / "theory.html").read_text()
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not loaded, f"{page.name}: {loaded}"


@pytest.mark.slow
def test_the_whole_site_builds_without_a_warning(tmp_path):
    done = build(tmp_path / "site", "--keep-going")
    assert done.returncode == 0, done.stderr
    assert "theory.judge.check.check_file" in (tmp_path / "site" / "api" / "theory.html").read_text()


def test_the_theory_page_has_every_problem_of_the_register():
    text = theory_markdown(all_claims().values())
    labels = re.findall(r"^\| (G\d+) \|", text, re.MULTILINE)
    assert labels == [f"G{i}" for i in range(1, 13)]
    for claim in all_claims().values():
        assert f"## {claim.name}: " in text
        for column in claim.columns:
            assert f"`{column}`" in text


def test_pages_show_the_kept_tables(tmp_path):
    """The pages of a code host are those of the site: their tables are those of results/reference/."""
    for name in ("findings.md", "ablation.md", "ten-minutes.md"):
        shutil.copy(DOCS / name, tmp_path / name)
    page = tmp_path / "findings.md"
    page.write_text(page.read_text().replace("LOOSE", "UNTRUE"))
    fill_pages(Study.of(str(ROOT / "results"), REFERENCE), tmp_path)
    for name in ("findings.md", "ablation.md", "ten-minutes.md"):
        shown = (DOCS / name).read_text()
        assert "| verdict |" in shown or "| perplexity" in shown, name
        assert [m[0] for m in TABLE.finditer((tmp_path / name).read_text())] == [m[0] for m in TABLE.finditer(shown)]


def test_the_kept_theory_page_is_the_program_s():
    assert (DOCS / "theory.md").read_text() == theory_markdown(all_claims().values())


def shown(page: str, folder):
    """The python block of a page, imported as a module."""
    (text,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    path = folder / "shown.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("shown", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["shown"] = module  # where dataclasses look for a class's module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("spread", "verdict"), [(0.001, "CONSISTENT"), (0.2, "REFUTED")])
def test_the_claim_that_is_shown_judges(tmp_path, spread, verdict):
    claim = shown("howto/claim_in_code.md", tmp_path).CLAIM
    noise = np.random.default_rng(0).standard_normal(8)
    frame = pd.DataFrame({"seed": range(8), "test_loss": 2 * (1 + spread * noise)})
    report = claim.judge(table_from_frame(frame), 0.1)
    assert report.verdict == verdict
    few = claim.judge(table_from_frame(frame.head(3)), 0.1)
    assert few.verdict == "UNTESTABLE"
    claims_markdown([*all_claims().values(), claim])


def test_the_student_that_is_shown_trains_all_but_its_gains(tmp_path):
    import jax
    import jax.numpy as jnp

    from lrc_jax.clone import CloneFlags, LowRankClone
    from lrc_jax.model import DecoderConfig, init_weights
    from lrc_jax.students.base import Frozen, Student

    teacher = DecoderConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4
    )
    student = shown("howto/student.md", tmp_path).FixedNorms("direct", LowRankClone(teacher, CloneFlags(4)), False)
    assert isinstance(student, Student)
    frozen = Frozen(init_weights(teacher, jax.random.key(0)))
    params = student.init(jax.random.key(1), frozen)
    tokens_BT = jnp.arange(6).reshape(2, 3)

    def loss(params):
        return jnp.square(student.forward(params, frozen, tokens_BT, None).logits_NV).mean()

    slopes = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params))
    assert any(slope.ndim == 1 for _, slope in slopes)
    for path, slope in slopes:
        assert (np.abs(slope).max() == 0) == (slope.ndim == 1), jax.tree_util.keystr(path)


def test_the_three_lines_of_the_readme_judge(tmp_path, monkeypatch, capsys):
    """The README's first Python block runs as it stands, and the second names what is there."""
    import lrc_jax as lrc

    judge, clone = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (kept,) = re.findall(r'check\("([^"]+)"\)', judge)
    monkeypatch.chdir(tmp_path)
    exec(judge.replace(kept, str(ROOT / kept)), {})
    table = capsys.readouterr().out
    assert "generalization" in table and "LOOSE" in table
    assert (tmp_path / "generalization.png").stat().st_size > 10_000
    for name in re.findall(r"lrc\.(\w+)", clone):
        assert hasattr(lrc, name), name


def test_links_of_the_first_pages_lead_somewhere():
    """Relative links of the pages that a code host shows: to files that are committed."""
    known = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            path = (page.parent / target).resolve().relative_to(ROOT)
            assert str(path) in known or any(f.startswith(f"{path}/") for f in known), f"{page}: {target}"
