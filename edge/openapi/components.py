"""Headers, parameters and failures that operations of the OpenAPI document share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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

PARAMETERS: Final = {
    "x-request-id": {
        "name": "x-request-id",
        "in": "header",
        "description": "An id for logs, returned with the response: 1 to 128 characters of A-Z a-z "
        "0-9 and `_.:@/+=-`. The edge replaces any other value.",
        "schema": {"type": "string"},
    },
    "x-request-timeout": {
        "name": "x-request-timeout",
        "in": "header",
        "description": "Seconds that the request may take, above 0. It can only shorten the edge's "
        "own limit.",
        "schema": {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context, passed on to the inference service; ignored if it is "
        "not well-formed.",
        "schema": {"type": "string"},
    },
    "model-id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "An id or alias of a model. Slashes in it may be percent-encoded or not.",
        "schema": {"type": "string", "minLength": 1},
    },
    "file": {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Name of the image.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}\\.(png|jpg|webp)$"},
    },
    "asset": {
        "name": "asset",
        "in": "path",
        "required": True,
        "description": "Name of the file.",
        "schema": {"type": "string", "minLength": 1},
    },
}

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
