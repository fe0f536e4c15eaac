"""Which replica gets a call, and which addresses there are: in virtual time, without sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from edge.config import EdgeConfig
from edge.upstream.problems import NO_KEYS, SILENT, Problem
from edge.upstream.router import ModelNotFoundError, NoReplicaError, Router
from edge.upstream.transport import CallOptions, Ended
from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.generate_pb2 import GenerateRequest, OutputOptions
from isthmus.v1.image_pb2 import GenerateImageRequest
from isthmus.v1.models_pb2 import Model, ModelAlias, ModelKind
from tests.virtual_time import now, run_virtually, settle

OPTIONS = CallOptions(100.0, {}, "p")
STREAM = GenerateRequest(model="m")
PLAIN = GenerateRequest(model="m", output=OutputOptions(single_message=True))
OK = Status()
UNAVAILABLE = Status(code=grpc.StatusCode.UNAVAILABLE.value[0])
TEXT = Model(id="m", kind=ModelKind.MODEL_KIND_TEXT, aliases=[ModelAlias(name="alias")])


class Replica:
    """Stands in for a replica; records what the router does with it."""

    made: list[Replica]

    def __init__(
        self,
        address: str,
        config: EdgeConfig,
        credentials: object,
        server_name: str,
        keys: object,
        on_lost: Callable[[], None],
    ) -> None:
        self.address = self.engine = address
        self.arguments = (config, credentials, server_name, keys)
        self.on_lost = on_lost
        self.serving = False
        self.leaving = False
        self.resting = False
        self.outstanding = 0
        self.models: tuple[Model, ...] = ()
        self.problem: Problem | None = None
        self.reviews = 0
        self.closed = False
        self.opened: list[SimpleNamespace] = []
        self.noted: list[Status] = []
        self.made.append(self)

    def serve(self, *models: Model) -> None:
        self.serving = True
        self.models = models or (TEXT,)

    @property
    def by_name(self) -> dict[str, Model]:
        return {
            name: model
            for model in self.models
            for name in (model.id, *(alias.name for alias in model.aliases))
        }

    def open(self, request: Any, output: Any, on_ended: Any, options: CallOptions) -> Any:
        call = SimpleNamespace(
            request=request, output=output, end=on_ended, options=options, cancels=0
        )

        def cancel() -> None:
            call.cancels += 1

        call.cancel = cancel
        self.opened.append(call)
        return call

    def note(self, status: Status) -> None:
        self.noted.append(status)

    def review_keys(self) -> None:
        self.reviews += 1

    async def close(self) -> None:
        self.closed = True


class Receiver:
    def __init__(self) -> None:
        self.ends: list[Status] = []

    def on_text(self, text: str) -> None:
        raise AssertionError

    on_part = on_text

    def on_end(self, status: Status) -> None:
        self.ends.append(status)


class Names:
    """A name server: what each name resolves to."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str, int]] = []
        self.addresses: dict[str, list[str]] = {}
        self.error: Exception | None = None
        self.hangs = False

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:
        assert type == socket.SOCK_STREAM
        self.asked.append((now(), host, port))
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return [
            (socket.AF_INET6, type, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, type, 6, "", (address, port))
            for address in self.addresses.get(host, [host])
        ]

    def times(self) -> list[float]:
        """When it was asked, beginning with 0."""
        return [at - self.asked[0][0] for at, _, _ in self.asked]


