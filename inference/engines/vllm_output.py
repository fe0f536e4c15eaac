"""vLLM's output steps as messages of the engine contract.

vLLM yields one RequestOutput per engine step of a request, with a CompletionOutput for each of its
continuations: new text, new token ids, their log probabilities, and the finish. `feed` turns it
into one message, or into a `str` if the message would only have text of choice 0.

A request has `n` choices in the response and lets the engine sample `best_of` candidates:

    request                      continuations in vLLM      choices
    n, sampled                   n                          one each
    n, greedy                    1                          n copies of it, fed one by one
    best_of > n                  best_of                    the n best, all at the end

The best candidates have the highest mean log probability of a token. When output is emitted:

    text, reasoning, calls       as soon as the parser (vllm_parsing) returns it
    log probabilities            with the text that they belong to (vllm_logprobs)
    echo                         first of all; after the prompt's log probabilities if requested
    finish                       with the last output of its choice
    usage                        once, with the step that ends the request

With `discard`, the response has only the prompt's log probabilities: vLLM samples one token even
so, which is neither emitted nor counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inference.engines.vllm_logprobs import LogprobStream, Vocabulary, prompt_logprobs
from inference.engines.vllm_parsing import Parsing, are_whole
from inference.errors import InferenceError, internal_error
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    ChoiceFinish,
    GenerateRequest,
    GenerateResponse,
)
from isthmus.v1.usage_pb2 import Usage

# Prefix of the tool call ids that vLLM generates. It is replaced by OpenAI's prefix; ids of other
# forms come from the model's parser, and its chat template expects them unchanged.
_VLLM_CALL_ID: Final = "chatcmpl-tool-"


@dataclass(slots=True)
class OutputPlan:
    """The part of a prepared request that determines the form of its output.

    Attributes:
        sampled: Continuations that vLLM samples; a single one is copied to all choices.
        echo: Text that each choice begins with.
        echo_pieces: The part of each token of the prompt in `echo`, if the response has the
            prompt's log probabilities too.
        discard: Whether only the prompt's log probabilities are returned.
        single_call: Whether tool calls after the first one are left out.
        skip_special_tokens: Whether special tokens are left out of the text.
        parsing: The parsing of tool calls and reasoning; None without any.
    """

    request: GenerateRequest
    prompt_tokens: int
    sampled: int = 1
    echo: str = ""
    echo_pieces: Sequence[bytes] = ()
    discard: bool = False
    single_call: bool = False
    skip_special_tokens: bool = True
    parsing: Parsing | None = None


class OutputTranslator:
    """Translates the steps of one request."""

    def __init__(self, plan: OutputPlan, vocabulary: Vocabulary) -> None:
        output = plan.request.output
        self._plan = plan
        self._vocabulary = vocabulary
        self._returned = output.n or 1
        self._copies = self._returned if plan.sampled == 1 else 1
        count = plan.sampled * self._copies
        self._choices = [_Choice(index, plan, vocabulary) for index in range(count)]
        self._candidates: list[_Candidate] | None = None
        if count > self._returned:
            self._candidates = [_Candidate() for _ in range(count)]
        self._plain = (
            count == 1
            and plan.parsing is None
            and not (output.HasField("logprobs") or output.token_ids or plan.discard)
        )
        self._prompt_logprobs_due = output.HasField("prompt_logprobs")
        self._cached_tokens = 0

    def opening(self) -> str | GenerateResponse | None:
        """The echo to emit before the first output; None if there is none or it must come later."""
        if self._prompt_logprobs_due or not self._plan.echo or self._candidates is not None:
            return None
        return self._plan.echo if self._returned == 1 else self._echo_response()

    def closing(self) -> GenerateResponse:
        """The only message of a request with max_tokens 0 that needs no run of the model."""
        response = GenerateResponse(usage=self._usage())
        for index in range(self._returned):
            response.finishes.add(index=index, reason=FINISH_REASON_LENGTH)
        return response

    def feed(self, step: Any) -> str | GenerateResponse | None:
        """Translates a RequestOutput (RequestOutputKind.DELTA); None if there is nothing to emit.

        Raises:
            InferenceError: vLLM ended a choice because of an error.
        """
        outputs = step.outputs
        if self._plain and not self._prompt_logprobs_due and outputs[0].finish_reason is None:
            self._choices[0].tokens += len(outputs[0].token_ids)
            return outputs[0].text or None
        if step.num_cached_tokens:
            self._cached_tokens = step.num_cached_tokens
        response = GenerateResponse()
        if self._prompt_logprobs_due and step.prompt_logprobs:
            self._prompt_logprobs_due = False
            if self._candidates is None and self._plan.echo:
                response = self._echo_response()
            count = self._plan.request.output.prompt_logprobs
            response.prompt_logprobs.tokens.extend(
                prompt_logprobs(self._vocabulary, step, count, self._plan.echo_pieces)
            )
        for output in outputs:
            for copy in range(self._copies):
                self._feed_choice(self._choices[output.index + copy], output, response)
        if step.finished:
            self._finish(response)
        return response if response.ByteSize() else None

    def _feed_choice(self, choice: _Choice, output: Any, response: GenerateResponse) -> None:
        delta, finish = choice.feed(output)
        if self._candidates is not None:
            self._candidates[choice.index].add(delta, finish, output)
            return
        if delta is not None:
            _merge_delta(response, delta)
        if finish is not None:
            response.finishes.append(finish)

    def _finish(self, response: GenerateResponse) -> None:
        if self._candidates is not None:
            best = sorted(self._candidates, key=_Candidate.score, reverse=True)[: self._returned]
            for index, candidate in enumerate(best):
                response.deltas.append(candidate.joined(index, self._plan.echo))
                if candidate.finish is not None:
                    candidate.finish.index = index
                    response.finishes.append(candidate.finish)
        response.usage.CopyFrom(self._usage())

    def _echo_response(self) -> GenerateResponse:
        text = self._plan.echo
        return GenerateResponse(
            deltas=[ChoiceDelta(index=index, text=text) for index in range(self._returned)]
        )

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._plan.prompt_tokens,
            completion_tokens=sum(choice.tokens for choice in self._choices),
            cached_tokens=self._cached_tokens,
            reasoning_tokens=sum(choice.reasoning_tokens() for choice in self._choices),
        )


@dataclass(slots=True)
class _Candidate:
    """The output of one candidate of best_of, withheld until all candidates have ended.

    Text is joined once: a protobuf message keeps each string that was ever assigned to a field.
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
        self.delta.index = index
        self.delta.text = echo + "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta

    def score(self) -> float:
        """The mean log probability of a token."""
        return self.logprob / max(self.tokens, 1)


