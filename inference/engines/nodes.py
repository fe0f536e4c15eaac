"""One model over several machines: the nodes of a configuration.

Node 0 is the head: it has the gRPC service, the scheduler and its share of the model. The others
are followers, which only have their share. All of them read the same configuration, in which
`engine_args` has vLLM's own arguments for this (docs/operate.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from inference.config import ModelConfig
from inference.engines.engine_args import settings
from keys import ConfigError

_Count = Annotated[int, msgspec.Meta(ge=1)]
# vLLM listens at master_port, and the head at the next port for its followers (node_link.py).
_LAST_MASTER_PORT: Final = 65534


class _Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """The members of `engine_args` that say what runs on which machine, with vLLM's defaults."""

    nnodes: _Count = 1
    node_rank: int = 0
    master_addr: str = ""
    master_port: Annotated[int, msgspec.Meta(ge=1, le=_LAST_MASTER_PORT)] = 29501
    tensor_parallel_size: _Count = 1
    pipeline_parallel_size: _Count = 1
    prefill_context_parallel_size: _Count = 1
    data_parallel_size: _Count = 1
    distributed_executor_backend: str | None = None


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """The machines of one model.

    Attributes:
        count: Their number, at least 2.
        address: The head's address, for the followers.
        port: The head's port for the followers.
    """

    count: int
    address: str
    port: int


def nodes_of(config: ModelConfig) -> Nodes | None:
    """The nodes of a model; None if it runs on one machine.

    Raises:
        ConfigError: The arguments do not fit each other.
    """
    if config.engine != "vllm":
        return None
    given = settings(config, _Arguments)
    where = f"models.{config.id}.engine_args"
    if given.node_rank != 0:
        raise ConfigError(
            f"{where}.node_rank: the configuration is that of the head, whose rank is 0. Leave it "
            "out, and run `isthmus inference --follow RANK` on the other machines."
        )
    if config.fronts > 1 and max(given.nnodes, given.data_parallel_size) > 1:
        name = "nnodes" if given.nnodes > 1 else "data_parallel_size"
        raise ConfigError(
            f"models.{config.id}.fronts: cannot be above 1 where engine_args.{name} is"
        )
    if given.nnodes == 1:
        return None
    if not given.master_addr:
        raise ConfigError(f"{where}.master_addr: nnodes needs the address of the head here")
    if given.distributed_executor_backend not in (None, "mp"):
        raise ConfigError(
            f"{where}.distributed_executor_backend: must be mp or unset where nnodes is above 1"
        )
    if given.data_parallel_size > 1:
        raise ConfigError(
            f"{where}.data_parallel_size: cannot be used with nnodes. Run a service on each "
            "machine and give the edge all of their addresses."
        )
    parts = math.prod(
        (
            given.tensor_parallel_size,
            given.pipeline_parallel_size,
            given.prefill_context_parallel_size,
        )
    )
    if parts % given.nnodes:
        raise ConfigError(
            f"{where}.nnodes: {given.nnodes} machines cannot share the {parts} parts of the model "
            "equally. tensor_parallel_size times pipeline_parallel_size must be a multiple of it."
        )
    return Nodes(count=given.nnodes, address=given.master_addr, port=given.master_port + 1)


def followed(models: Sequence[ModelConfig], rank: int) -> tuple[ModelConfig, Nodes]:
    """The model that `--follow RANK` takes part in, and its nodes.

    Raises:
        ConfigError: There is no such model or several, or it has no such follower.
    """
    if not models:
        raise ConfigError("models: at least one is needed")
    if len(models) > 1:
        raise ConfigError("--follow: the configuration has several models; choose one with --model")
    (config,) = models
    if config.engine != "vllm":
        raise ConfigError(
            f"models.{config.id}.engine: is {config.engine}; only models of the engine vllm can "
            "run on several machines, so --follow cannot be used with it"
        )
    nodes = nodes_of(config)
    if nodes is None:
        raise ConfigError(
            f"models.{config.id}.engine_args.nnodes: --follow needs it, with the number of "
            "machines, and master_addr with the address of the head"
        )
    if not 1 <= rank < nodes.count:
        last = nodes.count - 1
        raise ConfigError(
            f"--follow: {rank} is not a follower of {config.id}. With nnodes = {nodes.count} "
            + (f"they are 1 to {last}." if last > 1 else "the only one is 1.")
            + " The head, rank 0, runs without --follow."
        )
    return config, nodes
