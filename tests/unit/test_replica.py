"""One address of a service: scripted health, models and transports, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from edge.config import EdgeConfig
from edge.upstream.channels import BULK_OPTIONS
from edge.upstream.problems import NO_KEYS, NOT_UP, SILENT, UNENFORCED, UNREACHABLE, Problem
from edge.upstream.replica import LOAD_SECONDS, Replica, names_of
from edge.upstream.transport import CallOptions
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import ListModelsResponse, Load, Model, ModelAlias
from tests.virtual_time import now, run_virtually, settle

SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING)
NOT_SERVING = HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
MODEL = Model(id="m", aliases=[ModelAlias(name="a"), ModelAlias(name="b")])
OPTIONS = CallOptions(10.0, {}, "")
NOTHING = grpc.aio.Metadata()


def rpc_error(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, NOTHING, NOTHING, details)


class Watch:
    """A call of Health.Watch."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.cancelled = False

    async def read(self) -> Any:
        reply = await self._service.health.get()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def cancel(self) -> None:
        self.cancelled = True


class Channel:
    def __init__(self, service: Service, arguments: tuple[object, ...]) -> None:
        self._service = service
        self.arguments = arguments
        self.closed = False

    async def channel_ready(self) -> None:
        await self._service.connected.wait()

    async def close(self) -> None:
        self.closed = True


class Transport:
    """A transport of either kind; records what is opened."""

    def __init__(self, channel_or_stub: Any, credentials: Any, **callbacks: Any) -> None:
        self.channel = getattr(channel_or_stub, "channel", channel_or_stub)
        self.credentials = credentials
        self.callbacks = callbacks
        self.opened: list[object] = []
        self.closed = False
        self.established = True
        self.failure: Status | None = None

    def open(self, request: object, output: object, on_ended: object, options: object) -> object:
        self.opened.append((request, output, on_ended, options))
        return self

    async def ready(self) -> bool:
        if not self.established:
            self.callbacks.get("before", lambda: None)()
        return self.established

    async def close(self) -> None:
        self.closed = True


class Keys:
    def __init__(self, has_limits: bool) -> None:
        self.has_limits = has_limits


class Service:
    """A service that answers what it is told to."""

    def __init__(self) -> None:
        self.health: asyncio.Queue[Any] = asyncio.Queue()
        self.watches: list[tuple[float, Watch]] = []
        self.asked: list[tuple[float, object]] = []
        self.models: Any = ListModelsResponse(models=[MODEL])
        self.connected = asyncio.Event()
        self.connected.set()
        self.channels: list[Channel] = []
        self.transports: list[Transport] = []
        self.lost: list[float] = []
        self.replica: Replica

    def start(self, keys: Keys | None = None, credentials: Any = None, **config: Any) -> None:
        some_keys: Any = keys
        self.replica = Replica(
            "ipv4:1.2.3.4:5",
            EdgeConfig(**config),
            credentials,
            "name",
            some_keys,
            lambda: self.lost.append(now()),
        )

    async def tell(self, *replies: Any) -> None:
        for reply in replies:
            self.health.put_nowait(reply)
        await settle()

    @property
    def bulk(self) -> Transport:
        return self.transports[0]

    @property
    def generations(self) -> Transport:
        return self.transports[1]

    @property
    def session(self) -> Transport:
        return self.transports[2]

    def channel(self, *arguments: object) -> Channel:
        self.channels.append(Channel(self, arguments))
        return self.channels[-1]

    def transport(self, *arguments: Any, **callbacks: Any) -> Transport:
        self.transports.append(Transport(*arguments, **callbacks))
        return self.transports[-1]

    def health_stub(self, channel: Channel) -> object:
        def watch(request: object) -> Watch:
            assert request == HealthCheckRequest(service="")
            self.watches.append((now(), Watch(self)))
            return self.watches[-1][1]

        return SimpleNamespace(Watch=watch, channel=channel)

    def stub(self, channel: Channel) -> object:
        async def list_models(_: object, *, timeout: float, metadata: object) -> Any:
            self.asked.append((timeout, metadata))
            if isinstance(self.models, BaseException):
                raise self.models
            return self.models

        return SimpleNamespace(ListModels=list_models, channel=channel)

    def times(self) -> list[float]:
        """When the health was watched, in tenths of seconds since the first time."""
        return [round(10 * (at - self.watches[0][0])) for at, _ in self.watches]


