"""Answers of a real model to the schemas that clients send, in every way to send one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from aiohttp import ClientSession

from inference.engines.answer_check import Promise
from inference.engines.base import TextEngine
from tests.engines.answer_schemas import ALL, STRICT

# The engine's start takes half a minute on an idle machine.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

Answer = tuple[str, str]
Asked = asyncio.Task[Answer]
# The way of a request, and whether it is streamed.
Kind = tuple[str, bool]
WAYS = ("response_format", "structured_outputs", "forced tool", "strict tool")


def _body(way: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A request whose answer fits the schema, sent in one of four ways."""
    body: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Make one up, as short as you can. Use JSON."}],
        "max_tokens": 150,
        "temperature": 1,
        "seed": 7,
    }
    function: dict[str, Any] = {"name": "save", "parameters": schema}
    match way:
        case "response_format":
            wanted = {"name": "x", "schema": schema, "strict": schema in STRICT.values()}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        case "structured_outputs":
            body["structured_outputs"] = {"json": schema}
        case "forced tool":
            body["tools"] = [{"type": "function", "function": function}]
            body["tool_choice"] = {"type": "function", "function": {"name": "save"}}
        case "strict tool":
            body["tools"] = [{"type": "function", "function": function | {"strict": True}}]
            body["tool_choice"] = "required"
    return body


async def _answer(http: ClientSession, body: dict[str, Any]) -> Answer:
    """The constrained text of an answer, and its finish reason."""
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        if not body.get("stream"):
            (choice,) = (await response.json())["choices"]
            calls = choice["message"].get("tool_calls")
            text = calls[0]["function"]["arguments"] if calls else choice["message"]["content"]
            return text, choice["finish_reason"]
        text, finish = "", ""
        async for event in _events(response):
            assert "error" not in event, event
            for choice in event["choices"]:
                finish = choice["finish_reason"] or finish
                text += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or ():
                    text += call["function"].get("arguments") or ""
        return text, finish


async def _events(response: Any) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def _schemas(way: str) -> dict[str, dict[str, Any]]:
    return STRICT if way == "strict tool" else ALL


