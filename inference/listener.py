"""The addresses of gRPC servers, and their TLS."""

from __future__ import annotations

from typing import Any

import grpc

from inference.config import ServerConfig
from keys import Certificate, CertificateFiles, ConfigError


def bind(
    server: grpc.aio.Server, setting: str, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    """Listens on an address and returns the port.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: cannot bind {address}") from error


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Credentials that follow the files; None without TLS.

    Raises:
        ConfigError: A file cannot be used.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    files = CertificateFiles(config.tls_certificate, config.tls_key, config.tls_client_ca)
    used = files.current()

    def renewed() -> Any:
        # gRPC asks before each handshake, in threads of its own; None keeps what it has.
        nonlocal used
        current = files.current()
        if current is used:
            return None
        used = current
        return _server_certificate(current)

    return grpc.dynamic_ssl_server_credentials(
        _server_certificate(used), renewed, require_client_authentication=bool(used.client_ca)
    )


def _server_certificate(pem: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key, pem.certificate)], root_certificates=pem.client_ca
    )
