"""One request of a batch: from its body to the response that the edge would give."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.rpc.status_pb2 import Status

from contract import refusals
from edge.exchange.machine import Exchange
from edge.openai.chat.request import parse_chat_request
from edge.openai.completions.request import parse_completion_request
from edge.openai.embeddings.request import parse_embeddings_request
from edge.openai.embeddings.response import EmbeddingsResponse
from edge.openai.errors import OpenAIError, internal_error, invalid_request
from edge.openai.errors.rpc_status import from_rpc_status
from edge.openai.images.request import parse_image_request
from edge.openai.images.response import ImageResponse
from edge.openai.pieces import encoded
from edge.openai.responses.request import parse_responses_request
from edge.openai.responses.response import ID_PREFIX
from edge.openai.text.request import ParsedText
from edge.openai.text.translator import Identity
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.models_pb2 import MODEL_KIND_EMBEDDING, MODEL_KIND_IMAGE, MODEL_KIND_TEXT, ModelKind
from launch.client import services
from launch.client.services import Service


@dataclass(frozen=True, slots=True)
class Response:
    """The response of the edge to the same request.

    Attributes:
        status_code: HTTP status.
        body: JSON.
        request_id: Of the service's log.
        retry_after_ms: Milliseconds after which a retry can succeed, if the service has said so.
    """

    status_code: int
    body: bytes
    request_id: str
    retry_after_ms: int | None = None


class BatchCaller:
    """Calls the services.

    Args:
        found: One entry for each model.
        priority: Of text requests, for models that schedule by priority.
    """

    def __init__(self, found: Sequence[Service], priority: int) -> None:
        self._services = found
        self._priority = priority
        # Models that do not schedule by priority.
        self._plain: set[str] = set()
        self._calls: set[Any] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Cancels all calls, and those that begin later. Any thread may call it."""
        with self._lock:
            self._stopped = True
            for call in self._calls:
                call.cancel()

    def call(self, url: str, body: bytes) -> Response:
        """Makes the request and waits for its end; failures are responses, too."""
        request_id = f"batch_{os.urandom(12).hex()}"
        try:
            endpoint = _ENDPOINTS.get(url)
            if endpoint is None:
                known = ", ".join(_ENDPOINTS)
                raise invalid_request(f"A batch has requests of {known}, not of {url}.", "url")
            return Response(200, endpoint(self, body, request_id), request_id)
        except OpenAIError as error:
            return Response(error.status, error.body(), request_id, error.retry_after_ms)

    def _find(self, name: str, kind: ModelKind, refusal: refusals.Refusal) -> Service:
        for service in self._services:
            if name == service.model.id or any(name == a.name for a in service.model.aliases):
                if service.model.kind != kind:
                    raise OpenAIError.of(refusal)
                return service
        raise OpenAIError.of(refusals.unknown_model(name))

    def _chat(self, body: bytes, request_id: str) -> bytes:
        parsed = parse_chat_request(body)
        service = self._find(parsed.model, MODEL_KIND_TEXT, refusals.not_a_chat_model())
        if not service.model.text.chat:
            raise OpenAIError.of(refusals.not_a_chat_model())
        return self._text(parsed, service, "chatcmpl-", request_id)

    def _response(self, body: bytes, request_id: str) -> bytes:
        parsed = parse_responses_request(body)
        refusal = refusals.not_a_chat_model("v1/responses")
        service = self._find(parsed.model, MODEL_KIND_TEXT, refusal)
        if not service.model.text.chat:
            raise OpenAIError.of(refusal)
        return self._text(parsed, service, ID_PREFIX, request_id)

    def _completion(self, body: bytes, request_id: str) -> bytes:
        parsed = parse_completion_request(body)
        service = self._find(parsed.model, MODEL_KIND_TEXT, refusals.not_a_completion_model())
        return self._text(parsed, service, "cmpl-", request_id)

    def _text(self, parsed: ParsedText, service: Service, prefix: str, request_id: str) -> bytes:
        _refuse_stream(parsed.stream)
        identity = Identity(prefix + os.urandom(16).hex(), int(time.time()))
        translator = parsed.document_translator(identity)
        exchange = Exchange(translator, len(parsed.requests), parsed.other_names, parsed.list_name)
        self._fill(exchange, service, parsed.requests, request_id)
        return translator.document()

    def _embeddings(self, body: bytes, request_id: str) -> bytes:
        parsed = parse_embeddings_request(body)
        service = self._find(parsed.model, MODEL_KIND_EMBEDDING, refusals.not_an_embedding_model())
        parsed.request.model = parsed.model
        translator = EmbeddingsResponse(parsed, parsed.model)
        exchange = Exchange(translator, names=parsed.other_names)
        self._fill(exchange, service, [parsed.request], request_id)
        return b"".join(translator.document())

    def _image(self, body: bytes, request_id: str) -> bytes:
        parsed = parse_image_request(body)
        _refuse_stream(parsed.stream)
        if parsed.wants_urls:
            raise invalid_request(
                "A batch has images as 'b64_json' only.", "response_format", "invalid_value"
            )
        name = parsed.request.model
        service = self._find(name, MODEL_KIND_IMAGE, refusals.not_an_image_model())
        parsed.set_model(name, service.model.image)
        translator = ImageResponse(parsed, int(time.time()))
        exchange = Exchange(translator)
        self._fill(exchange, service, [parsed.request], request_id)
        return b"".join(encoded(translator.document()))

    def _fill(
        self, exchange: Exchange[Any], service: Service, requests: Sequence[Any], request_id: str
    ) -> None:
        """Makes the calls, one after another, and feeds the exchange.

        Raises:
            OpenAIError: A call failed.
        """
        for number, request in enumerate(requests):
            if exchange.over:
                break
            self._feed(exchange, number, service, request, request_id)
        exchange.raise_error()
        if not exchange.over:
            raise internal_error()

    def _feed(
        self,
        exchange: Exchange[Any],
        number: int,
        service: Service,
        request: Any,
        request_id: str,
    ) -> None:
        source = exchange.sources[number]
        request.request_id = request_id
        is_text = isinstance(request, GenerateRequest)
        priority = self._priority if is_text and service.model.id not in self._plain else 0
        extra = (("x-priority", str(priority)),) if priority else ()
        status = Status()
        try:
            with self._open(service, request, (*service.metadata, *extra)) as call:
                for part in [call.result()] if isinstance(request, EmbedRequest) else call:
                    source.part(part)
        except grpc.RpcError as error:
            status = services.status_of(error)
        if priority and from_rpc_status(status, admitted=False).param == "priority":
            self._plain.add(service.model.id)
            self._feed(exchange, number, service, request, request_id)
            return
        source.end(status)

    @contextmanager
    def _open(self, service: Service, request: Any, metadata: Any) -> Iterator[Any]:
        options = {"metadata": metadata, "timeout": service.timeout_seconds}
        with self._lock:
            if self._stopped:
                raise internal_error()
            call = _RPCS[type(request)](service)(request, **options)
            self._calls.add(call)
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)


def _refuse_stream(stream: bool) -> None:
    if stream:
        raise invalid_request("A batch has no streams.", "stream", "invalid_value")


_RPCS: Final[dict[type, Callable[[Service], Any]]] = {
    GenerateRequest: lambda service: service.stub.Generate,
    EmbedRequest: lambda service: service.stub.Embed.future,
    GenerateImageRequest: lambda service: service.stub.GenerateImage,
}
_ENDPOINTS: Final[dict[str, Callable[[BatchCaller, bytes, str], bytes]]] = {
    "/v1/chat/completions": BatchCaller._chat,
    "/v1/responses": BatchCaller._response,
    "/v1/completions": BatchCaller._completion,
    "/v1/embeddings": BatchCaller._embeddings,
    "/v1/images/generations": BatchCaller._image,
}
