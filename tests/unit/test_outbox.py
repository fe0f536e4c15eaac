"""Output that the network has not taken yet: merged without a loss, and bounded."""

from __future__ import annotations

import random

import pytest

from contract.memory import SMALL_BYTES, Holding, MemoryBudget
from inference.errors import InferenceError
from inference.outbox import MessageOutbox, Outbox
from isthmus.v1.embed_pb2 import EmbedResponse
from isthmus.v1.generate_pb2 import (
    ChoiceDelta,
    ChoiceFinish,
    FinishReason,
    GenerateResponse,
    LogprobEntry,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
)
from isthmus.v1.image_pb2 import GenerateImageResponse, Image, Progress
from isthmus.v1.usage_pb2 import Admitted, Timings, Usage

MIB = 1024 * 1024


class Fills:
    """Notes what `on_filled` is called with."""

    def __init__(self, outbox: Outbox) -> None:
        self.sizes: list[int] = []
        outbox.on_filled = self.sizes.append


def delta(text: str, index: int = 0, **more: object) -> GenerateResponse:
    return GenerateResponse(deltas=[ChoiceDelta(index=index, text=text, **more)])  # type: ignore[arg-type]


def finish(index: int, reason: FinishReason = FinishReason.FINISH_REASON_STOP) -> GenerateResponse:
    return GenerateResponse(finishes=[ChoiceFinish(index=index, reason=reason)])


def logprobs(*tokens: str) -> Logprobs:
    return Logprobs(tokens=[TokenLogprob(token=LogprobEntry(text=token)) for token in tokens])


def test_text_alone_is_taken_as_a_string() -> None:
    outbox = Outbox()
    fills = Fills(outbox)
    assert not outbox
    assert outbox.take_text() is None
    outbox.text("a")
    outbox.text("é")
    assert outbox
    assert outbox.waiting_bytes == 2
    assert outbox.take_text() == "aé"
    assert not outbox
    assert (outbox.waiting_bytes, outbox.take_text()) == (0, None)
    assert fills.sizes == [1, 1]


def test_text_alone_may_be_taken_as_a_message() -> None:
    outbox = Outbox()
    outbox.text("a")
    outbox.text("b")
    assert outbox.take() == delta("ab")
    assert (bool(outbox), outbox.waiting_bytes) == (False, 0)
    assert outbox.take() == GenerateResponse()


def test_lone_message_is_taken_unchanged() -> None:
    outbox = Outbox()
    fills = Fills(outbox)
    part = delta("x", index=2)
    outbox.part(part)
    assert outbox
    assert outbox.take_text() is None
    assert outbox.waiting_bytes == part.ByteSize()
    assert outbox.take() is part
    assert (bool(outbox), outbox.waiting_bytes) == (False, 0)
    assert fills.sizes == [part.ByteSize()]


def test_lone_message_is_not_changed_by_what_follows() -> None:
    outbox = Outbox()
    part = delta("a")
    outbox.part(part)
    outbox.text("b")
    outbox.part(finish(0))
    assert part == delta("a")
    merged = outbox.take()
    assert merged.deltas == delta("ab").deltas
    assert merged.finishes == finish(0).finishes


def test_text_before_and_after_a_message_keeps_its_order() -> None:
    outbox = Outbox()
    outbox.text("a")
    outbox.part(delta("b"))
    assert outbox.take_text() is None
    outbox.text("c")
    outbox.part(delta("d"))
    outbox.text("e")
    assert outbox.take() == delta("abcde")
    outbox.text("f")
    assert outbox.take_text() == "f"


def test_text_after_an_admission_is_part_of_its_message() -> None:
    outbox = Outbox()
    admitted = GenerateResponse(admitted=Admitted(call_id="1"))
    outbox.part(admitted)
    outbox.text("a")
    assert outbox.take_text() is None
    outbox.text("b")
    taken = outbox.take()
    assert taken.admitted.call_id == "1"
    assert taken.deltas == delta("ab").deltas
    assert admitted == GenerateResponse(admitted=Admitted(call_id="1"))


