"""The replay rule: every cell of its table."""

from __future__ import annotations

import itertools

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from edge.openai.errors.rpc_status import DOMAIN
from edge.upstream.replay import NOT_BEGUN, may_replay
from edge.upstream.transport import Ended


def refused(reason: str, code: int = Code.UNAVAILABLE) -> Status:
    status = Status(code=code)
    status.details.add().Pack(ErrorInfo(domain=DOMAIN, reason=reason))
    return status


LOST = Status(code=Code.UNAVAILABLE)
STATUSES = [
    LOST,
    Status(code=Code.INTERNAL),
    Status(code=Code.DEADLINE_EXCEEDED),
    refused("draining"),
    refused("engine_died"),
    refused("context_length_exceeded", Code.INVALID_ARGUMENT),
]
BOTH = (False, True)


@pytest.mark.parametrize("status", STATUSES, ids=str)
@pytest.mark.parametrize(("reports_start", "silent"), list(itertools.product(BOTH, BOTH)))
def test_call_that_was_not_sent_moves(status: Status, reports_start: bool, silent: bool) -> None:
    ended = Ended(status, sent=False, received=False, silent=silent)
    assert may_replay(ended, reports_start=reports_start)


@pytest.mark.parametrize("status", STATUSES, ids=str)
@pytest.mark.parametrize(("reports_start", "silent"), list(itertools.product(BOTH, BOTH)))
def test_call_with_output_never_moves(status: Status, reports_start: bool, silent: bool) -> None:
    ended = Ended(status, sent=True, received=True, silent=silent)
    assert not may_replay(ended, reports_start=reports_start)


@pytest.mark.parametrize("reason", sorted(NOT_BEGUN))
@pytest.mark.parametrize("reports_start", BOTH)
def test_call_that_the_service_has_not_begun_moves(reason: str, reports_start: bool) -> None:
    assert may_replay(Ended(refused(reason)), reports_start=reports_start)


@pytest.mark.parametrize("reports_start", BOTH)
@pytest.mark.parametrize("reason", ["engine_died", "internal_error", "rate_limit_exceeded"])
def test_call_with_another_reason_stays(reason: str, reports_start: bool) -> None:
    assert not may_replay(Ended(refused(reason)), reports_start=reports_start)


def test_lost_stream_without_output_moves_and_other_calls_do_not() -> None:
    assert may_replay(Ended(LOST), reports_start=True)
    assert not may_replay(Ended(LOST), reports_start=False)


@pytest.mark.parametrize("reports_start", BOTH)
def test_silent_call_stays(reports_start: bool) -> None:
    assert not may_replay(Ended(LOST, silent=True), reports_start=reports_start)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED])
def test_other_failures_of_the_transport_stay(code: int) -> None:
    assert not may_replay(Ended(Status(code=code)), reports_start=True)
