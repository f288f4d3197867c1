"""Bad tables end in one line and exit code 2; odd but good tables give the right answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from theory.judge.cells import build_cells
from theory.judge.check import check_file, check_table
from theory.judge.verdicts import CONSISTENT
from theory.planted.surfaces import Design, gap_table
from theory.tables import InputError, read_table


@pytest.fixture
def good(rng):
    return gap_table(1.0, 0.5, Design(noise=0.1), rng)


def spoiled(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    """The table with one cell replaced; `row` counts from 1."""
    frame = frame.astype(object)
    frame.iloc[row - 1, frame.columns.get_loc(column)] = value
    return frame


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("gap", 7, "n/a?", "'n/a?' is not a number"),
        ("gap", 3, "inf", "infinite"),
        ("gap", 3, "-inf", "infinite"),
        ("rank", 12, -8, "must be positive"),
        ("rank", 12, 0, "must be positive"),
        ("samples", 5, "", "empty"),
        ("samples", 5, "1O24", "'1O24' is not a number"),
        ("seed", 9, -1, "must be zero or positive"),
        ("rank", 1, "True", "'True' is not a number"),
    ],
)
def test_one_bad_cell_is_named(theory, tmp_path, good, column, row, value, said):
    path = tmp_path / "bad.csv"
    spoiled(good, column, row, value).to_csv(path, index=False)
    line = theory("check", path, "--json", tmp_path / "out.json").error
    assert f"column {column}, row {row}" in line
    assert said in line
    assert str(path) in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"], "nothing half-written"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "empty"),
        ("blank.csv", b"\n\n  \n", "empty"),
        ("header.csv", b"rank,samples,seed,gap\n", "no row"),
        ("binary.csv", bytes(range(256)) * 40, "binary data of an unknown kind"),
        ("latin.csv", b"rank,samples,seed,gap\n4,64,0,\xff\xfe\n", "is not a number"),
        ("ragged.csv", b"rank,samples,seed,gap\n4,64,0,1,5,6\n", "row 1 (line 2) has 6 fields and the header 4"),
        ("twice.csv", b"rank,rank,seed,gap\n4,64,0,1\n", "occurs twice"),
        ("damaged.parquet", b"PAR1" + b"\x00" * 64, "damaged parquet"),
        ("columns.csv", b"a,b\n1,2\n", "no claim can be judged"),
        ("quote.csv", b'rank,samples,seed,gap\n4,64,0,"1\n', ""),
    ],
)
def test_bad_files(theory, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    line = theory("check", path).error
    assert said in line
    assert name in line


def test_missing_files_and_folders(theory, tmp_path):
    assert "cannot be read" in theory("check", tmp_path / "none.csv").error
    assert "measurements.csv" in theory("check", tmp_path).error


def test_missing_columns_are_named(theory, tmp_path, good):
    path = tmp_path / "t.csv"
    good.drop(columns="gap").to_csv(path, index=False)
    assert "generalization lacks gap" in theory("check", path).error


def test_duplicate_cells_with_different_values_are_an_error(theory, tmp_path, good):
    path = tmp_path / "t.csv"
    again = good.iloc[[10]].assign(gap=9.0)
    pd.concat([good, again]).to_csv(path, index=False)
    line = theory("check", path).error
    assert f"rows 11 and {len(good) + 1}" in line
    assert "two values" in line


def test_a_row_written_twice_counts_once(good):
    once, twice = check_table(good), check_table(pd.concat([good, good.iloc[:20]]))
    assert once.to_dict()["claims"] == twice.to_dict()["claims"]


def test_arms_told_apart_by_site_are_allowed_and_others_can_be_chosen(good):
    both = pd.concat([good.assign(site="q"), good.assign(site="v", gap=good["gap"] * 3)])
    assert check_table(both).claims["generalization"].verdict == CONSISTENT
    arms = pd.concat([good.assign(arm="a"), good.assign(arm="b", gap=good["gap"] * 3)])
    with pytest.raises(InputError, match="--where arm=a"):
        check_table(arms)


def test_where_selects(theory, tmp_path, good):
    path = tmp_path / "t.csv"
    pd.concat([good.assign(arm="a"), good.assign(arm="b", gap=1.0)]).to_csv(path, index=False)
    assert theory("check", path, "--where", "arm=a").code == 0
    assert "no row is left" in theory("check", path, "--where", "arm=c").error
    assert "COLUMN OP VALUE" in theory("check", path, "--where", "arm").error
    assert "holds numbers" in theory("check", path, "--where", "rank=x").error


def test_rows_of_other_claims_are_not_used(good):
    """Rows marked for another claim are left out; unmarked rows serve all."""
    other = good.assign(gap=good["gap"] ** 2, claim="optimal_rank", seed=good["seed"] + 100)
    marked = pd.concat([good.assign(claim="generalization"), other])
    expected = check_table(good).claims["generalization"].exponents["samples"].estimate
    assert check_table(marked).claims["generalization"].exponents["samples"].estimate == expected
    unmarked = pd.concat([good.assign(claim=None), other])
    assert check_table(unmarked).claims["generalization"].exponents["samples"].estimate == expected


def test_diverged_runs_are_reported_not_hidden(good):
    frame = good.copy()
    frame.loc[frame.index[:4], "gap"] = np.nan
    report = check_table(frame).claims["generalization"]
    assert any("4 of 175 rows have no gap" in r for r in report.reasons)


def test_csv_parquet_and_byte_order_mark_agree(tmp_path, good):
    good.to_csv(tmp_path / "a.csv", index=False)
    good.to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    (tmp_path / "d.csv").write_bytes((tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n"))
    frames = [read_table(p).frame for p in sorted(tmp_path.iterdir())]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], frame, check_dtype=False)


def test_a_study_folder_is_read(theory, tmp_path, good):
    good.to_csv(tmp_path / "measurements.csv", index=False)
    assert theory("check", tmp_path).code == 0


def test_order_of_rows_and_scale_of_seeds_do_not_matter(good):
    shuffled = good.sample(frac=1.0, random_state=0).assign(seed=lambda f: f["seed"] * 7 + 3)
    a, b = (check_table(f).claims["generalization"].exponents["samples"] for f in (good, shuffled))
    assert a.estimate == pytest.approx(b.estimate, rel=1e-9)
    assert a.ci95.low == pytest.approx(b.ci95.low, rel=1e-6)


def test_cells_are_means_over_seeds():
    frame = pd.DataFrame({"x": [1.0, 1, 2, 2], "seed": [0.0, 1, 0, 1], "y": [1.0, 3, 5, 9]})
    cells = build_cells(frame, ["x"], "y")
    np.testing.assert_allclose(cells.mean, [2, 7])
    np.testing.assert_allclose(cells.sd, [np.sqrt(2), np.sqrt(8)])
    np.testing.assert_allclose(cells.bootstrap_means(np.array([[2.0, 0.0]])), [[1, 5]])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_give_a_line_never_a_traceback(tmp_path, data):
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"any\.csv"):
        check_file(path)


# Without shrinking: a slow example is a failure already.
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([2, 4, 8, 16, 32]),
            st.sampled_from([10, 100, 1000]),
            st.integers(0, 4),
            st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 9)),
        ),
        min_size=1,
        max_size=40,
        unique_by=lambda r: r[:3],
    )
)
@example([(16, 10, 0, 0.0), (2, 100, 0, 0.0), (2, 10, 0, 5e5), (32, 10, 0, 8e5), (2, 1000, 2, 0.0), (2, 100, 1, -6e5)])
@example([(16, 10, 0, -399329.3), (16, 100, 3, 339225.7), (4, 100, 3, -1.9e-90), (32, 100, 1, -453765.1)])
@example(
    [
        (4, 100, 3, -154969.17),
        (16, 10, 2, -906009.2),
        (4, 100, 1, 23173.5),
        (32, 10, 1, 787072.2),
        (8, 100, 0, 4.0),
        (2, 100, 0, -0.0),
        (16, 1000, 0, -46137.8),
        (32, 100, 2, -0.0),
        (8, 1000, 1, 0.5),
    ]
)
def test_any_numbers_give_a_verdict(rows):
    report = check_table(pd.DataFrame(rows, columns=["rank", "samples", "seed", "gap"]))
    assert report.claims["generalization"].verdict
    assert report.exit_code in (0, 1)
