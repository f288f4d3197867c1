"""The page in a real browser: it says what was judged, and works as a page. Without Chromium the browser tests skip."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import sys
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest

from experiments import controls, report
from experiments.archive import kept_verdicts, verdicts_markdown
from experiments.common.files import write_json
from experiments.show import figures, power
from experiments.show import page as shown
from experiments.show.lines import OUTCOME
from experiments.show.svg import contrast, on_dark
from experiments.sweep.provenance import ENVIRONMENT
from experiments.sweep.store import Study
from theory.__main__ import main as judge
from theory.judge.verdicts import MEANING
from theory.planted.surfaces import Design, dynamics_table, gap_table, gradient_table, information_table
from theory.report import to_json
from theory.show.palette import INK, TERMINAL
from theory.show.plain import visible

SMALL = Design(ranks=(4, 8, 12, 24, 40), samples=(64, 256, 1024, 4096, 16384), steps=(256, 1024, 4096, 16384, 65536))


def planted(folder: Path) -> Study:
    """A study with four claims, costs, a certificate and rival students, drawn from laws."""
    rng = np.random.default_rng(0)
    tables = {
        "generalization": gap_table(1, 1, SMALL, rng),
        "convergence": gradient_table(-0.25, SMALL, rng),
        "information": pd.concat(information_table(q, SMALL, rng).assign(site=s) for s, q in (("q", 0.97), ("o", 0.8))),
        "dynamics": dynamics_table(1.0, SMALL, rng),
    }
    tables["information"]["calibration_error"] = 0.01
    frames = [t.assign(claim=name, student="lrc") for name, t in tables.items()]
    others = {"rank": 8, "samples": 64, "steps": 9, "seed": 0, "batch_size": 2, "sequence_length": 4, "params": 77}
    losses = {"test_loss": [2.0, 2.5], "test_loss_se": 0.1, "teacher_loss": 1.5, "start_test_loss": 3.0}
    frames.append(
        pd.DataFrame(
            {"claim": "cost", "student": ["lrc", "<svd>"], "decode_tokens_per_s": [1e3, 2e3], **losses, **others}
        )
    )
    frames.append(
        pd.DataFrame(
            {
                "claim": "bound",
                "rank": 8,
                "samples": 1000,
                "certificate": [3.5, 3.9],
                "train_bits": [3.0, 2.9],
                "test_bits": [3.1, 3.05],
                "message_bits": [500, 900],
                "unigram": 4.2,
                "non_vacuous": True,
            }
        )
    )
    study = Study(folder / "results" / "planted")
    study.path.mkdir(parents=True)
    pd.concat(frames).to_csv(study.path / "measurements.csv", index=False, float_format="%.10g")
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = planted(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "REPLICATIONS", 1)
        validation = folder / "validation.json"
        case = {"case": "gap r^1", "claim": "generalization", "replications": 2, "verdicts": {"CONSISTENT": 0.5}}
        need = {"name": "coverage", "value": 0.9, "limits": [0.93, 0.98], "met": False}
        validation.write_text(json.dumps({"replications": 2, "cases": [case], "requirements": [need]}))
        page = shown.render(made, shown.load_parts(made), validation)
    (made.path / "report.html").write_text(page)
    return made


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if browser.find() is None:
        pytest.skip("no Chromium on this machine")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_what_was_judged_stands_in_the_page(study):
    page = (study.path / "report.html").read_text()
    for word in ("Four claims tested on one data set", "requirements are not met", "Ablation", "Certificate", *MEANING):
        assert word in page, word
    assert "What compression costs" in page
    assert "&lt;svd&gt;" in page and "<svd>" not in page  # text from a table is never markup
    kept = json.loads((study.path / "power.json").read_text())
    assert kept["generalization"]["design"]["ranks"] == [4, 8, 12, 24, 40]
    assert kept["generalization"]["design"]["noise"] == pytest.approx(0.2, abs=0.05)


def test_simulating_a_design_shows_how_far_it_is(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(power, "REPLICATIONS", 1)
    monkeypatch.setattr(power.Progress, "update", lambda self, done, total: told.append((self.what, done, total)))
    steps = np.repeat([64, 256, 1024, 4096, 16384], 5)
    rows = pd.DataFrame({"steps": steps, "seed": np.tile(range(5), 5), "grad_norm_sq": steps**-0.5})
    rows["grad_norm_sq"] *= 1 + 0.1 * rows["seed"]
    assert power.power(Study(tmp_path), "convergence", rows)["power"]
    laws = len(told) - 1  # before the first, and after each
    assert [(done, total) for _, done, total in told] == [(k, laws) for k in range(laws + 1)]
    assert told[0][0] == "what the design of convergence can decide"


def test_a_study_of_parts_has_one_page(study, tmp_path):
    both = Study(tmp_path / "both")
    for part in ("one", "two"):
        (both.path / part).mkdir(parents=True)
        frame = pd.read_csv(study.path / "measurements.csv")
        frame[frame["claim"] == "dynamics"].to_csv(both.path / part / "measurements.csv", index=False)
    parts = shown.load_parts(both)
    page = shown.render(both, parts)
    assert "One claim tested on two data sets" in page
    assert f"{OUTCOME[parts[0].report.claims['dynamics'].verdict]} on one, two" in page
    assert 'aria-label="all verdicts in one figure"' in page
    assert 'id="one-dynamics"' in page and 'id="two-dynamics"' in page


def test_report_and_readme_agree_about_every_quantity(study, tmp_path):
    """Each quantity has its own verdict, the same in the table of README and wherever the page shows it."""
    kept = tmp_path / "reference" / "planted"
    kept.mkdir(parents=True)
    (kept / "verdicts.json").write_text(to_json(figures.judge(study).to_dict()))
    rows = [
        line.split(" | ") for line in verdicts_markdown(kept_verdicts(Study(tmp_path / "reference"))).splitlines()[2:]
    ]
    readme = [(claim, quantity, verdict) for _, claim, verdict, quantity, *_ in rows]
    assert ("information", "trend in λ", "CONSISTENT") in readme  # the claim is REFUTED, at its other quantity
    assert ("information", "I/I*", "REFUTED") in readme
    page = (study.path / "report.html").read_text()
    body = page.partition('<table class="verdicts"')[2].partition("</table>")[0]
    found = []
    for row in body.split("<tr role")[2:]:
        claim = re.search(r"<a [^>]*>([^<]*)</a>", row).group(1).replace(" ", "_")
        found += [(claim, *pair) for pair in re.findall(r'<span class="k">(.*?)</span> .*?<span class="v (\w+)">', row)]
    assert [(claim, html.unescape(quantity), verdict) for claim, quantity, verdict in found] == readme
    tables = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    exponents = [t for t in tables if t["name"] == "exponents"]
    shown = {(row[t["columns"].index("quantity")], row[t["columns"].index("verdict")]) for t in exponents
             for row in t["rows"]}  # fmt: skip
    assert shown and shown <= {(quantity, verdict) for _, quantity, verdict in readme}


@pytest.mark.parametrize("verdict", ["LOOSE", "UNTESTABLE"])
@pytest.mark.parametrize("gates", [[], ["too few seeds"]])
def test_the_design_is_described_in_words_true_of_the_verdict(study, monkeypatch, verdict, gates):
    monkeypatch.setattr(shown, "power", lambda *_: {"gates": gates, "weak": [], "power": [], "design": {}})
    (part,) = shown.load_parts(study)
    claim = dataclasses.replace(part.report.claims["generalization"], verdict=verdict)
    said = shown._power(part, claim, pd.DataFrame())["said"]
    assert ("fails" in said) == (verdict == "UNTESTABLE" and bool(gates))
    assert ("measured table passes" in said) == (verdict == "LOOSE" and bool(gates))
    assert ("what was measured on it does not" in said) == (verdict == "UNTESTABLE" and not gates)


def test_missing_runs_are_a_table(study, tmp_path):
    short = Study(tmp_path / "short")
    short.path.mkdir()
    frame = pd.read_csv(study.path / "measurements.csv")
    frame = frame[(frame["claim"] == "generalization") & (frame["samples"] < 5000) & (frame["seed"] < 2)]
    frame.to_csv(short.path / "measurements.csv", index=False)
    (part,) = shown.load_parts(short)
    table = shown._needed(part.report.claims["generalization"])
    assert table["columns"] == ["N", "seeds"] and ["every", 3] in table["rows"]
    look = {"number": 1, "runs": 50, "spent_s": 90.0, "level": 0.982, "verdict": "INCONCLUSIVE", "measured": []}
    block = {"why": "<b>more</b> seeds", "chance": 0.25, "look": look}
    kept = {"decide": {"generalization": {"looks": 4, "spending": "pocock", "blocks": [block]}}}
    write_json(short.path / ENVIRONMENT, kept)  # as in a study that is kept without its runs
    page = shown.render(short, [part])
    assert "History of looks" in page and "&lt;b&gt;more" in page and "<b>more" not in page
    assert "at most 4 looks" in page and "98.2 %" in page and "1m30s" in page
    assert "decide" not in [key for part in shown._environment([part]) for key, _ in part["facts"]]
    assert "Runs that would help" in page and "The design fails gates, so nothing was simulated" in page


def test_an_arm_shows_the_verdict_of_each_quantity(tmp_path):
    rng = np.random.default_rng(0)
    rows = [information_table(0.8, SMALL, rng).assign(site="q", claim="information", arm=a) for a in (None, "control")]
    table = shown.arm_table(pd.concat(rows))
    control = table[table["arm"] == "control"].set_index("coordinate")
    assert control.loc["clone_weight", "verdict"] == "CONSISTENT"
    assert control.loc["ceiling_ratio", "verdict"] == "REFUTED"


def test_verdict_colours_are_defined_once():
    assert set(INK) == set(TERMINAL) == set(MEANING)
    assert len(set(INK.values())) == len(INK)
    for word, ink in INK.items():
        assert contrast(ink, "#ffffff") >= 4.5, word
    for shade in shown._shades():
        assert contrast(shade["ink"], shade["tint"]) >= 4.5, shade
        assert contrast(shade["dark_ink"], shade["dark_tint"]) >= 4.5, shade


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_sound(study, window, width, dark):
    window.requests.clear()
    window.open(study.path / "report.html", width=width, dark=dark)
    assert window.evaluate("document.querySelectorAll('details').forEach(d => d.open = true) || 1")
    assert window.errors == []
    assert [u for u in window.requests if not u.startswith(("file:", "data:"))] == []
    assert window.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    unnamed = """[...document.querySelectorAll('figure svg, figure img, svg.strip')]
        .filter(f => !(f.getAttribute('aria-label') || f.alt || '').trim()).length"""
    assert window.evaluate(unnamed) == 0
    assert window.evaluate("document.querySelectorAll('figure').length") >= 3
    twice = (
        "(ids => ids.filter((id, k) => ids.indexOf(id) !== k))([...document.querySelectorAll('[id]')].map(e => e.id))"
    )
    assert window.evaluate(twice) == []
    low = window.evaluate((Path(browser.__file__).parent / "contrast.js").read_text())
    assert low == [], "text below WCAG AA contrast"


def test_tables_sort_both_ways(study, window):
    window.open(study.path / "report.html")
    click = "document.querySelector('[aria-label=\"cell means of generalization\"] th:nth-child({}) button').click()"
    column = """[...document.querySelectorAll('[aria-label="cell means of generalization"] tbody tr')]
        .map(r => Number(r.cells[{}].textContent))"""
    state = "document.querySelector('[aria-label=\"cell means of generalization\"] th:nth-child(3)').ariaSort"
    for expected, reverse in (("ascending", False), ("descending", True)):
        window.evaluate(click.format(3))
        values = window.evaluate(column.format(2))
        assert window.evaluate(state) == expected
        assert len(values) > 5
        assert values == sorted(values, reverse=reverse)


def downloaded(study, window) -> str:
    """What the button beside the rows of claim 2 saves."""
    window.open(study.path / "report.html")
    return window.evaluate("""new Promise(done => {
        URL.createObjectURL = blob => { blob.text().then(done); return "blob:x"; };
        HTMLAnchorElement.prototype.click = () => {};
        document.querySelector('[aria-label="rows of generalization"]').parentElement.querySelector('.save').click();
    })""")


def test_download_has_every_row_of_the_claim(study, window):
    found = pd.read_csv(io.StringIO(downloaded(study, window)))
    frame = pd.read_csv(study.path / "measurements.csv")
    rows = frame[frame["claim"] == "generalization"].reset_index(drop=True)
    for column in ("rank", "samples", "seed", "gap"):
        np.testing.assert_allclose(found[column], rows[column], rtol=1e-9)


HOSTILE = (
    'x"><img src=x onerror=alert(7)>',
    r"\1\g<9>",
    "</script><script>alert(1)</script>",
    "<style>*{display:none}</style>",
    "'-alert(1)-'",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<svg onload=alert(1)>",
    '" onfocus="alert(1)" autofocus x="',
    "&lt;b&gt;&#60;b>",
    "POLICY",
    "$\\frac{1$ $$ ^_{",
    "]]>--><!--",
    "\u202egnp.exe\x07",
)


@pytest.fixture(scope="module")
def hostile(study, tmp_path_factory):
    """A study whose names and text are all hostile: its own, its parts', its columns', its arms', its students'."""
    made = Study(tmp_path_factory.mktemp("hostile") / HOSTILE[4])
    frame = pd.read_csv(study.path / "measurements.csv")
    for i, name in ((0, HOSTILE[0]), (1, HOSTILE[1]), (10, HOSTILE[10])):
        folder = made.path / name.replace("/", "∕")
        folder.mkdir(parents=True)
        claims = ["generalization", "information", "cost"] if i == 0 else ["dynamics", "cost"]
        part = frame[frame["claim"].isin(claims)].copy()
        part["student"] = [HOSTILE[i + n % 2] if c == "cost" else HOSTILE[i] for n, c in enumerate(part["claim"])]
        part["site"] = part["site"].map({"q": HOSTILE[i], "o": HOSTILE[i + 1]})
        again = part[part["claim"].isin(["generalization", "dynamics"])]
        part = pd.concat([part, *(again.assign(arm=HOSTILE[i + k]) for k in (1, 2))], ignore_index=True)
        part["text"] = [HOSTILE[(i + n) % len(HOSTILE)] for n in range(len(part))]
        part[HOSTILE[i]] = range(len(part))
        part["formula"] = "=cmd|' /C calc'!A0"
        part.to_csv(folder / "measurements.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "REPLICATIONS", 1)
        (made.path / "report.html").write_text(shown.render(made, shown.load_parts(made)))
    return made


def test_hostile_text_is_text(hostile):
    page = (hostile.path / "report.html").read_text()
    for wrong in ("<img src=x", "<svg onload", "</script><script>alert", "<style>*", "&#60;b>", "{{"):
        assert wrong not in page.replace("{{ 7 * 7 }}", ""), wrong  # this is no template's second pass
    assert page.count("<script>") == 1 and page.count("<style>") == 1
    assert page.count("Content-Security-Policy") == 1
    assert page.count("&lt;img src=x onerror=alert(7)&gt;") > 3
    for tag in re.findall(r"<[a-z][^>]*>", page):
        assert not re.search(r"\son\w+=", re.sub(r'"[^"]*"', "", tag)), tag


def test_nothing_hostile_runs_and_the_policy_is_in_force(hostile, window):
    window.requests.clear()
    window.open(hostile.path / "report.html")
    assert window.errors == []
    assert window.evaluate("document.querySelectorAll('img[src=x], [onerror], [onload], [onfocus]').length") == 0
    assert window.evaluate("document.querySelectorAll('iframe, object, embed, base, form').length") == 0
    assert [u for u in window.requests if not u.startswith(("file:", "data:"))] == []
    # What the page itself could be made to add does not run: the policy, not the escaping, is tried here.
    blocked = """new Promise(done => {
        const seen = [];
        window.hit = [];
        document.addEventListener('securitypolicyviolation', e => seen.push(e.effectiveDirective));
        document.body.insertAdjacentHTML('beforeend',
            '<img src=y onerror="window.hit.push(1)"><b id=bold onclick="window.hit.push(2)">');
        document.getElementById('bold').click();
        const script = document.createElement('script');
        script.textContent = 'window.hit.push(3)';
        document.body.append(script);
        const style = document.createElement('style');
        style.textContent = '*{display:none}';
        document.head.append(style);
        const look = () => [window.hit.length, getComputedStyle(document.body).display, [...new Set(seen)]];
        setTimeout(() => done(look()), 300);
    })"""
    hits, display, directives = window.evaluate(blocked)
    assert (hits, display) == (0, "block")
    assert {"img-src", "script-src-attr", "style-src-elem"} <= set(directives)
    assert {"script-src", "script-src-elem"} & set(directives)
    window.errors.clear()


def test_a_download_holds_no_formula(hostile, window):
    text = downloaded(hostile, window)
    found = pd.read_csv(io.StringIO(text))
    assert set(found["text"]) <= {f"'{t}" if t[0] in "=+-@" else t for t in HOSTILE}
    assert not re.search(r'(^|,)"?[=@]', text, re.MULTILINE)
    values = window.evaluate(
        """["=1+1", "+x", "-x", "@x", "-5", "+1e3", "a=b", -5, null, "\\tx", "-", 0.5].map(quote)"""
    )
    assert values == ["'=1+1", "'+x", "'-x", "'@x", "-5", "+1e3", "a=b", "-5", "", "'\tx", "'-", "0.5"]


def test_nothing_steers_the_terminal(tmp_path, monkeypatch, capsys):
    steering = "\x1b[31mred\x1b]0;title\x07 [bold]x[/] \x9b2J \u202e"
    study = Study(tmp_path / "s")
    study.path.mkdir()
    frame = gap_table(1, 1, SMALL, np.random.default_rng(0)).assign(claim="generalization")
    frame = pd.concat([frame, frame.assign(arm=steering)])
    frame.to_csv(study.path / "measurements.csv", index=False)
    for main, words in ((controls.main, ["study=s", f"results_dir={tmp_path}"]), (judge, ["check", str(study.path)])):
        monkeypatch.setattr(sys, "argv", ["x", *words])
        if main is judge:
            judge(["check", str(study.path), "--where", f"arm={steering}"])
            judge(["compare", str(study.path), "--by", "arm", "--quantity", "gap"])
        else:
            main()
        out, err = capsys.readouterr()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err)
        assert "red" in out + err
    assert visible(steering) == "\\x1b[31mred\\x1b]0;title\\x07 [bold]x[/] \\x9b2J \\u202e"


def test_ids_of_parts_are_plain_and_differ():
    part = dataclasses.make_dataclass("P", ["label"])
    anchors = [shown.Part.anchor.fget(part(name)) for name in (*HOSTILE, "synthetic", "a b", "a-b", "")]
    assert len(set(anchors)) == len(anchors)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]*", a) for a in anchors)
    assert "synthetic" in anchors


def test_colours_stand_out_on_the_dark_ground():
    for colour in ("#000000", "#444444", "#440154", "#0072b2", "#d55e00"):
        assert contrast(on_dark(colour), "#16181b") >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


def test_a_study_without_a_table_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["report", "study=empty", f"results_dir={tmp_path}"])
    assert report.guarded(report.main) == 2
    assert "run `python -m experiments.collect study=empty` first" in capsys.readouterr().err
