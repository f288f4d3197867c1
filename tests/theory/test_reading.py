"""One table in every dialect and packing gives one answer; what is no table says what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import theory as judge
from theory import formats
from theory.names import Names, parse_columns, plain
from theory.planted.surfaces import Design, gap_table
from theory.report import to_json
from theory.tables import InputError, load_table, read_table

COLUMNS = ["rank", "samples", "seed", "gap"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    table = gap_table(1.0, 0.5, Design(ranks=(4, 8, 16), samples=(64, 256), noise=0.1), np.random.default_rng(7))
    return table[COLUMNS].astype({"rank": float, "samples": float, "seed": float}).round({"gap": 9})


@pytest.fixture(scope="module")
def text(frame) -> str:
    return frame.to_csv(index=False)


def records(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def judged(given: pd.DataFrame, **options) -> str:
    """What the claim's report says, as text: NaN equals NaN there."""
    return to_json(judge.check(given, **options)["generalization"].to_dict())


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    parquet.write_table(table, out)
    return out.getvalue()


DIALECTS = {
    "comma": lambda f, t: t.encode(),
    "tab": lambda f, t: t.replace(",", "\t").encode(),
    "semicolon": lambda f, t: t.replace(",", ";").encode(),
    "semicolon, decimal comma": lambda f, t: t.replace(",", ";").replace(".", ",").encode(),
    "tab, decimal comma": lambda f, t: t.replace(",", "\t").replace(".", ",").encode(),
    "bar": lambda f, t: t.replace(",", "|").encode(),
    "blanks": lambda f, t: f.to_string(index=False, float_format="%.12g").encode(),
    "sep= line": lambda f, t: b"sep=;\n" + t.replace(",", ";").encode(),
    "quoted": lambda f, t: f.to_csv(index=False, quoting=1).encode(),
    "blanks around": lambda f, t: t.replace(",", " , ").encode(),
    "carriage returns": lambda f, t: t.replace("\n", "\r").encode(),
    "byte-order mark": lambda f, t: t.encode("utf-8-sig"),
    "utf-16": lambda f, t: t.encode("utf-16"),
    "utf-16 without a mark": lambda f, t: t.encode("utf-16-be"),
    "windows-1252": lambda f, t: t.replace("\n", ",é\n").replace("gap,é", "gap,Größe").encode("cp1252"),
    "rows of separators": lambda f, t: t.encode() + b",,,\n\n,,,\n",
    "trailing separators": lambda f, t: t.replace("\n", ",\n").encode(),
    "gzip": lambda f, t: gzip.compress(t.encode()),
    "bzip2": lambda f, t: bz2.compress(t.encode()),
    "xz": lambda f, t: lzma.compress(t.encode()),
    "zstandard": lambda f, t: pa.Codec("zstd").compress(t.encode(), asbytes=True),
    "zip": lambda f, t: zipped(**{"a/t.csv": t.encode(), "__MACOSX/._t.csv": b"x"}),
    "gzip of lines": lambda f, t: gzip.compress(f.to_json(orient="records", lines=True, double_precision=15).encode()),
    "list of objects": lambda f, t: json.dumps(records(f)).encode(),
    "object of lists": lambda f, t: json.dumps(f.to_dict("list")).encode(),
    "pandas' own JSON": lambda f, t: f.to_json(double_precision=15).encode(),
    "objects under a key": lambda f, t: json.dumps({"project": "x", "runs": records(f)}, indent=1).encode(),
    "parquet, named index": lambda f, t: as_parquet(pa.Table.from_pandas(f.set_index(["rank", "samples"]))),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_and_packing_is_one_table(tmp_path, frame, text, dialect):
    path = tmp_path / "table"  # the name says nothing
    path.write_bytes(DIALECTS[dialect](frame, text))
    found = read_table(path).frame
    assert list(found.index) == list(range(1, len(frame) + 1))
    pd.testing.assert_frame_equal(found[COLUMNS].reset_index(drop=True), frame, check_dtype=False)


def test_a_trackers_export_is_flattened_and_understood(tmp_path, frame):
    lines = [{"_step": 9, "config": {"rank": r["rank"], "samples": r["samples"], "seed": r["seed"]},
              "summary": {"gap": r["gap"]}} for r in records(frame)]  # fmt: skip
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    table = load_table(path).known()
    pd.testing.assert_frame_equal(table.frame[COLUMNS].reset_index(drop=True), frame, check_dtype=False)
    assert table.frame["steps"].eq(9).all()
    assert "'config.rank' as rank" in table.remarks[0] and "'_step' as steps" in table.remarks[0]
    nested = pa.table({"config": [line["config"] for line in lines], "gap": frame["gap"]})
    (tmp_path / "runs.parquet").write_bytes(as_parquet(nested))
    again = load_table(tmp_path / "runs.parquet").known().frame
    pd.testing.assert_frame_equal(again[COLUMNS].reset_index(drop=True), frame, check_dtype=False)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


NO_TABLES = {
    b"GGUF" + bytes(60): "a GGUF model, not a table",
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"<!DOCTYPE html>\n<html>404</html>": "an HTML page",
    b"<?xml version='1.0'?><a/>": "an XML or SVG document",
    b"%PDF-1.4": "a PDF document",
    pickle.dumps([1]): "a Python pickle",
    tar(): "a tar archive",
    (7).to_bytes(8, "little") + b'{"a":1}': "a safetensors model",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
    zipped(**{"xl/workbook.xml": b""}): "an Excel workbook",
    zipped(a=b"x,y\n1,2\n", b=b""): "a zip archive of 2 files",
    gzip.compress(bytes(10**4))[:-9]: "a damaged or cut gzip file",
    b"PK\x03\x04 no": "a damaged or cut zip file",
    bytes(range(256)): "binary data of an unknown kind",
    b"": "the file is empty",
    b" \n\t\n": "the file is empty",
    b"rank,samples,seed,gap\n": "there is a header but no row",
    b"once upon a time there was a table that nobody had set " * 3000: "prose, not a table",
    b"Once upon a time, in a far and very distant land indeed, it rained.\nNobody minded.\n": "prose, not a table",
    b"the dog\nthe cat\n": "text without columns",
    b"rank: 4\nsamples: 64\n": "text without columns",
    b"a" * 200_000 + b"\nb\n": "prose, not a table",
    b"1,2,3\n4,5,6\n": "no header: the first line holds numbers",
    b"rank,samples\n1,2\n\n3\n": "row 2 (line 4) has 1 fields and the header 2",
    b"rank;samples\n1;2\n3;4;5\n": "row 2 (line 3) has 3 fields and the header 2",
    b"rank,rank ,gap\n1,2,3\n": "column 'rank' occurs twice",
    b'rank,gap\n1,"2\n': "a quote is left open",
    b'{"rank": 1, "rank": 2}': "key 'rank' occurs twice",
    b'{"rank": 1}\n{"rank": 2\n': "line 2 is not JSON",
    b'[{"rank": 1}, {"ra': "line 1: damaged or cut JSON",
    b"[1, 2]": "row 1 is 1, not an object",
    b"[]": "the JSON holds no record",
    b'{"a":' * 100_000: "JSON nested too deeply",
    b"PAR1" + bytes(64): "a damaged parquet file",
    b"rank,samples,seed,gap\n4,\x81,0,1\n": "line 2 is neither UTF-8 nor Windows-1252",
}


@pytest.mark.parametrize("data", NO_TABLES, ids=list(NO_TABLES.values()))
def test_what_is_no_table_says_what_it_is(theory, tmp_path, data):
    path = tmp_path / "given.csv"
    path.write_bytes(data)
    line = theory("check", path).error
    assert line.startswith(f"{path}: ") and NO_TABLES[data] in line
    assert len(line) < 300 + len(str(path))


def test_a_file_that_grows_beyond_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_UNPACKED", 1000)
    for data in (gzip.compress(b"a,b\n" * 1000), zipped(a=b"a,b\n" * 1000)):
        (tmp_path / "big").write_bytes(data)
        with pytest.raises(InputError, match="GiB when unpacked"):
            read_table(tmp_path / "big")


def test_a_comma_that_can_mean_two_numbers_is_not_guessed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("rank;gap\n1,000;1\n2,000;2\n")
    with pytest.raises(InputError, match="column rank, row 1: '1,000' is not a number; a comma can mean"):
        load_table(path).known()
    path.write_text("rank;gap\n1,000;0,5\n2,000;1,25\n")  # decided by the other column
    assert load_table(path).known().frame["rank"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("rank=8", [3, 4]),
        ("rank == 8", [3, 4]),
        ("rank != 8", [1, 2, 5]),
        ("rank < 8", [1, 2]),
        ("rank<=8.0", [1, 2, 3, 4]),
        ("rank > 4", [3, 4]),
        ("rank >= 4", [1, 2, 3, 4]),
        ("rank empty", [5]),
        ("rank is empty", [5]),
        ("rank not empty", [1, 2, 3, 4]),
        ("arm empty", [2, 4]),
        ("arm = b c", [3]),
        ("arm = 'b c'", [3]),
        ("arm != a", [2, 3, 4, 5]),
        ("`Model Size (M)` > 1e1", [2, 3, 4, 5]),
        ('"Model Size (M)"=10', [1]),
        ("Model Size (M) = 10", [1]),
        ("model size (m) = 10", [1]),
        ("`a<b` = 1", [1, 2]),
        ("day = 2024-01-01", [1]),
        ("mixed > 1", [2]),
        ("mixed = x", [3]),
    ],
)  # fmt: skip
def test_where_selects(tmp_path, condition, kept):
    path = tmp_path / "t.csv"
    path.write_text(
        "rank,arm,Model Size (M),a<b,day,mixed\n4,a,10,1,2024-01-01,1\n4,,20,1,2024-01-02,2\n"
        "8,b c,30,0,2024-01-02,x\n8, ,40,0,2024-01-02,\n,d,50,0,2024-01-02,1\n"
    )
    assert load_table(path, where=[condition]).frame.index.tolist() == kept


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("rank", 'write "COLUMN OP VALUE"'),
        ("rank empty!", 'write "COLUMN OP VALUE"'),
        ("rank =", 'for empty cells write "rank empty"'),
        ("rank = nan", "'nan' is none"),
        ("rank < x", "'x' is none"),
        ("arm < 3", "column arm holds text"),
        ("rnk = 4", "no column 'rnk'; did you mean 'rank'?"),
        ("nothing = 4", "no column 'nothing'; the columns are 'rank', 'arm'"),
        ("rank = 5", "no row is left"),
    ],
)
def test_a_condition_that_cannot_be_used_says_why(theory, tmp_path, condition, said):
    path = tmp_path / "t.csv"
    path.write_text("rank,arm\n4,a\n8,b\n")
    line = theory("check", path, "--where", condition).error
    assert f"--where {condition!r}: " in line and said in line


