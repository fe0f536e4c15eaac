"""The default models, from the user's cache; the first run fetches and converts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.embedded import default_cache_directory, prepare_embedding_model, prepare_text_model


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct, as vLLM loads it."""
    return prepare_text_model(default_cache_directory(), print)


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """all-MiniLM-L6-v2, as sentence-transformers loads it."""
    return prepare_embedding_model(default_cache_directory(), print)
