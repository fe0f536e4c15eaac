"""Lists the files that one streamed chat passes: `python -m bench.hops`.

A stack with the scripted engine runs in this process. After a first request has warmed it up, the
functions that a second one calls are recorded and printed by file, in the order of their first
call. Tokens of a real model pass vLLM's adapter instead of the scripted engine; its files are found
by its imports and printed last.
"""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from aiohttp import ClientSession

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer

ROOT: Final = Path(__file__).parents[1]
SIDES: Final = ("edge", "inference", "contract", "keys")
MODEL: Final = ModelConfig(id="m", engine="scripted")
BODY: Final = {
    "model": "m",
    "stream": True,
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Hi"}],
}


def relative(path: str) -> str | None:
    """Returns the path below the repository of a file in one of SIDES; None for other files."""
    try:
        name = Path(path).relative_to(ROOT)
    except ValueError:
        return None
    return str(name) if name.parts[0] in SIDES else None


async def record() -> dict[str, list[str]]:
    """Returns the functions that one streamed chat calls, by file."""
    calls: dict[str, list[str]] = {}

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and (name := relative(frame.f_code.co_filename)) is not None:
            functions = calls.setdefault(name, [])
            if frame.f_code.co_qualname not in functions:
                functions.append(frame.f_code.co_qualname)

    server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(MODEL,)))
    await server.start()
    await server.load()
    config = EdgeConfig(port=0, upstreams=(f"127.0.0.1:{server.port}",), settle_seconds=0.0)
    async with serving(config) as (edge, port):
        while not edge.router.ready():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            for recorded in (False, True):
                sys.setprofile(note if recorded else None)
                async with http.post("/v1/chat/completions", json=BODY) as response:
                    await response.read()
                sys.setprofile(None)
    await server.close()
    return calls


def imports_of(module: str, found: set[str]) -> set[str]:
    """Adds to `found` the module's file and those below inference/engines that it imports."""
    path = Path(*module.split(".")).with_suffix(".py")
    if str(path) in found or not (ROOT / path).is_file():
        return found
    found.add(str(path))
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("inference.engines."):
            imports_of(str(node.module), found)
    return found


def main() -> None:
    """Prints the files, and their number, without packages' __init__ files."""
    calls = asyncio.run(record())
    files = [name for name in calls if not name.endswith("__init__.py")]
    for side in SIDES:
        for name in (name for name in files if name.startswith(f"{side}/")):
            print(f"{name:45} {', '.join(calls[name][:6])}{' ...' if len(calls[name]) > 6 else ''}")
    print(f"{len(files)} files of ours")
    adapter = sorted(imports_of("inference.engines.vllm_engine", set()))
    print("vLLM's adapter in place of the scripted engine:", ", ".join(adapter))


if __name__ == "__main__":
    main()