def test_columns_are_renamed(theory, tmp_path, frame):
    path = tmp_path / "t.csv"
    own = {"rank": "inner, size", "samples": "N", "gap": "a=b"}
    frame.rename(columns=own).to_csv(path, index=False)
    given = "rank=`inner, size`,samples=N,gap='a=b'"
    assert parse_columns(given) == own
    found = json.loads(theory("check", path, "--columns", given, "--where", "rank >= 8", "--json", "-").out)
    assert found["input"]["rows"] == (frame["rank"] >= 8).sum()
    twice = theory("check", path, "--columns", "rank=`inner, size`", "--columns", "samples=N,gap='a=b'", "--json", "-")
    assert list(json.loads(twice.out)["claims"]) == ["generalization"]
    for wrong, said in (
        ("rank", "write NEW=OLD"),
        ("rank=", "write NEW=OLD"),
        ("rank=N,rank=seed", "rank is given twice"),
        ("rank=M", "no column 'M'"),
        ("seed=N", "there is a column seed already"),
        ("rank=N,samples=N", "N is to be both rank and samples"),
    ):
        assert said in theory("check", path, "--columns", wrong).error
    swapped = load_table(path, columns={"seed": "N", "N": "seed"}).frame
    assert swapped["seed"].tolist() == frame["samples"].tolist()


