"""/openapi.json describes every route, request and response of the running edge."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from yarl import URL

from edge.app import build_app, serving
from edge.config import EdgeConfig
from edge.openapi.document import openapi_document
from keys import create_key
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually, running_server

DOCUMENT = json.loads(openapi_document(version="0", ignore_unknown=False, keyed=True))
# The models of the test stack, by request schema; any other model is a 404.
SERVED: dict[str, list[str | None]] = {
    "ChatRequest": ["scripted"],
    "ResponsesRequest": ["scripted"],
    "CompletionRequest": ["scripted"],
    "EmbeddingsRequest": ["scripted-embedding", None],
    "ImageRequest": ["scripted-image", None],
    "MessagesRequest": ["scripted"],
    "CountTokensRequest": ["scripted"],
    "TokenizationRequest": ["scripted", None],
    "DetokenizationRequest": ["scripted", None],
}
SHORTENABLE = msgspec.structs.replace(EMBEDDING, engine_args={"shortenable": True})
FLAT_TOOL = {"type": "function", "name": "find", "parameters": {"type": "object"}}
CUSTOM_TOOL = {"type": "custom", "name": "patch"}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


class LiveEdge:
    """A scripted stack that requires a key, in its own thread, for blocking clients."""

    def __init__(self, keys: Path) -> None:
        _, self.key = create_key(keys, "fuzzer")
        self.url = ""
        self._keys = keys
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with running_server(TEXT, SHORTENABLE, IMAGE) as server:
            config = EdgeConfig(
                port=0,
                upstreams=(f"127.0.0.1:{server.port}",),
                keys_file=self._keys,
                settle_seconds=0.0,
            )
            async with serving(config) as (edge, port):
                await eventually(edge.router.ready)
                self.url = f"http://127.0.0.1:{port}"
                self._ready.set()
                await self._end.wait()

    def __enter__(self) -> LiveEdge:
        self._thread.start()
        if not self._ready.wait(30):
            raise TimeoutError("the stack does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEdge]:
    with LiveEdge(tmp_path_factory.mktemp("keys") / "keys.json") as edge:
        yield edge


# Messages of 400s to requests that fit the schema: rules that JSON Schema cannot express or that
# depend on the model or the configuration. The parameter's description states each of them.
BEYOND_THE_SCHEMA = re.compile(
    "|".join(
        (
            # JSON Schema accepts 1.0 as an integer; the edge does not.
            r"expected (an|one of a string or) integer.*, but got a decimal instead",
            # One parameter requires or excludes another.
            r"is only allowed when '(stream|logprobs|tools|functions)' (is enabled|are specified)",
            r"is only allowed when 'output_format' is|can only be 'b64_json' when 'stream'",
            r"'steps' and 'num_inference_steps' parameters cannot both be given",
            r"'prompt_logprobs' parameter is not allowed|'max_completion_tokens' at the same time",
            r"send either 'prompt' or 'messages'|'prompt' and 'messages' cannot be given",
            r"is only allowed with 'messages'|can only be true with a text",
            r"'add_generation_prompt' and 'continue_final_message' cannot both be true",
            r"Only one constraint of the output can be given",
            r"'structured_outputs': expected one of its rules",
            r"best_of must be at least n|'best_of' is greater than 'n'",
            r"is not one of '(tools|functions)'",
            r"'(messages|input)' must contain the word 'json'",
            # Calls and outputs belong together; names of tools are unique; the choice is of tools.
            r"No tool (call|output) found for function call",
            r"another tool has the name|none of these tools can be called here",
            r"Invalid 'input\[\d+\].content': empty array|that the model can see",
            r"'previous_response_id' is not supported|items are not stored",
            # Only messages of the user and outputs have images, and names of namespaces add up.
            r"pictures are taken in messages of the user|string too long",
            # One message requires another.
            r"messages with role 'tool' must be a response",
            r"must be followed by tool messages responding|messages\[\d+\].tool_call_id",
            r"expected a string, got null",
            # JSON, JSON Schemas and base64 inside strings.
            r"'messages'.*(begins like JSON|expected an array of objects)",
            r"not a JSON object that can be used|Invalid schema for|Invalid type for '\w+_?json'",
            r"Expected a base64-encoded data URL",
            # Limits of the model (vocabulary, context, features) or of the configuration.
            r"not in the vocabulary|Invalid key in 'logit_bias'",
            r"maximum context length",
            r"'min_tokens': integer above|'max_tokens': integer below|Must be between 1 and 8",
            r"'suffix' is not supported with this model",
            r"(regex|grammar)' is not supported with this model",
            r"Invalid size \d+x\d+: both sides must be",
            # Messages: tools of Anthropic's, and blocks that belong together.
            r"tools are not supported|'tools\[\d+\].(name|input_schema)'",
            r"must have a 'tool_result' block|has no 'tool_use' block",
            r"must be greater than 'thinking.budget_tokens'|this model takes text only",
            r"'tool_choice' is only allowed when|base64|no turn has content",
        )
    )
)


def served(*left_out: str) -> Any:
    """The document with served models only and without the chat parameters in `left_out`."""
    document = json.loads(json.dumps(DOCUMENT))
    schemas = document["components"]["schemas"]
    for name, models in SERVED.items():
        schemas[name]["properties"]["model"] = {"enum": models}
    for parameter in left_out:
        del schemas["ChatRequest"]["properties"][parameter]
    return document


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for path, item in DOCUMENT["paths"].items() for method in item],
)
def test_fuzzed_requests_get_documented_responses(live: LiveEdge, method: str, path: str) -> None:
    from tests.contract.document_fuzzer import check_responses

    document = served("functions", "function_call")
    check_responses(document, method, path, live.url, live.key, BEYOND_THE_SCHEMA.search)


def test_fuzzed_chats_with_functions_get_documented_responses(live: LiveEdge) -> None:
    """`functions` is the older form of `tools` and excludes it."""
    from tests.contract.document_fuzzer import RANDOM_ONLY, check_responses

    document, path = served("tools", "tool_choice", "parallel_tool_calls"), "/v1/chat/completions"
    check = BEYOND_THE_SCHEMA.search
    check_responses(document, "post", path, live.url, live.key, check, RANDOM_ONLY)


async def test_document_is_valid_and_served_without_a_key(
    start_stack: StartStack, tmp_path: Path
) -> None:
    create_key(tmp_path / "keys.json", "someone")
    stack = await start_stack(keys=tmp_path / "keys.json", key="none")
    async with stack.http.get("/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        served = await response.json()
        etag = response.headers["etag"]
    validate(served)
    served["info"]["version"] = DOCUMENT["info"]["version"]
    assert served == DOCUMENT
    async with stack.http.get("/openapi.json", headers={"if-none-match": etag}) as response:
        assert response.status == 304
        assert response.headers["etag"] == etag
        assert await response.read() == b""


async def test_document_describes_every_route(stack: Stack) -> None:
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in build_app(stack.edge).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == routes


async def test_document_reflects_the_configuration(start_stack: StartStack) -> None:
    stack = await start_stack(unknown_members="ignore")
    async with stack.http.get("/openapi.json") as response:
        open_document = await response.json()
    chat = open_document["components"]["schemas"]["ChatRequest"]
    assert "additionalProperties" not in chat
    assert {} in open_document["security"]
    assert DOCUMENT["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
    assert DOCUMENT["security"] == [{"bearer": []}, {"apiKey": []}]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {
            "n": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "service_tier": "auto",
            "metadata": {"a": "b"},
        },
        {"prompt_logprobs": 1, "stream": False},
        {"tools": TOOLS, "tool_choice": "required"},
        {"functions": [TOOLS[0]["function"]], "function_call": {"name": "find"}},
    ],
    ids=["plain", "many-options", "prompt-logprobs", "tools", "functions"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_chat_responses_match_the_document(
    stack: Stack, body: dict[str, Any], stream: bool
) -> None:
    if stream and "prompt_logprobs" in body:
        body = {"stop": "w3"}
    await check_response(
        stack,
        "/v1/chat/completions",
        {"model": "scripted", "messages": "hi", "max_tokens": 4, **body},
        stream=stream,
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_completion_responses_match_the_document(stack: Stack, stream: bool) -> None:
    body = {"model": "scripted", "prompt": ["a b", "c"], "n": 2, "logprobs": 2, "echo": True}
    await check_response(stack, "/v1/completions", body, stream=stream)


RESPONSES: list[dict[str, Any]] = [
    {},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
    {
        "instructions": "x",
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "user": "u",
    },
    {"tools": [FLAT_TOOL, CUSTOM_TOOL], "tool_choice": {"type": "function", "name": "find"}},
    {"tools": [FLAT_TOOL, CUSTOM_TOOL], "tool_choice": {"type": "custom", "name": "patch"}},
]


@pytest.mark.parametrize("body", RESPONSES, ids=lambda body: "-".join(body) or "plain")
async def test_response_objects_match_the_document(stack: Stack, body: dict[str, Any]) -> None:
    asked = {"model": "scripted", "input": "hi", "max_output_tokens": 4, **body}
    await check_response(stack, "/v1/responses", asked, stream=False)


@pytest.mark.parametrize("body", RESPONSES, ids=lambda body: "-".join(body) or "plain")
async def test_events_of_responses_match_the_document(stack: Stack, body: dict[str, Any]) -> None:
    asked = {"model": "scripted", "input": "hi", "stream": True, **body}
    async with stack.http.post("/v1/responses", json=asked) as response:
        text = await response.text()
        assert response.status == 200, text
    check_response_events(text)


async def test_events_of_a_failed_response_match_the_document(stack: Stack) -> None:
    body = {"model": "scripted", "input": '{"fail": "mid"}', "stream": True}
    async with stack.http.post("/v1/responses", json=body) as response:
        text = await response.text()
    check_response_events(text)
    assert "event: response.failed\n" in text


def check_response_events(text: str) -> None:
    described = DOCUMENT["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    schema = described["text/event-stream"]["schema"]["properties"]
    *events, last, _ = text.split("\n\n")
    assert last == "data: [DONE]"
    data_schema = closed(schema["data"]["anyOf"][1]["contentSchema"])
    for event in events:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") in schema["event"]["enum"]
        data_schema.validate(json.loads(data.removeprefix("data: ")))


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embedding_responses_match_the_document(stack: Stack, encoding: str) -> None:
    body = {"input": ["a", "b"], "encoding_format": encoding}
    await check_response(stack, "/v1/embeddings", body, stream=False)


@pytest.mark.parametrize("response_format", ["b64_json", "url"])
async def test_image_responses_match_the_document(
    start_stack: StartStack, response_format: str
) -> None:
    stack = await start_stack(IMAGE)
    body = {"prompt": "x", "n": 2, "size": "64x64", "response_format": response_format}
    await check_response(stack, "/v1/images/generations", body, stream=False)


async def test_image_events_match_the_document(start_stack: StartStack) -> None:
    stack = await start_stack(IMAGE)
    body = {"prompt": "x", "n": 2, "size": "64x64", "stream": True, "partial_images": 1}
    await check_events(stack, "/v1/images/generations", body)


MESSAGES = {
    "model": "scripted",
    "max_tokens": 20,
    "messages": [{"role": "user", "content": '{"text": "{}"}'}],
    "tools": [{"name": "find", "input_schema": {"type": "object"}}],
}


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "tool", "name": "find"}])
async def test_messages_match_the_document(stack: Stack, choice: dict[str, Any]) -> None:
    body = MESSAGES | {"tool_choice": choice}
    await check_response(stack, "/v1/messages", body, stream=False)
    await check_events(stack, "/v1/messages", body | {"stream": True}, "error")


async def test_errors_of_messages_match_the_document(stack: Stack) -> None:
    path = "/v1/messages"
    for body in (MESSAGES | {"max_tokens": 0}, MESSAGES | {"thread": {"type": "create"}}):
        async with stack.http.post(path, json=body) as response:
            assert response.status == 400
            reference = DOCUMENT["paths"][path]["post"]["responses"]["400"]["$ref"]
            described = DOCUMENT["components"]["responses"][reference.rpartition("/")[2]]
            schema = described["content"]["application/json"]["schema"]
            closed(schema).validate(await response.json())


async def check_events(stack: Stack, path: str, body: dict[str, Any], *absent: str) -> None:
    """The named events of a stream, which has all but those that are absent."""
    async with stack.http.post(path, json=body) as response:
        text = await response.text()
    described = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    schema = described["text/event-stream"]["schema"]["properties"]
    events = [event.split("\n") for event in text.split("\n\n")[:-1]]
    names = {name.removeprefix("event: ") for name, _ in events}
    assert names == set(schema["event"]["enum"]) - {*absent}
    for _, data in events:
        closed(schema["data"]["contentSchema"]).validate(json.loads(data.removeprefix("data: ")))


async def check_response(stack: Stack, path: str, body: dict[str, Any], *, stream: bool) -> None:
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with stack.http.post(path, json=body) as response:
        text = await response.text()
        assert response.status == 200, text
        content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
        schema = content[response.content_type]["schema"]
    if not stream:
        closed(schema).validate(json.loads(text))
        return
    data = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    assert data.pop() == "[DONE]"
    chunk = schema["properties"]["data"]["anyOf"][1]["contentSchema"]["anyOf"][0]
    for event in data:
        closed(chunk).validate(json.loads(event))


def closed(schema: dict[str, Any]) -> Draft202012Validator:
    """A validator that also rejects every property without a description in the document."""
    schemas = json.loads(json.dumps(DOCUMENT["components"]["schemas"]))
    for component in schemas.values():
        component["unevaluatedProperties"] = False
    return Draft202012Validator({**schema, "components": {"schemas": schemas}})


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/docs", "text/html"),
        ("/docs/docs.js", "text/javascript"),
        ("/docs/docs.css", "text/css"),
        ("/", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/page.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
async def test_page_needs_no_key_and_loads_only_its_own_files(
    start_stack: StartStack, tmp_path: Path, path: str, content_type: str
) -> None:
    create_key(tmp_path / "keys.json", "someone")
    stack = await start_stack(keys=tmp_path / "keys.json", key="none")
    async with stack.http.get(path) as response:
        assert response.status == 200
        assert response.content_type == content_type
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        text = (await response.text()).replace("http://www.w3.org/2000/svg", "")
    # No inline script or style, and no URL of another host.
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=\"|//[\w.-]+\.\w+/", text)


def test_page_is_small() -> None:
    web = Path(__file__).parents[2] / "edge" / "web"
    files = [web / "index.html", *(web / "page").iterdir()]
    assert len(files) > 10
    assert sum(path.stat().st_size for path in files) <= 60_000


@pytest.mark.parametrize(
    "path",
    [
        "/docs/",
        "/docs/nothing",
        "/docs/..%2fapp.py",
        "/docs/%2e%2e/app.py",
        "/docs/docs.js%00",
        "/page/",
        "/page/docs.js",
        "/page/..%2findex.html",
        "/index.html",
    ],
)
async def test_unknown_file_of_a_page_is_404(stack: Stack, path: str) -> None:
    async with stack.http.get(URL(path, encoded=True)) as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "invalid_request_error"
