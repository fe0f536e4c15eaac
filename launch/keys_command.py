"""`isthmus keys`: makes, lists and revokes API keys."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from keys import Entry, KeysFileError, create_key, read_entries, revoke_key

_DAY_SECONDS: Final = 86_400
_FILE: Final = Path("keys.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus keys`."""
    commands = parser.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", metavar="NAME", help="whose key it is")
    create.add_argument(
        "--scope",
        choices=("api", "edge", "metrics"),
        default="api",
        help="api: call models (default); edge: the credential of an edge for inference services",
    )
    create.add_argument(
        "--days", metavar="N", type=int, help="days until it expires (default: never)"
    )
    for unit in ("requests", "tokens"):
        create.add_argument(
            f"--{unit}-per-minute",
            type=int,
            metavar="N",
            help=f"its allowance of {unit} for each model (default: the model's configuration)",
        )
    revoke = commands.add_parser("revoke", help="remove a key; servers refuse it within a second")
    revoke.add_argument("id", metavar="ID", help="see `isthmus keys list`")
    listing = commands.add_parser("list", help="list keys")
    listing.add_argument("--json", action="store_true", help="for scripts")
    for command in (create, revoke, listing):
        command.add_argument(
            "--keys", metavar="FILE", type=Path, default=_FILE, help="file (default: %(default)s)"
        )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    path: Path = arguments.keys
    try:
        if arguments.keys_command == "create":
            expires_at = (
                int(time.time()) + arguments.days * _DAY_SECONDS if arguments.days else None
            )
            entry, key = create_key(
                path,
                arguments.name,
                scope=arguments.scope,
                expires_at=expires_at,
                requests_per_minute=arguments.requests_per_minute,
                tokens_per_minute=arguments.tokens_per_minute,
            )
            # Only the key is written to stdout, so that it can be piped.
            print(key)
            print(f"This is key {entry.id}. It is shown only now; keep it.", file=sys.stderr)
        elif arguments.keys_command == "revoke":
            entry = revoke_key(path, arguments.id)
            print(f"Revoked {entry.id} ({entry.name}).")
        elif arguments.json:
            print(json.dumps([_entry(entry) for entry in read_entries(path)]))
        else:
            _list(path)
    except KeysFileError as error:
        print(f"isthmus keys: {error}", file=sys.stderr)
        return 2
    return 0


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "scopes": list(entry.scopes),
        "created_at": entry.created_at,
        "expires_at": entry.expires_at,
        "requests_per_minute": entry.requests_per_minute,
        "tokens_per_minute": entry.tokens_per_minute,
    }


def _list(path: Path) -> None:
    now = time.time()
    print(f"{'ID':<14} {'SCOPE':<6} {'CREATED':<11} {'EXPIRES':<11} {'RPM':<7} {'TPM':<9} NAME")
    for entry in read_entries(path):
        expires = "never" if entry.expires_at is None else _day(entry.expires_at)
        if entry.expires_at is not None and entry.expires_at <= now:
            expires = "expired"
        scopes = ",".join(entry.scopes)
        limits = f"{entry.requests_per_minute or '-':<7} {entry.tokens_per_minute or '-':<9}"
        print(
            f"{entry.id:<14} {scopes:<6} {_day(entry.created_at):<11} {expires:<11} {limits} "
            f"{entry.name}"
        )


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
