"""Engines by name. Importing this package imports no model library; `create_engine` does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from contract.tracing import Tracing
from inference.config import ENGINES, ModelConfig
from inference.engines.base import Engine
from inference.engines.nodes import Nodes, nodes_of
from inference.fronts import Front

if TYPE_CHECKING:
    from inference.engines.vllm_core import VllmCore
    from inference.engines.vllm_follower import VllmFollower


def create_engine(config: ModelConfig, front: Front | None = None) -> Engine:
    """Imports and constructs the configured engine, without starting it.

    A front is one of several inference processes that share a model's vLLM engine core. Its engine
    is a client of that core, which runs in a process of its own (`create_core`).

    Raises:
        ConfigError: The arguments for several machines do not fit each other.
    """
    if front is not None and config.engine == "vllm":
        shared: Engine = import_module("inference.engines.vllm_front").VllmFront(config, front)
        return shared
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


def create_core(config: ModelConfig, folder: Path, tracing: Tracing | None) -> VllmCore:
    """Imports vLLM and constructs the engine core for the fronts in a folder."""
    core: VllmCore = import_module("inference.engines.vllm_core").VllmCore(config, folder, tracing)
    return core