def _merge_delta(response: GenerateResponse, delta: ChoiceDelta) -> None:
    """Adds a delta to the response, which has at most one per choice."""
    for present in response.deltas:
        if present.index == delta.index:
            text, reasoning = present.text + delta.text, present.reasoning + delta.reasoning
            present.MergeFrom(delta)
            present.text, present.reasoning = text, reasoning
            return
    response.deltas.append(delta)


class _Choice:
    """The state of one continuation, or of one copy of it."""

    def __init__(self, index: int, plan: OutputPlan, vocabulary: Vocabulary) -> None:
        request = plan.request
        self.index = index
        self.tokens = 0
        self._plan = plan
        self._parser = plan.parsing.choice(vocabulary) if plan.parsing else None
        self._arguments: dict[int, list[str]] = {}
        self._logprobs: LogprobStream | None = None
        if request.output.HasField("logprobs") and not plan.discard:
            self._logprobs = LogprobStream(
                vocabulary,
                request.output.logprobs,
                cut=bool(request.stopping.strings),
                blank_special=plan.skip_special_tokens,
            )

    def feed(self, output: Any) -> tuple[ChoiceDelta | None, ChoiceFinish | None]:
        """Translates a CompletionOutput; either part is None if there is nothing to emit."""
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
            messages = self._parser.feed(output.text, token_ids, output.finish_reason)
            self._add_parsed(messages, delta)
        if self._plan.request.output.token_ids:
            delta.token_ids.extend(token_ids)
        if self._logprobs is not None:
            self._add_logprobs(self._logprobs, output, token_ids, delta)
        finish = self._finish(output) if ended else None
        has_output = delta.text or delta.reasoning or delta.tool_calls or delta.token_ids
        if self._plan.request.output.hide_reasoning:
            # The delta is emitted even so: it shows that the model makes output.
            delta.ClearField("reasoning")
        return delta if has_output or delta.HasField("logprobs") else None, finish

    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens() if self._parser else 0

    def _add_parsed(self, messages: Iterator[Any], delta: ChoiceDelta) -> None:
        texts: list[str] = []
        reasoning: list[str] = []
        for message in messages:
            texts.append(message.content or "")
            reasoning.append(message.reasoning or "")
            for call in message.tool_calls or ():
                if self._plan.single_call and call.index > 0:
                    continue
                arguments = (call.function and call.function.arguments) or ""
                self._arguments.setdefault(call.index, []).append(arguments)
                delta.tool_calls.add(
                    index=call.index,
                    id=(call.id or "").replace(_VLLM_CALL_ID, "call_"),
                    name=(call.function and call.function.name) or "",
                    arguments=arguments,
                )
        delta.text = "".join(texts)
        delta.reasoning = "".join(reasoning)

    def _add_logprobs(
        self, stream: LogprobStream, output: Any, token_ids: list[int], delta: ChoiceDelta
    ) -> None:
        stream.add(output.text, token_ids, output.logprobs or ())
        ended = output.finish_reason is not None
        by_string = ended and isinstance(output.stop_reason, str)
        keeps_stop_token = self._plan.request.stopping.include_stop_string
        if output.finish_reason == "stop" and not by_string and not keeps_stop_token:
            stream.drop_last()
        if ready := stream.take(ended=ended, ended_by_string=by_string):
            delta.logprobs.CopyFrom(ready)

    def _finish(self, output: Any) -> ChoiceFinish:
        stopping = self._plan.request.stopping
        finish = ChoiceFinish(index=self.index)
        if output.finish_reason == "length":
            finish.reason = FINISH_REASON_LENGTH
        elif output.finish_reason == "abort":
            raise InferenceError("engine_died", "The engine dropped the request.")
        elif output.finish_reason == "error":
            raise internal_error()
        elif self._arguments and (output.stop_reason is None or are_whole(self._arguments)):
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
