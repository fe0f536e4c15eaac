"""The description of one route in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from edge.openai.errors import ErrorBody

# The JSON Schema in examples of tools and structured output.
CITY: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
# The type of a response's body, or its JSON Schema if the body is not made from a type.
Body = type[Struct] | dict[str, Any]


# Failures of each kind of operation. 405 is the response to any other method on the same path.
_OPEN_FAILURES: Final = (405, 500)
_READ_FAILURES: Final = (401, 403, 405, 429, 500)
_MODEL_FAILURES: Final = (400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        path: URL path with variables in braces.
        id: The `operationId`.
        tag: A key of TAGS.
        success: Description of the 200.
        content: The body of the 200 by media type.
        request: Type of the request's body, for a request to a model.
        method: "get", "post" or "delete"; unset is POST for a request to a model, else GET.
        examples: Bodies by name that work with the default models.
        chunk: Type of each event's data, for streams that end with [DONE].
        events: Type of each event's data by the event's name, for streams of named events.
        done: Whether a stream of named events ends with [DONE]; then a failure after the 200 is one
            of `events`.
        headers: Headers of the 200 beside x-request-id; keys of components.HEADERS. Without any,
            a request to a model has MODEL_HEADERS.
        parameters: Variables of the path and the query; keys of components.PARAMETERS.
        refusable: Whether a parameter can be wrong in itself, which is a 400.
        other: Description and body type of further statuses that are not errors.
        open: Whether it needs no API key.
        error: Type of the body of its failures.
    """

    path: str
    id: str
    tag: str
    summary: str
    description: str
    success: str
    content: Mapping[str, Body]
    request: type[Struct] | None = None
    method: str = ""
    examples: Mapping[str, Any] = field(default_factory=dict)
    chunk: type[Struct] | None = None
    events: Mapping[str, type[Struct]] = field(default_factory=dict)
    done: bool = False
    headers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    other: Mapping[int, tuple[str, type[Struct] | None]] = field(default_factory=dict)
    refusable: bool = False
    open: bool = False
    error: type[Struct] = ErrorBody

    @property
    def failures(self) -> tuple[int, ...]:
        """Statuses with an error object."""
        if self.request is not None:
            return _MODEL_FAILURES
        failures = _OPEN_FAILURES if self.open else _READ_FAILURES
        failures = (*failures, 404) if self.parameters else failures
        failures = (400, *failures) if self.refusable else failures
        # No upstream has listed its models yet.
        return (*failures, 503) if self.tag == "Models" else failures
