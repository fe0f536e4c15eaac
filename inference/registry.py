"""The models of this process by name, with their engines, admission and rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, cast

from contract import refusals
from contract.memory import MemoryBudget, default_budget
from contract.token_refusals import not_a_text_model
from inference.admission import Admission
from inference.config import ModelConfig
from inference.engines.base import EmbeddingEngine, Engine, ImageEngine, Terms, TextEngine
from inference.errors import InferenceError
from inference.metrics import InferenceMetrics
from inference.observer import Observer
from inference.rate_limits import RateLimiter
from inference.rate_table import RateTable
from inference.token_inputs import cl100k
from isthmus.session.v1alpha1.session_pb2 import ModelLoad
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT, Load, Model, ModelAlias, ModelKind
from keys import KeyStore

# Calls of Tokenize that a model's tokenizer works on at once.
MAX_TOKENIZATIONS: Final = 8


class ServedModel:
    """A configured model with its engine, admission and rate limits.

    Attributes:
        config: The model's configuration.
        engine: The engine that runs it.
        started: Set after the engine has loaded the model.
        admission: The permits and the queue of the engine.
        tokenizations: The same for Tokenize, which does not use the engine's model.
        rate_limiter: The limits of each key.

    Raises:
        ConfigError: A policy of `token_inputs` needs a package that is not installed.
    """

    def __init__(
        self,
        config: ModelConfig,
        engine: Engine,
        keys: KeyStore | None = None,
        rates: RateTable | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.started = False
        self.admission = Admission(
            config.running_limit,
            config.max_queued,
            config.queue_timeout_seconds,
        )
        self.tokenizations = Admission(
            MAX_TOKENIZATIONS, config.max_queued, config.queue_timeout_seconds
        )
        self.rate_limiter = RateLimiter(config, keys, table=rates)
        self._alias_limits = {alias.name: alias.context_length for alias in config.aliases}
        self._alias_token_inputs = {alias.name: alias.token_inputs for alias in config.aliases}
        if "cl100k" in config.token_policies:
            # Loaded now, so that a missing package fails the start and not the first request.
            cl100k()

    def ready(self) -> bool:
        """Whether the model accepts requests: started, alive and not wedged."""
        return self.started and self.engine.health().alive and not self.wedged()

    def wedged(self) -> bool:
        """Whether the engine runs requests and its current step takes too long.

        The limit is `slow_step_seconds` of the configuration or, if unset, the engine's own
        measurement.
        """
        health = self.engine.health()
        bound = self.config.slow_step_seconds or health.slow_step_seconds
        return health.running > 0 and health.last_step_age_seconds > bound

    def load(self) -> Load:
        """What the engine does now."""
        health = self.engine.health()
        load = Load(
            running=max(health.running - health.waiting, 0),
            waiting=self.admission.queued + health.waiting,
        )
        if health.kv_cache is not None:
            load.kv_cache.CopyFrom(health.kv_cache)
        return load

    def describe(self) -> Model:
        """The model's entry in ListModels."""
        model = Model()
        model.CopyFrom(self.engine.model)
        model.id = self.config.id
        model.owned_by = self.config.owned_by
        model.ready = self.ready()
        model.load.CopyFrom(self.load())
        for alias in self.config.aliases:
            model.aliases.append(ModelAlias(name=alias.name))
            if model.HasField("context_length"):
                model.aliases[-1].context_length = self._limit(alias.context_length)
        return model

    def context_length(self, name: str) -> int:
        """Tokens of the context under this name: the smaller of the model's and the alias's."""
        return self._limit(self._alias_limits.get(name))

    def terms(
        self, name: str, priority: int, trace_headers: Mapping[str, str] | None = None
    ) -> Terms:
        """The terms of a request with this model name."""
        token_inputs = self._alias_token_inputs.get(name) or self.config.token_inputs
        return Terms(self.context_length(name), priority, token_inputs, trace_headers)

    def _limit(self, alias_limit: int | None) -> int:
        own = self.engine.model.context_length
        return own if alias_limit is None else min(own, alias_limit)