def test_text_after_a_taken_message_is_text_again() -> None:
    outbox = Outbox()
    outbox.part(delta("a", index=1))
    outbox.take()
    outbox.text("b")
    assert outbox.take_text() == "b"


def test_messages_without_deltas_are_merged() -> None:
    outbox = Outbox()
    outbox.part(GenerateResponse(admitted=Admitted(call_id="1")))
    outbox.part(GenerateResponse(usage=Usage(prompt_tokens=3)))
    outbox.part(finish(0))
    outbox.part(finish(1))
    taken = outbox.take()
    assert taken.admitted.call_id == "1"
    assert taken.usage.prompt_tokens == 3
    assert [f.index for f in taken.finishes] == [0, 1]


def test_every_field_of_a_choice_is_kept() -> None:
    outbox = Outbox()
    outbox.part(delta("a", index=1, reasoning="r", token_ids=[1], logprobs=logprobs("a")))
    outbox.part(delta("c", index=0, tool_calls=[ToolCallDelta(index=0, arguments="{")]))
    outbox.part(delta("b", index=1, reasoning="s", token_ids=[2, 3], logprobs=logprobs("b", "c")))
    outbox.part(delta("d", index=0, tool_calls=[ToolCallDelta(index=0, arguments="}")]))
    first, second = outbox.take().deltas
    assert (first.index, first.text, first.reasoning) == (0, "cd", "")
    assert [call.arguments for call in first.tool_calls] == ["{", "}"]
    assert not first.HasField("logprobs")
    assert (second.index, second.text, second.reasoning) == (1, "ab", "rs")
    assert list(second.token_ids) == [1, 2, 3]
    assert second.logprobs == logprobs("a", "b", "c")


def test_finishes_of_messages_with_deltas_are_all_kept() -> None:
    outbox = Outbox()
    for index in range(3):
        part = delta("x", index=index)
        part.MergeFrom(finish(index))
        outbox.part(part)
    assert [f.index for f in outbox.take().finishes] == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        GenerateResponse(admitted=Admitted(call_id="1")),
        GenerateResponse(usage=Usage(completion_tokens=2)),
        GenerateResponse(timings=Timings(total_ms=1.5)),
        GenerateResponse(prompt_logprobs=logprobs("p")),
    ],
    ids=["admitted", "usage", "timings", "prompt_logprobs"],
)
def test_field_that_is_set_once_survives_a_merge_with_deltas(other: GenerateResponse) -> None:
    part = delta("b")
    part.MergeFrom(other)
    outbox = Outbox()
    outbox.part(delta("a"))
    outbox.part(part)
    expected = delta("ab")
    expected.MergeFrom(other)
    taken = outbox.take()
    assert taken == expected
    assert delta("x").FromString(taken.SerializeToString()) == expected


@pytest.mark.parametrize("seed", range(50))
def test_any_order_of_text_messages_and_takes_gives_the_same_output(seed: int) -> None:
    dice = random.Random(seed)
    outbox = Outbox()
    expected = ["", ""]
    seen = ["", ""]
    size = 0
    fills = Fills(outbox)
    for number in range(60):
        kind = dice.random()
        if kind < 0.5:
            outbox.text(f"{number} ")
            expected[0] += f"{number} "
        elif kind < 0.75:
            index = dice.randint(0, 1)
            outbox.part(delta(f"{number} ", index=index))
            expected[index] += f"{number} "
        elif kind < 0.85:
            outbox.part(GenerateResponse(usage=Usage(prompt_tokens=1)))
        else:
            size += outbox.waiting_bytes
            text = outbox.take_text()
            if text is not None:
                seen[0] += text
            else:
                for part in outbox.take().deltas:
                    seen[part.index] += part.text
            assert not outbox
    size += outbox.waiting_bytes
    for part in outbox.take().deltas:
        seen[part.index] += part.text
    assert seen == expected
    assert sum(fills.sizes) == size


