"""One configured name: each address that it resolves to is a replica."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any, Final

import grpc

from edge.config import EdgeConfig
from edge.upstream.replica import Replica
from keys import KeyStore
from keys.settings import port_range

log = logging.getLogger(__name__)

# Seconds between two look-ups while no replica serves, and that one look-up may take.
RETRY_SECONDS: Final = 1.0
RESOLVE_TIMEOUT_SECONDS: Final = 5.0


class Upstream:
    """One configured name and its replicas.

    Attributes:
        target: HOST:PORT or HOST:FIRST-LAST, as configured.
        replicas: By address.
    """

    def __init__(
        self,
        target: str,
        config: EdgeConfig,
        credentials: grpc.ChannelCredentials | None,
        keys: KeyStore | None,
    ) -> None:
        self.target = target
        self._keys = keys
        self._credentials = credentials
        self.replicas: dict[str, Replica] = {}
        self._config = config
        self._lost = asyncio.Event()
        self._resolver = asyncio.create_task(self._keep_resolved())

    @property
    def serving(self) -> bool:
        """Whether any replica accepts requests."""
        return any(replica.serving for replica in self.replicas.values())

    @property
    def known(self) -> bool:
        """Whether any replica has ever listed its models."""
        return any(replica.models for replica in self.replicas.values())

    @property
    def problem(self) -> str:
        """One sentence for each problem of a replica; empty if there is none."""
        problems = {
            replica.problem.text: None for replica in self.replicas.values() if replica.problem
        }
        return "; ".join(problems)

    async def close(self) -> None:
        """Ends every call and connection."""
        self._resolver.cancel()
        await asyncio.wait([self._resolver])
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    async def _keep_resolved(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_SECONDS):
                    addresses = await self._resolve()
                await self._follow(addresses)
            except (OSError, TimeoutError):
                log.warning("cannot resolve %s", self.target)
            except Exception:
                log.exception("cannot follow %s", self.target)
            self._lost.clear()
            pause = self._config.resolve_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if self.serving else min(pause, RETRY_SECONDS)):
                    await self._lost.wait()

    async def _resolve(self) -> set[str]:
        host, _, ports = self.target.rpartition(":")
        numbers = port_range(ports)
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), numbers[0], type=socket.SOCK_STREAM
        )
        return {
            _address(family, sockaddr[0], port)
            for family, _, _, _, sockaddr in found
            for port in numbers
        }

    async def _follow(self, addresses: set[str]) -> None:
        for replica in self.replicas.values():
            replica.review_keys()
        server_name, _, ports = self.target.rpartition(":")
        for address in addresses - self.replicas.keys():
            replica = self.replicas[address] = Replica(
                address, self._config, self._credentials, server_name, self._keys, self._lost.set
            )
            if len(port_range(ports)) > 1:  # The fronts of one engine on that machine.
                replica.engine = address.rpartition(":")[0]
        for address, replica in self.replicas.items():
            replica.leaving = address not in addresses
        # A name server may drop all addresses that serve, but only briefly.
        others_serve = any(r.serving and not r.leaving for r in self.replicas.values())
        gone = [
            replica
            for replica in self.replicas.values()
            if replica.leaving and not replica.outstanding and (others_serve or not replica.serving)
        ]
        for replica in gone:
            del self.replicas[replica.address]
        await asyncio.gather(*(replica.close() for replica in gone))


def _address(family: int, host: Any, port: int) -> str:
    """A resolved address in gRPC's target syntax."""
    return f"ipv6:[{host}]:{port}" if family == socket.AF_INET6 else f"ipv4:{host}:{port}"
