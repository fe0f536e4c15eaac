"""Failures of requests whose client is gone."""

from __future__ import annotations

import pytest
from aiohttp import ClientConnectionResetError
from aiohttp.test_utils import make_mocked_request

from edge.middleware.serve import failure_response


def test_client_disconnect_is_not_logged_as_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClientConnectionResetError):
        failure_response(
            make_mocked_request("POST", "/v1/completions"), ClientConnectionResetError("gone")
        )
    assert not caplog.records
