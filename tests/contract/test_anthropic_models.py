"""GET /v1/models for Anthropic's clients, which send `anthropic-version` and read other members."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from openai import AsyncOpenAI
from openai import DefaultAsyncHttpxClient as DefaultOpenAIClient

from inference.config import AliasConfig, ModelConfig
from tests.conftest import NO_CERTIFICATES, Stack, StartStack

VERSION = {"anthropic-version": "2023-06-01"}
MODELS = (
    ModelConfig(
        id="org/writer",
        engine="scripted",
        engine_args={"context_length": 4096},
        aliases=(AliasConfig(name="claude-2", context_length=12),),
    ),
    ModelConfig(id="vectors", engine="scripted-embedding"),
    ModelConfig(id="painter", engine="scripted-image"),
)


@pytest.fixture
def transport() -> str:
    """These requests end in the edge, so one transport is enough."""
    return "session"


@pytest.fixture
async def models_stack(start_stack: StartStack) -> Stack:
    return await start_stack(*MODELS)


@pytest.fixture
async def client(models_stack: Stack) -> AsyncIterator[AsyncAnthropic]:
    """The SDK, which raises an error for a response that is not of its types."""
    async with AsyncAnthropic(
        base_url=models_stack.url,
        api_key="none",
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=NO_CERTIFICATES),
        _strict_response_validation=True,
    ) as made:
        yield made


async def document(stack: Stack, path: str, **headers: str) -> tuple[int, Any]:
    async with stack.http.get(path, headers=headers) as response:
        return response.status, await response.json()


async def test_sdk_lists_the_names_that_messages_take(client: AsyncAnthropic) -> None:
    page = await client.models.list(limit=1)
    assert (page.has_more, page.first_id, page.last_id) == (False, "org/writer", "claude-2")
    listed = {model.id: model async for model in client.models.list(limit=1)}
    assert [*listed] == ["org/writer", "claude-2"]
    for name, context in {"org/writer": 4096, "claude-2": 12}.items():
        model = listed[name]
        assert (model.type, model.display_name, model.lifecycle) == ("model", name, "active")
        assert (model.max_input_tokens, model.max_tokens) == (context, context)
        assert model.capabilities is None
        assert model.created_at <= datetime.now(UTC)
        assert await client.models.retrieve(name) == model


async def test_names_of_other_models_are_not_found(client: AsyncAnthropic) -> None:
    for name in ("nope", "vectors", "painter"):
        with pytest.raises(anthropic.NotFoundError) as raised:
            await client.models.retrieve(name)
        body: Any = raised.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
        assert name in body["error"]["message"]
        assert raised.value.request_id == body["request_id"]


async def test_members_are_those_of_one_form_only(models_stack: Stack) -> None:
    status, page = await document(models_stack, "/v1/models", **VERSION)
    assert status == 200
    assert [*page] == ["data", "has_more", "first_id", "last_id"]
    status, model = await document(models_stack, "/v1/models/claude-2", **VERSION)
    assert status == 200
    assert page["data"][1] == model
    assert "object" not in model
    assert model["created_at"].endswith("Z")
    _, listed = await document(models_stack, "/v1/models")
    assert [*listed] == ["object", "data"]
    _, plain = await document(models_stack, "/v1/models/claude-2")
    assert [*plain] == [
        "id", "object", "created", "owned_by", "root", "max_model_len", "capabilities",
    ]  # fmt: skip
    assert datetime.fromisoformat(model["created_at"]).timestamp() == plain["created"]


async def test_openai_sdk_lists_all_names(models_stack: Stack) -> None:
    async with AsyncOpenAI(
        base_url=f"{models_stack.url}/v1",
        api_key="none",
        http_client=DefaultOpenAIClient(verify=NO_CERTIFICATES),
    ) as client:
        listed = [model.id async for model in client.models.list()]
    assert listed == ["org/writer", "claude-2", "vectors", "painter"]


async def test_stack_without_a_chat_model_has_an_empty_page(start_stack: StartStack) -> None:
    stack = await start_stack(MODELS[1])
    status, page = await document(stack, "/v1/models", **VERSION)
    assert (status, page) == (
        200, {"data": [], "has_more": False, "first_id": None, "last_id": None},
    )  # fmt: skip


async def test_wrong_path_and_method_have_the_form_that_the_header_asks_for(
    models_stack: Stack,
) -> None:
    for headers, members in ((VERSION, ["type", "error", "request_id"]), ({}, ["error"])):
        async with models_stack.http.post("/v1/models", headers=headers) as response:
            assert response.status == 405
            assert [*await response.json()] == members
            assert ("request-id" in response.headers) == bool(headers)
        status, failure = await document(models_stack, "/v1/modelsx", **headers)
        assert (status, [*failure]) == (404, ["error"])
