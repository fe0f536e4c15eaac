"""Engines by name. Heavy imports happen inside the modules named here, never by importing this."""

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
    """Creates, without starting it, the engine that the configuration names."""
    module, name = _ENGINES[config.engine]
    engine: Engine = getattr(import_module(module), name)(config)
    return engine
