"""Finds the service of a model, and calls it."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import grpc
from google.rpc.status_pb2 import Status

from edge.openai.errors.rpc_status import from_rpc_status, reason_of
from edge.upstream import transport
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest, Model, ModelKind
from keys.settings import is_host_and_port
from launch.failure import CommandError
from launch.status import KINDS

# The addresses that `isthmus up` gives its services, of which it has one for each model.
_ADDRESSES: Final = tuple(f"127.0.0.1:{port}" for port in range(50051, 50059))
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
# Seconds in which a service has to list its models.
_LIST_SECONDS: Final = 5.0
# An image may be larger than gRPC's default of 4 MiB.
_MAX_MESSAGE_BYTES: Final = 64 * 2**20


def add_arguments(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Adds the options that say which service is called."""
    add = parser.add_argument
    if model:
        add("--model", metavar="NAME", help="id or alias (default: the first of its kind)")
    add(
        "--grpc",
        action="append",
        metavar="HOST:PORT",
        help=f"a service, may be repeated (default: {_ADDRESSES[0]} and the ports after it)",
    )
    add("--key", metavar="KEY", help="API key (default: the environment variable ISTHMUS_API_KEY)")
    add("--ca", type=Path, metavar="FILE", help="CA of the services' certificates; turns TLS on")
    add(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="of one request (default: %(default)g)",
    )


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("must be above 0 and at most 86400")
    return value


@dataclass(frozen=True, slots=True)
class Service:
    """A model and the service that has it.

    Attributes:
        stub: Calls the service.
        model: What the service says of the model.
        name: The id or alias by which it was asked for.
        metadata: The key, for each call.
        timeout_seconds: Of each call.
    """

    stub: InferenceServiceStub
    model: Model
    name: str
    metadata: tuple[tuple[str, str], ...]
    timeout_seconds: float

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of each call."""
        return {"metadata": self.metadata, "timeout": self.timeout_seconds}


@contextmanager
def services(arguments: argparse.Namespace) -> Iterator[list[Service]]:
    """Connects to the services that answer; one entry for each model, under its id.

    Raises:
        CommandError: An address is not HOST:PORT, or no service answers.
    """
    given: Sequence[str] = arguments.grpc or ()
    for address in given:
        if not is_host_and_port(address, lowest=1):
            raise CommandError(f"--grpc: {address} is not HOST:PORT.", 2)
    if arguments.ca is not None and not arguments.ca.is_file():
        raise CommandError(f"--ca: there is no file {arguments.ca}.", 2)
    key = arguments.key if arguments.key is not None else os.environ.get("ISTHMUS_API_KEY", "")
    if not key.isascii() or not key.isprintable():
        raise CommandError("The key has characters that no key has.", 2)
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with ExitStack() as stack:
        stubs = [
            InferenceServiceStub(stack.enter_context(_channel(address, arguments.ca)))
            for address in given or _ADDRESSES
        ]
        calls = [
            stub.ListModels.future(ListModelsRequest(), metadata=metadata, timeout=_LIST_SECONDS)
            for stub in stubs
        ]
        found: list[Service] = []
        for address, stub, call in zip(given or _ADDRESSES, stubs, calls, strict=True):
            try:
                models = call.result().models
            except grpc.RpcError as error:
                _refuse_key(error)
                if given:
                    raise CommandError(f"{address} does not answer: {_text(error)}") from error
                continue
            found += [Service(stub, m, m.id, metadata, arguments.timeout) for m in models]
        if not found:
            raise CommandError(
                f"No service answers at {_ADDRESSES[0]} or the ports after it. Start one with "
                "`isthmus up`, or name one with --grpc HOST:PORT."
            )
        yield found


def _channel(address: str, ca: Path | None) -> grpc.Channel:
    options = (
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    )
    if ca is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()), options)


def chosen(found: Sequence[Service], name: str | None, kind: ModelKind) -> Service:
    """The service of the model with this id or alias; without a name, the first of its kind.

    Raises:
        CommandError: There is no such model.
    """
    offered = [each for each in found if each.model.kind == kind]
    for each in offered:
        aliases = {alias.name for alias in each.model.aliases}
        if name is None or name == each.model.id or name in aliases:
            return Service(
                each.stub, each.model, name or each.name, each.metadata, each.timeout_seconds
            )
    served = ", ".join(each.model.id for each in offered) or "none"
    asked = f"the model {name!r}" if name else "a model"
    raise CommandError(
        f"No service has {asked} for {KINDS[kind]}. Served are: {served}. See `isthmus status`."
    )


@contextmanager
def failures(names: Mapping[str, str] = NO_NAMES) -> Iterator[None]:
    """Turns a failed call into a CommandError with the service's message and reason.

    Args:
        names: The service's names of parameters, each with that of the command.
    """
    try:
        yield
    except grpc.RpcError as error:
        _refuse_key(error)
        raise CommandError(_text(error, names)) from error


def _refuse_key(error: grpc.RpcError) -> None:
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise CommandError(
            "The service refuses the key. Set ISTHMUS_API_KEY to one that `isthmus keys create` "
            "has made."
        ) from error


def _text(error: grpc.RpcError, names: Mapping[str, str] = NO_NAMES) -> str:
    """The message of a failure, with its reason."""
    status = status_of(error)
    reason = reason_of(status)
    if reason is None:
        return error.details() or error.code().name
    return f"{from_rpc_status(status, admitted=False).in_terms_of(names).message} ({reason})"


def status_of(error: grpc.RpcError) -> Status:
    """The google.rpc.Status of a failed call."""
    # It has the methods of a grpc.aio.AioRpcError, which are not in its type.
    return transport.status_of(cast("grpc.aio.AioRpcError", error))


class Clock:
    """Measures a response: seconds to its first output and tokens in a second after it."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: float | None = None
        self._last = self._started

    def tick(self) -> None:
        """Output has arrived."""
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last

    def text(self, tokens: int) -> str:
        """The figures, for people."""
        if self._first is None:
            return ""
        parts = [f"first token {(self._first - self._started) * 1000:.0f} ms"]
        if tokens > 1 and self._last > self._first:
            parts.append(f"{(tokens - 1) / (self._last - self._first):.1f} tokens/s")
        return " · ".join(parts)
