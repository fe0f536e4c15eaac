"""Certificates for tests: authorities, and pairs of PEM files that they sign."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme

_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_PAST = datetime(2021, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path

    def replace_by(self, other: Pair) -> None:
        """Overwrites both files, as a renewal does."""
        self.certificate.write_bytes(other.certificate.read_bytes())
        self.key.write_bytes(other.key.read_bytes())


class Authority:
    """Signs certificates, whose files it writes into `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._name = name
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def pair(self, *names: str, expired: bool = False) -> Pair:
        """A certificate for host names and addresses."""
        leaf = self._ca.issue_cert(
            *names,
            not_before=_LONG_AGO if expired else None,
            not_after=_PAST if expired else None,
        )
        stem = f"{self._name}-{names[0]}{'-expired' if expired else ''}"
        made = Pair(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        leaf.cert_chain_pems[0].write_to_path(str(made.certificate))
        leaf.private_key_pem.write_to_path(str(made.key))
        return made

    def client(self) -> ssl.SSLContext:
        """A client's context that trusts only this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context
