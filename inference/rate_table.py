"""A file with the token buckets of all keys, for several processes that count together.

A bucket is one number (rate_limits.py), so the table is an array of slots:

    16 bytes    digest of a key's id and a kind of limit
     8 bytes    when the bucket is full again, in nanoseconds of the machine's monotonic clock

The digest of a bucket selects _WINDOW adjacent slots, and the bucket is in one of them. A full
bucket needs no slot, so the slot of a bucket that is full again is free. If none of the _WINDOW
slots is free, the bucket that would be full first is overwritten and counts as full; that takes
thousands of keys within a minute.

Whoever reads a bucket and then writes it holds the lock, which the kernel releases if its process
ends. It is held for microseconds and never across an await.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

SLOTS: Final = 1 << 14
_DIGEST_BYTES: Final = 16
_SLOT_BYTES: Final = _DIGEST_BYTES + 8
_WINDOW: Final = 16


class RateTable(AbstractContextManager[None]):
    """The table in a file, which is made if there is none; the context holds the lock.

    Args:
        path: The file.
        clock: Monotonic clock in nanoseconds, the same for all processes.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = (SLOTS + _WINDOW) * _SLOT_BYTES
        os.ftruncate(self._file, size)
        self._slots = mmap.mmap(self._file, size)

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file; the table stays for the other processes."""
        self._slots.close()
        os.close(self._file)

    def full_at(self, bucket: bytes) -> int:
        """When a bucket is full again; 0 for one that is full."""
        slot = self._find(bucket)
        return 0 if slot is None else self._time(slot)

    def set_full_at(self, bucket: bytes, full_at: int) -> None:
        """Writes when a bucket is full again; the caller holds the lock."""
        slot = self._find(bucket)
        if slot is None:
            if full_at <= self._clock():
                return
            slot = min(self._window(bucket), key=self._time)
            self._slots[slot : slot + _DIGEST_BYTES] = bucket
        place = slot + _DIGEST_BYTES
        self._slots[place : place + 8] = max(full_at, 0).to_bytes(8, "little")

    def _find(self, bucket: bytes) -> int | None:
        slots = self._slots
        for slot in self._window(bucket):
            if slots[slot : slot + _DIGEST_BYTES] == bucket:
                return slot
        return None

    def _window(self, bucket: bytes) -> range:
        first = int.from_bytes(bucket[:8], "little") % SLOTS * _SLOT_BYTES
        return range(first, first + _WINDOW * _SLOT_BYTES, _SLOT_BYTES)

    def _time(self, slot: int) -> int:
        place = slot + _DIGEST_BYTES
        return int.from_bytes(self._slots[place : place + 8], "little")


def bucket_of(principal: str, kind: str) -> bytes:
    """The name of a bucket in the table, for a key's id and "requests" or "tokens"."""
    return hashlib.blake2b(f"{kind} {principal}".encode(), digest_size=_DIGEST_BYTES).digest()
