"""Text of any layout and size: what is read, how it is cut, what is refused, and what is kept."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, trainers

import lrc_jax as lrc
from lrc_jax.__main__ import main
from lrc_jax.data import corpus as corpora
from lrc_jax.data import pace, text, tokens
from lrc_jax.data.corpus import Corpus, cut, equal_pieces
from lrc_jax.data.layouts import chunks, find
from lrc_jax.data.text import PURPOSES, TextSource, read_splits, train_tokenizer
from lrc_jax.data.windows import Windows
from lrc_jax.errors import InputError
from lrc_jax.seeds import rng_for
from lrc_jax.teachers.tokenizer import Tokenizer
from lrc_jax.training.text_pools import read_pools

WIKI = "".join(
    f" = Title {i} = \n\n word{i} " + "the cat sat on mat . " * (20 + i) + "\n = = Section = = \n more\n"
    for i in range(60)
)
PROSE = "\n\n".join(f"Story {i}. " + "the cat sat on the mat and slept . " * (5 + i % 7) for i in range(80))
SEPARATED = PROSE.replace("\n\n", " <|endoftext|>\n")
UNEVEN = "\n\n".join(f"{i} " + ("éüß" * 30 if i % 3 else "the cat sat on the mat . " * 9) for i in range(90))
ONE_LINE = " ".join(f"word{i * i % 97}" for i in range(4000))


# --- documents --------------------------------------------------------------------------------------------------------


def whole_documents(text: str) -> list[str]:
    """What documents are, on a text in memory: the rule that the stream must agree with."""
    if "<|endoftext|>" in text:
        parts = text.split("<|endoftext|>")
    elif len(starts := [m.start() for m in corpora.ARTICLE.finditer(text)]) > 1:
        parts = [text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]
    else:
        parts = re.split(r"\n\s*\n", text)
    return [part.strip() for part in parts if part.strip()]


def whole_pieces(text: str) -> list[str]:
    bounds = [0]
    for i in range(1, 20):
        at = text.find("\n", len(text) * i // 20)
        bounds.append(len(text) if at < 0 else at + 1)
    bounds.append(len(text))
    return [text[a:b].strip() for a, b in itertools.pairwise(bounds) if text[a:b].strip()]


def in_pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


WORDS = ["a", "bc ", "é", "\n", "\n\n", " ", "\t", "\u3000", "<|endoftext|>", "<|endo", "of"]
HEADS = [" = T = ", "\n = U = \n", "\n = = S = = \n", " =", "= "]


@given(st.lists(st.sampled_from(WORDS + HEADS), max_size=40).map("".join), st.integers(1, 9))
def test_a_stream_is_cut_as_the_whole(tmp_path_factory: pytest.TempPathFactory, content: str, size: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert list(Corpus(folder).write(cut(lambda: in_pieces(content, size)))) == whole_documents(content)
    pieces = Corpus(folder).write(equal_pieces(in_pieces(content, size), len(content), corpora.CUTS[0]))
    assert list(pieces) == whole_pieces(content)


@pytest.mark.parametrize("content", [WIKI, WIKI[1:], PROSE, SEPARATED, "\n" + WIKI, "a<|endoftext|>b\n<|endoftext|>\n"])
def test_the_three_rules(content: str, tmp_path: Path) -> None:
    for size in (7, 1000, 10**6):
        assert list(Corpus(tmp_path).write(cut(lambda n=size: in_pieces(content, n)))) == whole_documents(content)  # type: ignore[misc]
    assert len(whole_documents(WIKI)) == 60


def test_a_file_is_read_as_python_reads_text(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content := "a\r\nb\rc é\n\r\n".encode() * 9)
    for size in (1, 2, 3, 1000):
        assert "".join(chunks(tmp_path / "t", size=size)) == (tmp_path / "t").read_text(encoding="utf-8"), content
    for wrong in (b"ab\ncd\xff", b"ab\ncd\xc3"):
        (tmp_path / "t").write_bytes(wrong)
        for size in (1, 2, 3, 1000):
            with pytest.raises(InputError, match=r"line 2, byte 5"):
                list(chunks(tmp_path / "t", size=size))


# --- splits and pools -------------------------------------------------------------------------------------------------


def whole_splits(content: str) -> dict[str, list[str]]:
    documents = whole_documents(content)
    if len(documents) < 20:
        documents = whole_pieces(content)
    order = rng_for(0, "split", len(documents)).permutation(len(documents))
    held = max(1, round(0.05 * len(documents)))
    picked = [documents[i] for i in order]
    return {"train": picked[2 * held :], "valid": picked[:held], "test": picked[held : 2 * held]}


@pytest.mark.parametrize(
    ("content", "splits", "tokenizer", "pools"),
    [
        (WIKI, "1970e0a57ec99930", "71cf4a9069fe8a02", "c7ae9f56ea3dfdb5 ac0c57c5ddd03f15"),
        (SEPARATED, "b3e12b4cab8c8c64", "46017ac02d79e7eb", "2c91a7a2defc6782 4ac014eb1e821aec"),
        ("\n".join(PROSE.split("\n\n")), "84fc45eee751c8ce", "aec08ca3111dda6a", "870dea8f650a7fd5 727f221beefa5140"),
        (UNEVEN, "9194ff6225274961", "04b6be2918010bdd", "e72d335561cae526 98fc066e9c106f43"),
    ],
)
def test_texts_of_kept_studies_keep_their_pools(
    content: str, splits: str, tokenizer: str, pools: str, tmp_path: Path
) -> None:
    """Digests as they were when a text was read whole into memory."""
    (tmp_path / "t.txt").write_text(content)
    found = read_splits(tmp_path / "t.txt", cache=tmp_path)
    for name, documents in whole_splits(content).items():
        assert list(getattr(found, name)) == documents
    chosen = train_tokenizer(found, 300, tmp_path)
    assert (found.digest[:16], chosen.digest[:16]) == (splits, tokenizer)
    source = TextSource(found, chosen, 16)
    arrays = [source.sequences(p, source.available(p) or 0, 1) for p in PURPOSES]
    numbers = [source.documents(p, source.available(p) or 0, 1) for p in PURPOSES]
    assert (source.digest, _digest(arrays, numbers)) == (f"text-{pools.split()[0]}", pools.split()[1])


def _digest(arrays: list[np.ndarray], numbers: list[np.ndarray]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for array in [*arrays, *numbers]:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()[:16]


def test_pools_are_disjoint_by_document(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(WIKI)
    splits = read_splits(tmp_path / "t.txt", cache=tmp_path / "cache")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 60
    tokenizer = train_tokenizer(splits, 300, tmp_path / "cache")
    assert tokenizer.decode(tokenizer.encode("the cat sat on mat .")) == "the cat sat on mat ."
    source = TextSource(splits, tokenizer, 16)
    owners = {}
    for purpose in PURPOSES:
        n = source.available(purpose) or 0
        owners[purpose] = set(source.documents(purpose, n))
        assert source.sequences(purpose, n).shape == (n, 17)
    assert sum(map(len, owners.values())) == len(set().union(*owners.values()))
    n = source.available("student") or 0
    with pytest.raises(InputError, match=rf"samples: {n + 1} asked, the student pool has {n}"):
        source.sequences("student", n + 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one line", ONE_LINE),
        ("two lines", ONE_LINE + "\n" + ONE_LINE),
        ("no space", ONE_LINE.replace(" ", "")),
        ("one record", json.dumps({"text": ONE_LINE}) + "\n"),
    ],
)
def test_text_on_one_line_is_enough(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(content)
    splits = read_splits(tmp_path / "t.txt", cache=tmp_path)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (18, 1, 1), name
    source = TextSource(splits, train_tokenizer(splits, 300, tmp_path), 16)
    assert all(source.available(purpose) for purpose in PURPOSES)
    joined = sorted(re.sub(r"\s", "", d) for part in (splits.train, splits.valid, splits.test) for d in part)
    assert sum(map(len, joined)) == len(
        re.sub(r"\s", "", json.loads(content)["text"] if name == "one record" else content)
    )


def test_one_document_for_several_pools_is_divided_by_tokens(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {ONE_LINE}")
    splits = read_splits(tmp_path, cache=tmp_path / "c")
    source = TextSource(splits, train_tokenizer(splits, 300, tmp_path / "c"), 16)
    have = {purpose: source.available(purpose) or 0 for purpose in PURPOSES}
    assert have["teacher"] == pytest.approx(0.5 * sum(list(have.values())[:3]), rel=0.1)
    assert have["probe"] == pytest.approx(have["test"], rel=0.1)
    owners = [set(source.documents(p, n)) for p, n in have.items()]
    assert sum(map(len, owners)) == len(set().union(*owners))
    whole = TextSource(splits, source.tokenizer, 16, teacher_share=0.0, reference_share=0.0)
    assert whole.available("student") == len(source.tokenizer.encode(splits.train[0])) // 17  # nothing is divided


# --- tokens -----------------------------------------------------------------------------------------------------------


def prepending(words: str) -> Tokenizer:
    """As those of Llama: one merge of everything, with a space before every text."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], show_progress=False)
    backend.train_from_iterator(words.split(), trainer)
    return Tokenizer(backend, bos_id=1)


