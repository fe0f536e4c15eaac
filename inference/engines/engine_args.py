"""Checks of a configuration's `engine_args`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from inference.config import ModelConfig
from keys import ConfigError

_SettingsT = TypeVar("_SettingsT")


def refuse(config: ModelConfig, names: Iterable[str]) -> None:
    """Raises ConfigError if `engine_args` has one of the names."""
    for name in names:
        if name in config.engine_args:
            raise ConfigError(f"models.{config.id}.engine_args.{name}: may not be set")


def settings(
    config: ModelConfig, kind: type[_SettingsT], arguments: Mapping[str, Any] | None = None
) -> _SettingsT:
    """Converts `arguments`, by default all `engine_args`, to a Struct; raises ConfigError."""
    try:
        return msgspec.convert(config.engine_args if arguments is None else arguments, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"models.{config.id}.engine_args: {error}") from error
