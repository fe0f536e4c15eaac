"""A connection whose first bytes arrive before aiohttp reads from it."""

from __future__ import annotations

import asyncio
import socket
from unittest.mock import Mock

from aiohttp import web

from contract.memory import MemoryBudget
from edge.config import EdgeConfig
from edge.http_protocol import EdgeRunner


async def test_incomplete_head_received_at_once_times_out() -> None:
    runner = EdgeRunner(web.Application(), EdgeConfig(head_seconds=0.05), MemoryBudget(1 << 30))
    await runner.setup()
    closed = asyncio.Event()
    with socket.socket() as connection:
        transport = Mock(spec=asyncio.Transport)
        transport.get_extra_info.return_value = connection
        transport.close.side_effect = closed.set
        assert runner.server is not None
        protocol = runner.server()
        protocol.connection_made(transport)
        protocol.data_received(b"GET /")
        async with asyncio.timeout(10):
            await closed.wait()
        protocol.connection_lost(None)
    await runner.cleanup()
