"""The steps of a request between a gRPC method and an engine, with a scripted engine in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from contract.memory import Holding, MemoryBudget
from inference.config import ModelConfig
from inference.engines.base import EngineDeadError, Terms
from inference.errors import InferenceError
from inference.rate_limits import RateLimiter
from inference.registry import Registry, ServedModel
from inference.rpc import CallContext
from inference.serve import run
from isthmus.v1.embed_pb2 import EmbedInput, EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    GenerateRequest,
    GenerateResponse,
    OutputOptions,
    Stopping,
    TokenIds,
)
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Progress
from isthmus.v1.models_pb2 import (
    EmbeddingCapabilities,
    ImageCapabilities,
    Model,
    ModelKind,
    TextCapabilities,
)
from isthmus.v1.usage_pb2 import Usage
from tests.virtual_time import now, run_virtually, settle

TEXT = Model(
    kind=ModelKind.MODEL_KIND_TEXT, context_length=100, text=TextCapabilities(max_choices=8)
)
EMBEDDING = Model(
    kind=ModelKind.MODEL_KIND_EMBEDDING,
    context_length=50,
    embedding=EmbeddingCapabilities(dimensions=1024),
)
IMAGE = Model(kind=ModelKind.MODEL_KIND_IMAGE, image=ImageCapabilities())
CONTEXT = CallContext("r", 100.0, 3, "p")
CREATED = 1_700_000_000


@dataclass
class Prepared:
    prompt_tokens: int = 7
    max_output_tokens: int = 20


class Engine:
    """An engine whose `generate` the test writes."""

    system_fingerprint = "fp"
    characters_a_token = None

    def __init__(self, model: Model) -> None:
        self.model = model
        self.prepared = Prepared()
        self.terms: list[Terms] = []
        self.refusal: Exception | None = None
        self.prepare_seconds = 0.0
        self.generate_: Callable[[Any], Coroutine[Any, Any, None]] = self._nothing

    async def _nothing(self, emit: Any) -> None:
        pass

    async def prepare(self, request: object, terms: Terms) -> Prepared:
        self.terms.append(terms)
        await asyncio.sleep(self.prepare_seconds)
        if self.refusal is not None:
            raise self.refusal
        return self.prepared

    async def generate(self, prepared: Prepared, emit: Any) -> None:
        assert prepared is self.prepared
        await self.generate_(emit)


class Outbox:
    def __init__(self, memory: MemoryBudget) -> None:
        self.holding = Holding(memory)
        self.output: list[Any] = []

    def text(self, text: str) -> None:
        self.output.append(text)

    def part(self, part: Any) -> None:
        self.output.append(part)


class Service:
    """One model behind the steps."""

    def __init__(self, model: Model, **config: Any) -> None:
        self.engine = Engine(model)
        engine: Any = self.engine
        settings = ModelConfig(id="m", engine="scripted", **config)
        self.served = ServedModel(settings, engine)
        self.served.started = True
        # Nothing refills, so that every token is seen.
        self.served.rate_limiter = RateLimiter(settings, clock=lambda: 10**15)
        self.registry = Registry([self.served])

    def outbox(self) -> Outbox:
        return Outbox(self.registry.memory)

    async def run(
        self, request: Any, context: CallContext = CONTEXT
    ) -> tuple[InferenceError | None, list[Any]]:
        outbox = self.outbox()
        error = await run(self.registry, request, context, outbox)
        assert (self.served.admission.running, self.served.admission.queued) == (0, 0)
        return error, outbox.output

    def left(self, kind: str, principal: str = "p") -> int:
        """A key's remaining allowance of one limit."""
        with self.served.rate_limiter.charge(principal) as charge:
            limits = charge.rate_limits()
        assert limits is not None
        # The look itself took one request.
        return int(getattr(limits, kind).remaining) + (kind == "requests")


