"""POST /v1/chat/completions: the response as server-sent events.

This is the hot path: nearly every token becomes an event. A chunk of plain text differs from the
chunk before it only in its text, so everything else is encoded once, as a template:

  part       content                                                         when it is rendered
  ---------  --------------------------------------------------------------  -------------------
  text head  data: {"id":"...","object":"chat.completion.chunk",...,         with the admission,
             "system_fingerprint":"...","choices":[{"index":0,"delta":       for each choice
             {"content":
  text       "Hello"                                                         for each chunk
  text tail  },"logprobs":null,"finish_reason":null}]} and an empty line     with the request

The heads wait for the admission because it brings the fingerprint. All other chunks (role, tool
calls, reasoning, log probabilities, finish) are rendered by `_chunk`, which shares the head up to
`"choices":[`. tests/contract/test_openapi.py checks all chunks against ChatCompletionChunk in
edge/openapi/responses.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from edge.openai import errors, sse
from edge.openai.chat.response import ChatOptions, ToolCallMerger
from edge.openai.text.logprobs import ChatLogprobs, chat_logprobs
from edge.openai.text.translator import UNKNOWN_FINGERPRINT, Identity, UsageSum, finish_reason
from edge.openai.translator import StreamTranslator
from isthmus.v1.generate_pb2 import ChoiceDelta, ChoiceFinish, GenerateResponse, ToolCallDelta
from isthmus.v1.usage_pb2 import Admitted

_encode: Final = msgspec.json.Encoder().encode
_NO_LOGPROBS: Final = b"null"
_EMPTY_LOGPROBS: Final = b'{"content":[],"refusal":null}'


class ChatStream(StreamTranslator[GenerateResponse]):
    """The events of one chat, which has one source."""

    def __init__(self, options: ChatOptions, identity: Identity) -> None:
        self._options = options
        self._identity = identity
        self._head = b""
        # With include_usage every chunk but the last has a null `usage`; without it, none.
        self._tail = (b',"usage":null}' if options.include_usage else b"}") + sse.TAIL
        self._logprobs = _EMPTY_LOGPROBS if options.logprobs else _NO_LOGPROBS
        self._text_heads: list[bytes] = []
        self._text_tail = (
            b'},"logprobs":' + self._logprobs + b',"finish_reason":null}]' + self._tail
        )
        # _text_heads[0], as an attribute because it is read for each token.
        self._first_text_head = b""
        self._usage = UsageSum()
        self._unfinished = set(range(options.n))
        self._mergers = [ToolCallMerger() for _ in range(options.n)]

    def source(self, _number: int) -> ChatStream:
        """This object; a chat has one source."""
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        """Renders the heads, which hold the fingerprint."""
        admitted = part.admitted if part is not None and part.HasField("admitted") else None
        self._render_heads("" if admitted is None else admitted.system_fingerprint)
        return admitted

    def _render_heads(self, fingerprint: str) -> None:
        tier = {"service_tier": "default"} if self._options.service_tier else {}
        shared = {
            "id": self._identity.completion_id,
            "object": "chat.completion.chunk",
            "created": self._identity.created,
            "model": self._options.model,
            **tier,
            "system_fingerprint": fingerprint or UNKNOWN_FINGERPRINT,
        }
        self._head = sse.HEAD + _encode(shared)[:-1] + b',"choices":['
        self._text_heads = [
            b'%b{"index":%d,"delta":{"content":' % (self._head, index)
            for index in range(self._options.n)
        ]
        self._first_text_head = self._text_heads[0]

    def opening(self) -> bytes:
        """The role chunk of each choice. Its content is null if the model must call a tool."""
        if not self._head:
            self._render_heads("")
        content = None if self._options.calls_forced else ""
        delta = _encode({"role": "assistant", "content": content, "refusal": None})
        return b"".join(
            self._chunk(index, delta, self._logprobs) for index in range(self._options.n)
        )

    def text(self, text: str) -> bytes:
        """One content chunk of choice 0."""
        return b"".join((self._first_text_head, _encode(text), self._text_tail))

    def part(self, part: GenerateResponse) -> bytes:
        """Chunks of deltas, then of finishes; skips choices that are unknown or finished."""
        chunks = [self._delta(delta) for delta in part.deltas if delta.index in self._unfinished]
        chunks += [
            self._finish(finish) for finish in part.finishes if finish.index in self._unfinished
        ]
        if part.HasField("usage"):
            self._usage.add(part.usage)
        return b"".join(chunks)

    def closing(self) -> bytes:
        """The usage chunk if it was asked for, and [DONE].

        Raises:
            OpenAIError: 500, a choice never finished.
        """
        if self._unfinished:
            raise errors.internal_error()
        if not self._options.include_usage:
            return sse.DONE
        return b"".join((self._head, b'],"usage":', self._usage.json(), b"}", sse.TAIL, sse.DONE))

    def _delta(self, delta: ChoiceDelta) -> bytes:
        index = delta.index
        if not (delta.HasField("logprobs") or delta.tool_calls or delta.reasoning):
            if not delta.text:
                return b""
            return b"".join((self._text_heads[index], _encode(delta.text), self._text_tail))
        rendered: dict[str, object] = {}
        if delta.reasoning:
            # vLLM's name for it, and DeepSeek's, for which many clients were written.
            rendered["reasoning"] = rendered["reasoning_content"] = delta.reasoning
        if delta.text:
            rendered["content"] = delta.text
        rendered |= self._tool_calls(index, delta.tool_calls)
        logprobs = self._logprobs
        if self._options.logprobs and delta.HasField("logprobs"):
            # Tokens whose text has not been sent yet have log probabilities too.
            rendered = rendered or {"content": ""}
            logprobs = _encode(
                ChatLogprobs(chat_logprobs(delta.logprobs, self._options.top_logprobs))
            )
        if not rendered:
            return b""
        return self._chunk(index, _encode(rendered), logprobs)

    def _tool_calls(self, index: int, deltas: Iterable[ToolCallDelta]) -> dict[str, object]:
        """The `tool_calls` or `function_call` of a chunk's delta; {} if it has neither.

        Only the first piece of a tool call has id, type and name: clients concatenate the strings
        of all pieces.
        """
        tool_calls = []
        for piece in self._mergers[index].merge(deltas):
            function = {"name": piece.name} if piece.first else {}
            function["arguments"] = piece.arguments
            if self._options.legacy_functions:
                # The legacy form has one call at most.
                if piece.index == 0:
                    return {"function_call": function}
                continue
            opening = {"id": piece.id, "type": "function"} if piece.first else {}
            tool_calls.append({"index": piece.index, **opening, "function": function})
        return {"tool_calls": tool_calls} if tool_calls else {}

    def _finish(self, finish: ChoiceFinish) -> bytes:
        self._unfinished.discard(finish.index)
        reason = finish_reason(finish.reason, legacy_functions=self._options.legacy_functions)
        return self._chunk(finish.index, b"{}", _NO_LOGPROBS, b'"%b"' % reason.encode())

    def _chunk(self, index: int, delta: bytes, logprobs: bytes, finish: bytes = b"null") -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head,
            index,
            delta,
            logprobs,
            finish,
            self._tail,
        )