class _RunningCalls(AbstractContextManager[None]):
    """Counts running calls: each call enters this one context manager."""

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
        models: The served models, in the order of the configuration.
        draining: Set when new calls are refused; running calls continue.
        dead: Set when an engine cannot serve again; the process must end.
        memory: What all calls hold: their requests and their unsent output.
        sending: What gRPC has of the public RPCs' responses. A caller that reads nothing keeps it
            there after its call was cut, so it has a bound of its own.
        metrics: Counts the calls.
        observer: Writes the access log and the spans; None if both are off.
    """

    def __init__(self, models: Sequence[ServedModel], memory: MemoryBudget | None = None) -> None:
        self.models = tuple(models)
        self.memory = memory or MemoryBudget(default_budget())
        self.sending = MemoryBudget(self.memory.limit)
        self.draining = asyncio.Event()
        self.dead = asyncio.Event()
        self._calls = _RunningCalls()
        self._by_name = {
            name: served
            for served in models
            for name in (served.config.id, *(alias.name for alias in served.config.aliases))
        }
        self.metrics = InferenceMetrics(self)
        self.observer: Observer | None = None

    def loads(self) -> list[ModelLoad]:
        """The load of each model's engine; leaves out models whose load cannot be read."""
        loads = []
        for served in self.models:
            with suppress(Exception):
                loads.append(ModelLoad(model=served.config.id, load=served.load()))
        return loads

    @property
    def running_calls(self) -> int:
        """Calls in flight, including those that wait for admission."""
        return self._calls.count

    def call(self) -> AbstractContextManager[None]:
        """A context that each call enters while it runs, so that a drain waits for it."""
        return self._calls

    async def wait_idle(self) -> None:
        """Waits until no call is in flight."""
        await self._calls.idle.wait()

    def text(self, name: str, *, chat: bool) -> tuple[ServedModel, TextEngine]:
        """The model for Generate.

        Raises:
            InferenceError: There is no such model, it does not generate text or support chat, it
                is still loading, or the process is draining.
        """
        served = self._find(name)
        model = served.engine.model
        if chat and not model.text.chat:
            raise InferenceError.of(refusals.not_a_chat_model())
        if model.kind != MODEL_KIND_TEXT:
            raise InferenceError.of(refusals.not_a_completion_model())
        return served, cast("TextEngine", served.engine)

    def tokenizer(self, name: str, *, chat: bool) -> tuple[ServedModel, TextEngine]:
        """The model for Tokenize.

        Raises:
            InferenceError: There is no such model, it does not generate text or support chat, it
                is still loading, or the process is draining.
        """
        served = self._find(name)
        if served.engine.model.kind != MODEL_KIND_TEXT:
            raise InferenceError.of(not_a_text_model())
        return self.text(name, chat=chat)

    def embedding(self, name: str) -> tuple[ServedModel, EmbeddingEngine]:
        """The model for Embed; an empty name is the process's only embedding model.

        Raises:
            InferenceError: There is no such model, it makes no vectors, it is still loading, or
                the process is draining.
        """
        served = self._find(name or self._only(ModelKind.MODEL_KIND_EMBEDDING))
        if served.engine.model.kind != ModelKind.MODEL_KIND_EMBEDDING:
            raise InferenceError.of(refusals.not_an_embedding_model())
        return served, cast("EmbeddingEngine", served.engine)

    def image(self, name: str) -> tuple[ServedModel, ImageEngine]:
        """The model for GenerateImage; an empty name is the process's only image model.

        Raises:
            InferenceError: There is no such model, it makes no images, it is still loading, or the
                process is draining.
        """
        served = self._find(name or self._only(ModelKind.MODEL_KIND_IMAGE))
        if served.engine.model.kind != ModelKind.MODEL_KIND_IMAGE:
            raise InferenceError.of(refusals.not_an_image_model())
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
            raise InferenceError.of(refusals.missing_model())
        served = self._by_name.get(name)
        if served is None:
            raise InferenceError.of(refusals.unknown_model(name))
        if not served.started:
            raise InferenceError(
                "engine_unavailable",
                f"The model `{name}` is still loading. Please try again.",
                retry_after_ms=5000,
            )
        return served
