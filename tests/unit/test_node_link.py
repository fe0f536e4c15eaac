"""The connection between the head and its followers: who joins, who is refused, who has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from inference.engines import node_link
from inference.engines.node_link import FollowerLink, HeadLink, Hello, JoinError, join
from inference.engines.nodes import Nodes
from keys import ConfigError
from tests.conftest import eventually
from tests.contract.programs import fixed_port


@pytest.fixture
def nodes() -> Nodes:
    """A head and two followers."""
    return Nodes(count=3, address="127.0.0.1", port=fixed_port())


@pytest.fixture
async def head(nodes: Nodes) -> AsyncIterator[HeadLink]:
    link = HeadLink("m", nodes, "fp")
    await link.open()
    yield link
    await link.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(node_link, "_RETRY_SECONDS", 0.02)
    caplog.set_level(logging.INFO)


async def started(head: HeadLink, nodes: Nodes) -> list[FollowerLink]:
    first, second, _ = await asyncio.gather(
        join(nodes, Hello(1, "fp")), join(nodes, Hello(2, "fp")), head.gather()
    )
    return [first, second]


async def test_all_start_once_the_last_has_come(head: HeadLink, nodes: Nodes) -> None:
    first = asyncio.create_task(join(nodes, Hello(1, "fp")))
    gathered = asyncio.create_task(head.gather())
    await eventually(lambda: head.missing == "follower 2")
    await asyncio.sleep(0.05)
    assert not first.done()
    assert not gathered.done()
    second = await join(nodes, Hello(2, "fp"))
    await gathered
    assert (await first).address == head.address == "127.0.0.1"
    assert not head.lost.is_set()
    for link in (first.result(), second):
        link.close()


async def test_follower_may_start_before_the_head(nodes: Nodes) -> None:
    joins = [asyncio.create_task(join(nodes, Hello(rank, "fp"))) for rank in (1, 2)]
    await asyncio.sleep(0.1)
    head = HeadLink("m", nodes, "fp")
    await head.open()
    await head.gather()
    for link in await asyncio.gather(*joins):
        link.close()
    await head.close()


async def test_head_is_told_of_a_follower_that_ends(
    head: HeadLink, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await started(head, nodes)
    second.close()
    async with asyncio.timeout(2):
        await head.lost.wait()
    assert "m: follower 2 (127.0.0.1) has ended" in caplog.messages
    first.close()


async def test_followers_are_told_of_the_heads_end(head: HeadLink, nodes: Nodes) -> None:
    links = await started(head, nodes)
    ends = [asyncio.create_task(link.ended()) for link in links]
    await asyncio.sleep(0.05)
    assert not any(end.done() for end in ends)
    await head.close()
    async with asyncio.timeout(2):
        await asyncio.gather(*ends)
    for link in links:
        link.close()
    await asyncio.sleep(0.05)
    assert not head.lost.is_set(), "its own end is no follower's"


async def test_follower_that_leaves_before_the_start_is_awaited_again(
    head: HeadLink, nodes: Nodes
) -> None:
    left = asyncio.create_task(join(nodes, Hello(1, "fp")))
    await eventually(lambda: head.missing == "follower 2")
    left.cancel()
    await eventually(lambda: head.missing == "followers 1, 2")
    links = await started(head, nodes)
    assert not head.lost.is_set()
    for link in links:
        link.close()


async def test_all_followers_are_there_at_the_start(head: HeadLink, nodes: Nodes) -> None:
    first, second = (asyncio.create_task(join(nodes, Hello(rank, "fp"))) for rank in (1, 2))
    await eventually(lambda: head.missing == "follower ")
    first.cancel()
    await eventually(lambda: head.missing == "follower 1")
    gathered = asyncio.create_task(head.gather())
    await asyncio.sleep(0.05)
    assert not gathered.done()
    assert not second.done()
    link = await join(nodes, Hello(1, "fp"))
    await gathered
    for each in (link, await second):
        each.close()


@pytest.mark.parametrize(
    ("hello", "why"),
    [(Hello(1, "other"), "the head has other engine_args"), (Hello(3, "fp"), "nnodes is 3")],
)
async def test_follower_that_does_not_fit_is_refused_and_told_why(
    head: HeadLink, nodes: Nodes, hello: Hello, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(JoinError, match=f"refuses follower {hello.rank}: {why}"):
        await join(nodes, hello)
    assert f"m: refused follower {hello.rank}, 127.0.0.1: {why}" in caplog.text
    for link in await started(head, nodes):
        link.close()


async def test_second_follower_of_a_rank_waits_and_harms_nobody(
    head: HeadLink, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    links = await started(head, nodes)
    twin = asyncio.create_task(join(nodes, Hello(1, "fp")))
    await eventually(lambda: "m: another follower 1 came, from 127.0.0.1" in caplog.messages)
    await asyncio.sleep(0.1)
    assert not twin.done()
    twin.cancel()
    await asyncio.sleep(0.1)
    assert not head.lost.is_set()
    for link in links:
        link.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000, b'{"rank": 1}\n'])
async def test_whatever_else_connects_is_dropped(head: HeadLink, nodes: Nodes, sent: bytes) -> None:
    links = await started(head, nodes)
    reader, writer = await asyncio.open_connection(nodes.address, nodes.port)
    writer.write(sent)
    if not sent:
        writer.write_eof()
    async with asyncio.timeout(2):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    assert not head.lost.is_set()
    for link in links:
        link.close()


async def test_silent_connection_is_dropped(
    head: HeadLink, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "_HELLO_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(nodes.address, nodes.port)
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()


async def test_waits_are_bounded_and_say_what_was_missing(
    head: HeadLink, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_link, "JOIN_SECONDS", 0.2)
    with pytest.raises(JoinError, match="no followers 1, 2 within 0 s"):
        await head.gather()
    with pytest.raises(JoinError, match=rf"no start by the head at 127.0.0.1 port {nodes.port}"):
        await join(nodes, Hello(1, "fp"))


async def test_other_service_at_the_heads_port_is_no_head(nodes: Nodes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, nodes.address, nodes.port):
        with pytest.raises(JoinError, match="is not a head"):
            await join(nodes, Hello(1, "fp"))


@pytest.mark.parametrize("address", ["192.0.2.1", "no-such-host.invalid"])
async def test_head_needs_an_address_of_its_own(address: str) -> None:
    link = HeadLink("m", Nodes(count=2, address=address, port=fixed_port()), "fp")
    with pytest.raises(ConfigError, match=rf"m\.engine_args\.master_addr: .* {address} port"):
        await link.open()
    await link.close()
