"""Certificates from PEM files: checked at the start, and read again when the files change.

Edge and inference service use the same class; the one takes its `context`, the other its bytes.

A new certificate is used for new connections, without a restart. `current` looks for a change at
most once a second, as the store of the keys does. The files of a pair are replaced one after the
other, so what is read between two equal looks at them belongs together; otherwise the next look
decides. A broken new pair is logged once, and the old one stays in use.
"""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from keys.exposure import ConfigError
from keys.store import file_version

_log = logging.getLogger(__name__)

# Seconds between two looks whether a file has changed.
_STAT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its chain, and its key.

    Attributes:
        certificate, key: The files' content.
        client_ca: The authorities of the callers' certificates; None if callers need none.
        context: The same for a server of HTTP/1.1, from TLS 1.2 on.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class CertificateFiles:
    """A pair of PEM files, and the file of the callers' authorities.

    Args:
        certificate, key: The files.
        client_ca: The authorities; None if callers need no certificate.
        prefix: What the settings' names begin with in errors ("tls" or "upstream").

    Raises:
        ConfigError: A file cannot be used; the message names the setting and the file.
    """

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None = None, prefix: str = "tls"
    ) -> None:
        self._files = {f"{prefix}_certificate": certificate, f"{prefix}_key": key}
        if client_ca is not None:
            self._files[f"{prefix}_client_ca"] = client_ca
        # gRPC calls `current` from threads of its own.
        self._lock = Lock()
        self._last_stat = time.monotonic()
        self._versions = self._stat()
        self._current = self._read()

    def current(self) -> Certificate:
        """The certificate to use now; the same object until the files have changed."""
        with self._lock:
            now = time.monotonic()
            if now - self._last_stat >= _STAT_SECONDS:
                self._last_stat = now
                self._reload_if_changed()
            return self._current

    def _reload_if_changed(self) -> None:
        versions = self._stat()
        if versions == self._versions:
            return
        try:
            fresh = self._read()
        except ConfigError as error:
            self._versions = versions
            _log.error("the new certificate is broken, the one read before stays in use: %s", error)
            return
        if self._stat() == versions:
            self._versions = versions
            self._current = fresh
            _log.info("certificate reloaded: %s", next(iter(self._files.values())))

    def _stat(self) -> list[tuple[int, int, int] | None]:
        return [file_version(path) for path in self._files.values()]

    def _read(self) -> Certificate:
        (chain_name, chain_path), (key_name, key_path), *authorities = self._files.items()
        chain, key = _content(chain_name, chain_path), _content(key_name, key_path)
        check_certificates(chain_name, chain_path)
        if b"PRIVATE KEY-----" not in key:
            raise ConfigError(f"{key_name}: {key_path} holds no private key in PEM form")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            # Without a password the library would ask the terminal for that of an encrypted key.
            context.load_cert_chain(chain_path, key_path, password="")
        except (ssl.SSLError, OSError) as error:
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"{key_name}: {key_path} is not the key of the certificate {chain_path}"
                ) from error
            raise ConfigError(
                f"{key_name}: {key_path} cannot be used with {chain_path}; it is broken or "
                "protected with a password"
            ) from error
        client_ca = check_certificates(*authorities[0]) if authorities else None
        return Certificate(chain, key, client_ca, context)


def check_certificates(name: str, path: Path) -> bytes:
    """Reads a file of one or more certificates.

    Raises:
        ConfigError: The file cannot be read, or has no certificate in PEM form.
    """
    content = _content(name, path)
    try:
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        probe.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{name}: {path} holds no certificate in PEM form") from error
    return content


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from error
