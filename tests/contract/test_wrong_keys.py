"""Many wrong keys from one address are refused for a while, on both faces; right keys pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from edge.app import serving
from edge.config import EdgeConfig
from edge.upstream import replica
from inference.rpc import address_of
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest
from keys import create_key
from keys.wrong_keys import MAX_WRONG
from tests.conftest import TEXT, Stack, StartStack, eventually, running_server

Code = grpc.StatusCode


@pytest.fixture
def transport() -> str:
    """No test here depends on it."""
    return "session"


@dataclass
class Keyed:
    stack: Stack
    key: str


@pytest.fixture
async def keyed(start_stack: StartStack, tmp_path: Path) -> Keyed:
    """A stack whose edge and service have the same keys."""
    path = tmp_path / "keys.json"
    _, key = create_key(path, "someone")
    _, token = create_key(path, "edge", scope="edge")
    return Keyed(await start_stack(keys=path, server_keys=path, key=key, upstream_token=token), key)


async def list_over_rest(keyed: Keyed, key: str) -> tuple[int, Any, dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if key else {"authorization": ""}
    async with keyed.stack.http.get("/v1/models", headers=headers) as response:
        return response.status, response.headers, await response.json()


async def list_over_grpc(keyed: Keyed, key: str) -> grpc.aio.AioRpcError | None:
    try:
        await InferenceServiceStub(keyed.stack.channel).ListModels(
            ListModelsRequest(), metadata=(("authorization", f"Bearer {key}"),) if key else ()
        )
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_the_21st_wrong_key_over_rest_is_a_429_and_a_right_one_passes(keyed: Keyed) -> None:
    for number in range(MAX_WRONG):
        assert (await list_over_rest(keyed, f"wrong-{number}"))[0] == 401
        assert (await list_over_rest(keyed, ""))[0] == 401  # An absent key is not a wrong one.
    for _ in range(2):
        status, headers, body = await list_over_rest(keyed, "wrong")
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["x-should-retry"] == "false"
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert "incorrect API keys" in body["error"]["message"]
        assert (await list_over_rest(keyed, keyed.key))[0] == 200
        assert (await list_over_rest(keyed, ""))[0] == 401
    # The service counts for itself.
    error = await list_over_grpc(keyed, "wrong")
    assert error is not None
    assert error.code() is Code.UNAUTHENTICATED


async def test_the_sdk_does_not_repeat_a_throttled_wrong_key(keyed: Keyed) -> None:
    for number in range(MAX_WRONG):
        await list_over_rest(keyed, f"wrong-{number}")
    client = keyed.stack.openai.with_options(api_key="wrong", max_retries=2)
    with pytest.raises(openai.RateLimitError):
        await client.models.list()


async def test_the_21st_wrong_key_over_grpc_is_refused_and_right_ones_and_the_edge_pass(
    keyed: Keyed,
) -> None:
    for number in range(MAX_WRONG):
        error = await list_over_grpc(keyed, f"wrong-{number}")
        assert error is not None
        assert error.code() is Code.UNAUTHENTICATED
    for _ in range(2):
        error = await list_over_grpc(keyed, "wrong")
        assert error is not None
        assert error.code() is Code.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        (packed,) = [d for d in status.details if d.Is(retry.DESCRIPTOR)]
        assert packed.Unpack(retry)
        assert 0 < retry.retry_delay.ToMilliseconds() <= 60_000
        assert await list_over_grpc(keyed, keyed.key) is None
    # The edge comes from the same address, with a right key.
    body = {"model": "scripted", "prompt": "Hi"}
    async with keyed.stack.http.post("/v1/completions", json=body) as response:
        assert response.status == 200


async def test_an_edge_with_a_wrong_key_is_refused_for_its_key_however_often_it_tries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "LAST_RETRY_SECONDS", 0.1)
    path = tmp_path / "keys.json"
    _, token = create_key(path, "edge", scope="edge")
    async with running_server(TEXT, keys=path) as server:
        target = f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(target) as channel:
            stub = InferenceServiceStub(channel)
            for _ in range(MAX_WRONG - 4):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.ListModels(
                        ListModelsRequest(), metadata=(("authorization", "Bearer x"),)
                    )
        wrong = EdgeConfig(port=0, upstreams=(target,), upstream_token="y", settle_seconds=0.0)
        async with serving(wrong) as (edge, _):
            await eventually(lambda: "ISTHMUS_EDGE_TOKEN" in edge.router.upstreams[0].problem)
            await asyncio.sleep(0.8)
            assert "ISTHMUS_EDGE_TOKEN" in edge.router.upstreams[0].problem
        assert caplog.text.count("ISTHMUS_EDGE_TOKEN") == 1
        right = EdgeConfig(port=0, upstreams=(target,), upstream_token=token, settle_seconds=0.0)
        async with serving(right) as (edge, _):
            await eventually(edge.router.ready)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:4711", "2001:db8::1"),
        ("ipv6:[::1]:4711", "::1"),
        ("unix:", "unix:"),
        ("unix:/run/isthmus.sock", "unix:/run/isthmus.sock"),
    ],
)
def test_the_address_of_a_peer_is_without_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address
