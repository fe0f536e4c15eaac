"""REST and gRPC return the same vectors, errors and token counts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from edge.openai.embeddings.response import EmbeddingsResponse
from inference.config import AliasConfig, ModelConfig
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest
from isthmus.v1.generate_pb2 import TokenIds
from tests.conftest import Stack, StartStack

OWN = ModelConfig(
    id="own",
    engine="scripted-embedding",
    aliases=(
        AliasConfig(name="narrow", context_length=6),
        AliasConfig(name="openai", token_inputs="cl100k"),
        AliasConfig(name="texts", token_inputs="reject"),
    ),
)
SHORT = ModelConfig(
    id="short",
    engine="scripted-embedding",
    engine_args={"shortenable": True},
    token_inputs="reject",
    aliases=(AliasConfig(name="short-own", token_inputs="own"),),
)
Inputs = Sequence[str | list[int]]


@dataclass
class RefusedError(Exception):
    """A 400 over REST or INVALID_ARGUMENT over gRPC, with the error's code, param and message."""

    code: str | None
    param: str | None
    message: str


@dataclass(frozen=True)
class Embedded:
    vectors: NDArray[np.float32]
    tokens: int


async def over_rest(stack: Stack, model: str, inputs: Inputs, **parameters: Any) -> Embedded:
    body = {"model": model, "input": inputs, **parameters}
    async with stack.http.post("/v1/embeddings", json=body) as response:
        answer = await response.json()
    if response.status != 200:
        assert response.status == 400, answer
        assert answer["error"]["type"] == "invalid_request_error"
        raise RefusedError(*(answer["error"][name] for name in ("code", "param", "message")))
    assert answer["model"] == model
    assert [row["index"] for row in answer["data"]] == list(range(len(inputs)))
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"]
    rows = np.array([row["embedding"] for row in answer["data"]], dtype=np.float32)
    return Embedded(rows, answer["usage"]["prompt_tokens"])


async def over_grpc(stack: Stack, model: str, inputs: Inputs, **parameters: Any) -> Embedded:
    items = [
        EmbedInput(text=item) if isinstance(item, str) else EmbedInput(token_ids=TokenIds(ids=item))
        for item in inputs
    ]
    try:
        answer = await stack.stub.Embed(EmbedRequest(model=model, inputs=items, **parameters))
    except grpc.aio.AioRpcError as error:
        status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
        if status is None or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        status.details[0].Unpack(info)
        code = None if info.reason == "invalid_request_error" else info.reason
        raise RefusedError(code, info.metadata.get("param"), status.message) from error
    assert sum(answer.token_counts) == answer.usage.prompt_tokens
    rows = np.frombuffer(answer.vectors, dtype="<f4").reshape(len(inputs), answer.dimensions)
    return Embedded(rows, answer.usage.prompt_tokens)


