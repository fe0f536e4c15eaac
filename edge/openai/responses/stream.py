"""POST /v1/responses: the response as server-sent events.

Each event has a name, which its `type` repeats, and a sequence number from 0. Every change of the
output (text/blocks.py) becomes these events:

  change                events
  --------------------  --------------------------------------------------------------------------
  (the opening)         response.created, response.in_progress
  text opens            output_item.added, content_part.added
  text grows            output_text.delta
  text closes           output_text.done, content_part.done, output_item.done
  reasoning             as text, with reasoning_text.delta and reasoning_text.done
  call opens            output_item.added
  call grows            function_call_arguments.delta; of a custom tool custom_tool_call_input.delta
  call closes           function_call_arguments.done or custom_tool_call_input.done,
                        output_item.done
  (the end)             response.completed or response.incomplete, [DONE]
  (a failure)           response.failed, [DONE]

All names begin with `response.`. What runs out of tokens is incomplete: the open item, which is the
last one, and the response. After a failure the open item has no events of its own, and the failed
response has all items so far.

This is the hot path: nearly every token becomes an event. A delta differs from the one before it
only in its text and number, so everything else is encoded once for each item, as a template:

  part       content
  ---------  -------------------------------------------------------------------------------------
  head       event: response.output_text.delta and data: {"type":"response.output_text.delta",
             "item_id":"msg_...","output_index":0,"content_index":0,"delta":
  text       "Hello"
  middle     ,"logprobs":[],"sequence_number":
  number     5
  tail       } and an empty line

tests/contract/test_openapi.py checks all events against edge/openapi/response_events.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edge.openai import sse
from edge.openai.errors import OpenAIError
from edge.openai.responses.custom_input import InputReader, input_of
from edge.openai.responses.output_schema import OutputReasoningText, OutputText, Response
from edge.openai.responses.response import ResponseOptions, ResponseState
from edge.openai.text.blocks import Block, Blocks, Kind
from edge.openai.text.logprobs import chat_logprobs
from edge.openai.text.translator import Identity, admission, encode
from edge.openai.translator import StreamTranslator
from isthmus.v1.generate_pb2 import GenerateResponse, Logprobs
from isthmus.v1.usage_pb2 import Admitted

_TAIL: Final = b"}" + sse.TAIL
_NUMBER: Final = b',"sequence_number":'
_NO_LOGPROBS: Final = b',"logprobs":[]'
# Read for each token: an enum's members are slower to read than globals.
_TEXT: Final = Kind.TEXT


class ResponseStream(StreamTranslator[GenerateResponse]):
    """The events of one response, which has one source."""

    def __init__(self, options: ResponseOptions, identity: Identity) -> None:
        self._blocks = Blocks(self)
        # Called for each token, so it has no frame of its own.
        self.text = self._blocks.text
        self._state = ResponseState(options, identity, self._blocks)
        # The opening has 0 and 1. Output that comes before it is held, and follows it.
        self._sequence = 2
        # The open item's id and place, and the JSON of a delta before and after its text.
        self._place: dict[str, object] = {}
        self._head = b""
        self._middle = b""
        # Reads the input of the open item, if that is a call of a custom tool.
        self._custom: InputReader | None = None

    def source(self, _number: int) -> ResponseStream:
        return self

    def admit(self, part: GenerateResponse | None) -> Admitted | None:
        return admission(part)

    def opening(self) -> bytes:
        """Two events: the response has been made, and it is in progress."""
        begun = self._state.begun()
        return _event("created", {"response": begun}, 0) + _event(
            "in_progress", {"response": begun}, 1
        )

    def part(self, part: GenerateResponse) -> bytes:
        self._state.count(part)
        return self._blocks.part(part)

    def closing(self) -> bytes:
        """The whole response, and [DONE].

        Raises:
            OpenAIError: 500, the output never finished.
        """
        response = self._state.ended()
        return self._response(response.status, response) + sse.DONE

    def failed(self, error: OpenAIError) -> bytes:
        return self._response("failed", self._state.failed(error)) + sse.DONE

    # The events of a block; Blocks calls these.

    def opened(self, block: Block) -> bytes:
        state = self._state
        self._place = {"item_id": state.id_of(block), "output_index": block.index}
        item = {"output_index": block.index, "item": state.item(block, "in_progress")}
        added = self._event("output_item.added", item)
        if block.kind is Kind.CALL:
            custom = state.options.tools.called(block.name).custom
            self._custom = InputReader() if custom else None
            name = "custom_tool_call_input" if custom else "function_call_arguments"
        else:
            self._place["content_index"] = 0
            is_text = block.kind is _TEXT
            part = OutputText(text="") if is_text else OutputReasoningText(text="")
            added += self._event("content_part.added", self._place | {"part": part})
            name = "output_text" if is_text else "reasoning_text"
        self._head = _head(f"{name}.delta", self._place) + b',"delta":'
        self._middle = (_NO_LOGPROBS if block.kind is _TEXT else b"") + _NUMBER
        return added

    def grown(self, block: Block, text: str, logprobs: Logprobs | None) -> bytes:
        if logprobs is None and block.kind is _TEXT:
            # The same as `_delta`, without its call: nearly every token takes this branch.
            number = self._sequence
            self._sequence = number + 1
            return b"".join((self._head, encode(text), self._middle, b"%d" % number, _TAIL))
        if self._custom is not None:
            text = self._custom.feed(text)
        top = self._state.options.top_logprobs
        if block.kind is _TEXT and logprobs is not None and top is not None:
            found = encode(chat_logprobs(logprobs, top))
            return self._delta(text, b',"logprobs":%b%b' % (found, _NUMBER))
        return self._delta(text, self._middle) if text else b""

    def closed(self, block: Block) -> bytes:
        state = self._state
        item = state.item(block, "completed" if block.complete else "incomplete")
        if block.kind is Kind.CALL:
            events = self._call_done(block)
        elif block.kind is _TEXT:
            part = state.output_text(block)
            done = {"text": part.text, "logprobs": part.logprobs}
            events = self._event("output_text.done", self._place | done)
            events += self._event("content_part.done", self._place | {"part": part})
        else:
            events = self._event("reasoning_text.done", self._place | {"text": block.text})
            thought = OutputReasoningText(text=block.text)
            events += self._event("content_part.done", self._place | {"part": thought})
        ended = {"output_index": block.index, "item": item}
        return events + self._event("output_item.done", ended)

    def _call_done(self, block: Block) -> bytes:
        reader, self._custom = self._custom, None
        if reader is None:
            done = self._place | {"arguments": block.text}
            return self._event("function_call_arguments.done", done)
        rest = reader.rest()
        events = self._delta(rest, self._middle) if rest else b""
        text = input_of(block.text)
        return events + self._event("custom_tool_call_input.done", self._place | {"input": text})

    def _delta(self, text: str, middle: bytes) -> bytes:
        number = self._sequence
        self._sequence = number + 1
        return b"".join((self._head, encode(text), middle, b"%d" % number, _TAIL))

    def _response(self, name: str, response: Response) -> bytes:
        return self._event(name, {"response": response})

    def _event(self, name: str, members: Mapping[str, object]) -> bytes:
        number = self._sequence
        self._sequence = number + 1
        return _event(name, members, number)


def _event(name: str, members: Mapping[str, object], number: int) -> bytes:
    return b"".join((_head(name, members), _NUMBER, b"%d" % number, _TAIL))


def _head(name: str, members: Mapping[str, object]) -> bytes:
    """An event up to the last of its members, its data unclosed."""
    type_ = f"response.{name}"
    data = encode({"type": type_, **members})[:-1]
    return b"event: %b\n%b%b" % (type_.encode(), sse.HEAD, data)
