"""A deterministic text engine without a model, for tests of failures and for load tests.

Its output is "w0 w1 w2 ..." or a given text. Each word is a token, and each engine step makes one
token for every running request. Speed and failures come from `engine_args` or, for one request,
from a JSON object as its last message or prompt:

    {"tokens": 5, "fail": "mid"}
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from inference.config import ModelConfig
from inference.conversation import check_text_only
from inference.engines.base import (
    Emit,
    EngineDeadError,
    EngineHealth,
    Prepared,
    ReportProgress,
    Terms,
    TextEngine,
)
from inference.engines.scripted_text import (
    HangError,
    Output,
    PreparedScript,
    Script,
    ScriptedFaultError,
)
from inference.errors import InferenceError
from inference.limits import answer_budget
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import Model, ModelKind, TextCapabilities
from keys import ConfigError


class ScriptedEngine(TextEngine):
    """A text engine that follows its script."""

    def __init__(self, config: ModelConfig) -> None:
        self._script = read_script(config)
        self._running = 0
        self._generated = 0
        self._last_step = time.monotonic()
        self._unpaced = _Steps(0.0, self._count_step)
        self._paced = _Steps(self._script.step_seconds or 0.01, self._count_step)
        self._alive = True
        self.system_fingerprint = "fp_scripted"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_TEXT,
            created=1_700_000_000,
            context_length=self._script.context_length,
            text=TextCapabilities(
                chat=True, tools=True, vocabulary_size=50_000, max_choices=config.max_choices
            ),
        )

    async def start(self, report: ReportProgress) -> None:
        """Waits for the script's `load_seconds`."""
        report("reading the script")
        await asyncio.sleep(self._script.load_seconds)

    def health(self) -> EngineHealth:
        age = time.monotonic() - self._last_step if self._running else 0.0
        return EngineHealth(self._alive, self._running, age, self._generated)

    async def close(self) -> None:
        """Takes no more engine steps."""
        self._unpaced.close()
        self._paced.close()

    async def prepare(self, request: GenerateRequest, terms: Terms) -> Prepared:
        """Counts words as tokens; a last text that is a JSON object overrides the script."""
        check_text_only(request.chat)
        texts = _texts(request)
        script = self._script
        if texts and texts[-1].lstrip().startswith("{"):
            try:
                overrides = msgspec.json.decode(texts[-1].encode())
                script = msgspec.convert(msgspec.to_builtins(script) | overrides, Script)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise InferenceError(
                    "invalid_value", "The script is not valid.", param="messages"
                ) from error
        prompt_tokens = len(request.token_ids.ids) or sum(len(text.split()) for text in texts)
        max_tokens = answer_budget(request, prompt_tokens, terms.context_length)
        return PreparedScript(request, script, prompt_tokens, max_tokens)

    async def generate(self, prepared: Prepared, emit: Emit) -> None:
        """Emits each step's words of each choice; with best_of, all output at the end."""
        if not isinstance(prepared, PreparedScript):
            raise TypeError("prepared by another engine")
        script = prepared.script
        if not self._running:
            self._last_step = time.monotonic()
        self._running += 1
        try:
            if script.prefill_seconds:
                await asyncio.sleep(script.prefill_seconds)
            output = Output(prepared, emit)
            await (self._paced if script.step_seconds else self._unpaced).run(output)
            if script.fail == "late":
                raise ScriptedFaultError("canary-late")
        except EngineDeadError:
            self._alive = False
            raise
        finally:
            self._running -= 1

    def _count_step(self, tokens: int) -> None:
        self._last_step = time.monotonic()
        self._generated += tokens


class _Steps:
    """One task that takes engine steps at a fixed pace, each for all running requests.

    Args:
        period: Seconds between steps; 0 takes one step per turn of the event loop.
        on_step: Called with the number of tokens of each step.
    """

    def __init__(self, period: float, on_step: Callable[[int], None]) -> None:
        self._period = period
        self._on_step = on_step
        self._outputs: dict[Output, None] = {}  # an ordered set
        self._task: asyncio.Task[None] | None = None

    async def run(self, output: Output) -> None:
        """Takes part in the steps until the output has ended."""
        self._outputs[output] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await output.ended

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._outputs:
            # Steps follow a schedule, so their own duration does not slow the pace. A late step
            # moves those after it.
            due = max(due + self._period, loop.time())
            await asyncio.sleep(due - loop.time() if self._period else 0)
            self._on_step(sum(map(self._step, tuple(self._outputs))))

    def _step(self, output: Output) -> int:
        made = 0
        # A cancelled output has ended already; its task may not have run since.
        if not output.ended.done():
            try:
                made = output.step()
            except HangError:
                del self._outputs[output]
                return 0
            except Exception as error:
                output.ended.set_exception(error)
        if output.ended.done():
            del self._outputs[output]
        return made


def read_script(config: ModelConfig) -> Script:
    """Reads `engine_args` as a script.

    Raises:
        ConfigError: `engine_args` is not a script.
    """
    try:
        return msgspec.convert(config.engine_args, Script)
    except msgspec.ValidationError as error:
        raise ConfigError(f"models.{config.id}.engine_args: {error}") from error


def _texts(request: GenerateRequest) -> list[str]:
    if request.HasField("chat"):
        return ["".join(part.text for part in message.parts) for message in request.chat.messages]
    return [request.text] if request.text else []
