"""One address of an inference service: its channels, its models, and whether it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.config import EdgeConfig
from edge.upstream.channels import BULK_OPTIONS, channel
from edge.upstream.problems import (
    NO_KEYS,
    NOT_UP,
    SILENT,
    UNENFORCED,
    UNREACHABLE,
    ContactError,
    Problem,
    problem_of,
)
from edge.upstream.session_transport import SessionTransport
from edge.upstream.transport import Call, CallOptions, OnEnded, Output, UpstreamRequest
from edge.upstream.unary_transport import UnaryTransport
from isthmus.session.v1alpha1.session_pb2_grpc import SessionServiceStub
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest, ListModelsResponse, Load, Model
from keys import KeyStore

log = logging.getLogger(__name__)

# Seconds that ListModels may take.
LIST_SECONDS: Final = 5.0
# Seconds between two questions for what the engines do, to a service without a session.
LOAD_SECONDS: Final = 1.0
# Seconds that the connection and the hello of the session may take after the health is SERVING.
CONNECT_SECONDS: Final = 10.0
# Seconds between two tries to watch a service's health, doubled from the first to the last. With
# the connection backoff below, a service gets calls again within 2 s after its port opens.
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 0.5

# Consecutive failures after which other replicas are preferred for REST_SECONDS. Then the replica
# gets one call at a time, until TRIALS of them have succeeded; a failure starts another rest.
FAILURES_BEFORE_REST: Final = 5
REST_SECONDS: Final = 30.0
TRIALS: Final = 2
# Seconds after which the next call is tried although the last one still runs.
TRIAL_SECONDS: Final = 5.0
_UNAUTHENTICATED: Final = grpc.StatusCode.UNAUTHENTICATED.value[0]
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE.value[0]
_FAULTS: Final = frozenset(
    code.value[0]
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
)


class Replica:
    """The connections to one address of an inference service.

    Attributes:
        address: HOST:PORT after name resolution.
        engine: The same for all replicas with one engine, so with one cache of prefixes.
        models: The models in its last ListModels response.
        by_name: The same models by id and alias.
        serving: Whether it accepts requests.
        leaving: Whether the name no longer has its address; others are preferred then.
        problem: What is wrong with it, whether it serves or not; None for nothing.
        outstanding: Calls in flight; the router prefers the replica with the fewest.
    """

    def __init__(
        self,
        address: str,
        config: EdgeConfig,
        credentials: grpc.ChannelCredentials | None,
        server_name: str,
        keys: KeyStore | None,
        on_lost: Callable[[], None],
    ) -> None:
        self.address = self.engine = address
        self.problem: Problem | None = None
        self._suspected: Problem | None = None
        self._secure = credentials is not None
        self._keys = keys
        self._knows_keys = False
        self._on_lost = on_lost
        self._failures = 0
        self._trials = 0
        self._rests_until = 0.0
        self._trial_until = 0.0
        self.models: tuple[Model, ...] = ()
        self.by_name: dict[str, Model] = {}
        self.serving = False
        self.leaving = False
        self.outstanding = 0
        token = config.upstream_token
        self._credentials = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = channel(address, credentials, server_name)
        # A second connection, so that tokens are not delayed by a large matrix or image.
        self._bulk = channel(address, credentials, server_name, BULK_OPTIONS)
        self._stub = InferenceServiceStub(self._bulk)
        self._health: Any = health_pb2_grpc.HealthStub(self._bulk)
        self._bulk_calls = UnaryTransport(self._bulk, self._credentials)
        self._generations = UnaryTransport(self._channel, self._credentials)
        self._session: SessionTransport | None = None
        if config.transport == "session":
            self._session = SessionTransport(
                SessionServiceStub(self._channel),
                self._credentials,
                on_unsupported=self._fall_back,
                on_going_away=self._stop_serving,
            )
        self._listed_loads: dict[str, Load] = {}
        self._tasks = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._ask_for_loads()),
        ]

    def __repr__(self) -> str:
        state = "serving" if self.serving else "not serving"
        return f"<Replica {self.address} {state}, {self.outstanding} calls>"

    def open(
        self, request: UpstreamRequest, output: Output, on_ended: OnEnded, options: CallOptions
    ) -> Call:
        """Starts a call on this replica."""
        if self._failures >= FAILURES_BEFORE_REST:
            self._trial_until = time.monotonic() + TRIAL_SECONDS
        if not isinstance(request, GenerateRequest):
            return self._bulk_calls.open(request, output, on_ended, options)
        transport = self._session or self._generations
        return transport.open(request, output, on_ended, options)

    @property
    def loads(self) -> Mapping[str, Load]:
        """The newest load of each model's engine, by model id."""
        return self._session.loads if self._session is not None else self._listed_loads

    @property
    def resting(self) -> bool:
        """Whether other replicas are preferred now because this one failed repeatedly."""
        if self._failures < FAILURES_BEFORE_REST:
            return False
        return time.monotonic() < max(self._rests_until, self._trial_until)

    def note(self, status: status_pb2.Status) -> None:
        """Counts a call's status. Refusals and cancels are not failures of the replica."""
        self._trial_until = 0.0
        code = status.code
        if not code and not self._failures:
            return
        if code == _UNAUTHENTICATED:
            # The edge's key was revoked or has expired; the health, which needs none, does not say.
            self._set_problem(self._reason(code, status.message))
        lost = code == _UNAVAILABLE and not status.details
        if code in _FAULTS or lost:
            self._failures += 1
            self._trials = 0
            if self._failures >= FAILURES_BEFORE_REST:
                self._rests_until = time.monotonic() + REST_SECONDS
        elif code:
            return
        elif self._failures < FAILURES_BEFORE_REST:
            self._failures = 0
        elif time.monotonic() >= self._rests_until:
            self._trials += 1
            if self._trials == TRIALS:
                self._failures = self._trials = 0

    def review_keys(self) -> None:
        """Looks whether keys have got limits that a service in use does not enforce."""
        if self.serving:
            self._set_problem(self._key_problem())

    async def close(self) -> None:
        """Ends every call and both connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()
        await self._generations.close()
        await self._bulk_calls.close()
        await self._channel.close()
        await self._bulk.close()

    def _fall_back(self) -> None:
        log.warning(
            "%s has no session of this revision; using an RPC a call",
            self.address,
        )
        self._session = None

    def _stop_serving(self) -> None:
        self.serving = False

    async def _watch(self) -> None:
        """Follows the service's health until the replica is closed."""
        delay = FIRST_RETRY_SECONDS
        while True:
            call = self._health.Watch(health_pb2.HealthCheckRequest(service=""))
            try:
                while isinstance(reply := await call.read(), health_pb2.HealthCheckResponse):
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        await self._begin_serving()
                    else:
                        self.serving = False
                        self._set_problem(None)
                    # Reset only here: a service that reports SERVING may still be unusable.
                    delay = FIRST_RETRY_SECONDS
            except grpc.aio.AioRpcError as error:
                # It is down, or does not serve yet.
                self._suspect(self._reason(error.code().value[0], error.details() or ""))
            except ContactError as error:
                self._suspect(error.problem)
            except (grpc.aio.UsageError, TimeoutError):
                self._suspect(SILENT)
            except Exception:
                log.exception("%s cannot be followed", self.address)
            finally:
                call.cancel()
            if self.serving:
                log.warning("%s is gone", self.address)
                self.serving = False
                self._on_lost()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def _ask_for_loads(self) -> None:
        """Asks for what the engines do, while no session tells it."""
        while True:
            if self.serving and self._session is None:
                with suppress(Exception):  # The next answer is as good.
                    reply = await self._list_models()
                    self._listed_loads = {model.id: model.load for model in reply.models}
            await asyncio.sleep(LOAD_SECONDS)

    async def _list_models(self) -> ListModelsResponse:
        reply: ListModelsResponse = await self._stub.ListModels(
            ListModelsRequest(), timeout=LIST_SECONDS, metadata=self._credentials
        )
        return reply

    async def _begin_serving(self) -> None:
        """Learns the models and connects the session.

        Raises:
            ContactError: The service cannot be used.
            grpc.aio.AioRpcError, TimeoutError: It cannot be reached.
        """
        reply = await self._list_models()
        self._knows_keys = reply.knows_keys
        if (problem := self._key_problem()) is UNENFORCED:
            raise ContactError(problem)
        async with asyncio.timeout(CONNECT_SECONDS):
            # Each connection has its own backoff, so this one may still be waiting.
            await self._channel.channel_ready()
            if self._session is not None and not await self._session.ready() and self._session:
                failure = self._session.failure
                raise ContactError(self._reason(failure.code, failure.message) if failure else None)
        self.models = tuple(reply.models)
        self.by_name = {name: model for model in self.models for name in names_of(model)}
        self.serving = True
        log.info("%s serves %s", self.address, ", ".join(model.id for model in self.models))
        self._set_problem(problem)

    def _key_problem(self) -> Problem | None:
        if self._keys is None or self._knows_keys:
            return None
        return UNENFORCED if self._keys.has_limits else NO_KEYS

    def _reason(self, code: int, text: str) -> Problem | None:
        problem = problem_of(code, text, secure=self._secure)
        return NOT_UP if problem is UNREACHABLE and not self.models else problem

    def _suspect(self, problem: Problem | None) -> None:
        """Takes the reason of a failed attempt as the problem once it repeats.

        A restart ends connections in ways that look like wrong certificates, but only once.
        """
        if self.serving:
            return
        if problem is not None and problem == self._suspected:
            self._set_problem(problem)
        self._suspected = problem

    def _set_problem(self, problem: Problem | None) -> None:
        """Takes the problem, and logs it if it is another than before."""
        if problem is not None and problem != self.problem:
            log.log(problem.level, "%s: %s", self.address, problem.text)
        self.problem = problem


def names_of(model: Model) -> Iterator[str]:
    """The id and every alias."""
    yield model.id
    for alias in model.aliases:
        yield alias.name
