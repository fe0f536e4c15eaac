"""OpenAI's errors: the exception, and the errors about models, parameters and internal faults.

Public texts are written here or by the inference service, never taken from a foreign exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import ceil
from typing import Final

import msgspec
from msgspec import Struct

from contract.failures import INTERNAL_ERROR, OVERLOADED
from contract.limits import MAX_TOOLS
from contract.refusals import NO_CODE, Refusal, shown
from isthmus.v1.usage_pb2 import RateLimits

# Reasons of the inference service whose HTTP status does not follow from the gRPC status.
STATUS_OF_REASON: Final[Mapping[str, int]] = {
    "model_not_found": 404,
    "model_not_capable": 404,
    "embeddings_not_allowed": 403,
    # The edge was the slow reader: the client did nothing wrong and has not used up a limit.
    "slow_reader": 500,
    # The client has not used up a limit: its next request, or a smaller one, may succeed.
    "out_of_memory": 503,
}
# Reasons that are not error codes of OpenAI: `code` is null.
WITHOUT_CODE: Final = frozenset(
    {
        NO_CODE,
        "model_not_capable",
        "embeddings_not_allowed",
        "slow_reader",
        # Depending on timing, a client gets this 503 or the edge's own, which has no code.
        "queue_timeout",
        "draining",
        "engine_unavailable",
        "engine_died",
    }
)


class ErrorObject(Struct):
    """What went wrong; `param` is the path of the member at fault, `code` names the fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct):
    """The body of every answer that is not a success."""

    error: ErrorObject


@dataclass(eq=False, repr=False)
class OpenAIError(Exception):
    """An error response of the REST API.

    Attributes:
        status: HTTP status.
        message: Public text.
        type: OpenAI's error type; by default it follows from the status.
        code: OpenAI's error code; None is sent as null.
        param: Path of the parameter at fault ("messages[0].role").
        retry_after_ms: Milliseconds after which a retry can succeed; None sends no header.
        should_retry: Overrides the SDKs' own rule for retries.
        rate_limits: Remaining limits of the client's key if a limit is the reason; else empty.
    """

    status: int
    message: str
    _: KW_ONLY
    type: str = ""
    code: str | None = None
    param: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    rate_limits: RateLimits = field(default_factory=RateLimits)

    def __post_init__(self) -> None:
        super().__init__(self.message)
        if not self.type:
            self.type = "server_error" if self.status >= 500 else "invalid_request_error"

    @classmethod
    def of(cls, refusal: Refusal) -> OpenAIError:
        """The error for a refusal whose text edge and inference service share."""
        return cls(
            STATUS_OF_REASON.get(refusal.reason, 400),
            refusal.message,
            code=None if refusal.reason in WITHOUT_CODE else refusal.reason,
            param=refusal.param,
        )

    def in_terms_of(self, names: Mapping[str, str]) -> OpenAIError:
        """Renames the parameter at fault; `names` maps the service's names to the client's."""
        for name, theirs in names.items():
            if self.param is not None and self.param.startswith(name):
                param = theirs + self.param.removeprefix(name)
                # The message may name a place within the parameter, which has a name of its own.
                for place in (n for n in names if n != self.param and n.startswith(self.param)):
                    self.message = self.message.replace(place, names[place])
                self.message = self.message.replace(self.param, param)
                self.param = param
                break
        # The message may name other parameters too.
        for name, theirs in names.items():
            self.message = self.message.replace(f"'{name}'", f"'{theirs}'")
        return self

    def of_entry(self, name: str, index: int) -> OpenAIError:
        """Names an entry of the list `name`; each entry has a call of its own."""
        entry = f"{name}[{index}]"
        if self.status == 400 and self.param is None:
            self.param = entry
            self.message = f"In '{entry}': {self.message}"
            return self
        if self.param is not None and (self.param + "[").startswith(name + "["):
            return self.in_terms_of({name: entry})
        return self

    def body(self) -> bytes:
        """The JSON of an ErrorBody."""
        error = ErrorObject(self.message, self.type, self.param, self.code)
        return msgspec.json.encode(ErrorBody(error))

    def headers(self) -> dict[str, str]:
        """The response headers about retries; empty for most errors."""
        headers = {}
        if self.retry_after_ms is not None:
            # Whole seconds, at least one: some clients parse only integers.
            headers["retry-after"] = str(max(1, ceil(self.retry_after_ms / 1000)))
            headers["retry-after-ms"] = str(self.retry_after_ms)
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


def unknown_model_path(name: str) -> OpenAIError:
    """404: no such model, in GET /v1/models/{id}."""
    message = f"The model '{shown(name, 256)}' does not exist"
    return OpenAIError(404, message, code="model_not_found", param="model")


def internal_error() -> OpenAIError:
    """500: a fault of the edge or the service; the text does not describe it."""
    return OpenAIError(500, INTERNAL_ERROR)


def bad_upstream() -> OpenAIError:
    """502: the service refused the edge's credential, or the transport's status is unexpected."""
    message = "The inference service could not be used for this request."
    return OpenAIError(502, message, should_retry=False)


def overloaded() -> OpenAIError:
    """503: no replica can take the request now."""
    return OpenAIError(503, OVERLOADED, retry_after_ms=1000)


def upstream_lost() -> OpenAIError:
    """503: the connection to the inference service was lost during the call."""
    message = "The inference service was lost while it answered, please try again"
    return OpenAIError(503, message, retry_after_ms=1000)


def timed_out() -> OpenAIError:
    """504: the time limit is reached; a retry would probably reach it too."""
    message = "The request took longer than its time limit."
    return OpenAIError(504, message, code="deadline_exceeded", should_retry=False)


def invalid_json() -> OpenAIError:
    """400: the body is not one JSON object by RFC 8259."""
    return OpenAIError(
        400,
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        "using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was "
        "sent was not valid JSON.)",
    )


def invalid_request(message: str, param: str | None, code: str | None = None) -> OpenAIError:
    """400: a rule about parameters with its own message."""
    return OpenAIError(400, message, param=param, code=code)


def unknown_parameter(param: str) -> OpenAIError:
    """400: a parameter that the schema does not have."""
    return invalid_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")


def too_many_calls(place: str) -> OpenAIError:
    """400: more calls in one turn of the model than a message of a chat may have."""
    return invalid_request(
        f"Invalid '{place}': too many calls in one turn of the model. At most {MAX_TOOLS} are "
        "allowed.",
        place,
        "array_above_max_length",
    )
