"""The keys file: reading it strictly, and changing it in one step."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

SCOPES: Final = ("api", "edge")
_PREFIX: Final = "sk-isthmus-"
_RANDOM_BYTES: Final = 32
# Ids travel in gRPC metadata.
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class KeysFileError(OSError):
    """The keys file cannot be used; the message says why and never holds a key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as the file knows it.

    Attributes:
        id: Names the key in logs and limits.
        name: Whose it is, for people.
        sha256: Of the key, lower-case hex.
        scopes: Of SCOPES: "api" calls models; "edge" is an edge's own credential.
        created_at: Seconds since the Unix epoch.
        expires_at: Seconds since the Unix epoch; None never.
        requests_per_minute, tokens_per_minute: What it may use of each model; None is as the
            model says.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


_MEMBERS: Final = frozenset(field.name for field in fields(Entry))


def digest(key: str) -> str:
    """SHA-256 of a presented key, hex; any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create_key(
    path: Path,
    name: str,
    *,
    scope: str = "api",
    expires_at: int | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[Entry, str]:
    """Adds a key to the file, which is made if there is none; members are those of Entry.

    Returns:
        What the file holds, and the key itself, which is written nowhere.

    Raises:
        KeysFileError: The file cannot be used, the scope is unknown or an allowance below 1.
    """
    if scope not in SCOPES:
        raise KeysFileError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")
    if not (_is_allowance(requests_per_minute) and _is_allowance(tokens_per_minute)):
        raise KeysFileError("requests and tokens per minute must be at least 1")
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    with _locked(path):
        entries = read_entries(path) if path.exists() else ()
        taken = {entry.id for entry in entries}
        while (key_id := f"key_{secrets.token_hex(4)}") in taken:
            pass
        entry = Entry(
            key_id,
            name,
            digest(key),
            (scope,),
            int(time.time()),
            expires_at,
            requests_per_minute,
            tokens_per_minute,
        )
        _write(path, [*entries, entry])
    return entry, key


def revoke_key(path: Path, id: str) -> Entry:
    """Takes a key out of the file.

    Raises:
        KeysFileError: The file cannot be used or has no such key.
    """
    with _locked(path):
        entries = read_entries(path)
        found = [entry for entry in entries if entry.id == id]
        if not found:
            raise KeysFileError(f"{path}: no key has the id {id}")
        _write(path, [entry for entry in entries if entry.id != id])
    return found[0]


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Reads the file.

    Raises:
        KeysFileError: It cannot be read or is not a keys file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KeysFileError(
            f"{path}: no such file. Make a key with `isthmus keys create NAME --keys {path}`."
        ) from error
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise KeysFileError(f"{path}: not JSON") from error
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise KeysFileError(f"{path}: not a keys file")
    entries = tuple(_entry(path, index, item) for index, item in enumerate(listed))
    if len({entry.id for entry in entries}) != len(entries):
        raise KeysFileError(f"{path}: an id stands twice")
    return entries


def _entry(path: Path, index: int, item: Any) -> Entry:
    if not isinstance(item, dict) or not set(item) <= _MEMBERS:
        raise KeysFileError(f"{path}: keys[{index}] has unknown members")
    scopes = item.get("scopes", ["api"])
    expires_at = item.get("expires_at")
    sound = (
        isinstance(item.get("id"), str)
        and _ID.fullmatch(item["id"])
        and isinstance(item.get("name", ""), str)
        and isinstance(item.get("sha256"), str)
        and _SHA256.fullmatch(item["sha256"])
        and isinstance(scopes, list)
        and all(scope in SCOPES for scope in scopes)
        and isinstance(item.get("created_at", 0), int)
        and isinstance(expires_at, int | None)
        and _is_allowance(item.get("requests_per_minute"))
        and _is_allowance(item.get("tokens_per_minute"))
    )
    if not sound:
        raise KeysFileError(f"{path}: keys[{index}] has a wrong member")
    return Entry(
        item["id"],
        item.get("name", ""),
        item["sha256"],
        tuple(scopes),
        item.get("created_at", 0),
        expires_at,
        item.get("requests_per_minute"),
        item.get("tokens_per_minute"),
    )


def _is_allowance(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 1)


def _write(path: Path, entries: Sequence[Entry]) -> None:
    """Replaces the file in one step; only its owner may read it."""
    text = json.dumps({"keys": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    try:
        # mkstemp makes the file with mode 0600.
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise KeysFileError(f"{path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps two changes of one file apart."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