def test_standard_input_and_output(theory, monkeypatch, tmp_path, text):
    def feed() -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(gzip.compress(text.encode()))))

    feed()
    found = theory("check", "-", "--json", "-")
    assert json.loads(found.out)["input"]["path"] == "standard input" and found.err == ""
    feed()
    law = ("--law", "A*rank*samples**-c", "--target", "gap", "--bootstraps", "20")
    assert json.loads(theory("fit", "-", *law, "--json", "-").out)["rows"] == text.count("\n") - 1
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert theory("check", "-").error.startswith("standard input: the file is empty")


def test_text_seeds_are_labels(frame):
    by_number = judged(frame)
    # Labels sort as the numbers do, so that the same seeds are the same rows of the bootstrap.
    labelled = frame.assign(seed="run-" + frame["seed"].astype(int).astype(str))
    report = judge.check(labelled)
    assert judged(labelled) == by_number
    assert "seed holds text: its 5 labels are numbered from 0" in report.remarks
    assert labelled["seed"].iloc[0] == "run-0", "the caller's frame is left as it was"
    with pytest.raises(InputError, match="column seed, row 1: empty"):
        judge.check(labelled.assign(seed=labelled["seed"].where(labelled.index > 0)))


def test_frames_follow_the_same_rules(frame):
    expected = judged(frame)
    for given in (
        frame.set_index(["rank", "samples"]),
        frame.rename(columns={"rank": " Rank ", "gap": "Gap"}),
        frame.astype({"rank": "Int64", "seed": "category"}),
        frame.astype(object),
        frame.set_axis(pd.MultiIndex.from_tuples([("config", c) for c in COLUMNS]), axis=1),
    ):
        assert judged(given) == expected
    own = frame.rename(columns={"rank": "inner"})
    assert judged(own, columns={"rank": "inner"}, where="gap not empty") == expected
    with pytest.raises(InputError, match="column 'gap' occurs twice"):
        judge.check(pd.concat([frame, frame[["gap"]]], axis=1))
    fit = judge.fit(own, "A*rank*samples**-c", target="gap", columns={"rank": "inner"}, bootstraps=5)
    assert fit.estimates == judge.fit(frame, "A*rank*samples**-c", target="gap", bootstraps=5).estimates


