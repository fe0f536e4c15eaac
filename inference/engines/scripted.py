"""A deterministic text engine without a model, for tests of failures and for load tests.

Its output is "w0 w1 w2 ..." or a given text. Each word is a token, "w7" the token 7. Each engine
step generates one token for every running request. `engine_args` sets speed and failures; for one
request, a JSON object as its last message or prompt does:

    {"tokens": 5, "fail": "mid"}
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from inference.config import ModelConfig
from inference.conversation import check_text_only
from inference.engines import engine_args
from inference.engines.answer_check import NO_CHECKS
from inference.engines.base import (
    Emit,
    EngineDeadError,
    EngineHealth,
    Report,
    Terms,
    TextEngine,
    Tokens,
)
from inference.engines.script import (
    BLOCK_TOKENS,
    VOCABULARY_SIZE,
    HangError,
    PrefixCache,
    ScriptedFaultError,
    TextScript,
    overridden,
    raise_fault,
    texts_of,
    token_of,
    words_of,
)
from inference.errors import check_vocabulary, invalid_value
from inference.limits import answer_budget, requested_choices
from isthmus.v1.generate_pb2 import (
    ChoiceFinish,
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
)
from isthmus.v1.models_pb2 import KvCache, Model, ModelKind, TextCapabilities
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from isthmus.v1.usage_pb2 import Usage

_CACHE_BLOCKS = 1024


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request with its script; `max_tokens` is the maximum of one choice."""

    request: GenerateRequest
    script: TextScript
    texts: list[str]
    prompt_tokens: int
    max_tokens: int
    cached_tokens: int

    @property
    def prompt_token_ids(self) -> list[int]:
        ids = list(self.request.token_ids.ids)
        return ids or [token_of(word) for text in self.texts for word in text.split()]

    @property
    def max_output_tokens(self) -> int:
        return self.max_tokens * requested_choices(self.request)


class ScriptedEngine(TextEngine):
    """A text engine that follows its script."""

    def __init__(self, config: ModelConfig) -> None:
        self._script = engine_args.settings(config, TextScript)
        self._running = 0
        self._generated = 0
        self._last_step = time.monotonic()
        self._unpaced = _Steps(0.0, self._count_step)
        self._paced = _Steps(self._script.step_seconds or 0.01, self._count_step)
        self._alive = True
        self._prefixes = PrefixCache()
        self.system_fingerprint = "fp_scripted"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_TEXT,
            created=1_700_000_000,
            context_length=self._script.context_length,
            text=TextCapabilities(
                chat=True,
                tools=True,
                vocabulary_size=VOCABULARY_SIZE,
                max_choices=config.max_choices,
                vision=self._script.vision,
            ),
        )

    async def start(self, report: Report) -> None:
        """Waits for the script's `load_seconds`."""
        report("reading the script")
        await asyncio.sleep(self._script.load_seconds)

    def health(self) -> EngineHealth:
        age = time.monotonic() - self._last_step if self._running else 0.0
        # Reports a KV cache in which each running call uses one block.
        cache = KvCache(
            usage=min(self._running / _CACHE_BLOCKS, 1),
            block_size=BLOCK_TOKENS,
            blocks=_CACHE_BLOCKS,
        )
        alive, made = self._alive, self._generated
        return EngineHealth(
            alive, self._running, age, made, kv_cache=cache, answer_checks=NO_CHECKS
        )

    async def close(self) -> None:
        """Ends the engine steps."""
        self._unpaced.close()
        self._paced.close()

    async def prepare(self, request: GenerateRequest, terms: Terms) -> _Prepared:
        """Counts words as tokens; a last text that is a JSON object overrides the script."""
        if not self._script.vision:
            check_text_only(request.chat)
        texts = texts_of(request)
        script = overridden(self._script, texts[-1], "messages")
        prompt_tokens = len(request.token_ids.ids) or sum(len(text.split()) for text in texts)
        max_tokens = answer_budget(request, prompt_tokens, terms.context_length)
        cached = 0
        if script.prefix_cache:
            cached = self._prefixes.hit(request.token_ids.ids[:] or " ".join(texts).split())
        return _Prepared(request, script, texts, prompt_tokens, max_tokens, cached)

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """The same words as tokens; the text of tokens has a word for each, "w7" for 7."""
        check_text_only(request.chat)
        texts = texts_of(request)
        script = overridden(self._script, texts[-1], "messages")
        await asyncio.sleep(script.tokenize_seconds)
        raise_fault(script.fail, 0)
        if request.HasField("token_ids"):
            ids = list(request.token_ids.ids)
            check_vocabulary(ids, VOCABULARY_SIZE, "tokens")
            words = [f"w{token}" for token in ids]
            return Tokens(ids, words if request.token_names else (), " ".join(words))
        words = [word for text in texts for word in text.split()]
        return Tokens(list(map(token_of, words)), words if request.token_names else ())

    async def generate(self, prepared: _Prepared, emit: Emit) -> None:
        """Emits each step's words of each choice; with best_of, all output at the end."""
        script = prepared.script
        if not self._running:
            self._last_step = time.monotonic()
        self._running += 1
        try:
            if script.prefill_seconds:
                await asyncio.sleep(script.prefill_seconds)
            output = _Output(prepared, emit)
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
    """One task that runs engine steps, each for all running requests.

    `period` is seconds between steps; 0 takes one step per turn of the event loop. `on_step` is
    called with the number of tokens of each step.
    """

    def __init__(self, period: float, on_step: Callable[[int], None]) -> None:
        self._period = period
        self._on_step = on_step
        self._outputs: dict[_Output, None] = {}  # an ordered set
        self._task: asyncio.Task[None] | None = None

    async def run(self, output: _Output) -> None:
        """Adds the output to the steps and waits until it has ended."""
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

    def _step(self, output: _Output) -> int:
        made = 0
        # A cancelled output has already ended, although its task may not have run since.
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


