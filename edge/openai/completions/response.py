"""POST /v1/completions: the response as one document."""

from __future__ import annotations

from collections.abc import Sequence

from edge.openai import errors
from edge.openai.completions.schema import Completion, CompletionChoice
from edge.openai.text.logprobs import (
    CompletionLogprobs,
    TextPosition,
    completion_logprobs,
    prompt_logprobs,
)
from edge.openai.text.translator import (
    UNKNOWN_FINGERPRINT,
    Identity,
    TextDocument,
    TextOptions,
    UsageSum,
    admission,
    encode,
    finish_reason,
)
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateResponse, Logprobs, TokenLogprob
from isthmus.v1.usage_pb2 import Admitted


class CompletionOptions(TextOptions, frozen=True, gc=False, kw_only=True):
    """Completion parameters that decide how a response is written.

    Attributes:
        prompt_characters: Length of each prompt, 0 for token ids: without `echo`, the first
            `text_offset` of its choices.
        logprobs: Alternatives listed for each token; None for no log probabilities.
        echo: Whether the log probabilities of a choice begin with those of its prompt.
        prompt_logprobs: Whether choices have `prompt_logprobs`, as in vLLM's API.
    """

    prompt_characters: Sequence[int]
    logprobs: int | None = None
    echo: bool = False
    prompt_logprobs: bool = False


class ChoiceLogprobs:
    """Renders the log probabilities of one prompt's choices.

    With `echo` the prompt's tokens come before those of each choice.
    """

    def __init__(self, options: CompletionOptions, prompt: int) -> None:
        self._top = options.logprobs
        self._echo = options.echo
        self._first_offset = 0 if options.echo else options.prompt_characters[prompt]
        self._prompt_tokens: Sequence[TokenLogprob] = ()
        # The place of the next token, by the choice's index within the prompt.
        self._positions: dict[int, TextPosition] = {}

    def take_prompt(self, logprobs: Logprobs) -> None:
        self._prompt_tokens = logprobs.tokens

    def render(self, delta: ChoiceDelta) -> CompletionLogprobs | None:
        """The log probabilities of one delta; None if it has none or none were requested."""
        if self._top is None:
            return None
        choice = delta.index
        rendered = CompletionLogprobs([], [], [], [])
        position = self._positions.get(choice)
        if position is None:
            position = self._positions[choice] = TextPosition(self._first_offset)
            if self._echo:
                rendered = completion_logprobs(self._prompt_tokens, self._top, position)
                position.end_text()
        rendered.extend(completion_logprobs(delta.logprobs.tokens, self._top, position))
        return rendered if rendered.tokens else None


class CompletionResponse(TextDocument[CompletionOptions]):
    """The document of one request; each prompt is a source, and choice = prompt * n + sample."""

    def __init__(self, options: CompletionOptions, identity: Identity) -> None:
        super().__init__(options, identity)
        prompts = range(len(options.prompt_characters))
        self._prompts = [_PromptResponse(options, number, self._usage) for number in prompts]

    def source(self, number: int) -> _PromptResponse:
        return self._prompts[number]

    def document(self) -> bytes:
        choices: list[CompletionChoice] = []
        fingerprint = UNKNOWN_FINGERPRINT
        for prompt in self._prompts:
            choices += prompt.finished_choices()
            fingerprint = prompt.fingerprint or fingerprint
        return encode(
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
    """Collects the output of one prompt's choices."""

    def __init__(self, options: CompletionOptions, number: int, usage: UsageSum) -> None:
        self.fingerprint = ""
        self._usage = usage
        self._options = options
        self._logprobs = ChoiceLogprobs(options, number)
        self._choices = [
            CompletionChoice(text="", index=number * options.n + i) for i in range(options.n)
        ]
        if options.logprobs is not None:
            for choice in self._choices:
                choice.logprobs = CompletionLogprobs([], [], [], [])
        # Joined once at the end: adding to a string copies it.
        self._texts: list[list[str]] = [[] for _ in self._choices]

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        if admitted := admission(part):
            self.fingerprint = admitted.system_fingerprint
        return admitted

    def text(self, text: str) -> bytes:
        self._texts[0].append(text)
        return b""

    def part(self, part: GenerateResponse) -> bytes:
        """Adds deltas, then finishes; skips choices that are unknown or finished."""
        if self._options.token_ids:
            self._take_token_ids(part)
        if part.HasField("prompt_logprobs"):
            self._logprobs.take_prompt(part.prompt_logprobs)
            if self._options.prompt_logprobs:
                rendered = prompt_logprobs(part.prompt_logprobs)
                for choice in self._choices:
                    choice.prompt_logprobs = rendered
        for delta in part.deltas[:]:
            if (open_choice := self._unfinished(delta.index)) is not None:
                self._texts[delta.index].append(delta.text)
                logprobs = self._logprobs.render(delta)
                if logprobs and open_choice.logprobs:
                    open_choice.logprobs.extend(logprobs)
        for finish in part.finishes[:]:
            if (open_choice := self._unfinished(finish.index)) is not None:
                open_choice.finish_reason = finish_reason(finish.reason)
        if part.HasField("usage"):
            self._usage.add(part.usage)
        return b""

    def _take_token_ids(self, part: GenerateResponse) -> None:
        if part.prompt_token_ids:
            for choice in self._choices:
                choice.prompt_token_ids = list(part.prompt_token_ids)
        for delta in part.deltas[:]:
            if (open_choice := self._unfinished(delta.index)) is not None:
                open_choice.token_ids = [*(open_choice.token_ids or ()), *delta.token_ids]

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
