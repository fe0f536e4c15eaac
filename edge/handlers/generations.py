"""POST /v1/chat/completions and POST /v1/completions: one generation or several, plain or streamed.

A completion with several prompts is several generations whose choices share one answer; a
`source` is the number of the generation within the request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from aiohttp import web
from google.rpc import status_pb2

from edge.handlers.body import read_body
from edge.handlers.call_options import call_options
from edge.handlers.event_stream import TICK_SECONDS, EventStream
from edge.handlers.json_answer import json_answer
from edge.openai.chat.request import ParsedChat, parse_chat_request
from edge.openai.completions.request import ParsedCompletion, parse_completion_request
from edge.openai.errors import (
    OpenAIError,
    internal_error,
    not_a_chat_model,
    not_a_completion_model,
)
from edge.openai.errors.rpc_status import from_rpc_status
from edge.openai.rate_limits import keep_lowest
from edge.openai.sse import error_event
from edge.openai.text.translator import Identity, ResponseTranslator, StreamTranslator
from edge.state import EDGE, RATE_LIMITS, REQUEST_ID, Edge
from edge.upstream.transport import Call, CallOptions, Receiver
from isthmus.v1.generate_pb2 import GenerateResponse
from isthmus.v1.models_pb2 import Model, ModelKind
from isthmus.v1.usage_pb2 import Admitted, RateLimits

log = logging.getLogger(__name__)

TextCall = ParsedChat | ParsedCompletion


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _create(request, parse_chat_request, _check_chat, "chatcmpl-")


async def create_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _create(request, parse_completion_request, _check_completion, "cmpl-")


def _check_chat(model: Model) -> None:
    if not model.text.chat:
        raise not_a_chat_model()


def _check_completion(model: Model) -> None:
    if model.kind != ModelKind.MODEL_KIND_TEXT:
        raise not_a_completion_model()


async def _create(
    request: web.Request,
    parse: Callable[..., TextCall],
    check: Callable[[Model], None],
    prefix: str,
) -> web.StreamResponse:
    edge = request.app[EDGE]
    body = await read_body(request)
    call = parse(body, ignore_unknown=edge.config.unknown_members == "ignore")
    check(edge.router.find(call.model))
    identity = Identity(prefix + os.urandom(16).hex(), int(time.time()))
    options = call_options(request, call.priority)
    if call.stream:
        return await _stream(request, edge, call, identity, options)
    answer = _PlainAnswer(call, call.open_response(identity))
    request[RATE_LIMITS] = answer.rate_limits
    with _Generations(edge, call, answer, options):
        while not answer.complete():
            await answer.news()
    return json_answer(request, answer.translator.result())


async def _stream(
    request: web.Request, edge: Edge, call: TextCall, identity: Identity, options: CallOptions
) -> web.StreamResponse:
    stream = EventStream(request, edge.config)
    answer = _StreamedAnswer(call, call.open_stream(identity), stream)
    request[RATE_LIMITS] = answer.rate_limits
    with _Generations(edge, call, answer, options):
        await answer.wait_for_first_words(edge.config.header_hold_seconds)
        response = await stream.open(answer.first_words())
        try:
            answer.flow()
            await answer.wait_for_end()
            last_words = answer.last_words()
        except Exception:
            # The 200 is out: only the stream itself can still tell of a failure.
            log.exception("request %s failed", request[REQUEST_ID])
            answer.fail(internal_error())
            last_words = answer.last_words()
        stream.write(last_words)
    await stream.close()
    return response


class _Answer:
    """What the sources of one request have said so far, and whether they are done."""

    def __init__(self, call: TextCall) -> None:
        self._not_admitted = set(range(len(call.requests)))
        self._running = len(call.requests)
        self._other_names = call.other_names
        # An asyncio.Event for the one task that waits here, at half its price.
        self._news = False
        self._waiter: asyncio.Future[None] | None = None
        self.error: OpenAIError | None = None
        self.rate_limits = RateLimits()

    def text(self, source: int, text: str) -> None:
        raise NotImplementedError

    def part(self, source: int, part: GenerateResponse) -> None:
        raise NotImplementedError

    def end(self, source: int, status: status_pb2.Status) -> None:
        self._running -= 1
        if status.code:
            error = from_rpc_status(status, admitted=source not in self._not_admitted)
            keep_lowest(self.rate_limits, error.rate_limits)
            self.fail(error.in_terms_of(self._other_names))
        self._tell()

    def admitted(self, source: int, admitted: Admitted) -> None:
        self._not_admitted.discard(source)
        if admitted.HasField("rate_limits"):
            keep_lowest(self.rate_limits, admitted.rate_limits)

    def fail(self, error: OpenAIError) -> None:
        self.error = self.error or error
        self._tell()

    def complete(self) -> bool:
        """Whether every source has ended.

        Raises:
            OpenAIError: One of them failed.
        """
        if self.error is not None:
            raise self.error
        return not self._running

    async def news(self) -> None:
        """Returns when something has happened since the last time."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._news = False

    def _tell(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _PlainAnswer(_Answer):
    def __init__(self, call: TextCall, translator: ResponseTranslator) -> None:
        super().__init__(call)
        self.translator = translator

    def text(self, source: int, text: str) -> None:
        self.translator.text(source, text)

    def part(self, source: int, part: GenerateResponse) -> None:
        if part.HasField("admitted"):
            admitted = part.admitted
            self.admitted(source, admitted)
            self.translator.admit(source, admitted)
        self.translator.part(source, part)


class _StreamedAnswer(_Answer):
    """Holds words back until the 200 is out, then hands them straight to the transport."""

    def __init__(self, call: TextCall, translator: StreamTranslator, stream: EventStream) -> None:
        super().__init__(call)
        self._translator = translator
        self._stream = stream
        self._held: list[tuple[int, str | GenerateResponse]] = []
        self._flowing = False

    def text(self, source: int, text: str) -> None:
        if self._flowing:
            self._stream.write(self._translator.text(source, text))
        else:
            self._hold(source, text)

    def part(self, source: int, part: GenerateResponse) -> None:
        if part.HasField("admitted"):
            self.admitted(source, part.admitted)
            self._translator.admit(source, part.admitted)
            self._tell()
            if not (part.deltas or part.finishes or part.HasField("usage")):
                return
        if self._flowing:
            self._stream.write(self._translator.part(source, part))
        else:
            self._hold(source, part)

    async def wait_for_first_words(self, hold_seconds: float) -> None:
        """Returns when the 200 may go out: admitted, and either words are there or time is up.

        Raises:
            OpenAIError: A source failed before that; it is still a true status.
        """
        while self._not_admitted and not self.complete():
            await self.news()
        try:
            async with asyncio.timeout(hold_seconds):
                while not self._held and not self.complete():
                    await self.news()
        except TimeoutError:
            pass

    def first_words(self) -> bytes:
        """The opening of every choice and what was held back."""
        return self._translator.start() + self._release()

    def flow(self) -> None:
        """From now on words go straight out."""
        self._stream.write(self._release())
        self._flowing = True

    async def wait_for_end(self) -> None:
        """Returns when every source has ended or one has failed."""
        while self._running and self.error is None:
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self.news()
            except TimeoutError:
                self._stream.tick()

    def last_words(self) -> bytes:
        """The end of the stream: an error event is never followed by [DONE]."""
        self._flowing = False
        return self._translator.end() if self.error is None else error_event(self.error)

    def _hold(self, source: int, words: str | GenerateResponse) -> None:
        self._held.append((source, words))
        self._tell()

    def _release(self) -> bytes:
        held, self._held = self._held, []
        translate = self._translator
        return b"".join(
            translate.text(source, words)
            if isinstance(words, str)
            else translate.part(source, words)
            for source, words in held
        )


class _Source(Receiver):
    """Tells the answer which generation speaks."""

    __slots__ = ("_answer", "_source")

    def __init__(self, answer: _Answer, source: int) -> None:
        self._answer = answer
        self._source = source

    def on_text(self, text: str) -> None:
        self._answer.text(self._source, text)

    def on_part(self, part: GenerateResponse) -> None:
        self._answer.part(self._source, part)

    def on_end(self, status: status_pb2.Status) -> None:
        self._answer.end(self._source, status)


class _Generations:
    """The generations of a request; leaving stops whatever still runs, whyever it is left."""

    def __init__(self, edge: Edge, call: TextCall, answer: _Answer, options: CallOptions) -> None:
        self._edge = edge
        self._call = call
        self._answer = answer
        self._options = options
        self._calls: list[Call] = []

    def __enter__(self) -> None:
        self._edge.answers.add(self._answer)
        try:
            for source, generate in enumerate(self._call.requests):
                receiver = _Source(self._answer, source)
                self._calls.append(self._edge.router.open(generate, receiver, self._options))
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._edge.answers.discard(self._answer)
        for call in self._calls:
            call.cancel()