Test = Callable[[Service], Coroutine[Any, Any, None]]
Virtually = Callable[[Test], None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    def run(test: Test) -> None:
        async def main() -> None:
            service = Service()
            for name, fake in (
                ("channel", service.channel),
                ("UnaryTransport", service.transport),
                ("SessionTransport", service.transport),
                ("InferenceServiceStub", service.stub),
                ("SessionServiceStub", lambda channel: SimpleNamespace(channel=channel)),
                ("health_pb2_grpc.HealthStub", service.health_stub),
                ("time", SimpleNamespace(monotonic=now)),
            ):
                monkeypatch.setattr(f"edge.upstream.replica.{name}", fake)
            await test(service)
            await service.replica.close()
            assert all(channel.closed for channel in service.channels)
            assert all(transport.closed for transport in service.transports[:2])
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run_virtually(main())

    return run


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def failed(code: grpc.StatusCode, *, details: bool = False, message: str = "") -> Status:
    status = Status(code=code.value[0], message=message)
    if details:
        detail = AnyMessage()
        detail.Pack(ErrorInfo(reason="queue_timeout"))
        status.details.append(detail)
    return status


def test_model_is_known_by_its_id_and_aliases() -> None:
    assert list(names_of(MODEL)) == ["m", "a", "b"]


def test_service_that_is_healthy_is_asked_for_its_models_and_serves(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        service.start(upstream_token="secret")
        replica = service.replica
        await settle()
        assert not replica.serving
        assert repr(replica) == "<Replica ipv4:1.2.3.4:5 not serving, 0 calls>"
        await service.tell(SERVING)
        assert replica.serving
        assert repr(replica) == "<Replica ipv4:1.2.3.4:5 serving, 0 calls>"
        assert replica.models == (MODEL,)
        assert list(replica.by_name) == ["m", "a", "b"]
        assert replica.problem is None
        credentials = (("authorization", "Bearer secret"),)
        assert service.asked == [(5.0, credentials)]
        assert {transport.credentials for transport in service.transports} == {credentials}
        assert caplog.messages == ["ipv4:1.2.3.4:5 serves m"]

    virtually(test)


def test_text_has_a_connection_of_its_own(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        text, bulk = service.channels
        assert text.arguments == ("ipv4:1.2.3.4:5", None, "name")
        assert bulk.arguments == ("ipv4:1.2.3.4:5", None, "name", BULK_OPTIONS)
        assert service.bulk.channel is bulk
        assert service.generations.channel is service.session.channel is text
        assert service.session.credentials == ()

    virtually(test)


@pytest.mark.parametrize("transport", ["session", "generate"])
def test_text_goes_over_the_session_if_there_is_one(virtually: Virtually, transport: str) -> None:
    async def test(service: Service) -> None:
        service.start(transport=transport)
        output, on_ended = object(), object()
        arguments: Any = (GenerateRequest(), output, on_ended, OPTIONS)
        text = service.session if transport == "session" else service.generations
        assert service.replica.open(*arguments) is text
        assert text.opened == [arguments]
        arguments = (EmbedRequest(), output, on_ended, OPTIONS)
        assert service.replica.open(*arguments) is service.bulk
        assert service.bulk.opened == [arguments]
        assert len(service.transports) == (3 if transport == "session" else 2)

    virtually(test)


def test_service_without_sessions_gets_an_rpc_a_call(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        service.start()
        session = service.session
        session.established = False
        session.callbacks["before"] = session.callbacks["on_unsupported"]
        await service.tell(SERVING)
        assert service.replica.serving
        assert caplog.messages[0] == (
            "ipv4:1.2.3.4:5 has no session of this revision; using an RPC a call"
        )
        arguments: Any = (GenerateRequest(), object(), object(), OPTIONS)
        service.replica.open(*arguments)
        assert service.generations.opened == [arguments]

    virtually(test)


def test_service_that_goes_away_gets_no_calls(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        await service.tell(SERVING)
        service.session.callbacks["on_going_away"]()
        assert not service.replica.serving
        await service.replica.close()
        assert service.session.closed

    virtually(test)


def test_service_whose_session_fails_does_not_serve(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        service.session.established = False
        service.session.failure = failed(grpc.StatusCode.UNAVAILABLE, message="Socket closed")
        for _ in range(2):
            await service.tell(SERVING)
            assert not service.replica.serving
            await asyncio.sleep(0.1)
        assert service.replica.problem is not None
        assert service.replica.problem.text.startswith("it closes the connection")
        service.session.failure = None
        await service.tell(SERVING)
        assert not service.replica.serving
        service.session.established = True
        await asyncio.sleep(0.5)
        await service.tell(SERVING)
        assert service.replica.serving
        assert service.replica.problem is None

    virtually(test)


def test_unhealthy_service_stops_serving_and_returns(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        await service.tell(SERVING, NOT_SERVING)
        assert not service.replica.serving
        assert service.replica.models == (MODEL,)
        await service.tell(SERVING)
        assert service.replica.serving
        assert service.lost == []
        assert len(service.watches) == 1

    virtually(test)


def test_problem_ends_when_the_service_answers_that_it_does_not_serve(
    virtually: Virtually,
) -> None:
    async def test(service: Service) -> None:
        service.start()
        for _ in range(2):
            await service.tell(rpc_error(grpc.StatusCode.UNAVAILABLE, "refused"))
            await asyncio.sleep(0.5)
        assert service.replica.problem == NOT_UP
        await service.tell(NOT_SERVING)
        assert service.replica.problem is None

    virtually(test)


def test_health_is_watched_again_after_a_tenth_to_half_a_second(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        for _ in range(6):
            service.health.put_nowait(grpc.aio.EOF)
        await asyncio.sleep(60)
        assert service.times() == [0, 1, 3, 7, 12, 17, 22]
        assert [watch.cancelled for _, watch in service.watches] == [True] * 6 + [False]
        await service.tell(NOT_SERVING, *[grpc.aio.EOF] * 3)
        await asyncio.sleep(60)
        assert service.times()[7:] == [601, 603, 607]

    virtually(test)


@pytest.mark.parametrize(
    "end", [grpc.aio.EOF, rpc_error(grpc.StatusCode.UNAVAILABLE), RuntimeError()]
)
def test_service_that_is_gone_is_told_and_watched_again(
    virtually: Virtually, caplog: pytest.LogCaptureFixture, end: object
) -> None:
    async def test(service: Service) -> None:
        service.start()
        await service.tell(SERVING)
        caplog.clear()
        gone = now()
        await service.tell(end)
        assert not service.replica.serving
        assert service.lost == [gone]
        assert caplog.messages[-1] == "ipv4:1.2.3.4:5 is gone"
        assert caplog.records[-1].levelno == logging.WARNING
        if isinstance(end, RuntimeError):
            assert caplog.messages[0] == "ipv4:1.2.3.4:5 cannot be followed"
        assert service.replica.problem is None
        await service.tell(SERVING)
        await asyncio.sleep(0.11)
        assert service.replica.serving
        assert service.lost == [gone]

    virtually(test)


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        (rpc_error(grpc.StatusCode.UNAVAILABLE, "refused"), NOT_UP),
        (
            rpc_error(grpc.StatusCode.UNAVAILABLE, "certificate has expired"),
            Problem("its certificate has expired"),
        ),
        (grpc.aio.UsageError(), SILENT),
        (TimeoutError(), SILENT),
    ],
    ids=["refused", "expired", "closed", "late"],
)
def test_reason_is_told_once_it_repeats(
    virtually: Virtually, caplog: pytest.LogCaptureFixture, end: object, problem: Problem
) -> None:
    async def test(service: Service) -> None:
        service.start()
        await service.tell(end)
        assert service.replica.problem is None
        for _ in range(3):
            await asyncio.sleep(0.5)
            await service.tell(end)
            assert service.replica.problem == problem
        assert len(caplog.messages) == 1
        assert caplog.records[0].levelno == problem.level
        assert service.lost == []

    virtually(test)


def test_service_that_is_lost_is_told_in_other_words_than_one_that_is_not_up_yet(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        refused = rpc_error(grpc.StatusCode.UNAVAILABLE, "refused")
        service.start()
        for _ in range(2):
            await service.tell(refused)
            await asyncio.sleep(0.5)
        assert "not up yet" in caplog.messages[-1]
        await service.tell(SERVING)
        assert service.replica.serving
        caplog.clear()
        for _ in range(3):
            await service.tell(refused)
            await asyncio.sleep(0.5)
        address = "ipv4:1.2.3.4:5"
        assert caplog.messages == [f"{address} is gone", f"{address}: it cannot be reached"]
        assert service.replica.problem == UNREACHABLE

    virtually(test)


@pytest.mark.parametrize(
    ("credentials", "text"),
    [(None, "it closes the connection; "), (object(), "it closes the connection after the TLS")],
    ids=["plain", "TLS"],
)
def test_reason_depends_on_whether_the_edge_speaks_tls(
    virtually: Virtually, credentials: object, text: str
) -> None:
    async def test(service: Service) -> None:
        service.start(credentials=credentials)
        assert [channel.arguments[1] for channel in service.channels] == [credentials] * 2
        for _ in range(2):
            await service.tell(rpc_error(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
            await asyncio.sleep(0.5)
        assert service.replica.problem is not None
        assert service.replica.problem.text.startswith(text)

    virtually(test)


def test_reasons_that_alternate_are_not_told(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        for end in (TimeoutError(), rpc_error(grpc.StatusCode.UNAVAILABLE)) * 2:
            await service.tell(end)
            await asyncio.sleep(0.5)
        assert service.replica.problem is None

    virtually(test)


def test_failure_of_the_list_of_models_is_a_reason_too(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        service.models = rpc_error(grpc.StatusCode.UNAUTHENTICATED)
        for _ in range(2):
            await service.tell(SERVING)
            assert not service.replica.serving
            await asyncio.sleep(0.5)
        assert service.replica.problem is not None
        assert service.replica.problem.text.startswith("it refuses the edge's key")

    virtually(test)


def test_connection_of_the_text_has_ten_seconds(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        service.connected.clear()
        began = now()
        await service.tell(SERVING, SERVING)
        await asyncio.sleep(9.9)
        assert len(service.watches) == 1
        await asyncio.sleep(0.3)
        assert service.times() == [0, 101]
        service.connected.set()
        await settle()
        assert service.replica.serving
        assert now() - began < 11

    virtually(test)


# Keys


def test_service_without_keys_serves_an_edge_without_keys(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start(None)
        await service.tell(SERVING)
        service.replica.review_keys()
        assert service.replica.serving
        assert service.replica.problem is None

    virtually(test)


def test_service_with_keys_has_no_problem(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.models = ListModelsResponse(models=[MODEL], knows_keys=True)
        service.start(Keys(has_limits=True))
        await service.tell(SERVING)
        service.replica.review_keys()
        assert service.replica.serving
        assert service.replica.problem is None

    virtually(test)


def test_service_that_would_not_enforce_limits_is_not_used(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        service.start(Keys(has_limits=True))
        for _ in range(2):
            await service.tell(SERVING)
            await asyncio.sleep(0.5)
        assert not service.replica.serving
        assert service.replica.problem == UNENFORCED
        assert caplog.records[0].levelno == logging.ERROR
        assert caplog.messages == [f"ipv4:1.2.3.4:5: {UNENFORCED.text}"]

    virtually(test)


def test_limits_that_come_later_are_told(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        keys = Keys(has_limits=False)
        service.start(keys)
        service.replica.review_keys()
        assert service.replica.problem is None  # it is not in use
        await service.tell(SERVING)
        assert service.replica.serving
        assert service.replica.problem == NO_KEYS
        keys.has_limits = True
        service.replica.review_keys()
        service.replica.review_keys()
        assert service.replica.problem == UNENFORCED
        assert service.replica.serving
        assert len([m for m in caplog.messages if UNENFORCED.text in m]) == 1
        keys.has_limits = False
        service.replica.review_keys()
        assert service.replica.problem == NO_KEYS

    virtually(test)


def test_revoked_key_of_the_edge_is_told_at_the_first_call(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        await service.tell(SERVING)
        service.replica.note(failed(grpc.StatusCode.INTERNAL))
        assert service.replica.problem is None
        service.replica.note(failed(grpc.StatusCode.UNAUTHENTICATED))
        assert service.replica.problem is not None
        assert service.replica.problem.text.startswith("it refuses the edge's key")

    virtually(test)


# Replicas that rest after failures


def note(replica: Replica, *codes: grpc.StatusCode) -> None:
    for code in codes:
        replica.note(failed(code))


INTERNAL = grpc.StatusCode.INTERNAL
OK = grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (failed(grpc.StatusCode.INTERNAL), True),
        (failed(grpc.StatusCode.UNKNOWN), True),
        (failed(grpc.StatusCode.DATA_LOSS), True),
        (failed(grpc.StatusCode.UNAVAILABLE), True),
        (failed(grpc.StatusCode.UNAVAILABLE, details=True), False),
        (failed(grpc.StatusCode.INTERNAL, details=True), True),
        (failed(grpc.StatusCode.RESOURCE_EXHAUSTED), False),
        (failed(grpc.StatusCode.CANCELLED), False),
        (failed(grpc.StatusCode.DEADLINE_EXCEEDED), False),
        (failed(grpc.StatusCode.OK), False),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:30],
)
def test_replica_rests_after_five_faults(virtually: Virtually, status: Status, fault: bool) -> None:
    async def test(service: Service) -> None:
        service.start()
        replica = service.replica
        for _ in range(4):
            replica.note(status)
            assert not replica.resting
        replica.note(status)
        assert replica.resting == fault

    virtually(test)


def test_success_between_faults_begins_anew_and_a_refusal_does_not(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        replica = service.replica
        note(replica, *[INTERNAL] * 4, OK, *[INTERNAL] * 4)
        assert not replica.resting
        note(replica, grpc.StatusCode.CANCELLED)
        assert not replica.resting
        note(replica, INTERNAL)
        assert replica.resting

    virtually(test)


def test_rest_lasts_thirty_seconds_and_begins_anew_with_each_fault(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        replica = service.replica
        note(replica, *[INTERNAL] * 5)
        await asyncio.sleep(29.9)
        assert replica.resting
        note(replica, OK, OK, OK)  # of calls that began before
        assert replica.resting
        note(replica, INTERNAL)
        await asyncio.sleep(29.9)
        assert replica.resting
        await asyncio.sleep(0.2)
        assert not replica.resting
        note(replica, INTERNAL)
        assert replica.resting

    virtually(test)


def test_replica_that_has_rested_gets_one_call_at_a_time_until_two_succeed(
    virtually: Virtually,
) -> None:
    async def test(service: Service) -> None:
        service.start()
        replica = service.replica

        def call() -> None:
            output: Any = object()
            replica.open(GenerateRequest(), output, output, OPTIONS)

        note(replica, *[INTERNAL] * 4)
        call()
        assert not replica.resting
        note(replica, INTERNAL)
        await asyncio.sleep(30)
        assert not replica.resting
        call()
        assert replica.resting
        await asyncio.sleep(4.9)
        assert replica.resting
        await asyncio.sleep(0.2)
        assert not replica.resting  # the call takes long, so another is tried
        call()
        note(replica, OK)
        assert not replica.resting
        call()
        assert replica.resting
        note(replica, grpc.StatusCode.CANCELLED)  # neither a success nor a failure
        call()
        assert replica.resting
        note(replica, OK)
        call()
        assert not replica.resting
        note(replica, *[INTERNAL] * 4)
        assert not replica.resting

    virtually(test)


def test_trials_begin_anew_after_a_fault(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start()
        replica = service.replica
        note(replica, *[INTERNAL] * 5)
        await asyncio.sleep(30)
        note(replica, OK, INTERNAL)
        assert replica.resting
        await asyncio.sleep(30)
        note(replica, OK, INTERNAL)
        assert replica.resting
        await asyncio.sleep(30)
        note(replica, OK, OK, *[INTERNAL] * 4)
        assert not replica.resting
        note(replica, INTERNAL)
        await asyncio.sleep(30)
        note(replica, OK)
        note(replica, INTERNAL)
        assert replica.resting

    virtually(test)


# Loads of the engines


def test_loads_are_asked_for_without_a_session(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        def told(running: int) -> Any:
            return ListModelsResponse(models=[Model(id="m", load=Load(running=running))])

        service.models = told(1)
        service.start(transport="generate")
        await asyncio.sleep(1.5 * LOAD_SECONDS)
        assert service.asked == []  # It does not serve yet.
        service.health.put_nowait(SERVING)
        await settle()
        asked = len(service.asked)
        await asyncio.sleep(10.0)
        assert len(service.asked) == asked + 10
        assert service.replica.loads == {"m": Load(running=1)}
        for error in (rpc_error(grpc.StatusCode.UNAVAILABLE), grpc.aio.UsageError("injected")):
            service.models = error
            await asyncio.sleep(2 * LOAD_SECONDS)
            assert service.replica.loads == {"m": Load(running=1)}
        service.models = told(2)
        await asyncio.sleep(LOAD_SECONDS)
        assert service.replica.loads == {"m": Load(running=2)}

    virtually(test)


def test_session_tells_the_loads(virtually: Virtually) -> None:
    async def test(service: Service) -> None:
        service.start(transport="session")
        service.health.put_nowait(SERVING)
        await settle()
        asked = len(service.asked)
        await asyncio.sleep(10 * LOAD_SECONDS)
        assert len(service.asked) == asked
        session: Any = service.transports[-1]
        session.loads = {"m": Load(running=3)}
        assert service.replica.loads == {"m": Load(running=3)}

    virtually(test)
