"""CORS headers are sent for configured origins only, on responses, errors and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse

from edge.config import EdgeConfig
from keys import ConfigError, create_key
from tests.conftest import Stack, StartStack

PAGE = "https://page.example"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.fixture
def transport() -> str:
    """No test here depends on the upstream transport, so one is enough."""
    return "session"


async def fetch(stack: Stack, method: str, path: str, **arguments: Any) -> ClientResponse:
    async with stack.http.request(method, path, **arguments) as response:
        await response.read()
        return response


def allowed(response: ClientResponse) -> str | None:
    return response.headers.get("access-control-allow-origin")


async def test_no_cors_headers_are_sent_without_configured_origins(start_stack: StartStack) -> None:
    stack = await start_stack()
    preflight = await fetch(stack, "OPTIONS", "/v1/chat/completions", headers=PREFLIGHT)
    assert preflight.status == 405
    answer = await fetch(stack, "GET", "/v1/models", headers={"origin": PAGE})
    for response in (preflight, answer):
        assert not [
            name for name in response.headers if name.lower().startswith("access-control-a")
        ]
        assert "vary" not in response.headers


async def test_preflight_needs_no_key_but_requests_do(
    start_stack: StartStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    stack = await start_stack(keys=keys, key=key, cors_origins=(PAGE,))
    for path in ("/v1/chat/completions", "/v1/models", "/v1/nope"):
        headers = PREFLIGHT | {"authorization": ""}
        preflight = await fetch(stack, "OPTIONS", path, headers=headers)
        assert preflight.status == 204
        assert allowed(preflight) == PAGE
        names = preflight.headers["access-control-allow-headers"]
        assert names == PREFLIGHT["access-control-request-headers"]
        methods = preflight.headers["access-control-allow-methods"].split(", ")
        assert {"GET", "POST", "DELETE"} <= {*methods}
        assert int(preflight.headers["access-control-max-age"]) > 0
        assert "access-control-allow-credentials" not in preflight.headers
    headers = {"origin": PAGE, "authorization": ""}
    refused = await fetch(stack, "POST", "/v1/chat/completions", json=CHAT, headers=headers)
    assert (refused.status, allowed(refused)) == (401, PAGE)
    # OPTIONS without the preflight headers needs a key like any other request.
    plain = await fetch(stack, "OPTIONS", "/v1/models", headers=headers)
    assert plain.status == 401


async def test_configured_origin_may_read_responses_errors_and_streams(
    start_stack: StartStack,
) -> None:
    stack = await start_stack(cors_origins=("https://other.example:8443", PAGE))
    for method, path, body, status in (
        ("GET", "/v1/models", None, 200),
        ("POST", "/v1/chat/completions", CHAT, 200),
        ("POST", "/v1/chat/completions", CHAT | {"stream": True}, 200),
        ("POST", "/v1/chat/completions", {}, 400),
        ("GET", "/v1/nope", None, 404),
        ("GET", "/v1/embeddings", None, 405),
    ):
        response = await fetch(stack, method, path, json=body, headers={"origin": PAGE})
        assert (response.status, allowed(response)) == (status, PAGE)
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert len(response.headers.getall("access-control-expose-headers")) == 1
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)
        assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://page.example.evil", "http://page.example", "null", ""])
async def test_other_origins_get_no_cors_headers(start_stack: StartStack, origin: str) -> None:
    stack = await start_stack(cors_origins=(PAGE,))
    preflight = await fetch(stack, "OPTIONS", "/v1/models", headers=PREFLIGHT | {"origin": origin})
    answer = await fetch(stack, "GET", "/v1/models", headers={"origin": origin})
    assert answer.status == 200
    for response in (preflight, answer):
        assert allowed(response) is None
        assert response.headers["vary"] == "Origin"


async def test_star_allows_every_origin(start_stack: StartStack) -> None:
    stack = await start_stack(cors_origins=("*",))
    for origin in (PAGE, "null"):
        answer = await fetch(stack, "GET", "/v1/models", headers={"origin": origin})
        assert allowed(answer) == "*"
        assert "vary" not in answer.headers


async def test_preflight_ignores_invalid_requested_header_names(start_stack: StartStack) -> None:
    stack = await start_stack(cors_origins=(PAGE,))
    for names in ("\xff\xfe", "x" * 5000, "a;b", ""):
        headers = PREFLIGHT | {"access-control-request-headers": names}
        preflight = await fetch(stack, "OPTIONS", "/v1/models", headers=headers)
        assert preflight.status == 204
        assert "access-control-allow-headers" not in preflight.headers


@pytest.mark.parametrize(
    "origin", ["page.example", f"{PAGE}/", f"{PAGE}/x", "https://", "HTTPS://x", ""]
)
def test_malformed_origin_is_refused_at_startup(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        EdgeConfig(cors_origins=(origin,))
