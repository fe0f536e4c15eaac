"""What becomes of failures that no answer can tell."""

from __future__ import annotations

import pytest
from aiohttp import ClientConnectionResetError
from aiohttp.test_utils import make_mocked_request

from edge.middleware.errors import failure_response


def test_a_client_that_is_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClientConnectionResetError):
        failure_response(
            make_mocked_request("POST", "/v1/completions"), ClientConnectionResetError("gone")
        )
    assert not caplog.records
