"""API keys: one file guards both faces, REST at the edge and gRPC at the inference services.

The file is JSON and holds no key, only the SHA-256 of each: the keys are random, so a fast hash
is enough. Standard library only, for both faces import it.
"""

from keys.exposure import ConfigError, is_loopback
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
