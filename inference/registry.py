"""The models of this process: which engine answers to a name, and how much it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import cast

from inference import refusals
from inference.admission import Admission
from inference.config import ModelConfig
from inference.engines.base import EmbeddingEngine, Engine, ImageEngine, Terms, TextEngine
from inference.errors import InferenceError
from inference.rate_limits import RateLimiter
from inference.token_inputs import cl100k
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT, Model, ModelAlias, ModelKind
from keys import KeyStore


class ServedModel:
    """A configured model, its engine, and how much of it is given to whom.

    Attributes:
        started: Set once the engine has loaded the model.
    """

    def __init__(self, config: ModelConfig, engine: Engine, keys: KeyStore | None = None) -> None:
        self.config = config
        self.engine = engine
        self.started = False
        self.admission = Admission(
            config.running_limit, config.max_queued, config.queue_timeout_seconds
        )
        self.rate_limiter = RateLimiter(config, keys)
        self._alias_limits = {alias.name: alias.context_length for alias in config.aliases}
        self._alias_token_inputs = {alias.name: alias.token_inputs for alias in config.aliases}
        if "cl100k" in config.token_policies:
            # A missing package is told now, not to the first caller.
            cl100k()

    def ready(self) -> bool:
        """Whether it takes requests: started, alive and not wedged.

        An engine is wedged that runs requests and makes no progress.
        """
        if not self.started:
            return False
        health = self.engine.health()
        wedged = health.running > 0 and health.last_step_age_seconds > health.slow_step_seconds
        return health.alive and not wedged

    def describe(self) -> Model:
        """What ListModels says of it."""
        model = Model()
        model.CopyFrom(self.engine.model)
        model.id = self.config.id
        model.owned_by = self.config.owned_by
        model.ready = self.ready()
        for alias in self.config.aliases:
            model.aliases.append(ModelAlias(name=alias.name))
            if model.HasField("context_length"):
                model.aliases[-1].context_length = self._limit(alias.context_length)
        return model

    def context_length(self, name: str) -> int:
        """The context of callers who use this name: the smaller of the model's and the alias's."""
        return self._limit(self._alias_limits.get(name))

    def terms(self, name: str, priority: int) -> Terms:
        """What a caller who uses this name may use."""
        token_inputs = self._alias_token_inputs.get(name) or self.config.token_inputs
        return Terms(self.context_length(name), priority, token_inputs)

    def _limit(self, alias_limit: int | None) -> int:
        own = self.engine.model.context_length
        return own if alias_limit is None else min(own, alias_limit)


class _RunningCalls(AbstractContextManager[None]):
    """One for all calls: entered for each, it counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self.idle.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self.idle.set()


class Registry:
    """All models of this process.

    Attributes:
        draining: Set once no new work is taken; running work goes on.
        dead: Set once an engine cannot serve again; the process must end.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.models = tuple(models)
        self.draining = asyncio.Event()
        self.dead = asyncio.Event()
        self._calls = _RunningCalls()
        self._by_name = {
            name: served
            for served in models
            for name in (served.config.id, *(alias.name for alias in served.config.aliases))
        }

    @property
    def running_calls(self) -> int:
        """Calls that have begun and not ended, waiting ones included."""
        return self._calls.count

    def call(self) -> AbstractContextManager[None]:
        """Counts a call while it runs, so that a drain waits for it."""
        return self._calls

    async def wait_idle(self) -> None:
        """Returns when no call runs."""
        await self._calls.idle.wait()

    def text(self, name: str, *, chat: bool) -> tuple[ServedModel, TextEngine]:
        """The model for Generate.

        Raises:
            InferenceError: No such model, it makes no text or cannot chat, or the process drains.
        """
        served = self._find(name)
        model = served.engine.model
        if chat and not model.text.chat:
            raise refusals.not_a_chat_model()
        if model.kind != MODEL_KIND_TEXT:
            raise refusals.not_a_completion_model()
        return served, cast("TextEngine", served.engine)

    def embedding(self, name: str) -> tuple[ServedModel, EmbeddingEngine]:
        """The model for Embed; where only one makes vectors it need not be named.

        Raises:
            InferenceError: No such model, it makes no vectors, or the process drains.
        """
        served = self._find(name or self._only(ModelKind.MODEL_KIND_EMBEDDING))
        if served.engine.model.kind != ModelKind.MODEL_KIND_EMBEDDING:
            raise refusals.not_an_embedding_model()
        return served, cast("EmbeddingEngine", served.engine)

    def image(self, name: str) -> tuple[ServedModel, ImageEngine]:
        """The model for GenerateImage; where only one makes pictures it need not be named.

        Raises:
            InferenceError: No such model, it makes no pictures, or the process drains.
        """
        served = self._find(name or self._only(ModelKind.MODEL_KIND_IMAGE))
        if served.engine.model.kind != ModelKind.MODEL_KIND_IMAGE:
            raise refusals.not_an_image_model()
        return served, cast("ImageEngine", served.engine)

    def _only(self, kind: ModelKind) -> str:
        ids = [served.config.id for served in self.models if served.engine.model.kind == kind]
        return ids[0] if len(ids) == 1 else ""

    def _find(self, name: str) -> ServedModel:
        if self.draining.is_set():
            raise InferenceError(
                "draining",
                "The server is shutting down. Please try again.",
                retry_after_ms=1000,
            )
        if not name:
            raise refusals.missing_model()
        served = self._by_name.get(name)
        if served is None:
            raise refusals.unknown_model(name)
        if not served.started:
            raise InferenceError(
                "engine_unavailable",
                f"The model `{name}` is still loading. Please try again.",
                retry_after_ms=5000,
            )
        return served
