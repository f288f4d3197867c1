"""The plain answers at the top of the README are those of the kept verdicts."""

from __future__ import annotations

import json

from commands import ROOT

KEPT = ROOT / "results" / "reference" / "full"


def claim(study: str, name: str) -> dict:
    return json.loads((KEPT / study / "verdicts.json").read_text())["claims"][name]


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
    ranks = {s: claim(f"spectrum_{s}", "optimal_rank") for s in ("0.75", "1", "1.5")}
    assert [ranks[s]["verdict"] for s in ("0.75", "1", "1.5")] == ["REFUTED", "CONSISTENT", "LOOSE"]
    assert f"k^-0.75: N^{ranks['0.75']['exponents']['samples']['estimate']:.2f}" in answers
    information = claim("synthetic", "information")
    shares = sorted(site["estimate"] for site in information["sites"])
    assert information["verdict"] == "REFUTED"
    assert f"{100 * shares[0]:.0f} to {100 * shares[-1]:.0f} %" in answers
    dynamics = claim("synthetic", "dynamics")
    assert dynamics["verdict"] == "REFUTED"
    assert f"{dynamics['divergence_ratio']['estimate']:.0f} times" in answers
