"""Configuration of an edge process: frozen, checked when built, units in the names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from contract.access_log import AccessLogForm
from keys import ConfigError, is_loopback
from keys.config_file import ConfigFile, convert
from keys.settings import (
    DAY,
    Count,
    Range,
    Seconds,
    SecondsOrNone,
    check_settings,
    is_host_and_port,
    port_range,
)

# An origin as browsers send it: no path, no final slash, no upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@A-Z]+")
_PUBLIC_URL = re.compile(r"https?://[^/?#\s@]+(/[^?#\s]*)?")
# Smallest `files_max_count`: the images of the largest single response.
_MIN_FILES = 10
# Largest `max_body_bytes`: a gRPC message has at most 64 MiB, and a request of many short strings
# is larger in it than in JSON.
_MAX_BODY_BYTES = 48 * 1024 * 1024


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[edge]` table of a configuration file; the command line overrides it.

    Attributes:
        host: Address to listen on. Off loopback it requires `keys_file`.
        port: TCP port to listen on; 0 takes a free one.
        tls_certificate, tls_key: PEM files of the edge's certificate, with its chain, and of its
            private key, for HTTPS; both or neither. They are read again when they change.
        reuse_port: Allows other edge processes of the same user to listen on the port as well;
            the kernel spreads new connections over them.
        probe_socket: Path of a Unix socket on which this process answers too, in plain HTTP: on a
            shared port a probe may reach another process.
        upstreams: HOST:PORT of each inference service. All addresses of a name are replicas, and so
            are all ports of HOST:FIRST-LAST.
        resolve_seconds: Time between two look-ups of a name, after which new replicas get requests;
            at most 1 s while no replica serves. A look-up costs the name server a question or two,
            and name servers may remember an old answer for longer (30 s in many clusters).
        transport: "session" sends all text requests of a replica over one gRPC stream. "generate"
            makes one gRPC call for each, for proxies that cut long streams.
        keys_file: API keys that callers need. Without one the edge is open to everybody.
        upstream_token: Key of scope `edge` that the edge sends to inference services; unset sends
            none.
        upstream_ca: PEM file of the CA that signed the upstreams' certificates. It turns TLS on.
        upstream_certificate, upstream_key: PEM files of the edge's own certificate and its private
            key, for upstreams that require one.
        allow_plaintext: Permits upstreams off loopback without TLS.
        cors_origins: Origins ("https://example.org") whose web pages may call the API; "*" is all.
        public_url: Base URL of this edge as its clients know it ("https://ai.example.org"). Image
            URLs begin with it; without it they are made from the request's Host header.
        files_dir: Directory of the images that are handed out by URL. Edge processes with the
            same directory serve each other's images. Without it, a directory of this user below
            the temporary one.
        files_seconds: How long an image is kept.
        files_max_bytes, files_max_count: Size and number of all kept images together; the oldest
            are removed first.
        responses_bytes: What this process keeps of responses whose requests have `store: true`, for
            `previous_response_id` and GET /v1/responses/{id}; the oldest are dropped first. It is
            set aside of the memory budget, of which it may be a half. Unset keeps none. Edges that
            share a port do not share them, so it cannot be set with `reuse_port`.
        responses_seconds: How long a response is kept.
        unknown_members: For parameters that no API documents: "refuse" answers 400, as OpenAI
            does; "ignore" drops them.
        max_body_bytes: Size of a request's body, at most 48 MiB; a larger one is a 413.
        memory_budget_bytes: What all requests of this process may hold together: bodies and unsent
            responses (contract/memory.py); beyond it a request is a 503. At least four times
            `max_body_bytes`. Unset is 1/16 of the memory, from 256 MiB to 4 GiB.
        head_seconds: Time from the first byte of a request's head to its last; then the connection
            is closed.
        body_seconds: Time for a request's body, plus 1 s for each 16 KiB received; then a 400.
        request_seconds: Time for a whole request; then a 504. `x-request-timeout` can only shorten
            it.
        header_hold_seconds: How long an admitted stream's 200 waits for the first output. A
            failure in that time still has its true status.
        sse_keepalive_seconds: Silence on a stream after which a comment is sent, checked every 5 s;
            0 sends none.
        write_stall_seconds: Time in which a client must acknowledge sent data; then the kernel
            drops the connection (on Linux only).
        max_pending_bytes: Unsent bytes of a text stream, beside its largest single write; a client
            further behind is disconnected.
        metrics_listen: HOST:PORT on which GET /metrics answers in plain HTTP without a key; then
            it is not on `port`.
        metrics_open: GET /metrics needs no key on `port` either, for schedulers that send none.
        access_log: One line on standard output for each finished request: "off", "text" or "json"
            (contract/access_log.py).
        otlp_endpoint: URL of an OTLP collector that spans are sent to (contract/tracing.py). Unset
            is the environment variable OTEL_EXPORTER_OTLP_ENDPOINT; without both there are none.
        settle_seconds: On a stop, time between /ready turning 503 and the port closing, in which
            load balancers notice.
        drain_seconds: On a stop, time that running requests may still take; then they fail with a
            503.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8000
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    reuse_port: bool = False
    probe_socket: Path | None = None
    upstreams: tuple[str, ...] = ("127.0.0.1:50051",)
    resolve_seconds: Seconds = 5.0
    transport: Literal["session", "generate"] = "session"
    keys_file: Path | None = None
    upstream_token: str | None = None
    upstream_ca: Path | None = None
    upstream_certificate: Path | None = None
    upstream_key: Path | None = None
    allow_plaintext: bool = False
    cors_origins: tuple[str, ...] = ()
    public_url: str | None = None
    files_dir: Path | None = None
    files_seconds: Annotated[float, Range(0, 366 * DAY, open=True)] = 3600.0
    files_max_bytes: Count = 256 * 1024 * 1024
    files_max_count: Annotated[int, Range(_MIN_FILES)] = 1000
    responses_bytes: Count | None = None
    responses_seconds: Annotated[float, Range(0, 366 * DAY, open=True)] = 3600.0
    unknown_members: Literal["refuse", "ignore"] = "refuse"
    max_body_bytes: Annotated[int, Range(1, _MAX_BODY_BYTES)] = 16 * 1024 * 1024
    memory_budget_bytes: Count | None = None
    head_seconds: Seconds = 10.0
    body_seconds: Seconds = 10.0
    request_seconds: Seconds = 600.0
    header_hold_seconds: SecondsOrNone = 0.5
    sse_keepalive_seconds: SecondsOrNone = 15.0
    write_stall_seconds: Annotated[float, Range(0.001, DAY)] = 30.0
    max_pending_bytes: Count = 256 * 1024
    metrics_listen: str | None = None
    metrics_open: bool = False
    access_log: AccessLogForm = "off"
    otlp_endpoint: str | None = None
    settle_seconds: SecondsOrNone = 0.5
    drain_seconds: SecondsOrNone = 30.0

    @property
    def ignore_unknown(self) -> bool:
        """Whether parameters that no API documents are dropped."""
        return self.unknown_members == "ignore"

    def __post_init__(self) -> None:
        check_settings("edge", self)
        self._check_addresses()
        self._check_certificates()
        if self.memory_budget_bytes and self.memory_budget_bytes < 4 * self.max_body_bytes:
            raise ConfigError("memory_budget_bytes: must be at least four times max_body_bytes")
        if self.responses_bytes and self.reuse_port:
            raise ConfigError(
                "responses_bytes: edges that share a port do not share responses; run one edge"
            )
        if self.public_url is not None and not _PUBLIC_URL.fullmatch(self.public_url):
            raise ConfigError(f"public_url: {self.public_url!r} is not like https://example.org")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origins: {origin!r} is not like https://example.org")

    def _check_addresses(self) -> None:
        if not self.upstreams:
            raise ConfigError("upstreams: at least one is needed")
        for upstream in self.upstreams:
            host, _, port = upstream.rpartition(":")
            if not host or not port_range(port):
                raise ConfigError(f"upstreams: {upstream!r} is not HOST:PORT")
        if self.metrics_listen is not None and not is_host_and_port(self.metrics_listen):
            raise ConfigError(f"metrics_listen: {self.metrics_listen!r} is not HOST:PORT")
        if self.keys_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"host: {self.host} is not loopback and no keys are configured. Make a key with "
                "`isthmus keys create NAME --keys keys.json` and pass --keys keys.json."
            )
        remote = [u for u in self.upstreams if not is_loopback(u.rpartition(":")[0])]
        if remote and self.upstream_ca is None and not self.allow_plaintext:
            raise ConfigError(
                f"upstreams: {remote[0]} is not loopback and TLS is off. Pass --upstream-ca, or "
                "--allow-plaintext where the network itself is trusted."
            )

    def _check_certificates(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key: both or neither")
        if (self.upstream_certificate is None) != (self.upstream_key is None):
            raise ConfigError("upstream_certificate and upstream_key: both or neither")
        if self.upstream_certificate and self.upstream_ca is None:
            raise ConfigError("upstream_certificate: needs upstream_ca, without which TLS is off")


def load_edge_config(path: Path | None, overrides: dict[str, Any]) -> EdgeConfig:
    """Reads the `[edge]` table of a file and applies the command line's values over it.

    Args:
        path: A TOML file; None stands for an empty one.
        overrides: Values by attribute; None values are skipped.

    Raises:
        ConfigError: The file is not TOML, an attribute is unknown, or a value is wrong.
        OSError: The file cannot be read.
    """
    file = ConfigFile(path) if path else None
    table = file.tables.get("edge", {}) if file else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: edge: write [edge] before the settings of the edge")
    given = {name: value for name, value in overrides.items() if value is not None}
    values = table | given
    for name, value in values.items():
        # An empty path would mean the current directory.
        if value == "":
            raise ConfigError(f"edge.{name}: must not be empty")
    if file is None:
        # The values of an environment variable or of an option are in no file.
        return convert(EdgeConfig, values, "edge")
    return file.read(EdgeConfig, values, "edge")
