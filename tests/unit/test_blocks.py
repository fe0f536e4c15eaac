"""Blocks open, grow and close in order, however the output was split."""

from __future__ import annotations

import random

import pytest

from edge.openai.errors import OpenAIError
from edge.openai.text.blocks import Block, Blocks, Kind, NoWriter
from isthmus.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    ChoiceFinish,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
)

LOGPROBS = Logprobs(tokens=[TokenLogprob(token=LogprobEntry(id=1, text="a", logprob=-0.5))])


class Recorder:
    """A writer whose events are words."""

    def opened(self, block: Block) -> bytes:
        return f"({block.index}:{block.kind.name}{block.name} ".encode()

    def grown(self, block: Block, text: str, logprobs: Logprobs | None) -> bytes:
        assert block.text.endswith(text)
        return f"{text}{'' if logprobs is None else '%'} ".encode()

    def closed(self, block: Block) -> bytes:
        return b") " if block.complete else b"! "


def delta(**fields: object) -> GenerateResponse:
    return GenerateResponse(deltas=[ChoiceDelta(index=0, **fields)])  # type: ignore[arg-type]


def call(index: int, arguments: str = "", **opening: str) -> ToolCallDelta:
    return ToolCallDelta(index=index, arguments=arguments, **opening)


def finish(reason: int = FINISH_REASON_STOP, index: int = 0) -> GenerateResponse:
    return GenerateResponse(finishes=[ChoiceFinish(index=index, reason=reason)])  # type: ignore[arg-type]


def test_reasoning_text_and_calls_are_blocks_in_their_order() -> None:
    blocks = Blocks(Recorder())
    written = [
        blocks.part(delta(reasoning="Hm")),
        blocks.part(delta(reasoning="m")),
        blocks.text("a"),
        blocks.text("b"),
        blocks.part(delta(tool_calls=[call(0, id="c0", name="f")])),
        blocks.part(delta(tool_calls=[call(0, "{}"), call(1, "[", id="c1", name="g")])),
        blocks.part(delta(tool_calls=[call(1, "]")])),
        blocks.part(finish(FINISH_REASON_TOOL_CALLS)),
    ]
    assert b"".join(written).decode() == (
        "(0:REASONING Hm m ) (1:TEXT a b ) (2:CALLf {} ) (3:CALLg [ ] ) "
    )
    assert [block.text for block in blocks.blocks] == ["Hmm", "ab", "{}", "[]"]
    assert [block.call_id for block in blocks.blocks] == ["", "", "c0", "c1"]
    assert all(block.complete for block in blocks.blocks)


def test_text_after_a_call_is_another_block() -> None:
    blocks = Blocks(NoWriter())
    blocks.text("a")
    blocks.part(delta(tool_calls=[call(0, "{}", id="c", name="f")]))
    blocks.text("b")
    assert [block.kind for block in blocks.blocks] == [Kind.TEXT, Kind.CALL, Kind.TEXT]
    assert [block.index for block in blocks.blocks] == [0, 1, 2]


def test_block_that_is_open_when_the_tokens_run_out_is_incomplete() -> None:
    blocks = Blocks(Recorder())
    sent = blocks.text("a") + blocks.part(delta(reasoning="b"))
    sent += blocks.part(finish(FINISH_REASON_LENGTH))
    assert sent == b"(0:TEXT a ) (1:REASONING b ! "
    assert [block.complete for block in blocks.blocks] == [True, False]


def test_nothing_follows_the_finish() -> None:
    blocks = Blocks(Recorder())
    blocks.text("a")
    assert blocks.part(finish()) == b") "
    assert blocks.part(delta(text="late")) == b""
    assert blocks.part(finish(FINISH_REASON_LENGTH)) == b""
    assert blocks.finish is not None
    assert blocks.finish.reason == FINISH_REASON_STOP
    assert [block.text for block in blocks.blocks] == ["a"]


def test_other_choices_are_left_out() -> None:
    blocks = Blocks(Recorder())
    part = GenerateResponse(deltas=[ChoiceDelta(index=1, text="x")])
    assert blocks.part(part) == b""
    assert blocks.part(finish(index=1)) == b""
    assert blocks.finish is None


def test_log_probabilities_are_those_of_the_text() -> None:
    blocks = Blocks(Recorder())
    sent = blocks.part(delta(text="a", logprobs=LOGPROBS))
    # Its text is not sent yet.
    sent += blocks.part(delta(logprobs=LOGPROBS))
    sent += blocks.part(delta(reasoning="r", logprobs=LOGPROBS))
    assert sent == b"(0:TEXT a% % ) (1:REASONING r "
    assert [len(block.logprobs) for block in blocks.blocks] == [2, 0]


def test_output_without_blocks_has_a_finish() -> None:
    blocks = Blocks(Recorder())
    assert blocks.part(delta()) == b""
    assert blocks.part(finish()) == b""
    assert blocks.blocks == []


@pytest.mark.parametrize("late", [0, 1])
def test_piece_of_a_closed_call_is_an_error(late: int) -> None:
    blocks = Blocks(NoWriter())
    for index in (0, 1):
        blocks.part(delta(tool_calls=[call(index, "{", id=f"c{index}", name="f")]))
    blocks.text("a")
    with pytest.raises(OpenAIError) as raised:
        blocks.part(delta(tool_calls=[call(late, "}")]))
    assert raised.value.status == 500


@pytest.mark.parametrize("seed", range(20))
def test_blocks_do_not_depend_on_the_split(seed: int) -> None:
    dice = random.Random(seed)
    pieces = [delta(reasoning=each) for each in "think"] + [delta(text=each) for each in "speak"]
    pieces += [
        delta(tool_calls=[call(i, each, id=f"c{i}" if not at else "", name="f" if not at else "")])
        for i in range(2)
        for at, each in enumerate("{abc}")
    ]
    merged = [pieces[0]]
    for piece in pieces[1:]:
        if dice.random() < 0.5:
            # As a slow reader gets them.
            merged[-1].MergeFrom(piece)
        else:
            merged.append(piece)
    blocks = Blocks(NoWriter())
    for part in merged:
        blocks.part(part)
    blocks.part(finish())
    assert [block.text for block in blocks.blocks] == ["think", "speak", "{abc}", "{abc}"]
    assert [block.call_id for block in blocks.blocks] == ["", "", "c0", "c1"]
