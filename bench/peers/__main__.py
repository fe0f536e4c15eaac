"""Starts one peer by hand: `python -m bench.peers NAME [--tokens N]`; Ctrl-C stops it."""

from __future__ import annotations

import argparse
import contextlib
import signal

from bench.peers import PEERS
from bench.subject import Source


def main() -> None:
    """Starts the peer, prints its address, and waits for SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of every response")
    parser.add_argument(
        "--step-seconds", type=float, default=0.0, help="seconds between steps; 0: none"
    )
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = Source(chosen.tokens, chosen.step_seconds)
    with contextlib.suppress(KeyboardInterrupt), PEERS[chosen.name].start(source) as running:
        print(
            f"{running.url}/v1 model={running.model} key={running.key} processes={running.groups}",
            flush=True,
        )
        signal.pause()


if __name__ == "__main__":
    main()