Virtually = Callable[..., None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Runs test(service) for a model with the configuration."""
    clock = SimpleNamespace(monotonic=now, time=lambda: CREATED + 0.9)
    for module in ("serve", "emitters", "metrics"):
        monkeypatch.setattr(f"inference.{module}.time", clock)
    monkeypatch.setattr("inference.stall.time", clock)

    def start(
        test: Callable[[Service], Coroutine[Any, Any, None]], model: Model = TEXT, **config: Any
    ) -> None:
        async def main() -> None:
            await test(Service(model, **config))

        run_virtually(main())

    return start


def text(**more: Any) -> GenerateRequest:
    return GenerateRequest(model="m", text="a b", **more)


def delta(text: str) -> GenerateResponse:
    return GenerateResponse(deltas=[ChoiceDelta(index=0, text=text)])


# Text


def test_admission_output_and_timings_of_a_text(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(2)
            emit("a")
            await asyncio.sleep(3)
            emit(delta("b"))
            await asyncio.sleep(4)
            emit(GenerateResponse(usage=Usage(prompt_tokens=7, completion_tokens=2)))

        service.engine.generate_ = generate
        error, output = await service.run(text())
        assert error is None
        first, *middle, last = output
        assert len(first.admitted.call_id) == 32
        first.admitted.call_id = ""
        assert first.admitted.model == first.admitted.requested_model == "m"
        assert (first.admitted.created, first.admitted.prompt_tokens) == (CREATED, 7)
        assert first.admitted.system_fingerprint == "fp"
        assert not first.admitted.HasField("rate_limits")
        assert middle == ["a", delta("b")]
        timings = last.timings
        assert (timings.queue_ms, timings.first_output_ms, timings.total_ms) == (0, 2000, 9000)
        assert service.engine.terms == [Terms(100, 3, "own")]

    virtually(test)


def test_each_call_has_an_id_of_its_own(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        ids = {(await service.run(text()))[1][0].admitted.call_id for _ in range(3)}
        assert len(ids) == 3

    virtually(test)


def test_time_in_the_queue_and_in_the_preparation_is_the_queues(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(5)
            emit(GenerateResponse(usage=Usage(prompt_tokens=1)))

        service.engine.generate_ = generate
        service.engine.prepare_seconds = 1.0
        first = asyncio.create_task(run(service.registry, text(), CONTEXT, service.outbox()))
        await settle()
        outbox = service.outbox()
        await run(service.registry, text(), CONTEXT, outbox)
        await first
        timings = outbox.output[-1].timings
        assert (timings.queue_ms, timings.first_output_ms) == (7000, 5000)
        assert timings.total_ms == 12_000

    virtually(test, max_running=1)


def test_whole_response_is_one_message(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            for _ in range(3):
                emit("x" * 1024 * 1024)
            emit(GenerateResponse(usage=Usage(prompt_tokens=7)))

        service.engine.generate_ = generate
        error, (whole,) = await service.run(text(output=OutputOptions(single_message=True)))
        assert error is None
        assert whole.HasField("admitted")
        assert len(whole.deltas[0].text) == 3 * 1024 * 1024
        assert whole.usage.prompt_tokens == 7

    virtually(test)


def test_failed_whole_response_is_not_sent(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            emit("x")
            raise InferenceError("server_error", "x")

        service.engine.generate_ = generate
        error, output = await service.run(text(output=OutputOptions(single_message=True)))
        assert error is not None
        assert output == []

    virtually(test)


def test_permit_is_held_for_each_choice(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        running = []

        async def generate(emit: Any) -> None:
            running.append(service.served.admission.running)

        service.engine.generate_ = generate
        await service.run(text())
        await service.run(text(output=OutputOptions(n=3)))
        assert running == [1, 3]

    virtually(test)


def test_request_is_refused_at_once_if_the_memory_has_no_room_for_it(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(1)

        service.engine.generate_ = generate
        requests = [GenerateRequest(model="m", text="x" * 600) for _ in range(3)]
        service.registry.memory.limit = 2 * requests[0].ByteSize()
        tasks = [
            asyncio.create_task(run(service.registry, request, CONTEXT, service.outbox()))
            for request in requests
        ]
        await settle()
        assert [task.done() for task in tasks] == [False, False, True]
        assert (service.served.admission.running, service.served.admission.queued) == (1, 1)
        errors = await asyncio.gather(*tasks)
        assert [error and error.reason for error in errors] == [None, None, "server_overloaded"]
        assert service.served.admission.refused == 1
        assert len(service.engine.terms) == 2

    virtually(test, max_running=1)


@pytest.mark.parametrize(
    ("request_", "model", "vectors"),
    [
        (GenerateRequest(model="m", text="x" * 600), TEXT, 0),
        (EmbedRequest(model="m", inputs=[EmbedInput(text="a")] * 3), EMBEDDING, 3 * 1024 * 4),
        (GenerateImageRequest(model="m", prompt="a"), IMAGE, 0),
    ],
    ids=["text", "embedding", "image"],
)
def test_call_holds_its_request_and_its_vectors(
    virtually: Virtually, request_: Any, model: Model, vectors: int
) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(1)

        service.engine.generate_ = generate
        outboxes = [service.outbox() for _ in range(2)]
        tasks = [
            asyncio.create_task(run(service.registry, request_, CONTEXT, outbox))
            for outbox in outboxes
        ]
        await settle()
        # One call runs and one waits.
        assert service.served.admission.queued == 1
        size = request_.ByteSize() + vectors
        assert [outbox.holding.size for outbox in outboxes] == [size, size]
        assert await asyncio.gather(*tasks) == [None, None]

    virtually(test, model, max_running=1)


def test_whole_response_is_held_until_it_is_passed_on(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        held = []

        async def generate(emit: Any) -> None:
            emit("x" * 1024 * 1024)
            held.append(service.registry.memory.used)

        service.engine.generate_ = generate
        outbox = service.outbox()
        request = text(output=OutputOptions(single_message=True))
        assert await run(service.registry, request, CONTEXT, outbox) is None
        assert held[0] > 1024 * 1024
        # The outbox counts what it gets itself.
        assert outbox.holding.size == request.ByteSize()

    virtually(test)


# The ends of a call


def test_deadline_ends_a_call(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            emit("a")
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        began = now()
        error, output = await service.run(text(), CallContext("r", 5.0))
        assert now() - began == 5
        assert error is not None
        assert (error.reason, error.message) == ("deadline_exceeded", "The request timed out.")
        assert output[1:] == ["a"]

    virtually(test)


def test_silent_engine_ends_a_call(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            for _ in range(4):
                await asyncio.sleep(1.5)
                emit("a")
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        began = now()
        error, output = await service.run(text())
        assert 8 <= now() - began < 8.5
        assert error is not None
        assert error.reason == "deadline_exceeded"
        assert output[1:] == ["a"] * 4

    virtually(test, output_gap_seconds=2.0)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_first_output_has_a_bound_of_its_own(virtually: Virtually, kind: str) -> None:
    async def test(service: Service) -> None:
        request: Any = text() if kind == "text" else GenerateImageRequest(model="m", prompt="a")
        progress: Any = "a" if kind == "text" else GenerateImageResponse(progress=Progress(step=1))

        delays = iter((2.5, 4))

        async def generate(emit: Any) -> None:
            await asyncio.sleep(next(delays))
            emit(progress)
            await asyncio.sleep(50)

        service.engine.generate_ = generate
        for seconds in (52.5, 3):
            began = now()
            error, _ = await service.run(request)
            assert (error is None) == (seconds > 50)
            assert seconds <= now() - began < seconds + 0.5

    virtually(test, TEXT if kind == "text" else IMAGE, first_output_seconds=3.0)


def test_refusal_of_the_engine_is_the_callers(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        service.engine.refusal = refusal = InferenceError("invalid_value", "No.", param="text")
        error, output = await service.run(text())
        assert error is refusal
        assert output == []
        assert caplog.messages == []

    virtually(test)


def test_dead_engine_ends_the_process(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            raise EngineDeadError("secret")

        service.engine.generate_ = generate
        assert not service.registry.dead.is_set()
        error, _ = await service.run(text())
        assert service.registry.dead.is_set()
        assert error is not None
        assert (error.reason, error.retry_after_ms) == ("engine_died", 1000)
        assert error.message == (
            "The engine stopped while it processed your request. Please try again."
        )
        assert caplog.messages == ["request r: the engine died"]
        assert caplog.records[0].levelno == logging.ERROR

    virtually(test)


def test_bug_is_logged_and_not_told(virtually: Virtually, caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            raise RuntimeError("secret")

        service.engine.generate_ = generate
        error, _ = await service.run(text())
        assert error is not None
        assert error.reason == "server_error"
        assert "secret" not in error.message
        assert not service.registry.dead.is_set()
        assert caplog.messages == ["request r failed"]

    virtually(test)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("dies", [False, True])
def test_failure_of_the_engine_after_its_last_output_is_logged_and_no_error(
    virtually: Virtually, caplog: pytest.LogCaptureFixture, kind: str, dies: bool
) -> None:
    async def test(service: Service) -> None:
        request: Any = text() if kind == "text" else GenerateImageRequest(model="m", prompt="a")
        last: Any = GenerateResponse if kind == "text" else GenerateImageResponse

        async def generate(emit: Any) -> None:
            emit(last(usage=Usage(prompt_tokens=7)))
            raise EngineDeadError if dies else RuntimeError

        service.engine.generate_ = generate
        error, output = await service.run(request)
        assert error is None
        assert output[-1].usage.prompt_tokens == 7
        assert caplog.messages == ["request r: the engine died" if dies else "request r failed"]
        assert service.registry.dead.is_set() == dies

    virtually(test, TEXT if kind == "text" else IMAGE)


def test_refusal_after_the_last_output_is_an_error(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        refusal = InferenceError("slow_reader", "x")

        async def generate(emit: Any) -> None:
            emit(GenerateResponse(usage=Usage(prompt_tokens=7)))
            raise refusal

        service.engine.generate_ = generate
        error, _ = await service.run(text())
        assert error is refusal

    virtually(test)


def test_cancelled_call_returns_its_permit(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        task = asyncio.create_task(run(service.registry, text(), CONTEXT, service.outbox()))
        await settle()
        assert service.served.admission.running == 1
        task.cancel()
        await settle()
        assert task.cancelled()
        assert service.served.admission.running == 0

    virtually(test)


@pytest.mark.parametrize(
    ("request_", "model", "reason"),
    [
        (GenerateRequest(model="x", text="a"), TEXT, "model_not_found"),
        (GenerateRequest(model="m", text="a"), IMAGE, "model_not_capable"),
        (EmbedRequest(model="m", inputs=[EmbedInput(text="a")]), TEXT, "embeddings_not_allowed"),
        (GenerateImageRequest(model="m", prompt="a"), TEXT, "model_not_capable"),
        (GenerateRequest(model="m", text="a", output={"n": 129}), TEXT, None),
        (EmbedRequest(model="m"), EMBEDDING, None),
        (GenerateImageRequest(model="m"), IMAGE, None),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_request_is_checked_before_it_waits(
    virtually: Virtually, request_: Any, model: Model, reason: str | None
) -> None:
    async def test(service: Service) -> None:
        error, output = await service.run(request_)
        assert error is not None
        assert error.status.name in ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
        if reason is not None:
            assert error.reason == reason
        assert output == []
        assert service.engine.terms == []
        assert service.left("requests") == 60

    virtually(test, model, requests_per_minute=60)


def test_chat_needs_a_chat_model(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        request = GenerateRequest(model="m")
        request.chat.messages.add().parts.add().text = "a"
        error, _ = await service.run(request)
        assert error is not None
        assert error.reason == "model_not_capable"

    virtually(test)


# Charges of text


def spent(service: Service) -> int:
    return 6000 - service.left("tokens")


@pytest.mark.parametrize(
    ("more", "during", "after"),
    [
        ({}, 7, 10),
        ({"stopping": Stopping(max_tokens=5)}, 27, 10),
        # The best of three is emitted at its end, so its maximum is charged until then.
        ({"output": OutputOptions(best_of=3)}, 27, 30),
        ({"output": OutputOptions(n=3, best_of=3)}, 7, 10),
    ],
    ids=["unbounded", "max_tokens", "best_of", "all of the best"],
)
def test_text_reserves_what_it_may_use(
    virtually: Virtually, more: dict[str, Any], during: int, after: int
) -> None:
    async def test(service: Service) -> None:
        seen = []

        async def generate(emit: Any) -> None:
            seen.append(spent(service))
            emit("a")
            emit(delta("b"))
            emit(delta("c"))

        service.engine.generate_ = generate
        error, output = await service.run(text(**more))
        assert error is None
        assert seen == [during]
        assert output[0].admitted.rate_limits.tokens.remaining == 6000 - during
        assert spent(service) == after

    virtually(test, tokens_per_minute=6000)


def test_usage_replaces_the_count_of_the_pieces(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            for _ in range(10):
                emit("a")
            emit(GenerateResponse(usage=Usage(prompt_tokens=7, completion_tokens=12)))

        service.engine.generate_ = generate
        await service.run(text())
        assert spent(service) == 19

    virtually(test, tokens_per_minute=6000)


def test_prompt_beyond_the_allowance_is_refused_and_costs_a_request(
    virtually: Virtually,
) -> None:
    async def test(service: Service) -> None:
        service.engine.prepared.prompt_tokens = 60
        await service.run(text())
        error, output = await service.run(text())
        assert error is not None
        assert (error.reason, error.type) == ("rate_limit_exceeded", "tokens")
        assert output == []
        assert service.left("requests") == 58
        error, _ = await service.run(text(), CallContext("r", 1.0, principal="other"))
        assert error is None

    virtually(test, tokens_per_minute=100, requests_per_minute=60)


def test_key_without_requests_is_refused_before_the_preparation(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        await service.run(text())
        error, _ = await service.run(text())
        assert error is not None
        assert error.reason == "rate_limit_exceeded"
        assert len(service.engine.terms) == 1

    virtually(test, requests_per_minute=1)


def test_key_without_requests_does_not_even_wait(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(50)

        service.engine.generate_ = generate
        first = asyncio.create_task(run(service.registry, text(), CONTEXT, service.outbox()))
        await settle()
        began = now()
        error = await run(service.registry, text(), CONTEXT, service.outbox())
        assert now() == began
        assert error is not None
        assert error.reason == "rate_limit_exceeded"
        await first

    virtually(test, requests_per_minute=1, max_running=1)


# Embeddings


def embed(*inputs: str | int) -> EmbedRequest:
    """Texts, or as many token ids as a number says."""
    return EmbedRequest(
        model="m",
        inputs=[
            EmbedInput(text=item)
            if isinstance(item, str)
            else EmbedInput(token_ids=TokenIds(ids=[1] * item))
            for item in inputs
        ],
    )


def test_embedding_is_one_message_with_all_it_cost(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            assert 6000 - service.left("tokens") == 3 + 50 + 4  # the estimate
            await asyncio.sleep(2)
            emit(EmbedResponse(vectors=b"x", token_counts=[5, 6, 7]))

        service.engine.generate_ = generate
        error, (response,) = await service.run(embed("x" * 9, "y" * 1000, 4))
        assert error is None
        assert response.model == "m"
        assert response.usage == Usage(prompt_tokens=18)
        assert (response.timings.queue_ms, response.timings.total_ms) == (0, 2000)
        assert not response.timings.HasField("first_output_ms")
        assert response.rate_limits.tokens.remaining == 6000 - 18
        assert 6000 - service.left("tokens") == 18

    virtually(test, EMBEDDING, tokens_per_minute=6000)


def test_embedding_that_waited_tells_how_long(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            await asyncio.sleep(2)
            emit(EmbedResponse(token_counts=[1]))

        service.engine.generate_ = generate
        first = asyncio.create_task(run(service.registry, embed("a"), CONTEXT, service.outbox()))
        await settle()
        outbox = service.outbox()
        await run(service.registry, embed("a"), CONTEXT, outbox)
        await first
        (response,) = outbox.output
        assert (response.timings.queue_ms, response.timings.total_ms) == (2000, 4000)
        assert not response.HasField("rate_limits")

    virtually(test, EMBEDDING, max_running=1)


def test_failed_embedding_is_charged_as_estimated(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            raise RuntimeError

        service.engine.generate_ = generate
        error, _ = await service.run(embed("x" * 8))
        assert error is not None
        assert 6000 - service.left("tokens") == 2

    virtually(test, EMBEDDING, tokens_per_minute=6000)


def test_embedding_takes_a_permit_for_each_mebibyte(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        running = []

        async def generate(emit: Any) -> None:
            running.append(service.served.admission.running)
            emit(EmbedResponse(token_counts=[1]))

        service.engine.generate_ = generate
        await service.run(embed(*["a"] * 255))
        await service.run(embed(*["a"] * 256))
        assert running == [1, 2]

    virtually(test, EMBEDDING)


# Images


def test_image_is_charged_for_its_prompt(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        progress = GenerateImageResponse(progress=Progress(step=1, total_steps=2))

        async def generate(emit: Any) -> None:
            assert 6000 - service.left("tokens") == 7
            assert service.served.admission.running == 1
            await asyncio.sleep(1)
            emit(progress)
            await asyncio.sleep(1)
            emit(progress)
            await asyncio.sleep(1)
            emit(GenerateImageResponse(usage=Usage(prompt_tokens=7)))

        service.engine.generate_ = generate
        error, output = await service.run(GenerateImageRequest(model="m", prompt="a", n=2))
        assert error is None
        assert output[0].admitted.prompt_tokens == 7
        assert output[1:3] == [progress, progress]
        assert not output[1].HasField("timings")
        timings = output[3].timings
        assert (timings.queue_ms, timings.first_output_ms, timings.total_ms) == (0, 1000, 3000)
        assert 6000 - service.left("tokens") == 7

    virtually(test, IMAGE, tokens_per_minute=6000)


def test_silent_image_engine_ends_a_call(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        async def generate(emit: Any) -> None:
            for _ in range(3):
                await asyncio.sleep(1.5)
                emit(GenerateImageResponse(progress=Progress(step=1)))
            await asyncio.sleep(1000)

        service.engine.generate_ = generate
        began = now()
        error, output = await service.run(GenerateImageRequest(model="m", prompt="a"))
        assert error is not None
        assert error.reason == "deadline_exceeded"
        assert 6.5 <= now() - began < 7
        assert len(output) == 4

    virtually(test, IMAGE, output_gap_seconds=2.0)