def test_only_what_leaves_no_doubt_is_read_under_another_name(frame):
    def lacks(**names: str) -> str:
        with pytest.raises(InputError) as error:
            judge.check(frame.rename(columns=names))
        return str(error.value)

    assert "lacks samples (did you mean column 'N'? say --columns samples=N)" in lacks(samples="N")  # or parameters
    assert "lacks gap (did you mean column 'gpa'? say --columns gap=gpa)" in lacks(gap="gpa")
    assert "say --columns rank=`the rnk`" not in lacks(rank="the rnk")
    assert "say --columns rank=`rank x`" in lacks(rank="rank x")
    two = frame.assign(Rank=frame["rank"], RANK=1.0).drop(columns="rank")
    with pytest.raises(InputError, match=r"lacks rank \(did you mean column 'Rank' or 'RANK'\?"):
        judge.check(two)
    assert "columns read" not in str(judge.check(frame.assign(Rank=1.0)).remarks), "the exact name has the last word"
    with pytest.raises(InputError, match=r"advice lacks rank \(did you mean column 'rnk'"):
        judge.advise(frame.rename(columns={"rank": "rnk", "gap": "test_loss"}), samples=64)


def test_names_are_compared_without_case_blanks_and_trackers():
    assert {
        plain(n) for n in ("Test Loss", "test-loss", "config.test_loss", "summary/TestLoss", "_test_loss.value")
    } == {"testloss"}
    names = Names(["ranks", "rak", "rnak", "rang", "bang", "run", "grad_norm"])
    assert names.similar("rank") == ["ranks", "rak", "rnak", "rang"]
    assert names.similar("seed") == ["run"] and names.similar("grad_norm_sq") == []  # a norm is not its square


@pytest.mark.timeout(20)  # about one second alone
def test_fifty_thousand_columns_take_seconds(tmp_path, frame):
    """A header check by comparing every pair of names takes half a minute."""
    many = pd.DataFrame(np.ones((len(frame), 50_000)), columns=[f"metric_{k}" for k in range(50_000)])
    path = tmp_path / "wide.csv"
    pd.concat([frame, many], axis=1).head(4).to_csv(path, index=False)
    table = load_table(path, where=["rank >= 4"]).known()
    assert table.names.similar("rnk") == ["rank"]
