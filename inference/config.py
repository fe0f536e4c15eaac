"""Configuration of an inference process: frozen, validated at construction, units in the names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from contract.access_log import AccessLogForm
from keys import ConfigError, is_loopback
from keys.config_file import ConfigFile
from keys.settings import (
    Count,
    Range,
    Seconds,
    SecondsOrNone,
    check_settings,
    is_host_and_port,
)

# Module and class of each engine. A module is imported when its engine is created, because it
# imports a heavy library.
ENGINES: Final = {
    "vllm": ("inference.engines.vllm_engine", "VllmEngine"),
    "scripted": ("inference.engines.scripted", "ScriptedEngine"),
    "sentence-transformers": ("inference.engines.embedding_engine", "SentenceTransformersEngine"),
    "scripted-embedding": ("inference.engines.scripted_embedding", "ScriptedEmbeddingEngine"),
    "diffusers": ("inference.engines.diffusion_engine", "DiffusersEngine"),
    "scripted-image": ("inference.engines.scripted_image", "ScriptedImageEngine"),
}
EMBEDDING_ENGINES: Final = ("sentence-transformers", "scripted-embedding")
IMAGE_ENGINES: Final = ("diffusers", "scripted-image")

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")

TokenInputs = Literal["own", "reject", "cl100k"]
"""The meaning of token ids in a request to an embedding model:

    own       ids of the model's own vocabulary
    reject    the request is refused
    cl100k    ids of OpenAI's cl100k_base, which are decoded to text first; clients written for
              text-embedding-ada-002 send these

Usage and limits always count the model's own tokens."""


class AliasConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another name for a model.

    Attributes:
        name: A value of `model` in requests.
        context_length: The context of requests with this name, in tokens; the model's own context
            if that is smaller or this is unset.
        token_inputs: For an embedding model; unset is the model's `token_inputs`.
    """

    name: str
    context_length: Count | None = None
    token_inputs: TokenInputs | None = None

    def __post_init__(self) -> None:
        check_settings(f"aliases.{self.name}", self)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]` table.

    Attributes:
        id: A value of `model` in requests.
        engine: The library that runs it; those named scripted make up their output, for tests.
        source: A local directory, or a model id of a hub that the machine can reach.
        aliases: Further names of the model.
        owned_by: `owned_by` in /v1/models.
        engine_args: Arguments for the engine, unchanged (vLLM: AsyncEngineArgs;
            sentence-transformers: SentenceTransformer; diffusers: from_pretrained; scripted: its
            script).
        tool_parser: vLLM's parser for this model's tool calls ("hermes").
        reasoning_parser: vLLM's parser for this model's reasoning.
        generation_config: "openai" for OpenAI's sampling defaults, "auto" for the model's own.
        max_running: Choices of all requests in the engine at once; further requests wait. Unset
            is 256. An image engine runs one request at a time, so 1 is its only value.
        max_queued: Requests that may wait; more are refused.
        queue_timeout_seconds: The longest wait.
        slow_step_seconds: A step of the engine that takes longer counts as stuck. Unset, the
            engine measures it at its start.
        first_output_seconds, output_gap_seconds: The longest time from the permit to the first
            output, and between two outputs; unset for no limit. Then a call fails with a 504, or
            its stream ends with an error event. They do not apply to `best_of` above `n`, whose
            output comes at its end.
        requests_per_minute, tokens_per_minute: The limits of each key for this model, counted in
            this process, or by all fronts together; unset is unlimited. A key's own limits replace
            them. Without keys all callers share one limit.
        max_choices: The highest `n` and `best_of` of a request.
        allow_patterns: Whether requests may have regular expressions and grammars.
        pattern_seconds: Processor time that the compilation of one of them may take. vLLM repeats
            it, so another request may wait that long for a token.
        token_inputs: The meaning of token ids in requests, for an embedding model.
        fronts: Processes that serve the one engine of a text model, each on a port of its own; more
            than one for an engine that makes more tokens than one process hands on. They divide
            `max_running` and `max_queued`, and count the limits of keys together.
    """

    id: str
    engine: str
    source: str = ""
    aliases: tuple[AliasConfig, ...] = ()
    owned_by: str = "isthmus"
    engine_args: dict[str, Any] = {}
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    generation_config: str = "openai"
    max_running: Count | None = None
    max_queued: Annotated[int, Range(0)] = 1024
    queue_timeout_seconds: Seconds = 60.0
    slow_step_seconds: Seconds | None = None
    first_output_seconds: Seconds | None = None
    output_gap_seconds: Seconds | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_choices: Annotated[int, Range(1, 128)] = 128
    allow_patterns: bool = False
    pattern_seconds: Seconds = 2.0
    token_inputs: TokenInputs = "own"  # noqa: S105
    fronts: Annotated[int, Range(1, 64)] = 1

    def __post_init__(self) -> None:
        check_settings(f"models.{self.id}", self, may_be_empty={"source"})
        if self.engine not in ENGINES:
            raise ConfigError(
                f"models.{self.id}.engine: {self.engine!r} is not one of {', '.join(ENGINES)}"
            )
        if not self.engine.startswith("scripted") and not self.source:
            raise ConfigError(f"models.{self.id}.source: must name a directory or hub id")
        if self.generation_config not in ("openai", "auto"):
            raise ConfigError(f"models.{self.id}.generation_config: must be openai or auto")
        if self.engine in IMAGE_ENGINES and self.running_limit != 1:
            raise ConfigError(f"models.{self.id}.max_running: an image engine runs one request")
        if self.engine not in EMBEDDING_ENGINES and self.token_policies != {"own"}:
            raise ConfigError(f"models.{self.id}.token_inputs: only embedding models take it")
        names = [self.id, *(alias.name for alias in self.aliases)]
        if len(set(names)) != len(names):
            raise ConfigError(f"models.{self.id}.aliases: a name stands twice")
        if self.fronts > 1:
            self._check_fronts()

    def _check_fronts(self) -> None:
        where = f"models.{self.id}"
        if self.engine in EMBEDDING_ENGINES + IMAGE_ENGINES:
            raise ConfigError(f"{where}.fronts: only a text model can have several")
        permits = self.running_limit // self.fronts
        if not permits:
            raise ConfigError(
                f"{where}.fronts: {self.fronts} fronts cannot divide max_running, "
                f"which is {self.running_limit}"
            )
        if self.max_choices > permits:
            # Otherwise the choices of one request could need more permits than its front has.
            raise ConfigError(
                f"{where}.max_choices: {self.max_choices} is above the part of max_running that "
                f"each of {self.fronts} fronts has, {permits}. Lower max_choices, or raise "
                f"max_running to {self.max_choices * self.fronts}."
            )

    def check_source(self) -> None:
        """Raises ConfigError if the source is a path that this machine does not have.

        It is for programs that load the model; a configuration may be checked on another machine.
        """
        is_path = self.source.startswith(("/", "./", "../", "~"))
        if is_path and not Path(self.source).exists():
            raise ConfigError(f"models.{self.id}.source: {self.source!r} does not exist here")

    @property
    def running_limit(self) -> int:
        """`max_running`, or its default for the engine."""
        if self.max_running is not None:
            return self.max_running
        return 1 if self.engine in IMAGE_ENGINES else 256

    @property
    def token_policies(self) -> set[TokenInputs]:
        """The values of `token_inputs` of all names of the model."""
        aliases = {alias.token_inputs for alias in self.aliases if alias.token_inputs}
        return {self.token_inputs} | aliases


