"""Responses that the edge keeps: previous_response_id, references to items, GET and DELETE."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ENGINES, ModelConfig
from keys import ConfigError, create_key
from tests.clients.good_model import ANSWER
from tests.conftest import Stack, StartStack
from tests.contract.test_responses import PATH, WEATHER, events, plain

KEPT = 1 << 20
WISH = "Use get_weather with city = Rome."


@pytest.fixture
def transport() -> str:
    return "session"


@pytest.fixture
async def keeping(start_stack: StartStack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setitem(ENGINES, "scripted-good", ("tests.clients.good_model", "GoodModel"))
    model = ModelConfig(id="good", engine="scripted-good")
    return await start_stack(model, responses_bytes=KEPT)


async def ask(stack: Stack, path: str, method: str = "GET", **query: Any) -> tuple[int, Any]:
    async with stack.http.request(method, f"{PATH}/{path}", params=query) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_response_is_kept_read_and_deleted(keeping: Stack, stream: bool) -> None:
    create = keeping.openai.responses
    if stream:
        made = (await events(keeping, input="Hello", store=True))[-1]["response"]
    else:
        made = await plain(keeping, input="Hello", store=True)
    assert made["store"] is True
    assert await ask(keeping, made["id"]) == (200, made)
    assert (await create.retrieve(made["id"])).output_text == ANSWER
    assert await ask(keeping, made["id"], "DELETE") == (
        200, {"id": made["id"], "object": "response", "deleted": True},
    )  # fmt: skip
    status, body = await ask(keeping, made["id"])
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    assert (await ask(keeping, made["id"], "DELETE"))[0] == 404


async def test_only_responses_that_ask_for_it_are_kept(keeping: Stack) -> None:
    for body in ({}, {"store": False}, {"store": None}):
        made = await plain(keeping, input="Hello", **body)
        assert made["store"] is False
        assert (await ask(keeping, made["id"]))[0] == 404


async def test_failed_response_is_not_kept(start_stack: StartStack) -> None:
    stack = await start_stack(responses_bytes=KEPT)
    failed = (await events(stack, input='{"fail": "mid"}', store=True))[-1]["response"]
    assert failed["status"] == "failed"
    assert (await ask(stack, failed["id"]))[0] == 404


async def test_conversation_goes_on_from_the_response_before(keeping: Stack) -> None:
    create = keeping.openai.responses.create
    first: Any = await create(model="good", input=WISH, tools=[WEATHER], store=True)
    (call,) = first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = await create(
        model="good", input=[output], previous_response_id=first.id, store=True, tools=[WEATHER]
    )
    assert second.output_text == "The tools returned: sunny"
    assert second.previous_response_id == first.id
    # The prompt of the third has the words of all turns.
    third = await create(model="good", input="And now?", previous_response_id=second.id)
    assert second.usage is not None
    assert third.usage is not None
    assert third.usage.input_tokens == second.usage.input_tokens + 4 + 2
    await keeping.openai.responses.delete(first.id)
    again = await create(model="good", input="And now?", previous_response_id=second.id)
    assert again.usage == third.usage


async def test_instructions_are_not_carried_over(keeping: Stack) -> None:
    first = await plain(keeping, input="Hello", instructions="one two three", store=True)
    again = await plain(keeping, input="Hello", previous_response_id=first["id"])
    assert first["usage"]["input_tokens"] == 4
    assert again["usage"]["input_tokens"] == 1 + 6 + 1
    assert again["instructions"] is None


async def test_item_reference_stands_for_the_item(keeping: Stack) -> None:
    first = await plain(keeping, input="Hello", store=True)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    for item in (reference, {"id": reference["id"]}):
        again = await plain(keeping, input=[item, {"role": "user", "content": "And?"}])
        assert again["usage"]["input_tokens"] == 6 + 1
    unknown = {"type": "item_reference", "id": "msg_none"}
    async with keeping.http.post(PATH, json={"model": "good", "input": [unknown]}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (404, "input[0].id")


async def test_what_a_request_refers_to_is_bounded_as_its_body_is(start_stack: StartStack) -> None:
    stack = await start_stack(responses_bytes=KEPT, max_body_bytes=100_000)
    kept = await plain(stack, input="x" * 60_000, store=True, max_output_tokens=1)
    item = {"type": "item_reference", "id": kept["id"].replace("resp_", "in_") + "_0"}
    assert (await plain(stack, input=[item], max_output_tokens=1))["status"] == "incomplete"
    for path in (PATH, f"{PATH}/input_tokens"):
        for body, param in (
            ({"input": [item] * 2}, "input"),
            ({"input": [item], "previous_response_id": kept["id"]}, "input"),
        ):
            async with stack.http.post(path, json={"model": "scripted", **body}) as response:
                assert response.status == 413
                error = (await response.json())["error"]
            assert (error["param"], error["code"]) == (param, "request_too_large")
            assert error["message"] == f"What '{param}' refers to is too large. " + (
                "The maximum is 100000 bytes."
            )
    assert stack.edge.memory.used == KEPT


async def test_what_a_request_refers_to_counts_in_the_memory_budget(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(
        responses_bytes=KEPT, max_body_bytes=400_000, memory_budget_bytes=2 * KEPT
    )
    kept = await plain(stack, input="x" * 350_000, store=True, max_output_tokens=1)
    with pytest.raises(openai.InternalServerError) as caught:
        await stack.openai.with_options(max_retries=0).responses.create(
            model="scripted",
            input="x" * 200_000,
            previous_response_id=kept["id"],
        )
    assert caught.value.status_code == 503
    assert stack.edge.memory.used == KEPT


async def test_item_of_a_deleted_response_is_kept_with_those_that_continue_it(
    keeping: Stack,
) -> None:
    first = await plain(keeping, input="Hello", store=True)
    second = await plain(keeping, input="And?", previous_response_id=first["id"], store=True)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    await ask(keeping, first["id"], "DELETE")
    assert (await plain(keeping, input=[reference]))["usage"]["input_tokens"] == 6
    await ask(keeping, second["id"], "DELETE")
    async with keeping.http.post(PATH, json={"model": "good", "input": [reference]}) as response:
        assert response.status == 404


async def test_item_is_found_after_a_response_that_continued_its_own_is_deleted(
    keeping: Stack,
) -> None:
    first = await plain(keeping, input="Hello", store=True)
    second = await plain(keeping, input="And?", previous_response_id=first["id"], store=True)
    await ask(keeping, second["id"], "DELETE")
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    assert (await plain(keeping, input=[reference]))["usage"]["input_tokens"] == 6


async def test_fault_of_a_new_item_names_its_own_place(keeping: Stack) -> None:
    first = await plain(keeping, input="Hello", store=True)
    items = [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]
    body = {"model": "good", "input": items, "previous_response_id": first["id"]}
    async with keeping.http.post(PATH, json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "input[1].content")


async def test_unknown_response_before_is_400(keeping: Stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await keeping.openai.responses.create(
            model="good", input="x", previous_response_id="resp_none"
        )
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


async def test_fault_of_an_earlier_item_names_the_response_before(keeping: Stack) -> None:
    first = await plain(keeping, input=WISH, tools=[WEATHER], store=True)
    body = {"model": "good", "input": "x", "previous_response_id": first["id"]}
    async with keeping.http.post(PATH, json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "previous_response_id.call_id")
    assert "No tool output found" in error["message"]


async def test_input_items_are_listed_in_pages(keeping: Stack) -> None:
    said = [{"role": "user", "content": f"{number}"} for number in range(5)]
    made = await plain(keeping, input=said, store=True)
    path = f"{made['id']}/input_items"
    listed = [
        item async for item in await keeping.openai.responses.input_items.list(made["id"], limit=2)
    ]
    assert [getattr(item, "content", None) for item in listed] == ["4", "3", "2", "1", "0"]
    assert len({item.id for item in listed}) == 5
    status, page = await ask(keeping, path, order="asc", limit="3")
    assert status == 200
    assert [item["content"] for item in page["data"]] == ["0", "1", "2"]
    assert page["has_more"] is True
    status, rest = await ask(keeping, path, order="asc", after=page["last_id"])
    assert [item["content"] for item in rest["data"]] == ["3", "4"]
    assert rest["has_more"] is False
    for query in (
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "x"},
        {"order": "up"},
        {"after": "x"},
    ):
        status, body = await ask(keeping, path, **query)
        assert (status, body["error"]["param"]) == (400, next(iter(query)))
    assert (await ask(keeping, made["id"], stream="true"))[1]["error"]["param"] == "stream"
    assert (await ask(keeping, "none/input_items"))[0] == 404


async def test_text_input_is_one_item(keeping: Stack) -> None:
    made = await plain(keeping, input="Hello", store=True)
    _, page = await ask(keeping, f"{made['id']}/input_items")
    (item,) = page["data"]
    assert item["content"] == [{"type": "input_text", "text": "Hello"}]
    assert (item["role"], item["id"]) == ("user", page["first_id"])


async def test_oldest_responses_make_room(start_stack: StartStack) -> None:
    stack = await start_stack(responses_bytes=100_000)
    kept: dict[str, Any] = {"store": True, "max_output_tokens": 1}
    made = [await plain(stack, input="x" * 20_000, **kept) for _ in range(6)]
    found = [(await ask(stack, response["id"]))[0] for response in made]
    assert found[0] == 404
    assert found[-1] == 200
    assert found == sorted(found, reverse=True)
    # One that is larger than the store leaves the others alone.
    huge = await plain(stack, input="x" * 200_000, **kept)
    assert (await ask(stack, huge["id"]))[0] == 404
    assert (await ask(stack, made[-1]["id"]))[0] == 200


async def test_responses_expire(start_stack: StartStack) -> None:
    stack = await start_stack(responses_bytes=KEPT, responses_seconds=0.2)
    made = await plain(stack, input="hi", store=True, max_output_tokens=1)
    assert (await ask(stack, made["id"]))[0] == 200
    await asyncio.sleep(0.25)
    assert (await ask(stack, made["id"]))[0] == 404


async def test_responses_belong_to_their_key(start_stack: StartStack, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    (_, ann), (_, bob) = create_key(keys, "ann"), create_key(keys, "bob")
    stack = await start_stack(keys=keys, responses_bytes=KEPT)

    async def send(key: str, method: str, path: str, **body: Any) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key}"}
        sent = {"model": "scripted", **body} if body else None
        async with stack.http.request(method, path, json=sent, headers=headers) as response:
            return response.status, await response.json()

    status, made = await send(ann, "POST", PATH, input="hi", store=True)
    assert status == 200
    place = f"{PATH}/{made['id']}"
    assert (await send(ann, "GET", place))[0] == 200
    for method in ("GET", "DELETE"):
        assert (await send(bob, method, place))[0] == 404
        assert (await send("wrong", method, place))[0] == 401
    body = {"input": "x", "previous_response_id": made["id"]}
    assert (await send(bob, "POST", PATH, **body))[0] == 400
    assert (await send(ann, "POST", PATH, **body))[0] == 200
    reference = {"type": "item_reference", "id": made["output"][0]["id"]}
    assert (await send(bob, "POST", PATH, input=[reference]))[0] == 404


async def test_nothing_is_kept_by_default(stack: Stack) -> None:
    made = await plain(stack, input="hi", store=True, max_output_tokens=1)
    assert made["store"] is False
    assert (await ask(stack, made["id"]))[0] == 404
    assert (await ask(stack, made["id"], "DELETE"))[0] == 404
    body = {"model": "scripted", "input": "x", "previous_response_id": made["id"]}
    async with stack.http.post(PATH, json=body) as response:
        error = json.loads(await response.read())["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "previous_response_id")
    assert stack.edge.memory.used == 0


async def test_store_is_a_part_of_the_memory_budget(start_stack: StartStack) -> None:
    stack = await start_stack(responses_bytes=KEPT)
    assert stack.edge.memory.used == KEPT
    config = EdgeConfig(
        port=0, responses_bytes=64 * KEPT, memory_budget_bytes=100 * KEPT, max_body_bytes=KEPT
    )
    with pytest.raises(ConfigError, match=r"^responses_bytes: more than half"):
        async with serving(config):
            pass


def test_edges_that_share_a_port_keep_no_responses() -> None:
    with pytest.raises(ConfigError, match=r"^responses_bytes: edges that share a port"):
        EdgeConfig(responses_bytes=KEPT, reuse_port=True)
