"""POST /v1/images/generations: pictures in one document, by address, or streamed with previews."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from aiohttp import web

from edge.handlers.body import read_body
from edge.handlers.call_options import call_options
from edge.handlers.event_stream import TICK_SECONDS, EventStream
from edge.handlers.files import files_url
from edge.openai.errors import (
    OpenAIError,
    internal_error,
    missing_model,
    not_an_image_model,
)
from edge.openai.errors.http import files_unavailable
from edge.openai.errors.rpc_status import from_rpc_status
from edge.openai.images.request import ParsedImage, parse_image_request
from edge.openai.images.response import ImageResponse
from edge.openai.images.stream import ImageStream
from edge.openai.pieces import Piece, encoded
from edge.openai.sse import error_event
from edge.state import EDGE, RATE_LIMITS, REQUEST_ID, Edge
from edge.upstream.router import UpstreamError
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.models_pb2 import ModelKind

log = logging.getLogger(__name__)

# Of previews that wait for a client.
_MOST_PREVIEW_BYTES: Final = 16 * 1024 * 1024


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
    at = None
    if call.wants_urls:
        at = files_url(request)
        with _storing():
            await edge.files.prepare()
    parts = edge.router.generate_image(call.request, call_options(request))
    async with _Drawing(request, parts) as drawing:
        if call.stream:
            return await _stream(request, edge, call, drawing)
        answer = ImageResponse(call, int(time.time()))
        while (part := await drawing.part()) is not None:
            answer.part(part)
    urls = None
    if at is not None:
        extension = call.output_format.replace("jpeg", "jpg")
        with _storing():
            names = await edge.files.keep(answer.files(), extension)
        urls = [at + name for name in names]
    return await _send(request, answer.document(urls))


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("cannot store pictures: %s", error)
        raise files_unavailable() from error


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
    request: web.Request, edge: Edge, call: ParsedImage, drawing: _Drawing
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
    except ConnectionError:
        # Nobody is left to be told.
        raise
    except Exception:
        # The 200 is out: only the stream itself can still tell of a failure.
        log.exception("request %s failed", request[REQUEST_ID])
        await stream.send([error_event(internal_error())])
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

    They are taken as fast as the service gives them: a client that reads slowly holds up no
    engine. What waits for it is bounded by the request: its pictures, and few previews.

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
        self._waiting: deque[GenerateImageResponse] = deque()
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._ended = False
        self._failed: OpenAIError | None = None
        self._admitted = False
        self._hold: tuple[asyncio.Timeout, float] | None = None

    async def __aenter__(self) -> _Drawing:
        self._answers.add(self)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._answers.discard(self)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._parts.aclose()

    def fail(self, error: OpenAIError) -> None:
        """Ends it with an error."""
        self._failed = error
        self._waiting.clear()
        self._news.set()

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
        # Megabytes are about to be copied, perhaps for the tenth time in a row.
        await asyncio.sleep(0)
        while not self._waiting:
            if self._failed is not None:
                raise self._failed
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        part = self._waiting.popleft()
        if part.HasField("admitted") and self._hold is not None:
            hold, seconds = self._hold
            hold.reschedule(asyncio.get_running_loop().time() + seconds)
        return part

    async def _read(self) -> None:
        try:
            async for part in self._parts:
                self._take(part)
        except UpstreamError as failed:
            error = from_rpc_status(failed.status, admitted=self._admitted)
            self._request[RATE_LIMITS] = error.rate_limits
            self._failed = self._failed or error
        except OpenAIError as error:
            self._failed = self._failed or error
        except Exception:
            log.exception("request %s failed", self._request[REQUEST_ID])
            self._failed = self._failed or internal_error()
        finally:
            self._ended = True
            self._news.set()

    def _take(self, part: GenerateImageResponse) -> None:
        if self._failed is not None:
            return
        if part.HasField("admitted"):
            self._admitted = True
            self._request[RATE_LIMITS] = part.admitted.rate_limits
        if part.HasField("partial_image"):
            self._drop_older(part.partial_image.index)
        self._waiting.append(part)
        self._news.set()

    def _drop_older(self, index: int) -> None:
        """Who is far behind wants the newest preview of a picture alone."""
        previews = [part for part in self._waiting if part.HasField("partial_image")]
        if sum(len(part.partial_image.data) for part in previews) > _MOST_PREVIEW_BYTES:
            for part in previews:
                if part.partial_image.index == index:
                    self._waiting.remove(part)
