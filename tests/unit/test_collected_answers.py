"""Memory of collected output: each character is held once.

A protobuf message keeps every earlier value of a string field in memory until the message is freed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from inference.outbox import Outbox
from isthmus.v1.generate_pb2 import ChoiceDelta, GenerateRequest, GenerateResponse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines.vllm_output import OutputPlan, OutputTranslator

_TOKENS = 12_000
_TEXT = "abcd" * _TOKENS
# If every earlier value were kept, these tokens of four characters would take 275 MiB.
_MAX_GROWTH_BYTES = 64 * 1024 * 1024


class _Parser:
    """Yields every four characters as a message with both text and reasoning."""

    def choice(self, _vocabulary: object) -> _Parser:
        return self

    def feed(self, text: str, _token_ids: list[int], _ended: bool) -> Iterator[Any]:
        for start in range(0, len(text), 4):
            piece = text[start : start + 4]
            yield SimpleNamespace(content=piece, reasoning=piece, tool_calls=())

    def reasoning_tokens(self) -> int:
        return 0


def _step(text: str, ended: bool, choices: int = 1) -> Any:
    outputs = [
        SimpleNamespace(
            index=index,
            text=text,
            token_ids=[1] * (len(text) // 4),
            finish_reason="stop" if ended else None,
            stop_reason=None,
            cumulative_logprob=-1.0 - index,
            logprobs=None,
        )
        for index in range(choices)
    ]
    return SimpleNamespace(
        outputs=outputs, finished=ended, num_cached_tokens=0, prompt_logprobs=None
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("field", ["text", "reasoning"])
def test_outbox_holds_each_character_once(field: str) -> None:
    outbox = Outbox(bounded=False)
    part = GenerateResponse(deltas=[ChoiceDelta(index=0, **{field: "abcd"})])
    before = _resident_bytes()
    for _ in range(_TOKENS):
        outbox.part(part)
    assert _resident_bytes() - before < _MAX_GROWTH_BYTES
    (delta,) = outbox.take().deltas
    assert getattr(delta, field) == _TEXT


def test_outbox_joins_text_per_choice() -> None:
    outbox = Outbox()
    outbox.text("a")
    outbox.part(GenerateResponse(deltas=[ChoiceDelta(index=1, text="x", reasoning="r")]))
    outbox.text("b")
    outbox.part(GenerateResponse(deltas=[ChoiceDelta(index=1, text="y", reasoning="s")]))
    first, second = outbox.take().deltas
    assert (first.index, first.text, first.reasoning) == (0, "ab", "")
    assert (second.index, second.text, second.reasoning) == (1, "xy", "rs")
    assert not outbox


def test_best_of_candidates_hold_each_character_once() -> None:
    request = GenerateRequest(text="a")
    request.output.n, request.output.best_of = 1, 2
    plan = OutputPlan(request, 1, sampled=2, echo="a", parsing=_Parser())
    translator = OutputTranslator(plan, SimpleNamespace())
    before = _resident_bytes()
    for _ in range(_TOKENS):
        assert translator.feed(_step("abcd", ended=False, choices=2)) is None
    assert _resident_bytes() - before < _MAX_GROWTH_BYTES
    event = translator.feed(_step("", ended=True, choices=2))
    assert isinstance(event, GenerateResponse)
    (delta,) = event.deltas
    assert (delta.index, delta.text, delta.reasoning) == (0, f"a{_TEXT}", _TEXT)


def test_one_long_step_holds_each_character_once() -> None:
    plan = OutputPlan(GenerateRequest(text="a"), 1, parsing=_Parser())
    translator = OutputTranslator(plan, SimpleNamespace())
    before = _resident_bytes()
    event = translator.feed(_step(_TEXT, ended=True))
    assert _resident_bytes() - before < _MAX_GROWTH_BYTES
    assert isinstance(event, GenerateResponse)
    (delta,) = event.deltas
    assert (delta.text, delta.reasoning) == (_TEXT, _TEXT)
