"""Counts wrong keys, so that one address cannot try many.

After MAX_WRONG wrong keys within WINDOW_SECONDS further wrong ones of the address are refused with
the time to wait instead of a verdict. Right keys pass all the same: many callers may share one
address, and all callers behind a proxy do. Keys have 256 random bits and need no guard against
guessing; the count protects short keys in files that were written by hand.

The first wrong key of an address begins its window, and the windows are kept in the order of their
beginnings. They all have one length, so those that have ended are the first ones.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Final

MAX_WRONG: Final = 20
WINDOW_SECONDS: Final = 60.0
# Addresses that are remembered; beyond it the oldest window is forgotten.
MAX_ADDRESSES: Final = 10_000
# Bits of an IPv6 address that name a network: one host has all the addresses in it.
_IPV6_NETWORK_BITS: Final = 64


class WrongKeys:
    """The counts of one process.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By network: when its window ends, and the wrong keys in it so far.
        self._windows: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def note(self, address: str) -> float:
        """Counts a wrong key.

        Args:
            address: The caller's IP address; any other text stands for itself.

        Returns:
            Seconds until wrong keys of the address get a verdict again; 0 if this one gets it.
        """
        now = self._clock()
        self._forget_ended(now)
        network = _network(address)
        end, count = self._windows.get(network, (now + WINDOW_SECONDS, 0))
        if count >= MAX_WRONG:
            return end - now
        if network not in self._windows and len(self._windows) >= MAX_ADDRESSES:
            del self._windows[next(iter(self._windows))]
        self._windows[network] = (end, count + 1)
        return 0.0

    def _forget_ended(self, now: float) -> None:
        while self._windows:
            first = next(iter(self._windows))
            if self._windows[first][0] > now:
                return
            del self._windows[first]


def _network(address: str) -> str:
    """What is counted together: an IPv4 address, or a network of IPv6 addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_NETWORK_BITS), strict=False))
