"""One front of a model: one of several processes that serve an engine together.

A front is an inference service with a port of its own. What belongs to the engine is shared out or
counted once, so that all fronts together have the limits of the configuration:

    max_running, max_queued, the default memory budget   divided: each front has its part
    requests and tokens a minute of a key                counted in one file (rate_table.py)
    health and load of the engine                        told in one file (engines/engine_board.py)
    metrics of the engine's library                      served by the first front

The files are in a folder that the launcher makes, and that only its user can read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from inference.config import ModelConfig

# The variable with which prometheus-client counts in a folder, for several processes together.
METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a front among those of its model.

    Attributes:
        folder: What the fronts share.
        index: From 0.
        count: The number of fronts.
    """

    folder: Path
    index: int
    count: int

    def part_of(self, total: int) -> int:
        """This front's part of a limit; the parts of all fronts add up to it."""
        return total // self.count + (self.index < total % self.count)

    def configured(self, config: ModelConfig) -> ModelConfig:
        """The model's configuration with this front's part of its limits."""
        return msgspec.structs.replace(
            config,
            fronts=1,
            max_running=self.part_of(config.running_limit),
            max_queued=self.part_of(config.max_queued),
        )

    def engine_metrics(self) -> Iterable[Metric]:
        """Families that prometheus-client counts for all fronts together; the first has them."""
        registry = CollectorRegistry()
        if self.index == 0 and METRICS_FOLDER in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry.collect()

    @property
    def rates(self) -> Path:
        """The file that counts what keys use."""
        return self.folder / "rates"


def engine_socket(folder: Path) -> Path:
    """The socket at which the process with the engine waits for its fronts."""
    return folder / "engine.socket"


def probe_socket(folder: Path, index: int) -> Path:
    """The socket at which the launcher asks for a front's health."""
    return folder / f"front-{index}.socket"
