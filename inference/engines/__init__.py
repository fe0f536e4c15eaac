"""Engines by name. Importing this package imports no model library; `create_engine` does."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from inference.config import ModelConfig
from inference.engines.base import Engine

_ENGINES: Final = {
    "vllm": ("inference.engines.vllm_engine", "VllmEngine"),
    "sentence-transformers": ("inference.engines.embedding_engine", "SentenceTransformersEngine"),
    "scripted-embedding": ("inference.engines.scripted_embedding", "ScriptedEmbeddingEngine"),
    "diffusers": ("inference.engines.diffusion_engine", "DiffusersEngine"),
    "scripted-image": ("inference.engines.scripted_image", "ScriptedImageEngine"),
    "scripted": ("inference.engines.scripted", "ScriptedEngine"),
}


def create_engine(config: ModelConfig) -> Engine:
    """Imports and constructs the configured engine, without starting it."""
    module, name = _ENGINES[config.engine]
    engine: Engine = getattr(import_module(module), name)(config)
    return engine
