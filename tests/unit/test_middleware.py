"""What becomes of failures that no answer can tell."""

from __future__ import annotations

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import make_mocked_request

from edge.middleware.errors import openai_errors


async def test_a_client_that_is_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def write(request: web.Request) -> web.StreamResponse:
        raise ClientConnectionResetError(request.path)

    with pytest.raises(ClientConnectionResetError):
        await openai_errors(make_mocked_request("POST", "/v1/completions"), write)
    assert not caplog.records
