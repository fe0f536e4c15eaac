"""Whether a listener is reachable from elsewhere and so needs keys: one rule for both faces."""

from __future__ import annotations

import ipaddress


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the setting and the reason."""


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine's loopback.

    Names are not resolved: every name but "localhost" counts as remote.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
