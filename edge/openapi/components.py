"""Headers, parameters and failures that operations of the OpenAPI document share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_COUNT: Final = {"type": "integer", "minimum": 0}
_DURATION: Final = {"type": "string", "examples": ["17ms", "8.64s", "6m0s"]}
# Headers of responses to requests whose key has rate limits.
RATE_LIMITS: Final = {
    f"x-ratelimit-{name}-{kind}": {"description": text.format(kind), "schema": schema}
    for kind in ("requests", "tokens")
    for name, text, schema in (
        ("limit", "The {} that the key may use in a minute.", _COUNT),
        ("remaining", "The {} that the key has left.", _COUNT),
        ("reset", "Time until the key has all of its {} again.", _DURATION),
    )
}
HEADERS: Final = {
    **RATE_LIMITS,
    "x-request-id": {
        "description": "The request's own `x-request-id` if it is well-formed, else a new id.",
        "required": True,
        "schema": {"type": "string"},
    },
    "request-id": {"description": "Repeats `x-request-id`.", "schema": {"type": "string"}},
    "openai-processing-ms": {
        "description": "Milliseconds from the request's arrival to these headers.",
        "schema": _COUNT,
    },
    "openai-version": {"description": "A constant.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds to wait before a retry.", "schema": _COUNT},
    "retry-after-ms": {"description": "Milliseconds to wait before a retry.", "schema": _COUNT},
    "x-should-retry": {
        "description": "Whether to retry, whatever the status suggests.",
        "schema": {"enum": ["true", "false"]},
    },
    "allow": {"description": "The methods that the path has.", "schema": {"type": "string"}},
    "etag": {"description": "A hash of the document.", "schema": {"type": "string"}},
}


def _parameter(name: str, place: str, description: str, **schema: str | int) -> dict[str, Any]:
    required = {"required": True} if place == "path" else {}
    text = {"description": description, "schema": {"type": "string", **schema}}
    return {"name": name, "in": place, **required, **text}


PARAMETERS: Final = {
    "x-request-id": _parameter(
        "x-request-id",
        "header",
        "An id for logs, returned with the response: 1 to 128 characters of A-Z a-z 0-9 and "
        "`_.:@/+=-`. The edge replaces any other value.",
    ),
    "x-request-timeout": _parameter(
        "x-request-timeout",
        "header",
        "Seconds that the request may take, above 0. It can only shorten the edge's own limit.",
        pattern=r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?$",
    ),
    "traceparent": _parameter(
        "traceparent",
        "header",
        "W3C trace context, passed on to the inference service; ignored if it is not well-formed.",
    ),
    "model-id": _parameter(
        "id",
        "path",
        "An id or alias of a model. Slashes in it may be percent-encoded or not.",
        minLength=1,
    ),
    "response-id": _parameter("id", "path", "The id of a response.", minLength=1),
    "limit": {
        "name": "limit",
        "in": "query",
        "description": "At most this many items. Default: 20.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100},
    },
    "order": {
        "name": "order",
        "in": "query",
        "description": "`desc` (default) begins with the last item.",
        "schema": {"enum": ["asc", "desc"]},
    },
    "after": _parameter("after", "query", "The id of the last item of the page before."),
    "file": _parameter(
        "name", "path", "Name of the image.", pattern=r"^[0-9a-f]{32}\.(png|jpg|webp)$"
    ),
    "asset": _parameter("asset", "path", "Name of the file.", minLength=1),
}
# Headers of requests to models, and of their responses.
MODEL_PARAMETERS: Final = ("x-request-id", "x-request-timeout", "traceparent")
MODEL_HEADERS: Final = ("openai-processing-ms", "openai-version", *RATE_LIMITS)

_RETRY: Final = ("retry-after", "retry-after-ms", "x-should-retry")
# By status: name of the component, description, headers beside x-request-id.
RESPONSES: Final[Mapping[int, tuple[str, str, tuple[str, ...]]]] = {
    400: ("BadRequest", "The request is invalid; `param` names the parameter.", ()),
    401: ("Unauthorized", "The API key is absent or unknown.", ()),
    403: ("Forbidden", "The key or the model does not allow this.", ()),
    404: ("NotFound", "There is no such model or file.", ()),
    405: ("MethodNotAllowed", "The path does not have this method.", ("allow",)),
    413: ("ContentTooLarge", "The body exceeds the edge's limit.", ()),
    415: ("UnsupportedMediaType", "The body is compressed.", ()),
    429: (
        "TooManyRequests",
        "A limit of the key is reached, the queue is full, or many wrong keys came.",
        (*_RETRY, *RATE_LIMITS),
    ),
    500: ("InternalServerError", "The edge or the inference service has failed.", ()),
    502: ("BadGateway", "The inference service sent what the edge cannot use.", _RETRY),
    503: ("ServiceUnavailable", "No replica can take the request now.", _RETRY),
    504: ("GatewayTimeout", "The request's time is over.", _RETRY),
}