class _Output:
    """The output of one request; the future `ended` gets a failed step's exception or None."""

    def __init__(self, prepared: _Prepared, emit: Emit) -> None:
        self._prepared = prepared
        self._emit = emit
        script, stops = prepared.script, prepared.request.stopping.strings[:]
        self._words = words_of(script.text, script.tokens, stops)
        self._position = 0
        self._count = min(len(self._words), prepared.max_tokens)
        output = prepared.request.output
        self._forced = prepared.request.chat.tool_choice.function_name
        self._logprobs = output.logprobs if output.HasField("logprobs") else None
        self._choices = output.n or 1
        self._candidates = requested_choices(prepared.request)
        self._token_ids = output.token_ids
        self._plain = (
            self._candidates == 1
            and not (self._forced or self._token_ids)
            and self._logprobs is None
        )
        self._withheld: list[GenerateResponse] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def step(self) -> int:
        """Emits the output of one engine step or raises the failure; returns its token count."""
        script, first = self._prepared.script, self._position
        last = self._position = min(first + script.tokens_per_step, self._count)
        if script.fail is not None:
            for position in range(first, last):
                if script.fail == "refuse":
                    raise invalid_value("The script refuses.", "messages")
                raise_fault(script.fail, position)
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
            for response in self._withheld:
                self._emit(response)
            self._emit(self._finish())
            self.ended.set_result(None)
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
            if self._token_ids:
                delta.token_ids.append(position)
            if self._logprobs is not None:
                entry = LogprobEntry(id=position, text=word, data=word.encode(), logprob=-0.5)
                top = [entry] * min(self._logprobs, 1)
                delta.logprobs.CopyFrom(Logprobs(tokens=[TokenLogprob(token=entry, top=top)]))
        return response

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
            cached_tokens=self._prepared.cached_tokens,
        )
        finishes = [ChoiceFinish(index=index, reason=reason) for index in range(self._choices)]
        return GenerateResponse(finishes=finishes, usage=usage)