@pytest.mark.parametrize("kind", ["byte level", "prepending"])
def test_a_long_document_has_the_tokens_of_the_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "LONG", 2000)
    monkeypatch.setattr(tokens, "PIECE", 2000)
    (tmp_path / "t.txt").write_text(PROSE.replace("\n\n", "  ") + "\n\nthe end\n\n" + ONE_LINE + "\nlast é line")
    corpus = Corpus(tmp_path).write(cut(lambda: chunks(tmp_path / "t.txt")))
    assert len(corpus) == 3 and max(map(len, corpus)) > 8 * 2000
    splits = read_splits(tmp_path / "t.txt", cache=tmp_path)
    tokenizer = train_tokenizer(splits, 300, tmp_path) if kind == "byte level" else prepending(PROSE + ONE_LINE)
    found = tokens.tokens_of(lambda: corpus, kind, tokenizer, tmp_path)
    for i, document in enumerate(corpus):
        np.testing.assert_array_equal(found.ids[found.ends[i] : found.ends[i + 1]], tokenizer.encode(document))


def test_windows_are_those_of_joined_documents() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60_000, 500).astype(np.uint16)
    lengths = np.array([3, 0, 40, 1, 1, 90, 0, 17, 60])
    starts = rng.permutation(np.arange(0, 450, 50))
    joined = np.concatenate([ids[a : a + n] for a, n in zip(starts, lengths, strict=True)])
    whole = joined[: len(joined) // 9 * 9].reshape(-1, 9).astype(np.int32)
    order = rng.permutation(len(whole))
    windows = Windows(ids, starts, lengths, 9, order, slice(0, 9, 1))
    np.testing.assert_array_equal(windows, whole[order])
    rows = rng.integers(0, len(order), (2, 3))
    np.testing.assert_array_equal(windows[:, 1:][rows], whole[order][:, 1:][rows])
    np.testing.assert_array_equal(windows[:, :-1][:5], whole[order][:5, :-1])
    assert windows[:, 1:].shape == (len(order), 8) and windows[rows].dtype == np.int32


def test_tokens_beyond_two_bytes(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    corpus = Corpus(tmp_path).write(["b", None, "a"])
    assert tokens.tokens_of(lambda: corpus, "x", Tokenizer(backend), tmp_path).ids.tolist() == [70_000, 0]


# --- layouts ----------------------------------------------------------------------------------------------------------

DOCUMENTS = [f"Document {i}: the cat sat\n\non the mat {i * i}." for i in range(40)]


def as_text(documents: list[str]) -> bytes:
    return "<|endoftext|>".join(documents).encode()


def as_jsonl(documents: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: d}) + "\n" for i, d in enumerate(documents)).encode()


