"""Configuration of an edge process: frozen, checked when built, units in the names."""

from __future__ import annotations

import ipaddress
import math
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

# As browsers write it: no path, no slash at the end, nothing in upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@A-Z]+")
_PUBLIC_URL = re.compile(r"https?://[^/?#\s@]+(/[^?#\s]*)?")
# As many pictures as one answer may have.
_LEAST_FILES = 10


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which member and why."""


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[edge]` table of a configuration file; the command line overrides it.

    Attributes:
        host, port: Where HTTP is served.
        reuse_port: Lets other edge processes of the same user listen on the port as well; the
            kernel spreads connections over them.
        upstreams: HOST:PORT of inference services; each name stands for all its addresses.
        transport: "session" (one stream for all generations, the default) or "generate" (one
            gRPC call a generation, for proxies that cut long streams).
        keys_file: API keys; without one the edge is open, which only a loopback address may be.
        upstream_token: Credential of scope `edge` for the inference services.
        upstream_ca, upstream_certificate, upstream_key: PEM files for TLS towards upstreams.
        allow_plaintext: Permits upstreams off loopback without TLS.
        cors_origins: Origins ("https://example.org") whose web pages may call the API; "*" is all.
        public_url: Where clients reach this edge ("https://ai.example.org"), for addresses in
            answers; without it they are made of the request's own Host header.
        files_dir: Where pictures that are handed out by address are kept; edges that share it
            share them. Without it a directory below the temporary one, shared by this user's.
        files_seconds, files_max_bytes, files_max_count: How long they are kept, and how much and
            how many at most; the oldest make room.
        unknown_members: "refuse" (as OpenAI does) or "ignore" members that no API documents.
        max_body_bytes: The largest request.
        head_seconds: How long a request's head may take from its first byte.
        body_seconds: How long a body may stall; a slow one gets 1 s more for each 16 KiB.
        request_seconds: A request's whole time, unless its x-request-timeout says less.
        header_hold_seconds: How long after admission a stream's 200 waits for the first token,
            so that a failure in that window is still a true status.
        sse_keepalive_seconds: Silence before a comment is sent on a stream; 0 never.
        write_stall_seconds: How long a client may read nothing of what is sent (on Linux).
        max_pending_bytes: How far a stream's client may be behind, beside its largest write.
        settle_seconds: Between /ready turning 503 and the listener closing, for load balancers.
        drain_seconds: How long running requests may go on after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    reuse_port: bool = False
    upstreams: tuple[str, ...] = ("127.0.0.1:50051",)
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
    files_seconds: float = 3600.0
    files_max_bytes: int = 256 * 1024 * 1024
    files_max_count: int = 1000
    unknown_members: Literal["refuse", "ignore"] = "refuse"
    max_body_bytes: int = 16 * 1024 * 1024
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    request_seconds: float = 600.0
    header_hold_seconds: float = 0.5
    sse_keepalive_seconds: float = 15.0
    write_stall_seconds: float = 30.0
    max_pending_bytes: int = 256 * 1024
    settle_seconds: float = 0.5
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ConfigError("upstreams: at least one is needed")
        for upstream in self.upstreams:
            if not upstream.rpartition(":")[2].isdecimal():
                raise ConfigError(f"upstreams: {upstream!r} is not HOST:PORT")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"cors_origins: {origin!r} is not like https://example.org")
        if self.public_url is not None and not _PUBLIC_URL.fullmatch(self.public_url):
            raise ConfigError(f"public_url: {self.public_url!r} is not like https://example.org")
        if not 0 < self.files_seconds < math.inf:
            raise ConfigError("files_seconds: must be above 0")
        if self.files_max_bytes <= 0:
            raise ConfigError("files_max_bytes: must be above 0")
        if self.files_max_count < _LEAST_FILES:
            raise ConfigError(f"files_max_count: must be at least {_LEAST_FILES}, one answer's")
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


def load_edge_config(path: Path | None, overrides: dict[str, Any]) -> EdgeConfig:
    """Reads the `[edge]` table and lays the command line's values over it.

    Raises:
        ConfigError: The file is not TOML, or a member is unknown or wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("edge", {}) if path else {}
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: edge is not a table")
        given = {name: value for name, value in overrides.items() if value is not None}
        # The only type beside TOML's own here is Path.
        return msgspec.convert(table | given, EdgeConfig, dec_hook=lambda kind, value: kind(value))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path or 'edge'}: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether the host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
