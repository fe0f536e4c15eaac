"""The output and the failures of one request to the scripted text engine."""

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
    """The script of a text engine.

    Attributes:
        tokens: Tokens of each choice, cut at max_tokens.
        tokens_per_step: Tokens that each request gets in one engine step.
        text: The output instead of "w0 w1 ...": each of its words is a token.
        step_seconds: Time between engine steps; 0 takes one step per turn of the event loop.
        prefill_seconds: Time before the first token.
        load_seconds: Duration of `start`.
        fail: The failure: "start" raises before the first token, "mid" after two tokens, "late"
            after the finish; "refuse" raises an InferenceError, "hang" stops without an end after
            two tokens, "die" raises EngineDeadError after two, "exit" kills the process after two.
        context_length: The model's context, in tokens.
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
    """A request with its script.

    Attributes:
        prompt_tokens: Words of the prompt.
        max_tokens: The most tokens of one choice.
    """

    request: GenerateRequest
    script: Script
    prompt_tokens: int
    max_tokens: int

    @property
    def max_output_tokens(self) -> int:
        return self.max_tokens * requested_choices(self.request)


class ScriptedFaultError(Exception):
    """Simulates a bug; its text must not reach a caller."""


class HangError(Exception):
    """Simulates an engine that stops producing output without failing."""


class Output:
    """The output of one request; `step` emits one engine step of it.

    Attributes:
        ended: Done when all output was emitted; has the exception of a step that failed.
    """

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
        self._candidates = max(self._choices, output.best_of)
        self._plain = self._candidates == 1 and not self._forced and self._logprobs is None
        self._withheld: list[GenerateResponse] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def step(self) -> int:
        """Emits the output of one engine step; returns its number of tokens.

        Raises:
            HangError, ScriptedFaultError, InferenceError, EngineDeadError: The script's failure.
        """
        script, first = self._prepared.script, self._position
        last = self._position = min(first + script.tokens_per_step, self._count)
        if script.fail is not None:
            for position in range(first, last):
                _fault(script.fail, position)
        if self._plain and first < last:
            # Like a real engine, emits the text of one step as one string.
            self._emit("".join(self._words[first:last]))
        elif first < last:
            responses = [self._response(position) for position in range(first, last)]
            if self._candidates > self._choices:
                self._withheld += responses
            else:
                for response in responses:
                    self._emit(response)
        if last == self._count:
            self._end()
        return self._candidates * (last - first)

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
        for response in self._withheld:
            self._emit(response)
        self._emit(self._finish())
        self.ended.set_result(None)

    def _finish(self) -> GenerateResponse:
        if self._count < len(self._words):
            reason = FinishReason.FINISH_REASON_LENGTH
        elif self._forced:
            reason = FinishReason.FINISH_REASON_TOOL_CALLS
        else:
            reason = FinishReason.FINISH_REASON_STOP
        usage = Usage(
            prompt_tokens=self._prepared.prompt_tokens,
            completion_tokens=self._count * self._candidates,
        )
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
    text = "".join(words)
    ends = [at for stop in request.stopping.strings if (at := text.find(stop)) >= 0]
    if not ends:
        return words
    kept, remaining = [], min(ends)
    for word in words:
        if remaining <= 0:
            break
        kept.append(word[:remaining])
        remaining -= len(word)
    return kept
