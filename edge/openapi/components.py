"""Headers, parameters and failures that operations share, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_COUNT: Final = {"type": "integer", "minimum": 0}
_DURATION: Final = {"type": "string", "examples": ["17ms", "8.64s", "6m0s"]}
# Sent where the key has such a limit.
RATE_LIMITS: Final = {
    f"x-ratelimit-{name}-{kind}": {"description": f"{text} {kind}.", "schema": schema}
    for kind in ("requests", "tokens")
    for name, text, schema in (
        ("limit", "The key's allowance of", _COUNT),
        ("remaining", "What is left of the key's", _COUNT),
        ("reset", "Time until the allowance is whole again, of", _DURATION),
    )
}
HEADERS: Final = {
    **RATE_LIMITS,
    "x-request-id": {
        "description": "The request's own id where it is well-formed, else a new one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds until the answer began.",
        "schema": _COUNT,
    },
    "openai-version": {"description": "A constant.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds until another try can help.", "schema": _COUNT},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": _COUNT},
    "x-should-retry": {
        "description": "Overrides what clients make of the status.",
        "schema": {"enum": ["true", "false"]},
    },
    "allow": {"description": "The methods of the path.", "schema": {"type": "string"}},
    "etag": {"description": "Of this version of the document.", "schema": {"type": "string"}},
}

PARAMETERS: Final = {
    "x-request-id": {
        "name": "x-request-id",
        "in": "header",
        "description": "Correlates; comes back with the answer. At most 128 of A-Z a-z 0-9 and "
        "`_.:@/+=-`; anything else is replaced.",
        "schema": {"type": "string"},
    },
    "x-request-timeout": {
        "name": "x-request-timeout",
        "in": "header",
        "description": "Seconds that the request may take, above 0; the edge's own limit is never "
        "exceeded.",
        "schema": {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context, handed on; ignored where it is not well-formed.",
        "schema": {"type": "string"},
    },
    "model-id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "An id or alias. Slashes in it may be percent-encoded or not.",
        "schema": {"type": "string", "minLength": 1},
    },
    "file": {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Name of the picture.",
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
# By status: name, description, headers beside x-request-id.
RESPONSES: Final[Mapping[int, tuple[str, str, tuple[str, ...]]]] = {
    400: ("BadRequest", "The request breaks a rule; `param` names the member.", ()),
    401: ("Unauthorized", "No API key, or one that is not known.", ()),
    403: ("Forbidden", "The key or the model does not allow this.", ()),
    404: ("NotFound", "No such model, or no such file.", ()),
    405: ("MethodNotAllowed", "Answers another method on this path.", ("allow",)),
    413: ("ContentTooLarge", "The body exceeds the edge's limit.", ()),
    415: ("UnsupportedMediaType", "The body is compressed.", ()),
    429: (
        "TooManyRequests",
        "A limit of the key is reached, or the queue is full.",
        (*_RETRY, *RATE_LIMITS),
    ),
    500: ("InternalServerError", "A fault of the service.", ()),
    502: ("BadGateway", "Edge and inference service do not understand each other.", _RETRY),
    503: ("ServiceUnavailable", "No replica takes the request now.", _RETRY),
    504: ("GatewayTimeout", "The request's time is over.", _RETRY),
}
