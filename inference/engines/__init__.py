"""Engines by name. Importing this package imports no model library; `create_engine` does."""

from __future__ import annotations

from importlib import import_module

from inference.config import ENGINES, ModelConfig
from inference.engines.base import Engine


def create_engine(config: ModelConfig) -> Engine:
    """Imports and constructs the configured engine, without starting it."""
    module, name = ENGINES[config.engine]
    engine: Engine = getattr(import_module(module), name)(config)
    return engine
