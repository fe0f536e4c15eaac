"""The output and the failures of the scripted text engine, step by step."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import dataclass
from typing import Literal

import msgspec

from inference.engines.base import Emit, EngineDeadError
from inference.errors import InferenceError
from inference.limits import requested_choices
from isthmus.v1.generate_pb2 import (
    ChoiceFinish,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
)
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
class PreparedScript:
    """A request, its script, and its tokens.

    Attributes:
        max_tokens: The most tokens of one choice.
    """

    request: GenerateRequest
    script: Script
    prompt_tokens: int
    max_tokens: int

    @property
    def max_output_tokens(self) -> int:
        """The most tokens of all choices together."""
        return self.max_tokens * requested_choices(self.request)


class ScriptedFaultError(Exception):
    """An unforeseen failure; its text must reach no caller."""


class HangError(Exception):
    """Simulates an engine that stops producing output without failing."""


class Output:
    """The output of one request, step by step."""

    def __init__(self, prepared: PreparedScript, emit: Emit) -> None:
        self._prepared = prepared
        self._emit = emit
        self._words = _words(prepared.script, prepared.request)
        self._position = 0
        self._count = min(len(self._words), prepared.max_tokens)
        output = prepared.request.output
        self._forced = prepared.request.chat.tool_choice.function_name
        self._logprobs = output.logprobs if output.HasField("logprobs") else None
        self._choices = output.n or 1
        self._made = max(self._choices, output.best_of)
        self._plain = self._made == 1 and not self._forced and self._logprobs is None
        self._kept_back: list[GenerateResponse] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def step(self) -> int:
        """Emits the output of one engine step; returns its number of tokens.

        Raises:
            HangError, ScriptedFaultError, InferenceError, EngineDeadError: As the script says.
        """
        script, first = self._prepared.script, self._position
        last = self._position = min(first + script.tokens_per_step, self._count)
        if script.fail is not None:
            for position in range(first, last):
                _fault(script.fail, position)
        if self._plain and first < last:
            # Real engines give the text of one step as one piece.
            self._emit("".join(self._words[first:last]))
        elif first < last:
            events = [self._response(position) for position in range(first, last)]
            if self._made > self._choices:
                self._kept_back += events
            else:
                for event in events:
                    self._emit(event)
        if last == self._count:
            self._end()
        return self._made * (last - first)

    def _response(self, position: int) -> GenerateResponse:
        response, word = GenerateResponse(), self._words[position]
        for index in range(self._choices):
            delta = response.deltas.add(index=index)
            if self._forced:
                call = delta.tool_calls.add(index=0, arguments=word)
                if position == 0:
                    call.id, call.name = f"call_{index}", self._forced
            else:
                delta.text = word
            if self._logprobs is not None:
                entry = LogprobEntry(id=position, text=word, data=word.encode(), logprob=-0.5)
                top = [entry] * min(self._logprobs, 1)
                delta.logprobs.CopyFrom(Logprobs(tokens=[TokenLogprob(token=entry, top=top)]))
        return response

    def _end(self) -> None:
        for event in self._kept_back:
            self._emit(event)
        cut, made = self._count < len(self._words), self._count * self._made
        self._emit(self._finish(cut, made))
        self.ended.set_result(None)

    def _finish(self, cut: bool, made: int) -> GenerateResponse:
        if cut:
            reason = FinishReason.FINISH_REASON_LENGTH
        elif self._forced:
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        else:
            reason = FinishReason.FINISH_REASON_STOP
        usage = Usage(prompt_tokens=self._prepared.prompt_tokens, completion_tokens=made)
        finishes = [ChoiceFinish(index=index, reason=reason) for index in range(self._choices)]
        return GenerateResponse(finishes=finishes, usage=usage)


def _fault(fail: str, position: int) -> None:
    if position == 0 and fail == "start":
        raise ScriptedFaultError("canary-start")
    if position == 0 and fail == "refuse":
        raise InferenceError("invalid_value", "The script refuses.", param="messages")
    if position != 2:
        return
    if fail == "mid":
        raise ScriptedFaultError("canary-mid")
    if fail == "hang":
        raise HangError
    if fail == "die":
        raise EngineDeadError("canary-die")
    if fail == "exit":
        os.kill(os.getpid(), signal.SIGKILL)


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
