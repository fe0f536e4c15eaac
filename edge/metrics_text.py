"""The text of GET /metrics, made at a bounded cost however often somebody asks.

Making all families takes some milliseconds, and schedulers ask every 50 ms. So the families that
schedulers read are made when one of their values has changed, and all others every two seconds at
most, after the first few times.

Several edge processes behind one port. Each answers on a Unix socket of its own, too
(`probe_socket`), and all sockets are in one folder. Who asks on the port gets the metrics of all
processes, each with the label `process`; who asks on a socket gets those of its process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from contract.metrics import exposition
from edge.config import EdgeConfig
from edge.metrics import EdgeMetrics

# Times a second that all families are made, and how often at once after a time without questions.
_RATE: Final = 0.5
_BURST: Final = 10.0
# Seconds that another process has to send its metrics; otherwise they are missing.
_SIBLING_SECONDS: Final = 1.0


class MetricsText:
    """Makes the text for one process."""

    def __init__(self, metrics: EdgeMetrics, config: EdgeConfig) -> None:
        self._metrics = metrics
        self._socket = config.probe_socket if config.reuse_port else None
        self._made = b""
        self._told: list[object] | None = None
        self._engines = b""
        self._left, self._counted_at = _BURST, time.monotonic()
        self._making = asyncio.Lock()

    def own(self) -> bytes:
        """The metrics of this process."""
        return exposition(chain(self._metrics.engines(), self._own()))

    async def all(self) -> bytes:
        """The metrics of all processes on the port."""
        async with self._making:
            if self._may_make():
                families = list(self._own())
                self._made = exposition(await self._with_siblings(families))
        if (told := self._metrics.told()) != self._told:
            self._told, self._engines = told, exposition(self._metrics.engines())
        return self._engines + self._made

    def _may_make(self) -> bool:
        now = time.monotonic()
        self._left = min(_BURST, self._left + (now - self._counted_at) * _RATE)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _own(self) -> Iterable[Metric]:
        metrics = self._metrics.collect()
        return metrics if self._socket is None else _labelled(metrics, self._socket.stem)

    async def _with_siblings(self, families: list[Metric]) -> Iterable[Metric]:
        if self._socket is None:
            return families
        others = [path for path in self._socket.parent.glob("*.socket") if path != self._socket]
        merged = {family.name: family for family in families}
        for text in await asyncio.gather(*map(_metrics_of, others)):
            for family in text_string_to_metric_families(text):
                # The engines are the same for all processes.
                if family.name.startswith("vllm:"):
                    continue
                if (known := merged.setdefault(family.name, family)) is not family:
                    known.samples.extend(family.samples)
        return merged.values()


def _labelled(metrics: Iterable[Metric], process: str) -> Iterable[Metric]:
    for metric in metrics:
        metric.samples = [
            sample._replace(labels={"process": process, **sample.labels})
            for sample in metric.samples
        ]
        yield metric


async def _metrics_of(socket: Path) -> str:
    """The metrics of the process with this socket; "" if it does not answer."""
    timeout = ClientTimeout(total=_SIBLING_SECONDS)
    try:
        async with (
            ClientSession(connector=UnixConnector(str(socket)), timeout=timeout) as http,
            http.get("http://localhost/metrics") as response,
        ):
            response.raise_for_status()
            return await response.text()
    except (ClientError, OSError, TimeoutError):
        return ""  # It starts, stops, or has died.
