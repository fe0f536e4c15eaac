"""Legacy completions: the contract's answer to one document or to events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from edge.openai import errors
from edge.openai.completions.schema import Completion, CompletionChoice
from edge.openai.text.logprobs import CompletionLogprobs, completion_logprobs, prompt_logprobs
from edge.openai.text.translator import UNKNOWN_FINGERPRINT, Identity, finish_reason
from edge.openai.text.usage import UsageSum
from edge.openai.translator import Translator
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse, Logprobs, TokenLogprob
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode


class CompletionOptions(Struct, frozen=True, gc=False):
    """What the request says about the form of its answer.

    Attributes:
        logprobs: Alternatives a token; None for no log probabilities.
        prompt_logprobs: Whether the prompt's are answered in vLLM's shape.
        prompt_characters: The length of each prompt; 0 for token ids.
    """

    model: str
    prompt_characters: Sequence[int]
    n: int = 1
    include_usage: bool = False
    logprobs: int | None = None
    echo: bool = False
    prompt_logprobs: bool = False


class Scores:
    """Log probabilities of one prompt's choices.

    An echoed prompt's tokens come before those of each choice.
    """

    def __init__(self, options: CompletionOptions, prompt: int) -> None:
        self._top = options.logprobs
        self._echo = options.echo
        self._first_offset = 0 if options.echo else options.prompt_characters[prompt]
        self._prompt_tokens: Sequence[TokenLogprob] = ()
        # Characters before the next token, by choice.
        self._offsets: dict[int, int] = {}

    def take_prompt(self, logprobs: Logprobs) -> None:
        self._prompt_tokens = logprobs.tokens

    def lists(self, delta: ChoiceDelta) -> CompletionLogprobs | None:
        """The lists for one delta; None where there is nothing to list."""
        if self._top is None:
            return None
        tokens: list[TokenLogprob] = []
        choice = delta.index
        if choice not in self._offsets:
            self._offsets[choice] = self._first_offset
            tokens += self._prompt_tokens if self._echo else ()
        tokens += delta.logprobs.tokens
        if not tokens:
            return None
        lists, self._offsets[choice] = completion_logprobs(tokens, self._top, self._offsets[choice])
        return lists


class CompletionResponse(Translator[GenerateResponse]):
    """The document of one request; each prompt is a source, and choice = prompt * n + sample."""

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._usage = UsageSum()
        prompts = range(len(options.prompt_characters))
        self._prompts = [_PromptResponse(options, number, self._usage) for number in prompts]

    def source(self, number: int) -> _PromptResponse:
        """The translator of one prompt."""
        return self._prompts[number]

    def document(self) -> bytes:
        """The document.

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        choices: list[CompletionChoice] = []
        fingerprint = UNKNOWN_FINGERPRINT
        for prompt in self._prompts:
            choices += prompt.finished_choices()
            fingerprint = prompt.fingerprint or fingerprint
        return _encode(
            Completion(
                id=self._identity.completion_id,
                created=self._identity.created,
                model=self._options.model,
                system_fingerprint=fingerprint,
                choices=choices,
                usage=self._usage.total(),
            )
        )


class _PromptResponse:
    """What was collected of one prompt's choices."""

    def __init__(self, options: CompletionOptions, number: int, usage: UsageSum) -> None:
        self.fingerprint = ""
        self._usage = usage
        self._options = options
        self._scores = Scores(options, number)
        self._choices = [
            CompletionChoice(text="", index=number * options.n + i) for i in range(options.n)
        ]
        # Joined once at the end: adding to a string copies it.
        self._texts: list[list[str]] = [[] for _ in self._choices]

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        if part is None or not part.HasField("admitted"):
            return None
        self.fingerprint = part.admitted.system_fingerprint
        return part.admitted

    def text(self, text: str) -> bytes:
        self._texts[0].append(text)
        return b""

    def part(self, part: GenerateResponse) -> bytes:
        """Adds deltas, then finishes; skips choices that are unknown or finished."""
        if part.HasField("prompt_logprobs"):
            self._scores.take_prompt(part.prompt_logprobs)
            if self._options.prompt_logprobs:
                rendered = prompt_logprobs(part.prompt_logprobs)
                for choice in self._choices:
                    choice.prompt_logprobs = rendered
        for delta in part.deltas:
            if (open_choice := self._unfinished(delta.index)) is not None:
                self._texts[delta.index].append(delta.text)
                lists = self._scores.lists(delta)
                if lists and open_choice.logprobs:
                    open_choice.logprobs.extend(lists)
                elif lists:
                    open_choice.logprobs = lists
        for finish in part.finishes:
            if (open_choice := self._unfinished(finish.index)) is not None:
                open_choice.finish_reason = finish_reason(finish.reason)
        if part.HasField("usage"):
            self._usage.add(part.usage)
        return b""

    def finished_choices(self) -> list[CompletionChoice]:
        for choice, texts in zip(self._choices, self._texts, strict=True):
            if choice.finish_reason is None:
                raise errors.internal_error()
            choice.text = "".join(texts)
        return self._choices

    def _unfinished(self, index: int) -> CompletionChoice | None:
        if index >= len(self._choices) or self._choices[index].finish_reason:
            return None
        return self._choices[index]