def as_parquet(documents: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {"txt": as_text, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_layout_gives_the_same_documents(suffix: str, zipped: bool, tmp_path: Path) -> None:
    def write(path: str, documents: list[str]) -> None:
        content = WRITERS[suffix](documents)
        target = tmp_path / (path + (".gz" if zipped else ""))
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(gzip.compress(content) if zipped else content)

    def splits(path: str) -> text.TextSplits:
        return read_splits(tmp_path / path, cache=tmp_path / "cache")

    name = ".gz" if zipped else ""
    (tmp_path / "expected.txt").write_bytes(as_text(DOCUMENTS))
    expected = splits("expected.txt")
    write(f"one.{suffix}", DOCUMENTS)
    write("unnamed", DOCUMENTS)  # what it is follows from its content
    write(f"shards/part-0.{suffix}", DOCUMENTS[:11])
    write(f"shards/part-1.{suffix}", DOCUMENTS[11:])
    write(f"hub/train-00000-of-00002.{suffix}", DOCUMENTS[:30])
    write(f"hub/train-00001-of-00002.{suffix}", DOCUMENTS[30:])
    for path in (f"one.{suffix}{name}", f"unnamed{name}", "shards", "hub"):
        assert splits(path).digest == expected.digest, path
        assert list(splits(path).test) == list(expected.test)

    for where in ("plain/{}", "hubs/{}-00000-of-00001", "folders/{}/part"):
        for split, some in (("train", DOCUMENTS[:30]), ("validation", DOCUMENTS[30:34]), ("test", DOCUMENTS[34:])):
            write(f"{where.format(split)}.{suffix}", some)
        found = splits(where.split("/")[0])
        assert [list(found.train), list(found.valid), list(found.test)] == [
            DOCUMENTS[:30],
            DOCUMENTS[30:34],
            DOCUMENTS[34:],
        ]


def test_a_named_field_and_json_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf\n" + as_jsonl(DOCUMENTS, "story"))
    found = read_splits(tmp_path / "t.txt", "story", tmp_path / "c")
    assert sorted([*found.train, *found.valid, *found.test]) == sorted(DOCUMENTS)
    assert not any("{" in document for document in found.train)


REFUSED: dict[str, tuple[dict[str, bytes], str | None, str]] = {
    "empty": ({"t": b" \n"}, None, r"t: the file is empty"),
    "no UTF-8": ({"t": b"ab\ncd\xff"}, None, r"t: not UTF-8 text \(line 2, byte 5\)"),
    "short": ({"t": b"ab"}, None, r"too short to split .* \(2 characters\)"),
    "no JSON": ({"t.jsonl": b'{"text": "a"}\n\n{"text": \n'}, None, r"t\.jsonl, line 3: no JSON object"),
    "no object": ({"t.jsonl": b'{"text": "a"}\n[1]\n'}, None, r"t\.jsonl, line 2: no JSON object"),
    "no field": ({"t.jsonl": b'{"text": "a"}\n{"body": "a"}\n'}, None, r"line 2: no field 'text'; it has 'body'; name"),
    "null": ({"t.jsonl": b'{"text": null}\n'}, None, r"line 1: field 'text' is null, not text"),
    "number": ({"t.jsonl": b'{"body": 3}\n'}, "body", r"line 1: field 'body' is a int, not text"),
    "surrogate": ({"t.jsonl": b'{"text": "\\ud800"}\n'}, None, r"line 1: field 'text' has half a surrogate pair"),
    "JSON array": ({"t.json": b'[{"text": "a"}]'}, None, r"t\.json: one JSON document; give JSON lines"),
    "JSON object": ({"t.json": b'{\n "text": "a"\n}'}, None, r"t\.json: one JSON document"),
    "zstd": ({"t.jsonl.zst": b"\x28\xb5\x2f\xfdx"}, None, "zst: compressed by zstd"),
    "gzip": ({"t.gz": gzip.compress(b"abc" * 99)[:-9]}, None, "t.gz: a damaged gzip file"),
    "parquet": ({"t.parquet": b"PAR1xx"}, None, "t.parquet: not a readable parquet file"),
    "parquet field": (
        {"t.parquet": as_parquet(DOCUMENTS)},
        "body",
        r"t\.parquet: no field 'body'; it has 'id', 'text'",
    ),
    "parquet type": ({"t.parquet": as_parquet(DOCUMENTS)}, "id", r"t\.parquet: field 'id' is int64, not text"),
    "field of text": ({"t": b"abc"}, "body", r"--text-field: 'body', but .*t is plain text"),
    "nothing": ({"t/x.bin": b""}, None, r"t: train\.txt and test\.txt missing; .* it holds x\.bin"),
    "no test": ({"t/train.txt": b"a", "t/valid.txt": b"b"}, None, r"t: test\.txt missing"),
    "two kinds": ({"t/a.txt": b"a", "t/b.jsonl": b"b"}, None, r"t: a\.txt and b\.jsonl are of different kinds"),
    "empty shard": ({"t/train.txt": b"a", "t/test.txt": b"\n"}, None, r"test\.txt: the file is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_that_says_where(case: str, tmp_path: Path) -> None:
    files, field, message = REFUSED[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_splits(tmp_path / next(iter(files)).split("/")[0], field, tmp_path / "c")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        find(tmp_path / "none")


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_tokens_are_made_once_and_again_when_damaged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pace, "FIRST", 0.0)
    monkeypatch.setattr(pace, "EVERY", 0.0)
    cache = tmp_path / "cache"
    (tmp_path / "t.txt").write_text(PROSE)

    def source(length: int = 16) -> TextSource:
        text._read_splits.cache_clear()
        splits = read_splits(tmp_path / "t.txt", cache=cache)
        return TextSource(splits, train_tokenizer(splits, 300, cache), length)

    first = source().sequences("student", 5)
    said = capsys.readouterr().err
    assert re.search(r"t\.txt: reading: \d+%, [\d.]+ MB/s, \d+ s left", said) and "tokenising: 100%" in said
    encoded: list[int] = []
    batch = Tokenizer.encode_batch

    def watched(*args: Any, **options: Any) -> list[np.ndarray]:
        encoded.append(1)
        return batch(*args, **options)

    monkeypatch.setattr(Tokenizer, "encode_batch", watched)
    np.testing.assert_array_equal(source().sequences("student", 5), first)
    source(length=9).sequences("test", 1)
    assert not encoded  # neither another start nor another length tokenises again
    said = capsys.readouterr().err
    assert "tokenising" not in said and "reading" not in said

    (file,) = cache.glob(f"tokens/*/{tokens.TOKENS}")
    for damage in (lambda b: b[:-7], lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:]):
        file.write_bytes(damage(file.read_bytes()))
        np.testing.assert_array_equal(source().sequences("student", 5), first)
        assert len(caplog.records) == 1 and "damaged" in caplog.text and "made again" in caplog.text
        caplog.clear()
    assert encoded

    before = source().digest
    (tmp_path / "t.txt").write_text(PROSE.replace("cat", "dog"))
    assert source().digest != before


def test_a_changed_file_is_seen_in_one_process(tmp_path: Path) -> None:
    digests = []
    for content in (PROSE, WIKI):
        (tmp_path / "t.txt").write_text(content)
        digests.append(read_splits(tmp_path / "t.txt", cache=tmp_path).digest)
    assert len(set(digests)) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text(PROSE)

    def meddled(*args: Any) -> Iterator[Any]:
        (tmp_path / "t.txt").write_text(WIKI)
        return cut(*args)

    monkeypatch.setattr(text, "cut", meddled)
    with pytest.raises(InputError, match="was changed while it was read"):
        read_splits(tmp_path / "t.txt", cache=tmp_path / "c")
    assert not list((tmp_path / "c").glob("texts/*.json"))


def test_training_reads_the_memory_map(teacher_folder: Path, text_file: Path) -> None:
    pools = read_pools(str(text_file), lrc.load_teacher(teacher_folder), 8)
    assert isinstance(pools.train.tokens_NT, Windows) and isinstance(pools.train.labels_NT, Windows)
    ids: Any = pools.train.tokens_NT._joined[0]
    assert isinstance(ids, np.memmap) and ids.dtype == np.uint16


def test_the_command_reads_a_field(
    teacher_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = text_file.read_text().split("\n\n")
    (tmp_path / "t.jsonl").write_bytes(as_jsonl(documents, "body"))
    command = ["distill", "--teacher", str(teacher_folder), "--text", str(tmp_path / "t.jsonl"), "--rank", "4"]
    command += ["--steps", "1", "--sequence-length", "8", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "t.jsonl, line 1: no field 'text'; it has 'id', 'body'" in error and error.count("\n") == 1
    assert main([*command, "--text-field", "body"]) == 0
    settings = {"steps": 1, "sequence_length": 8, "progress": False}
    same = lrc.train(lrc.LowRankClone.of(lrc.load_teacher(teacher_folder), 4), text_file, **settings)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "out" / "lrc.json").read_text())["loss_after"] == same.loss


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_text(teacher_folder: Path, tmp_path: Path) -> None:
    """200 MB of text may cost 300 MB: of the rest of the process, most is JAX."""
    rng = np.random.default_rng(0)
    block = "\n\n".join(" ".join(f"w{i}" for i in rng.integers(0, 20, 300)) for _ in range(1000)) + "\n\n"
    peaks = []
    for copies in (1, round(200e6 / len(block))):
        with (tmp_path / "t.txt").open("w") as file:
            for i in range(copies):
                file.write(f"w{i % 20} {block}")
        out = tmp_path / f"out{copies}"
        command = [sys.executable, "-m", "lrc_jax", "distill", "--teacher", str(teacher_folder), "--rank", "4"]
        command += ["--text", str(tmp_path / "t.txt"), "--steps", "5", "--sequence-length", "16", "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        peaks.append(json.loads((out / "lrc.json").read_text())["peak_rss_mb"])
    assert peaks[1] - peaks[0] < 300, peaks


def test_the_name_of_a_field_is_no_part_of_a_run() -> None:
    """A run is identified by the text's digest: how it was kept says nothing."""
    from experiments.run_one.config import RunConfig, TextData, TinyTeacher, identity

    texts = TextData(path="a"), TextData(path="b", field="body")
    runs = [RunConfig(data=data, teacher=TinyTeacher()) for data in texts]
    assert identity(runs[0]) == identity(runs[1])
    assert "field" not in identity(runs[0])["data"]
