"""Numbers and texts of the four configurations: nonsense is refused, and the error names it."""

from __future__ import annotations

import math
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from edge.config import EdgeConfig, load_edge_config
from inference.config import AliasConfig, ModelConfig, ServerConfig, load_models
from keys import ConfigError
from launch.config import UpConfig

MODEL = ModelConfig(id="m", engine="scripted")
NEEDED: dict[type[msgspec.Struct], dict[str, Any]] = {
    EdgeConfig: {},
    AliasConfig: {"name": "a"},
    ModelConfig: {"id": "m", "engine": "scripted"},
    ServerConfig: {"listen": "127.0.0.1:0", "models": (MODEL,)},
    UpConfig: {},
}
# Members for which 0 has a meaning: a free port, an empty queue, no wait, no comment.
ZERO = {
    "port",
    "max_queued",
    "header_hold_seconds",
    "sse_keepalive_seconds",
    "settle_seconds",
    "drain_seconds",
}


def kinds(hint: Any) -> set[Any]:
    """The types that a hint allows, without None."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(kinds(part) for part in get_args(hint)))
    return {hint}


NUMBERS = [
    (config, name)
    for config in NEEDED
    for name, hint in get_type_hints(config).items()
    if kinds(hint) & {int, float}
]


def build(config: type[msgspec.Struct], **members: Any) -> msgspec.Struct:
    return config(**NEEDED[config] | members)


def test_the_walk_finds_the_numbers_of_all_structs() -> None:
    assert len(NUMBERS) >= 23
    assert {config for config, _ in NUMBERS} == set(NEEDED)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, True, "5"], ids=repr)
@pytest.mark.parametrize(("config", "name"), NUMBERS)
def test_a_number_outside_its_range_is_refused_by_name_value_and_range(
    config: type[msgspec.Struct], name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name}: {value!r} is not a .*number .*\d") as error:
        build(config, **{name: value})
    assert str(error.value).split(".")[0] in ("edge", "inference", "models", "aliases", "up")


@pytest.mark.parametrize(("config", "name"), NUMBERS)
def test_zero_is_refused_unless_it_has_a_meaning(config: type[msgspec.Struct], name: str) -> None:
    if name in ZERO:
        build(config, **{name: 0})
        return
    with pytest.raises(ConfigError, match=rf"\.{name}: 0 is not "):
        build(config, **{name: 0})


def test_each_range_includes_its_default_and_its_bounds() -> None:
    for port in (0, 65535):
        EdgeConfig(port=port)
    EdgeConfig(max_body_bytes=48 * 1024 * 1024, drain_seconds=1)
    with pytest.raises(ConfigError, match=r"edge\.port: 65536 is not .* 0 to 65535"):
        EdgeConfig(port=65536)
    with pytest.raises(ConfigError, match=r"edge\.max_body_bytes: 50331649 is not .* 50331648"):
        EdgeConfig(max_body_bytes=48 * 1024 * 1024 + 1)


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", ":1", "a:-1"])
def test_listen_needs_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"^listen: "):
        ServerConfig(listen=listen, models=(MODEL,))


@pytest.mark.parametrize(
    "upstream",
    [
        "",
        "host",
        "host:",
        ":50051",
        "host:0",
        "host:65536",
        "host:1-",
        "host:-2",
        "host:2-1",
        "host:0-1",
    ],
)
def test_an_upstream_needs_a_host_and_a_port(upstream: str) -> None:
    with pytest.raises(ConfigError, match=r"^upstreams: .* is not HOST:PORT"):
        EdgeConfig(upstreams=(upstream,), allow_plaintext=True)


TEXTS = [
    (config, name)
    for config in NEEDED
    for name, hint in get_type_hints(config).items()
    if kinds(hint) & {str, Path} and (config, name) != (ModelConfig, "source")
]


@pytest.mark.parametrize(("config", "name"), TEXTS)
def test_an_empty_text_or_path_is_refused(config: type[msgspec.Struct], name: str) -> None:
    empty = Path() if Path in kinds(get_type_hints(config)[name]) else ""
    if name == "files_dir":
        EdgeConfig(files_dir=Path())  # The current directory.
        return
    with pytest.raises(ConfigError, match=name):
        build(config, **{name: empty})


def test_a_file_gets_the_same_checks_and_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text("[edge]\ndrain_seconds = nan\n")
    with pytest.raises(ConfigError, match=r"isthmus\.toml:2: edge\.drain_seconds: nan is not "):
        load_edge_config(path, {})
    path.write_text('[[models]]\nid = "m"\nengine = "scripted"\nmax_queued = -1\n')
    with pytest.raises(ConfigError, match=r"isthmus\.toml:\d: models\.m\.max_queued: -1 is not "):
        load_models(path)
    with pytest.raises(ConfigError, match=r"^edge\.drain_seconds: inf is not "):
        load_edge_config(None, {"drain_seconds": math.inf})
    with pytest.raises(ConfigError, match="keys_file: must not be empty"):
        load_edge_config(None, {"keys_file": ""})


def test_a_client_certificate_needs_its_key_and_a_ca() -> None:
    one, two, ca = Path("a.pem"), Path("b.pem"), Path("ca.pem")
    EdgeConfig(upstream_certificate=one, upstream_key=two, upstream_ca=ca)
    for parts in ({"upstream_certificate": one}, {"upstream_key": two}):
        with pytest.raises(ConfigError, match="upstream_certificate and upstream_key"):
            EdgeConfig(upstream_ca=ca, **parts)
    with pytest.raises(ConfigError, match="upstream_certificate: needs upstream_ca"):
        EdgeConfig(upstream_certificate=one, upstream_key=two)


def test_a_digest_of_the_edge_is_64_hexadecimal_digits() -> None:
    ServerConfig(listen="127.0.0.1:0", models=(MODEL,), edge_token_sha256="A" * 64)
    for digest in ("0" * 63, "x" * 64):
        with pytest.raises(ConfigError, match="edge_token_sha256"):
            ServerConfig(listen="127.0.0.1:0", models=(MODEL,), edge_token_sha256=digest)
