"""Other gateways, which the benchmark measures beside Isthmus.

Each is installed when it is first used, into a virtual environment of its own under build/peers,
and is no part of the project. `python -m bench.peers NAME` starts one by hand.
"""

from __future__ import annotations

from typing import Final

from bench.peers.litellm_proxy import LiteLlm
from bench.peers.smg_gateway import Smg
from bench.peers.vllm_router import VllmRouter
from bench.peers.vllm_serve import VllmServe
from bench.subject import Subject

PEERS: Final[dict[str, Subject]] = {
    "smg": Smg(),
    "vllm-router": VllmRouter(),
    "litellm": LiteLlm(),
    "vllm": VllmServe(),
}
"""The peers, by their names on the command line. "vllm" runs a real model."""

__all__ = ["PEERS"]