Virtually = Callable[..., None]


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Runs test(router, names) with a router of the given upstreams."""
    made: list[Replica] = []
    monkeypatch.setattr(Replica, "made", made, raising=False)
    monkeypatch.setattr("edge.upstream.upstream.Replica", Replica)
    monkeypatch.setattr("edge.upstream.router.time", SimpleNamespace(monotonic=now))

    def run(
        test: Callable[[Router, Names], Coroutine[Any, Any, None]],
        *upstreams: str,
        resolve_seconds: float = 5.0,
        **names: list[str],
    ) -> None:
        async def main() -> None:
            server = Names()
            server.addresses = names
            loop: Any = asyncio.get_running_loop()
            loop.getaddrinfo = server.getaddrinfo
            config = EdgeConfig(
                upstreams=upstreams or ("a:1",),
                allow_plaintext=True,
                resolve_seconds=resolve_seconds,
            )
            router = Router(config, None)
            await settle()
            await test(router, server)
            await router.close()
            assert all(replica.closed for replica in made)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run_virtually(main())

    return run


def replicas(router: Router) -> list[Replica]:
    found: Any = [r for upstream in router.upstreams for r in upstream.replicas.values()]
    return found


def host(replica: Replica) -> str:
    return replica.address.split(":")[1]


def reason(name: str) -> Status:
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="x")
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=name, domain="isthmus"))
    status.details.append(detail)
    return status


# Names and addresses


def test_each_port_of_a_range_at_each_address_is_a_replica(virtually: Virtually) -> None:
    async def test(router: Router, _: Names) -> None:
        assert {replica.address for replica in replicas(router)} == {
            f"ipv4:{address}:{port}" for address in ("10.0.0.1", "10.0.0.2") for port in (7, 8, 9)
        }
        assert {replica.engine for replica in replicas(router)} == {
            *("ipv4:10.0.0.1", "ipv4:10.0.0.2")
        }
        (upstream,) = router.upstreams
        replicas(router)[0].serving = True
        assert upstream.serving

    virtually(test, "name:7-9", name=["10.0.0.1", "10.0.0.2"])


def test_each_address_of_a_name_is_a_replica(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        assert {r.address for r in found} == {"ipv4:10.0.0.1:50051", "ipv6:[fe80::1]:50051"}
        assert {r.arguments[2] for r in found} == {"service"}
        assert names.asked[0][1:] == ("service", 50051)
        assert [r.reviews for r in found] == [0, 0]

    virtually(test, "service:50051", service=["10.0.0.1", "fe80::1"])


def test_address_in_brackets_is_resolved_without_them(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        assert names.asked[0][1:] == ("::1", 7)
        assert [r.address for r in replicas(router)] == ["ipv6:[::1]:7"]

    virtually(test, "[::1]:7")


def test_name_is_asked_again_after_5_s_while_served_and_each_second_otherwise(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        await asyncio.sleep(3.5)
        assert names.times() == [0, 1, 2, 3]
        (replica,) = replicas(router)
        replica.serve()
        await asyncio.sleep(12)
        assert names.times() == [0, 1, 2, 3, 4, 9, 14]
        assert replica.reviews == 6
        replica.on_lost()
        await settle()
        assert names.times()[7:] == [15.5]
        replica.serving = False
        replica.on_lost()
        await asyncio.sleep(1.2)
        assert names.times()[8:] == [15.5, 16.5]

    virtually(test)


def test_name_is_asked_as_often_as_configured(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        await asyncio.sleep(0.5)
        (replica,) = replicas(router)
        replica.serve()
        await asyncio.sleep(0.5)
        assert names.times() == pytest.approx([0, 0.3, 0.6, 0.9])

    virtually(test, resolve_seconds=0.3)


def test_name_server_has_five_seconds(
    virtually: Virtually, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(router: Router, names: Names) -> None:
        names.hangs = True
        await asyncio.sleep(5.9)
        assert names.times() == [0, 1]
        assert caplog.messages == []
        await asyncio.sleep(1.2)
        assert names.times() == [0, 1, 7]
        assert caplog.messages == ["cannot resolve a:1"]

    virtually(test)


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError(), "cannot resolve a:1"), (RuntimeError(), "cannot follow a:1")],
)
def test_name_is_asked_again_after_an_error(
    virtually: Virtually, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    async def test(router: Router, names: Names) -> None:
        (replica,) = replicas(router)
        names.error = error
        await asyncio.sleep(1.5)
        assert caplog.messages == [line]
        names.error = None
        await asyncio.sleep(1.5)
        assert caplog.messages == [line]
        assert replicas(router) == [replica]
        assert not replica.closed

    virtually(test)


def test_replica_whose_address_is_gone_stays_while_it_serves_or_has_calls(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        serving, busy, gone = replicas(router)
        serving.serve()
        busy.outstanding = 1
        names.addresses["a"] = ["9.9.9.9"]
        serving.on_lost()
        await settle()
        assert [r.address for r in replicas(router)] == [
            serving.address,
            busy.address,
            "ipv4:9.9.9.9:1",
        ]
        assert [r.closed for r in (serving, busy, gone)] == [False, False, True]
        serving.serving = False
        busy.outstanding = 0
        serving.on_lost()
        await settle()
        assert [r.address for r in replicas(router)] == ["ipv4:9.9.9.9:1"]
        assert serving.closed
        assert busy.closed

    virtually(test, a=["1.1.1.1", "2.2.2.2", "3.3.3.3"])


def test_call_prints_nothing_of_its_request(virtually: Virtually) -> None:
    """An error may be logged with the objects that it was about."""

    async def test(router: Router, _: Names) -> None:
        for replica in replicas(router):
            replica.serve()
        call = router.open(GenerateRequest(model="m", text="secret"), Receiver(), OPTIONS)
        assert "secret" not in repr(call)

    virtually(test, a=["1.1.1.1"])


def test_replica_whose_address_is_gone_is_closed_after_its_calls_while_others_serve(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        idle, busy, kept = replicas(router)
        for replica in (idle, busy, kept):
            replica.serve()
        busy.outstanding = 1
        names.addresses["a"] = [host(kept)]
        await asyncio.sleep(6)
        assert replicas(router) == [busy, kept]
        assert (idle.closed, busy.closed) == (True, False)
        for _ in range(4):
            router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in (busy, kept)] == [0, 4]
        busy.outstanding = 0
        await asyncio.sleep(5)
        assert replicas(router) == [kept]
        assert busy.closed

    virtually(test, a=["1.1.1.1", "2.2.2.2", "3.3.3.3"])


def test_replica_whose_address_is_gone_gets_calls_only_if_there_is_no_other(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        gone, other = replicas(router)
        gone.serve()
        other.serve()
        gone.outstanding = 1
        names.addresses["a"] = [host(other)]
        await asyncio.sleep(6)
        other.resting = True
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in (gone, other)] == [1, 0]
        other.serving = False
        gone.outstanding = 0
        await asyncio.sleep(6)
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in (gone, other)] == [2, 0]

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


def test_replica_whose_address_is_back_gets_calls_again(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()
            replica.outstanding = 1
        names.addresses["a"] = ["2.2.2.2"]
        await asyncio.sleep(6)
        names.addresses["a"] = ["1.1.1.1", "2.2.2.2"]
        await asyncio.sleep(6)
        assert replicas(router) == found
        for _ in range(4):
            router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [2, 2]

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


def test_problems_of_replicas_are_told_once_each(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        (upstream,) = router.upstreams
        assert upstream.problem == ""
        for replica, problem in zip(replicas(router), (NO_KEYS, SILENT, NO_KEYS), strict=True):
            replica.problem = problem
        assert sorted(upstream.problem.split("; ")) == sorted(
            [*NO_KEYS.text.split("; "), SILENT.text]
        )

    virtually(test, a=["1.1.1.1", "2.2.2.2", "3.3.3.3"])


def test_closed_upstream_asks_no_name_server(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        (upstream,) = router.upstreams
        await upstream.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtually(test, a=[])


# Models


def test_router_is_ready_once_every_upstream_has_a_replica_that_serves(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        first, second, third = replicas(router)
        assert not router.ready()
        first.serve()
        assert not router.ready()
        third.serve()
        assert router.ready()
        assert second.serving is False

    virtually(test, "a:1", "b:1", a=["1.1.1.1", "2.2.2.2"])


def test_models_of_all_upstreams_are_listed_once(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        first, second = replicas(router)
        other = Model(id="e", kind=ModelKind.MODEL_KIND_EMBEDDING)
        again = Model(id="m", kind=ModelKind.MODEL_KIND_TEXT, owned_by="second")
        first.serve()
        second.serve(again, other)
        assert router.models() == [TEXT, other]
        assert router.default_model(ModelKind.MODEL_KIND_EMBEDDING) == "e"
        assert router.default_model(ModelKind.MODEL_KIND_IMAGE) is None
        second.models = (other, Model(id="f", kind=ModelKind.MODEL_KIND_EMBEDDING))
        assert router.default_model(ModelKind.MODEL_KIND_EMBEDDING) is None
        assert router.find("alias") == TEXT
        assert router.find("f").id == "f"

    virtually(test, "a:1", "b:1")


def test_unknown_model_is_not_found_once_every_upstream_has_listed_its_models(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        first, second = replicas(router)
        first.serve()
        with pytest.raises(NoReplicaError):
            router.find("x")
        with pytest.raises(NoReplicaError):
            router.open(GenerateRequest(model="x"), Receiver(), OPTIONS)
        second.serve()
        with pytest.raises(ModelNotFoundError, match="x"):
            router.find("x")
        with pytest.raises(ModelNotFoundError, match="x"):
            router.open(GenerateRequest(model="x"), Receiver(), OPTIONS)
        second.serving = first.serving = False
        with pytest.raises(NoReplicaError):
            router.open(STREAM, Receiver(), OPTIONS)

    virtually(test, "a:1", "b:1")


# The choice of a replica


def test_calls_go_to_the_replica_with_the_fewest_and_in_turn(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        first, second, third = found = replicas(router)
        for replica in found:
            replica.serve()
        for _ in range(6):
            router.open(STREAM, Receiver(), OPTIONS)
        assert [r.outstanding for r in found] == [2, 2, 2]
        second.outstanding = 0
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [2, 3, 2]
        for replica in found:
            replica.outstanding = 0
            replica.opened.clear()
        for _ in range(9):  # each ends before the next
            router.open(STREAM, Receiver(), OPTIONS).cancel()
        assert [len(r.opened) for r in found] == [3, 3, 3]
        first.serving = False
        third.models = ()
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [3, 4, 3]

    virtually(test, a=["1.1.1.1", "2.2.2.2", "3.3.3.3"])


def test_two_replicas_take_turns(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()
        for _ in range(6):
            router.open(STREAM, Receiver(), OPTIONS).cancel()
        assert [len(r.opened) for r in found] == [3, 3]

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


def test_resting_replica_gets_calls_only_if_there_is_no_other(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        first, second = found = replicas(router)
        first.serve()
        second.serve()
        first.resting = True
        for _ in range(4):
            router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [0, 4]
        second.resting = True
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [1, 4]
        second.serving = False
        router.open(STREAM, Receiver(), OPTIONS)
        assert [len(r.opened) for r in found] == [2, 4]

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


# Affinity


def prompt(text: str) -> GenerateRequest:
    return GenerateRequest(model="m", text=text)


def test_calls_of_one_prefix_go_to_one_replica_and_those_of_many_to_all(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()
        for _ in range(5):
            router.open(prompt("same"), Receiver(), OPTIONS).cancel()
        assert sorted(len(r.opened) for r in found) == [0, 0, 5]
        assert router.affinity == Counter(first=5)
        for number in range(60):
            router.open(prompt(str(number)), Receiver(), OPTIONS).cancel()
        assert min(len(r.opened) for r in found) > 5
        assert router.affinity == Counter(first=65)

    virtually(test, a=["1.1.1.1", "2.2.2.2", "3.3.3.3"])


def test_what_the_client_says_decides(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()
        for number in range(20):
            options = CallOptions(1.0, {}, "", lambda: "conversation")
            router.open(prompt(str(number)), Receiver(), options).cancel()
        assert sorted(len(r.opened) for r in found) == [0, 20]

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


def test_calls_go_elsewhere_while_the_replica_of_their_prefix_is_too_busy_rests_or_leaves(
    virtually: Virtually,
) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()

        def chosen() -> Replica:
            before = [len(r.opened) for r in found]
            router.open(prompt("a"), Receiver(), OPTIONS).cancel()
            (one,) = [r for r, n in zip(found, before, strict=True) if len(r.opened) > n]
            return one

        home = chosen()
        for name, away in (("outstanding", 9), ("resting", True), ("leaving", True)):
            usual = getattr(home, name)
            setattr(home, name, away)
            assert chosen() is not home
            setattr(home, name, usual)
            assert chosen() is home
        # With a single candidate nothing is chosen, so nothing is counted.
        assert router.affinity == Counter(first=4, next=1)

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


def test_nothing_is_computed_for_a_single_replica(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        (replica,) = replicas(router)
        replica.serve()
        options = CallOptions(1.0, {}, "", lambda: pytest.fail("not needed"))
        router.open(prompt("a"), Receiver(), options)
        assert len(replica.opened) == 1
        assert router.affinity == Counter()

    virtually(test)


def test_embeddings_and_images_go_to_the_least_busy_replica(virtually: Virtually) -> None:
    async def test(router: Router, names: Names) -> None:
        found = replicas(router)
        for replica in found:
            replica.serve()
        options = CallOptions(1.0, {}, "", lambda: "conversation")
        for request in (EmbedRequest(model="m"), GenerateImageRequest(model="m", prompt="a")):
            for _ in range(6):
                router.open(request, Receiver(), options)
        assert [len(r.opened) for r in found] == [6, 6]
        assert router.affinity == Counter()

    virtually(test, a=["1.1.1.1", "2.2.2.2"])


# One call


async def opened(
    router: Router, request: Any = STREAM, options: CallOptions = OPTIONS
) -> tuple[Any, Receiver, Replica, Replica]:
    """A call with its receiver, the replica that has it, and the other one."""
    found = replicas(router)
    for replica in found:
        replica.serve()
    receiver = Receiver()
    call = router.open(request, receiver, options)
    (here,) = [r for r in found if r.opened]
    (other,) = [r for r in found if not r.opened]
    return call, receiver, here, other


def pair(virtually: Virtually, test: Callable[[Router], Coroutine[Any, Any, None]]) -> None:
    async def run(router: Router, names: Names) -> None:
        await test(router)

    virtually(run, a=["1.1.1.1", "2.2.2.2"])


def test_output_goes_to_the_receiver_and_the_end_is_noted(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        _, receiver, here, other = await opened(router)
        (call,) = here.opened
        assert (call.request, call.output, call.options) == (STREAM, receiver, OPTIONS)
        assert here.outstanding == 1
        call.end(Ended(OK, received=True))
        assert receiver.ends == [OK]
        assert here.noted == [OK]
        assert here.outstanding == 0
        assert router.replays == 0
        assert other.opened == []

    pair(virtually, test)


def test_cancel_reaches_the_replica_once_and_nothing_follows(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        call, receiver, here, other = await opened(router)
        call.cancel()
        call.cancel()
        assert here.opened[0].cancels == 1
        assert here.outstanding == 0
        here.opened[0].end(Ended(UNAVAILABLE, sent=False))
        assert (receiver.ends, here.noted, other.opened) == ([], [], [])
        assert here.outstanding == 0

    pair(virtually, test)


def test_cancel_after_the_end_is_nothing(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        call, receiver, here, _ = await opened(router)
        here.opened[0].end(Ended(OK))
        call.cancel()
        assert here.opened[0].cancels == 0
        assert receiver.ends == [OK]
        assert here.outstanding == 0

    pair(virtually, test)


@pytest.mark.parametrize("ended", [True, False])
def test_receiver_is_freed_after_its_call_without_a_collection(
    virtually: Virtually, ended: bool
) -> None:
    async def test(router: Router) -> None:
        call, receiver, here, _ = await opened(router)
        freed = weakref.ref(receiver)
        made = here.opened.pop()
        if ended:
            made.end(Ended(OK))
        call.cancel()
        del made.cancel  # A circle of the stand-in itself.
        gc.disable()
        try:
            del call, made, receiver
            assert freed() is None
        finally:
            gc.enable()

    pair(virtually, test)


def test_call_that_was_not_sent_moves_once_with_the_rest_of_its_time(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        call, receiver, here, other = await opened(router)
        await asyncio.sleep(30)
        here.opened[0].end(Ended(UNAVAILABLE, sent=False))
        assert here.noted == [UNAVAILABLE]
        assert (here.outstanding, other.outstanding) == (0, 1)
        assert receiver.ends == []
        (moved,) = other.opened
        assert (moved.request, moved.output) == (STREAM, receiver)
        assert moved.options == CallOptions(70.0, {}, "p")
        assert router.replays == 1
        moved.end(Ended(UNAVAILABLE, sent=False))
        assert receiver.ends == [UNAVAILABLE]
        assert len(here.opened) == 1
        assert other.outstanding == 0
        call.cancel()
        assert moved.cancels == 0

    pair(virtually, test)


def test_moved_call_is_cancelled_where_it_runs(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        call, _, here, other = await opened(router)
        here.opened[0].end(Ended(UNAVAILABLE, sent=False))
        call.cancel()
        assert (here.opened[0].cancels, other.opened[0].cancels) == (0, 1)

    pair(virtually, test)


@pytest.mark.parametrize(
    ("request_", "moves"),
    [(STREAM, True), (PLAIN, False), (EmbedRequest(model="m"), False)],
    ids=["stream", "plain", "embedding"],
)
def test_lost_call_moves_only_if_its_start_would_have_been_reported(
    virtually: Virtually, request_: Any, moves: bool
) -> None:
    async def test(router: Router) -> None:
        _, receiver, here, other = await opened(router, request_)
        here.opened[0].end(Ended(UNAVAILABLE))
        assert bool(other.opened) == moves
        assert receiver.ends == ([] if moves else [UNAVAILABLE])

    pair(virtually, test)


def test_success_is_never_repeated(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        _, receiver, here, other = await opened(router)
        here.opened[0].end(Ended(OK, sent=False))
        assert receiver.ends == [OK]
        assert other.opened == []

    pair(virtually, test)


def test_call_refused_by_a_full_replica_moves(virtually: Virtually) -> None:
    async def test(router: Router) -> None:
        _, receiver, here, other = await opened(router, PLAIN)
        here.opened[0].end(Ended(reason("server_overloaded")))
        assert receiver.ends == []
        assert len(other.opened) == 1

    pair(virtually, test)


@pytest.mark.parametrize(
    "why", ["late", "nearly late", "closed", "no other", "other model", "other resting"]
)
def test_call_moves_only_while_there_is_time_and_another_replica(
    virtually: Virtually, why: str
) -> None:
    async def test(router: Router) -> None:
        _, receiver, here, other = await opened(router)
        if why == "late":
            await asyncio.sleep(100)
        elif why == "nearly late":
            await asyncio.sleep(99.5)
        elif why == "closed":
            await router.close()
        elif why == "no other":
            other.serving = False
        elif why == "other model":
            other.models = ()
        elif why == "other resting":
            other.resting = True
        here.opened[0].end(Ended(UNAVAILABLE, sent=False))
        moves = why in ("other resting", "nearly late")
        assert bool(other.opened) == moves
        assert bool(receiver.ends) != moves

    pair(virtually, test)
