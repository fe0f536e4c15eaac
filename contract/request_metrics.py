"""The histograms of OpenTelemetry's conventions for generative AI, in Prometheus' spelling.

Both programs keep them: the edge for REST requests, an inference process for calls over gRPC. They
are observed once, when a request or call has ended. Names, buckets and attributes are those of
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/.

  family                                  observed for
  --------------------------------------  ----------------------------------------------------------
  gen_ai_server_request_duration_seconds  every request that named a model, by error_type; it is
                                          empty for a success
  gen_ai_server_time_to_first_token_...   every success with output tokens
  gen_ai_server_time_per_output_token_... every success with two output tokens or more
  gen_ai_client_token_usage               every success, its input and its output tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from contract.metrics import Histogram, Histograms
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import FinishReason, GenerateRequest
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.tokenize_pb2 import TokenizeRequest

ModelRequest = GenerateRequest | EmbedRequest | GenerateImageRequest | TokenizeRequest
_OPERATIONS: Final[dict[type[ModelRequest], str]] = {
    EmbedRequest: "embeddings",
    GenerateImageRequest: "image_generation",
    TokenizeRequest: "tokenize",
}
PROVIDER: Final = "isthmus"
# `error_type` of a request whose client left before its end.
CANCELLED: Final = "cancelled"
# The model of a request that named none that is served.
UNKNOWN_MODEL: Final = "unknown"

_LABELS: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)
_DURATION: Final = tuple(0.01 * 2**n for n in range(14))
_FIRST_TOKEN: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08),
    *(0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_OUTPUT_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_USAGE: Final = tuple(4.0**n for n in range(14))


def operation(request: ModelRequest) -> str:
    """The value of gen_ai_operation_name."""
    if isinstance(request, GenerateRequest):
        return "chat" if request.HasField("chat") else "text_completion"
    return _OPERATIONS[type(request)]


def finish_names(reasons: Iterable[int]) -> list[str]:
    """The finish reasons of a request's choices, in OpenAI's words and each once."""
    return [
        FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        for reason in dict.fromkeys(reasons)
    ]


class Spent(Struct, gc=False):
    """Tokens and times of a successful request.

    Attributes:
        input_tokens, output_tokens: As in its `usage`.
        first_seconds: From its arrival to its first output.
        last_seconds: From its arrival to its last output.
    """

    input_tokens: int
    output_tokens: int
    first_seconds: float
    last_seconds: float


class _Series:
    """The histograms of one combination of labels."""

    __slots__ = ("duration", "first_token", "input_tokens", "output_token", "output_tokens")

    def __init__(self, families: RequestMetrics, labels: tuple[str, ...], error: str) -> None:
        self.duration: Histogram = families.duration.of(*labels, error)
        if error:
            return
        self.first_token: Histogram = families.first_token.of(*labels)
        self.output_token: Histogram = families.output_token.of(*labels)
        self.input_tokens: Histogram = families.usage.of(*labels, "input")
        self.output_tokens: Histogram = families.usage.of(*labels, "output")


class RequestMetrics:
    """The histograms of one process."""

    def __init__(self) -> None:
        self.duration = Histograms(
            "gen_ai_server_request_duration_seconds",
            "From the arrival of a request to the end of its response.",
            _DURATION,
            (*_LABELS, "error_type"),
        )
        self.first_token = Histograms(
            "gen_ai_server_time_to_first_token_seconds",
            "From the arrival of a successful request to its first output.",
            _FIRST_TOKEN,
            _LABELS,
        )
        self.output_token = Histograms(
            "gen_ai_server_time_per_output_token_seconds",
            "Of a successful request, the time from its first to its last output, by token.",
            _OUTPUT_TOKEN,
            _LABELS,
        )
        self.usage = Histograms(
            "gen_ai_client_token_usage",
            "Tokens of a successful request.",
            _USAGE,
            (*_LABELS, "gen_ai_token_type"),
        )
        self._series: dict[tuple[str, ...], _Series] = {}

    def ended(
        self,
        operation: str,
        name: str,
        model: str,
        seconds: float,
        error: str,
        spent: Spent | None,
    ) -> None:
        """Counts a request.

        Args:
            operation: See `operation`.
            name: The model's name in the request.
            model: Its id; "" if no such model is served. Then the name is not kept, because a
                client can make up any number of them.
            seconds: From its arrival to its end.
            error: What it failed of; "" for a success.
            spent: What a success used.
        """
        if not model:
            name = model = UNKNOWN_MODEL
        key = (operation, name, model, error)
        series = self._series.get(key)
        if series is None:
            labels = (operation, PROVIDER, name or model, model)
            series = self._series[key] = _Series(self, labels, error)
        series.duration.observe(seconds)
        if error or spent is None:
            return
        series.input_tokens.observe(spent.input_tokens)
        series.output_tokens.observe(spent.output_tokens)
        if spent.output_tokens:
            series.first_token.observe(spent.first_seconds)
        if spent.output_tokens > 1:
            between = max(spent.last_seconds - spent.first_seconds, 0.0)
            series.output_token.observe(between / (spent.output_tokens - 1))

    @property
    def families(self) -> tuple[Histograms, ...]:
        """All of them."""
        return self.duration, self.first_token, self.output_token, self.usage
