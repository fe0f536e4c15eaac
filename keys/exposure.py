"""Decides whether an address may be served without keys: only if it is a loopback address."""

from __future__ import annotations

import ipaddress


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the parameter and the reason."""


def is_loopback(host: str) -> bool:
    """Reports whether only this machine can reach the host.

    Args:
        host: A name, or an IP address with or without brackets. No name is resolved; the only
            one that counts as loopback is "localhost".
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
