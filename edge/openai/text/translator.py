"""Code that the responses of chat and completions share."""

from __future__ import annotations

from typing import Annotated, Final, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from edge.openai import errors, sse
from edge.openai.translator import Document, StreamTranslator
from isthmus.v1 import usage_pb2
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    GenerateResponse,
)

# The system_fingerprint of a service that sends none; clients may rely on a non-empty string.
UNKNOWN_FINGERPRINT: Final = "fp_unknown"
encode: Final = msgspec.json.Encoder().encode


class Identity(Struct, frozen=True, gc=False):
    """Id and time of a response; translators are pure functions and cannot make them.

    Attributes:
        completion_id: "chatcmpl-...", "cmpl-..." and the like.
        created: Seconds since the Unix epoch.
    """

    completion_id: str
    created: int


class TextOptions(Struct, frozen=True, gc=False, kw_only=True):
    """The parameters of a request that decide how its response is written.

    Attributes:
        model: Name of the model to echo.
        n: Number of choices for each prompt.
        include_usage: Whether a stream ends with a usage chunk.
        running_usage: Whether each chunk of a stream has the usage so far.
        token_ids: Whether the response has the ids of the tokens of prompt and output.
    """

    model: str
    n: int = 1
    include_usage: bool = False
    running_usage: bool = False
    token_ids: bool = False


OptionsT = TypeVar("OptionsT", bound=TextOptions)
_FINISH_REASONS: Final[dict[int, str]] = {
    FINISH_REASON_STOP: "stop",
    FINISH_REASON_LENGTH: "length",
    FINISH_REASON_TOOL_CALLS: "tool_calls",
    FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_LEGACY_CALL: Final = "function_call"
ChatFinishReason = Annotated[
    str, Meta(extra_json_schema={"enum": [*_FINISH_REASONS.values(), _LEGACY_CALL]})
]


def finish_reason(reason: int, *, legacy_functions: bool = False) -> str:
    """OpenAI's `finish_reason`; "stop" for a reason of a newer contract."""
    if legacy_functions and reason == FINISH_REASON_TOOL_CALLS:
        return _LEGACY_CALL
    return _FINISH_REASONS.get(reason, "stop")


class PromptTokensDetails(Struct):
    """Details of prompt_tokens."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct):
    """Details of completion_tokens."""

    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct):
    """Always whole: details are objects, never null."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class RunningUsage(Struct):
    """The tokens of the prompt, and those generated so far."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageSum:
    """The sum over the sources of a request."""

    _prompt = _completion = _cached = _reasoning = 0
    _running_prompt = _running_completion = 0

    def count(self, *, prompt: int = 0, completion: int = 0) -> None:
        """Counts tokens of a stream before the service sends its usage."""
        self._running_prompt += prompt
        self._running_completion += completion

    def so_far(self) -> RunningUsage:
        prompt, completion = self._running_prompt, self._running_completion
        return RunningUsage(prompt, completion, prompt + completion)

    def at_start(self) -> RunningUsage:
        return RunningUsage(self._running_prompt, 0, self._running_prompt)

    def add(self, usage: usage_pb2.Usage) -> None:
        self._prompt += usage.prompt_tokens
        self._completion += usage.completion_tokens
        self._cached += usage.cached_tokens
        self._reasoning += usage.reasoning_tokens

    def total(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._reasoning),
        )


def admission(part: GenerateResponse | None) -> usage_pb2.Admitted | None:
    """The admission in a message, if it has one."""
    return part.admitted if part is not None and part.HasField("admitted") else None


class TextDocument(Document[GenerateResponse], Generic[OptionsT]):
    """The document of one chat completion or completion."""

    def __init__(self, options: OptionsT, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._usage = UsageSum()


class TextStream(StreamTranslator[GenerateResponse], Generic[OptionsT]):
    """The events of one request.

    Attributes:
        options: How the events are written.
        usage: Tokens of all sources so far.
        unfinished: Choices without a finish reason yet.
        head: The beginning of every chunk, up to `"choices":[`; b"" before the first admission.
        changing: Whether chunks of plain text differ in more than their text, so that they cannot
            be rendered from a template.
    """

    def __init__(self, options: OptionsT, identity: Identity, choices: int) -> None:
        self.options = options
        self.usage = UsageSum()
        self.unfinished = set(range(choices))
        self.head = b""
        self.changing = options.token_ids or options.running_usage
        # With include_usage every chunk but the last has a null `usage`; without it, none.
        self._tail = (b',"usage":null}' if options.include_usage else b"}") + sse.TAIL
        self._identity = identity

    @property
    def tail(self) -> bytes:
        """The end of a chunk, after the list of choices."""
        return self._tail_with(self.usage.so_far())

    @property
    def opening_tail(self) -> bytes:
        """The end of a chunk before any output, which may be counted already."""
        return self._tail_with(self.usage.at_start())

    def _tail_with(self, usage: RunningUsage) -> bytes:
        if not self.options.running_usage:
            return self._tail
        return b',"usage":%b}%b' % (encode(usage), sse.TAIL)

    def render_head(self, kind: str, admitted: usage_pb2.Admitted | None, **more: str) -> None:
        """Renders `head`.

        Args:
            kind: `object` of the chunks.
            admitted: Holds the fingerprint.
            more: Further properties.
        """
        shared = {
            "id": self._identity.completion_id,
            "object": kind,
            "created": self._identity.created,
            "model": self.options.model,
            **more,
            "system_fingerprint": (admitted and admitted.system_fingerprint) or UNKNOWN_FINGERPRINT,
        }
        self.head = sse.HEAD + encode(shared)[:-1] + b',"choices":['

    def closing(self) -> bytes:
        """The usage chunk if it was requested, and [DONE].

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        if self.unfinished:
            raise errors.internal_error()
        if not self.options.include_usage:
            return sse.DONE
        usage = encode(self.usage.total())
        return b"".join((self.head, b'],"usage":', usage, b"}", sse.TAIL, sse.DONE))
