"""The headers of every response, in the two forms in which they are sent."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from edge.middleware.serve import common_headers, common_lines
from edge.state import EdgeRequest


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_rendered_lines_are_the_common_headers(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 9.5)
    request = make_mocked_request("POST", path)
    object.__setattr__(request, "__class__", EdgeRequest)
    assert isinstance(request, EdgeRequest)
    request.id, request.started = "req_1", 9.25
    lines = [f"{name}: {value}\r\n" for name, value in common_headers(request).items()]
    assert common_lines(request) == "".join(lines)
