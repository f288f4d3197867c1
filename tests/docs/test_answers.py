"""The plain answers at the top of the README are those of the kept verdicts."""

from __future__ import annotations

import json

from commands import ROOT

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