def load_models(path: Path) -> tuple[ModelConfig, ...]:
    """Reads the `[[models]]` tables of a configuration file.

    Raises:
        ConfigError: The file is not TOML, a setting is unknown or invalid, or two models have
            the same name.
        OSError: The file cannot be read.
    """
    file = ConfigFile(path)
    tables = file.tables.get("models", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: models: write [[models]] before the settings of each model")
    models = tuple(
        file.read(ModelConfig, table, "models", number) for number, table in enumerate(tables)
    )
    names = [name for m in models for name in (m.id, *(alias.name for alias in m.aliases))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: the model name {twice[0]!r} is used twice")
    return models


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of an inference process.

    Attributes:
        listen: HOST:PORT; port 0 chooses a free port.
        models: The models to serve; at least one.
        keys_file: API keys; without them no call needs a key, and `listen` must be a loopback
            address.
        edge_token_sha256: Hex digest of a credential of scope `edge`, beside those in the file.
        tls_certificate, tls_key: PEM files; both or neither.
        tls_client_ca: PEM file; clients must present a certificate of this authority.
        allow_plaintext: Permits an address off loopback without TLS, for networks that are
            encrypted or isolated themselves.
        drain_seconds: The longest time that running calls go on after SIGTERM.
        memory_budget_bytes: What all calls of this process may hold together: requests, vectors
            and unsent output (contract/memory.py); beyond it a call is refused. Unset is 1/16 of
            the memory, from 256 MiB to 4 GiB.
        gateway_listen: HOST:PORT of vllm.grpc.engine, on which other gateways drive the one model
            with the engine vllm, with the keys and TLS of `listen`; unset serves none. It needs the
            extra `gateway`.
        metrics_listen: HOST:PORT of GET /metrics, in plain HTTP and without keys; unset serves
            none, and the engines keep no metrics of their own.
        access_log: One line on standard output for each finished call: "off", "text" or "json"
            (contract/access_log.py).
        otlp_endpoint: URL of an OTLP collector that spans are sent to (contract/tracing.py). Unset
            is the environment variable OTEL_EXPORTER_OTLP_ENDPOINT; without both there are none.
        probe_socket: A Unix socket that listens as well, without TLS, for the launcher.
    """

    listen: str
    models: tuple[ModelConfig, ...]
    keys_file: Path | None = None
    edge_token_sha256: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_plaintext: bool = False
    drain_seconds: SecondsOrNone = 30.0
    # A message of 64 MiB, the largest of gRPC, must have room.
    memory_budget_bytes: Annotated[int, Range(128 * 1024 * 1024)] | None = None
    gateway_listen: str | None = None
    metrics_listen: str | None = None
    access_log: AccessLogForm = "off"
    otlp_endpoint: str | None = None
    probe_socket: Path | None = None

    def __post_init__(self) -> None:
        check_settings("inference", self)
        if not self.models:
            raise ConfigError("models: at least one is needed")
        is_socket = self.listen.startswith("unix:")
        if not is_socket and not is_host_and_port(self.listen):
            raise ConfigError(f"listen: {self.listen!r} is not HOST:PORT")
        for name in ("metrics_listen", "gateway_listen"):
            address = getattr(self, name)
            if address is not None and not is_host_and_port(address):
                raise ConfigError(f"{name}: {address!r} is not HOST:PORT")
        if self.edge_token_sha256 is not None and not _SHA256.fullmatch(self.edge_token_sha256):
            raise ConfigError("edge_token_sha256: must be 64 hexadecimal digits")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key: both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ConfigError("tls_client_ca: needs tls_certificate and tls_key")
        if not is_socket:
            self._check_exposure("listen", self.listen)
        if self.gateway_listen is not None:
            self._check_exposure("gateway_listen", self.gateway_listen)
            # Requests of vllm.grpc.engine name no model, so there must be exactly one.
            if [model.engine for model in self.models].count("vllm") != 1:
                raise ConfigError("gateway_listen: needs one model with the engine vllm")

    def _check_exposure(self, name: str, address: str) -> None:
        if is_loopback(address.rpartition(":")[0]):
            return
        if self.keys_file is None:
            raise ConfigError(
                f"{name}: {address} is not loopback and no keys are configured. Make a key "
                "with `isthmus keys create NAME --keys keys.json` and pass --keys keys.json."
            )
        if self.tls_certificate is None and not self.allow_plaintext:
            raise ConfigError(
                f"{name}: {address} is not loopback and TLS is off. Pass --tls-certificate "
                "and --tls-key, or --allow-plaintext where the network itself is trusted."
            )
