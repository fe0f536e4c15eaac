"""The bound of the time without output, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from inference.config import ModelConfig
from inference.errors import InferenceError
from inference.stall import arrives_at_once, stall_limit
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, OutputOptions
from tests.virtual_time import now, run_virtually

BEST_OF_TWO = GenerateRequest(output=OutputOptions(best_of=2))


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Callable[[Coroutine[Any, Any, None]], None]:
    monkeypatch.setattr("inference.stall.time", SimpleNamespace(monotonic=now))
    return run_virtually


Virtually = Callable[[Coroutine[Any, Any, None]], None]


def config(**limits: float) -> ModelConfig:
    return ModelConfig(id="m", engine="scripted", **limits)  # type: ignore[arg-type]


async def silent(seconds: float, request: Any = None, **limits: float) -> InferenceError | None:
    """The error of a call without output that would last so long."""
    progress = SimpleNamespace(outputs=0)
    try:
        async with stall_limit(config(**limits), request or GenerateRequest(), progress):
            await asyncio.sleep(seconds)
    except InferenceError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("output", "at_once"),
    [
        ({}, False),
        ({"n": 1, "best_of": 1}, False),
        ({"best_of": 1}, False),
        ({"best_of": 2}, True),
        ({"n": 2, "best_of": 2}, False),
        ({"n": 2, "best_of": 3}, True),
    ],
    ids=str,
)
def test_only_the_best_of_more_candidates_arrives_at_once(
    output: dict[str, int], at_once: bool
) -> None:
    assert arrives_at_once(GenerateRequest(output=OutputOptions(**output))) == at_once


def test_embedding_does_not_count_as_text_that_arrives_at_once() -> None:
    assert not arrives_at_once(EmbedRequest())


def test_silence_beyond_the_bound_is_a_deadline(virtually: Virtually) -> None:
    async def test() -> None:
        began = now()
        error = await silent(50, first_output_seconds=3.0)
        assert error is not None
        assert (error.reason, error.message) == (
            "deadline_exceeded",
            "The model made no output in time.",
        )
        assert now() - began == 3

    virtually(test())


def test_text_that_arrives_at_once_and_models_without_limits_have_no_bound(
    virtually: Virtually,
) -> None:
    async def test() -> None:
        assert await silent(50, BEST_OF_TWO, first_output_seconds=3.0) is None
        assert await silent(50) is None
        assert await silent(50, output_gap_seconds=3.0) is None  # there was no output yet

    virtually(test())


def test_timeout_of_the_call_itself_passes_unchanged(virtually: Virtually) -> None:
    async def test() -> None:
        progress = SimpleNamespace(outputs=0)
        with pytest.raises(TimeoutError):
            async with stall_limit(config(first_output_seconds=9.0), GenerateRequest(), progress):
                async with asyncio.timeout(1):
                    await asyncio.sleep(50)

    virtually(test())


def test_call_that_has_ended_leaves_no_timer(virtually: Virtually) -> None:
    async def test() -> None:
        assert await silent(1, first_output_seconds=3.0) is None
        loop: Any = asyncio.get_running_loop()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    virtually(test())
