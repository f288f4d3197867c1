"""Cloze items of a text, log probabilities of continuations, the commands around them; lm-eval where it is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrc_jax.__main__ import main
from lrc_jax.compute.fast import forward
from lrc_jax.errors import InputError
from lrc_jax.inference.cloze import Item, accuracy, build_items, choices_made, read_items, write_task
from lrc_jax.inference.score import continuation_scores, encode_pair
from lrc_jax.teachers.load import load_teacher


def documents(count=12, sentences=9, words=12):
    rng = np.random.default_rng(0)
    return [
        " ".join(" ".join(f"d{k}x{rng.integers(99)}" for _ in range(words)) + "." for _ in range(sentences))
        for k in range(count)
    ]


# --- items -----------------------------------------------------------------------------------------------------------


def test_items_are_true_continuations_against_three_of_other_documents():
    texts = documents()
    items = build_items(texts, 60, words=5, context_words=24)
    assert len(set(items)) == 60
    for item in items:
        true = item.choices[item.answer]
        assert f"{item.context} {true}" in texts[item.document]
        assert 12 <= len(item.context.split()) <= 24 and item.context.endswith(".")
        of = [{word.split("x")[0] for word in choice.split()} for choice in item.choices]
        assert all(len(one) == 1 for one in of) and len(set.union(*of)) == 4  # four documents
        assert {len(choice.split()) for choice in item.choices} == {5}
        for choice in item.choices:  # every choice begins a sentence
            assert any(f". {choice}" in text for text in texts)
    assert {item.answer for item in items} == {0, 1, 2, 3}


def test_equal_seeds_give_equal_items_and_fewer_are_a_part_of_more():
    texts = documents()
    assert build_items(texts, 20, words=5) == build_items(texts, 40, words=5)[:20]
    assert build_items(texts, 20, words=5, seed=1) != build_items(texts, 20, words=5)


@pytest.mark.parametrize(
    ("texts", "count", "message"),
    [
        (documents(3), 5, "3 held-out documents have a sentence"),
        (["no sentence ends here"] * 9, 1, "0 held-out documents"),
        (documents(), 10_000, "--items: 10000 asked, the held-out text has"),
    ],
)
def test_text_that_is_not_enough_is_one_line(texts, count, message):
    with pytest.raises(InputError, match=message):
        build_items(texts, count, words=5)


def test_items_are_read_as_they_were_written(tmp_path: Path):
    items = build_items(documents(), 9, words=5)
    write_task(tmp_path, "mine", items)
    assert read_items(tmp_path) == items
    assert "task: mine\n" in (tmp_path / "mine.yaml").read_text()
    (tmp_path / "items.jsonl").write_text('{"context": "a", "choices": ["b"], "answer": 1, "document": 0}\n')
    with pytest.raises(InputError, match=r"items\.jsonl, line 1: no item"):
        read_items(tmp_path)


def test_accuracy_has_the_interval_of_wilson():
    items = [Item("a", ("b", "c"), 0, 0)] * 10
    found = accuracy(np.array([0] * 7 + [1] * 3), items)
    assert found["accuracy"] == 0.7
    z, n, p = 1.959964, 10, 0.7
    centre, half = (p + z * z / 20) / (1 + z * z / n), z * (p * (1 - p) / n + z * z / 400) ** 0.5 / (1 + z * z / n)
    assert found["ci95"] == pytest.approx([centre - half, centre + half], rel=1e-5)


# --- log probabilities -----------------------------------------------------------------------------------------------


PASS = jax.jit(lambda config, weights, tokens: forward(config, weights, tokens).logits_NV, static_argnums=0)


def by_hand(model, context, continuation):
    tokens = [*context, *continuation][-(model.config.max_position_embeddings + 1) :]
    logits = np.asarray(PASS(model.config, model.weights, jnp.asarray([tokens[:-1]], jnp.int32)), np.float64)
    logs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[-len(continuation) :]
    picked = logs[np.arange(len(continuation)), list(continuation)]
    return picked.sum(), bool((logs.argmax(-1) == list(continuation)).all())


def test_continuations_of_any_length_have_the_log_probabilities_of_one_pass(teacher_folder: Path):
    """Short and long ones together; contexts beyond the model's length lose their beginning."""
    model, rng = load_teacher(teacher_folder), np.random.default_rng(1)
    pairs = [(rng.integers(0, 20, n).tolist(), rng.integers(0, 20, m).tolist()) for n, m in
             ((1, 1), (20, 9), (60, 3))]  # fmt: skip
    greedy = [pairs[0][0]]
    logits = PASS(model.config, model.weights, jnp.asarray(greedy, jnp.int32))
    pairs.append((pairs[0][0], [int(np.argmax(np.asarray(logits)[-1]))]))
    found = continuation_scores(model.config, model.weights, pairs)
    for pair, (log, likeliest) in zip(pairs, found, strict=True):
        wanted, is_greedy = by_hand(model, *pair)
        assert log == pytest.approx(wanted, abs=2e-5)
        assert likeliest == is_greedy
    assert found[-1][1]


