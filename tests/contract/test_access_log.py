"""The access log of both programs: one line for each request, beside what its client saw."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession

from inference.config import ModelConfig
from isthmus.v1.generate_pb2 import GenerateRequest
from keys import create_key
from tests.conftest import EMBEDDING, TEXT, Stack, StartStack, eventually
from tests.contract import programs

CANARY = "canary-91bd"
JSON = {"access_log": "json", "server": {"access_log": "json"}}

Line = dict[str, Any]
Lines = Callable[..., list[Line]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Returns the lines written up to now, of one program or of one request."""
    seen: list[Line] = []

    def read(**members: str) -> list[Line]:
        seen.extend(json.loads(line) for line in capsys.readouterr().out.splitlines())
        return [line for line in seen if members.items() <= line.items()]

    return read


async def chat(stack: Stack, text: str, request_id: str, **body: Any) -> tuple[int, str]:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": text}], **body}
    headers = {"x-request-id": request_id}
    async with stack.http.post("/v1/chat/completions", json=body, headers=headers) as response:
        return response.status, await response.text()


async def test_each_request_has_a_line_at_both_sides(
    start_stack: StartStack, lines: Lines, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    entry, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(
        TEXT,
        EMBEDDING,
        ModelConfig(id="image", engine="scripted-image", engine_args={"step_seconds": 0.05}),
        keys=keys,
        server_keys=keys,
        key=key,
        upstream_token=edge_key,
        **JSON,
    )
    for number, stream in enumerate((False, True)):
        name = f"chat-{number}"
        options = {"stream_options": {"include_usage": True}} if stream else {}
        status, text = await chat(stack, "a b c", name, stream=stream, max_tokens=5, **options)
        assert status == 200
        answer = json.loads(text.split("data: ")[-2] if stream else text)
        for program in ("edge", "inference"):
            (line,) = lines(request_id=name, program=program)
            assert line["model"] == "scripted"
            assert line["key"] == entry.id
            assert line["input_tokens"] == answer["usage"]["prompt_tokens"]
            assert line["output_tokens"] == answer["usage"]["completion_tokens"] == 5
            assert line["end"] == "length"
            assert 0 <= line["first_output_ms"] <= line["total_ms"]
            assert line["time"].endswith("+00:00")
        (edge,), (service,) = (
            lines(request_id=name, program=program) for program in ("edge", "inference")
        )
        assert (edge["method"], edge["path"]) == ("POST", "/v1/chat/completions")
        assert edge["status"] == 200
        assert (service["operation"], service["status"]) == ("chat", "OK")
        assert service["queue_ms"] <= service["first_output_ms"]
    for path, body, operation in (
        ("/v1/embeddings", {"input": ['{"seconds": 0.05}', "b c"]}, "embeddings"),
        ("/v1/images/generations", {"prompt": "a", "size": "64x64"}, "image_generation"),
        ("/tokenize", {"prompt": '{"tokenize_seconds": 0.05}'}, "tokenize"),
    ):
        async with stack.http.post(path, json=body) as response:
            assert response.status == 200
            request_id = response.headers["x-request-id"]
        edge, service = lines(request_id=request_id)[::-1]
        assert (edge["path"], edge["end"]) == (path, "done")
        assert 40 < edge["first_output_ms"] <= edge["total_ms"]
        assert (service["operation"], service["end"]) == (operation, "done")
        assert edge.get("input_tokens") == service.get("input_tokens")
        assert ("input_tokens" in edge) == (operation != "tokenize")
    async with stack.http.get("/v1/models") as response:
        request_id = response.headers["x-request-id"]
    (line,) = lines(request_id=request_id)
    assert line.keys() == {
        *("time", "program", "request_id", "method", "path", "status", "key", "total_ms", "end")
    }


async def test_a_line_tells_why_a_request_failed(start_stack: StartStack, lines: Lines) -> None:
    stack = await start_stack(**JSON)
    cases = [
        ({"model": "nothing"}, 404, "model_not_found", []),
        ({"max_tokens": "x"}, 400, "invalid_type", []),
        ({"max_tokens": 99_999_999}, 400, "context_length_exceeded", ["INVALID_ARGUMENT"]),
        ({"model": "scripted-embedding"}, 404, "invalid_request_error", []),
    ]
    for number, (body, status, end, statuses) in enumerate(cases):
        name = f"failure-{number}"
        assert (await chat(stack, "a", name, **body))[0] == status
        (edge,) = lines(request_id=name, program="edge")
        assert (edge["status"], edge["end"]) == (status, end)
        services = lines(request_id=name, program="inference")
        assert [line["status"] for line in services] == statuses
        assert all(line["end"] == end for line in services)
    for stream, status in ((False, 500), (True, 200)):
        name = f"fault-{stream}"
        assert (await chat(stack, json.dumps({"fail": "mid"}), name, stream=stream))[0] == status
        edge, service = (lines(request_id=name, program=p)[0] for p in ("edge", "inference"))
        assert (edge["status"], edge["end"]) == (status, "server_error")
        assert (service["status"], service["end"]) == ("INTERNAL", "server_error")
        assert service["output_tokens"] > 0
    async with stack.http.get(f"/{CANARY}") as response:
        assert response.status == 404
    (line,) = lines(path="unknown")
    assert (line["status"], line["end"]) == (404, "unknown_url")


async def test_a_client_that_leaves_has_a_line(start_stack: StartStack, lines: Lines) -> None:
    slow = ModelConfig(id="scripted", engine="scripted", engine_args={"step_seconds": 0.05})
    stack = await start_stack(slow, header_hold_seconds=0.0, **JSON)
    body = {"model": "scripted", "prompt": "a b", "max_tokens": 1000, "stream": True}
    async with stack.http.post("/v1/completions", json=body) as response:
        request_id = response.headers["x-request-id"]
        await response.content.readuntil(b"\n\n")
        await response.content.readuntil(b"\n\n")
        response.close()
    await eventually(lambda: len(lines(request_id=request_id)) == 2)
    (edge,), (service,) = (
        lines(request_id=request_id, program=program) for program in ("edge", "inference")
    )
    for line in (edge, service):
        assert (line["end"], line["stage"]) == ("cancelled", "output")
        assert line["first_output_ms"] < line["total_ms"]
    assert (edge["status"], service["status"]) == (499, "CANCELLED")
    assert service["input_tokens"] == 2
    assert 0 < service["output_tokens"] < 1000


async def test_refused_callers_have_a_line(
    start_stack: StartStack, lines: Lines, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(
        keys=keys, server_keys=keys, upstream_token=edge_key, key=CANARY, **JSON
    )
    assert (await chat(stack, "a", "wrong"))[0] == 401
    (line,) = lines(request_id="wrong")
    assert (line["path"], line["status"]) == ("/v1/chat/completions", 401)
    assert line["end"] == "invalid_api_key"
    metadata = (("authorization", f"Bearer {CANARY}"), ("x-request-id", "direct"))
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in stack.stub.Generate(GenerateRequest(text="a"), metadata=metadata):
            pass
    (line,) = lines(request_id="direct")
    assert (line["method"], line["status"]) == ("Generate", "UNAUTHENTICATED")
    assert line["end"] == "invalid_api_key"
    generate = stack.channel.unary_stream("/isthmus.v1.InferenceService/Generate")
    metadata = (("authorization", f"Bearer {edge_key}"), ("x-request-id", "torn"))
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in generate(b"\xff\xff", metadata=metadata):
            pass
    (line,) = lines(request_id="torn")
    assert (line["status"], line["end"]) == ("INVALID_ARGUMENT", "invalid_request_error")
    unknown = stack.channel.unary_unary(f"/{CANARY}/{CANARY}")
    with pytest.raises(grpc.aio.AioRpcError):
        await unknown(b"", metadata=(("x-request-id", "unknown"),))
    (line,) = lines(request_id="unknown")
    assert (line["method"], line["end"]) == ("unknown", "missing_api_key")


async def test_probes_have_a_line_only_when_they_are_refused(
    start_stack: StartStack, lines: Lines, tmp_path: Path
) -> None:
    _, key = create_key(tmp_path / "keys.json", "test")
    stack = await start_stack(keys=tmp_path / "keys.json", key=key, **JSON)
    for path in ("/health", "/ready", "/ping", "/load", "/metrics"):
        async with stack.http.get(path) as response:
            assert response.status == 200
    stack.edge.draining = True
    async with stack.http.get("/ready") as response:
        assert response.status == 503
    assert not lines()
    async with stack.http.get("/metrics", headers={"authorization": "Bearer x"}) as response:
        assert response.status == 401
    assert [line["path"] for line in lines()] == ["/metrics"]


@pytest.mark.parametrize("form", ["text", "json", "off"])
async def test_no_line_has_a_prompt_an_output_or_a_key(
    start_stack: StartStack, capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(
        keys=keys, server_keys=keys, key=key, upstream_token=edge_key,
        access_log=form, server={"access_log": form},
    )  # fmt: skip
    cues = [{"text": f"{CANARY} said"}, {"fail": "start"}, {"fail": "mid"}, {"fail": "refuse"}]
    for cue in cues:
        for stream in (False, True):
            await chat(stack, f"{CANARY} {json.dumps(cue)}", "cue", stream=stream)
            await chat(stack, json.dumps(cue), "cue", stream=stream, stop=[CANARY])
    await chat(stack, "a", "cue", model=CANARY)
    await chat(stack, "a", "cue", **{CANARY: 1})
    async with stack.http.get(f"/{CANARY}?key={key}", headers={"x-request-id": "é"}) as response:
        await response.read()
    written = capsys.readouterr()
    assert written.out.isascii()
    assert written.out.count("cue") == (0 if form == "off" else 34)
    for secret in (CANARY, key, edge_key):
        assert secret not in written.out + written.err


async def test_text_has_the_members_of_json(
    start_stack: StartStack, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ModelConfig(id='a "model" é', engine="scripted")
    stack = await start_stack(named, access_log="text")
    status, _ = await chat(stack, "a", "one", model=named.id, max_tokens=2)
    assert status == 200
    (line,) = capsys.readouterr().out.splitlines()
    assert " program=edge request_id=one method=POST path=/v1/chat/completions status=200 " in line
    assert r' model="a \"model\" \u00e9" input_tokens=' in line
    assert line.endswith(" end=length")


async def test_both_programs_write_the_log_on_standard_output() -> None:
    options = ["--access-log", "json"]
    async with programs.service(TEXT, options=options) as service:
        async with programs.edge(service.port, options=options) as edge:
            async with ClientSession(f"http://127.0.0.1:{edge.port}") as http:
                body = {"model": "scripted", "prompt": "a"}
                async with http.post("/v1/completions", json=body) as response:
                    assert response.status == 200
                    request_id = response.headers["x-request-id"]
            for program in (edge, service):
                found = [
                    json.loads(line)
                    for line in program.log.read_text().splitlines()
                    if line.startswith("{")
                ]
                assert [line["request_id"] for line in found] == [request_id]


async def test_a_closed_standard_output_fails_no_request(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = await start_stack(**JSON)

    class Closed:
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert (await chat(stack, "a", "one"))[0] == 200
