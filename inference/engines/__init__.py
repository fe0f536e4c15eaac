"""Engines by name. Importing this package imports no model library; `create_engine` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from inference.config import ENGINES, ModelConfig
from inference.engines.base import Engine
from inference.engines.nodes import Nodes, nodes_of

if TYPE_CHECKING:
    from inference.engines.vllm_follower import VllmFollower


def create_engine(config: ModelConfig) -> Engine:
    """Imports and constructs the configured engine, without starting it.

    Raises:
        ConfigError: The arguments for several machines do not fit each other.
    """
    if (nodes := nodes_of(config)) is not None:
        head: Engine = import_module("inference.engines.vllm_head").VllmHead(config, nodes)
        return head
    module, name = ENGINES[config.engine]
    engine: Engine = getattr(import_module(module), name)(config)
    return engine


def create_follower(config: ModelConfig, nodes: Nodes, rank: int) -> VllmFollower:
    """Imports vLLM and constructs node `rank` of the model, without starting it."""
    follower: VllmFollower = import_module("inference.engines.vllm_follower").VllmFollower(
        config, nodes, rank
    )
    return follower
