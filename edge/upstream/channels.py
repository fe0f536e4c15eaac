"""Connections to inference services: their options and their TLS credentials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc

from edge.config import EdgeConfig
from keys import CertificateFiles, check_certificates

# Bytes of one gRPC message in either direction; the service has the same limit.
MAX_RPC_BYTES: Final = 64 * 1024 * 1024

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RPC_BYTES),
    ("grpc.max_send_message_length", MAX_RPC_BYTES),
    # Without the HTTP/2 ping timeout, grpc detects a frozen peer only after 60 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # One stream carries every generation. Small windows keep its backlog in the service, which
    # merges waiting output.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.enable_http_proxy", 0),
)

# For embedding matrices and images: fewer round trips and frames.
BULK_OPTIONS: Final = (
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    ("grpc.http2.max_frame_size", 1024 * 1024),
)


def channel(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    server_name: str,
    more_options: Iterable[tuple[str, int]] = (),
) -> grpc.aio.Channel:
    # A separate subchannel pool gives each channel its own connection.
    options: list[tuple[str, int | str]] = [
        *_OPTIONS,
        *more_options,
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    # The address is numeric here, but the certificate is issued for the name.
    options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)


def channel_credentials(config: EdgeConfig) -> grpc.ChannelCredentials | None:
    """TLS credentials for all upstreams; None for plaintext.

    Raises:
        ConfigError: A PEM file cannot be used.
    """
    if config.upstream_ca is None:
        return None
    authorities = check_certificates("upstream_ca", config.upstream_ca)
    if config.upstream_key is None or config.upstream_certificate is None:
        return grpc.ssl_channel_credentials(authorities)
    own = CertificateFiles(
        config.upstream_certificate, config.upstream_key, prefix="upstream"
    ).current()
    return grpc.ssl_channel_credentials(authorities, own.key, own.certificate)
