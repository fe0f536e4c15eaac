"""vLLM's output steps as the events of the engine contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from inference.engines.vllm_logprobs import LogprobStream, Vocabulary, prompt_logprobs
from inference.engines.vllm_parsing import Parsing
from inference.engines.vllm_sampling import choice_counts
from inference.errors import InferenceError, internal_error
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    ChoiceFinish,
    GenerateRequest,
    GenerateResponse,
    ToolCallDelta,
)
from isthmus.v1.usage_pb2 import Usage

# OpenAI's ids begin otherwise; those of other forms mean something to the model's template.
_VLLM_CALL_ID: Final = "chatcmpl-tool-"


@dataclass(slots=True)
class OutputPlan:
    """What a request wants to see.

    Attributes:
        request: The whole request.
        prompt_tokens: Tokens of the prompt.
        drawn: Continuations that vLLM makes; a single one stands for all choices.
        echo: Text that each choice begins with.
        discard: Runs for the prompt's log probabilities only: what is generated is dropped.
        single_call: Lets through the first tool call only.
        skip_special_tokens: Whether special tokens stay out of the text.
        parsing: How choices are taken apart; None where nothing is to be parsed.
    """

    request: GenerateRequest
    prompt_tokens: int
    drawn: int = 1
    echo: str = ""
    discard: bool = False
    single_call: bool = False
    skip_special_tokens: bool = True
    parsing: Parsing | None = None


class Answer:
    """Turns the steps of one request into events; `feed` is called once a step."""

    def __init__(self, plan: OutputPlan, vocabulary: Vocabulary) -> None:
        output = plan.request.output
        self._plan = plan
        self._vocabulary = vocabulary
        self._returned, _ = choice_counts(plan.request)
        self._copies = self._returned if plan.drawn == 1 else 1
        made = plan.drawn * self._copies
        self._choices = [_Choice(index, plan, vocabulary) for index in range(made)]
        self._ranked: list[_Ranked] | None = None
        if made > self._returned:
            self._ranked = [_Ranked() for _ in range(made)]
        self._plain = (
            made == 1
            and plan.parsing is None
            and not (output.HasField("logprobs") or output.token_ids or plan.discard)
        )
        self._wants_prompt = output.HasField("prompt_logprobs")
        self._cached_tokens = 0

    def opening(self) -> str | GenerateResponse | None:
        """The echo, where it need not wait for the prompt's log probabilities."""
        if self._wants_prompt or not self._plan.echo or self._ranked is not None:
            return None
        return self._plan.echo if self._returned == 1 else self._echoes()

    def closing(self) -> GenerateResponse:
        """The end of a request for which no token was to be generated at all."""
        response = GenerateResponse(usage=self._usage())
        for index in range(self._returned):
            response.finishes.add(index=index, reason=FINISH_REASON_LENGTH)
        return response

    def feed(self, step: Any) -> str | GenerateResponse | None:
        """Takes a RequestOutput; gives what there is to say, if anything.

        Raises:
            InferenceError: vLLM ended a choice because of an error.
        """
        outputs = step.outputs
        if self._plain and not self._wants_prompt and outputs[0].finish_reason is None:
            self._choices[0].tokens += len(outputs[0].token_ids)
            return outputs[0].text or None
        if step.num_cached_tokens:
            self._cached_tokens = step.num_cached_tokens
        response = GenerateResponse()
        if self._wants_prompt and step.prompt_logprobs:
            self._wants_prompt = False
            if self._ranked is None and self._plan.echo:
                response = self._echoes()
            response.prompt_logprobs.CopyFrom(self._prompt_logprobs(step))
        for output in outputs:
            for copy in range(self._copies):
                self._feed_choice(self._choices[output.index + copy], output, response)
        if step.finished:
            self._finish(response)
        return response if response.ByteSize() else None

    def _feed_choice(self, choice: _Choice, output: Any, response: GenerateResponse) -> None:
        delta, finish = choice.feed(output)
        if self._ranked is not None:
            self._ranked[choice.index].add(delta, finish, output)
            return
        if delta is not None:
            _merge(response, delta)
        if finish is not None:
            response.finishes.append(finish)

    def _finish(self, response: GenerateResponse) -> None:
        if self._ranked is not None:
            best = sorted(self._ranked, key=_Ranked.score, reverse=True)[: self._returned]
            for index, ranked in enumerate(best):
                response.deltas.append(ranked.joined(index, self._plan.echo))
                if ranked.finish is not None:
                    ranked.finish.index = index
                    response.finishes.append(ranked.finish)
        response.usage.CopyFrom(self._usage())

    def _echoes(self) -> GenerateResponse:
        return GenerateResponse(
            deltas=[
                ChoiceDelta(index=index, text=self._plan.echo) for index in range(self._returned)
            ]
        )

    def _prompt_logprobs(self, step: Any) -> Any:
        asked = self._plan.request.output.prompt_logprobs
        return prompt_logprobs(self._vocabulary, step.prompt_token_ids, step.prompt_logprobs, asked)

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._plan.prompt_tokens,
            completion_tokens=sum(choice.tokens for choice in self._choices),
            cached_tokens=self._cached_tokens,
            reasoning_tokens=sum(choice.reasoning_tokens() for choice in self._choices),
        )


