"""`python -m bench.soak.service LEDGER ARGUMENT...`: an inference service that notes executions.

It is `python -m inference` with the scripted engines, which also write into a file what they run. A
line is "B" (an execution begins) or "O" (it has its first output), the name of the request, the
time.monotonic() and the process id. Each line is one write to a file opened for appending, so lines
of several processes do not mix and a killed process loses none.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any, Final

from inference.__main__ import main as serve
from inference.engines.base import Emit
from inference.engines.scripted import ScriptedEngine
from inference.engines.scripted_embedding import ScriptedEmbeddingEngine
from inference.engines.scripted_image import ScriptedImageEngine

_NAME: Final = re.compile(r"q\d+p\d+")


def _name(prepared: Any) -> str:
    """Returns the name by which the soak knows a request; "" for a request of somebody else."""
    if hasattr(prepared, "inputs"):
        text = str(prepared.inputs[0])
    elif hasattr(prepared.request, "seed"):
        return f"s{prepared.request.seed}"
    else:
        text = prepared.script.text or ""
    found = _NAME.match(text)
    return found[0] if found else ""


def _noting(engine: Any, ledger: int) -> None:
    """Makes the engines of a class write to the ledger."""
    generate = engine.generate

    async def noting(self: Any, prepared: Any, emit: Emit) -> None:
        name = _name(prepared)
        began = False

        def note(mark: str) -> None:
            os.write(ledger, f"{mark} {name} {time.monotonic():.6f} {os.getpid()}\n".encode())

        def noting_emit(output: Any) -> None:
            nonlocal began
            if not began:
                began = True
                note("O")
            emit(output)

        note("B")
        await generate(self, prepared, noting_emit)

    engine.generate = noting


def main() -> int:
    """Serves until it is stopped; returns the exit status."""
    ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for engine in (ScriptedEngine, ScriptedEmbeddingEngine, ScriptedImageEngine):
        _noting(engine, ledger)
    return serve(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
