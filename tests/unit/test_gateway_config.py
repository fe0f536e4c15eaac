"""The second port of a service: what its configuration needs, before a model loads."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from inference.config import ModelConfig, ServerConfig
from inference.engines.scripted import ScriptedEngine
from inference.server import InferenceServer
from keys import ConfigError

TEXT = ModelConfig(id="text", engine="vllm", source="somewhere")
OTHER = ModelConfig(id="other", engine="vllm", source="somewhere")
SCRIPTED = ModelConfig(id="scripted", engine="scripted")


def config(address: str, *models: ModelConfig, **settings: Any) -> ServerConfig:
    return ServerConfig(
        listen="127.0.0.1:0", models=models or (TEXT,), gateway_listen=address, **settings
    )


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of each model is scripted: vLLM is not installed here."""
    monkeypatch.setattr("inference.server.create_engine", lambda config, *_: ScriptedEngine(config))


@pytest.mark.parametrize(
    ("address", "settings", "message"),
    [
        ("50061", {}, "gateway_listen: '50061' is not HOST:PORT"),
        ("0.0.0.0:50061", {}, "gateway_listen: .* no keys are configured"),
        ("0.0.0.0:50061", {"keys_file": Path("k")}, "gateway_listen: .* TLS is off"),
    ],
)
def test_the_address_has_the_rules_of_the_first(
    address: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        config(address, **settings)
    config("0.0.0.0:50061", keys_file=Path("k"), allow_plaintext=True)


@pytest.mark.parametrize("models", [(SCRIPTED,), (TEXT, OTHER)], ids=["none", "two"])
def test_it_is_clear_which_model_is_meant(models: tuple[ModelConfig, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^gateway_listen: needs one model with the engine vllm"):
        config("127.0.0.1:0", *models)
    config("127.0.0.1:0", TEXT, SCRIPTED)


@pytest.mark.usefixtures("_scripted")
async def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.gateway.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[gateway\]'"):
        InferenceServer(config("127.0.0.1:0"))


@pytest.mark.usefixtures("_scripted")
async def test_an_address_in_use_is_found_before_the_model_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.gateway.find_spec", lambda _: object())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = InferenceServer(config(f"127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(ConfigError, match=r"^gateway_listen: cannot bind 127.0.0.1"):
            await server.start()
        await server.close()
