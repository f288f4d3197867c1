"""The plain answers at the top of the README and on the ten-minutes page are those of the kept verdicts."""

from __future__ import annotations

import json
import re

import pytest
from commands import ROOT

from theory.__main__ import main as theory

KEPT = ROOT / "results" / "reference"
SPECTRA = {
    "0.75": "REFUTED",
    "0.875": "CONSISTENT",
    "1": "CONSISTENT",
    "1.25": "HOLDS",
    "1.5": "LOOSE",
    "1.75": "LOOSE",
    "2": "LOOSE",
}


def claim(part: str, name: str, study: str = "full") -> dict:
    return json.loads((KEPT / study / part / "verdicts.json").read_text())["claims"][name]


def test_the_numbers_in_the_answers_are_the_kept_ones():
    text = (ROOT / "README.md").read_text()
    answers = text[text.index("## Does the theory hold?") : text.index("| I want to")]
    convergence = claim("synthetic", "convergence")
    assert (convergence["verdict"], convergence["cause"]) == ("REFUTED", "premise")
    assert f"T^{convergence['exponents']['steps']['estimate']:.1f}" in answers
    for study in ("synthetic", "one_matrix"):
        assert claim(study, "generalization")["verdict"] == "LOOSE"
        assert claim(study, "generalization")["exponents"]["samples"]["top"]["ci95"][1] < -0.9  # about as 1/N
        assert claim(study, "generalization")["exponents"]["rank"]["verdict"] in ("LOOSE", "CONSISTENT")
    ranks = {s: claim(f"spectrum_{s}", "optimal_rank", "second") for s in SPECTRA}
    assert {s: found["verdict"] for s, found in ranks.items()} == SPECTRA
    assert f"s = 0.75 (N^{ranks['0.75']['exponents']['samples']['estimate']:.2f})" in answers
    findings = (ROOT / "docs" / "findings.md").read_text()
    covered = 0
    for s, found in ranks.items():
        exponent = found["exponents"]["samples"]
        shown = [
            f"{x['estimate']:.2f} [{x['ci95'][0]:.2f}, {x['ci95'][1]:.2f}]" for x in (exponent, exponent["corrected"])
        ]
        assert f"| {s} | {1 / (2 * float(s)):.2f} | {shown[0]} | {shown[1]} | {found['verdict']}" in findings, s
        low, high = exponent["corrected"]["ci95"]
        covered += low <= 1 / (2 * float(s)) <= high
    assert covered == 6 and "Six of the seven corrected intervals" in findings
    information = claim("synthetic", "information")
    shares = sorted(site["estimate"] for site in information["sites"])
    assert information["verdict"] == "REFUTED"
    assert f"{100 * shares[0]:.0f} to {100 * shares[-1]:.0f} %" in answers
    dynamics = claim("synthetic", "dynamics")
    assert dynamics["verdict"] == "REFUTED"
    assert f"{dynamics['divergence_ratio']['estimate']:.0f} times" in answers


def ten_minutes() -> dict[str, str]:
    """The sections of the page by their headings, each in one line."""
    parts = re.split(r"^## ", (ROOT / "docs" / "ten-minutes.md").read_text(), flags=re.MULTILINE)
    return {part.partition("\n")[0]: " ".join(part.split()) for part in parts}


def test_the_ten_minutes_are_those_of_the_kept_verdicts():
    page = ten_minutes()
    convergence = claim("synthetic", "convergence")
    assert f"about T^{convergence['exponents']['steps']['estimate']:.1f}" in page["The answers"]
    assert (convergence["cause"], convergence["bound"]["verdict"]) == ("premise", "HOLDS")
    second = [claim(f"premise_{norms}", "convergence", "second") for norms in ("open", "bounded")]
    assert [found["bound"]["verdict"] for found in second] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert [found["verdict"] for found in second] == ["REFUTED", "REFUTED"]
    gaps = [claim(part, "generalization")["exponents"] for part in ("synthetic", "one_matrix", "wikitext2")]
    low, top = ([found["samples"][half]["estimate"] for found in gaps] for half in ("low", "top"))
    assert (
        f"between {max(low):.1f} and {min(low):.1f} at small N and is about {sum(top) / 3:.1f}"
        in page["2. Generalisation gap"]
    )
    assert all(found["rank"]["top"]["estimate"] < 1 for found in (gaps[0], gaps[2]))  # saturates at large r
    shares = [site["estimate"] for site in claim("synthetic", "information")["sites"]]
    assert f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of what" in page["The answers"]
    assert f"best place is {100 * max(shares):.0f} %" in page["4. Information"] and len(shares) == 4
    assert all(site["trend"] > 0 for site in claim("synthetic", "information")["sites"])
    ratio = claim("synthetic", "dynamics")["divergence_ratio"]
    assert f"{ratio['estimate']:.0f} times as much" in page["The answers"] and ratio["ci95"][0] > 2
    assert {s: claim(f"spectrum_{s}", "optimal_rank", "second")["verdict"] for s in SPECTRA} == SPECTRA
    made = {
        part: json.loads((KEPT / "full" / part / "environment.json").read_text()) for part in ("stories260k", "planted")
    }
    for part, minutes in (("stories260k", "3.5"), ("planted", "21")):
        assert round(made[part]["minutes"], 1 if "." in minutes else 0) == float(minutes)
        assert f"{made[part]['runs']} runs, {minutes} minutes" in page["What would decide the open questions"]


