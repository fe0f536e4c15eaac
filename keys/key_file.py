"""Reads the keys file strictly, and replaces it atomically when a key is made or revoked."""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

SCOPES: Final = ("api", "edge", "metrics")
_PREFIX: Final = "sk-isthmus-"
_RANDOM_BYTES: Final = 32
# Ids are sent in gRPC metadata, whose values are visible ASCII.
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class KeysFileError(OSError):
    """The keys file cannot be used. The message gives the reason and never contains a key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key in the file.

    Attributes:
        id: The key's name in logs and rate limits.
        name: The key's owner, for people to read.
        sha256: Of the key, in lower-case hex.
        scopes: "api" for calls of models, "edge" for the credential of an edge,
            "metrics" for GET /metrics of an edge and nothing else.
        created_at, expires_at: Seconds since the Unix epoch; None means never.
        requests_per_minute, tokens_per_minute: The key's allowance for each model; None means the
            model's own.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def digest(key: str) -> str:
    """Returns the SHA-256 of a presented key in lower-case hex; the key may be any text."""
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
    """Makes a random key and adds its entry to the file, which is created if there is none.

    Returns the entry, and the key itself, which is not stored. Raises KeysFileError if the file
    cannot be used, the scope is unknown or an allowance is below 1.
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
    """Removes a key; raises KeysFileError if the file cannot be used or has no such key."""
    with _locked(path):
        entries = read_entries(path)
        found = [entry for entry in entries if entry.id == id]
        if not found:
            raise KeysFileError(f"{path}: no key has the id {id}")
        _write(path, [entry for entry in entries if entry.id != id])
    return found[0]


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Reads all entries; raises KeysFileError if the file cannot be read or is no keys file."""
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
        raise KeysFileError(f"{path}: two keys have the same id")
    return entries


def _entry(path: Path, index: int, item: Any) -> Entry:
    where = f"{path}: keys[{index}]"
    if not isinstance(item, dict) or not set(item) <= set(_FIELDS):
        raise KeysFileError(f"{where} must be an object with no fields but {', '.join(_FIELDS)}")
    values = {"name": "", "scopes": ["api"], "created_at": 0, **item}
    for name, (is_valid, requirement) in _FIELDS.items():
        if not is_valid(values.get(name)):
            raise KeysFileError(f"{where}.{name}: must be {requirement}")
    return Entry(**{**values, "scopes": tuple(values["scopes"])})


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _are_scopes(value: Any) -> bool:
    return isinstance(value, list) and all(scope in SCOPES for scope in value)


def _is_allowance(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 1)


_ALLOWANCE: Final = "a whole number of at least 1, or null"
# Each field of an entry in the file: the check of its value, and the words of a failed check.
_FIELDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (partial(_is_text, pattern=_ID), "1 to 128 visible ASCII characters"),
    "name": (lambda value: isinstance(value, str), "a string"),
    "sha256": (partial(_is_text, pattern=_SHA256), "64 lower-case hexadecimal digits"),
    "scopes": (_are_scopes, f"a list of {' and '.join(SCOPES)}"),
    "created_at": (lambda value: isinstance(value, int), "seconds since the Unix epoch"),
    "expires_at": (
        lambda value: isinstance(value, int | None),
        "seconds since the Unix epoch, or null",
    ),
    "requests_per_minute": (_is_allowance, _ALLOWANCE),
    "tokens_per_minute": (_is_allowance, _ALLOWANCE),
}


def _write(path: Path, entries: Sequence[Entry]) -> None:
    """Replaces the file atomically by one that only its owner may read."""
    text = json.dumps({"keys": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    try:
        # mkstemp creates the file with mode 0600.
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
    """Holds a lock so that two changes of one file, by any process, do not overlap."""
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
