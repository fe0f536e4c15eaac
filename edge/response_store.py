"""Responses that clients asked to keep, in the memory of this process.

They are bounded in age and in bytes: beyond either the oldest are dropped. Each belongs to the API
key that made it. Edge processes do not share them, so an edge that shares its port has none.
"""

from __future__ import annotations

import time
from collections.abc import Set
from typing import Final

from msgspec import Struct

from contract.memory import MemoryBudget
from edge.config import EdgeConfig
from edge.openai.responses.stored import Kept
from keys import ConfigError

# Bytes that Python needs for one item and its places, beside its JSON.
_ITEM_BYTES: Final = 256


class _Entry(Struct, gc=False):
    """A response, its size in bytes, and the monotonic seconds at which it expires."""

    kept: Kept
    size: int
    expires: float


class ResponseStore:
    """All responses of one process.

    Args:
        limit: Bytes of all responses together.
        seconds: How long each is kept.
        memory: All of `limit` is set aside in it.
    """

    def __init__(self, limit: int, seconds: float, memory: MemoryBudget) -> None:
        self._limit = limit
        self._seconds = seconds
        self._memory = memory
        memory.set_aside(limit)
        # The oldest first, which expire first.
        self._entries: dict[tuple[str, str], _Entry] = {}
        # By API key and item id: the id of the newest response that has the item, and its JSON.
        self._items: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._used = 0

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self._entries)} responses, {self._used}/{self._limit} bytes>"

    def close(self) -> None:
        """Returns what is set aside."""
        self._memory.set_aside(-self._limit)

    def of(self, principal: str) -> KeyResponses:
        """The responses of one API key; "" stands for all callers of an open edge."""
        return KeyResponses(self, principal)

    def get(self, principal: str, response_id: str) -> Kept | None:
        """A response of a key."""
        self._drop_expired()
        entry = self._entries.get((principal, response_id))
        return None if entry is None else entry.kept

    def item(self, principal: str, item_id: str) -> bytes | None:
        """An item of any response of a key."""
        self._drop_expired()
        found = self._items.get((principal, item_id))
        return None if found is None else found[1]

    def put(self, principal: str, response_id: str, kept: Kept) -> None:
        """Adds a response, and drops the oldest if there is no room for it."""
        items = kept.items
        size = len(kept.document) + sum(map(len, items)) + _ITEM_BYTES * (len(items) + 1)
        if size > self._limit:
            return
        self._drop_expired()
        while self._used + size > self._limit:
            self._drop(next(iter(self._entries)))
        expires = time.monotonic() + self._seconds
        self._entries[principal, response_id] = _Entry(kept, size, expires)
        self._used += size
        for name, item in zip(kept.item_ids, items, strict=True):
            self._items[principal, name] = (response_id, item)

    def delete(self, principal: str, response_id: str) -> bool:
        """Drops a response of a key; returns whether there was one."""
        self._drop_expired()
        entry = self._entries.get((principal, response_id))
        if entry is None:
            return False
        self._drop((principal, response_id))
        self._find_again(principal, set(entry.kept.item_ids))
        return True

    def _find_again(self, principal: str, names: Set[str]) -> None:
        """Finds items of a deleted response in the older ones that have them too."""
        for (owner, response_id), entry in self._entries.items():
            kept = entry.kept
            if owner == principal and not names.isdisjoint(kept.item_ids):
                for name, item in zip(kept.item_ids, kept.items, strict=True):
                    if name in names:
                        self._items[principal, name] = (response_id, item)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest].expires > now:
                return
            self._drop(oldest)

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key)
        self._used -= entry.size
        for name in entry.kept.item_ids:
            # A later response of the same conversation has the item too.
            if self._items.get((key[0], name), ("",))[0] == key[1]:
                del self._items[key[0], name]


def open_response_store(config: EdgeConfig, memory: MemoryBudget) -> ResponseStore | None:
    """The store that is configured; None if no responses are kept.

    Raises:
        ConfigError: It would take more than half of the memory budget.
    """
    if config.responses_bytes is None:
        return None
    if config.responses_bytes > memory.limit // 2:
        raise ConfigError("responses_bytes: more than half of memory_budget_bytes")
    return ResponseStore(config.responses_bytes, config.responses_seconds, memory)


class KeyResponses:
    """The responses of one API key, as a Store."""

    def __init__(self, store: ResponseStore, principal: str) -> None:
        self._store = store
        self._principal = principal

    def response(self, response_id: str) -> Kept | None:
        return self._store.get(self._principal, response_id)

    def item(self, item_id: str) -> bytes | None:
        return self._store.item(self._principal, item_id)

    def keep(self, response_id: str, kept: Kept) -> None:
        self._store.put(self._principal, response_id, kept)

    def delete(self, response_id: str) -> bool:
        """Drops a response; returns whether there was one."""
        return self._store.delete(self._principal, response_id)
