"""Figures across kept studies show what their tables say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.show.spectra import optima_of_all_studies, phase_diagram, with_spectrum
from theory.show.theme import theme

SPECTRA = {"full/a": 0.75, "full/b": 1.0, "second/c": 1.5}


@pytest.fixture
def kept(tmp_path):
    """Three tables whose r* is N^(1/(2s)), one without a spectrum and one that is about something else."""
    tables = {}
    for name, s in SPECTRA.items():
        folder = tmp_path / name
        (folder / "figures").mkdir(parents=True)
        pd.DataFrame({"spectrum": [s, s], "rank": [2, 3]}).to_csv(folder / "measurements.csv", index=False)
        samples = 1000.0 * 4.0 ** np.arange(4)
        points = pd.DataFrame({"samples": samples, "mean": (samples / 60) ** (1 / (2 * s))})
        points = points.assign(low=points["mean"] / 1.1, high=points["mean"] * 1.1, status=["at_most", *["used"] * 3])
        points.to_csv(folder / "figures" / "optimal_rank_against_samples.csv", index=False)
        found = {"estimate": 1 / (2 * s) + 0.05, "ci95": [1 / (2 * s) + 0.02, 1 / (2 * s) + 0.08]}
        right = {"estimate": 1 / (2 * s), "ci95": [1 / (2 * s) - 0.03, 1 / (2 * s) + 0.03]}
        exponent = found | {"claimed": 0.5, "corrected": right}
        tables[Path(name)] = {"optimal_rank": {"verdict": "LOOSE", "exponents": {"samples": exponent}}}
    (tmp_path / "full/d").mkdir()
    pd.DataFrame({"rank": [1]}).to_csv(tmp_path / "full/d/measurements.csv", index=False)
    tables[Path("full/d")] = tables[Path("full/a")]
    tables[Path("full/e")] = {"convergence": {}}
    return tmp_path, tables


def test_a_spectrum_is_known_where_all_runs_have_one(kept):
    root, tables = kept
    assert {str(folder): s for folder, s in with_spectrum(root, tables).items()} == SPECTRA


def test_the_phase_diagram_has_both_exponents_of_every_table_and_counts_what_covers(kept):
    root, tables = kept
    with theme():
        drawn = phase_diagram(with_spectrum(root, tables), tables)
    assert drawn.points["s"].tolist() == [0.75, 1.0, 1.5]
    assert drawn.points["exponent"].tolist() == pytest.approx([1 / 1.5 + 0.05, 0.55, 1 / 3 + 0.05])
    assert "3 of 3 corrected intervals" in drawn.caption
    axes = drawn.figure.axes[0]
    theory = next(line for line in axes.lines if line.get_label().startswith("theory"))
    assert theory.get_ydata() == pytest.approx(1 / (2 * theory.get_xdata()))
    assert len(axes.containers) == 6
    one = {Path("full/a"): tables[Path("full/a")]}
    single = with_spectrum(root, one)
    assert phase_diagram(single, one) is None and optima_of_all_studies(root, single) is None
    exponent = tables[Path("full/b")]["optimal_rank"]["exponents"]["samples"]
    exponent["corrected"] = {"estimate": 0.65, "ci95": [0.6, 0.7]}
    with theme():
        assert "2 of 3 corrected intervals" in phase_diagram(with_spectrum(root, tables), tables).caption


def test_all_optima_are_those_of_the_fits(kept):
    root, tables = kept
    with theme():
        points = optima_of_all_studies(root, with_spectrum(root, tables)).points
    assert len(points) == 9 and points["samples"].min() == 4000
    for s, part in points.groupby("s"):
        slope = np.polyfit(np.log(part["samples"]), np.log(part["mean"]), 1)[0]
        assert slope == pytest.approx(1 / (2 * s))
