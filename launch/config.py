"""Reads a configuration of `isthmus up`, and writes it for the children with resolved sources."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from inference.config import ModelConfig, load_models
from keys import ConfigError
from keys.config_file import ConfigFile, nearest
from keys.settings import Range, check_settings
from launch.embedded import EMBEDDED

DEFAULT: Final = Path(__file__).with_name("default.toml")
"""The built-in configuration, for users without one."""

_EMBEDDED: Final = "embedded:"
_TABLES: Final = ("models", "edge", "up")


class UpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[up]` table, which only `isthmus up` reads.

    Attributes:
        metrics_port: Port of GET /metrics of the first model's process, on loopback and without a
            key; each further model has the next port. Unset serves none.
    """

    metrics_port: Annotated[int, Range(1, 65535)] | None = None

    def __post_init__(self) -> None:
        check_settings("up", self)


def load_up_config(path: Path) -> UpConfig:
    """Reads the `[up]` table of a file that `load` has read.

    Raises ConfigError if a setting is unknown or invalid.
    """
    file = ConfigFile(path)
    table = file.tables.get("up", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: up: write [up] before its settings")
    return file.read(UpConfig, table, "up")


def load(path: Path, *, here: bool = False) -> tuple[ModelConfig, ...]:
    """Reads the models of a configuration.

    Raises ConfigError if the file cannot be read, has no model or names an unknown embedded one;
    with `here`, for models that this machine loads, also if it has no file or directory of a path.
    """
    try:
        models = load_models(path)
        tables = ConfigFile(path).tables
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if unknown := [name for name in tables if name not in _TABLES]:
        advice = nearest(unknown[0], _TABLES)
        raise ConfigError(f"{path}: {unknown[0]}: there is no such table{advice}")
    if not models:
        raise ConfigError(f"{path}: no [[models]]")
    for model in models:
        if here:
            model.check_source()
        name = embedded_name(model)
        if name is not None and name not in EMBEDDED:
            raise ConfigError(
                f"models.{model.id}.source: {model.source!r}: there are only "
                + ", ".join(_EMBEDDED + known for known in EMBEDDED)
            )
    return models


def embedded_name(model: ModelConfig) -> str | None:
    """Returns NAME of a source `embedded:NAME`; None for any other source."""
    return model.source.removeprefix(_EMBEDDED) if model.source.startswith(_EMBEDDED) else None


def write_resolved(path: Path, sources: Mapping[str, Path], target: Path) -> None:
    """Writes a copy of the configuration to `target`, with the sources of some models by id."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    for model in document["models"]:
        if model["id"] in sources:
            model["source"] = str(sources[model["id"]])
    # Values of the top level come first: after a [[models]] header they would belong to a model.
    tables = {key: value for key, value in document.items() if key != "models"}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in tables.items()]
    for model in document["models"]:
        lines += ["", "[[models]]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in model.items()]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    """Returns a TOML value on one line. TOML, unlike JSON, requires U+007F to be escaped."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