def test_call_whose_reader_is_a_mebibyte_behind_ends() -> None:
    outbox = Outbox()
    fills = Fills(outbox)
    outbox.text("x" * MIB)
    outbox.text("x")  # exactly a mebibyte waited before it
    with pytest.raises(InferenceError) as caught:
        outbox.text("x")
    assert caught.value.reason == "slow_reader"
    assert caught.value.message == "The caller does not read its answer fast enough."
    assert (bool(outbox), outbox.waiting_bytes) == (False, 0)
    assert fills.sizes == [MIB, 1, -(MIB + 1)]


def test_message_counts_for_the_mebibyte_as_text_does() -> None:
    outbox = Outbox()
    outbox.text("x" * (MIB + 1))
    with pytest.raises(InferenceError) as caught:
        outbox.part(delta("x"))
    assert caught.value.reason == "slow_reader"
    assert not outbox


def test_output_that_was_taken_no_longer_counts() -> None:
    for take in (Outbox.take, Outbox.take_text):
        outbox = Outbox()
        for _ in range(4):
            outbox.text("x" * (MIB - 1))
            take(outbox)
    outbox = Outbox()
    for _ in range(4):
        outbox.part(delta("x" * (MIB - 1)))
        outbox.clear()


def test_response_that_is_collected_whole_may_be_larger() -> None:
    outbox = Outbox(bounded=False)
    for _ in range(48):
        outbox.text("x" * MIB)
    assert len(outbox.take_text() or "") == 48 * MIB


@pytest.mark.parametrize("bounded", [True, False])
def test_response_beyond_one_message_is_refused(bounded: bool) -> None:
    outbox = Outbox(bounded=bounded)
    fills = Fills(outbox)
    with pytest.raises(InferenceError) as caught:
        outbox.text("x" * (48 * MIB + 1))
    assert caught.value.reason == "invalid_request_error"
    assert caught.value.message == "The answer is too large for one message; stream it."
    assert not outbox
    assert fills.sizes == [0]
    outbox = Outbox(bounded=bounded)
    outbox.text("x" * 48 * MIB)  # nobody has to know of it


# Images and embeddings


def preview(image: int, data: bytes) -> GenerateImageResponse:
    return GenerateImageResponse(partial_image=Image(index=image, data=data))


def progress(step: int) -> GenerateImageResponse:
    return GenerateImageResponse(progress=Progress(step=step))


def test_messages_are_taken_in_order_and_unchanged() -> None:
    outbox = MessageOutbox()
    assert not outbox
    filled: list[int] = []
    outbox.part(progress(1))
    outbox.on_filled = filled.append
    parts = [progress(2), EmbedResponse(model="m"), preview(0, b"x")]
    for part in parts:
        outbox.part(part)
    assert filled == [0, 0, 0]
    assert outbox
    assert [outbox.take() for _ in range(4)] == [progress(1), *parts]
    assert not outbox


def test_older_previews_of_an_image_are_dropped_beyond_sixteen_mebibytes() -> None:
    outbox = MessageOutbox()
    small = preview(0, b"")
    half = b"x" * (8 * MIB - small.ByteSize() - 20)
    outbox.part(progress(1))
    for image in (1, 0):
        outbox.part(preview(image, half))
    for image in (0, 0):
        outbox.part(preview(image, b"within"))
    outbox.part(preview(1, b"x" * 100))
    # More than 16 MiB now wait.
    outbox.part(preview(0, b"newest"))
    left = []
    while outbox:
        left.append(outbox.take())
    assert [part.partial_image.data for part in left[1:]] == [half, b"x" * 100, b"newest"]
    assert left[0] == progress(1)


def test_sixteen_mebibytes_of_previews_may_wait() -> None:
    outbox = MessageOutbox()
    part = preview(0, b"x" * (16 * MIB - 16))
    part.partial_image.data = b"x" * (16 * MIB - 16 - (part.ByteSize() - 16 * MIB))
    assert part.ByteSize() == 16 * MIB
    outbox.part(part)
    outbox.part(preview(0, b"newest"))
    assert outbox.take() is part
    outbox.part(preview(0, b"x" * 16 * MIB))
    outbox.part(preview(0, b"newest"))
    assert outbox.take() == preview(0, b"newest")
    assert not outbox


def test_image_call_gets_no_text() -> None:
    with pytest.raises(NotImplementedError):
        MessageOutbox().text("x")


