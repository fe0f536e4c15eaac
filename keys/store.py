"""Checking presented keys."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keys.key_file import Entry, KeysFileError, digest, read_entries

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who presented a key: its id and what it may be used for, never the key."""

    id: str
    name: str
    scopes: tuple[str, ...]


class KeyStore:
    """The keys that are valid now.

    A changed file is read again by itself, within a second of the next check; a broken one is
    logged and the keys read before stay valid. Not for use by several threads at once.

    Args:
        path: The keys file; None has none but the edge's credential.
        edge_token_sha256: Hex digest of one more credential, of scope "edge".
        clock: Seconds since the Unix epoch, for expiry.

    Raises:
        KeysFileError: The file cannot be used.
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
        self._fixed: tuple[Entry, ...] = ()
        if edge_token_sha256 is not None:
            self._fixed = (Entry("edge", "edge", edge_token_sha256.lower(), ("edge",), 0),)
        self._entries: tuple[Entry, ...] = self._fixed
        self._seen: tuple[int, int, int] | None = None
        self._looked = time.monotonic()
        if path is not None:
            self._seen = _stamp(path)
            self._entries = (*read_entries(path), *self._fixed)

    def check(self, presented: str) -> Principal | None:
        """Whose key this is; None if it is nobody's or has expired.

        Takes the same time wherever in the file the key stands.
        """
        self._look()
        wanted = digest(presented)
        found: Entry | None = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, wanted):
                found = entry
        if found is None or (found.expires_at is not None and found.expires_at <= self._clock()):
            return None
        return Principal(found.id, found.name, found.scopes)

    def find(self, id: str) -> Entry | None:
        """The key with this id, valid or expired; None if there is none."""
        self._look()
        return next((entry for entry in self._entries if entry.id == id), None)

    def reload(self) -> bool:
        """Reads the file again now; False if it is broken, and then nothing changes."""
        if self._path is None:
            return True
        self._seen = _stamp(self._path)
        try:
            self._entries = (*read_entries(self._path), *self._fixed)
        except KeysFileError as error:
            _log.error("keys are not reloaded, those read before stay valid: %s", error)
            return False
        _log.info("keys reloaded: %d", len(self._entries))
        return True

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if _stamp(self._path) != self._seen:
            self.reload()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced or written."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
