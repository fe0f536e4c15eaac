"""The address and the network interface that vLLM and gloo use between machines."""

from __future__ import annotations

import os

import psutil


def use_address(address: str) -> None:
    """Sets this machine's address and network interface for the processes that vLLM starts.

    Without them vLLM takes the address of the default route, and gloo that of the host's name,
    which is often 127.0.0.1. Variables that the user has set keep their values.
    """
    os.environ.setdefault("VLLM_HOST_IP", address)
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
