"""The interface between the service and its engines.

`prepare` checks a request against the model and tokenizes it without using the model; `generate`
runs the model and passes each piece of output to `emit`. Requests are the validated messages of
the public contract and output is its response messages, with one exception: a message with only
text of choice 0, which occurs thousands of times a second, is a plain `str`.

Output is pushed into `emit` and not pulled from an iterator. So a token passes from the engine's
loop to the call's outbox without resuming a generator or switching tasks, and cancelling
`generate` aborts the request, without generators to close in the right order.

Failures are exceptions:

    InferenceError     the request failed; its text may reach the caller
    EngineDeadError    the engine failed; the process must be restarted
    others             a bug; logged, and sent to the caller as an internal error
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from contract.tracing import Tracing
from inference.config import TokenInputs
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.models_pb2 import KvCache, Model
from isthmus.v1.tokenize_pb2 import TokenizeRequest, TokenizeResponse

Report = Callable[[str], None]
"""Logs the current stage of a long start ("loading weights")."""

Request = GenerateRequest | EmbedRequest | GenerateImageRequest | TokenizeRequest
Part = GenerateResponse | EmbedResponse | GenerateImageResponse | TokenizeResponse
Emit = Callable[[str | Part], None]
"""Receives a piece of output, on the event loop and in order. If it raises, the call ends."""

RequestT = TypeVar("RequestT", bound=Request, contravariant=True)


# A step that takes longer counts as stuck, unless an engine knows better.
SLOW_STEP_SECONDS: Final = 10.0


class EngineDeadError(Exception):
    """The engine cannot serve again; the process must end and be restarted."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """The state of an engine.

    Attributes:
        alive: False once the engine cannot serve again.
        last_step_age_seconds: Time since the engine last made progress; 0 when idle.
        generated_tokens: Tokens (vectors, images) made since the start.
        slow_step_seconds: A step that takes longer counts as stuck. Engines whose steps differ
            scale it by the work of the step under way.
        waiting: Requests that wait inside the engine; `running` counts them too.
        kv_cache: The KV cache; None if the engine has none.
    """

    alive: bool
    running: int
    last_step_age_seconds: float
    generated_tokens: int
    slow_step_seconds: float = SLOW_STEP_SECONDS
    waiting: int = 0
    kv_cache: KvCache | None = None


class Engine(Protocol):
    """The part of the interface that does not depend on the kind of request.

    Attributes:
        model: Kind, limits and capabilities for ListModels, filled by `start`. The service adds
            id, aliases and owner from the configuration.
        characters_a_token: The most characters that one token can stand for; None for no limit.
            A text that cannot fit is refused before it waits.
        system_fingerprint: A name for weights and configuration; never empty after `start`.
        tracing: Set before `start`: where spans are sent; None without tracing.
        exports_metrics: Set before `start`: whether the engine's library keeps metrics of its own
            in prometheus-client's default registry, if it has any.
    """

    model: Model
    system_fingerprint: str
    characters_a_token: int | None = None
    exports_metrics: bool = False
    tracing: Tracing | None = None

    async def start(self, report: Report) -> None:
        """Loads the model and warms it up; calls `report` with each stage, from any thread.

        Raises ConfigError if the configuration or the model's files are not acceptable.
        """

    def health(self) -> EngineHealth:
        """The current state; does not block."""

    async def close(self) -> None:
        """Stops work and frees processes and memory within a time limit; may be called twice."""


class Terms(Struct, frozen=True, gc=False):
    """The caller's limits and policies for one request.

    Attributes:
        context_length: Maximum tokens of the prompt and one choice together, for the model under
            the requested name.
        priority: A request with a lower number runs sooner, if the engine schedules by priority.
        token_inputs: The meaning of token ids in an embedding request.
        trace_headers: Of the call's span, for spans of the engine; None without tracing.
    """

    context_length: int
    priority: int = 0
    token_inputs: TokenInputs = "own"  # noqa: S105
    trace_headers: Mapping[str, str] | None = None


class Prepared(Protocol):
    """A request that was validated against the model and tokenized.

    Attributes:
        prompt_tokens: Tokens of the prompt, or of all inputs. What a text engine prepares has the
            tokens themselves too, as `prompt_token_ids`.
        max_output_tokens: Maximum of all choices together; 0 for images and embeddings.
    """

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def max_output_tokens(self) -> int: ...


class ServingEngine(Engine, Protocol[RequestT]):
    """An engine for one kind of request."""

    async def prepare(self, request: RequestT, terms: Terms) -> Prepared:
        """Validates and tokenizes a request without using the model.

        Raises:
            InferenceError: The model lacks an ability, or the input is not valid for it.
            EngineDeadError: The engine is closed.
        """

    async def generate(self, prepared: Any, emit: Emit) -> None:
        """Emits output as the model generates it, and returns when the output has ended.

        Cancelling stops the work; this returns after the work has stopped. `prepared` is from
        `prepare` of the same engine and is used once. The service adds `admitted` and `timings`;
        the engine sets neither. The fields of each message:

        * text: any of deltas, finishes, prompt_logprobs and, once and last, usage. Each choice
          has exactly one finish. A message is never empty.
        * images: one of progress, partial_image, image and, once and last, usage.
        * embeddings: dimensions, vectors and token_counts, in one message.

        Raises:
            InferenceError: This request failed, or `emit` raised it; other requests continue.
            EngineDeadError: The engine failed, and with it all requests.
        """


class Tokens(Struct, frozen=True, gc=False):
    """The tokens of an input.

    Attributes:
        ids: All of them, in the order of the prompt.
        names: The name of each in the vocabulary; empty if the request does not ask for them.
        text: Their text if the input is tokens, else "".
    """

    ids: Sequence[int]
    names: Sequence[str] = ()
    text: str = ""


class TextEngine(ServingEngine[GenerateRequest], Protocol):
    """An engine that generates text."""

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """The tokens that `prepare` makes of the same input; keeps nothing of it.

        Unlike `prepare` it takes a prompt that exceeds the context.

        Raises:
            InferenceError: The model lacks an ability, or the input is not valid for it.
            EngineDeadError: The engine is closed.
        """


EmbeddingEngine = ServingEngine[EmbedRequest]
ImageEngine = ServingEngine[GenerateImageRequest]
