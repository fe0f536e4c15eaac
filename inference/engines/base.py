"""The engine contract: everything that the service knows of an engine.

All engines have one shape. `prepare` checks a request against the model and tokenizes it without
using the model; `generate` runs it and emits output as it is made. Requests are the validated
messages of the public contract and output is its response messages, except for what happens
thousands of times a second: new text of choice 0 is a plain `str`. An embedding engine emits one
message.

Output is pushed into `emit` and not pulled from an iterator, so that the path of a token has no
generator and no task switch between the engine's loop and the call's outbox.

Engines raise `InferenceError` for a failure that the caller may read, and `EngineDeadError` when
the process must be replaced; anything else is a bug and is reported as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from inference.config import TokenInputs
from isthmus.v1.embed_pb2 import EmbedRequest, EmbedResponse
from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.models_pb2 import Model

ReportProgress = Callable[[str], None]
"""Takes the stage of a long start, in words for a person ("loading weights")."""

Request = GenerateRequest | EmbedRequest | GenerateImageRequest
Part = GenerateResponse | EmbedResponse | GenerateImageResponse
Emit = Callable[[str | Part], None]
"""Takes output on the event loop, in order. What it raises ends the call."""

RequestT = TypeVar("RequestT", bound=Request, contravariant=True)


class EngineDeadError(Exception):
    """The engine cannot serve again; the process must end and be restarted."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What an engine knows of itself.

    Attributes:
        alive: False once the engine cannot serve again.
        running: Requests in the engine now.
        last_step_age_seconds: Since the engine last made progress; 0 when idle.
        generated_tokens: Tokens (vectors, images) made since the start.
        slow_step_seconds: A step that takes longer counts as one that will never end.
    """

    alive: bool
    running: int
    last_step_age_seconds: float
    generated_tokens: int
    slow_step_seconds: float = 10.0


class Engine(Protocol):
    """What every engine offers.

    `model` is filled by `start`: kind, limits and capabilities, as ListModels tells them; id,
    aliases and owner are the configuration's and are added by the service.
    `system_fingerprint` names weights and engine configuration and is never empty.
    """

    model: Model
    system_fingerprint: str

    async def start(self, report: ReportProgress) -> None:
        """Loads the model and warms it up; ready to serve when it returns."""
        ...

    def health(self) -> EngineHealth:
        """Answers at once from counters at hand."""
        ...

    async def close(self) -> None:
        """Stops work and frees processes and memory; bounded, may be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What the caller of a request may use.

    Attributes:
        context_length: Tokens of the prompt and of one choice together: the smaller of the
            model's and of the name that the caller used.
        priority: Lower runs sooner, where the engine schedules by priority.
        token_inputs: The meaning of token ids in an embedding request.
    """

    context_length: int
    priority: int = 0
    token_inputs: TokenInputs = "own"  # noqa: S105


class Prepared(Protocol):
    """A request that was validated against the model and tokenized."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, or of all inputs."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that all choices together may have; 0 for images and embeddings."""
        ...


class ServingEngine(Engine, Protocol[RequestT]):
    """An engine for one kind of request."""

    async def prepare(self, request: RequestT, terms: Terms) -> Prepared:
        """Validates and tokenizes without using the model.

        Raises:
            InferenceError: The model cannot do what is asked, or the input is not valid for it.
        """
        ...

    async def generate(self, prepared: Prepared, emit: Emit) -> None:
        """Emits output as the model makes it and returns at its end.

        Cancelling it stops the work; it returns once the work has stopped. Output has no
        `admitted` and no `timings`: those are the service's. Each message has, for

        * text: any of deltas, finishes, prompt_logprobs and, once and last, usage. Each choice
          has exactly one finish. A message is never empty.
        * images: one of progress, partial_image, image and, once and last, usage.
        * embeddings: dimensions, vectors and token_counts, in one message.

        Args:
            prepared: From `prepare` of the same engine; used once.
            emit: Takes the output.

        Raises:
            InferenceError: The request failed; others go on. Or `emit` raised it.
            EngineDeadError: The engine failed, and so do all requests.
        """
        ...


TextEngine = ServingEngine[GenerateRequest]
EmbeddingEngine = ServingEngine[EmbedRequest]
ImageEngine = ServingEngine[GenerateImageRequest]
