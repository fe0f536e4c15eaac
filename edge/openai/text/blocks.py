"""The output of one choice as a list of blocks: reasoning, text, calls of tools.

Chat spreads its output over the members of one message. Responses and Messages write it as a list
instead, whose entries open, grow and close one after the other:

  delta of the service          effect
  ----------------------------  ----------------------------------------------------------------
  reasoning, text               continues the last block if it is of that kind, else opens one
  piece of a tool call          continues the last block if it is this call, else opens one
  finish                        closes the last block; nothing follows it

Opening a block closes the one before. A block that is open when the tokens run out is incomplete.
The documents read `blocks`; the streams pass a writer, which returns the events of each change.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from msgspec import Struct

from edge.openai import errors
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    ChoiceDelta,
    ChoiceFinish,
    GenerateResponse,
    Logprobs,
    ToolCallDelta,
)


class Kind(enum.Enum):
    """The kind of a block's content."""

    REASONING = enum.auto()
    TEXT = enum.auto()
    CALL = enum.auto()


# Read for each token: an enum's members are slower to read than globals.
_TEXT: Final = Kind.TEXT


class Block(Struct, kw_only=True):
    """One entry of a response's output.

    Attributes:
        index: Its place in the output, from 0.
        pieces: Its text, or the JSON text of the call's arguments, in order.
        logprobs: Of the text, where asked for.
        call_id: The call's id, and the name of its function; "" for other kinds.
        complete: False if the tokens ran out within it; set when it closes.
    """

    kind: Kind
    index: int
    pieces: list[str]
    logprobs: list[Logprobs]
    call_id: str = ""
    name: str = ""
    complete: bool = True

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class BlockWriter(Protocol):
    """Writes the events of a stream; each method returns those of one change, b"" for none."""

    def opened(self, block: Block) -> bytes: ...

    def grown(self, block: Block, text: str, logprobs: Logprobs | None) -> bytes:
        """`text` was added, which is already in `pieces`. It is "" if only `logprobs` came."""
        ...

    def closed(self, block: Block) -> bytes: ...


class NoWriter:
    """The writer of a response that is not streamed."""

    def opened(self, _block: Block) -> bytes:
        return b""

    def grown(self, _block: Block, _text: str, _logprobs: Logprobs | None) -> bytes:
        return b""

    def closed(self, _block: Block) -> bytes:
        return b""


class Blocks:
    """Collects the output of choice 0.

    Attributes:
        blocks: All so far; the last one is open until the finish.
        finish: The service's finish reason with what matched; None until it has come.
    """

    def __init__(self, writer: BlockWriter) -> None:
        self.blocks: list[Block] = []
        self.finish: ChoiceFinish | None = None
        self._writer = writer
        self._open: Block | None = None
        # The number of the call that is open.
        self._call = -1

    def text(self, text: str) -> bytes:
        """Adds plain text; called for most tokens."""
        block = self._open
        if block is not None and block.kind is _TEXT:
            block.pieces.append(text)
            return self._writer.grown(block, text, None)
        return b"" if self.finish is not None else self._add(Kind.TEXT, text)

    def part(self, part: GenerateResponse) -> bytes:
        """Adds the deltas and the finish of a message, in this order.

        Raises:
            OpenAIError: 500, a piece of a call came after the call was closed.
        """
        events = [self._delta(delta) for delta in part.deltas[:] if delta.index == 0]
        for finish in part.finishes[:]:
            if finish.index == 0 and self.finish is None:
                self.finish = finish
                events.append(self._close(complete=finish.reason != FINISH_REASON_LENGTH))
        return b"".join(events)

    def _delta(self, delta: ChoiceDelta) -> bytes:
        if self.finish is not None:
            return b""
        events = b""
        logprobs = delta.logprobs if delta.HasField("logprobs") else None
        if delta.reasoning:
            events += self._add(Kind.REASONING, delta.reasoning)
        if delta.text or (logprobs is not None and not delta.reasoning and not delta.tool_calls):
            # Tokens whose text has not been sent yet have log probabilities too.
            events += self._add(Kind.TEXT, delta.text, logprobs)
        for piece in delta.tool_calls[:]:
            events += self._call_piece(piece)
        return events

    def _add(self, kind: Kind, text: str, logprobs: Logprobs | None = None) -> bytes:
        events, block = b"", self._open
        if block is None or block.kind is not kind:
            events, block = self._begin(kind)
        if text:
            block.pieces.append(text)
        if logprobs is not None:
            block.logprobs.append(logprobs)
        return events + self._writer.grown(block, text, logprobs)

    def _call_piece(self, piece: ToolCallDelta) -> bytes:
        events, block = b"", self._open
        if block is None or block.kind is not Kind.CALL or self._call != piece.index:
            if piece.index <= self._call:
                raise errors.internal_error()
            self._call = piece.index
            events, block = self._begin(Kind.CALL, piece.id, piece.name)
        if not piece.arguments:
            return events
        block.pieces.append(piece.arguments)
        return events + self._writer.grown(block, piece.arguments, None)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> tuple[bytes, Block]:
        events = self._close(complete=True)
        block = Block(
            kind=kind,
            index=len(self.blocks),
            pieces=[],
            logprobs=[],
            call_id=call_id,
            name=name,
        )
        self.blocks.append(block)
        self._open = block
        return events + self._writer.opened(block), block

    def _close(self, *, complete: bool) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        block.complete = complete
        return self._writer.closed(block)
