"""Configuration of an inference process: frozen, checked when built, units in the names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from keys import ConfigError, is_loopback

# Module and class of each engine. Modules are imported when an engine is created: they are heavy.
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

TokenInputs = Literal["own", "reject", "cl100k"]
"""What token ids sent to an embedding model are: of its own vocabulary, refused, or of OpenAI's
cl100k_base, decoded to text first (what clients of text-embedding-ada-002 send). Usage and limits
always count the model's own tokens."""


class AliasConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another name for a model.

    Attributes:
        name: What callers use.
        context_length: The context that they get (tokens); never above the model's.
        token_inputs: Of an embedding model; unset is as the model says.
    """

    name: str
    context_length: int | None = None
    token_inputs: TokenInputs | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[models]]` table.

    Attributes:
        id: The name that callers use.
        engine: One of ENGINES.
        source: A local directory, or a hub id where the machine reaches a hub.
        aliases: Other names.
        owned_by: What /v1/models says.
        engine_args: Passed to the engine as they are (vLLM: AsyncEngineArgs; sentence-transformers:
            SentenceTransformer; diffusers: from_pretrained; scripted: its script).
        tool_parser: vLLM's parser of this model's tool calls ("hermes").
        reasoning_parser: vLLM's parser of this model's reasoning.
        generation_config: "openai" for OpenAI's sampling defaults, "auto" for the model's own.
        max_running: Requests (choices count) in the engine at once; more wait. Unset is 256; an
            image engine draws one request at a time, and takes no other value than 1.
        max_queued: Requests that may wait; more are refused.
        queue_timeout_seconds: The longest wait.
        requests_per_minute, tokens_per_minute: What each key may use of this model, counted by
            this process; a key's own allowance counts instead, None is unlimited. Without keys
            all callers share one allowance.
        max_choices: The most `n` and `best_of` of one request.
        allow_patterns: Whether callers may send regular expressions and grammars.
        token_inputs: What the token ids that callers of an embedding model send mean.
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
    max_running: int | None = None
    max_queued: int = 1024
    queue_timeout_seconds: float = 10.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_choices: int = 128
    allow_patterns: bool = False
    token_inputs: TokenInputs = "own"  # noqa: S105

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("models.id: must not be empty")
        if self.engine not in ENGINES:
            raise ConfigError(
                f"models.{self.id}.engine: {self.engine!r} is not one of {', '.join(ENGINES)}"
            )
        if not self.engine.startswith("scripted") and not self.source:
            raise ConfigError(f"models.{self.id}.source: must name a directory or hub id")
        if self.generation_config not in ("openai", "auto"):
            raise ConfigError(f"models.{self.id}.generation_config: must be openai or auto")
        if self.running_limit < 1 or self.max_queued < 0 or self.queue_timeout_seconds <= 0:
            raise ConfigError(f"models.{self.id}: max_running, max_queued or queue_timeout_seconds")
        if self.engine in IMAGE_ENGINES and self.running_limit != 1:
            raise ConfigError(f"models.{self.id}.max_running: an image engine runs one request")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ConfigError(f"models.{self.id}.{name}: must be at least 1")
        if self.engine not in EMBEDDING_ENGINES and self.token_policies != {"own"}:
            raise ConfigError(f"models.{self.id}.token_inputs: only embedding models take it")
        names = [self.id, *(alias.name for alias in self.aliases)]
        if len(set(names)) != len(names):
            raise ConfigError(f"models.{self.id}.aliases: a name stands twice")

    @property
    def running_limit(self) -> int:
        """What `max_running` is where it is unset."""
        if self.max_running is not None:
            return self.max_running
        return 1 if self.engine in IMAGE_ENGINES else 256

    @property
    def token_policies(self) -> set[TokenInputs]:
        """The values of `token_inputs` over all names."""
        aliases = {alias.token_inputs for alias in self.aliases if alias.token_inputs}
        return {self.token_inputs} | aliases


def load_models(path: Path) -> tuple[ModelConfig, ...]:
    """Reads the `[[models]]` tables of a configuration file.

    Raises:
        ConfigError: The file is not TOML, a member is unknown or wrong, or a name stands twice.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        models = msgspec.convert(document.get("models", []), tuple[ModelConfig, ...])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    names = [name for m in models for name in (m.id, *(alias.name for alias in m.aliases))]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: a model name stands twice")
    return models


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an inference process listens and stops.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        models: What it serves.
        keys_file: API keys; without one the service is open, which only a loopback address may be.
        edge_token_sha256: Hex digest of a credential of scope `edge` beside those in the file.
        tls_certificate, tls_key: PEM files; both or neither.
        tls_client_ca: PEM file; callers must show a certificate of this authority.
        allow_plaintext: Permits an address off loopback without TLS, for networks that encrypt
            or isolate by themselves.
        drain_seconds: How long running calls may go on after SIGTERM.
    """

    listen: str
    models: tuple[ModelConfig, ...]
    keys_file: Path | None = None
    edge_token_sha256: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allow_plaintext: bool = False
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models: at least one is needed")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key: both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ConfigError("tls_client_ca: needs tls_certificate and tls_key")
        host = self.listen.rpartition(":")[0]
        if self.listen.startswith("unix:") or is_loopback(host):
            return
        if self.keys_file is None:
            raise ConfigError(
                f"listen: {self.listen} is not loopback and no keys are configured. Make a key "
                "with `isthmus keys create NAME --keys keys.json` and pass --keys keys.json."
            )
        if self.tls_certificate is None and not self.allow_plaintext:
            raise ConfigError(
                f"listen: {self.listen} is not loopback and TLS is off. Pass --tls-certificate "
                "and --tls-key, or --allow-plaintext where the network itself is trusted."
            )
