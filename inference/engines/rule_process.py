"""A child process that compiles rules, and checks answers against them, within limits.

A regular expression of a hundred characters can take minutes to compile, and a JSON Schema of a
few can overflow the stack of a library or fill the memory, which ends the process. In vLLM neither
the thread that checks a rule nor the engine core, which compiles it again, can be interrupted. So a
process compiles it first, with a timer of its processor time, a limit of its memory and a smaller
stack. If they end the process, the rule is refused; the next rule starts another process. A rule
that does not compile at all passes here: it is refused elsewhere, which says why.

The check of an answer may take as long: an ambiguous grammar has many ways through a text, and
branches of a schema may double the visits with each level. It has the same limits.

    parent -> child    the vocabulary, as xgrammar's TokenizerInfo in JSON, or an empty line if
                       there will be schemas only; one line
                       [kind, rule, answers] of each rule; kind is "schema", "regex", "grammar" or
                       "lark", and answers is null to compile the rule, or a list of texts
    child -> parent    one empty line when it is ready and for each compiled rule; "1" or "0" for
                       each check: whether one of the texts obeys the rule
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Rules that have passed and are not compiled here again.
_REMEMBERED: Final = 256
# Processor time that the compilation of a schema may take, with the search for its fault.
_SCHEMA_SECONDS: Final = 6.0
# Processor time of the check of an answer, and what it may wait for, other rules included.
_CHECK_SECONDS: Final = 2.0
_CHECK_WAIT_SECONDS: Final = 15.0
# Bytes that the process may allocate beyond those that it has when it is ready.
_MEMORY: Final = 2 * 1024**3
# Bytes of the stack that compiles schemas: half of that of a thread which does it later.
_STACK: Final = 4 * 1024**2
_LINE_BYTES: Final = 64
# Names of xgrammar's methods.
_METHODS: Final = {"regex": "compile_regex", "grammar": "compile_grammar", "lark": "compile_lark"}
# The token that ends a text, in a vocabulary of the 256 bytes.
_END: Final = 256

_Compile = Callable[[str, str], object]


class RuleProcess:
    """Takes one rule at a time; `seconds` is the processor time that each may take to compile.

    Without a vocabulary it takes schemas only, and needs no xgrammar.
    """

    def __init__(self, seconds: float = _SCHEMA_SECONDS, vocabulary: str = "") -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._passed: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def start(self) -> None:
        """Starts the process, which imports the libraries."""
        async with self._lock:
            await self._running()

    async def ends(self, kind: str, text: str) -> bool:
        """Whether the compilation of a rule ends, with a result or an error, within limits."""
        rule = (kind, text)
        async with self._lock:
            if rule not in self._passed:
                if not await self._asked(kind, text, None):
                    return False
                self._passed[rule] = None
            self._passed.move_to_end(rule)
            if len(self._passed) > _REMEMBERED:
                self._passed.popitem(last=False)
            return True

    async def fits(self, kind: str, rule: str, answers: Sequence[str]) -> bool | None:
        """Whether one of the texts obeys a rule; None if that was not found out within limits."""
        try:
            async with asyncio.timeout(_CHECK_WAIT_SECONDS), self._lock:
                found = await self._asked(kind, rule, answers)
        except TimeoutError:
            return None
        return found == b"1\n" if found else None

    async def close(self) -> None:
        async with self._lock:
            await self._end()

    async def _asked(self, kind: str, rule: str, answers: Sequence[str] | None) -> bytes:
        """The line of the response; empty if the limits have ended the process."""
        response = b""
        try:
            process = await self._running()
            response = await _ask(process, json.dumps([kind, rule, answers]))
        finally:
            # Also if the call was cancelled: the process would answer it before the next one.
            if not response:
                await self._end()
        return response

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
                raise RuntimeError("the process that compiles rules did not start")
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


class RuleProcesses:
    """The processes of one engine.

    Attributes:
        schemas: For JSON Schemas.
        patterns: For patterns and grammars; None if the model takes none.
    """

    def __init__(self) -> None:
        self.schemas = RuleProcess()
        self.patterns: RuleProcess | None = None

    async def start(self, pattern_seconds: float, vocabulary: str) -> None:
        """Starts them; without a vocabulary the one for schemas only."""
        if vocabulary:
            self.patterns = RuleProcess(pattern_seconds, vocabulary)
            await self.patterns.start()
        await self.schemas.start()

    async def fits(self, kind: str, rule: str, answers: Sequence[str]) -> bool | None:
        """Calls `fits` of the process for `kind`; None if that process was not started."""
        process = self.schemas if kind == "schema" else self.patterns
        return await process.fits(kind, rule, answers) if process is not None else None

    async def close(self) -> None:
        await self.schemas.close()
        if self.patterns is not None:
            await self.patterns.close()


async def _ask(process: asyncio.subprocess.Process, line: str) -> bytes:
    """Sends a line and waits for the response; empty if the process has ended instead."""
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    try:
        stdin.write(line.encode() + b"\n")
        await stdin.drain()
        return bytes(await stdout.readline())
    except (BrokenPipeError, ConnectionResetError):
        return b""


def main() -> None:
    """Runs the child process until its parent closes the pipe."""
    seconds = float(sys.argv[1])
    compile_rule = _compiler(sys.stdin.readline().strip())
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # What a library writes when it runs out of memory is no fault of the service.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    print(flush=True)
    for line in sys.stdin:
        kind, rule, answers = json.loads(line)
        found = ""
        # SIGPROF ends the process: its default action is not Python's, which would have to wait.
        signal.setitimer(signal.ITIMER_PROF, seconds if answers is None else _CHECK_SECONDS)
        if answers is None:
            with suppress(RuntimeError, ValueError, TypeError):
                compile_rule(kind, rule)
        else:
            found = str(int(any(map(_check(kind, rule), answers))))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(found, flush=True)


def _compiler(vocabulary: str) -> _Compile:
    if not vocabulary:
        return _schema_compiler()
    import xgrammar

    info = xgrammar.TokenizerInfo.deserialize_json(vocabulary)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    return lambda kind, text: getattr(compiler, _METHODS[kind])(text)


def _schema_compiler() -> _Compile:
    from inference.engines.json_schema.compiler import compile_schema
    from inference.engines.json_schema.errors import SchemaError

    def compile_one(text: str) -> None:
        with suppress(SchemaError):
            compile_schema(text)

    def compile_rule(_kind: str, text: str) -> None:
        threading.stack_size(_STACK)
        thread = threading.Thread(target=compile_one, args=(text,))
        thread.start()
        thread.join()

    return compile_rule


def _check(kind: str, rule: str) -> Callable[[str], bool]:
    """Whether a text is one that a rule describes, as a whole."""
    if kind == "schema":
        from inference.engines.answer_check import fits
        from inference.engines.json_schema.compiler import validator_of

        validator = validator_of(json.loads(rule))
        return lambda text: fits(text, validator)
    import xgrammar

    # No vocabulary changes what a rule means.
    info = xgrammar.TokenizerInfo(
        [*(bytes([byte]) for byte in range(_END)), b"</s>"],
        vocab_type=xgrammar.VocabType.RAW,
        stop_token_ids=[_END],
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    compiled = getattr(compiler, _METHODS[kind])(rule)

    def obeys(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text)) and bool(matcher.is_completed())

    return obeys


if __name__ == "__main__":
    main()
