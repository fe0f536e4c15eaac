"""Runs a program whose metrics can be turned off: `python -m bench.metrics_switch edge ...`.

SIGUSR1 turns the counting of requests off, SIGUSR2 on again; bench.metrics measures what it costs.
The lag of the event loop is always measured, and so is what logs and traces need as well, such as
the time of a request's first token.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Final

from contract.metrics import Counter
from edge.metrics import EdgeMetrics
from inference.metrics import InferenceMetrics

_COUNTING: Final = {
    (kind, name): getattr(kind, name)
    for kind, names in (
        (EdgeMetrics, ("responded", "exchange_ended", "cancelled")),
        (InferenceMetrics, ("call_ended",)),
        (Counter, ("add",)),
    )
    for name in names
}


def nothing(*_arguments: object) -> None:
    """Stands in for a function that counts."""


def turn(number: int, _frame: object) -> None:
    """Handles both signals."""
    for (kind, name), function in _COUNTING.items():
        setattr(kind, name, nothing if number == signal.SIGUSR1 else function)


def main() -> int:
    """Runs the program of the first argument with the others; returns its exit status."""
    signal.signal(signal.SIGUSR1, turn)
    signal.signal(signal.SIGUSR2, turn)
    program = import_module(f"{sys.argv[1]}.__main__")
    status: int = program.main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
