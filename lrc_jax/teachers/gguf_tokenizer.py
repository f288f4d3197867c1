"""A tokenizer from the metadata of a GGUF file.

Two families: "gpt2", a byte-level BPE whose pre-tokenizer is named by `tokenizer.ggml.pre`, and "llama", the BPE of
sentencepiece, whose merges are not stored but follow from the scores of the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as _Tokenizer

from lrc_jax.errors import InputError
from lrc_jax.teachers.gguf_file import GGUFFile
from lrc_jax.teachers.keys import REQUIRED, Keys
from lrc_jax.teachers.tokenizer import Tokenizer, readable

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
SPACE = "▁"
# The words that Llama 3 and Qwen2 split text into; they differ in how many digits make one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(digits: str) -> Any:
    split = pre_tokenizers.Split(Regex(WORDS.format(digits=digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2_words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_words()])


class Pre(NamedTuple):
    """How a kind of byte-level BPE cuts text before it merges.

    Attributes:
      words: makes the pre-tokenizer.
      normalizer: of unicode.
      whole_words: a word that is a token is taken whole, whatever its merges.
      add_bos: whether a text starts with the start token where the file does not say.
    """

    words: Callable[[], Any]
    normalizer: Callable[[], Any] | None = None
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = Pre(_gpt2_words)
_DIGITS = Pre(_single_digits)
_LLAMA3 = Pre(lambda: _words("{1,3}"), whole_words=True, add_bos=True)
_QWEN2 = Pre(lambda: _words(""), normalizers.NFC)
# tokenizer.ggml.pre, with the names that llama.cpp treats alike.
PRE_TOKENIZERS = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum",
         "modern-bert", "exaone4", "olmo", "mpt", "jais", "trillion", "granite-docling"),
        _GPT2,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LLAMA3,
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2
    ),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open"), Pre(lambda: _words(""))),
    **dict.fromkeys(("glm4", "chatglm-bpe", "smaug-bpe", "dbrx"), Pre(lambda: _words("{1,3}"))),
}  # fmt: skip
SPECIAL = (
    "bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "separator", "mask", "cls", "prefix", "suffix",
    "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip
# What a tokenizer's metadata may hold beside what is read here, without changing the ids of a text.
HARMLESS_KEYS = (
    "tokenizer.huggingface.json",
    "tokenizer.rwkv.world",
    "tokenizer.chat_templates",
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.add_eos_token",  # texts are not ended here; data are cut into windows
    "tokenizer.ggml.add_sep_token",
    *(f"tokenizer.ggml.{name}_token_id" for name in SPECIAL),
)


def _byte_level_bpe(keys: Keys, vocab: dict[str, int]) -> tuple[_Tokenizer, bool]:
    kind = keys.text("tokenizer.ggml.pre", "default")
    if kind not in PRE_TOKENIZERS:
        raise InputError(
            f"{keys.path}: tokenizer.ggml.pre {kind!r} is not supported; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    pre = PRE_TOKENIZERS[kind]
    for unread in ("add_space_prefix", "scores"):  # of sentencepiece; llama.cpp does not look at them here either
        keys.take(f"tokenizer.ggml.{unread}")
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in keys.texts("tokenizer.ggml.merges"))]
    backend = _Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.whole_words))
    if pre.normalizer is not None:
        backend.normalizer = pre.normalizer()
    backend.pre_tokenizer = pre.words()
    backend.decoder = decoders.ByteLevel()
    return backend, pre.add_bos


def _merges_from_scores(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """All ways to make a token from two others, best token first: the order in which sentencepiece merges."""
    lengths = sorted({len(token) for token in vocab})
    found = [
        (scores[token], token[:cut], token[cut:])
        for token in vocab
        for cut in lengths
        if cut < len(token) and token[:cut] in vocab and token[cut:] in vocab
    ]
    found.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
    return [(left, right) for _, left, right in found]


def _sentencepiece_bpe(keys: Keys, vocab: dict[str, int], types: list[int]) -> tuple[_Tokenizer, bool]:
    tokens = list(vocab)
    scores = dict(zip(tokens, keys.take("tokenizer.ggml.scores", REQUIRED), strict=True))
    plain = {token: i for token, i in vocab.items() if types[i] not in (UNKNOWN, CONTROL)}
    unknown = next((token for token, i in vocab.items() if types[i] == UNKNOWN), None)
    model = models.BPE(vocab, _merges_from_scores(plain, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = _Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", True)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def read_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where the metadata hold none.

    Raises:
      InputError: a kind of tokenizer that is not supported (named), a key that is not known, or metadata that
        contradict each other.
    """
    keys = Keys(file.path, {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")})
    kind = keys.take("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise InputError(f"{file.path}: tokenizer.ggml.model {kind!r} is not supported; supported: gpt2, llama")
    tokens = keys.texts("tokenizer.ggml.tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{file.path}: tokenizer.ggml.tokens holds a token twice; the file is damaged")
    types = keys.take("tokenizer.ggml.token_type", [1] * len(tokens))

    def special(name: str) -> int | None:
        i = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if i is not None and (type(i) is not int or not 0 <= i < len(tokens)):
            raise InputError(f"{file.path}: tokenizer.ggml.{name}_token_id {i!r} is outside the vocabulary")
        return i

    def added(wanted: int) -> list[Any]:
        return [
            AddedToken(token, special=wanted != USER_DEFINED, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == wanted
        ]

    with readable(f"{file.path}: its tokenizer's metadata are inconsistent"):
        if kind == "gpt2":
            backend, add_bos = _byte_level_bpe(keys, vocab)
        else:
            backend, add_bos = _sentencepiece_bpe(keys, vocab, types)
        backend.add_special_tokens(added(CONTROL) + added(UNKNOWN))
        backend.add_tokens(added(USER_DEFINED))
        bos_id = special("bos") if keys.flag("tokenizer.ggml.add_bos_token", add_bos) else None
        if bos_id is not None:
            # By a name of its own: the start token's text may hold what a template reads otherwise ("$", ":").
            backend.post_processor = processors.TemplateProcessing(
                single="start $A",
                pair="start $A start $B",
                special_tokens=[{"id": "start", "ids": [bos_id], "tokens": [tokens[bos_id]]}],
            )
        backend.encode("a")
    ends = dict.fromkeys(i for i in (special(name) for name in ("eos", "eot", "eom")) if i is not None)
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {f"{short}_token": tokens[i] for name, short in names.items() if (i := special(name)) is not None}
    if template := keys.text("tokenizer.chat_template", ""):
        settings["chat_template"] = template
    keys.finish(HARMLESS_KEYS, prefixes=("tokenizer.chat_template.",))
    companions = {"tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False).encode()}
    return Tokenizer(backend, bos_id=bos_id, eos_ids=tuple(ends), companions=companions)
