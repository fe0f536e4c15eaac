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
def test_call_that_was_not_sent_is_replayed(
    status: Status, reports_start: bool, silent: bool
) -> None:
    ended = Ended(status, sent=False, received=False, silent=silent)
    assert may_replay(ended, reports_start=reports_start)


@pytest.mark.parametrize("status", STATUSES, ids=str)
@pytest.mark.parametrize(("reports_start", "silent"), list(itertools.product(BOTH, BOTH)))
def test_call_with_output_is_never_replayed(
    status: Status, reports_start: bool, silent: bool
) -> None:
    ended = Ended(status, sent=True, received=True, silent=silent)
    assert not may_replay(ended, reports_start=reports_start)


@pytest.mark.parametrize("reason", sorted(NOT_BEGUN))
@pytest.mark.parametrize("reports_start", BOTH)
def test_call_that_the_service_has_not_begun_is_replayed(reason: str, reports_start: bool) -> None:
    assert may_replay(Ended(refused(reason)), reports_start=reports_start)


@pytest.mark.parametrize("reports_start", BOTH)
@pytest.mark.parametrize("reason", ["engine_died", "internal_error", "rate_limit_exceeded"])
def test_call_with_another_reason_is_not_replayed(reason: str, reports_start: bool) -> None:
    assert not may_replay(Ended(refused(reason)), reports_start=reports_start)


def test_of_lost_calls_without_output_only_streams_are_replayed() -> None:
    assert may_replay(Ended(LOST), reports_start=True)
    assert not may_replay(Ended(LOST), reports_start=False)


@pytest.mark.parametrize("reports_start", BOTH)
def test_silent_call_is_not_replayed(reports_start: bool) -> None:
    assert not may_replay(Ended(LOST, silent=True), reports_start=reports_start)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED])
def test_other_failures_of_the_transport_are_not_replayed(code: int) -> None:
    assert not may_replay(Ended(Status(code=code)), reports_start=True)
