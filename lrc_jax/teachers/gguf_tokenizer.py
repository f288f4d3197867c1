"""A tokenizer from the metadata of a GGUF file.

Two families: "gpt2", a byte-level BPE whose pre-tokenizer is named by `tokenizer.ggml.pre`, and "llama", the BPE of
sentencepiece, whose merges are not stored but follow from the scores of the tokens.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as _Tokenizer

from lrc_jax.errors import InputError
from lrc_jax.teachers.gguf import GGUFFile
from lrc_jax.teachers.tokenizer import Tokenizer

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


# tokenizer.ggml.pre -> (pre-tokenizer, unicode normaliser, whole words before merges, start token by default)
PRE_TOKENIZERS = {
    "gpt-2": (_gpt2_words, None, False, False),
    "smollm": (_single_digits, None, False, False),
    "llama-bpe": (lambda: _words("{1,3}"), None, True, True),
    "llama3": (lambda: _words("{1,3}"), None, True, True),
    "qwen2": (lambda: _words(""), normalizers.NFC, False, False),
}


def _byte_level_bpe(file: GGUFFile, vocab: dict[str, int]) -> tuple[_Tokenizer, bool]:
    kind = file.get("tokenizer.ggml.pre", "default")
    if kind not in PRE_TOKENIZERS:
        raise InputError(
            f"{file.path}: tokenizer.ggml.pre {kind!r} is not supported; supported: {', '.join(PRE_TOKENIZERS)}"
        )
    pre_tokenizer, normalizer, whole_words, add_bos = PRE_TOKENIZERS[kind]
    merges = [tuple(merge.split(" ", 1)) for merge in file.need("tokenizer.ggml.merges")]
    backend = _Tokenizer(models.BPE(vocab, merges, ignore_merges=whole_words))
    if normalizer is not None:
        backend.normalizer = normalizer()
    backend.pre_tokenizer = pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, add_bos


def _merges_from_scores(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """All ways to make a token from two others, best token first: the order in which sentencepiece merges."""
    found = [
        (scores[token], token[:cut], token[cut:])
        for token in vocab
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    found.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
    return [(left, right) for _, left, right in found]


def _sentencepiece_bpe(file: GGUFFile, vocab: dict[str, int], types: list[int]) -> tuple[_Tokenizer, bool]:
    tokens = list(vocab)
    scores = dict(zip(tokens, file.need("tokenizer.ggml.scores"), strict=True))
    plain = {token: i for token, i in vocab.items() if types[i] not in (UNKNOWN, CONTROL)}
    unknown = next((token for token, i in vocab.items() if types[i] == UNKNOWN), None)
    model = models.BPE(vocab, _merges_from_scores(plain, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = _Tokenizer(model)
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def read_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where the metadata hold none.

    Raises:
      InputError: a kind of tokenizer that is not supported (named), or metadata that contradict each other.
    """
    kind = file.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    tokens = file.need("tokenizer.ggml.tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{file.path}: tokenizer.ggml.tokens holds a token twice; the file is damaged")
    types = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
    try:
        if kind == "gpt2":
            backend, add_bos = _byte_level_bpe(file, vocab)
        elif kind == "llama":
            backend, add_bos = _sentencepiece_bpe(file, vocab, types)
        else:
            raise InputError(f"{file.path}: tokenizer.ggml.model {kind!r} is not supported; supported: gpt2, llama")
    except InputError:
        raise
    except Exception as wrong:  # the tokenizers package raises bare Exception
        raise InputError(f"{file.path}: its tokenizer's metadata are inconsistent ({wrong})") from None

    def added(wanted: int) -> list[Any]:
        return [
            AddedToken(token, special=wanted != USER_DEFINED, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == wanted
        ]

    backend.add_special_tokens(added(CONTROL) + added(UNKNOWN))
    backend.add_tokens(added(USER_DEFINED))

    def special(name: str) -> int | None:
        i = file.get(f"tokenizer.ggml.{name}_token_id")
        if i is not None and not 0 <= i < len(tokens):
            raise InputError(f"{file.path}: tokenizer.ggml.{name}_token_id {i} is outside the vocabulary")
        return i

    bos_id = special("bos") if file.get("tokenizer.ggml.add_bos_token", add_bos) else None
    if bos_id is not None:
        bos = tokens[bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )
    ends = dict.fromkeys(i for i in (special(name) for name in ("eos", "eot", "eom")) if i is not None)
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {f"{short}_token": tokens[i] for name, short in names.items() if (i := special(name)) is not None}
    if file.get("tokenizer.chat_template"):
        settings["chat_template"] = file.get("tokenizer.chat_template")
    companions = {"tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False).encode()}
    return Tokenizer(backend, bos_id=bos_id, eos_ids=tuple(ends), companions=companions)
