"""API keys: one file of keys for the REST API at the edge and for the gRPC inference services.

The file is JSON and holds the SHA-256 of each key, not the key. The keys are random, so a fast
hash is enough. `edge` and `inference` both import this package, which therefore uses only the
standard library; it also holds their common rule about addresses that need keys.
"""

from __future__ import annotations

import ipaddress

from keys.key_file import Entry, KeysFileError, create_key, read_entries, revoke_key
from keys.store import KeyStore, Principal

__all__ = [
    "ConfigError",
    "Entry",
    "KeyStore",
    "KeysFileError",
    "Principal",
    "create_key",
    "is_loopback",
    "read_entries",
    "revoke_key",
]


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the parameter and the reason."""


def is_loopback(host: str) -> bool:
    """Reports whether only this machine can reach the host; no name but "localhost" counts."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
