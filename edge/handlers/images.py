"""POST /v1/images/generations: pictures in one document, by address, or streamed with previews."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from edge.handlers.body import read_body
from edge.handlers.call_options import call_options
from edge.handlers.event_stream import TICK_SECONDS, EventStream
from edge.handlers.files import files_url
from edge.openai.errors import OpenAIError, missing_model, not_an_image_model
from edge.openai.image_answer import ImageAnswer, ImageStream, Piece, encoded
from edge.openai.images import ImageCall, parse_image_request
from edge.openai.rpc_status import from_rpc_status
from edge.openai.sse import error_event
from edge.state import EDGE, RATE_LIMITS, Edge
from edge.upstream.router import UpstreamError
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.models_pb2 import ModelKind


async def create_images(request: web.Request) -> web.StreamResponse:
    """Draws the pictures of one request."""
    edge = request.app[EDGE]
    body = await read_body(request)
    call = parse_image_request(body, ignore_unknown=edge.config.unknown_members == "ignore")
    name = call.request.model or edge.router.default_model(ModelKind.MODEL_KIND_IMAGE)
    if not name:
        raise missing_model()
    model = edge.router.find(name)
    if model.kind != ModelKind.MODEL_KIND_IMAGE:
        raise not_an_image_model()
    call.address(name, model.image)
    at = files_url(request) if call.wants_urls else None
    parts = edge.router.generate_image(call.request, call_options(request))
    async with _Drawing(request, parts) as drawing:
        if call.stream:
            return await _stream(request, edge, call, drawing)
        answer = ImageAnswer(call, int(time.time()))
        while (part := await drawing.part()) is not None:
            answer.part(part)
    urls = None
    if at is not None:
        extension = call.output_format.replace("jpeg", "jpg")
        names = await edge.files.keep(answer.files(), extension)
        urls = [at + name for name in names]
    return await _send(request, answer.document(urls))


async def _send(request: web.Request, document: list[Piece]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = sum(map(len, document))
    await response.prepare(request)
    for data in encoded(document):
        await response.write(data)
        # A fast client never makes the write wait, and others want their turn.
        await asyncio.sleep(0)
    await response.write_eof()
    return response


async def _stream(
    request: web.Request, edge: Edge, call: ImageCall, drawing: _Drawing
) -> web.StreamResponse:
    stream = EventStream(request, edge.config)
    translator = ImageStream(call, int(time.time()))
    events: list[Piece] = []
    async with drawing.held_back(edge.config.header_hold_seconds):
        events = await _next_events(drawing, translator)
    response = await stream.open(b"")
    try:
        events = events or await _awaited_events(drawing, translator, stream)
        while events:
            await stream.send(encoded(events))
            events = await _awaited_events(drawing, translator, stream)
    except OpenAIError as error:
        await stream.send([error_event(error)])
    await stream.close()
    return response


async def _awaited_events(
    drawing: _Drawing, translator: ImageStream, stream: EventStream
) -> list[Piece]:
    """The next events, with signs of life while there are none."""
    while True:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                return await _next_events(drawing, translator)
        except TimeoutError:
            stream.tick()


async def _next_events(drawing: _Drawing, translator: ImageStream) -> list[Piece]:
    """The next events, progress passed over; nothing once all is said."""
    while (part := await drawing.part()) is not None:
        if events := translator.part(part):
            return events
    return translator.end()


class _Drawing:
    """The parts of an answer as they come; leaving it stops the engine.

    Args:
        request: Gets the key's rate limits.
        parts: From the router.
    """

    def __init__(
        self, request: web.Request, parts: AsyncGenerator[GenerateImageResponse, None]
    ) -> None:
        self._request = request
        self._answers = request.app[EDGE].answers
        self._parts = parts
        self._next: asyncio.Task[GenerateImageResponse | None] | None = None
        self._failed: asyncio.Future[OpenAIError] = asyncio.get_running_loop().create_future()
        self._admitted = False
        self._hold: tuple[asyncio.Timeout, float] | None = None

    async def __aenter__(self) -> _Drawing:
        self._answers.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._answers.discard(self)
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._parts.aclose()

    def fail(self, error: OpenAIError) -> None:
        """Ends it with an error."""
        if not self._failed.done():
            self._failed.set_result(error)

    @asynccontextmanager
    async def held_back(self, seconds: float) -> AsyncGenerator[None, None]:
        """Cuts its body short, this long after the service has admitted the request."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as hold:
                self._hold = hold, seconds
                try:
                    yield
                finally:
                    self._hold = None

    async def part(self) -> GenerateImageResponse | None:
        """The next part; None at the end. Nothing is lost where it is cancelled.

        Raises:
            OpenAIError: The request was refused or has failed.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._parts, None))
        await asyncio.wait((self._next, self._failed), return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            raise self._failed.result()
        try:
            part = self._next.result()
        except UpstreamError as failed:
            error = from_rpc_status(failed.status, admitted=self._admitted)
            self._request[RATE_LIMITS] = error.rate_limits
            raise error from failed
        finally:
            self._next = None
        if part is not None and part.HasField("admitted") and not self._admitted:
            self._admitted = True
            self._request[RATE_LIMITS] = part.admitted.rate_limits
            if self._hold is not None:
                hold, seconds = self._hold
                hold.reschedule(asyncio.get_running_loop().time() + seconds)
        return part
