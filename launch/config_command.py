"""`isthmus config`: writes, checks and shows a configuration, and describes its settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from edge.config import EdgeConfig, load_edge_config
from inference.config import ENGINES, AliasConfig, ModelConfig
from keys.settings import values_of
from launch.config import DEFAULT, UpConfig, load, load_up_config
from launch.failure import CommandError

_FILE: Final = Path("isthmus.toml")
# Values that are never shown.
_SECRET: Final = frozenset({"upstream_token"})
_HEAD: Final = """\
# Configuration

<!-- Made by `isthmus config reference`; do not edit. -->

One TOML file configures both programs: `isthmus up`, `isthmus inference` and `isthmus edge` read it
with `--config isthmus.toml`. `isthmus config init` writes one to start with, `isthmus config check`
says what is wrong with it, by file and line, and `isthmus config show` prints all values that
apply. Options of the command line override the file.
"""
_TABLES: Final = (
    ("[[models]]", "One table for each model.", ModelConfig),
    ("aliases", 'Entries of `aliases` of a model: `aliases = [{ name = "gpt-4" }]`.', AliasConfig),
    ("[edge]", "The REST API.", EdgeConfig),
    ("[up]", "Read by `isthmus up` only.", UpConfig),
)
_EDGE_EXAMPLE: Final = """
# The REST API. All settings: docs/configuration.md
[edge]
port = 8000
# host = "0.0.0.0"            # other machines may connect; needs keys_file
# keys_file = "keys.json"     # made with: isthmus keys create NAME --keys keys.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands of `isthmus config`."""
    commands = parser.add_subparsers(dest="config_command", required=True, metavar="COMMAND")
    for name, about in (
        ("init", "write a configuration to start with: the default models"),
        ("check", "say what is wrong with a configuration, by file and line"),
        ("show", "print all values that apply, defaults included"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "file",
            nargs="?",
            type=Path,
            default=_FILE,
            metavar="FILE",
            help="default: %(default)s",
        )
        if name == "show":
            command.add_argument("--json", action="store_true", help="JSON instead of TOML")
    commands.add_parser("reference", help="describe all settings, as Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    if arguments.config_command == "reference":
        print(reference(), end="")
        return 0
    path: Path = arguments.file
    if arguments.config_command == "init":
        _init(path)
        return 0
    if not path.is_file():
        raise CommandError(f"There is no file {path}. `isthmus config init {path}` writes one.", 2)
    models = load(path)
    edge, up = load_edge_config(path, {}), load_up_config(path)
    if arguments.config_command == "show":
        values = {
            "models": [_values(model) for model in models],
            "edge": _values(edge),
            "up": _values(up),
        }
        print(json.dumps(values, indent=2) if arguments.json else _toml(values))
        return 0
    names = ", ".join(model.id for model in models)
    print(f"{path} is valid: {len(models)} models ({names}), edge on {edge.host}:{edge.port}.")
    return 0


def _init(path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(DEFAULT.read_text(encoding="utf-8") + _EDGE_EXAMPLE)
    except FileExistsError:
        raise CommandError(f"{path} exists. Name another file, or remove it first.", 2) from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.", 2) from error
    print(f"{path} is written. Change it, then: isthmus up --config {path}")


def _values(settings: msgspec.Struct) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    return {
        name: "(hidden)" if name in _SECRET and value else value for name, value in values.items()
    }


def _toml(values: dict[str, Any]) -> str:
    """The values as TOML; what is unset stands in a comment, because TOML has no null."""
    lines = []
    for model in values["models"]:
        lines += ["[[models]]", *_assignments(model), ""]
    lines += ["[edge]", *_assignments(values["edge"]), "", "[up]", *_assignments(values["up"])]
    return "\n".join(lines)


def _assignments(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"# {name} is unset" if value is None else f"{name} = {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        set_members = {name: each for name, each in value.items() if each is not None}
        inner = ", ".join(f"{name} = {_inline(each)}" for name, each in set_members.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value, ensure_ascii=False)


def reference() -> str:
    """docs/configuration.md: every setting with type, range, default and meaning."""
    parts = [_HEAD]
    for title, about, kind in _TABLES:
        rows = ["| setting | values | default | meaning |", "|---|---|---|---|"]
        meanings = _meanings(kind)
        for field in msgspec.structs.fields(kind):
            default = "required" if field.required else _default(field)
            values = _values_in_words(kind, field.name)
            meaning = meanings[field.name].replace("|", "\\|")
            rows.append(f"| `{field.name}` | {values} | {default} | {meaning} |")
        parts.append(f"## `{title}`\n\n{about}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "unset"
    return f"`{_inline(msgspec.to_builtins(value, enc_hook=str))}`"


def _values_in_words(kind: type, name: str) -> str:
    range_, types = values_of(kind, name)
    if range_ is not None:
        return f"{'number' if float in types else 'whole number'} {range_}"
    if name == "engine":
        return ", ".join(f"`{engine}`" for engine in ENGINES)
    return " or ".join(_NAMES.get(each) or _literal(each) for each in types - {type(None)})


_NAMES: Final[dict[Any, str]] = {
    str: "text",
    bool: "true or false",
    Path: "path",
    tuple[str, ...]: "list of texts",
    tuple[AliasConfig, ...]: "list of tables",
    dict[str, Any]: "table",
}


def _literal(kind: Any) -> str:
    return ", ".join(f"`{value}`" for value in get_args(kind))


def _meanings(kind: type) -> dict[str, str]:
    """The entries of the docstring's list of attributes."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    lines = (kind.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    for line in lines:
        text = line.strip()
        if line.startswith(" " * 8) and not line.startswith(" " * 9):
            head, _, text = text.partition(": ")
            names = head.split(", ")
            meanings |= dict.fromkeys(names, "")
        for name in names:
            meanings[name] = f"{meanings[name]} {text}".strip()
    return meanings