def test_what_the_third_study_adds_to_the_answers_is_kept():
    text, findings, page = (
        (ROOT / name).read_text() for name in ("README.md", "docs/findings.md", "docs/ten-minutes.md")
    )
    found = claim("wikitext2", "convergence", "third")
    slope = found["exponents"]["steps"]
    assert found["verdict"] == "CONSISTENT"
    assert all(f"T^{slope['estimate']:.2f}" in where for where in (text, findings, page))
    assert f"T^{slope['estimate']:.2f} [{slope['ci95'][0]:.2f}, {slope['ci95'][1]:.2f}]" in findings
    gap = claim("wikitext2", "generalization", "third")["exponents"]["samples"]
    assert gap["verdict"] == "INCONCLUSIVE"
    assert f"(N^{gap['low']['estimate']:.1f}). Beyond, the gap falls as N^{gap['top']['estimate']:.1f}" in findings
    whole = claim("objective", "generalization", "third")
    assert whole["verdict"] == "LOOSE"
    for where in (findings, (ROOT / "docs/third.md").read_text()):
        exponent = whole["exponents"]["samples"]
        low, high = exponent["ci95"]
        assert f"N^{exponent['estimate']:.2f} [{low:.2f}, {high:.2f}]" in where
    widths = [
        claim(*where)["exponents"]["samples"]
        for where in (("width", "optimal_rank", "second"), ("width_256", "optimal_rank", "third"))
    ]
    assert {found["verdict"] for found in widths} == {"UNTESTABLE"}
    shown = [f"N^{x['estimate']:.2f} [{x['ci95'][0]:.2f}, {x['ci95'][1]:.2f}]" for x in widths]
    assert " and ".join(shown) in findings
    assert f"N^{widths[0]['estimate']:.1f} to N^{widths[1]['estimate']:.1f}" in text
    assert [f"{w['window'][0]:g} to {w['window'][-1]:,g}" in findings for w in widths] == [True, True]
    matrices = [
        claim(part, "optimal_rank", study)["exponents"]["samples"]["estimate"]
        for part, study in (("one_matrix", "full"), ("one_matrix_128", "third"))
    ]
    assert f"N^{matrices[0]:.2f} at width 64 and N^{matrices[1]:.2f} at width 128" in findings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name", "why", "row"),
    [
        ("stories260k", "generalization", "samples = 32768 (above), and 2 more seeds", "44 runs: N = 32,768"),
        ("planted", "optimal_rank", "rank = 32 (between)", "30 runs at rank 32"),
    ],
)
def test_the_open_questions_have_the_chances_that_are_simulated(tmp_path, capsys, part, name, why, row):
    theory(["next", str(KEPT / "full" / part), "--claim", name, "--json", str(tmp_path / "next.json")])
    found = {one["why"]: one for one in json.loads((tmp_path / "next.json").read_text())["proposals"]}[why]
    line = next(cells for cells in ten_minutes()["What would decide the open questions"].split(" | ") if row in cells)
    assert line.startswith(f"{found['runs']} runs")
    rest = ten_minutes()["What would decide the open questions"].split(row)[1]
    shown = float(re.search(r"\| (\d+) % \|", rest)[1])
    assert shown == pytest.approx(100 * found["chance"], abs=5)


@pytest.mark.slow
def test_the_clone_s_best_rank_crosses_the_window_as_fast_as_is_said(capsys):
    factors = []
    for part in ("synthetic", "wikitext2", "stories260k"):
        theory(["next", str(KEPT / "full" / part), "--claim", "optimal_rank"])
        (found,) = re.findall(r"within a factor of\s+([\d.]+)\s+in N, and ([\d.]+)", capsys.readouterr().out)
        factors.append(tuple(map(float, found)))
    crossing, needed = ([factor[i] for factor in factors] for i in (0, 1))
    said = f"within a factor of {min(crossing):.1f} to {max(crossing):.1f} in N, and a factor of {needed[0]:.1f} is"
    assert said in ten_minutes()["3. Best rank"]


def test_the_answers_on_what_a_clone_is_worth_are_the_kept_ones():
    parts = ("wikitext2_64", "wikitext2_128", "stories260k", "smollm2")
    efficiency = {part: claim(part, "efficiency", "worth") for part in parts}
    assert {found["verdict"] for found in efficiency.values()} == {"REFUTED"}
    over = [c for found in efficiency.values() for c in found["comparisons"] if c["budget"] == "tokens"]
    lowest = sorted(c["targets"][-1]["estimate"] for c in over if c["targets"])  # SmolLM2 has two budgets: no F
    assert len(lowest) == 3
    ends = sorted(c["performance"]["estimate"] for c in over)
    tokens = f"{lowest[0]:.2f} to {lowest[-1]:.2f} times"
    nats = f"{ends[0]:.2f} to {ends[-1]:.2f} nats"
    duels = []
    for part in parts[:3]:
        compression = claim(part, "compression", "worth")
        words = {c["cost"]: c["verdict"] for c in compression["comparisons"]}
        assert words == {"weight_bytes": "REFUTED", "flops_per_token": "UNTESTABLE"}
        duels += [d["estimate"] for d in compression["comparisons"][0]["duels"] if d["rival"] == "quantised:int4"]
    rounded = f"{min(duels):.1f} to {max(duels):.1f} nats better"
    for page in ("README.md", "docs/worth.md"):
        text = (ROOT / page).read_text()
        for said in (tokens, nats, rounded):
            assert said in text, (page, said)
    for page in ("docs/index.md", "docs/ten-minutes.md"):
        for said in (tokens, nats):
            assert said in (ROOT / page).read_text(), (page, said)