class _Choice:
    """One continuation."""

    def __init__(self, index: int, plan: OutputPlan, vocabulary: Vocabulary) -> None:
        request = plan.request
        self.index = index
        self.tokens = 0
        self._plan = plan
        self._parser = plan.parsing.choice(vocabulary) if plan.parsing else None
        self._called = False
        self._logprobs: LogprobStream | None = None
        if request.output.HasField("logprobs") and not plan.discard:
            self._logprobs = LogprobStream(
                vocabulary,
                request.output.logprobs,
                cut=bool(request.stopping.strings),
                blank_special=plan.skip_special_tokens,
            )

    def feed(self, output: Any) -> tuple[ChoiceDelta | None, ChoiceFinish | None]:
        """Takes a CompletionOutput."""
        ended = output.finish_reason is not None
        if self._plan.discard:
            reason = FINISH_REASON_LENGTH
            return None, ChoiceFinish(index=self.index, reason=reason) if ended else None
        token_ids = list(output.token_ids)
        self.tokens += len(token_ids)
        delta = ChoiceDelta(index=self.index)
        if self._parser is None:
            delta.text = output.text
        else:
            messages = list(self._parser.feed(output.text, token_ids, ended))
            delta.text = "".join(message.content or "" for message in messages)
            delta.reasoning = "".join(message.reasoning or "" for message in messages)
            for message in messages:
                self._add_calls(message, delta)
        if self._plan.request.output.token_ids:
            delta.token_ids.extend(token_ids)
        if self._logprobs is not None:
            self._take_logprobs(output, token_ids, delta)
        finish = self._finish(output) if ended else None
        has_news = delta.text or delta.reasoning or delta.tool_calls or delta.token_ids
        return delta if has_news or delta.HasField("logprobs") else None, finish

    def reasoning_tokens(self) -> int:
        """Of the tokens, those spent on reasoning."""
        return self._parser.reasoning_tokens() if self._parser else 0

    def _add_calls(self, message: Any, delta: ChoiceDelta) -> None:
        for call in message.tool_calls or ():
            if self._plan.single_call and call.index > 0:
                continue
            self._called = True
            function = call.function
            delta.tool_calls.append(
                ToolCallDelta(
                    index=call.index,
                    id=(call.id or "").replace(_VLLM_CALL_ID, "call_"),
                    name=(function and function.name) or "",
                    arguments=(function and function.arguments) or "",
                )
            )

    def _take_logprobs(self, output: Any, token_ids: list[int], delta: ChoiceDelta) -> None:
        stream = self._logprobs
        if stream is None:
            return
        stream.add(output.text, token_ids, output.logprobs or ())
        ended = output.finish_reason is not None
        by_string = ended and isinstance(output.stop_reason, str)
        if output.finish_reason == "stop" and not by_string and not self._keeps_stop_token():
            stream.drop_last()
        if ready := stream.take(ended=ended, ended_by_string=by_string):
            delta.logprobs.CopyFrom(ready)

    def _keeps_stop_token(self) -> bool:
        return self._plan.request.stopping.include_stop_string

    def _finish(self, output: Any) -> ChoiceFinish:
        stopping = self._plan.request.stopping
        finish = ChoiceFinish(index=self.index)
        if output.finish_reason == "length":
            finish.reason = FINISH_REASON_LENGTH
        elif output.finish_reason == "abort":
            raise InferenceError("engine_died", "The engine dropped the request.")
        elif output.finish_reason == "error":
            raise internal_error()
        elif self._called:
            finish.reason = FINISH_REASON_TOOL_CALLS
        else:
            finish.reason = FINISH_REASON_STOP
            if isinstance(output.stop_reason, str):
                finish.stop_string = output.stop_reason
            elif isinstance(output.stop_reason, int) and output.stop_reason in stopping.token_ids:
                finish.stop_token_id = output.stop_reason
            else:
                finish.end_of_text = True
        return finish


@dataclass(slots=True)
class _Ranked:
    """One candidate of best_of, kept until all have ended.

    Its strings are joined only then: a message keeps every value that a field of it ever had.
    """

    delta: ChoiceDelta = field(default_factory=ChoiceDelta)
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish: ChoiceFinish | None = None
    tokens: int = 0
    logprob: float = 0.0

    def add(self, delta: ChoiceDelta | None, finish: ChoiceFinish | None, output: Any) -> None:
        if delta is not None:
            self.texts.append(delta.text)
            self.reasoning.append(delta.reasoning)
            delta.ClearField("text")
            delta.ClearField("reasoning")
            self.delta.MergeFrom(delta)
        self.finish = finish or self.finish
        self.tokens += len(output.token_ids)
        self.logprob = output.cumulative_logprob or 0.0

    def joined(self, index: int, echo: str) -> ChoiceDelta:
        """All of it as choice `index`, after what is echoed."""
        self.delta.index = index
        self.delta.text = echo + "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta

    def score(self) -> float:
        """Mean log probability of a token."""
        return self.logprob / max(self.tokens, 1)


def _merge(response: GenerateResponse, delta: ChoiceDelta) -> None:
    """Adds to the entry of the same choice: a message holds one at most."""
    for present in response.deltas:
        if present.index == delta.index:
            text, reasoning = present.text + delta.text, present.reasoning + delta.reasoning
            present.MergeFrom(delta)
            present.text, present.reasoning = text, reasoning
            return
    response.deltas.append(delta)
