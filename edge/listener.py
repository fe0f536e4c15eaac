"""The listening socket, in plain HTTP or in TLS.

  bound in TLS                                   seconds
  ---------------------------------------------  -------------------------------------------------
  handshake, from the connection on              `head_seconds`, as for the head that would come
  rest of a response, and the client's goodbye,  `request_seconds`; what is unsent then is lost
  once the edge closes the connection

Each connection takes the certificate that is current when it begins (keys/certificates.py).
"""

from __future__ import annotations

import asyncio
import logging
import ssl

from aiohttp import web

from edge.config import EdgeConfig
from edge.http_protocol import EdgeRunner
from keys import CertificateFiles, ConfigError, is_loopback

log = logging.getLogger(__name__)


class Listener(web.BaseSite):
    """The one address of an edge process.

    Args:
        runner: Makes the connections; set up.
        config: The address and the certificate.

    Raises:
        ConfigError: A file of the certificate cannot be used.
    """

    def __init__(self, runner: EdgeRunner, config: EdgeConfig) -> None:
        super().__init__(runner, ssl_context=_context(config))
        self._config = config
        self._factory = runner.make_connection
        self._probes: asyncio.Server | None = None

    @property
    def name(self) -> str:
        """The base URL."""
        scheme = "http" if self._ssl_context is None else "https"
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"{scheme}://{host}:{self._config.port}"

    async def start(self) -> None:
        """Opens the port.

        Raises:
            ConfigError: The address cannot be bound.
        """
        await super().start()
        config = self._config
        secure = self._ssl_context is not None
        if not secure and not is_loopback(config.host):
            log.warning(
                "host: %s is not loopback and TLS is off, so keys and prompts can be read on the "
                "way. Pass --tls-certificate and --tls-key unless a proxy in front ends TLS.",
                config.host,
            )
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._factory,
                config.host,
                config.port,
                ssl=self._ssl_context,
                backlog=self._backlog,
                reuse_port=config.reuse_port or None,
                ssl_handshake_timeout=config.head_seconds if secure else None,
                ssl_shutdown_timeout=config.request_seconds if secure else None,
            )
        except OSError as error:
            raise ConfigError(f"port: cannot listen on {config.host}:{config.port}") from error
        if config.probe_socket is not None:
            try:
                # A socket that a killed process has left is replaced, any other file is an error.
                self._probes = await asyncio.get_running_loop().create_unix_server(
                    self._factory, str(config.probe_socket)
                )
            except OSError as error:
                raise ConfigError(f"probe_socket: {error}") from error

    async def stop(self) -> None:
        """Closes the port and the socket; open connections go on."""
        if self._probes is not None:
            self._probes.close()
        await super().stop()


def _context(config: EdgeConfig) -> ssl.SSLContext | None:
    """The context of the listener; None without TLS."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    files = CertificateFiles(config.tls_certificate, config.tls_key)
    front = files.current().context

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL asks in each handshake, before it sends a certificate.
        connection.context = files.current().context

    front.sni_callback = choose
    return front
