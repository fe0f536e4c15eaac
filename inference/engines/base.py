"""The engine contract: everything that the service knows of an engine.

Requests come as the validated messages of the public contract; answers leave as them too, but
for the one thing that happens thousands of times a second, more text of choice 0, which is a
plain `str`. Engines raise `InferenceError` and nothing else on purpose; an `EngineDeadError`
says that the process must be replaced.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.v1.generate_pb2 import GenerateRequest, GenerateResponse
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.models_pb2 import Model

ReportProgress = Callable[[str], None]
"""Told what a long start is doing, in words for a person ("loading weights")."""

Say = Callable[[str | GenerateResponse], None]
"""Takes a piece of an answer at once and for good; what it raises ends that answer."""


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


class PreparedText(Protocol):
    """A request that was validated against the model, rendered and tokenized."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...


class TextEngine(Engine, Protocol):
    """Continues chats, texts and token sequences."""

    async def prepare(self, request: GenerateRequest) -> PreparedText:
        """Validates, renders and tokenizes without using the model.

        The service compares `prompt_tokens` with the context that the caller's alias allows.

        Raises:
            InferenceError: The model cannot do what is asked, or the input is not valid for it.
        """
        ...

    async def generate(
        self, prepared: PreparedText, max_tokens: int, priority: int, say: Say
    ) -> None:
        """Says output as the model makes it, returns at its end; a cancel aborts the work.

        A `str` is new text of choice 0 with nothing beside it. A GenerateResponse has any of
        deltas, finishes, prompt_logprobs and, once and last, usage; never admitted or timings.
        Each choice ends with exactly one finish. Empty output is not said. Output is pushed, so
        that an engine step can speak for all its requests without waking a task for each.

        Args:
            prepared: From `prepare` of the same engine; used once.
            max_tokens: The most tokens a choice, already within the context.
            priority: Lower runs sooner.
            say: Called on the event loop for every piece of output, in order.

        Raises:
            InferenceError: The request failed; others go on. Or `say` raised it.
            EngineDeadError: The engine failed; all requests do.
        """
        ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of a batch.

    Attributes:
        vectors: float32, inputs x dimensions, C order.
        token_counts: Tokens of each input.
    """

    vectors: NDArray[np.float32]
    token_counts: Sequence[int]


class EmbeddingEngine(Engine, Protocol):
    """Turns texts and token sequences into vectors."""

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        dimensions: int | None,
        max_input_tokens: int,
        truncate: bool,
    ) -> Embeddings:
        """Embeds a batch, together with whatever other callers want embedded.

        Args:
            inputs: Texts, or tokens of the model's own vocabulary; none is empty.
            dimensions: Leading components to keep, normalised again; None keeps all.
            max_input_tokens: Longer inputs are refused, or cut if `truncate` says so.
            truncate: Cuts instead of refusing.

        Raises:
            InferenceError: An input is too long, a token is not in the vocabulary, or the
                model's vectors may not be shortened.
        """
        ...


class PreparedImage(Protocol):
    """A request that was validated against the model and whose prompt was tokenized."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...


class ImageEngine(Engine, Protocol):
    """Draws pictures, one request at a time."""

    async def prepare(self, request: GenerateImageRequest) -> PreparedImage:
        """Validates and tokenizes without using the model.

        Raises:
            InferenceError: The model cannot do what is asked, or the prompt is too long for it.
        """
        ...

    def generate(self, prepared: PreparedImage) -> AsyncGenerator[GenerateImageResponse, None]:
        """Yields progress, previews and pictures as they are made.

        Each response has one of progress, partial_image, image and, once and last, usage; never
        admitted or timings. Closing the generator returns once the work has stopped, within one
        denoising step.

        Args:
            prepared: From `prepare` of the same engine; used once.

        Raises:
            InferenceError: The request failed; later ones are served.
            EngineDeadError: The engine failed; no request will be served again.
        """
        ...