def test_a_pair_is_encoded_as_one_text(teacher_folder: Path):
    tokenizer = load_teacher(teacher_folder).require_tokenizer()
    assert encode_pair(tokenizer, "w1 w2 ", "w3") == ([1, 2], [3])
    assert encode_pair(tokenizer, "w1", " w2 w3") == ([1], [2, 3])


def test_the_likeliest_choice_is_made(teacher_folder: Path):
    model = load_teacher(teacher_folder)
    items = [Item("w1 w2", ("w4 w5", "w6 w7", "w8 w9"), 0, 0), Item("w9 w2", ("w1 w1", "w2 w2", "w3 w3"), 0, 1)]
    made = choices_made(model.config, model.weights, model.require_tokenizer(), items)
    for item, choice in zip(items, made, strict=True):
        context = [int(w[1:]) for w in item.context.split()]
        logs = [by_hand(model, context, [int(w[1:]) for w in c.split()])[0] for c in item.choices]
        assert choice == int(np.argmax(logs))


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cloze")
    texts = [". ".join(" ".join(f"w{i}" for i in rng.integers(0, 20, 8)) for _ in range(6)) + "." for _ in range(120)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    return folder / "text.txt"


def test_a_task_is_made_and_models_are_asked(
    teacher_folder: Path, sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    task, out = tmp_path / "task", tmp_path / "numbers.json"
    make = ["cloze", "--text", str(sentences), "--out", str(task), "--items", "12", "--words", "4"]
    assert main([*make, "--context-words", "9"]) == 0
    assert "12 items from" in capsys.readouterr().out
    assert main(["evaluate", "--model", str(teacher_folder), "--tasks", str(task), "--json", str(out)]) == 0
    told = capsys.readouterr().out
    (numbers,) = json.loads(out.read_text())["models"][str(teacher_folder)].values()
    assert numbers["items"] == 12 and numbers["ci95"][0] <= numbers["accuracy"] <= numbers["ci95"][1]
    assert f"{numbers['accuracy']:.3f} of 12 items" in told
    assert main(["evaluate", "--model", str(teacher_folder), "--tasks", str(task), "--limit", "5", "--json", "-"]) == 0
    (numbers,) = json.loads(capsys.readouterr().out)["models"][str(teacher_folder)].values()
    assert numbers["items"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cloze", "--text", "TEXT", "--out", "o", "--items", "0"], "--items: 0 is less than 1"),
        (["cloze", "--text", "TEXT", "--out", "o", "--words", "50"], "0 held-out documents"),
        (["evaluate", "--model", "TEACHER", "--tasks", "t", "--limit", "0"], "--limit: 0 is less than 1"),
        (["evaluate", "--model", "TEACHER", "--tasks", "nowhere"], "--tasks: nowhere is no folder of a cloze task"),
    ],
)
def test_bad_input_is_one_line(words, message, teacher_folder, sentences, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"TEXT": str(sentences), "TEACHER": str(teacher_folder)}
    assert main([named.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


# --- lm-eval ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lm_eval_gives_the_numbers_of_its_own_model(teacher_folder: Path, sentences: Path, tmp_path: Path, monkeypatch):
    """Item by item on a task of local data, through our adapter and through lm-eval's own model on the same folder."""
    pytest.importorskip("lm_eval", reason="needs the extra lm_eval")
    pytest.importorskip("torch", reason="needs the extra stock")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from lrc_jax.inference.harness import HarnessModel, evaluate_tasks

    write_task(tmp_path, "mine", build_items(sentences.read_text().split("\n\n"), 40, words=4, context_words=9))
    for name, value in {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(teacher_folder, tmp_path / "model")
    ends = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w19"}  # lm-eval's own model asks for one
    (folder / "tokenizer_config.json").write_text(json.dumps(ends))
    model = load_teacher(folder)
    logs, accuracies = [], []
    for one in (HarnessModel(model), HFLM(pretrained=str(folder), dtype="float32", device="cpu")):
        manager = TaskManager(include_path=str(tmp_path))
        found = simple_evaluate(model=one, tasks=["mine"], task_manager=manager, bootstrap_iters=10)
        logs.append(np.array([[r[0] for r in s["filtered_resps"]] for s in found["samples"]["mine"]], float))
        accuracies.append({k: found["results"]["mine"][k] for k in ("acc,none", "acc_norm,none")})
    np.testing.assert_allclose(logs[0], logs[1], atol=1e-4)
    assert accuracies[0] == accuracies[1]
    items = read_items(tmp_path)
    made = choices_made(model.config, model.weights, model.require_tokenizer(), items)
    assert accuracy(made, items)["accuracy"] == accuracies[0]["acc,none"]
    assert evaluate_tasks(model, ["mine"], limit=5, folder=tmp_path)["mine"]["acc"] in np.arange(6) / 5
    with pytest.raises(InputError, match="nothing is no folder"):
        evaluate_tasks(model, ["nothing"], folder=tmp_path)