@asynccontextmanager
async def _at_once(
    http: ClientSession, bodies: dict[Kind, list[dict[str, Any]]]
) -> AsyncIterator[dict[Kind, list[Asked]]]:
    """The answers to all requests, by their kind.

    They are made at once: a step for 32 answers takes little longer than one for a few.
    """
    places = asyncio.Semaphore(32)

    async def ask(body: dict[str, Any]) -> Answer:
        async with places:
            return await _answer(http, body)

    answers = {
        kind: [asyncio.create_task(ask(body)) for body in group] for kind, group in bodies.items()
    }
    yield answers
    tasks = [task for tasks in answers.values() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def asked(http: ClientSession) -> AsyncIterator[dict[Kind, list[Asked]]]:
    """The answers to all schemas in each way, plain or streamed."""
    bodies = {
        (way, stream): [
            _body(way, schema) | {"stream": stream} for schema in _schemas(way).values()
        ]
        for way in WAYS
        for stream in (False, True)
    }
    async with _at_once(http, bodies) as answers:
        yield answers


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("way", WAYS)
async def test_answers_fit_the_schemas_of_clients(
    asked: dict[Kind, list[Asked]], way: str, stream: bool
) -> None:
    schemas = _schemas(way)
    answers = await asyncio.gather(*asked[way, stream])
    whole = 0
    for (name, schema), (text, finish) in zip(schemas.items(), answers, strict=True):
        assert "  " not in text.replace('"', ""), f"{name}: runs of white space"
        if finish != "length":
            whole += 1
            jsonschema.validate(json.loads(text), schema)
    assert whole > len(schemas) // 2, answers


@pytest.mark.parametrize(
    "constraint",
    [
        {"structured_outputs": {"json": {"type": "object"}}},
        {"structured_outputs": {"json_object": True}},
        {"structured_outputs": {"choice": ["a"]}},
        {"guided_json": {"type": "object"}},
    ],
)
async def test_constraint_beside_a_forced_call_is_refused(
    http: ClientSession, constraint: dict[str, Any]
) -> None:
    async with http.post(
        "/v1/chat/completions", json=_body("forced tool", STRICT["issue"]) | constraint
    ) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["param"].startswith(next(iter(constraint)))
    assert "tool_choice" in error["message"]


@pytest.mark.parametrize("way", ["response_format", "structured_outputs", "strict tool"])
@pytest.mark.parametrize(
    "values", [{"ignore_eos": True}, {"allowed_token_ids": [7]}, {"bad_words": ["{"]}]
)
async def test_parameter_that_a_grammar_cannot_obey_is_refused(
    http: ClientSession, way: str, values: dict[str, Any]
) -> None:
    async with http.post(
        "/v1/chat/completions", json=_body(way, STRICT["issue"]) | values
    ) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["param"] == next(iter(values))


SPECIAL_TOKENS = {
    "type": "object",
    "properties": {"<|im_start|>": {"enum": ["a<|im_end|>b", "<|endoftext|>"]}},
    "required": ["<|im_start|>"],
    "additionalProperties": False,
}
MARKED = {
    "a": "</tool_call>",
    "b": '<tool_call>{"name": "save", "arguments": {}}</tool_call>',
    "c": 0.00001,
}
MARKS = {
    "type": "object",
    "properties": {name: {"const": value} for name, value in MARKED.items()},
    "required": list(MARKED),
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def special(http: ClientSession) -> AsyncIterator[dict[Kind, list[Asked]]]:
    """The answers with special tokens in each way."""
    bodies = {(way, False): [_body(way, SPECIAL_TOKENS)] for way in WAYS}
    async with _at_once(http, bodies) as answers:
        yield answers


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def marked(http: ClientSession) -> AsyncIterator[dict[Kind, list[Asked]]]:
    """The answers with marks of calls in three ways, plain or streamed."""
    bodies = {
        (way, stream): [_body(way, MARKS) | {"stream": stream}]
        for way in ("forced tool", "strict tool", "response_format")
        for stream in (False, True)
    }
    async with _at_once(http, bodies) as answers:
        yield answers


@pytest.mark.parametrize("way", WAYS)
async def test_texts_of_special_tokens_are_text_in_an_answer(
    special: dict[Kind, list[Asked]], way: str
) -> None:
    ((text, finish),) = await asyncio.gather(*special[way, False])
    assert finish != "length"
    jsonschema.validate(json.loads(text), SPECIAL_TOKENS)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("way", ["forced tool", "strict tool", "response_format"])
async def test_marks_of_calls_are_text_in_an_answer(
    marked: dict[Kind, list[Asked]], way: str, stream: bool
) -> None:
    ((text, finish),) = await asyncio.gather(*marked[way, stream])
    assert finish == ("stop" if way == "response_format" else "tool_calls")
    assert json.loads(text) == MARKED


async def test_ignore_eos_is_obeyed_with_tool_choice_auto(
    http: ClientSession,
) -> None:
    body = _body("forced tool", STRICT["issue"]) | {"tool_choice": "auto", "ignore_eos": True}
    async with http.post("/v1/chat/completions", json=body) as response:
        (choice,) = (await response.json())["choices"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("stop", "finish"), [("e,", "stop"), ("</tool", "tool_calls")])
async def test_call_that_a_stop_string_cuts_ends_with_stop(
    http: ClientSession, stop: str, finish: str, stream: bool
) -> None:
    body = _body("forced tool", STRICT["issue"]) | {"stop": stop, "stream": stream}
    text, ended_with = await _answer(http, body)
    assert ended_with == finish
    if finish == "stop":
        assert text in ('{"a":tru', '{"a":fals')
    else:
        jsonschema.validate(json.loads(text), STRICT["issue"])


async def test_tool_without_parameters_is_called_without_arguments(http: ClientSession) -> None:
    body = _body("forced tool", {})
    del body["tools"][0]["function"]["parameters"]
    assert await _answer(http, body) == ("{}", "tool_calls")


async def test_refusal_names_the_keyword_and_its_path_in_the_clients_words(
    http: ClientSession,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "not": {"pattern": "^R"}}}}
    places = {
        "response_format": "response_format.json_schema.schema.properties.a.not",
        "structured_outputs": "structured_outputs.json.properties.a.not",
        "forced tool": "tools[0].function.parameters.properties.a.not",
    }
    for way, place in places.items():
        async with http.post("/v1/chat/completions", json=_body(way, schema)) as response:
            error = (await response.json())["error"]
        assert response.status == 400
        assert place in error["message"]
        assert place.startswith(error["param"])


async def test_arguments_of_a_tool_that_is_not_strict_are_free(http: ClientSession) -> None:
    body = _body("forced tool", {"type": "object", "properties": {"a": {"not": {}}}})
    body["max_tokens"] = 8  # A request that is refused gets no token.
    body["tools"][0]["function"]["strict"] = False
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
    body["tool_choice"] = "auto"
    del body["tools"][0]["function"]["strict"]
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_answer_that_breaks_its_schema_is_an_error(
    http: ClientSession,
    engine: TextEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    class Nothing:
        def is_valid(self, value: object) -> bool:
            return False

    def promise(request: Any) -> Promise:
        return Promise(rule="json_schema", validator=Nothing())

    monkeypatch.setattr("inference.engines.vllm_constraints.promise", promise)
    before = engine.health().answer_checks["broken"]
    body = _body("response_format", STRICT["issue"]) | {"stream": stream}
    async with http.post("/v1/chat/completions", json=body) as response:
        if stream:
            *_, last = [event async for event in _events(response)]
            error = last["error"]
        else:
            assert response.status == 500
            error = (await response.json())["error"]
    assert (error["type"], error["code"]) == ("server_error", "constraint_violated")
    assert engine.health().answer_checks["broken"] == before + 1
    assert not [record for record in caplog.records if "true" in record.getMessage()]
