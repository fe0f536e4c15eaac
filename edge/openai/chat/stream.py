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

from edge.openai.chat.response import ChatOptions
from edge.openai.text.logprobs import ChatLogprobs, chat_logprobs
from edge.openai.text.translator import Identity, TextStream, admission, encode, finish_reason
from isthmus.v1.generate_pb2 import ChoiceDelta, ChoiceFinish, GenerateResponse, ToolCallDelta
from isthmus.v1.usage_pb2 import Admitted

_NO_LOGPROBS: Final = b"null"
_EMPTY_LOGPROBS: Final = b'{"content":[],"refusal":null}'


class ChatStream(TextStream[ChatOptions]):
    """The events of one chat completion, which has one source."""

    def __init__(self, options: ChatOptions, identity: Identity) -> None:
        super().__init__(options, identity, choices=options.n)
        self._logprobs = _EMPTY_LOGPROBS if options.logprobs else _NO_LOGPROBS
        self._text_heads: list[bytes] = []
        self._text_tail = b'},"logprobs":%b,"finish_reason":null}]%b' % (self._logprobs, self.tail)
        # _text_heads[0], as an attribute because it is read for each token.
        self._first_text_head = b""
        # Tool calls of each choice whose first piece was sent.
        self._begun: list[set[int]] = [set() for _ in range(options.n)]
        # Sent with the first chunk.
        self._prompt_token_ids = b""

    def source(self, _number: int) -> ChatStream:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        admitted = admission(part)
        if admitted is not None:
            self.usage.count(prompt=admitted.prompt_tokens)
        if part is not None and self.options.token_ids:
            self._prompt_token_ids = b',"prompt_token_ids":' + encode(list(part.prompt_token_ids))
        self._render_heads(admitted)
        return admitted

    def _render_heads(self, admitted: Admitted | None) -> None:
        tier = {"service_tier": "default"} if self.options.service_tier else {}
        self.render_head("chat.completion.chunk", admitted, **tier)
        self._text_heads = [
            b'%b{"index":%d,"delta":{"content":' % (self.head, index)
            for index in range(self.options.n)
        ]
        self._first_text_head = self._text_heads[0]

    def opening(self) -> bytes:
        """The role chunk of each choice. Its content is null if the model must call a tool."""
        if not self.head:
            self._render_heads(None)
        content = None if self.options.calls_forced else ""
        delta = encode({"role": "assistant", "content": content, "refusal": None})
        return b"".join(
            self._chunk(
                index,
                delta,
                self._logprobs,
                tail=(b"" if index else self._prompt_token_ids) + self.opening_tail,
            )
            for index in range(self.options.n)
        )

    def text(self, text: str) -> bytes:
        if self.changing:
            return self._chunk(0, encode({"content": text}), self._logprobs)
        return b"".join((self._first_text_head, encode(text), self._text_tail))

    def part(self, part: GenerateResponse) -> bytes:
        """Chunks of deltas, then of finishes; skips choices that are unknown or finished."""
        chunks = [self._delta(delta) for delta in part.deltas[:] if delta.index in self.unfinished]
        chunks += [
            self._finish(finish) for finish in part.finishes[:] if finish.index in self.unfinished
        ]
        if part.HasField("usage"):
            self.usage.add(part.usage)
        return b"".join(chunks)

    def _delta(self, delta: ChoiceDelta) -> bytes:
        index = delta.index
        if not (self.changing or delta.HasField("logprobs") or delta.tool_calls or delta.reasoning):
            if not delta.text:
                return b""
            return b"".join((self._text_heads[index], encode(delta.text), self._text_tail))
        rendered: dict[str, object] = {}
        if delta.reasoning:
            # vLLM's name, and DeepSeek's, which many clients read.
            rendered["reasoning"] = rendered["reasoning_content"] = delta.reasoning
        if delta.text:
            rendered["content"] = delta.text
        first, *rest = self._tool_calls(index, delta.tool_calls) or [{}]
        rendered |= first
        logprobs = self._logprobs
        if self.options.logprobs and delta.HasField("logprobs"):
            # Tokens whose text has not been sent yet have log probabilities too.
            rendered = rendered or {"content": ""}
            logprobs = encode(
                ChatLogprobs(chat_logprobs(delta.logprobs, self.options.top_logprobs))
            )
        token_ids = b""
        if self.changing:
            self.usage.count(completion=len(delta.token_ids))
            if self.options.token_ids and delta.token_ids:
                token_ids = b',"token_ids":' + encode(list(delta.token_ids))
                rendered = rendered or {"content": ""}
        if not rendered:
            return b""
        chunks = [self._chunk(index, encode(rendered), logprobs, token_ids=token_ids)]
        chunks += [self._chunk(index, encode(call), self._logprobs) for call in rest]
        return b"".join(chunks)

    def _tool_calls(self, index: int, deltas: Iterable[ToolCallDelta]) -> list[dict[str, object]]:
        """The `tool_calls` or `function_call` of each chunk's delta.

        A chunk has one tool call, as OpenAI's have: some clients read no further. Only the first
        piece of a tool call has id, type and name: clients concatenate the strings of all pieces.
        """
        begun = self._begun[index]
        functions: dict[int, dict[str, str]] = {}
        tool_calls: list[dict[str, object]] = []
        for delta in deltas:
            number = delta.index
            if number in functions:
                functions[number]["arguments"] += delta.arguments
                continue
            first = number not in begun
            begun.add(number)
            functions[number] = {"name": delta.name} if first else {}
            functions[number]["arguments"] = delta.arguments
            opening = {"id": delta.id, "type": "function"} if first else {}
            tool_calls.append({"index": number, **opening, "function": functions[number]})
        if self.options.legacy_functions:
            # The legacy form has at most one call.
            return [{"function_call": functions[0]}] if 0 in functions else []
        return [{"tool_calls": [call]} for call in tool_calls]

    def _finish(self, finish: ChoiceFinish) -> bytes:
        self.unfinished.discard(finish.index)
        reason = finish_reason(finish.reason, legacy_functions=self.options.legacy_functions)
        return self._chunk(finish.index, b"{}", _NO_LOGPROBS, b'"%b"' % reason.encode())

    def _chunk(
        self,
        index: int,
        delta: bytes,
        logprobs: bytes,
        finish: bytes = b"null",
        *,
        token_ids: bytes = b"",
        tail: bytes = b"",
    ) -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b}]%b' % (
            self.head,
            index,
            delta,
            logprobs,
            finish,
            token_ids,
            tail or self.tail,
        )
