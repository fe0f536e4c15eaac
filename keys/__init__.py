"""API keys: one file of keys for the REST API at the edge and for the gRPC inference services.

The file is JSON and holds the SHA-256 of each key, not the key. The keys are random, so a fast
hash is enough. `edge` and `inference` both import this package. It also holds their common rules
about addresses that need keys, about the values of settings (settings.py) and the files that have
them (config_file.py), and their TLS certificates (certificates.py).
"""

from keys.certificates import Certificate, CertificateFiles, check_certificates
from keys.exposure import ConfigError, is_loopback
from keys.key_file import Entry, KeysFileError, create_key, read_entries, revoke_key
from keys.store import KeyStore, Principal
from keys.wrong_keys import WrongKeys

__all__ = [
    "Certificate",
    "CertificateFiles",
    "ConfigError",
    "Entry",
    "KeyStore",
    "KeysFileError",
    "Principal",
    "WrongKeys",
    "check_certificates",
    "create_key",
    "is_loopback",
    "read_entries",
    "revoke_key",
]
