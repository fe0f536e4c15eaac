"""A deterministic text engine without a model: faults on cue, load, and a look at the wire.

It says "w0 w1 w2 ..." (or a given text), one word a token, one token of every
running request an engine step. What a request costs and how it fails comes from `engine_args`
and, for one request, from a JSON object as its last message or prompt:

    {"tokens": 5, "fail": "mid"}
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

import msgspec

from inference.config import ConfigError, ModelConfig
from inference.conversation import check_text_only
from inference.engines.base import (
    EngineDeadError,
    EngineHealth,
    PreparedText,
    ReportProgress,
    TextEngine,
)
from inference.errors import InferenceError
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    ChoiceFinish,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
)
from isthmus.v1.models_pb2 import Model, ModelKind, TextCapabilities
from isthmus.v1.usage_pb2 import Usage


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the text engine does.

    Attributes:
        tokens: Tokens of an answer, where max_tokens allows.
        text: Says this instead, word by word.
        tokens_per_step: That each request gets in one engine step.
        step_seconds: Between engine steps; 0 is as fast as the loop turns.
        prefill_seconds: Before the first token.
        load_seconds: What a start takes.
        fail: "start" raises before the first token, "mid" after two, "late" after the finish;
            "refuse" is an InferenceError of the engine, "hang" stops forever after two tokens,
            "die" is a dead engine after two, "exit" a killed process after two.
        context_length: Of the model.
    """

    tokens: int = 16
    tokens_per_step: int = 1
    text: str | None = None
    step_seconds: float = 0.0
    prefill_seconds: float = 0.0
    load_seconds: float = 0.0
    fail: Literal["start", "mid", "late", "refuse", "hang", "die", "exit"] | None = None
    context_length: int = 4096


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: GenerateRequest
    script: Script
    prompt_tokens: int


class ScriptedFaultError(Exception):
    """An unforeseen failure; its text must reach no caller."""


class ScriptedEngine(TextEngine):
    """A text engine that follows its script."""

    def __init__(self, config: ModelConfig) -> None:
        self._script = read_script(config)
        self._running = 0
        self._generated = 0
        self._last_step = time.monotonic()
        self._stepper: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []
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
        if self._stepper is not None:
            self._stepper.cancel()

    async def prepare(self, request: GenerateRequest) -> PreparedText:
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
        ids = len(request.token_ids.ids)
        return _Prepared(request, script, ids or sum(len(text.split()) for text in texts))

    async def generate(
        self,
        prepared: PreparedText,
        max_tokens: int,
        priority: int,  # noqa: ARG002
    ) -> AsyncGenerator[str | GenerateResponse, None]:
        """Speaks one word a step for each choice; best_of is kept back until all is said."""
        if not isinstance(prepared, _Prepared):
            raise TypeError("prepared by another engine")
        script, request = prepared.script, prepared.request
        words = _words(script, request)
        count = min(len(words), max_tokens)
        choices = request.output.n or 1
        made = max(choices, request.output.best_of)
        unseen: list[str | GenerateResponse] = []
        self._begin()
        try:
            if script.prefill_seconds:
                await asyncio.sleep(script.prefill_seconds)
            for first in range(0, count, script.tokens_per_step):
                positions = range(first, min(first + script.tokens_per_step, count))
                for position in positions:
                    await self._fault(script, position)
                await self._step(script)
                self._generated += made * len(positions)
                events = [
                    event
                    for position in positions
                    for event in _speak(request, words[position], position, choices)
                ]
                for event in _joined(events):
                    if made > choices:
                        unseen.append(event)
                    else:
                        yield event
            for event in unseen:
                yield event
            yield _finish(prepared, count < len(words), count * made, choices)
            if script.fail == "late":
                raise ScriptedFaultError("canary-late")
        finally:
            self._running -= 1

    def _begin(self) -> None:
        if not self._running:
            self._last_step = time.monotonic()
        self._running += 1

    async def _step(self, script: Script) -> None:
        """Waits for the next engine step, which all running requests share."""
        if not script.step_seconds:
            await asyncio.sleep(0)
            self._last_step = time.monotonic()
            return
        if self._stepper is None or self._stepper.done():
            self._stepper = asyncio.create_task(self._run_steps())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    async def _run_steps(self) -> None:
        period = self._script.step_seconds or 0.01
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._running:
            # From a fixed schedule: what a step costs does not slow the pace; a late one moves
            # those after it.
            due = max(due + period, loop.time())
            await asyncio.sleep(due - loop.time())
            self._last_step = time.monotonic()
            waiting, self._waiting = self._waiting, []
            for turn in waiting:
                if not turn.done():
                    turn.set_result(None)

    async def _fault(self, script: Script, position: int) -> None:
        if script.fail == "start" and position == 0:
            raise ScriptedFaultError("canary-start")
        if script.fail == "refuse" and position == 0:
            raise InferenceError("invalid_value", "The script refuses.", param="messages")
        if position != 2:
            return
        if script.fail == "mid":
            raise ScriptedFaultError("canary-mid")
        if script.fail == "hang":
            await asyncio.Event().wait()
        if script.fail == "die":
            self._alive = False
            raise EngineDeadError("canary-die")
        if script.fail == "exit":
            os.kill(os.getpid(), signal.SIGKILL)


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


def _words(script: Script, request: GenerateRequest) -> list[str]:
    if script.text is None:
        words = [f"w{position} " for position in range(script.tokens)]
    else:
        words = re.findall(r"\s*\S+|\s+$", script.text)
    spoken = "".join(words)
    ends = [at for stop in request.stopping.strings if (at := spoken.find(stop)) >= 0]
    if not ends:
        return words
    kept, room = [], min(ends)
    for word in words:
        if room <= 0:
            break
        kept.append(word[:room])
        room -= len(word)
    return kept


def _speak(
    request: GenerateRequest, word: str, position: int, choices: int
) -> list[str | GenerateResponse]:
    forced = request.chat.tool_choice.function_name
    plain = choices == 1 and not forced and not request.output.HasField("logprobs")
    if plain:
        return [word]
    response = GenerateResponse()
    for index in range(choices):
        delta = ChoiceDelta(index=index)
        if forced:
            call = ToolCallDelta(index=0, arguments=word)
            if position == 0:
                call.id, call.name = f"call_{index}", forced
            delta.tool_calls.append(call)
        else:
            delta.text = word
        if request.output.HasField("logprobs"):
            entry = LogprobEntry(id=position, text=word, data=word.encode(), logprob=-0.5)
            top = [entry] * min(request.output.logprobs, 1)
            delta.logprobs.CopyFrom(Logprobs(tokens=[TokenLogprob(token=entry, top=top)]))
        response.deltas.append(delta)
    return [response]


def _joined(events: list[str | GenerateResponse]) -> list[str | GenerateResponse]:
    """Plain text of one step as one event, as real engines give it."""
    words = [event for event in events if isinstance(event, str)]
    return ["".join(words)] if len(words) == len(events) else events


def _finish(prepared: _Prepared, cut: bool, generated: int, choices: int) -> GenerateResponse:
    if cut:
        reason = FinishReason.FINISH_REASON_LENGTH
    elif prepared.request.chat.tool_choice.function_name:
        reason = FinishReason.FINISH_REASON_TOOL_CALLS
    else:
        reason = FinishReason.FINISH_REASON_STOP
    return GenerateResponse(
        finishes=[ChoiceFinish(index=index, reason=reason) for index in range(choices)],
        usage=Usage(prompt_tokens=prepared.prompt_tokens, completion_tokens=generated),
    )