@pytest.fixture
def transport() -> str:
    """Embed is a unary call outside the session, so one transport is enough."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(OWN, SHORT)


@pytest.fixture(params=[over_rest, over_grpc], ids=["rest", "grpc"])
def embed(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_dimensions_shorten_and_normalise_the_vectors(stack: Stack, embed: Any) -> None:
    full = (await embed(stack, "short", ["a", "b"])).vectors
    short = (await embed(stack, "short", ["a", "b"], dimensions=3)).vectors
    front = full[:, :3] / np.linalg.norm(full[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(short, front, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "dimensions", "code"),
    [
        ("own", 4, "unsupported_parameter"),
        ("own", 0, "integer_below_min_value"),
        ("short", 9, "invalid_value"),
    ],
)
async def test_unsupported_dimensions_are_refused(
    stack: Stack, embed: Any, model: str, dimensions: int, code: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        await embed(stack, model, ["a"], dimensions=dimensions)
    assert (refused.value.code, refused.value.param) == (code, "dimensions")


async def test_large_concurrent_responses_stay_whole_when_a_client_leaves(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(
        ModelConfig(
            id="wide", engine="scripted-embedding", engine_args={"dimensions": 1024}, max_running=8
        )
    )

    async def embed_rows(number: int, encoding: str) -> NDArray[np.float32]:
        inputs = [f"{number} {row}" for row in range(200)]
        body = {"model": "wide", "input": inputs, "encoding_format": encoding}
        async with stack.http.post("/v1/embeddings", json=body) as response:
            document = await response.read()
        assert response.status == 200
        assert response.headers["content-length"] == str(len(document))
        assert response.headers["content-type"] == "application/json"
        data = [row["embedding"] for row in json.loads(document)["data"]]
        if encoding == "float":
            return np.array(data, dtype=np.float32)
        return np.array([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in data])

    leaver = asyncio.create_task(embed_rows(9, "float"))
    calls = [
        embed_rows(number, encoding) for number in range(3) for encoding in ("float", "base64")
    ]
    running = asyncio.gather(*calls)
    await asyncio.sleep(0.05)
    leaver.cancel()
    answers = await running
    for number in range(3):
        np.testing.assert_array_equal(answers[2 * number], answers[2 * number + 1])
    assert len({answer.tobytes() for answer in answers}) == 3
    await embed_rows(10, "float")


async def test_rendering_a_large_response_yields_to_the_event_loop(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = ModelConfig(id="w", engine="scripted-embedding", engine_args={"dimensions": 1024})
    stack = await start_stack(wide)
    turn, turns = 0, []
    render = EmbeddingsResponse.document

    def recorded(self: EmbeddingsResponse) -> Iterator[bytes]:
        for piece in render(self):
            turns.append(turn)
            yield piece

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(EmbeddingsResponse, "document", recorded)
    counting = asyncio.create_task(count())
    async with stack.http.post("/v1/embeddings", json={"model": "w", "input": ["a"] * 200}) as got:
        assert len((await got.json())["data"]) == 200
    counting.cancel()
    assert len(set(turns)) == len(turns) > 10


@pytest.mark.parametrize("inputs", [[], [""], ["a", ""], [[]], [[1], []]], ids=str)
async def test_empty_inputs_are_refused(stack: Stack, embed: Any, inputs: Inputs) -> None:
    with pytest.raises(RefusedError):
        await embed(stack, "own", inputs)


@pytest.mark.parametrize(
    ("model", "inputs", "code", "param", "pattern"),
    [
        ("own", ["a"] * 2049, "array_above_max_length", "input", "2048"),
        ("own", [[1] * 2048] * 146 + [[1] * 993], None, "input", "300000"),
        ("own", ["w " * 3000] * 100 + ["w"], None, "input", "300000"),
        (
            "own",
            ["a", "w " * 4097],
            None,
            "input[1]",
            "length is 4096 tokens, however you requested 4097",
        ),
        ("narrow", ["w " * 7], None, None, "length is 6 tokens, however you requested 7 tokens"),
        ("narrow", [[1] * 7], None, None, "length is 6 tokens, however you requested 7 tokens"),
        ("own", [[1], [50_000]], "invalid_value", "input[1][0]", "50000"),
        ("openai", [[1], [15339, 100256]], "invalid_value", "input[1][1]", "100256"),
        ("texts", [[2], [1]], "unsupported_value", "input[0]", "text"),
        ("short", [[1], [2]], "unsupported_value", "input[0]", "text"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
async def test_refusal_names_parameter_and_limit(
    stack: Stack,
    embed: Any,
    model: str,
    inputs: Inputs,
    code: str | None,
    param: str | None,
    pattern: str,
) -> None:
    with pytest.raises(RefusedError, match=pattern) as refused:
        await embed(stack, model, inputs)
    assert (refused.value.code, refused.value.param) == (code, param)


async def test_largest_allowed_inputs_are_embedded(stack: Stack, embed: Any) -> None:
    texts = [f"text {number}" for number in range(2048)]
    embedded = await embed(stack, "own", texts)
    assert embedded.tokens == 2 * 2048
    for index in (0, 1, 1000, 2047):
        alone = await embed(stack, "own", [texts[index]])
        assert np.array_equal(embedded.vectors[index], alone.vectors[0])
    most = await embed(stack, "own", [[1] * 2048] * 146 + [[1] * 992])
    assert most.tokens == 300_000


async def test_vector_does_not_depend_on_the_other_inputs(stack: Stack, embed: Any) -> None:
    alone = (await embed(stack, "own", ["b b"])).vectors[0]
    among = (await embed(stack, "own", ["a", "b b", "c " * 100])).vectors[1]
    again = (await embed(stack, "own", ["b b", "b b"])).vectors
    assert np.array_equal(alone, among)
    assert np.array_equal(again, [alone, alone])


async def test_openai_token_ids_are_decoded_for_aliases_with_cl100k_inputs(
    stack: Stack, embed: Any
) -> None:
    text = await embed(stack, "openai", ["hello world, twice", "ünïcödé 日本"])
    tokens = [
        [15339, 1917, 11, 11157],
        [16461, 38672, 66, 3029, 67, 978, 76502, 22656],
    ]
    decoded = await embed(stack, "openai", tokens)
    assert np.array_equal(decoded.vectors, text.vectors)
    assert decoded.tokens == text.tokens == 5, (
        "the model's own tokens are counted, not the ids that were sent"
    )
    own = await embed(stack, "own", [tokens[0]])
    assert own.tokens == 4
    assert not np.array_equal(own.vectors[0], text.vectors[0])
    assert (await embed(stack, "short-own", [tokens[0]])).tokens == 4


async def test_base64_holds_the_little_endian_float32_bytes(stack: Stack) -> None:
    async def rows(encoding: str) -> list[Any]:
        body = {"model": "own", "input": ["a", "b"], "encoding_format": encoding}
        async with stack.http.post("/v1/embeddings", json=body) as response:
            return [row["embedding"] for row in (await response.json())["data"]]

    numbers, packed = await rows("float"), await rows("base64")
    assert [base64.b64decode(row, validate=True) for row in packed] == [
        np.array(row, dtype="<f4").tobytes() for row in numbers
    ]


async def test_chat_to_embed_is_told_what_is_wanted(stack: Stack) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for body, param in (
        ({"messages": messages}, "messages"),
        ({"messages": messages, "input": "Hello"}, "messages"),
        ({"messages": []}, "input"),
        ({}, "input"),
    ):
        async with stack.http.post("/v1/embeddings", json={"model": "w", **body}) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, param)
    async with stack.http.post("/v1/embeddings", json={"messages": messages}) as response:
        message = (await response.json())["error"]["message"]
    assert "'input'" in message
    assert "/v1/chat/completions" in message
