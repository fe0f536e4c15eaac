"""Checks the keys that callers present against the keys file."""

from __future__ import annotations

import hmac
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from keys.exposure import ConfigError
from keys.key_file import Entry, digest, read_entries

_log = logging.getLogger(__name__)

# Seconds between two checks whether the keys file has changed.
_STAT_SECONDS: Final = 1.0


class Principal(Struct, frozen=True):
    """The caller that a key identifies; the fields are those of the key's Entry."""

    id: str
    name: str
    scopes: tuple[str, ...]


class KeyStore:
    """The keys of the file, read again when the file changes.

    `check` and `find` look for a change at most once a second. If the new file is broken, they log
    that and keep the keys of the old one. A store is not safe for use by several threads.

    Attributes:
        reloads: How often the file was read again, by result: "ok" or "broken".

    Args:
        edge_token_sha256: Hex digest of a further credential, of scope "edge".
        clock: Returns seconds since the Unix epoch, for expiry.

    Raises:
        KeysFileError: The file cannot be used.
        ConfigError: Other users can write the file.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        edge_token_sha256: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._entries: tuple[Entry, ...] = ()
        if edge_token_sha256 is not None:
            self._entries = (Entry("edge", "edge", edge_token_sha256.lower(), ("edge",), 0),)
        self._fixed = self._entries
        self._last_stat = time.monotonic()
        self.reloads = {"ok": 0, "broken": 0}
        if path is not None:
            self._file_version = file_version(path)
            self._entries = (*read_entries(path), *self._fixed)
            _refuse_writable(path)
            _warn_of_readers(path)

    def check(self, presented: str) -> Principal | None:
        """Returns the owner of a key; None if the key is unknown or has expired.

        The time of a call does not depend on the key's position in the file.
        """
        self._reload_if_changed()
        wanted = digest(presented)
        found: Entry | None = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, wanted):
                found = entry
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock()):
            return None
        return Principal(found.id, found.name, found.scopes)

    def find(self, id: str) -> Entry | None:
        """Returns the entry with this id, even if it has expired; None if there is none."""
        self._reload_if_changed()
        return next((entry for entry in self._entries if entry.id == id), None)

    @property
    def has_limits(self) -> bool:
        """Whether a key has limits of its own."""
        self._reload_if_changed()
        return any(entry.requests_per_minute or entry.tokens_per_minute for entry in self._entries)

    def reload(self) -> bool:
        """Reads the file now. If it is broken, keeps the keys, logs the reason, returns False."""
        if self._path is None:
            return True
        self._file_version = file_version(self._path)
        try:
            entries = (*read_entries(self._path), *self._fixed)
            _refuse_writable(self._path)
        except (OSError, ConfigError) as error:
            self.reloads["broken"] += 1
            _log.error("keys file is broken, the keys read before stay valid: %s", error)
            return False
        self._entries = entries
        self.reloads["ok"] += 1
        _log.info("keys reloaded: %d", len(entries))
        return True

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._last_stat < _STAT_SECONDS:
            return
        self._last_stat = now
        if file_version(self._path) != self._file_version:
            self.reload()


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Returns (inode, mtime in ns, size), which differ once the file is replaced or written."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _refuse_writable(path: Path) -> None:
    """Refuses a file that others can write: they could add a key.

    Raises:
        ConfigError: They can.
    """
    status = os.stat(path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"keys_file: {path} can be written by other users (mode {mode:04o}), who could add a "
            f"key. Run: chmod 600 {path}"
        )


def _warn_of_readers(path: Path) -> None:
    """Warns of a file that others own or read.

    Secrets that Docker or Kubernetes mount belong to root and are readable in the container only.
    """
    status = os.stat(path)
    if status.st_uid not in (0, os.geteuid()):
        _log.warning("keys file %s belongs to another user, who can add a key", path)
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and status.st_uid == os.geteuid():
        mode = stat.S_IMODE(status.st_mode)
        _log.warning(
            "keys file %s can be read by other users (mode %04o). Run: chmod 600 %s",
            path,
            mode,
            path,
        )
