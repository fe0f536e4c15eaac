"""A child process that compiles a pattern before the engine does, to find out if that ends in time.

A regular expression of a hundred characters can take minutes to compile, and in vLLM neither the
thread that checks it nor the engine core, which does it again, can be interrupted. So a process
compiles it first. A timer of its processor time ends the process, and the pattern is refused; the
next pattern starts another process. A pattern that does not compile at all passes here: vLLM
refuses it, and says so as soon.

    parent -> child    the vocabulary, as xgrammar's TokenizerInfo in JSON; one line
                       [kind, text] of each pattern; kind is "regex", "grammar" or "lark"; one line
    child -> parent    one empty line when it is ready, and one for each compiled pattern
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Patterns that have passed and are not compiled here again.
_REMEMBERED: Final = 256
# Bytes that the process may allocate beyond those that it has when it is ready.
_MEMORY: Final = 2 * 1024**3
_LINE_BYTES: Final = 64
# Names of xgrammar's methods.
_METHODS: Final = {"regex": "compile_regex", "grammar": "compile_grammar", "lark": "compile_lark"}


class PatternProbe:
    """Compiles one pattern at a time; `seconds` is the processor time that each may take."""

    def __init__(self, vocabulary: str, seconds: float) -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._passed: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def start(self) -> None:
        """Starts the process, which imports xgrammar."""
        async with self._lock:
            await self._running()

    async def ends(self, kind: str, text: str) -> bool:
        """Whether the compilation of a pattern ends, with a result or an error, within limits."""
        pattern = (kind, text)
        async with self._lock:
            if pattern not in self._passed:
                if not await self._compile(pattern):
                    return False
                self._passed[pattern] = None
            self._passed.move_to_end(pattern)
            if len(self._passed) > _REMEMBERED:
                self._passed.popitem(last=False)
            return True

    async def close(self) -> None:
        async with self._lock:
            await self._end()

    async def _compile(self, pattern: tuple[str, str]) -> bool:
        compiled = False
        try:
            process = await self._running()
            compiled = await _ask(process, json.dumps(pattern))
        finally:
            # Also if the call was cancelled: the process would answer it before the next one.
            if not compiled:
                await self._end()
        return compiled

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(self._seconds)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
            )
            if not await _ask(self._process, self._vocabulary):
                await self._end()
                raise RuntimeError("the process that compiles patterns did not start")
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _ask(process: asyncio.subprocess.Process, line: str) -> bool:
    """Sends a line and waits for the response; False if the process has ended instead."""
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    try:
        stdin.write(line.encode() + b"\n")
        await stdin.drain()
        return bool(await stdout.readline())
    except (BrokenPipeError, ConnectionResetError):
        return False


def main() -> None:
    """Runs the child process until its parent closes the pipe."""
    seconds = float(sys.argv[1])
    compiler = _compiler(sys.stdin.readline())
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(flush=True)
    for line in sys.stdin:
        kind, text = json.loads(line)
        # SIGPROF ends the process: its default action is not Python's, which would have to wait.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with suppress(RuntimeError, ValueError, TypeError):
            getattr(compiler, _METHODS[kind])(text)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(flush=True)


def _compiler(vocabulary: str) -> Any:
    import xgrammar

    info = xgrammar.TokenizerInfo.deserialize_json(vocabulary)
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


if __name__ == "__main__":
    main()