# The output's bytes in the memory budget

REQUEST = 100


def holding(limit: int = 1024 * MIB) -> Holding:
    """A call's holding, which has its request."""
    held = Holding(MemoryBudget(REQUEST + limit))
    held.take(REQUEST)
    return held


@pytest.mark.parametrize("as_text", [True, False])
def test_text_is_counted_above_the_small_size_until_it_is_sent(as_text: bool) -> None:
    outbox = Outbox(holding())
    outbox.sent()
    assert outbox.holding.size == REQUEST
    envelope = 0 if as_text else delta("x" * SMALL_BYTES).ByteSize() - SMALL_BYTES
    if as_text:
        outbox.text("x" * SMALL_BYTES)
    else:
        outbox.part(delta("x" * (SMALL_BYTES - envelope)))
    assert outbox.waiting_bytes == SMALL_BYTES
    assert outbox.holding.size == REQUEST
    outbox.text("x")
    assert outbox.holding.size == REQUEST + SMALL_BYTES + 1
    outbox.text("xx")
    assert outbox.holding.size == REQUEST + SMALL_BYTES + 3
    if as_text:
        assert len(outbox.take_text() or "") == SMALL_BYTES + 3
    else:
        outbox.take()
    outbox.text("x")  # small again
    assert outbox.holding.size == REQUEST + SMALL_BYTES + 3
    outbox.take()
    outbox.text("x" * 2 * SMALL_BYTES)
    assert outbox.holding.size == REQUEST + 3 * SMALL_BYTES + 3
    outbox.sent()
    outbox.sent()
    assert outbox.holding.size == REQUEST + 2 * SMALL_BYTES
    outbox.clear()
    assert outbox.holding.size == REQUEST
    outbox.text("x" * 2 * SMALL_BYTES)
    outbox.take()
    outbox.sent()
    assert outbox.holding.size == REQUEST


def test_text_that_the_memory_has_no_room_for_ends_the_call() -> None:
    outbox = Outbox(holding(3 * SMALL_BYTES))
    fills = Fills(outbox)
    outbox.text("x" * 2 * SMALL_BYTES)
    with pytest.raises(InferenceError) as caught:
        outbox.text("x" * (SMALL_BYTES + 1))
    assert caught.value.reason == "out_of_memory"
    assert (bool(outbox), outbox.waiting_bytes) == (False, 0)
    assert outbox.holding.size == REQUEST
    assert fills.sizes == [2 * SMALL_BYTES, -2 * SMALL_BYTES]


def test_images_are_counted_until_they_are_sent() -> None:
    outbox = MessageOutbox(holding())
    outbox.sent()
    assert outbox.holding.size == REQUEST
    first, second = preview(0, b"x" * 1000), preview(0, b"x" * 50)
    outbox.part(first)
    outbox.part(second)
    size = REQUEST + first.ByteSize() + second.ByteSize()
    assert outbox.holding.size == size
    assert outbox.take() is first
    assert outbox.holding.size == size
    outbox.sent()
    outbox.sent()
    assert outbox.holding.size == REQUEST + second.ByteSize()
    outbox.take()
    outbox.sent()
    assert outbox.holding.size == REQUEST


def test_vectors_are_not_counted_again() -> None:
    outbox = MessageOutbox(holding())
    outbox.part(EmbedResponse(vectors=b"x" * 1000))
    assert outbox.holding.size == REQUEST
    outbox.take()
    outbox.sent()
    assert outbox.holding.size == REQUEST


def test_dropped_previews_are_not_counted() -> None:
    outbox = MessageOutbox(holding())
    outbox.part(preview(0, b"x" * 16 * MIB))
    newest = preview(0, b"newest")
    outbox.part(newest)
    assert outbox.holding.size == REQUEST + newest.ByteSize()


def test_image_that_the_memory_has_no_room_for_ends_the_call() -> None:
    outbox = MessageOutbox(holding(1000))
    with pytest.raises(InferenceError) as caught:
        outbox.part(preview(0, b"x" * 1000))
    assert caught.value.reason == "out_of_memory"
    assert not outbox
    assert outbox.holding.size == REQUEST
