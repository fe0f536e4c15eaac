"""Engines by name. Importing this imports no engine package."""

from __future__ import annotations

from importlib import import_module

from inference.config import ENGINES, ModelConfig
from inference.engines.base import Engine


def create_engine(config: ModelConfig) -> Engine:
    """Creates, without starting it, the engine that the configuration names."""
    module, name = ENGINES[config.engine]
    engine: Engine = getattr(import_module(module), name)(config)
    return engine
