"""Models by their name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from lrc_jax.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.json",
]


def fetched(path: str | Path) -> Path:
    """The path, or, where nothing is there and it looks like OWNER/NAME, the folder of that model in the hub's cache.

    Raises:
      InputError: nothing is cached and the hub does not answer or has no such model; names the command that fetches it.
    """
    name, path = str(path), Path(path)
    if path.exists() or path.suffix.lower() == ".gguf" or not NAME.fullmatch(name) or path.parent.is_dir():
        return path
    by_hand = f"fetch it elsewhere with `hf download {name} --local-dir FOLDER` and give FOLDER"
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise InputError(f"{name}: no such folder, and huggingface_hub is not installed; {by_hand}") from None
    from lrc_jax.data.text import hub_answers

    online = hub_answers()
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=not online))
    except Exception as wrong:  # the package raises many kinds
        why = f"refuses it ({type(wrong).__name__})" if online else "does not answer"
        raise InputError(f"{name}: no such folder, and the Hugging Face hub {why}; {by_hand}") from None
