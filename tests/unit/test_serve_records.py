"""A request is recorded in metrics, log and traces, step by step; so is a Tokenize call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from contract.request_metrics import CANCELLED, Spent
from inference.engines.base import Tokens
from inference.errors import InferenceError
from inference.metrics import CallRecord
from inference.serve import run
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import FINISH_REASON_STOP, ChoiceFinish, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse
from isthmus.v1.usage_pb2 import Usage
from tests.unit.test_serve import (
    CONTEXT,
    EMBEDDING,
    IMAGE,
    TEXT,
    Service,
    Virtually,
    text,
    virtually,
)
from tests.virtual_time import settle

__all__ = ["virtually"]

IMAGE_REQUEST = GenerateImageRequest(model="m", prompt="a")
COUNT = TokenizeRequest(model="m", text="a b")


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time nothing waits for a thread."""

    async def run_here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", run_here)


def watched(service: Service) -> tuple[list[tuple[str, CallRecord, Any]], list[CallRecord]]:
    """Collects the records that the observer and the metrics get from now on."""
    told: list[tuple[str, CallRecord, Any]] = []
    ended: list[CallRecord] = []

    def note(event: str) -> Callable[[CallRecord, Any], None]:
        return lambda record, context: told.append((event, record, context))

    registry: Any = service.registry
    registry.observer = SimpleNamespace(begin=note("begin"), ended=note("ended"))
    registry.metrics.call_ended = ended.append
    return told, ended


def counting(service: Service) -> None:
    """Gives the engine a tokenizer that takes two seconds."""

    async def tokenize(request: TokenizeRequest) -> Tokens:
        await asyncio.sleep(2)
        return Tokens([5, 6], ["a", "b"])

    engine: Any = service.engine
    engine.tokenize = tokenize


def test_success_is_told_with_its_tokens_and_times(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        told, ended = watched(service)

        async def generate(emit: Any) -> None:
            await asyncio.sleep(2)
            emit("a")
            await asyncio.sleep(3)
            finishes = [ChoiceFinish(reason=FINISH_REASON_STOP)]
            usage = Usage(prompt_tokens=7, completion_tokens=2)
            emit(GenerateResponse(finishes=finishes, usage=usage))

        service.engine.generate_ = generate
        assert (await service.run(text()))[0] is None
        (record,) = ended
        assert told == [("begin", record, CONTEXT), ("ended", record, CONTEXT)]
        assert (record.model, record.prompt_tokens, record.error) == ("m", 7, "")
        assert record.permitted == record.arrived
        assert record.emitter.spent == Spent(7, 2, 2.0, 5.0)
        assert record.emitter.finishes == [FINISH_REASON_STOP]
        assert record.stage == "output"

    virtually(test)


def test_failure_is_told_with_its_reason(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        told, ended = watched(service)
        service.engine.refusal = InferenceError("context_length_exceeded", "too long")
        error, _ = await service.run(text())
        assert error is not None
        (record,) = ended
        assert record.error == "context_length_exceeded"
        assert (record.model, record.emitter, record.stage) == ("m", None, "before_output")
        assert [event for event, _, _ in told] == ["begin", "ended"]

    virtually(test)


def test_call_whose_caller_leaves_is_told_as_cancelled(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        told, ended = watched(service)

        async def generate(emit: Any) -> None:
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        task = asyncio.create_task(run(service.registry, text(), CONTEXT, service.outbox()))
        await settle()
        task.cancel()
        await settle()
        (record,) = ended
        assert (record.error, record.stage) == (CANCELLED, "before_output")
        assert told[-1][0] == "ended"

    virtually(test)


def test_embedding_is_told_with_its_tokens_and_time(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        _, ended = watched(service)

        async def generate(emit: Any) -> None:
            await asyncio.sleep(2)
            emit(EmbedResponse(vectors=b"x", token_counts=[5, 6]))

        service.engine.generate_ = generate
        await service.run(EmbedRequest(model="m", inputs=[EmbedInput(text="a")] * 2))
        assert ended[0].emitter.spent == Spent(11, 0, 2.0, 2.0)

    virtually(test, EMBEDDING)


def test_count_of_tokens_is_one_message(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        counting(service)
        error, output = await service.run(COUNT)
        assert error is None
        assert output == [
            TokenizeResponse(
                count=2,
                token_ids=[5, 6],
                token_names=["a", "b"],
                context_length=TEXT.context_length,
                model="m",
            )
        ]

    virtually(test)


def test_count_of_tokens_takes_a_request_and_no_tokens_of_the_key(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        counting(service)
        error, (response,) = await service.run(COUNT)
        assert error is None
        limits = response.rate_limits
        assert (limits.requests.remaining, limits.tokens.remaining) == (59, 6000)
        assert service.left("requests") == 59
        assert service.left("tokens") == 6000

    virtually(test, requests_per_minute=60, tokens_per_minute=6000)


def test_count_of_tokens_has_permits_of_its_own(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        counting(service)
        own = service.served.tokenizations

        async def generate(emit: Any) -> None:
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        busy = asyncio.create_task(run(service.registry, text(), CONTEXT, service.outbox()))
        await settle()
        assert (service.served.admission.running, own.running) == (1, 0)
        counts = [
            asyncio.create_task(run(service.registry, COUNT, CONTEXT, service.outbox()))
            for _ in range(9)
        ]
        await settle()
        assert (own.running, own.queued) == (8, 1)
        assert await asyncio.gather(*counts) == [None] * 9
        assert (service.served.admission.running, own.running) == (1, 0)
        busy.cancel()
        await settle()

    virtually(test, max_running=1)


def test_only_text_models_count_tokens(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        error, output = await service.run(COUNT)
        assert error is not None
        assert output == []

    virtually(test, IMAGE)


def test_image_takes_one_permit_and_reserves_no_tokens_while_it_waits(
    virtually: Virtually,
) -> None:
    async def test(service: Service) -> None:
        seen: list[tuple[int, int]] = []

        async def prepare(request: object, terms: object) -> Any:
            seen.append((service.served.admission.running, service.left("tokens")))
            return service.engine.prepared

        engine: Any = service.engine
        engine.prepare = prepare
        error, _ = await service.run(IMAGE_REQUEST)
        assert error is None
        assert seen == [(1, 6000)]

    virtually(test, IMAGE, tokens_per_minute=6000)
