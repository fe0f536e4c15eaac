"""A deterministic text engine without a model, for faults and for load.

Its output is "w0 w1 w2 ..." (or a given text): each word is a token, and each engine step makes
one token for every running request. Speed and failures come from `engine_args` and, for one
request, from a JSON object as its last message or prompt:

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
        self._flat = _Steps(0.0, self._stepped)
        self._paced = _Steps(self._script.step_seconds or 0.01, self._stepped)
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
        """Waits as long as the script says."""
        report("learning the script")
        await asyncio.sleep(self._script.load_seconds)

    def health(self) -> EngineHealth:
        """Answers from counters."""
        age = time.monotonic() - self._last_step if self._running else 0.0
        return EngineHealth(self._alive, self._running, age, self._generated)

    async def close(self) -> None:
        """Stops stepping."""
        self._flat.close()
        self._paced.close()

    async def prepare(self, request: GenerateRequest, terms: Terms) -> Prepared:
        """Counts words; a last text that is a JSON object is this request's own script."""
        check_text_only(request.chat)
        texts = _texts(request)
        script = self._script
        if texts and texts[-1].lstrip().startswith("{"):
            try:
                cue = msgspec.json.decode(texts[-1].encode())
                script = msgspec.convert(msgspec.to_builtins(script) | cue, Script)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise InferenceError(
                    "invalid_value", "The script is not valid.", param="messages"
                ) from error
        prompt_tokens = len(request.token_ids.ids) or sum(len(text.split()) for text in texts)
        max_tokens = answer_budget(request, prompt_tokens, terms.context_length)
        return PreparedScript(request, script, prompt_tokens, max_tokens)

    async def generate(self, prepared: Prepared, emit: Emit) -> None:
        """Emits one word a step for each choice; best_of is kept back until the end."""
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
            await (self._paced if script.step_seconds else self._flat).run(output)
            if script.fail == "late":
                raise ScriptedFaultError("canary-late")
        except EngineDeadError:
            self._alive = False
            raise
        finally:
            self._running -= 1

    def _stepped(self, tokens: int) -> None:
        self._last_step = time.monotonic()
        self._generated += tokens


class _Steps:
    """Engine steps at one pace, each for all running requests: one task for all of them.

    Args:
        period: Seconds between steps; 0 is as fast as the loop turns.
        stepped: Called with the number of tokens of each step.
    """

    def __init__(self, period: float, stepped: Callable[[int], None]) -> None:
        self._period = period
        self._stepped = stepped
        self._outputs: dict[Output, None] = {}  # an ordered set
        self._task: asyncio.Task[None] | None = None

    async def run(self, output: Output) -> None:
        """Steps one request's output to its end."""
        self._outputs[output] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await output.ended

    def close(self) -> None:
        """Steps no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._outputs:
            # From a fixed schedule: what a step costs does not slow the pace; a late one moves
            # those after it.
            due = max(due + self._period, loop.time())
            await asyncio.sleep(due - loop.time() if self._period else 0)
            self._stepped(sum(map(self._step, tuple(self._outputs))))

    def _step(self, output: Output) -> int:
        made = 0
        # One that was cancelled has ended, though its task has not yet run to say so.
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
    """The script of a configuration.

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
